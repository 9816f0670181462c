"""How long to wait before a source that broke off is opened again: longer each time, never in step with others."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from ptsr_edge.core.errors import InputError

_FACTOR = 2.0


@dataclass
class Backoff:
    """Exponential back-off with jitter.

    The k-th wait is drawn evenly between a half and the whole of `first_s` * 2^(k - 1), at most `longest_s`: cameras
    behind one switch, which all break off together, do not all come back in the same moment.

    Attributes:
        first_s: the longest that the first wait can be, in seconds.
        longest_s: the longest that any can be.
        retries: after so many in a row that brought nothing, the source is given up.

    Source: Brooker, Exponential backoff and jitter, AWS Architecture Blog, 2015 ("equal jitter").
    """

    first_s: float = 1.0
    longest_s: float = 30.0
    retries: int = 30
    draw: random.Random = field(default_factory=random.Random, repr=False)
    failures: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.first_s <= self.longest_s:
            raise InputError(
                "the first wait must be above 0 and at most the longest; "
                f"found {self.first_s:g} s and {self.longest_s:g} s"
            )
        if self.retries < 0:
            raise InputError(f"retries must be 0 or more; found {self.retries}")

    def next_s(self) -> float | None:
        """Counts a failure; the seconds to wait, or None where the source is given up."""
        self.failures += 1
        if self.failures > self.retries:
            return None
        # 64 doublings pass any limit, and a float holds them.
        whole = min(self.longest_s, self.first_s * _FACTOR ** min(self.failures - 1, 64))
        return whole / 2 + self.draw.random() * whole / 2

    def reset(self) -> None:
        """The source works again."""
        self.failures = 0
