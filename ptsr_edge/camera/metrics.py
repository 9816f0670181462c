"""What is counted about a stream: plain numbers, to be read at any time."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ptsr_edge.core.errors import InputError, JobError, require

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


State = Literal["starting", "running", "waiting", "ended", "failed"]

STATES: tuple[State, ...] = ("starting", "running", "waiting", "ended", "failed")
"""Of a stream: before its first frame, while frames come, between two tries to open it again, and after."""

STREAM_COUNTERS_STAGES = ("decode", "wait", "push", "output")
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
        self.stages = {stage: StageTimes() for stage in STREAM_COUNTERS_STAGES}

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


# FOLDED from camera.exposition: What is counted, for Prometheus to scrape: a text page on the loopback interface, off unless a port is given. The format, its escapes and its content types are `prometheus_client`'s; it has no dependencies of its own. Nothing is counted twice: at each scrape the page is made from the counters that the streams and the pipeline keep anyway.

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric


LOOPBACK = "127.0.0.1"

COUNTED = {
    "frames": "Frames that the source gave.",
    "pushed": "Frames that the pipeline took.",
    "refused": "Frames that the pipeline did not take.",
    "dropped": "Frames that gave way in the full queue.",
    "damaged": "Packets and frames that could not be decoded.",
    "events": "Micro-expressions that were answered.",
    "reconnects": "Times that the source came back.",
    "failures": "Times that the source broke off or could not be opened.",
    "resolution_changes": "Times that the size of the frames changed.",
}
"""Counters of `StreamCounters` on the page, and what they say."""

COUNTED_BY_PIPELINE = {
    "no_face": "Frames without a face.",
    "detections": "Runs of the face detector.",
    "jumps": "Jumps of the timestamps.",
    "deadline_misses": "Pushes that took longer than the deadline.",
    "budget_moves": "Moves of the governor along the budget ladder.",
}
"""Counters of `StreamStats` on the page."""


class Page:
    """Collects what is on the page, in the way of `prometheus_client`."""

    def __init__(
        self,
        observe: Callable[[], Mapping[str, StreamCounters]],
        stats: Callable[[], Mapping[str, StreamStats]],
    ) -> None:
        """Both are called at each scrape, from the server's thread, and answer by stream."""
        self._observe = observe
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        """One metric after the other, each with a sample a stream."""
        core = require("prometheus_client.core", "camera", "serving metrics")
        streams, stats = self._observe(), self._stats()
        for name, text in COUNTED.items():
            metric = core.CounterMetricFamily(f"ptsr_edge_{name}", text, labels=["stream"])
            for stream, counters in streams.items():
                metric.add_metric([stream], getattr(counters, name))
            yield metric
        for name, text in COUNTED_BY_PIPELINE.items():
            metric = core.CounterMetricFamily(f"ptsr_edge_{name}", text, labels=["stream"])
            for stream, of_stream in stats.items():
                metric.add_metric([stream], getattr(of_stream, name))
            yield metric
        yield from self._gauges(core, streams, stats)
        yield from self._times(core, streams, stats)

    def _gauges(
        self, core: Any, streams: Mapping[str, StreamCounters], stats: Mapping[str, StreamStats]
    ) -> Iterator[Metric]:
        depth = core.GaugeMetricFamily(
            "ptsr_edge_queue_depth", "Frames that wait in the queue.", labels=["stream"]
        )
        state = core.GaugeMetricFamily(
            "ptsr_edge_state", "1 for the state that the stream is in.", labels=["stream", "state"]
        )
        for stream, counters in streams.items():
            depth.add_metric([stream], counters.queue_depth)
            for name in STATES:
                state.add_metric([stream, name], float(counters.state == name))
        yield depth
        yield state
        budget = core.GaugeMetricFamily(
            "ptsr_edge_budget", "Keep rate of the next answer; none in a cascade.", labels=["stream"]
        )
        for stream, of_stream in stats.items():
            if of_stream.budget is not None:
                budget.add_metric([stream], of_stream.budget)
        yield budget

    def _times(
        self, core: Any, streams: Mapping[str, StreamCounters], stats: Mapping[str, StreamStats]
    ) -> Iterator[Metric]:
        stage = core.SummaryMetricFamily(
            "ptsr_edge_stage_seconds", "Time of a frame, by stage.", labels=["stream", "stage"]
        )
        for stream, counters in streams.items():
            for name, times in counters.stages.items():
                stage.add_metric([stream, name], count_value=times.n, sum_value=times.sum_s)
        yield stage
        inside = core.SummaryMetricFamily(
            "ptsr_edge_push_stage_seconds", "Time inside of a push, by stage.", labels=["stream", "stage"]
        )
        for stream, of_stream in stats.items():
            for name, spent in of_stream.stages.items():
                inside.add_metric([stream, name], count_value=spent.count, sum_value=spent.total_ms / 1000)
        yield inside


@contextmanager
def serve(port: int | None, page: Page) -> Iterator[int | None]:
    """Serves the page at `http://127.0.0.1:port/metrics` while the block runs; does nothing without a port.

    Args:
        port: 0 takes a free one; None: no page.
        page: what is on it.

    Yields:
        The port.

    Raises:
        InputError: no port number.
        JobError: the port is in use, or may not be used.
        MissingExtraError: `prometheus_client` is not installed.
    """
    if port is None:
        yield None
        return
    if not 0 <= port <= 65535:
        raise InputError(f"a port is 0 to 65535; found {port}")
    client = require("prometheus_client", "camera", "serving metrics")
    registry = client.CollectorRegistry()
    registry.register(page)
    try:
        server, thread = client.start_http_server(port, addr=LOOPBACK, registry=registry)
    except OSError as error:
        raise JobError(
            f"metrics cannot be served at {LOOPBACK}:{port}: {error.strerror}; choose another --metrics-port"
        ) from error
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
