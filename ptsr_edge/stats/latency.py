"""A summary of raw latency samples, and the ratio of two interleaved variants with its interval.

Samples come in rounds: in each round every variant runs one short block. The samples of one block share
a clock frequency, caches and whatever else the machine was doing, so they are not independent; rounds
lie far enough apart to be treated as such. That is why the bootstrap draws rounds, not samples.

Two processes of one variant differ too, by where their memory lies and on which core they woke up, and no
number of rounds shows by how much: where a variant was started several times, the bootstrap draws processes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ptsr_edge.core.config import Record
from ptsr_edge.core.errors import InputError

Samples = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

NORMAL = NormalDist().inv_cdf(0.975)
"""The 97.5 % quantile of the normal distribution."""

CV_LIMIT = 0.025
"""A coefficient of variation above this is reported (trtexec warns at the same 2.5 %)."""

MIN_ROUNDS = 6
"""Fewer rounds cannot carry a 95 % interval: even the full range of n holds the median with
probability 1 - 2 / 2^n only, which is .938 for 5 and .969 for 6."""


AWAY_LIMIT = 0.03
"""A round is disturbed where a process was kept from its cores, or a hypervisor took them, for more of the time."""

SWITCHES_LIMIT = 10
"""Where nothing tells how long several threads waited: so often in a second one may have been sent away. Each time costs
a slice of the scheduler, some 3 ms, so that this is `AWAY_LIMIT`."""

LEAST_QUIET = 2
"""A start of the processes has at least so many undisturbed rounds, or wall time is not used."""

LEAST_SHARE = 0.4
"""A process that had its core for less of the time ran with cold caches so often that its CPU time misleads as well: at a fifth
of a core beside others that streamed through memory, a ratio of 7.7 was 6.0 [5.4, 6.3] (`benchmarks/planted_load.py`)."""

WIDEST = 0.25
"""A ratio by CPU time whose interval is wider, in half its logarithm, is withheld."""


@dataclass(frozen=True)
class Block:
    """Timed runs of one call, one after the other, and what kept the process from its cores meanwhile.

    Attributes:
        wall_ns: (n,) int64 nanoseconds of each run.
        cpu_ns: (n,) int64 CPU time of all threads of the process during each run.
        switches: how often a thread was made to leave its core for another process; None where that is not told.
        waited_ns: for how long threads that could run waited for a core, all together; None where that is not told.
        stolen_ns: time that a hypervisor gave to others while one of the `cores` had work; None where that is not told.
        cores: number of cores of the machine.
        launch: the start of the process that it was timed in, from 0.
    """

    wall_ns: npt.NDArray[np.int64]
    cpu_ns: npt.NDArray[np.int64]
    switches: int | None = None
    waited_ns: int | None = None
    stolen_ns: int | None = None
    cores: int = 1
    launch: int = 0


Positive = Annotated[float, Field(gt=0, le=1e100)]
"""What has a place on a logarithmic axis."""


class Latency(Record):
    """Synchronous batch-1 latency in milliseconds; nothing is trimmed.

    `cv` is the coefficient of variation (standard deviation over mean), `n` the sample count.
    """

    p50: Positive
    p90: Positive
    p95: Positive
    p99: Positive
    min: Positive
    mean: Positive
    cv: float
    n: int = Field(ge=1)


class Ratio(Record):
    """How many times as fast as `against` (its latency over this one's), with a 95 % bootstrap interval.

    `per_process` has the ratio of each start of the two processes; `median` is their geometric mean. `clock` is what both
    were timed by: wall time, or the processes' own CPU time where others used their cores. `rounds` is the number of rounds
    that it was taken from; 0 in earlier records. By CPU time, `per_process_typical` and `per_process_least` have the ratios
    of typical runs and of those that were disturbed least (see `shared_ratio_interval`); by wall time they are empty.
    """

    against: str
    median: Positive
    low: Positive
    high: Positive
    per_process: list[Positive] = Field(default_factory=list)
    per_process_typical: list[Positive] = Field(default_factory=list)
    per_process_least: list[Positive] = Field(default_factory=list)
    clock: Literal["wall", "cpu"] = "wall"
    rounds: int = 0


def latency_summary(samples_ns: Samples) -> Latency:
    """Summary of one variant's samples; nothing is trimmed.

    Args:
        samples_ns: (n,) durations in nanoseconds, n >= 1.

    Returns:
        Milliseconds; percentiles by linear interpolation between the closest ranks; `cv` from the
        sample standard deviation (n - 1), 0 where there is one sample only.

    Raises:
        InputError: there is no sample, or one that is not positive.
    """
    samples_ms = _checked(samples_ns) / 1e6
    p50, p90, p95, p99 = (float(value) for value in np.percentile(samples_ms, (50, 90, 95, 99)))
    mean = float(samples_ms.mean())
    deviation = float(samples_ms.std(ddof=1)) if samples_ms.size > 1 else 0.0
    return Latency(
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        min=float(samples_ms.min()),
        mean=mean,
        cv=deviation / mean,
        n=int(samples_ms.size),
    )


def round_ratios(baseline_blocks: Sequence[Samples], variant_blocks: Sequence[Samples]) -> Floats:
    """(rounds,) median of the baseline's block over the median of the variant's block, round by round.

    Raises:
        InputError: the two differ in their number of rounds, or a block is empty or not positive.
    """
    if len(baseline_blocks) != len(variant_blocks):
        raise InputError(
            "a ratio needs one block of each variant in every round, got "
            f"{len(baseline_blocks)} of the baseline and {len(variant_blocks)} of the variant"
        )
    baseline = np.array([np.median(_checked(block)) for block in baseline_blocks])
    variant = np.array([np.median(_checked(block)) for block in variant_blocks])
    return np.asarray(baseline / variant, dtype=np.float64)


def ratio_interval(
    baseline_blocks: Sequence[Samples],
    variant_blocks: Sequence[Samples],
    *,
    against: str,
    launches: Sequence[int] | None = None,
    seed: int = 0,
    resamples: int = 4000,
) -> Ratio:
    """Returns how many times as fast as the baseline something is, with the 95 % interval.

    Of one process each: the median over rounds, with the percentile bootstrap over rounds (Efron & Tibshirani
    1993, chapter 13). On simulated drifting, auto-correlated timings it held the truth in 94.7 % of the cases
    with 60 rounds, 93.9 % with 20 and 90.8 % with 8. It holds for these very processes.

    Of several: the geometric mean of the processes' medians, with the bootstrap over processes, widened for
    their small number (see `process_interval`). It holds for the next process, too.

    Args:
        baseline_blocks: per round, (n,) samples of the baseline, in any unit of time.
        variant_blocks: per round, (m,) samples of the variant, in the same unit.
        against: id of the baseline, for the record.
        launches: per round, which start of the processes it belongs to; None: all to one.
        seed: of the bootstrap.
        resamples: how many bootstrap samples are drawn.

    Raises:
        InputError: fewer than `MIN_ROUNDS` rounds, or blocks that do not pair up.
    """
    ratios = round_ratios(baseline_blocks, variant_blocks)
    if ratios.size < MIN_ROUNDS:
        raise InputError(f"a 95 % interval of a median needs at least {MIN_ROUNDS} rounds, got {ratios.size}")
    numbers = np.zeros(ratios.size) if launches is None else np.asarray(launches)
    if numbers.size != ratios.size:
        raise InputError(f"{ratios.size} rounds cannot belong to {numbers.size} starts of a process")
    each = [float(np.median(ratios[numbers == number])) for number in np.unique(numbers)]
    if len(each) > 1:
        middle, low, high = process_interval(each, seed=seed, resamples=resamples)
        return Ratio(against=against, median=middle, low=low, high=high, per_process=each, rounds=ratios.size)
    drawn = np.random.default_rng(seed).integers(0, ratios.size, size=(resamples, ratios.size))
    medians = np.median(ratios[drawn], axis=1)  # (resamples,)
    low, high = np.percentile(medians, (2.5, 97.5))
    return Ratio(
        against=against,
        median=each[0],
        low=float(low),
        high=float(high),
        per_process=each,
        rounds=ratios.size,
    )


def shared_ratio_interval(
    baseline_blocks: Sequence[Samples],
    variant_blocks: Sequence[Samples],
    *,
    against: str,
    launches: Sequence[int],
    seed: int = 0,
    resamples: int = 4000,
) -> Ratio:
    """Returns how many times as fast as the baseline something is, by CPU times taken beside other processes.

    CPU time leaves out the time away from a core, but not what others did to the caches, which costs a short run more
    than a long one. How much, the runs of a block show: those that met others least are the fastest. The ratio is that of the
    blocks' lower quartiles, the medians of their faster halves. The interval takes in those of their medians (of typical runs)
    and of their lowest tenths (of hardly disturbed ones), so it is the wider the more others did.

    Args:
        baseline_blocks: per round, (n,) CPU times of the baseline's runs, in any unit of time.
        variant_blocks: per round, (m,) CPU times of the variant's runs, in the same unit.
        against: id of the baseline, for the record.
        launches: per round, which start of the processes it belongs to.
        seed: of the bootstrap.
        resamples: how many bootstrap samples are drawn.

    Raises:
        InputError: fewer than `MIN_ROUNDS` rounds, or blocks that do not pair up.
    """

    def at(share: float) -> Ratio:
        # Within a round, since what others do to a machine changes from second to second.
        sides = [
            [np.quantile(block, [share]) for block in blocks] for blocks in (baseline_blocks, variant_blocks)
        ]
        return ratio_interval(*sides, against=against, launches=launches, seed=seed, resamples=resamples)

    typical, quartile, least = at(0.5), at(0.25), at(0.1)
    found = (typical, quartile, least)
    return quartile.model_copy(
        update={
            "clock": "cpu",
            "low": min(one.low for one in found),
            "high": max(one.high for one in found),
            "per_process_typical": typical.per_process,
            "per_process_least": least.per_process,
        }
    )


def undisturbed(blocks: Sequence[Block], threads: int) -> npt.NDArray[np.bool_]:
    """(rounds,) Says in which rounds a process had the cores that it needed, of what a processor runs.

    One thread had its core where its CPU time is its wall time. Of several, some have nothing to do at times: there it is
    the scheduler's account of threads that waited for a core, or where it keeps none, how often one was sent away.
    """

    def is_alone(block: Block) -> bool:
        wall = int(block.wall_ns.sum())
        if (block.stolen_ns or 0) > AWAY_LIMIT * wall * block.cores:
            return False
        if threads == 1:
            return int(block.cpu_ns.sum()) >= (1 - AWAY_LIMIT) * wall
        if block.waited_ns is not None:
            return block.waited_ns <= AWAY_LIMIT * wall * threads
        return (block.switches or 0) <= SWITCHES_LIMIT * wall / 1e9

    return np.array([is_alone(block) for block in blocks], dtype=bool)


def trusted_ratio(
    base: Sequence[Block],
    blocks: Sequence[Block],
    against: str,
    *,
    threads: int,
    on_gpu: bool = False,
    seed: int = 0,
) -> Ratio | str:
    """Returns how many times as fast as the variant `against`, timed in `base`, another one is, or why that cannot be told.

    Wall time misleads where others use the cores: a process is sent away in proportion to how long it runs, so the slower one
    looks slower than it is. In this order:

    1. by wall time, over the rounds in which both were undisturbed, where each start of the processes has enough of them;
    2. by CPU time over all rounds, for one thread on a processor (see `shared_ratio_interval`);
    3. not at all, where a process had a core for too little of the time or the interval says too little.

    Args:
        base: per round, what the baseline did.
        blocks: per round, what the other did.
        against: id of the baseline.
        threads: of one operator.
        on_gpu: one of them waits for a GPU; rounds are then not judged.
        seed: of the bootstrap.
    """
    launches = np.array([block.launch for block in blocks])
    quiet = np.ones(len(blocks), dtype=bool)
    if not on_gpu:
        quiet = undisturbed(base, threads) & undisturbed(blocks, threads)
    fewest = min(int(quiet[launches == launch].sum()) for launch in np.unique(launches))
    if fewest >= LEAST_QUIET and quiet.sum() >= MIN_ROUNDS:
        pair = [
            [block.wall_ns for block, alone in zip(side, quiet, strict=True) if alone]
            for side in (base, blocks)
        ]
        return ratio_interval(*pair, against=against, launches=launches[quiet].tolist(), seed=seed)
    told = f"other processes used the cores: {int(quiet.sum())} of {len(blocks)} rounds were undisturbed"
    if threads > 1:
        return f"{told}, and CPU time tells no speed of several threads"
    share = min(_share(base), _share(blocks))
    if share < LEAST_SHARE:
        return f"{told}, and a process had a core for {share:.0%} of the timed time: too little for a ratio"
    pair = [[block.cpu_ns for block in side] for side in (base, blocks)]
    if min(int(block.min()) for side in pair for block in side) <= 0:
        return f"{told}, and this system's clock of CPU time is too coarse"
    ratio = shared_ratio_interval(*pair, against=against, launches=launches.tolist(), seed=seed)
    width = math.log(ratio.high / ratio.low) / 2
    if width > WIDEST:
        return f"{told}, and by CPU time the ratio is known to {width:.0%} only"
    return ratio


def _share(blocks: Sequence[Block]) -> float:
    """Returns CPU time over wall time."""
    return sum(int(block.cpu_ns.sum()) for block in blocks) / sum(
        int(block.wall_ns.sum()) for block in blocks
    )


def process_interval(
    ratios: Sequence[float], *, seed: int = 0, resamples: int = 4000
) -> tuple[float, float, float]:
    """Geometric mean of one ratio per process, and its 95 % interval: (mean, low, high).

    The bootstrap over processes, on logarithms. A percentile interval of few draws is too narrow; it is
    widened by sqrt(n / (n - 1)) and by Student's quantile over the normal one (Hesterberg 2015, "What
    teachers should know about the bootstrap", section 4.3).

    Raises:
        InputError: fewer than two processes, or a ratio that is not positive.
    """
    logs = _logs(ratios)
    spread = _mean_deviations(logs, np.random.default_rng(seed), resamples)
    return _interval(float(logs.mean()), spread, logs.size - 1)


def change_interval(
    old: Sequence[float], new: Sequence[float], *, seed: int = 0, resamples: int = 4000
) -> tuple[float, float, float]:
    """Returns how many times as long a variant takes as it did, from the ratios of two runs: (mean, low, high).

    Args:
        old: per process, how many times as fast as the baseline of its run it was.
        new: the same of the later run.
        seed: of the bootstrap, over the processes of both runs.
        resamples: how many bootstrap samples are drawn.

    Degrees of freedom are Welch's (Welch 1947).

    Raises:
        InputError: fewer than two processes in one of the runs, or a ratio that is not positive.
    """
    before, after = _logs(old), _logs(new)
    rng = np.random.default_rng(seed)
    spread = _mean_deviations(before, rng, resamples) - _mean_deviations(after, rng, resamples)
    parts = [(logs.var(ddof=1) / logs.size, logs.size - 1) for logs in (before, after)]
    below = sum(part**2 / freedom for part, freedom in parts)
    freedom = sum(part for part, _ in parts) ** 2 / below if below > 0 else min(f for _, f in parts)
    return _interval(float(before.mean() - after.mean()), spread, freedom)


def ratio_change(old: Ratio, new: Ratio) -> tuple[float, float, float]:
    """Returns how many times as long a variant takes as it did, from its ratios in two runs: (mean, low, high).

    Where a run was timed by CPU time beside other processes, the interval takes in the changes of typical runs and of those that
    were disturbed least; a ratio by wall time stands for both.

    Raises:
        InputError: one of them has fewer than two processes.
    """
    mean, low, high = change_interval(old.per_process, new.per_process)
    pairs = [
        (old.per_process_typical or old.per_process, new.per_process_typical or new.per_process),
        (old.per_process_least or old.per_process, new.per_process_least or new.per_process),
    ]
    found = [change_interval(*pair) for pair in pairs if pair != (old.per_process, new.per_process)]
    return mean, min([low, *(one[1] for one in found)]), max([high, *(one[2] for one in found)])


def student_quantile(freedom: float, share: float = 0.975) -> float:
    """Returns a quantile of Student's t distribution, by default the 97.5 % one.

    Exact for one and two degrees of freedom; else the expansion of Abramowitz & Stegun 26.7.5: the 97.5 % quantile is within
    .13 % from three degrees on, that of 99.97 % within .1 % from eleven on. A fraction is rounded down, to the wider side.
    (A device that profiles has no scipy.)

    Raises:
        InputError: less than one degree of freedom.
    """
    if freedom < 1:
        raise InputError(f"a t distribution has at least one degree of freedom, got {freedom:g}")
    n = math.floor(freedom + 1e-9)
    if n == 1:
        return math.tan((share - 0.5) * math.pi)
    if n == 2:
        both = 2 * share - 1
        return float(both * math.sqrt(2 / (1 - both**2)))
    z = NormalDist().inv_cdf(share)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / n**power for power, term in enumerate(terms, start=1))


def _logs(ratios: Sequence[float]) -> Floats:
    array = np.asarray(ratios, dtype=np.float64)
    if array.size < 2 or not float(array.min()) > 0:
        raise InputError(
            f"an interval over processes needs two of them and positive ratios, got {array.tolist()}"
        )
    return np.log(array)


def _mean_deviations(logs: Floats, rng: np.random.Generator, resamples: int) -> Floats:
    """(resamples,) how far the mean of a resample lies from the mean, without the bias of small samples."""
    drawn = logs[rng.integers(0, logs.size, size=(resamples, logs.size))].mean(axis=1)
    return np.asarray((drawn - logs.mean()) * math.sqrt(logs.size / (logs.size - 1)), dtype=np.float64)


def _interval(middle: float, spread: Floats, freedom: float) -> tuple[float, float, float]:
    """Of logarithms and the bootstrap's deviations from them, widened for few processes: (mean, low, high)."""
    widened = spread * (student_quantile(freedom) / NORMAL)
    low, high = (float(value) for value in np.percentile(widened, (2.5, 97.5)))
    # Draws of two or three processes are so few that a percentile may fall on the mean's wrong side.
    return math.exp(middle), math.exp(middle + min(low, 0.0)), math.exp(middle + max(high, 0.0))


def lag_one_correlation(series: Samples) -> float:
    """Correlation of a series with itself one step later; 0 for a constant one.

    Near 0 for independent rounds (standard error 1 / sqrt(n)); far above means that the rounds share
    a disturbance and that the interval is too narrow.
    """
    centred = np.asarray(series, dtype=np.float64) - np.mean(series)
    power = float(centred @ centred)
    return float(centred[:-1] @ centred[1:]) / power if power > 0 else 0.0


def _checked(samples: Samples) -> Floats:
    array = np.asarray(samples, dtype=np.float64).ravel()
    if array.size == 0:
        raise InputError("there are no samples to summarise")
    if not float(array.min()) > 0:
        raise InputError(f"a duration must be positive, got {array.min():g}")
    return array
