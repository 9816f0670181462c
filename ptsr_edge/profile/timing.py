"""Latency of bundle variants, interleaved: each variant in a process of its own, in short blocks.

The parent (`measure_interleaved`) opens one `Worker` a variant, and in each round lets every worker run
one block, in an order drawn anew, so that a clock that drifts or a neighbour that wakes up hits all
alike. All of it is done in several launches, each with fresh processes: how much two processes of one variant
differ is then part of the interval (see `statistics.ratio_interval`).
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ptsr_edge.core.console import progress as progress_bar
from ptsr_edge.core.console import say
from ptsr_edge.core.errors import InputError, JobError
from ptsr_edge.core.system import visible_cpus
from ptsr_edge.profile.energy import Meter, find_meter
from ptsr_edge.profile.variants import Entry
from ptsr_edge.profile.worker import SETTLE_RUNS, RawTiming, TimedVariant, Worker
from ptsr_edge.stats.latency import Ratio, ratio_interval

# FOLDED from profile.stability: Whether a run can be trusted: what makes it unstable, in words.

INTERVAL_LIMIT = 0.05
"""Half-width of a ratio's interval, relative to the ratio, above which a change of 10 % would go unseen."""

DRIFT_LIMIT = 0.10
"""How far the baseline's median may differ between its processes."""

CPU_SHARE_LIMIT = 0.9
"""A single-threaded process that had its core for less of the timed time was disturbed."""


def why_unstable(
    timings: Mapping[str, RawTiming],
    ratios: Mapping[str, Ratio],
    baseline: str,
    threads: int,
    waiting: Collection[str] = (),
) -> str | None:
    """What is wrong with a run, worst first of each kind, in one line; None where nothing is.

    Args:
        timings: of all variants that ran, by id.
        ratios: against the baseline, by id; of the variants that have one.
        baseline: the id that all ratios are against.
        threads: how many each artifact may use.
        waiting: ids of variants that wait for a GPU, and are not judged by their share of a core.
    """
    faults = []
    widths = {name: math.log(ratio.high / ratio.low) / 2 for name, ratio in ratios.items()}
    if widths and max(widths.values()) > INTERVAL_LIMIT:
        worst = max(widths, key=lambda name: widths[name])
        faults.append(f"the ratio of {worst} is known to {widths[worst]:.0%} only")
    base = timings[baseline]
    if base.processes > 1:
        launches = np.array(base.launches)
        medians = [
            float(
                np.median(np.concatenate([base.blocks_ns[place] for place in np.flatnonzero(launches == n)]))
            )
            for n in np.unique(launches)
        ]
        drift = max(medians) / min(medians) - 1
        if drift > DRIFT_LIMIT:
            faults.append(f"the baseline's median differs by {drift:.0%} between its processes")
    judged = timings.keys() - waiting if threads == 1 else ()
    shares = {name: timings[name].cpu_share for name in judged}
    disturbed = [name for name, share in shares.items() if share < CPU_SHARE_LIMIT]
    if disturbed:
        worst = min(disturbed, key=lambda name: shares[name])
        faults.append(f"{worst} had a core for {shares[worst]:.0%} of the timed time")
    return "; ".join(faults) or None


MIN_ROUNDS = 20
"""Rounds are what the interval of a ratio is drawn from (see `statistics.ratio_interval`)."""

MIN_BLOCK_S = 0.03

WARM_UP_S = 0.5

WARM_UP_RUNS = 10

CEILING_S = 0.3

STAGE_RUNS = 20


@dataclass(frozen=True)
class Extras:
    """What is measured beside the latency.

    Attributes:
        kinds: of each job, its target and precision: variants that share them share a ceiling.
        streams: sessions at once for the throughput; 0: it is not measured.
        duration_s: of the throughput and of the energy of each job.
    """

    kinds: Mapping[str, tuple[str, str]]
    streams: int
    duration_s: float


def measure_interleaved(
    jobs: Sequence[TimedVariant],
    *,
    duration_s: float,
    min_runs: int = 100,
    block: int = 5,
    threads: int = 1,
    pin: bool = False,
    seed: int = 0,
    processes: int = 1,
    extras: Extras | None = None,
    progress: Callable[[Iterable[int], str], Iterable[int]] = progress_bar,
    refused: Callable[[TimedVariant, JobError], None] | None = None,
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
        processes: how often each job's process is started; the rounds are shared out among the starts.
        extras: what else is measured, after the last round; None: nothing.
        progress: wraps the rounds to show how far it has come.
        refused: told of each job that cannot be loaded here, which is then left out; without it, such a
            job ends the run.

    Returns:
        Raw samples by job id. All jobs have the same number of rounds.

    Raises:
        InputError: an argument out of range, or more cores to pin to than there are.
        JobError: a worker died or an artifact cannot be run; all workers have ended.
    """
    check_setting(
        duration_s=duration_s, min_runs=min_runs, block=block, threads=threads, pin=pin, processes=processes
    )
    if len({job.id for job in jobs}) < len(jobs):
        raise InputError(f"each job needs an id of its own, got {', '.join(job.id for job in jobs)}")
    cpus = pinned_cpus(threads) if pin else None
    found: list[dict[str, RawTiming]] = []
    left = list(jobs)
    for launch in range(processes):
        with ExitStack() as stack:
            workers, timings, slowest_s = _launch(left, stack, threads, cpus, seed, refused)
            # What cannot be loaded once is not asked again, and is told once.
            left = [job for job in left if job.id in workers]
            if not workers:
                return {}
            block_s = max(MIN_BLOCK_S, block * slowest_s)
            rounds = max(MIN_ROUNDS, math.ceil(duration_s / block_s), math.ceil(min_runs / block))
            rounds = math.ceil(rounds / processes)
            label = f"timing {launch + 1}/{processes}" if processes > 1 else "timing"
            _run_rounds(workers, timings, progress(range(rounds), label), block_s, block, seed + launch)
            if launch == processes - 1 and extras is not None:
                _measure_extras(workers, timings, extras)
        found.append(timings)
    return {job.id: joined([timings[job.id] for timings in found]) for job in left}


def _launch(
    jobs: Sequence[TimedVariant],
    stack: ExitStack,
    threads: int,
    cpus: list[int] | None,
    seed: int,
    refused: Callable[[TimedVariant, JobError], None] | None,
) -> tuple[dict[str, Worker], dict[str, RawTiming], float]:
    """Starts and warms up a worker for each job; the slowest one's median run in seconds comes last."""
    workers: dict[str, Worker] = {}
    timings: dict[str, RawTiming] = {}
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
    return workers, timings, slowest_s


def joined(parts: Sequence[RawTiming]) -> RawTiming:
    """The launches of one variant as one record: rounds one after the other, single figures as medians.

    The peak of the memory is the largest; what was measured once is the last launch's.
    """

    def middle(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.median(known)) if known else None

    peaks = [part.peak_rss_bytes for part in parts if part.peak_rss_bytes is not None]
    base = middle(part.base_rss_bytes for part in parts)
    return replace(
        parts[-1],
        import_ms=float(np.median([part.import_ms for part in parts])),
        load_ms=float(np.median([part.load_ms for part in parts])),
        first_ms=float(np.median([part.first_ms for part in parts])),
        base_rss_bytes=None if base is None else int(base),
        blocks_ns=[block for part in parts for block in part.blocks_ns],
        cpu_ns=[cpu for part in parts for cpu in part.cpu_ns],
        launches=[launch for launch, part in enumerate(parts) for _ in part.blocks_ns],
        predict_ms=middle(part.predict_ms for part in parts),
        peak_rss_bytes=max(peaks, default=None),
    )


def _measure_extras(workers: Mapping[str, Worker], timings: Mapping[str, RawTiming], extras: Extras) -> None:
    """Throughput, energy, stages and ceilings, one worker after the other, all others idle."""
    ceilings: dict[tuple[str, str], dict[str, Any]] = {}
    for name, worker in workers.items():
        timing, kind = timings[name], extras.kinds[name]
        if kind not in ceilings:
            ceilings[kind] = worker.ceiling(duration_s=CEILING_S)
        timing.ceiling = ceilings[kind]
        timing.stages = worker.stages(runs=STAGE_RUNS)
        timing.energy_mj, timing.energy_why = _energy(worker, find_meter(kind[0]), extras.duration_s)
        if extras.streams:
            timing.streams = extras.streams
            timing.throughput_per_s = worker.throughput(streams=extras.streams, duration_s=extras.duration_s)


def _energy(worker: Worker, meter: Meter | str, duration_s: float) -> tuple[float | None, str | None]:
    """Millijoules of an inference, and the source; or None and why."""
    if isinstance(meter, str):
        return None, meter
    runs = 0

    def work() -> None:
        nonlocal runs
        runs = len(worker.block(duration_s=duration_s, runs=1, settle=0)[0])

    try:
        joules = meter.used(work)
    except OSError as error:
        return None, f"{meter.source} stopped answering: {error}"
    return 1e3 * joules / runs, meter.source


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
    *,
    duration_s: float,
    min_runs: int = 1,
    block: int = 1,
    threads: int = 1,
    pin: bool = False,
    processes: int = 1,
    attempts: int = 1,
    streams: int = 0,
) -> None:
    """Makes sure that a run could be started so.

    Raises:
        InputError: a number out of range, or more cores to pin to than there are.
    """
    if not (math.isfinite(duration_s) and duration_s > 0):
        raise InputError(f"the duration must be a positive number of seconds, got {duration_s:g}")
    for name, value in (
        ("min_runs", min_runs), ("block", block), ("threads", threads), ("processes", processes),
        ("attempts", attempts),
    ):  # fmt: skip
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    if streams < 0:
        raise InputError(f"streams must be at least 0 (0: throughput is not measured), got {streams}")
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


@dataclass(frozen=True)
class TimingConfig:
    """How long and how to time; see `measure.measure_interleaved`."""

    duration_s: float = 5.0
    min_runs: int = 100
    block: int = 5
    threads: int = 1
    pin: bool = False
    seed: int = 0
    processes: int = 1
    attempts: int = 1
    streams: int = 0
    extras: bool = False


DEFAULT = TimingConfig()


def ratios_to(timings: Mapping[str, RawTiming], against: str, seed: int) -> dict[str, Ratio]:
    """By id, how many times as fast as the variant `against` each of the others is."""
    base = timings[against]
    return {
        name: ratio_interval(
            base.blocks_ns, timing.blocks_ns, against=against, launches=timing.launches or None, seed=seed
        )
        for name, timing in timings.items()
        if name != against
    }


EXTRA_S = 1.0
"""Longest duration of a variant's throughput and energy, each."""

Try = tuple[dict[str, RawTiming], str | None]
"""Timings by id, and what makes them unstable, if anything does."""


def check_timing(setting: TimingConfig) -> None:
    """Makes sure that a setting can be measured by.

    Raises:
        InputError: a duration or a count that is out of its range, or cores that cannot be pinned.
    """
    check_setting(
        duration_s=setting.duration_s, min_runs=setting.min_runs, block=setting.block,
        threads=setting.threads, pin=setting.pin, processes=setting.processes, attempts=setting.attempts,
        streams=setting.streams,
    )  # fmt: skip


def time_until_stable(entries: Sequence[Entry], setting: TimingConfig) -> tuple[list[Try], dict[str, str]]:
    """Measures until a run is stable or the attempts are used up: all runs, the one that counts last."""
    tries: list[Try] = []
    reference = entries[0].id
    waiting = [entry.id for entry in entries if entry.variant.target == "trt"]
    while True:
        timings, refusals = _time(entries, setting)
        ratios = ratios_to(timings, reference, setting.seed)
        unstable = why_unstable(timings, ratios, reference, setting.threads, waiting)
        tries.append((timings, unstable))
        if unstable is None:
            return tries, refusals
        again = len(tries) < setting.attempts
        say(f"unstable: {unstable}{'; measuring again' if again else ''}")
        if not again:
            return tries, refusals


def _time(entries: Sequence[Entry], setting: TimingConfig) -> tuple[dict[str, RawTiming], dict[str, str]]:
    """Timings by id, and why others could not be run here; the baseline must."""
    refusals: dict[str, str] = {}
    reference = entries[0].id

    def refused(job: TimedVariant, error: JobError) -> None:
        if job.id == reference:
            raise error
        say(f"left out: {error}")
        # Runtimes name whole paths, which have no place in a record.
        refusals[job.id] = str(error).removeprefix(f"{job.id}: ").replace(f"{job.bundle}/", "")

    jobs = [TimedVariant(entry.id, entry.folder, entry.variant.id) for entry in entries]
    timings = measure_interleaved(
        jobs, duration_s=setting.duration_s, min_runs=setting.min_runs, block=setting.block,
        threads=setting.threads, pin=setting.pin, seed=setting.seed, refused=refused,
        processes=setting.processes, extras=_extras(entries, setting),
    )  # fmt: skip
    return timings, refusals


def _extras(entries: Sequence[Entry], setting: TimingConfig) -> Extras | None:
    if not setting.extras:
        return None
    kinds = {entry.id: (entry.variant.target, entry.variant.precision) for entry in entries}
    return Extras(kinds, setting.streams, min(EXTRA_S, setting.duration_s))
