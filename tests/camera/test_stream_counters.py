from __future__ import annotations

import json
import threading

import pytest

from ptsr_edge.camera.metrics import STREAM_COUNTERS_STAGES as STAGES
from ptsr_edge.camera.metrics import StageTimes, StreamCounters


def test_times_of_a_stage_are_summed_up() -> None:
    """1 to 100 ms: by hand, mean 50.5; numpy's linear percentiles 50.5 and 95.05."""
    times = StageTimes()
    for milliseconds in range(1, 101):
        times.add(milliseconds / 1000)
    assert times.record() == {
        "n": 100,
        "mean_ms": pytest.approx(50.5),
        "p50_ms": pytest.approx(50.5),
        "p95_ms": pytest.approx(95.05),
        "max_ms": pytest.approx(100),
    }


def test_percentiles_are_of_the_latest_times_and_the_memory_is_bounded() -> None:
    times = StageTimes()
    for _ in range(5000):
        times.add(1.0)
    for _ in range(4096):
        times.add(0.5)
    assert times.record()["p95_ms"] == 500
    assert times.record()["max_ms"] == 1000
    assert times.record()["n"] == 9096


def test_times_from_several_threads_are_all_counted() -> None:
    times = StageTimes()
    threads = [threading.Thread(target=lambda: [times.add(1e-3) for _ in range(2000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        times.record()
    assert times.n == 8000


def test_a_stage_without_times_has_nulls() -> None:
    assert StageTimes().record() == {"n": 0, "mean_ms": None, "p50_ms": None, "p95_ms": None, "max_ms": None}


def test_counters_are_ready_for_json() -> None:
    counters = StreamCounters()
    counters.connects = 3
    record = json.loads(json.dumps(counters.record()))
    assert record["reconnects"] == 2
    assert record["state"] == "starting"
    assert set(record["stages"]) == set(STAGES)
    assert StreamCounters().reconnects == 0
