"""How well spotted intervals meet the true ones, as the MEGC spotting challenges count it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ptsr_edge.core.errors import InputError

Interval = tuple[float, float]
"""Start and end, of one clip and in one unit."""

MEGC_IOU = 0.5


@dataclass(frozen=True)
class IntervalCounts:
    """Counts over one or more clips; they add up with `+`."""

    hits: int = 0
    spotted: int = 0
    true: int = 0

    def __add__(self, other: IntervalCounts) -> IntervalCounts:
        return IntervalCounts(self.hits + other.hits, self.spotted + other.spotted, self.true + other.true)

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN); 0 where nothing was spotted and nothing was there."""
        return 2 * self.hits / max(1, self.spotted + self.true)

    @property
    def precision(self) -> float:
        """Share of the spotted intervals that are true; 0 where there are none."""
        return self.hits / max(1, self.spotted)

    @property
    def recall(self) -> float:
        """Share of the true intervals that were spotted; 0 where there are none."""
        return self.hits / max(1, self.true)

    @property
    def false_alarms(self) -> int:
        """Spotted intervals that are not true."""
        return self.spotted - self.hits


def overlap(one: Interval, other: Interval) -> float:
    """Intersection over union of two intervals; 0 where they are apart."""
    shared = min(one[1], other[1]) - max(one[0], other[0])
    return max(0.0, shared) / (max(one[1], other[1]) - min(one[0], other[0]))


def match_intervals(
    spotted: Sequence[Interval], true: Sequence[Interval], least: float = MEGC_IOU
) -> list[tuple[int, int]]:
    """Pairs each spotted interval with at most one true one, and each true one with at most one spotted.

    Pairs with more in common are made first.

    Args:
        spotted: of one clip.
        true: of the same clip.
        least: intersection over union that a pair needs.

    Returns:
        (place in `spotted`, place in `true`) of each pair, in the order of `spotted`.

    Raises:
        InputError: an interval does not end after it starts, or `least` is not in (0, 1].

    Source: Li et al., MEGC2019: the second facial micro-expressions grand challenge, spotting task, FG 2019.
    """
    if not 0 < least <= 1:
        raise InputError(f"the least intersection over union must be in (0, 1]; found {least}")
    for start, end in (*spotted, *true):
        if not start < end:
            raise InputError(f"an interval must end after it starts; found {start} to {end}")
    shares = np.array([[overlap(one, other) for other in true] for one in spotted])
    shares = shares.reshape(len(spotted), len(true))
    pairs: list[tuple[int, int]] = []
    for place in np.argsort(-shares, axis=None, kind="stable"):
        row, column = divmod(int(place), len(true))
        if shares[row, column] < least:
            break
        if all(row != taken and column != met for taken, met in pairs):
            pairs.append((row, column))
    return sorted(pairs)


def count_intervals(
    spotted: Sequence[Interval], true: Sequence[Interval], least: float = MEGC_IOU
) -> IntervalCounts:
    """The counts of one clip, by `match_intervals`."""
    return IntervalCounts(len(match_intervals(spotted, true, least)), len(spotted), len(true))
