"""UF1, UAR, the paired bootstrap, and the bound on a drop of UAR."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ptsr_edge.core.errors import InputError
from ptsr_edge.stats import classification as metrics
from ptsr_edge.stats.classification import (
    STAKES,
    WEIGHTS,
    Paired,
    confusion,
    needed_factor,
    paired,
    uar,
    upper_bound,
)

# Unequal classes of 6, 3 and 1 samples.
TRUE = [0, 0, 0, 0, 0, 0, 1, 1, 1, 2]
PREDICTED = [0, 0, 0, 0, 1, 2, 1, 0, 0, 2]
COUNTS = np.array([[4, 1, 1], [2, 1, 0], [0, 0, 1]])


def test_confusion_has_true_classes_as_rows():
    found = metrics.confusion(TRUE, PREDICTED, 3)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, COUNTS)


def test_uf1_by_hand():
    # Class 0: TP 4, FP 2, FN 2: 8 / 12. Class 1: TP 1, FP 1, FN 2: 2 / 5. Class 2: TP 1, FP 1: 2 / 3.
    assert metrics.uf1(COUNTS) == pytest.approx((8 / 12 + 2 / 5 + 2 / 3) / 3)


def test_uar_by_hand():
    # Recalls 4 / 6, 1 / 3, 1 / 1; plain accuracy would be .6.
    np.testing.assert_allclose(metrics.per_class_recall(COUNTS), [4 / 6, 1 / 3, 1])
    assert metrics.uar(COUNTS) == pytest.approx((4 / 6 + 1 / 3 + 1) / 3)


def test_a_class_without_samples_is_left_out_of_both_means():
    # Class 2 is predicted once and never true. Class 0: TP 2, FN 1: 4 / 5. Class 1: TP 1: 2 / 2.
    counts = metrics.confusion([0, 0, 0, 1], [0, 0, 2, 1], 3)
    assert metrics.uf1(counts) == pytest.approx((4 / 5 + 1) / 2)
    assert metrics.uar(counts) == pytest.approx((2 / 3 + 1) / 2)
    assert np.isnan(metrics.per_class_recall(counts)[2])


def test_a_class_that_is_never_found_counts_as_zero():
    counts = metrics.confusion([0, 1], [0, 0], 2)
    assert metrics.uf1(counts) == pytest.approx((2 / 3 + 0) / 2)
    assert metrics.uar(counts) == pytest.approx(0.5)


def test_perfect_is_one():
    counts = metrics.confusion(TRUE, TRUE, 3)
    assert metrics.uf1(counts) == metrics.uar(counts) == 1


@pytest.mark.parametrize(
    ("true", "predicted", "says"),
    [
        pytest.param([0, 1], [0], "found 2 and 1", id="lengths"),
        pytest.param([0, 3], [0, 1], r"true labels must be in \[0, 2\]; found 0 to 3", id="too high"),
        pytest.param([0, 1], [-1, 1], "predicted labels must be in", id="negative"),
        pytest.param([0.0, 1.0], [0, 1], "integers; found .*float64", id="floats"),
    ],
)
def test_unfit_labels(true, predicted, says):
    with pytest.raises(InputError, match=says):
        metrics.confusion(true, predicted, 3)


@pytest.mark.parametrize("metric", [metrics.uf1, metrics.uar])
def test_no_sample_has_no_figure(metric):
    with pytest.raises(InputError, match="without a sample"):
        metric(metrics.confusion([], [], 3))


def test_unfit_matrix():
    with pytest.raises(InputError, match=r"found \(2, 3\)"):
        metrics.uar(np.ones((2, 3), dtype=np.int64))


SUBJECTS = np.array(["a", "a", "a", "b", "b", "b", "c", "c", "d", "d"])


def test_bootstrap_difference_is_the_plain_difference():
    difference, low, high = metrics.paired_bootstrap(TRUE, PREDICTED, TRUE, SUBJECTS, resamples=200)
    assert difference == pytest.approx(metrics.uar(COUNTS) - 1)
    assert low <= difference <= high <= 0


def test_bootstrap_of_a_model_against_itself_is_zero():
    assert metrics.paired_bootstrap(TRUE, PREDICTED, PREDICTED, SUBJECTS, "uf1") == (0, 0, 0)


def test_bootstrap_is_seeded():
    # Thirty subjects of unequal size: with a few, two seeds can fall on the same percentiles.
    rng = np.random.default_rng(0)
    true, a, b = rng.integers(0, 3, (3, 300))
    subjects = rng.integers(0, 30, 300).astype(str)

    def draw(seed):
        return metrics.paired_bootstrap(true, a, b, subjects, resamples=50, seed=seed)

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


def test_bootstrap_resamples_subjects_not_clips():
    # Two subjects, one class: a is all right under A and all wrong under B, b the other way round. Draws
    # are (a, a), (b, b) or mixed: differences are +1, -1 or 0 and nothing between; half of the draws are mixed.
    true, subjects = [0] * 20, ["a"] * 10 + ["b"] * 10
    a, b = [0] * 10 + [1] * 10, [1] * 10 + [0] * 10
    assert metrics.paired_bootstrap(true, a, b, subjects, resamples=300) == (0, -1, 1)
    assert metrics.uar_interval(true, a, subjects) == (0, 1)


def test_bootstrap_of_one_subject_is_a_point():
    one = metrics.paired_bootstrap(TRUE, TRUE, [0] * 10, ["only"] * 10)
    assert one == pytest.approx((2 / 3, 2 / 3, 2 / 3))


@pytest.mark.parametrize("metric", ["uar", "uf1"])
def test_bootstrap_is_the_loop_over_its_draws(metric):
    # The definition, draw by draw, with whole subjects put one behind another.
    rng = np.random.default_rng(1)
    true, a, b = rng.integers(0, 3, (3, 40))
    subjects = rng.integers(0, 6, 40)
    score = getattr(metrics, metric)
    found = []
    for drawn in np.random.default_rng(7).integers(0, 6, size=(50, 6)):
        rows = np.concatenate([np.flatnonzero(subjects == subject) for subject in drawn])
        one, other = (score(metrics.confusion(true[rows], answers[rows], 3)) for answers in (a, b))
        found.append(one - other)
    _, low, high = metrics.paired_bootstrap(true, a, b, subjects, metric, resamples=50, seed=7)
    assert (low, high) == pytest.approx(tuple(np.percentile(found, [2.5, 97.5])))


def test_bootstrap_averages_runs_inside_each_draw():
    # Two subjects of one class. Under A, run 1 is right on subject a only and run 2 on b only: whatever is
    # drawn, the mean of the two runs is 1/2. Under B nothing is right. Averaging the runs' answers first, or
    # drawing anew for each run, would give an interval.
    true, subjects = [0] * 20, ["a"] * 10 + ["b"] * 10
    runs = [[0] * 10 + [1] * 10, [1] * 10 + [0] * 10]
    found = metrics.paired_bootstrap(true, runs, [[1] * 20] * 3, subjects, resamples=100)
    assert found == (0.5, 0.5, 0.5)


def test_bootstrap_of_one_run_is_that_of_the_run():
    rng = np.random.default_rng(0)
    true, a, b = rng.integers(0, 3, (3, 60))
    subjects = rng.integers(0, 8, 60).astype(str)
    single = metrics.paired_bootstrap(true, a, b, subjects, resamples=40)
    assert single == metrics.paired_bootstrap(true, a[None], b[None], subjects, resamples=40)
    assert single == pytest.approx(metrics.paired_bootstrap(true, [a, a], b, subjects, resamples=40))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(([0, 1], [0, 1], [0], ["a", "b"]), "must be as many", id="lengths"),
        pytest.param(([0, 1], [[0, 1]], np.zeros((0, 2), int), ["a", "b"]), "must be as many", id="no run"),
        pytest.param(([], [], [], []), "at least 1", id="nothing"),
    ],
)
def test_bootstrap_with_unfit_input(arguments, says):
    with pytest.raises(InputError, match=says):
        metrics.paired_bootstrap(*arguments)


def test_bootstrap_without_resamples():
    with pytest.raises(InputError, match="at least 1, got 0"):
        metrics.paired_bootstrap(TRUE, PREDICTED, TRUE, SUBJECTS, resamples=0)


def test_uar_interval_is_the_spread_of_subjects():
    # Ten subjects with two samples of two classes, each subject right on all or on nothing: the UAR is the mean of
    # ten coins of .5, whose standard error is sqrt(.25 / 10) = .158; 95 % is .31 to either side, in steps of .1.
    true = np.tile([0, 1], 10)
    subjects = np.repeat(np.arange(10), 2)
    answers = np.where(subjects % 2 == 0, true, 1 - true)
    low, high = metrics.uar_interval(true, answers, subjects)
    assert (low, high) == (pytest.approx(0.2, abs=0.011), pytest.approx(0.8, abs=0.011))
    assert metrics.uar_interval(true, true, subjects) == (1.0, 1.0)
    with pytest.raises(InputError, match="must be as many"):
        metrics.uar_interval(true, true[1:], subjects)


@pytest.mark.parametrize("added", [1, 2])
def test_half_width_of_two_uars_by_hand(added):
    # Recalls (8 + a) / (10 + 2a) and (3 + a) / (5 + 2a); a third class has no sample and is left out.
    first = [[8, 2, 0], [2, 3, 0], [0, 0, 0]]
    second = [[4, 0], [0, 2]]
    variances = 0.0
    for hits in ([(8, 10), (3, 5)], [(4, 4), (2, 2)]):
        for right, there in hits:
            share = (right + added) / (there + 2 * added)
            variances += share * (1 - share) / (there + 2 * added) / 4
    assert metrics.uar_half_width([first, second], added) == pytest.approx(1.96 * variances**0.5)
    assert metrics.uar_half_width([np.zeros((2, 2))], added) == 0.0


def of_parts(parts: np.ndarray) -> Paired:
    """Units of equal shares; `parts` are their drops in [-1, 1]."""
    count = len(parts)
    return Paired(parts / count, np.full(count, 1 / count), "subject", count)


def test_the_parts_add_up_to_the_measured_drop() -> None:
    rng = np.random.default_rng(0)
    truth = rng.choice(3, 200, p=[0.6, 0.3, 0.1])
    reference, variant = rng.integers(0, 3, (2, 200))
    subjects = rng.integers(0, 17, 200)
    expected = uar(confusion(truth, reference, 3)) - uar(confusion(truth, variant, 3))
    for unit, units in (("subject", len(np.unique(subjects))), ("sample", 200)):
        answers = paired(truth, reference, variant, subjects, unit)  # type: ignore[arg-type]
        assert answers.parts.sum() == pytest.approx(expected)
        assert answers.shares.sum() == pytest.approx(1)
        assert (np.abs(answers.parts) <= answers.shares + 1e-12).all()
        assert len(answers.parts) == units


def test_equal_answers_by_hand() -> None:
    # No difference: the capital of a stake f is (1 + f theta)^S, so the bound solves their mean = 1 / .05.
    bound = upper_bound(of_parts(np.zeros(300)))
    capital = sum(w * (1 + f * bound.upper) ** 300 for f, w in zip(STAKES, WEIGHTS, strict=True))
    assert capital == pytest.approx(20)
    assert bound.upper == bound.least
    # Nobody can say less than the rule of three: a drop in 1 of 100 units is missed with .99^300 = .049.
    assert bound.upper >= 1 - 0.05 ** (1 / 300)


@pytest.mark.parametrize("drop", [0.0, 0.02, 0.1])
@pytest.mark.parametrize("kind", ["rare", "noisy", "unlike", "uneven"])
def test_the_bound_holds_as_often_as_it_says(drop: float, kind: str) -> None:
    # 400 simulated test sets of 40 dependent groups; at an error of exactly .05 more than 32 misses (of 20
    # expected, standard deviation 4.4) have a probability of .004; the seed is fixed.
    rng = np.random.default_rng(len(kind) * 1000 + round(1000 * drop))
    missed = 0
    for _ in range(400):
        shares = rng.dirichlet(np.full(40, 3.0)) if kind == "uneven" else np.full(40, 1 / 40)
        if kind == "rare":  # nearly all alike; a few subjects are lost altogether
            values = (rng.random(40) < drop).astype(float)
        elif kind == "noisy":  # many changes in both directions, whole subjects at once
            values = rng.choice([-1.0, 0.0, 1.0], 40, p=[0.3 - drop / 2, 0.4, 0.3 + drop / 2])
        else:  # subjects of different expected drops: their mean is what is bounded
            means = np.linspace(-0.3, 0.3, 40) + drop
            means += drop - shares @ means
            values = np.where(rng.random(40) < (1 + means) / 2, 1.0, -1.0)
        missed += upper_bound(Paired(shares * values, shares, "subject", 40)).upper < drop
    assert missed <= 32


def test_it_is_tighter_than_hoeffding_and_empirical_bernstein_where_answers_differ_little() -> None:
    # With 3,000 units of which 40 % differ, empirical Bernstein would be the tighter one (.036 to .039). Maurer & Pontil 2009, theorem 4, and Hoeffding 1963, for values in [-1, 1], one-sided at .05.
    rng = np.random.default_rng(3)
    for count, changed in ((160, 0.02), (768, 0.0), (768, 0.05), (768, 0.2)):
        values = rng.choice([-1.0, 0.0, 1.0], count, p=[changed / 2, 1 - changed, changed / 2])
        hoeffding = values.mean() + math.sqrt(2 * math.log(20) / count)
        bernstein = values.mean() + math.sqrt(2 * values.var(ddof=1) * math.log(40) / count)
        bernstein += 2 * 7 * math.log(40) / (3 * (count - 1))
        assert upper_bound(of_parts(values)).upper < min(hoeffding, bernstein)


def test_choosing_among_more_costs() -> None:
    values = of_parts(np.random.default_rng(1).choice([-1.0, 0.0, 1.0], 500, p=[0.02, 0.96, 0.02]))
    found = [upper_bound(values, tests=tests).upper for tests in (1, 4, 16)]
    assert found == sorted(found)
    assert len(set(found)) == 3
    assert upper_bound(values, tests=5).upper == upper_bound(values, confidence=0.99).upper


def test_a_better_variant_is_bounded_by_zero() -> None:
    bound = upper_bound(of_parts(np.full(200, -0.5)))
    assert (bound.upper, bound.drop) == (0.0, pytest.approx(-0.5))


@pytest.mark.parametrize(("changed", "limit"), [(0.0, 0.01), (0.04, 0.02)])
def test_what_is_needed_suffices_and_less_does_not(changed: float, limit: float) -> None:
    count = 100
    half = round(count * changed / 2)
    values = np.zeros(count)
    values[:half], values[half : 2 * half] = 1, -1
    factor = needed_factor(of_parts(values), limit)
    assert factor is not None
    enough = math.ceil(factor)
    assert upper_bound(of_parts(np.tile(values, enough))).upper <= limit + 1e-9
    assert upper_bound(of_parts(np.tile(values, enough - 1))).upper > limit


def test_no_amount_shows_what_is_not_so() -> None:
    assert needed_factor(of_parts(np.r_[np.ones(5), np.zeros(95)]), 0.05) is None
    assert needed_factor(of_parts(np.zeros(4000)), 0.05) == 1.0


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: upper_bound(of_parts(np.zeros(4))), "4 subjects are too few for any statement"),
        (lambda: upper_bound(of_parts(np.zeros(9)), confidence=1.0), r"share in \(0, 1\), got 1"),
        (lambda: upper_bound(of_parts(np.zeros(9)), confidence=0.0), r"share in \(0, 1\), got 0"),
        (lambda: upper_bound(of_parts(np.zeros(9)), tests=0), "at least 1 variant, got 0"),
        (lambda: needed_factor(of_parts(np.zeros(9)), -0.01), r"share in \(0, 1\), got -0.01"),
        (lambda: paired([0, 1], [0], [0, 1], [0, 1]), r"found \(2,\), \(1,\)"),
        (lambda: paired([], [], [], []), "at least 1"),
    ],
)
def test_what_cannot_be_bounded_is_refused(call: object, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        call()  # type: ignore[operator]
    assert "\n" not in str(caught.value)
