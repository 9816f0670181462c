"""Counters and times of streams, and the page that serves them to Prometheus.

A stream is counted in two places: `StreamStats` by the pipeline, which an application may use alone, and
`StreamCounters` by the runner, which reads sources. Each number is written by one thread at a time and may be read by
any. The page is made from both at each scrape, so that nothing is counted twice; its format, escapes and content types
are those of `prometheus_client`.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from ptsr_edge.core.errors import InputError, JobError, require

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

RECENT = 4096
"""Latest times that percentiles are taken over."""


@dataclass
class StageTimes:
    """Times of one stage, in milliseconds: their number, sum and maximum, and percentiles of the latest. Thread-safe."""

    count: int = 0
    total_ms: float = 0.0
    max_ms: float = 0.0

    def __post_init__(self) -> None:
        self._recent_ms: deque[float] = deque(maxlen=RECENT)
        self._lock = threading.Lock()

    def add(self, took_ms: float) -> None:
        """Counts one time."""
        with self._lock:
            self.count += 1
            self.total_ms += took_ms
            self.max_ms = max(self.max_ms, took_ms)
            self._recent_ms.append(took_ms)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Counts the time of the block, also when it raises."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add((time.perf_counter() - started) * 1e3)

    def percentiles(self) -> tuple[float, float, float]:
        """Returns the median, the 95th percentile and the maximum of the latest times; zeros before the first."""
        with self._lock:
            recent = np.array(self._recent_ms)
        if not recent.size:
            return 0.0, 0.0, 0.0
        p50, p95 = np.quantile(recent, (0.5, 0.95))
        return float(p50), float(p95), float(recent.max())

    def record(self) -> dict[str, float | int | None]:
        """Returns `n`, `mean_ms`, `p50_ms`, `p95_ms` and `max_ms` for JSON; null where there is no time yet."""
        p50, p95, _ = self.percentiles()
        with self._lock:
            if not self.count:
                return {"n": 0, "mean_ms": None, "p50_ms": None, "p95_ms": None, "max_ms": None}
            times = {
                "mean_ms": self.total_ms / self.count, "p50_ms": p50, "p95_ms": p95, "max_ms": self.max_ms,
            }  # fmt: skip
            return {"n": self.count} | {name: round(value, 3) for name, value in times.items()}


Cause = Literal["occlusion", "head_turn", "large_motion", "speech", "truncated"]

CAUSES: tuple[Cause, ...] = get_args(Cause)
"""Why a motion that was spotted is counted and not classified, the first that holds: something came before the face or
left it; the head turned or moved; a part of the face moved farther than in a micro-expression; the mouth was at work
(speaking, chewing, laughing); the video was cut before the motion had ended."""

PUSH_STAGES = ("face", "crop", "spot", "flow", "inference")
"""Stages inside of a push, in this order."""


@dataclass
class StreamStats:
    """Counters of one stream inside of the pipeline.

    Attributes:
        stream: its name.
        frames: frames that were processed.
        events: events that were answered.
        unsure: those of them whose most probable class did not reach the least probability.
        set_aside: motions that were spotted and not classified, by `Cause`.
        no_face: frames without a face.
        detections: runs of the face detector.
        tracks: faces that were followed, one after the other.
        windows: times that the crop was placed.
        duplicates: frames left out because their pts was that of the frame before.
        backwards: frames left out because their pts was a little before that of the frame before.
        jumps: jumps of the pts, after each of which everything began anew.
        size_changes: changes of the frames' size, likewise.
        rejected: pushes of something that is no frame or no timestamp.
        failed: pushes that ended in an error of the runtime or the face detector.
        lost_spots: spotted motions whose crops were no longer there.
        deadline_misses: pushes that took longer than the deadline.
        budget: keep rate of the next answer; None in a cascade.
        budget_moves: moves along the ladder of budgets.
        last_pts_ns: pts of the last frame that was processed; None before the first.
        ring: crops that are held.
        stages: times by name of `PUSH_STAGES`.
        push_ms_p50, push_ms_p95, push_ms_max: of the latest pushes, at most `RECENT`; 0 before the first.
    """

    stream: str = ""
    frames: int = 0
    events: int = 0
    unsure: int = 0
    set_aside: dict[Cause, int] = field(default_factory=lambda: dict.fromkeys(CAUSES, 0))
    no_face: int = 0
    detections: int = 0
    tracks: int = 0
    windows: int = 0
    duplicates: int = 0
    backwards: int = 0
    jumps: int = 0
    size_changes: int = 0
    rejected: int = 0
    failed: int = 0
    lost_spots: int = 0
    deadline_misses: int = 0
    budget: float | None = None
    budget_moves: int = 0
    last_pts_ns: int | None = None
    ring: int = 0
    stages: dict[str, StageTimes] = field(
        default_factory=lambda: {stage: StageTimes() for stage in PUSH_STAGES}
    )
    push_ms_p50: float = 0.0
    push_ms_p95: float = 0.0
    push_ms_max: float = 0.0


State = Literal["starting", "running", "waiting", "ended", "failed"]

STATES: tuple[State, ...] = ("starting", "running", "waiting", "ended", "failed")
"""States of a stream: before its first frame, while frames come, between two tries to open it again, and after."""

FRAME_STAGES = ("decode", "wait", "push", "output")
"""Stages of a frame: decoding, waiting in the queue, the pipeline, and printing, recording and showing."""


@dataclass
class StreamCounters:
    """Counters of one stream from its source to its output.

    Attributes:
        state: one of `STATES`.
        reason: why it failed or waits; empty otherwise.
        frames: frames that the source gave.
        pushed: frames that the pipeline took.
        refused: frames that the pipeline did not take.
        dropped: frames that gave way in the full queue.
        damaged: packets and frames that could not be decoded.
        events: events that came of it.
        connects: times that the source was opened and gave a frame.
        failures: times that the source broke off or could not be opened.
        resolution_changes: times that the frames' size changed.
        queue_depth, queue_deepest: frames that wait now, and the most that ever did.
        width, height: size of the latest frame.
        first_ns, latest_ns: timestamps of the first and the latest frame; None before there is one.
        stages: times by name of `FRAME_STAGES`.
    """

    state: State = "starting"
    reason: str = ""
    frames: int = 0
    pushed: int = 0
    refused: int = 0
    dropped: int = 0
    damaged: int = 0
    events: int = 0
    connects: int = 0
    failures: int = 0
    resolution_changes: int = 0
    queue_depth: int = 0
    queue_deepest: int = 0
    width: int = 0
    height: int = 0
    first_ns: int | None = None
    latest_ns: int | None = None
    stages: dict[str, StageTimes] = field(
        default_factory=lambda: {stage: StageTimes() for stage in FRAME_STAGES}
    )

    @property
    def reconnects(self) -> int:
        """Number of times that the source came back."""
        return max(0, self.connects - 1)

    @property
    def video_s(self) -> float:
        """Time of the source from the first frame to the latest."""
        if self.first_ns is None or self.latest_ns is None:
            return 0.0
        return (self.latest_ns - self.first_ns) / 1e9

    def record(self) -> dict[str, Any]:
        """Returns all counters for JSON; `stages` by name as `StageTimes.record` gives them."""
        stages = {name: times.record() for name, times in self.stages.items()}
        derived = {"reconnects": self.reconnects, "video_s": self.video_s, "stages": stages}
        return {name: value for name, value in vars(self).items() if name != "stages"} | derived


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
"""Counters of `StreamCounters` on the page, with their help."""

COUNTED_BY_PIPELINE = {
    "unsure": "Micro-expressions whose class is too close a call.",
    "no_face": "Frames without a face.",
    "detections": "Runs of the face detector.",
    "jumps": "Jumps of the timestamps.",
    "deadline_misses": "Pushes that took longer than the deadline.",
    "budget_moves": "Moves along the ladder of budgets.",
}
"""Counters of `StreamStats` on the page, with their help."""


class Page:
    """The content of the page, as a collector of `prometheus_client`."""

    def __init__(
        self,
        observe: Callable[[], Mapping[str, StreamCounters]],
        stats: Callable[[], Mapping[str, StreamStats]],
    ) -> None:
        """Takes two functions that return counters by stream; both are called at each scrape, in the server's thread."""
        self._observe = observe
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        """Yields one metric after the other, each with a sample per stream."""
        core = require("prometheus_client.core", "camera", "serving metrics")
        counters, stats = self._observe(), self._stats()
        sources: tuple[tuple[dict[str, str], Mapping[str, Any]], ...] = (
            (COUNTED, counters), (COUNTED_BY_PIPELINE, stats),
        )  # fmt: skip
        for texts, streams in sources:
            for name, text in texts.items():
                metric = core.CounterMetricFamily(f"ptsr_edge_{name}", text, labels=["stream"])
                for stream, one in streams.items():
                    metric.add_metric([stream], getattr(one, name))
                yield metric
        aside = core.CounterMetricFamily(
            "ptsr_edge_set_aside", "Spotted motions that were not classified.", labels=["stream", "cause"]
        )
        for stream, of_stream in stats.items():
            for cause, count in of_stream.set_aside.items():
                aside.add_metric([stream, cause], count)
        yield aside
        depth = core.GaugeMetricFamily(
            "ptsr_edge_queue_depth", "Frames that wait in the queue.", labels=["stream"]
        )
        state = core.GaugeMetricFamily(
            "ptsr_edge_state", "1 for the state that the stream is in.", labels=["stream", "state"]
        )
        for stream, one in counters.items():
            depth.add_metric([stream], one.queue_depth)
            for name in STATES:
                state.add_metric([stream, name], float(one.state == name))
        budget = core.GaugeMetricFamily(
            "ptsr_edge_budget", "Keep rate of the next answer; none in a cascade.", labels=["stream"]
        )
        for stream, of_stream in stats.items():
            if of_stream.budget is not None:
                budget.add_metric([stream], of_stream.budget)
        yield from (depth, state, budget)
        staged: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
            ("stage", "Time of a frame, by stage.", counters),
            ("push_stage", "Time inside of a push, by stage.", stats),
        )
        for kind, text, streams in staged:
            summary = core.SummaryMetricFamily(f"ptsr_edge_{kind}_seconds", text, labels=["stream", "stage"])
            for stream, one in streams.items():
                for name, times in one.stages.items():
                    summary.add_metric([stream, name], times.count, times.total_ms / 1000)
            yield summary


MOST_REQUESTS = 8
"""Requests that are answered at once; more are turned away."""

REQUEST_S = 5.0
"""Time that a client may send nothing in."""


class _Server(ThreadingHTTPServer):
    """Answers few requests at once: whoever sends half of one, or a thousand, takes nothing from the camera."""

    daemon_threads = True
    request_queue_size = 128
    """Of the system: where it is full, whoever connects tries again a second later only."""

    def __init__(self, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        self._free = threading.Semaphore(MOST_REQUESTS)
        super().__init__((LOOPBACK, port), handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError:  # no descriptor is left: the connection waits, and would be tried again at once
            time.sleep(0.1)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing: a client that went away is no fault of the camera."""


@contextmanager
def serve(port: int | None, page: Page) -> Iterator[int | None]:
    """Serves the page at `http://127.0.0.1:port/metrics` while the block runs; does nothing without a port.

    Args:
        port: the port; 0 takes a free one, None serves nothing.
        page: the content.

    Yields:
        The port that is served.

    Raises:
        InputError: the number is no port.
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
    handler = type("Handler", (client.MetricsHandler.factory(registry),), {"timeout": REQUEST_S})
    try:
        server = _Server(port, handler)
    except OSError as error:
        raise JobError(
            f"metrics cannot be served at {LOOPBACK}:{port}: {error.strerror}; choose another --metrics-port"
        ) from error
    thread = threading.Thread(target=server.serve_forever, name="ptsr-edge-metrics", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
