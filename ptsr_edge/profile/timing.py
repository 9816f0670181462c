"""Latency of variants, interleaved: each in a process of its own, in short blocks, until a run can be trusted.

In each round every worker runs one block, in an order drawn anew, so that a clock that drifts or a neighbour that
wakes up hits all alike. All of it is done in several launches, each with fresh processes: how much two processes of
one variant differ is then part of the interval (see `stats.latency.ratio_interval`).
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

from ptsr_edge.core.console import doing, say
from ptsr_edge.core.console import progress as progress_bar
from ptsr_edge.core.errors import InputError, JobError, MissingExtraError
from ptsr_edge.core.system import MOST_THREADS, Meter, NoMeter, find_meter, visible_cpus
from ptsr_edge.profile.schema import NOT_RUN, FaultKind, Missing, MissingKind, needs_gpu
from ptsr_edge.profile.worker import (
    SETTLE_RUNS,
    Counter,
    ProfiledVariant,
    RawTiming,
    Worker,
    all_runs,
    find_counter,
)
from ptsr_edge.stats.latency import MIN_ROUNDS as LEAST_ROUNDS
from ptsr_edge.stats.latency import Block, Ratio, trusted_ratio

MIN_ROUNDS = 20
"""Rounds are the draws of a ratio's interval (see `stats.latency.ratio_interval`)."""

QUICK = {"duration_s": 0.3, "min_runs": 36, "block": 3, "rounds": 12, "processes": 3, "attempts": 1}
"""Options of a quick run. Three processes are the fewest whose interval says something: Student's quantile is 4.3 for
them, and 12.7 for two."""

MIN_BLOCK_S = 0.03

WARM_UP_S = 0.5

WARM_UP_RUNS = 10

EXTRA_S = 1.0
"""Longest duration of a variant's throughput and energy, each."""

CEILING_S = 0.3

STAGE_RUNS = 20

INTERVAL_LIMIT = 0.05
"""Half-width of a ratio's interval, relative to the ratio, above which a change of 10 % would go unseen."""

DRIFT_LIMIT = 0.10
"""Largest accepted difference of the baseline's median between its processes."""

WHOLE_EVERY = 2
"""A round of whole samples for so many rounds of inferences."""


@dataclass(frozen=True)
class TimingConfig:
    """The options of a measurement, checked when it is made.

    Attributes:
        duration_s: least timed duration of each variant.
        min_runs: least number of samples of each variant.
        block: least number of runs in a block.
        threads: of one operator in each runtime.
        pin: all variants are bound to the same `threads` cores.
        seed: of the order in each round, of the input and of the bootstrap.
        processes: number of times that each variant's process is started; the rounds are shared out among them.
        attempts: number of times that an unstable run is measured at most.
        streams: sessions at once for the throughput; 0: it is not measured.
        extras: energy, stages, ceiling and throughput are measured after the last round.
        rounds: least number of rounds, over all processes.
        count_instructions: count them by valgrind where the processor's own counter is not told, which takes minutes.
        quick: this is a quick run (see `quick_timing`), which the record says.

    Raises:
        InputError: a number out of range, or more cores to pin to than there are.
    """

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
    rounds: int = MIN_ROUNDS
    quick: bool = False
    count_instructions: bool = False

    def __post_init__(self) -> None:
        """Refuses what could not be measured."""
        if not (math.isfinite(self.duration_s) and self.duration_s > 0):
            raise InputError(f"the duration must be a positive number of seconds, got {self.duration_s:g}")
        for name in ("min_runs", "block", "threads", "processes", "attempts", "rounds"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.streams < 0:
            raise InputError(
                f"streams must be at least 0 (0: throughput is not measured), got {self.streams}"
            )
        for name in ("threads", "processes", "streams"):
            if getattr(self, name) > MOST_THREADS:
                raise InputError(f"{name} must be at most {MOST_THREADS}, got {getattr(self, name)}")
        if self.pin:
            pinned_cpus(self.threads)

    @property
    def warm_up_s(self) -> float:
        """Least duration of the warm-up: no longer than what is timed."""
        return min(WARM_UP_S, self.duration_s)


def quick_timing(**asked: Any) -> TimingConfig:
    """Returns the options of a quick run: fewer starts and rounds, one attempt, nothing but latency and memory.

    Args:
        asked: fields of `TimingConfig` that are to be otherwise.

    Raises:
        InputError: as of `TimingConfig`.
    """
    return TimingConfig(**{**QUICK, **asked, "streams": 0, "extras": False, "quick": True})


def pinned_cpus(threads: int) -> list[int]:
    """Returns the CPUs to pin to: the last `threads` visible ones (the first ones serve most interrupts).

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
class Try:
    """One time that everything was measured: timings by id, and what makes them unstable, by kind; empty: nothing does."""

    timings: dict[str, RawTiming]
    faults: dict[FaultKind, str]


def time_until_stable(
    variants: Sequence[ProfiledVariant], config: TimingConfig
) -> tuple[list[Try], dict[str, Missing]]:
    """Measures until a run is stable or the attempts are used up.

    Args:
        variants: the baseline, which has to run here, and the others.
        config: of the timing.

    Returns:
        All tries, of which the last one counts, and by id why variants could not be run here.

    Raises:
        JobError: the baseline cannot be run, or a measuring process died.
    """
    tries: list[Try] = []
    baseline = variants[0].id
    waiting = [profiled.id for profiled in variants if needs_gpu(profiled.variant.target)]
    while True:
        timings, refusals = _time(variants, config)
        ratios = {
            name: ratio_between(
                timings[baseline].blocks, timing.blocks, baseline,
                threads=config.threads, on_gpu=bool({name, baseline} & set(waiting)), seed=config.seed,
            )
            for name, timing in timings.items()
            if name != baseline
        }  # fmt: skip
        faults = why_unstable(timings, ratios, baseline, config.threads, waiting)
        tries.append(Try(timings, faults))
        if not faults:
            return tries, refusals
        again = len(tries) < config.attempts
        say(f"unstable: {'; '.join(faults.values())}{'; measuring again' if again else ''}")
        if not again:
            return tries, refusals


def _time(
    variants: Sequence[ProfiledVariant], config: TimingConfig
) -> tuple[dict[str, RawTiming], dict[str, Missing]]:
    """Returns timings by id, and why others could not be run here; the baseline, the first of them, must."""
    refusals: dict[str, Missing] = {}

    def refuse(profiled: ProfiledVariant, error: JobError) -> None:
        if profiled is variants[0]:
            raise error
        say(f"left out: {error}")
        kind, said = _refusal(profiled.variant.target, error)
        # Runtimes name whole paths, which have no place in a record.
        told = str(error).removeprefix(f"{profiled.id}: ").replace(f"{profiled.folder}/", "")
        refusals[profiled.id] = Missing(kind=kind, reason=f"{said}: {told}")

    return measure_interleaved(variants, config, refused=refuse), refusals


def _refusal(target: str, error: JobError) -> tuple[MissingKind, str]:
    if needs_gpu(target):
        return "no_device", NOT_RUN
    kind: MissingKind = "not_installed" if isinstance(error, MissingExtraError) else "failed"
    return kind, "could not be run here, so nothing was timed"


def ratio_between(
    base: Sequence[Block],
    blocks: Sequence[Block],
    against: str,
    *,
    threads: int,
    on_gpu: bool = False,
    seed: int = 0,
) -> Ratio | Missing:
    """Returns what `stats.latency.trusted_ratio` does, a reason as that of a result that is missing."""
    found = trusted_ratio(base, blocks, against, threads=threads, on_gpu=on_gpu, seed=seed)
    return Missing(kind="disturbed", reason=found) if isinstance(found, str) else found


def why_unstable(
    timings: Mapping[str, RawTiming],
    ratios: Mapping[str, Ratio | Missing],
    baseline: str,
    threads: int,
    waiting: Collection[str] = (),
) -> dict[FaultKind, str]:
    """Names what is wrong with a run, the worst of each kind; empty where nothing is.

    Args:
        timings: of all variants that ran, by id.
        ratios: against the baseline, by id, or why there is none.
        baseline: the id that all ratios are against.
        threads: number that each artifact may use.
        waiting: ids of variants that wait for a GPU, whose CPU time says nothing.
    """
    faults: dict[FaultKind, str] = {}
    withheld = [name for name, ratio in ratios.items() if isinstance(ratio, Missing)]
    if withheld:
        faults["withheld"] = f"there is no ratio of {', '.join(withheld)}: other processes used the cores"
    widths = {
        name: math.log(ratio.high / ratio.low) / 2
        for name, ratio in ratios.items()
        if isinstance(ratio, Ratio)
    }
    worst = max(widths, key=lambda name: widths[name], default=None)
    if worst is not None and widths[worst] > INTERVAL_LIMIT:
        faults["wide"] = f"the ratio of {worst} is known to {widths[worst]:.0%} only"
    runs = all_runs(timings[baseline].blocks)
    # One thread's CPU time is its wall time where it was alone, and drifts less where it was not.
    times = runs.cpu_ns if threads == 1 and baseline not in waiting else runs.wall_ns
    medians = [float(np.median(times[runs.launch == launch])) for launch in np.unique(runs.launch)]
    drift = max(medians) / min(medians) - 1
    if drift > DRIFT_LIMIT:
        faults["drift"] = f"the baseline's median differs by {drift:.0%} between its processes"
    return faults


def measure_interleaved(
    variants: Sequence[ProfiledVariant],
    config: TimingConfig,
    *,
    progress: Callable[[Iterable[int], str], Iterable[int]] = progress_bar,
    refused: Callable[[ProfiledVariant, JobError], None] | None = None,
) -> dict[str, RawTiming]:
    """Times variants side by side until each has its minimum duration and its minimum count.

    A block takes the same time for all: as long as `block` runs of the slowest one, and at least `MIN_BLOCK_S`.
    There are at least `config.rounds` rounds.

    Args:
        variants: with ids that differ.
        config: of the timing.
        progress: wraps the rounds to show how far it has come.
        refused: told of each variant that cannot be loaded here, which is then left out; without it, such a
            variant ends the run.

    Returns:
        Raw samples by id. All variants have the same number of rounds.

    Raises:
        InputError: two variants have one id.
        JobError: a worker died or an artifact cannot be run; all workers have ended.
    """
    left = {profiled.id: profiled for profiled in variants}
    if len(left) < len(variants):
        raise InputError(f"each variant needs an id of its own, got {', '.join(one.id for one in variants)}")
    cpus = pinned_cpus(config.threads) if config.pin else None
    launches: list[dict[str, RawTiming]] = []
    for launch in range(config.processes):
        with ExitStack() as stack:
            workers: dict[str, Worker] = {}
            timings: dict[str, RawTiming] = {}
            slowest_s = 0.0
            for name in start_order(list(left), launch, config.seed):
                profiled = left[name]
                worker = Worker(profiled, threads=config.threads, cpus=cpus, seed=config.seed)
                try:
                    timing, run_s = _warm_up(stack.enter_context(worker), config.warm_up_s)
                except JobError as error:
                    if refused is None:
                        raise
                    refused(profiled, error)
                    continue
                workers[name], timings[name] = worker, timing
                slowest_s = max(slowest_s, run_s)
            # A variant that cannot be loaded once is not asked again, and is told once.
            left = {name: one for name, one in left.items() if name in workers}
            if not workers:
                return {}
            block_s = max(MIN_BLOCK_S, config.block * slowest_s)
            rounds = max(
                config.rounds,
                math.ceil(config.duration_s / block_s),
                math.ceil(config.min_runs / config.block),
            )
            rounds = math.ceil(rounds / config.processes)
            label = f"timing {launch + 1}/{config.processes}" if config.processes > 1 else "timing"
            order = np.random.default_rng(config.seed + launch)
            _run_rounds(workers, timings, progress(range(rounds), label), block_s, config, order)
            if launch == config.processes - 1:
                _count_operators(workers, timings)
            if launch == config.processes - 1 and config.extras:
                with doing("measuring memory, stages, throughput and the ceiling"):
                    _measure_extras(workers, timings, config)
        launches.append(timings)
    return {name: joined([timings[name] for timings in launches]) for name in left}


def start_order(names: Sequence[str], launch: int, seed: int) -> list[str]:
    """Returns the order in which processes are started: drawn anew for each two launches, the second one the other way round.

    Which core and which memory a process gets depends on who was there first: of a variant against itself, the second one
    to start was some per cent faster. So each goes before each other one in half of the launches.
    """
    drawn = np.random.default_rng([seed, launch // 2]).permutation(len(names))
    return [names[place] for place in (drawn[::-1] if launch % 2 else drawn)]


def _warm_up(worker: Worker, duration_s: float) -> tuple[RawTiming, float]:
    """Loads and warms up: returns the record so far, and the median duration of a run in seconds."""
    timing = worker.load()
    warm = worker.block(duration_s=duration_s, runs=WARM_UP_RUNS).wall_ns
    timing.warm_up_runs = 1 + SETTLE_RUNS + warm.size
    return timing, float(np.median(warm)) / 1e9


def _run_rounds(
    workers: Mapping[str, Worker],
    timings: Mapping[str, RawTiming],
    rounds: Iterable[int],
    block_s: float,
    config: TimingConfig,
    order: np.random.Generator,
) -> None:
    """Fills the timings round by round; then, once each, a predict call and the memory; then whole samples, in rounds."""
    names, count = list(workers), 0
    for _ in rounds:
        for place in order.permutation(len(names)):
            timing = timings[names[place]]
            timing.blocks.append(workers[names[place]].block(duration_s=block_s, runs=config.block))
            count = len(timing.blocks)
    for name, worker in workers.items():
        predicted = worker.block(call="predict", duration_s=block_s, runs=2 * config.block)
        timings[name].predict_ms = float(np.median(predicted.wall_ns)) / 1e6
        timings[name].peak_rss_bytes = worker.peak_rss_bytes()
    # After the memory was read, of which OpenCV is no part where flow comes from elsewhere.
    whole = [name for name in names if "sample_ms" not in timings[name].missing]
    for _ in range(math.ceil(max(count / WHOLE_EVERY, LEAST_ROUNDS / config.processes))):
        for place in order.permutation(len(whole)):
            name = whole[place]
            block = workers[name].block(call="sample", duration_s=block_s, runs=config.block)
            timings[name].whole.append(block)


def _count_operators(workers: Mapping[str, Worker], timings: Mapping[str, RawTiming]) -> None:
    """Fills in what each runtime executes; after the memory was read, since it loads the artifact once more."""
    for name, worker in workers.items():
        answer = worker.operators()
        timings[name].operators_run = answer["operators_run"]
        if answer["missing"]:
            timings[name].missing["operators_run"] = Missing(**answer["missing"])


def _measure_extras(
    workers: Mapping[str, Worker], timings: Mapping[str, RawTiming], config: TimingConfig
) -> None:
    """Fills in ceiling, stages, energy and throughput, one worker after the other, all others idle."""
    duration_s = min(EXTRA_S, config.duration_s)
    ceilings: dict[tuple[str, str], dict[str, Any]] = {}
    for name, worker in workers.items():
        timing, kind = timings[name], worker.variant.kind
        if kind not in ceilings:
            ceilings[kind] = worker.ceiling(duration_s=CEILING_S)
        timing.ceiling = _without_reasons("ceiling", ceilings[kind], timing)
        timing.stages = _without_reasons("stages", worker.stages(runs=STAGE_RUNS), timing)
        energy = _energy_mj(worker, find_meter(needs_gpu(worker.variant.variant.target)), duration_s)
        if isinstance(energy, Missing):
            timing.energy_from = energy.reason
            reason = f"energy was not measured: {energy.reason}"
            timing.missing["energy_mj"] = Missing(kind=energy.kind, reason=reason)
        else:
            timing.energy_mj, timing.energy_from = energy
        if config.streams:
            timing.streams = config.streams
            timing.throughput_per_s = worker.throughput(streams=config.streams, duration_s=duration_s)


def _without_reasons(field: str, answer: Mapping[str, Any], timing: RawTiming) -> dict[str, Any]:
    """Moves the reasons of a worker's answer to those of the timing; returns the rest of the answer."""
    timing.missing |= {f"{field}.{name}": Missing(**why) for name, why in answer["missing"].items()}
    return {name: value for name, value in answer.items() if name != "missing"}


def fill_in_instructions(
    variants: Sequence[ProfiledVariant], timings: Mapping[str, RawTiming], config: TimingConfig
) -> None:
    """Counts the instructions of what was timed: by the processor where it tells them, else by valgrind where asked for."""
    if not (config.count_instructions or config.extras):
        return
    counter = find_counter(asked=config.count_instructions)
    timed = [profiled for profiled in variants if profiled.id in timings]
    for profiled in timed if isinstance(counter, Missing) else progress_bar(timed, "counting instructions"):
        timing = timings[profiled.id]
        found = _instructions(profiled, timing, counter, config.seed)
        if isinstance(found, Missing):
            timing.missing["instructions"] = found
        else:
            timing.instructions, timing.counted_by = found


def _instructions(
    profiled: ProfiledVariant, timing: RawTiming, counter: Counter | Missing, seed: int
) -> tuple[int, str] | Missing:
    """Counts the instructions of one variant, and tells how."""
    if isinstance(counter, Missing):
        return counter
    if needs_gpu(profiled.variant.target):
        return Missing(kind="not_supported", reason="instructions were not counted: it runs on a GPU")
    p50_s = float(np.median(timing.samples_ns)) / 1e9
    found = counter.instructions(profiled, p50_s=p50_s, seed=seed)
    return found if isinstance(found, Missing) else (found, counter.told)


def _energy_mj(worker: Worker, meter: Meter | NoMeter, duration_s: float) -> tuple[float, str] | Missing:
    """Measures the millijoules of an inference, and names the meter."""
    if isinstance(meter, NoMeter):
        return Missing(kind=meter.kind, reason=meter.reason)
    runs = 0

    def work() -> None:
        nonlocal runs
        runs = worker.block(duration_s=duration_s, runs=1, settle=0).wall_ns.size

    try:
        joules = meter.used(work)
    except OSError as error:
        return Missing(kind="failed", reason=f"{meter.source} stopped answering: {error}")
    return 1e3 * joules / runs, meter.source


def joined(parts: Sequence[RawTiming]) -> RawTiming:
    """Joins the launches of one variant: rounds one after the other, single numbers as medians.

    The peak of the memory is the largest; all that was measured once is the last launch's.
    """

    def middle(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.median(known)) if known else None

    base = middle(part.base_rss_bytes for part in parts)
    return replace(
        parts[-1],
        import_ms=float(np.median([part.import_ms for part in parts])),
        load_ms=float(np.median([part.load_ms for part in parts])),
        first_ms=float(np.median([part.first_ms for part in parts])),
        base_rss_bytes=None if base is None else int(base),
        blocks=[replace(block, launch=launch) for launch, part in enumerate(parts) for block in part.blocks],
        whole=[replace(block, launch=launch) for launch, part in enumerate(parts) for block in part.whole],
        predict_ms=middle(part.predict_ms for part in parts),
        peak_rss_bytes=max((part.peak_rss_bytes for part in parts if part.peak_rss_bytes), default=None),
    )
