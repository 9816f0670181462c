"""What is counted, for Prometheus to scrape: a text page on the loopback interface, off unless a port is given.

The format, its escapes and its content types are `prometheus_client`'s; it has no dependencies of its own. Nothing is
counted twice: at each scrape the page is made from the counters that the streams and the pipeline keep anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ptsr_edge.camera.stream_counters import STATES, StreamCounters
from ptsr_edge.core.errors import InputError, JobError, require

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from ptsr_edge.camera.metrics import StreamStats

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
            for name, time in of_stream.stages.items():
                inside.add_metric([stream, name], count_value=time.count, sum_value=time.total_ms / 1000)
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
