"""Real processes on real graphs. Nothing here looks at how long anything took: a busy neighbour must not be
able to fail a test."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from bundle_data import ended, profiled, write_tiny_bundle

from ptsr_edge.core.errors import JobError
from ptsr_edge.profile.timing import pinned_cpus
from ptsr_edge.profile.variants import ProfiledVariant
from ptsr_edge.profile.worker import Block, RawTiming, Worker, all_runs

pytestmark = pytest.mark.slow


@pytest.fixture
def variant(folders: tuple[Path, Path]) -> ProfiledVariant:
    return profiled(folders[0])[0]


def test_a_block_lasts_both_minima(variant: ProfiledVariant) -> None:
    with Worker(variant) as process:
        process.load()
        few = process.block(duration_s=0.0, runs=7)
        started = time.perf_counter()
        process.block(duration_s=0.05, runs=1)
        assert time.perf_counter() - started >= 0.05
    assert few.wall_ns.size == few.cpu_ns.size == 7


def test_processes_end_with_the_block(variant: ProfiledVariant) -> None:
    with Worker(variant) as process:
        process.load()
        pid = process.pid
        assert not ended(pid)
    assert ended(pid)
    with pytest.raises(JobError, match="not running"):
        process.block(duration_s=0, runs=1)


def test_processes_end_when_the_block_raises(variant: ProfiledVariant) -> None:
    pids = []

    def interrupted() -> None:
        with Worker(variant) as process:
            pids.append(process.pid)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert ended(pids[0])


def test_an_interrupt_right_after_the_time_limit_was_set_leaves_nothing_to_wait_for(
    variant: ProfiledVariant, monkeypatch: pytest.MonkeyPatch
) -> None:
    timers = []

    class Interrupted(threading.Timer):
        def start(self) -> None:
            super().start()
            timers.append(self)
            raise KeyboardInterrupt

    monkeypatch.setattr(threading, "Timer", Interrupted)
    with pytest.raises(KeyboardInterrupt), Worker(variant) as process:
        process.load()
    (timer,) = timers
    assert timer.daemon
    timer.join(timeout=30)
    assert not timer.is_alive()


def test_a_worker_that_dies_gives_one_clear_line(variant: ProfiledVariant) -> None:
    with Worker(variant) as process:
        process.load()
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(JobError) as caught:
            process.block(duration_s=0, runs=1)
    assert str(caught.value) == (
        "ptsr-test-cpu-fp32-k16: the measuring process was ended by SIGKILL at 'block'; it said nothing"
    )


def test_a_worker_that_crashes_says_its_last_words(variant: ProfiledVariant) -> None:
    with Worker(variant) as process, pytest.raises(JobError) as caught:
        process._ask({"op": "block", "surprise": 1})
    message = str(caught.value)
    assert message.startswith(
        "ptsr-test-cpu-fp32-k16: the measuring process ended with exit code 1 at 'block': TypeError:"
    )
    assert "\n" not in message


def test_a_worker_that_hangs_is_given_up(variant: ProfiledVariant) -> None:
    with Worker(variant) as process:
        process.load()
        with pytest.raises(JobError, match=r"gave no answer within 0\.2 s at 'block'"):
            process._ask(
                {"op": "block", "call": "infer", "duration_s": 60, "runs": 1, "settle": 0}, limit_s=0.2
            )


def test_an_artifact_that_the_runtime_refuses(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path, [1.0], broken=[1.0])
    with Worker(profiled(tmp_path)[0]) as process:
        with pytest.raises(JobError, match=r"k16: ONNX Runtime .* cannot load"):
            process.load()
        # The process outlives a refusal: it can still tell its memory.
        assert process.peak_rss_bytes() is not None


def test_peak_memory_is_the_workers_own(variant: ProfiledVariant) -> None:
    # Linux hands the parent's peak down to `ru_maxrss` of a child; the worker must not report that.
    ballast = np.ones(60_000_000)  # 480 MB, touched
    with Worker(variant) as process:
        timing = process.load()
        peak = process.peak_rss_bytes()
    assert peak is not None
    assert timing.base_rss_bytes is not None
    assert timing.base_rss_bytes <= peak < ballast.nbytes / 2


def test_pinning_binds_the_process(variant: ProfiledVariant) -> None:
    cpus = pinned_cpus(1)
    with Worker(variant, cpus=cpus) as process:
        process.load()
        assert sorted(os.sched_getaffinity(process.pid)) == cpus
    assert len(os.sched_getaffinity(0)) >= 1


def test_samples_know_their_round() -> None:
    times = [([5, 6], [5, 6]), ([7], [7]), ([8, 9, 10], [6, 6, 6])]
    blocks = [Block(np.array(wall), np.array(cpu), launch=k // 2) for k, (wall, cpu) in enumerate(times)]
    timing = RawTiming(1.0, 1.0, 1.0, None, blocks=blocks)
    assert timing.samples_ns.tolist() == [5, 6, 7, 8, 9, 10]
    assert all_runs(blocks).round.tolist() == [0, 0, 1, 2, 2, 2]
    assert all_runs(blocks).launch.tolist() == [0, 0, 0, 1, 1, 1]
    assert all_runs([]).wall_ns.size == 0
    # 36 of 45 nanoseconds.
    assert timing.cpu_share == pytest.approx(0.8)
