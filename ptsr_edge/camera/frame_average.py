"""Frames at any rate become samples at about one rate: what is between two samples is averaged, not lost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_NS = 1e9


@dataclass(frozen=True)
class Sample:
    """Frames that were taken together.

    Attributes:
        frame: (H, W) float32, their mean.
        time_s: the mean of their pts.
    """

    frame: NDArray[np.float32]
    time_s: float


class FrameAverager:
    """Averages frames over `sample_s`; at a lower rate each frame is a sample. One stream, one frame size."""

    def __init__(self, sample_s: float) -> None:
        self._sample_ns = _NS * sample_s
        self._sum: NDArray[np.float32] | None = None
        self._pts: list[int] = []
        self._last_ns: int | None = None
        self._sampled_ns: int | None = None

    def push(self, frame: NDArray[np.uint8], pts_ns: int) -> Sample | None:
        """Takes the next frame, (H, W); the sample that ends with it, if one does.

        A sample ends with the frame that is nearest to its end, so that nothing waits for the next one.
        """
        interval = 0 if self._last_ns is None else pts_ns - self._last_ns
        self._last_ns = pts_ns
        self._sum = frame.astype(np.float32) if self._sum is None else self._sum + frame
        self._pts.append(pts_ns)
        if self._sampled_ns is not None and pts_ns - self._sampled_ns < self._sample_ns - interval / 2:
            return None
        middle_ns = self._pts[0] + sum(pts - self._pts[0] for pts in self._pts) / len(self._pts)
        sample = Sample(self._sum / np.float32(len(self._pts)), middle_ns / _NS)
        self._sum, self._pts, self._sampled_ns = None, [], pts_ns
        return sample
