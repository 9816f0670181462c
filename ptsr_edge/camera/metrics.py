"""What is counted about a stream: plain numbers, to be read at any time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

STAGES = ("face", "crop", "spot", "flow", "inference")
"""Where the time of a push goes, in this order."""

RECENT = 512
"""Pushes that the percentiles are taken over."""

COUNTS = (
    "frames", "events", "no_face", "duplicates", "backwards", "jumps", "size_changes", "rejected", "failed",
    "windows", "lost_spots",
)  # fmt: skip


@dataclass(frozen=True)
class StageTime:
    """How often a stage ran, and for how long in all and at most."""

    count: int = 0
    total_ms: float = 0.0
    max_ms: float = 0.0


@dataclass(frozen=True)
class StreamStats:
    """A stream's counters at one moment.

    Attributes:
        stream: its name.
        frames: that were processed.
        events: that were answered.
        no_face: frames without a face.
        detections: runs of the face detector.
        tracks: faces that were followed, one after the other.
        windows: times that the crop was placed.
        duplicates: frames left out because their pts was that of the frame before.
        backwards: frames left out because their pts was a little before that of the frame before.
        jumps: of the pts, after which everything began anew.
        size_changes: of the frames, likewise.
        rejected: frames that were no acceptable call.
        failed: pushes that ended in an error of the runtime.
        lost_spots: spots whose crops were no longer there.
        deadline_misses: pushes that took longer than the deadline.
        budget: keep rate that the next answer takes; None in a cascade.
        budget_moves: of the governor.
        last_pts_ns: of the last frame that was processed; None before the first.
        ring: crops that are held.
        stages: by name of `STAGES`.
        push_ms_p50, push_ms_p95, push_ms_max: over the last pushes, at most 512; 0 before the first.
    """

    stream: str
    frames: int
    events: int
    no_face: int
    detections: int
    tracks: int
    windows: int
    duplicates: int
    backwards: int
    jumps: int
    size_changes: int
    rejected: int
    failed: int
    lost_spots: int
    deadline_misses: int
    budget: float | None
    budget_moves: int
    last_pts_ns: int | None
    ring: int
    stages: dict[str, StageTime]
    push_ms_p50: float
    push_ms_p95: float
    push_ms_max: float


@dataclass
class Counters:
    """What a stream counts while it runs; guarded by the stream's lock."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    stages: dict[str, StageTime] = field(default_factory=lambda: dict.fromkeys(STAGES, StageTime()))
    pushes_ms: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))

    def count(self, name: str, number: int = 1) -> None:
        """Adds to one of `COUNTS`."""
        self.counts[name] += number

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Times a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.spent(stage, (time.perf_counter() - started) * 1e3)

    def spent(self, stage: str, took_ms: float) -> None:
        """Adds one run of a stage."""
        before = self.stages[stage]
        self.stages[stage] = StageTime(
            before.count + 1, before.total_ms + took_ms, max(before.max_ms, took_ms)
        )

    def percentiles(self) -> tuple[float, float, float]:
        """Median, 95th percentile and maximum of the last pushes, in milliseconds."""
        if not self.pushes_ms:
            return 0.0, 0.0, 0.0
        p50, p95 = np.quantile(np.fromiter(self.pushes_ms, float), (0.5, 0.95))
        return float(p50), float(p95), max(self.pushes_ms)
