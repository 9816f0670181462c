"""One stream from frames to spotted motions: its face, its crop, its ring of crops, its spotter.

What is uncertain ends the window, and nothing is measured across the border: a jump of the pts, another size of
frames, a face that is lost, a crop that had to be moved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.camera.metrics import Counters
from ptsr_edge.core.errors import InputError
from ptsr_edge.vision.face_detection import Detector, Face, FixedCrop, Frame
from ptsr_edge.vision.face_tracking import DETECT_EVERY_S, CropRing, FaceTracker, Gray, Region, StableCrop
from ptsr_edge.vision.flow import MIN_FRAME

MAX_GAP_S = 0.5
"""Between two frames; a longer one is a jump: a micro-expression would fit in between."""

RING_S = 2.5
RING_MOST = 640
"""Crops that are held at most: two and a half seconds at up to 256 frames a second."""


class SpottedMotion(Protocol):
    """What a spotter finds: pts of the frames where a motion starts, is largest and ends, and how it stands out."""

    @property
    def onset_ns(self) -> int: ...
    @property
    def apex_ns(self) -> int: ...
    @property
    def offset_ns(self) -> int: ...
    @property
    def score(self) -> float: ...


class OnlineSpotter(Protocol):
    """Finds motions in a stream of crops of one place."""

    def push(self, crop: Gray, pts_ns: int) -> Sequence[SpottedMotion]:
        """Takes the next crop; the motions that are complete with it."""
        ...

    def flush(self) -> Sequence[SpottedMotion]:
        """The stream ends here: what is still to be said."""
        ...

    def reset(self) -> None:
        """Forgets the crops: the next one shows another place or time."""
        ...


@dataclass(frozen=True)
class Sighting:
    """A motion that was spotted, with the two crops that it is classified by.

    Attributes:
        motion: of the spotter.
        onset, apex: (S, S) uint8, gray.
        face: its box at the time of the sighting.
        region: of the crop.
        truncated: the window ended before the motion was seen to.
    """

    motion: SpottedMotion
    onset: Gray
    apex: Gray
    face: Face
    region: Region
    truncated: bool


class CameraStream:
    """The state of one stream. For one thread at a time."""

    def __init__(
        self,
        detector: Detector,
        spotter: Callable[[], OnlineSpotter],
        side: int,
        *,
        detect_every_s: float = DETECT_EVERY_S,
    ) -> None:
        """`side`: S, of the crops; `spotter` makes this stream's own."""
        self.counters = Counters()
        self.tracker = FaceTracker(detector, detect_every_s)
        self.last_pts_ns: int | None = None
        self._detector = detector
        self._window = StableCrop(side)
        self._ring = CropRing(round(RING_S * 1e9), RING_MOST)
        self._spotter = spotter()
        self._face: Face | None = None
        self._shape: tuple[int, int] | None = None

    @property
    def held(self) -> int:
        """Crops in the ring."""
        return len(self._ring)

    @property
    def seen(self) -> tuple[Face, Region] | None:
        """The face and the crop of the last frame; None where there was no face."""
        if self._face is None or self._window.region is None:
            return None
        return self._face, self._window.region

    def take(self, frame: Frame, pts_ns: int) -> list[Sighting]:
        """Takes the next frame.

        A frame with the pts of the one before, or a little before it, is left out and counted.

        Raises:
            InputError: a fixed crop lies outside of the frame; the stream is as it was.
        """
        if self._shape != frame.shape[:2] and isinstance(self._detector, FixedCrop):
            self._detector.detect(frame)
        ended = self._continues(frame, pts_ns)
        if ended is None:
            return []
        with self.counters.timed("face"):
            face = self.tracker.update(frame, pts_ns)
        self.last_pts_ns = pts_ns
        self._shape = (frame.shape[0], frame.shape[1])
        self.counters.count("frames")
        if face is None:
            self.counters.count("no_face")
            return [*ended, *self._end_window()]
        with self.counters.timed("crop"):
            before = self._window.region
            if self._window.follow(face):
                if before is not None:
                    placed, self._window.region = self._window.region, before
                    ended += self._end_window()
                    self._window.region = placed
                self.counters.count("windows")
            self._face = face
            crop = self._window.cut(frame)
            self._ring.add(pts_ns, crop)
        with self.counters.timed("spot"):
            motions = self._spotter.push(crop, pts_ns)
        return [*ended, *self._sightings(motions, truncated=False)]

    def end(self) -> list[Sighting]:
        """The stream ends or is interrupted here: what is still to be said; the next frame begins anew."""
        ended = self._end_window()
        self.tracker.reset()
        self.last_pts_ns = self._shape = None
        return ended

    def _continues(self, frame: Frame, pts_ns: int) -> list[Sighting] | None:
        """Sightings of what ends with this frame; None where the frame is left out."""
        if self.last_pts_ns is None:
            return []
        step = pts_ns - self.last_pts_ns
        if step == 0:
            self.counters.count("duplicates")
            return None
        if -MAX_GAP_S * 1e9 <= step < 0:
            self.counters.count("backwards")
            return None
        jumped = not 0 < step <= MAX_GAP_S * 1e9
        resized = self._shape != frame.shape[:2]
        if not jumped and not resized:
            return []
        self.counters.count("jumps", jumped)
        self.counters.count("size_changes", resized)
        return self.end()

    def _end_window(self) -> list[Sighting]:
        if self._window.region is None:
            return []
        ended = self._sightings(self._spotter.flush(), truncated=True)
        self._spotter.reset()
        self._ring.clear()
        self._window.leave()
        self._face = None
        return ended

    def _sightings(self, motions: Sequence[SpottedMotion], *, truncated: bool) -> list[Sighting]:
        found = []
        for motion in motions:
            onset, apex = self._ring.at(motion.onset_ns), self._ring.at(motion.apex_ns)
            if onset is None or apex is None or self._face is None or self._window.region is None:
                self.counters.count("lost_spots")
                continue
            found.append(Sighting(motion, onset, apex, self._face, self._window.region, truncated))
        return found


def check_frame(frame: Any) -> NDArray[np.uint8]:
    """A frame that can be processed; (H, W, 1) comes back as (H, W).

    Raises:
        InputError: it is no (H, W, 3) uint8 BGR nor (H, W) uint8 gray image of at least 16 pixels a side.
    """
    if isinstance(frame, np.ndarray) and frame.dtype == np.uint8:
        if frame.ndim == 3 and frame.shape[2] == 1:
            frame = frame[..., 0]
        coloured = frame.ndim == 3 and frame.shape[2] == 3
        if (coloured or frame.ndim == 2) and min(frame.shape[:2]) >= MIN_FRAME:
            taken: NDArray[np.uint8] = frame
            return taken
    found = f"{frame.shape} {frame.dtype}" if isinstance(frame, np.ndarray) else type(frame).__name__
    raise InputError(
        f"a frame must be (H, W, 3) uint8 BGR or (H, W) uint8 gray, at least {MIN_FRAME} pixels a side; found {found}"
    )


def check_pts(pts_ns: Any) -> int:
    """A timestamp as a plain integer.

    Raises:
        InputError: it is none, or does not fit 64 bits.
    """
    if (
        isinstance(pts_ns, int | np.integer)
        and not isinstance(pts_ns, bool)
        and -(2**63) <= int(pts_ns) < 2**63
    ):
        return int(pts_ns)
    raise InputError(
        f"pts_ns must be an integer number of nanoseconds of the source's clock; found {pts_ns!r:.80}"
    )
