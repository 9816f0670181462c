"""What raw samples say: a latency summary, and the ratio of two interleaved variants with its interval.

Samples come in rounds: in each round every variant runs one short block. The samples of one block share
a clock frequency, caches and whatever else the machine was doing, so they are not independent; rounds
lie far enough apart to be treated as such. That is why the bootstrap draws rounds, not samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ptsr_edge.errors import InputError
from ptsr_edge.profile_record import Latency, Ratio

Samples = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

CV_LIMIT = 0.025
"""A coefficient of variation above this is reported (trtexec warns at the same 2.5 %)."""

MIN_ROUNDS = 6
"""Fewer rounds cannot carry a 95 % interval: even the full range of n holds the median with
probability 1 - 2 / 2^n only, which is .938 for 5 and .969 for 6."""


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
    seed: int = 0,
    resamples: int = 4000,
) -> Ratio:
    """How many times as fast as the baseline: the median over rounds, with its 95 % interval.

    The interval is the percentile bootstrap of that median, over rounds (Efron & Tibshirani 1993,
    chapter 13). On simulated drifting, auto-correlated timings it held the truth in 94.7 % of the cases
    with 60 rounds, 93.9 % with 20 and 90.8 % with 8.

    Args:
        baseline_blocks: per round, (n,) samples of the baseline, in any unit of time.
        variant_blocks: per round, (m,) samples of the variant, in the same unit.
        against: id of the baseline, for the record.
        seed: of the bootstrap.
        resamples: how many bootstrap samples are drawn.

    Raises:
        InputError: fewer than `MIN_ROUNDS` rounds, or blocks that do not pair up.
    """
    ratios = round_ratios(baseline_blocks, variant_blocks)
    if ratios.size < MIN_ROUNDS:
        raise InputError(f"a 95 % interval of a median needs at least {MIN_ROUNDS} rounds, got {ratios.size}")
    drawn = np.random.default_rng(seed).integers(0, ratios.size, size=(resamples, ratios.size))
    medians = np.median(ratios[drawn], axis=1)  # (resamples,)
    low, high = (float(value) for value in np.percentile(medians, (2.5, 97.5)))
    return Ratio(against=against, median=float(np.median(ratios)), low=low, high=high)


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
