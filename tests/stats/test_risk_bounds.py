"""The bound on the drop of UAR: by hand, by its coverage in simulation, and against other valid bounds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ptsr_edge.core.errors import InputError
from ptsr_edge.stats.classification import confusion, uar
from ptsr_edge.stats.risk_bounds import STAKES, WEIGHTS, Paired, needed_factor, paired, upper_bound


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
