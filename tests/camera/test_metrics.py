from __future__ import annotations

import http.client
import json
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
from bundle_data import write_tiny_bundle
from camera_data import ClockSpotter, steady
from prometheus_client.parser import text_string_to_metric_families

from ptsr_edge.camera.metrics import (
    CAUSES,
    COUNTED,
    COUNTED_BY_PIPELINE,
    FRAME_STAGES,
    MOST_REQUESTS,
    RECENT,
    Page,
    StageTimes,
    StreamCounters,
    serve,
)
from ptsr_edge.camera.pipeline import Pipeline
from ptsr_edge.core.errors import InputError, JobError, MissingExtraError


def test_times_of_a_stage_are_summed_up() -> None:
    """1 to 100 ms: by hand, mean 50.5; numpy's linear percentiles 50.5 and 95.05."""
    times = StageTimes()
    for milliseconds in range(1, 101):
        times.add(milliseconds)
    assert times == StageTimes(100, 5050, 100)
    assert times.percentiles() == pytest.approx((50.5, 95.05, 100))
    assert times.record() == {"n": 100, "mean_ms": 50.5, "p50_ms": 50.5, "p95_ms": 95.05, "max_ms": 100}


def test_percentiles_are_of_the_latest_times_and_the_memory_is_bounded() -> None:
    times = StageTimes()
    for took_ms in [1000.0] * 5000 + [500.0] * RECENT:
        times.add(took_ms)
    assert times.percentiles() == (500, 500, 500)
    assert (times.count, times.max_ms) == (5000 + RECENT, 1000)


def test_a_block_that_raises_is_timed_all_the_same() -> None:
    times = StageTimes()
    with pytest.raises(ValueError, match="no"), times.timed():
        raise ValueError("no")
    assert times.count == 1
    assert times.total_ms == times.max_ms > 0


def test_times_from_several_threads_are_all_counted() -> None:
    times = StageTimes()
    threads = [threading.Thread(target=lambda: [times.add(1.0) for _ in range(2000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        times.record()
    assert times.count == 8000


def test_a_stage_without_times_has_nulls() -> None:
    assert StageTimes().record() == {"n": 0, "mean_ms": None, "p50_ms": None, "p95_ms": None, "max_ms": None}
    assert StageTimes().percentiles() == (0, 0, 0)


def test_counters_are_ready_for_json() -> None:
    counters = StreamCounters()
    counters.connects = 3
    record = json.loads(json.dumps(counters.record()))
    assert record["reconnects"] == 2
    assert record["state"] == "starting"
    assert tuple(record["stages"]) == FRAME_STAGES
    assert StreamCounters().reconnects == 0


Samples = dict[tuple[str, tuple[str, ...]], float]
"""By name and values of the labels, in the order of the labels' names."""


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """After 20 frames of one stream, two of which end in an event."""
    folder = tmp_path_factory.mktemp("metrics") / "tiny"
    write_tiny_bundle(folder, (1.0, 0.5))
    with Pipeline(folder, budget=0.5, face="crop", spotter=ClockSpotter) as opened:
        for frame, pts_ns in steady(20, np.full((32, 32), 90, np.uint8)):
            opened.push(frame, pts_ns, "door")
        yield opened


def read_page(port: int) -> Samples:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        text = answer.read().decode()
    return {
        (sample.name, tuple(sample.labels[key] for key in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_counter_is_on_the_page_with_its_stream(pipeline: Pipeline) -> None:
    numbers = {name: place + 1 for place, name in enumerate(COUNTED) if name != "reconnects"}
    one = StreamCounters(**numbers, connects=5, queue_depth=3, state="waiting")
    one.stages["decode"].add(250)
    one.stages["decode"].add(500)
    with serve(0, Page(lambda: {"door": one}, pipeline.stats)) as port:
        assert port
        found = read_page(port)
    for name, value in {**numbers, "reconnects": 4}.items():
        assert found[f"ptsr_edge_{name}_total", ("door",)] == value
    assert found["ptsr_edge_queue_depth", ("door",)] == 3
    assert {cause: found["ptsr_edge_set_aside_total", (cause, "door")] for cause in CAUSES} == dict.fromkeys(
        CAUSES, 0
    )
    assert found["ptsr_edge_state", ("waiting", "door")] == 1
    assert found["ptsr_edge_state", ("running", "door")] == 0
    assert found["ptsr_edge_stage_seconds_count", ("decode", "door")] == 2
    assert found["ptsr_edge_stage_seconds_sum", ("decode", "door")] == 0.75


def test_what_the_pipeline_counts_is_on_the_page(pipeline: Pipeline) -> None:
    with serve(0, Page(dict, pipeline.stats)) as port:
        assert port
        found = read_page(port)
    of_stream = pipeline.stats()["door"]
    assert of_stream.events == 2
    for name in COUNTED_BY_PIPELINE:
        assert found[f"ptsr_edge_{name}_total", ("door",)] == getattr(of_stream, name)
    assert found["ptsr_edge_budget", ("door",)] == 0.5
    assert found["ptsr_edge_push_stage_seconds_count", ("inference", "door")] == 2
    assert found["ptsr_edge_push_stage_seconds_sum", ("face", "door")] > 0


def test_a_cascade_has_no_budget_to_tell(pipeline: Pipeline) -> None:
    of_stream = replace(pipeline.stats()["door"], budget=None)
    with serve(0, Page(dict, lambda: {"door": of_stream})) as port:
        assert port
        assert ("ptsr_edge_budget", ("door",)) not in read_page(port)


def test_the_page_is_on_loopback_only_and_gone_with_the_block() -> None:
    before = threading.active_count()
    with serve(0, Page(dict, dict)) as port:
        assert port
        other = {entry[4][0] for entry in socket.getaddrinfo(socket.gethostname(), port, socket.AF_INET)}
        for address in other - {"127.0.0.1", "127.0.1.1"}:
            with pytest.raises(OSError, match="refused|unreachable|timed out"):
                socket.create_connection((str(address), port), timeout=2)
        read_page(port)
    with pytest.raises(urllib.error.URLError, match="refused"):
        read_page(port)
    assert threading.active_count() == before


def test_a_thousand_half_requests_hold_few_threads_and_the_page_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ptsr_edge.camera.metrics.REQUEST_S", 0.1)
    before = threading.active_count()
    with serve(0, Page(dict, dict)) as port, ExitStack() as held:
        for _ in range(1000):
            client = held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
            client.sendall(b"GET /metrics HTT")
        assert threading.active_count() <= before + 1 + MOST_REQUESTS
        ends_at = time.monotonic() + 120
        while True:
            try:
                read_page(port)
                break
            except (OSError, http.client.HTTPException):
                assert time.monotonic() < ends_at
                time.sleep(0.1)
    while threading.active_count() > before:  # the last answers are still on their way out
        assert time.monotonic() < ends_at
        time.sleep(0.05)


def test_without_a_port_nothing_is_served_or_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with serve(None, Page(dict, dict)) as port:
        assert port is None
    with (
        pytest.raises(MissingExtraError, match=r"'prometheus_client'.*\[camera\]"),
        serve(0, Page(dict, dict)),
    ):
        pass


def test_a_port_that_is_in_use_is_told_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = rf"127\.0\.0\.1:{port}: Address already in use; choose another --metrics-port"
        with pytest.raises(JobError, match=said), serve(port, Page(dict, dict)):
            pass
    with pytest.raises(InputError, match="0 to 65535; found 70000"), serve(70000, Page(dict, dict)):
        pass
