"""Bumps in noisy signals: how much of a rise and return of a given duration each moment holds.

A bump is fitted by least squares together with a level and a slope, so that drift adds nothing, as in
MDMD's difference to the neighbours in time, but with every sample used. What counts as noise is learned
from the trailing window alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def bump(times_s: Array, lasts_s: float) -> Array:
    """A raised cosine around 0, from 0 to 1 and back within `lasts_s`."""
    inside = np.abs(times_s) < lasts_s / 2
    return np.where(inside, 0.5 + 0.5 * np.cos(2 * np.pi * times_s / lasts_s), 0.0)


def bump_kernels(durations_s: Sequence[float], rest_s: float, step_s: float) -> Array:
    """Rows whose product with a window of samples is the height of a bump in its middle.

    Args:
        durations_s: of the bumps, ascending.
        rest_s: how much is looked at before and after a bump.
        step_s: between samples.

    Returns:
        (durations, 2 h + 1): least squares over bump, level and slope; h samples make half of the longest
        bump and its rest. A shorter bump looks at less: its row is 0 further out.
    """
    half = round((max(durations_s) / 2 + rest_s) / step_s)
    kernels = np.zeros((len(durations_s), 2 * half + 1))
    for row, lasts_s in zip(kernels, durations_s, strict=True):
        reach = round((lasts_s / 2 + rest_s) / step_s)
        times = step_s * np.arange(-reach, reach + 1, dtype=np.float64)
        terms = np.stack([bump(times, lasts_s), np.ones_like(times), times], axis=1)
        row[half - reach : half + reach + 1] = np.linalg.pinv(terms)[0]
    return kernels


class TrailingNoise:
    """The standard deviation of each of many signals, from the median of their size in a trailing window.

    The median absolute deviation about 0, as bump heights have no level, times 1.4826: the standard
    deviation of a normal distribution, which rare events do not change.
    """

    def __init__(self, window: int, refresh: int, floor: float) -> None:
        """`window` and `refresh` are counts of `add`: how many are held, how often they are looked at."""
        self._heights: deque[Array] = deque(maxlen=window)
        self._refresh = refresh
        self._floor = floor
        self._since = 0
        self._sigma: Array | None = None

    def __len__(self) -> int:
        return len(self._heights)

    def add(self, heights: Array) -> None:
        """Takes the next heights, of the same shape each time."""
        self._heights.append(np.abs(heights).astype(np.float32))
        self._since += 1
        if self._sigma is None or self._since >= self._refresh:
            median = np.median(np.stack(self._heights), axis=0)
            self._sigma = np.maximum(1.4826 * median, self._floor).astype(np.float64)
            self._since = 0

    @property
    def sigma(self) -> Array:
        """Of the shape of what was added; only after the first `add`."""
        assert self._sigma is not None
        return self._sigma
