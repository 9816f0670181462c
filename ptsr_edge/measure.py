"""Latency of bundle variants, interleaved: each variant in a process of its own, in short blocks.

The parent (`measure_interleaved`) opens one `Worker` a variant, and in each round lets every worker run
one block, in an order drawn anew, so that a clock that drifts or a neighbour that wakes up hits all
alike.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack

import numpy as np

from ptsr_edge.console import progress as progress_bar
from ptsr_edge.environment import visible_cpus
from ptsr_edge.errors import InputError, JobError
from ptsr_edge.worker import SETTLE_RUNS, Job, RawTiming, Worker

MIN_ROUNDS = 20
"""Rounds are what the interval of a ratio is drawn from (see `statistics.ratio_interval`)."""

MIN_BLOCK_S = 0.03
WARM_UP_S = 0.5
WARM_UP_RUNS = 10


def measure_interleaved(
    jobs: Sequence[Job],
    *,
    duration_s: float,
    min_runs: int = 100,
    block: int = 5,
    threads: int = 1,
    pin: bool = False,
    seed: int = 0,
    progress: Callable[[Iterable[int], str], Iterable[int]] = progress_bar,
    refused: Callable[[Job, JobError], None] | None = None,
) -> dict[str, RawTiming]:
    """Times jobs side by side until each has its minimum duration and its minimum count.

    A block takes the same time for every job: as long as `block` runs of the slowest one, and at least
    `MIN_BLOCK_S`. There are at least `MIN_ROUNDS` rounds.

    Args:
        jobs: what to time; their ids differ.
        duration_s: least timed duration of each job, in seconds.
        min_runs: least number of samples of each job.
        block: least number of runs in a block.
        threads: of one operator in each runtime.
        pin: whether all jobs are bound to the same `threads` cores.
        seed: of the order in each round and of the input.
        progress: wraps the rounds to show how far it has come.
        refused: told of each job that cannot be loaded here, which is then left out; without it, such a
            job ends the run.

    Returns:
        Raw samples by job id. All jobs have the same number of rounds.

    Raises:
        InputError: an argument out of range, or more cores to pin to than there are.
        JobError: a worker died or an artifact cannot be run; all workers have ended.
    """
    check_setting(duration_s=duration_s, min_runs=min_runs, block=block, threads=threads, pin=pin)
    if len({job.id for job in jobs}) < len(jobs):
        raise InputError(f"each job needs an id of its own, got {', '.join(job.id for job in jobs)}")
    cpus = pinned_cpus(threads) if pin else None
    timings: dict[str, RawTiming] = {}
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        slowest_s = 0.0
        for job in jobs:
            worker = stack.enter_context(Worker(job, threads=threads, cpus=cpus, seed=seed))
            try:
                timing, run_s = _warm_up(worker)
            except JobError as error:
                if refused is None:
                    raise
                refused(job, error)
                continue
            workers[job.id], timings[job.id] = worker, timing
            slowest_s = max(slowest_s, run_s)
        if workers:
            block_s = max(MIN_BLOCK_S, block * slowest_s)
            rounds = max(MIN_ROUNDS, math.ceil(duration_s / block_s), math.ceil(min_runs / block))
            _run_rounds(workers, timings, progress(range(rounds), "timing"), block_s, block, seed)
    return timings


def _warm_up(worker: Worker) -> tuple[RawTiming, float]:
    """Loads and warms up: the record so far, and the median duration of a run in seconds."""
    timing = worker.load()
    warm, _ = worker.block(duration_s=WARM_UP_S, runs=WARM_UP_RUNS)
    timing.warm_up_runs = 1 + SETTLE_RUNS + len(warm)
    return timing, float(np.median(warm)) / 1e9


def _run_rounds(
    workers: Mapping[str, Worker],
    timings: Mapping[str, RawTiming],
    rounds: Iterable[int],
    block_s: float,
    block: int,
    seed: int,
) -> None:
    """Fills the records round by round; then, once each, the whole call's time and the memory."""
    names = list(workers)
    order = np.random.default_rng(seed)
    for _ in rounds:
        for place in order.permutation(len(names)):
            timing = timings[names[place]]
            samples, cpu_ns = workers[names[place]].block(duration_s=block_s, runs=block)
            timing.blocks_ns.append(samples)
            timing.cpu_ns.append(cpu_ns)
    for name, worker in workers.items():
        whole, _ = worker.block(call="predict", duration_s=block_s, runs=max(block, 10))
        timings[name].predict_ms = float(np.median(whole)) / 1e6
        timings[name].peak_rss_bytes = worker.peak_rss_bytes()


def check_setting(
    *, duration_s: float, min_runs: int = 1, block: int = 1, threads: int = 1, pin: bool = False
) -> None:
    """Makes sure that a run could be started so.

    Raises:
        InputError: a number out of range, or more cores to pin to than there are.
    """
    if not (math.isfinite(duration_s) and duration_s > 0):
        raise InputError(f"the duration must be a positive number of seconds, got {duration_s:g}")
    for name, value in (("min_runs", min_runs), ("block", block), ("threads", threads)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    if pin:
        pinned_cpus(threads)


def pinned_cpus(threads: int) -> list[int]:
    """The CPUs to pin to: the last `threads` visible ones (the first ones serve most interrupts).

    Raises:
        InputError: fewer are visible, or this system cannot pin.
    """
    cpus = visible_cpus()
    if not hasattr(os, "sched_setaffinity"):
        raise InputError(f"this system ({sys.platform}) cannot pin a process to cores")
    if threads > len(cpus):
        raise InputError(f"cannot pin {threads} threads to the {len(cpus)} cores that are visible")
    return cpus[-threads:]
