"""What is counted of each stream while it runs."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any, Literal

import numpy as np

State = Literal["starting", "running", "waiting", "ended", "failed"]
STATES: tuple[State, ...] = ("starting", "running", "waiting", "ended", "failed")
"""Of a stream: before its first frame, while frames come, between two tries to open it again, and after."""

STAGES = ("decode", "wait", "push", "output")
"""Where the time of a frame goes: decoding, waiting in the queue, the pipeline, and printing, recording, showing."""

_RECENT = 4096


class StageTimes:
    """Times of one stage: their number, sum and maximum, and percentiles of the latest 4096. Thread-safe."""

    def __init__(self) -> None:
        """No time yet."""
        self.n = 0
        self.sum_s = 0.0
        self.max_s = 0.0
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._lock = threading.Lock()

    def add(self, seconds: float) -> None:
        """Counts one time."""
        with self._lock:
            self.n += 1
            self.sum_s += seconds
            self.max_s = max(self.max_s, seconds)
            self._recent.append(seconds)

    def record(self) -> dict[str, float | int | None]:
        """`n`, `mean_ms`, `p50_ms`, `p95_ms`, `max_ms`; null where there is no time yet."""
        with self._lock:
            recent = list(self._recent)
            n, sum_s, max_s = self.n, self.sum_s, self.max_s
        if not recent:
            return {"n": 0, "mean_ms": None, "p50_ms": None, "p95_ms": None, "max_ms": None}
        p50, p95 = np.percentile(recent, (50, 95))
        times_s = {"mean": sum_s / n, "p50": p50, "p95": p95, "max": max_s}
        return {"n": n} | {f"{key}_ms": round(float(value) * 1000, 3) for key, value in times_s.items()}


class StreamCounters:
    """Counters of one stream. Each is written by one thread and may be read by any.

    Attributes:
        state: one of `STATES`.
        reason: why it failed or waits; empty otherwise.
        frames: frames that the source gave.
        pushed: frames that the pipeline took.
        refused: frames that it did not take.
        dropped: frames that gave way in the full queue.
        damaged: packets and frames that could not be decoded.
        events: events that came of it.
        connects: how often the source was opened and gave a frame.
        failures: how often it broke off or could not be opened.
        resolution_changes: how often the frames' size changed.
        queue_depth, queue_deepest: frames that wait now, and the most that ever did.
        width, height: of the latest frame.
        first_ns, latest_ns: timestamps of the first and the latest frame; null before there is one.
    """

    def __init__(self) -> None:
        """Everything at zero."""
        self.state: State = "starting"
        self.reason = ""
        self.frames = 0
        self.pushed = 0
        self.refused = 0
        self.dropped = 0
        self.damaged = 0
        self.events = 0
        self.connects = 0
        self.failures = 0
        self.resolution_changes = 0
        self.queue_depth = 0
        self.queue_deepest = 0
        self.width = 0
        self.height = 0
        self.first_ns: int | None = None
        self.latest_ns: int | None = None
        self.stages = {stage: StageTimes() for stage in STAGES}

    @property
    def reconnects(self) -> int:
        """How often the source came back."""
        return max(0, self.connects - 1)

    @property
    def video_s(self) -> float:
        """Time of the source from the first frame to the latest."""
        if self.first_ns is None or self.latest_ns is None:
            return 0.0
        return (self.latest_ns - self.first_ns) / 1e9

    def record(self) -> dict[str, Any]:
        """All of it, ready for JSON; `stages` by name as `StageTimes.record` gives them."""
        numbers = {name: value for name, value in vars(self).items() if name != "stages"}
        stages = {name: times.record() for name, times in self.stages.items()}
        return numbers | {"reconnects": self.reconnects, "video_s": self.video_s, "stages": stages}
