"""Summaries against hand formulas; intervals against simulated timings whose true ratio is known."""

from __future__ import annotations

import numpy as np
import pytest
from timings import launched, simulated

from ptsr_edge.core.errors import InputError
from ptsr_edge.stats.latency import (
    MIN_ROUNDS,
    Ratio,
    change_interval,
    lag_one_correlation,
    latency_summary,
    process_interval,
    ratio_change,
    ratio_interval,
    round_ratios,
    shared_ratio_interval,
    student_quantile,
)


def test_latency_summary_is_the_hand_formula() -> None:
    # 1, 2, 3, 4, 10 ms: rank of p50 is 2 -> 3; of p90 is 3.6 -> 4 + .6 * 6 = 7.6; of p95 3.8 -> 8.8;
    # of p99 3.96 -> 9.76; mean 4; squared deviations 9 + 4 + 1 + 0 + 36 = 50, over n - 1 = 4 -> 12.5.
    latency = latency_summary(np.array([10, 1, 4, 2, 3]) * 1_000_000)
    assert (latency.p50, latency.min, latency.mean, latency.n) == (3.0, 1.0, 4.0, 5)
    assert latency.p90 == pytest.approx(7.6)
    assert latency.p95 == pytest.approx(8.8)
    assert latency.p99 == pytest.approx(9.76)
    assert latency.cv == pytest.approx(12.5**0.5 / 4)


def test_an_outlier_is_kept() -> None:
    latency = latency_summary(np.array([1.0] * 99 + [1000.0]) * 1e6)
    assert latency.n == 100
    assert latency.mean == pytest.approx((99 + 1000) / 100)


def test_one_sample_has_no_variation() -> None:
    assert latency_summary(np.array([5_000_000])).cv == 0.0


@pytest.mark.parametrize("samples", [[], [1, 0], [1, -2]], ids=["none", "zero", "negative"])
def test_samples_that_cannot_be_durations_are_refused(samples: list[int]) -> None:
    with pytest.raises(InputError):
        latency_summary(np.array(samples))


def test_round_ratio_takes_block_medians() -> None:
    # Medians: 6 over 2 = 3, and 8 over 4 = 2; the outlier 600 does not reach the median.
    baseline = [np.array([5, 6, 600]), np.array([8])]
    variant = [np.array([2, 2]), np.array([3, 5])]
    assert round_ratios(baseline, variant).tolist() == [3.0, 2.0]


def test_interval_of_noise_free_rounds_is_a_point() -> None:
    ratio = ratio_interval([np.array([6.0])] * 6, [np.array([2.0])] * 6, against="vit")
    assert (ratio.against, ratio.median, ratio.low, ratio.high) == ("vit", 3.0, 3.0, 3.0)


def test_interval_is_reproducible_and_holds_its_median() -> None:
    baseline, variant = simulated(3, 1.3)
    first = ratio_interval(baseline, variant, against="vit", seed=7)
    assert first == ratio_interval(baseline, variant, against="vit", seed=7)
    assert first.low <= first.median <= first.high


@pytest.mark.parametrize(("speedup", "rounds"), [(1.0, 60), (1.2, 20)], ids=["A/A, 60 rounds", "20 rounds"])
def test_the_interval_holds_the_truth_nineteen_times_in_twenty(speedup: float, rounds: int) -> None:
    # 95 % of 400 repetitions, less three standard errors: sqrt(.95 * .05 / 400) = .0109.
    intervals = [
        ratio_interval(*simulated(seed, speedup, rounds=rounds), against="a", resamples=1000)
        for seed in range(400)
    ]
    assert np.mean([ratio.low <= speedup <= ratio.high for ratio in intervals]) >= 0.95 - 3 * 0.0109


@pytest.mark.parametrize("processes", [3, 5, 10])
def test_over_processes_a_variant_against_itself_holds_one(processes: int) -> None:
    # As above: 95 % of 400, less three standard errors; and an interval that says anything is bounded.
    intervals = []
    for seed in range(400):
        baseline, variant, launches = launched(seed, 1.0, processes)
        intervals.append(ratio_interval(baseline, variant, against="a", launches=launches, resamples=500))
    assert np.mean([ratio.low <= 1.0 <= ratio.high for ratio in intervals]) >= 0.95 - 3 * 0.0109
    assert all(len(ratio.per_process) == processes for ratio in intervals)
    if processes == 5:
        assert np.median([ratio.high - ratio.low for ratio in intervals]) < 0.06


def test_rounds_alone_do_not_know_how_processes_differ() -> None:
    # The belief that the bootstrap over processes corrects: with 60 quiet rounds of one process each, the
    # interval is narrower than what processes differ by, and misses 1.0 far too often.
    held = 0
    for seed in range(100):
        luck = np.random.default_rng(seed).normal(1, 0.02, 2)
        baseline, variant = simulated(seed, 1.0, noise=0.005)
        found = ratio_interval(
            [b * luck[0] for b in baseline], [b * luck[1] for b in variant], against="a", resamples=300
        )
        held += found.low <= 1.0 <= found.high
    assert held < 50


def test_two_runs_of_the_same_overlap_and_their_change_holds_one() -> None:
    held = overlap = 0
    for seed in range(200):
        old, new = (
            ratio_interval(baseline, variant, against="a", launches=launches, resamples=500)
            for baseline, variant, launches in (launched(2 * seed + run, 1.3) for run in (0, 1))
        )
        overlap += old.low <= new.high and new.low <= old.high
        _, low, high = change_interval(old.per_process, new.per_process, resamples=500)
        held += low <= 1.0 <= high
    # Two intervals of 95 % that are independent overlap in more than 99 of 100 cases.
    assert overlap >= 196
    assert held / 200 >= 0.95 - 3 * (0.95 * 0.05 / 200) ** 0.5


def test_by_cpu_time_beside_others_the_interval_takes_in_typical_and_least_disturbed_runs() -> None:
    # Two starts; of each, a baseline's times are 40 of 90, 20 of 100, 40 of 120, and a variant's a tenth, always the same.
    base = [np.repeat([90.0, 100.0, 120.0], [4, 2, 4]) for _ in range(12)]
    fast = [np.full(10, 10.0) for _ in range(12)]
    launches = [0] * 6 + [1] * 6
    found = shared_ratio_interval(base, fast, against="vit", launches=launches)
    # The quartile and the lowest tenth are 90, the median is 100: all ratios of one process are alike.
    assert (found.median, found.low, found.high) == pytest.approx((9.0, 9.0, 10.0))
    assert (found.clock, found.rounds, found.per_process) == ("cpu", 12, pytest.approx([9.0, 9.0]))
    # Of one process alone, its rounds are drawn.
    assert shared_ratio_interval(base, fast, against="vit", launches=[0] * 12).high == pytest.approx(10.0)
    # What slows both down for some rounds is no difference between them.
    slower = [block * (3 if number % 6 < 3 else 1) for number, block in enumerate(base)]
    likewise = [block * (3 if number % 6 < 3 else 1) for number, block in enumerate(fast)]
    again = shared_ratio_interval(slower, likewise, against="vit", launches=launches)
    assert (again.median, again.low, again.high) == pytest.approx((9.0, 9.0, 10.0))
    with pytest.raises(InputError, match="got 12 of the baseline and 11 of the variant"):
        shared_ratio_interval(base, fast[1:], against="vit", launches=launches)


def test_process_interval_is_students_on_logarithms() -> None:
    # Logs -.02, 0, .02: s = .02, half-width t(2) s / sqrt(3) = 4.303 x .02 / 1.732 = .0497 in theory; the
    # bootstrap has 27 different draws only, so a tenth is what can be asked of it.
    middle, low, high = process_interval(np.exp([-0.02, 0.0, 0.02]).tolist(), resamples=20_000)
    assert middle == pytest.approx(1.0)
    assert np.log(high) == pytest.approx(0.0497, rel=0.15)
    assert np.log(low) == pytest.approx(-0.0497, rel=0.15)
    # Twenty processes drawn from a normal distribution come close.
    logs = np.random.default_rng(0).normal(0, 0.02, 20)
    _, low, high = process_interval(np.exp(logs).tolist(), resamples=20_000)
    assert np.log(high / low) / 2 == pytest.approx(2.093 * logs.std(ddof=1) / 20**0.5, rel=0.05)


def test_change_is_time_over_time() -> None:
    # 2.0 times as fast before, 1.6 times after: 1.25 times as long.
    assert change_interval([2.0, 2.0], [1.6, 1.6]) == pytest.approx((1.25, 1.25, 1.25))
    with pytest.raises(InputError, match="needs two of them"):
        change_interval([2.0, 2.0], [1.6])


def test_a_change_beside_others_takes_in_typical_and_least_disturbed_runs() -> None:
    def of(*each: float, **more: list[float]) -> Ratio:
        return Ratio(against="vit", median=1.0, low=1.0, high=1.0, per_process=list(each), **more)

    quiet = of(2.0, 2.1, 2.2)
    assert ratio_change(quiet, quiet) == change_interval([2.0, 2.1, 2.2], [2.0, 2.1, 2.2])
    shared = of(2.0, 2.1, 2.2, per_process_typical=[1.8, 1.9, 2.0], per_process_least=[2.2, 2.3, 2.4])
    mean, low, high = ratio_change(quiet, shared)
    assert mean == pytest.approx(1.0)
    assert low == change_interval([2.0, 2.1, 2.2], [2.2, 2.3, 2.4])[1]
    assert high == change_interval([2.0, 2.1, 2.2], [1.8, 1.9, 2.0])[2]
    # Both disturbed alike: the change is as well known as in quiet.
    assert ratio_change(shared, shared)[2] < high


def test_intervals_over_processes_are_the_bootstrap_written_out() -> None:
    # Hesterberg 2015, section 4.3: deviations of resampled means, times sqrt(n / (n - 1)) and t / z; for a
    # difference with Welch's degrees of freedom, rounded down.
    rng = np.random.default_rng(5)
    runs = [np.log([1.1, 1.3, 1.15, 1.2]), np.log([1.0, 1.25, 1.05])]
    spreads = []
    for logs in runs:
        means = logs[rng.integers(0, logs.size, size=(200, logs.size))].mean(axis=1)
        spreads.append((means - logs.mean()) * (logs.size / (logs.size - 1)) ** 0.5)

    def written_out(middle: float, spread: np.ndarray, freedom: float) -> tuple[float, float, float]:
        low, high = np.percentile(spread * student_quantile(freedom) / 1.959964, (2.5, 97.5))
        return float(np.exp(middle)), float(np.exp(middle + low)), float(np.exp(middle + high))

    found = process_interval(np.exp(runs[0]).tolist(), seed=5, resamples=200)
    assert found == pytest.approx(written_out(runs[0].mean(), spreads[0], 3), rel=1e-6)
    parts = [logs.var(ddof=1) / logs.size for logs in runs]
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 3 + parts[1] ** 2 / 2)
    change = change_interval(*(np.exp(logs).tolist() for logs in runs), seed=5, resamples=200)
    expected = written_out(runs[0].mean() - runs[1].mean(), spreads[0] - spreads[1], freedom)
    assert change == pytest.approx(expected, rel=1e-6)


def test_a_ratio_of_zero_has_no_interval() -> None:
    with pytest.raises(InputError, match="positive ratios, got"):
        process_interval([0.0, 1.0])


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 30, 1000, 4.7])
def test_student_quantile_is_scipys(freedom: float) -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    assert student_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, int(freedom)), rel=1.3e-3)


def test_a_distribution_without_freedom_is_refused() -> None:
    with pytest.raises(InputError, match="at least one degree of freedom, got 0"):
        student_quantile(0)


@pytest.mark.parametrize("seed", range(5))
def test_a_planted_ten_percent_is_found(seed: int) -> None:
    ratio = ratio_interval(*simulated(seed, 1.1), against="a")
    assert ratio.low > 1.05
    assert ratio.high < 1.15


def test_one_percent_inside_the_noise_is_not_called() -> None:
    # Noise of 10 % over 20 rounds leaves the median's standard error near 4 %: 1 % is out of reach, so
    # of 20 runs no more may call it than a 95 % interval errs in (1, and 1 for the shifted centre).
    intervals = [
        ratio_interval(*simulated(seed, 1.01, rounds=20, noise=0.1), against="a") for seed in range(20)
    ]
    assert sum(not ratio.low <= 1.0 <= ratio.high for ratio in intervals) <= 2


def test_too_few_rounds_carry_no_interval() -> None:
    blocks = [np.array([1.0])] * (MIN_ROUNDS - 1)
    with pytest.raises(InputError, match="at least 6 rounds, got 5"):
        ratio_interval(blocks, blocks, against="a")


def test_rounds_must_pair_up() -> None:
    with pytest.raises(InputError, match="7 of the baseline and 6 of the variant"):
        ratio_interval([np.array([1.0])] * 7, [np.array([1.0])] * 6, against="a")


def test_lag_one_correlation_of_known_series() -> None:
    # +1, -1, +1, -1: products of neighbours -1, -1, -1 over the power 4. Constant: 0 by definition.
    assert lag_one_correlation(np.array([1.0, -1.0, 1.0, -1.0])) == pytest.approx(-0.75)
    assert lag_one_correlation(np.ones(5)) == 0.0
