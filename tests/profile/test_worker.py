"""Real processes on real graphs. Nothing here looks at how long anything took: a busy neighbour must not be
able to fail a test."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from bundle_data import write_tiny_bundle

from ptsr_edge.core.errors import JobError
from ptsr_edge.profile.timing import pinned_cpus
from ptsr_edge.profile.worker import RawTiming, TimedVariant, Worker


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    write_tiny_bundle(folder)
    return folder


@pytest.fixture
def job(bundle: Path) -> TimedVariant:
    return TimedVariant("a", bundle, "ptsr-test-cpu-fp32-k16")


def ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_block_lasts_both_minima(job: TimedVariant) -> None:
    with Worker(job) as process:
        process.load()
        few, _ = process.block(duration_s=0.0, runs=7)
        started = time.perf_counter()
        process.block(duration_s=0.05, runs=1)
        assert time.perf_counter() - started >= 0.05
    assert len(few) == 7


def test_processes_end_with_the_block(job: TimedVariant) -> None:
    with Worker(job) as process:
        process.load()
        pid = process.pid
        assert not ended(pid)
    assert ended(pid)
    with pytest.raises(JobError, match="not running"):
        process.block(duration_s=0, runs=1)


def test_processes_end_when_the_block_raises(job: TimedVariant) -> None:
    pids = []

    def interrupted() -> None:
        with Worker(job) as process:
            pids.append(process.pid)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert ended(pids[0])


def test_a_worker_that_dies_gives_one_clear_line(job: TimedVariant) -> None:
    with Worker(job) as process:
        process.load()
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(JobError) as caught:
            process.block(duration_s=0, runs=1)
    assert str(caught.value) == ("a: the measuring process was ended by SIGKILL at 'block'; it said nothing")


def test_a_worker_that_crashes_says_its_last_words(job: TimedVariant) -> None:
    with Worker(job) as process, pytest.raises(JobError) as caught:
        process._ask({"op": "block", "surprise": 1})
    message = str(caught.value)
    assert message.startswith("a: the measuring process ended with exit code 1 at 'block': TypeError:")
    assert "\n" not in message


def test_a_worker_that_hangs_is_given_up(job: TimedVariant) -> None:
    with Worker(job) as process:
        process.load()
        with pytest.raises(JobError, match=r"gave no answer within 0\.2 s at 'block'"):
            process._ask(
                {"op": "block", "call": "infer", "duration_s": 60, "runs": 1, "settle": 0}, limit_s=0.2
            )


def test_an_artifact_that_the_runtime_refuses(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path, [1.0], broken=[1.0])
    with Worker(TimedVariant("a", tmp_path, bundle.variants[0].id)) as process:
        with pytest.raises(JobError, match=r"a: ONNX Runtime .* cannot load"):
            process.load()
        # The process outlives a refusal: it can still tell its memory.
        assert process.peak_rss_bytes() is not None


def test_peak_memory_is_the_workers_own(job: TimedVariant) -> None:
    # Linux hands the parent's peak down to `ru_maxrss` of a child; the worker must not report that.
    ballast = np.ones(60_000_000)  # 480 MB, touched
    with Worker(job) as process:
        timing = process.load()
        peak = process.peak_rss_bytes()
    assert peak is not None
    assert timing.base_rss_bytes is not None
    assert timing.base_rss_bytes <= peak < ballast.nbytes / 2


def test_pinning_binds_the_process(job: TimedVariant) -> None:
    cpus = pinned_cpus(1)
    with Worker(job, cpus=cpus) as process:
        process.load()
        assert sorted(os.sched_getaffinity(process.pid)) == cpus
    assert len(os.sched_getaffinity(0)) >= 1


def test_samples_know_their_round() -> None:
    blocks = [np.array([5, 6]), np.array([7]), np.array([8, 9, 10])]
    timing = RawTiming(1.0, 1.0, 1.0, None, blocks_ns=blocks, cpu_ns=[11, 7, 18])
    assert timing.samples_ns.tolist() == [5, 6, 7, 8, 9, 10]
    assert timing.rounds.tolist() == [0, 0, 1, 2, 2, 2]
    # 36 of 45 nanoseconds.
    assert timing.cpu_share == pytest.approx(0.8)
