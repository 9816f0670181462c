"""Real processes on real graphs. Nothing here looks at how long anything took: a busy neighbour must not be
able to fail a test."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from bundle_data import ended, profiled, write_tiny_bundle

from ptsr_edge.core.errors import JobError
from ptsr_edge.profile.schema import Missing
from ptsr_edge.profile.timing import pinned_cpus
from ptsr_edge.profile.worker import (
    CALLGRIND,
    FIRST_RUNS,
    Counter,
    ProfiledVariant,
    RawTiming,
    Worker,
    all_runs,
    find_counter,
    perf_counter_of,
)
from ptsr_edge.stats.latency import Block

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


# ---------------------------------------------------------------------------------------------
# Instructions

needs_valgrind = pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
needs_perf = pytest.mark.skipif(shutil.which("perf") is None, reason="perf is not installed")

SQUARES = "for n in range({}): n * n"


@needs_valgrind
def test_callgrind_counts_the_same_twice_and_more_of_more_work() -> None:
    def count(steps: int) -> int:
        found = CALLGRIND.count([sys.executable, "-S", "-c", SQUARES.format(steps)])
        assert isinstance(found, int)
        return found

    once, again, more = count(1), count(1), count(100_001)
    assert again == pytest.approx(once, rel=1e-3)
    # A step of this loop takes Python some tens of instructions.
    assert 20 * 100_000 < more - once < 1000 * 100_000


def test_two_processes_differ_by_the_runs_that_are_counted(variant: ProfiledVariant, tmp_path: Path) -> None:
    """A counter that writes the number of bytes that it is given: what is asked of the process is all that differs."""
    script = tmp_path / "count"
    script.write_text(
        f"#!{sys.executable}\nimport json, sys\nsys.stdin.readline()\n"
        "open(sys.argv[1], 'w').write('runs 1000' + str(json.loads(sys.stdin.readline())['runs']).zfill(3))\n",
        encoding="utf-8",
    )
    script.chmod(0o755)
    counter = Counter((str(script), "{file}"), re.compile(r"runs (\d+)"), "a count of runs", 0.1, 20)
    # One for each run, whatever stands before them; at least 20 runs, and more where they are short.
    assert counter.instructions(variant, p50_s=1.0, seed=0) == 1
    assert counter.instructions(variant, p50_s=0.001, seed=0) == 1
    assert FIRST_RUNS > 1


@needs_perf
def test_perf_counts_a_process() -> None:
    # An event that the kernel counts is there on every machine; a processor in a virtual machine may hide its own.
    found = perf_counter_of("page-faults:u").count(["true"])
    assert isinstance(found, int)
    assert found > 0
    told = perf_counter_of("instructions:u").count(["true"])
    assert isinstance(told, int) or told.kind == "not_supported"


@needs_valgrind
def test_a_process_that_fails_is_not_counted() -> None:
    failed = CALLGRIND.count(["false"])
    assert isinstance(failed, Missing)
    assert (failed.kind, failed.reason) == (
        "failed", "instructions were not counted: under valgrind the process failed: it said nothing",
    )  # fmt: skip
    answer = 'print(\'{"error": "ptsr has no variant"}\')'
    refused = CALLGRIND.count([sys.executable, "-S", "-c", answer], given="{}")
    assert isinstance(refused, Missing)
    assert refused.reason.endswith("under valgrind the process failed: ptsr has no variant")


def test_no_counter_says_which_tool_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for asked, kind, said in (
        (False, "not_asked", "perf is not installed, and --count-instructions was not given"),
        (True, "not_installed", "perf is not installed, and valgrind is not installed"),
    ):
        found = find_counter(asked=asked)
        assert isinstance(found, Missing)
        assert (found.kind, found.reason) == (kind, f"instructions were not counted: {said}")
