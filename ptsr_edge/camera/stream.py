"""One stream from frames to spotted motions: its face, its crop, its ring of crops, its spotter.

A window is a stretch of frames with one crop. It ends with a jump of the pts, another size of frames, a lost face, or a
crop that had to be moved; nothing is measured across its border.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ptsr_edge.camera.face_motion import changed_share
from ptsr_edge.camera.metrics import Cause, StreamStats
from ptsr_edge.core.errors import InputError
from ptsr_edge.vision.face_detection import Detector, Face, FixedCrop, Frame
from ptsr_edge.vision.face_tracking import DETECT_EVERY_S, CropRing, FaceTracker, Gray, Region, StableCrop

MAX_GAP_S = 0.5
"""Longest time between two frames; more is a jump, as a micro-expression would fit in between."""

RING_S = 2.5
RING_MOST = 640
"""Most crops that are held: two and a half seconds at up to 256 frames a second."""

OCCLUDED_SHARE = 0.05
"""Share of the face above which something has come before it or left it between onset and apex."""


class SpottedMotion(Protocol):
    """A finding of a spotter: pts of the frames where a motion starts, is largest and ends, how far it stands out, and why
    it is no micro-expression that can be classified; None where it may be one.
    """

    @property
    def onset_ns(self) -> int: ...
    @property
    def apex_ns(self) -> int: ...
    @property
    def offset_ns(self) -> int: ...
    @property
    def score(self) -> float: ...
    @property
    def cause(self) -> Cause | None: ...


class OnlineSpotter(Protocol):
    """Finds motions in a stream of crops of one place."""

    def push(self, crop: Gray, pts_ns: int) -> Sequence[SpottedMotion]:
        """Takes the next crop; returns the motions that are complete with it."""
        ...

    def flush(self) -> Sequence[SpottedMotion]:
        """Ends the stream; returns the motions that can still be told."""
        ...

    def reset(self) -> None:
        """Forgets the crops: the next one shows another place or time."""
        ...


@dataclass(frozen=True)
class Held:
    """A frame of the window.

    Attributes:
        crop: (S, S) uint8, gray.
        number: of the frame in its stream, from 0.
        came_s: wall clock when it came in, in seconds since 1970.
    """

    crop: Gray
    number: int
    came_s: float


@dataclass(frozen=True)
class Sighting:
    """A spotted motion with the frames that it is classified by.

    Attributes:
        motion: the finding of the spotter.
        onset, apex, offset: frames; the first two hold the crops that flow is measured between.
        face: the face's box at the time of the sighting.
        region: the place of the crop.
        cause: why it is not to be classified; None where it is.
    """

    motion: SpottedMotion
    onset: Held
    apex: Held
    offset: Held
    face: Face
    region: Region
    cause: Cause | None


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
        """Begins a stream; `spotter` makes a spotter of its own, `side` is S, of the crops."""
        self.stats = StreamStats()
        self._tracker = FaceTracker(detector, detect_every_s)
        self._detector = detector
        self._window = StableCrop(side)
        self._ring: CropRing[Held] = CropRing(round(RING_S * 1e9), RING_MOST)
        self.number = -1
        self._spotter = spotter()
        self._face: Face | None = None
        self._shape: tuple[int, int] | None = None

    @property
    def seen(self) -> tuple[Face, Region] | None:
        """The face and the place of the crop in the last frame; None where there was no face."""
        if self._face is None or self._window.region is None:
            return None
        return self._face, self._window.region

    def take(self, frame: Frame, pts_ns: int) -> list[Sighting]:
        """Takes the next frame; returns what is complete with it.

        A frame with the pts of the one before, or a little before it, is left out and counted.

        Raises:
            InputError: a fixed crop lies outside of the frame; the stream stays as it was.
        """
        came_s = time.time()
        if self._shape != frame.shape[:2] and isinstance(self._detector, FixedCrop):
            self._detector.detect(frame)
        self.number += 1
        ended = self._continues(frame, pts_ns)
        if ended is None:
            return []
        stats, stages = self.stats, self.stats.stages
        with stages["face"].timed():
            face = self._tracker.update(frame, pts_ns)
        stats.detections, stats.tracks = self._tracker.detections, self._tracker.tracks
        stats.last_pts_ns = pts_ns
        self._shape = (frame.shape[0], frame.shape[1])
        stats.frames += 1
        if face is None:
            stats.no_face += 1
            return [*ended, *self._end_window()]
        with stages["crop"].timed():
            before = self._window.region
            if self._window.follow(face):
                if before is not None:
                    placed, self._window.region = self._window.region, before
                    ended += self._end_window()
                    self._window.region = placed
                stats.windows += 1
            self._face = face
            crop = self._window.cut(frame)
            self._ring.add(pts_ns, Held(crop, self.number, came_s))
            stats.ring = len(self._ring)
        with stages["spot"].timed():
            motions = self._spotter.push(crop, pts_ns)
        return [*ended, *self._sightings(motions)]

    def end(self) -> list[Sighting]:
        """Ends or interrupts the stream; returns what can still be told. The next frame begins anew."""
        ended = self._end_window()
        self._tracker.reset()
        self.stats.last_pts_ns = self._shape = None
        return ended

    def _continues(self, frame: Frame, pts_ns: int) -> list[Sighting] | None:
        """Returns the sightings of a window that ends with this frame; None where the frame is left out."""
        if self.stats.last_pts_ns is None:
            return []
        step = pts_ns - self.stats.last_pts_ns
        if step == 0:
            self.stats.duplicates += 1
            return None
        if -MAX_GAP_S * 1e9 <= step < 0:
            self.stats.backwards += 1
            return None
        jumped = not 0 < step <= MAX_GAP_S * 1e9
        resized = self._shape != frame.shape[:2]
        if not jumped and not resized:
            return []
        self.stats.jumps += jumped
        self.stats.size_changes += resized
        return self.end()

    def _end_window(self) -> list[Sighting]:
        if self._window.region is None:
            return []
        ended = self._sightings(self._spotter.flush(), "truncated")
        self._spotter.reset()
        self._ring.clear()
        self.stats.ring = 0
        self._window.leave()
        self._face = None
        return ended

    def _sightings(self, motions: Sequence[SpottedMotion], ended: Cause | None = None) -> list[Sighting]:
        found = []
        for motion in motions:
            times = (motion.onset_ns, motion.apex_ns, motion.offset_ns)
            onset, apex, offset = (self._ring.at(pts_ns) for pts_ns in times)
            if not (onset and apex and offset) or self._face is None or self._window.region is None:
                self.stats.lost_spots += 1
                continue
            cause = motion.cause or ended
            if changed_share(onset.crop, apex.crop) > OCCLUDED_SHARE:
                cause = "occlusion"
            found.append(Sighting(motion, onset, apex, offset, self._face, self._window.region, cause))
        return found


def check_pts(pts_ns: Any) -> int:
    """Returns a timestamp as a plain integer.

    Raises:
        InputError: it is no integer, or does not fit 64 bits.
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
