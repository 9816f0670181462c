"""Which budget the next answer may take, so that a push stays within its deadline.

All budgets are loaded and timed once beforehand; moving along the ladder costs nothing. Going down is quick, going up
is slow (hysteresis): a push that missed its deadline, or one that would, sends it down at once; it goes up one step
only when the next larger budget would leave a reserve, and not before `HOLD_S` after the last move. How much slower than
beforehand inferences are now is learnt as one factor for the whole ladder: what the small budget takes tells of the
large one too, which would otherwise never be tried again after a busy moment.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import numpy as np

from ptsr_edge.core.errors import InputError

RESERVE = 0.8
"""Share of the deadline that a larger budget must fit into before it is taken."""

HOLD_S = 2.0
"""Time of the source that a budget is kept before a larger one is tried."""

RECENT = 256
"""Pushes whose time apart from the inference is remembered."""

_SMOOTHING = 0.2


class Governor:
    """Chooses from a ladder of budgets. For one thread at a time."""

    def __init__(self, inference_ms: Mapping[float, float], deadline_ms: float) -> None:
        """Starts at the largest budget that fits.

        Args:
            inference_ms: by keep rate, what one inference was measured to take.
            deadline_ms: that a whole push may take.

        Raises:
            InputError: a deadline that is not positive and finite, or no budget.
        """
        if not (deadline_ms > 0 and np.isfinite(deadline_ms)):
            raise InputError(f"deadline_ms must be positive, got {deadline_ms:g}")
        if not inference_ms:
            raise InputError("a governor needs at least one budget")
        self.deadline_ms = float(deadline_ms)
        self._ladder = sorted(inference_ms)
        self._cost_ms = {rate: float(inference_ms[rate]) for rate in self._ladder}
        self._rest_ms: deque[float] = deque(maxlen=RECENT)
        self._slowdown = 1.0
        self._moved_ns: int | None = None
        self.misses = 0
        self.moves = 0
        fitting = [place for place in range(len(self._ladder)) if self._predicted(place) <= self.deadline_ms]
        self._place = max(fitting, default=0)

    @property
    def budget(self) -> float:
        """The keep rate to answer at now."""
        return self._ladder[self._place]

    @property
    def ladder(self) -> tuple[float, ...]:
        """All keep rates, from the smallest up."""
        return tuple(self._ladder)

    def saw_push(self, push_ms: float, inference_ms: Mapping[float, float], pts_ns: int) -> None:
        """Learns from a push and moves.

        Args:
            push_ms: what the whole push took.
            inference_ms: by keep rate, what the inferences in it took, each; empty where there was none.
            pts_ns: of the frame.
        """
        for rate, took in inference_ms.items():
            self._slowdown += _SMOOTHING * (took / max(self._cost_ms[rate], 1e-3) - self._slowdown)
        self._rest_ms.append(max(0.0, push_ms - sum(inference_ms.values())))
        missed = push_ms > self.deadline_ms
        self.misses += missed
        answered = bool(inference_ms)
        if self._place > 0 and ((missed and answered) or self._predicted(self._place) > self.deadline_ms):
            self._move(-1, pts_ns)
        elif self._may_rise(pts_ns):
            self._move(1, pts_ns)

    def _may_rise(self, pts_ns: int) -> bool:
        if self._place + 1 == len(self._ladder):
            return False
        held = self._moved_ns is None or not 0 <= pts_ns - self._moved_ns < HOLD_S * 1e9
        return held and self._predicted(self._place + 1) <= RESERVE * self.deadline_ms

    def _predicted(self, place: int) -> float:
        """The 95th percentile of the rest of a push, and one inference at a place of the ladder."""
        rest = float(np.quantile(np.fromiter(self._rest_ms, float), 0.95)) if self._rest_ms else 0.0
        return rest + self._slowdown * self._cost_ms[self._ladder[place]]

    def _move(self, steps: int, pts_ns: int) -> None:
        self._place += steps
        self._moved_ns = pts_ns
        self.moves += 1
