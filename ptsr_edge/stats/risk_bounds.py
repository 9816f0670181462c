"""An upper bound on the drop of UAR of a variant that assumes no distribution.

The question is one-sided: a variant may be used where its UAR is at most so much below a reference's, and a
point estimate on few people does not answer that. The bound is a test by betting (Waudby-Smith & Ramdas 2023,
"Estimating means of bounded random variables by betting", JRSS B 86(1)), in a form that needs independence only:

* Both models answer the same samples. Unit s (a subject, or a sample) adds Y_s = sum_i d_i / (C n_c(i)) to the
  measured drop, where d_i is 1 where only the reference is right, -1 where only the variant is, else 0; C is
  the number of classes and n_c that of the samples of class c. So sum_s Y_s is the measured drop, and
  Y_s <= b_s = sum_i 1 / (C n_c(i)), with sum_s b_s = 1.
* Were the expected drop theta or more, then for each fixed stake lam in [0, 1 / (S max b)] the capital
  prod_s (1 + lam S (b_s theta - Y_s)) would have an expectation of at most 1: by independence it is the product
  of the expectations, and by the inequality of the means at most (1 + lam (theta - sum_s E Y_s))^S <= 1. Units
  need not be alike. A weighted mean of the capitals of several stakes has the same property.
* By Markov's inequality that mean exceeds 1 / alpha with a probability of at most alpha. The bound is the
  smallest theta at which it does: the capital rises with theta, so all larger ones are rejected too.

What is assumed: units are independent of one another; samples inside a unit may depend on each other in any way;
which classes a unit's samples have is taken as given. "Expected" is over people like those judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptsr_edge.core.errors import InputError

Floats = NDArray[np.float64]
Unit = Literal["subject", "sample"]

CONFIDENCE = 0.95

STAKES = 2.0 ** -np.arange(7)
WEIGHTS = STAKES / STAKES.sum()
"""Shares of the largest stake, and their weights. Nearly equal answers, the common case, are shown best by the
largest one; two models that differ much, by small ones. Fixed beforehand: stakes that were fitted to the
data would void the bound."""


@dataclass(frozen=True)
class Bound:
    """A bound on a drop of UAR, from held-out answers.

    Attributes:
        drop: the measured one; negative where the variant is better.
        upper: the bound in [0, 1]; a variant that is better is bounded by 0.
        least: what the bound would be, had both given the same answers throughout.
        confidence: of this bound together with those of the other `tests` - 1.
        tests: among how many variants it was chosen.
        unit: what is taken as independent.
        units: how many of these there are.
        samples: how many were judged.
    """

    drop: float
    upper: float
    least: float
    confidence: float
    tests: int
    unit: Unit
    units: int
    samples: int


@dataclass(frozen=True)
class Paired:
    """Answers of a variant and its reference to the same samples, by independent units.

    Attributes:
        parts: (S,) what each unit adds to the measured drop of UAR.
        shares: (S,) the most that it could add; their sum is 1.
        unit: what is taken as independent.
        samples: how many were judged.
    """

    parts: Floats
    shares: Floats
    unit: Unit
    samples: int


def paired(
    truth: ArrayLike, reference: ArrayLike, variant: ArrayLike, subjects: ArrayLike, unit: Unit = "subject"
) -> Paired:
    """Pairs two models' answers.

    Args:
        truth: (n,) integers, the true classes.
        reference: (n,) integers, the classes that the reference answered.
        variant: (n,) integers, those that the variant answered.
        subjects: (n,) who is seen, as integers or names.
        unit: `subject`: samples of one person may depend on each other; `sample`: all are independent.

    Raises:
        InputError: lengths differ, or there is no sample.
    """
    true, base, other, owner = (np.asarray(values) for values in (truth, reference, variant, subjects))
    if len({values.shape for values in (true, base, other, owner)}) != 1 or true.ndim != 1 or not true.size:
        raise InputError(
            "truth, both answers and subjects must be as many, at least 1; found "
            + ", ".join(str(values.shape) for values in (true, base, other, owner))
        )
    _, label, counts = np.unique(true, return_inverse=True, return_counts=True)
    weights = 1.0 / (len(counts) * counts[label])  # (n,)
    differences = (base == true).astype(float) - (other == true)  # (n,)
    place = np.unique(owner, return_inverse=True)[1] if unit == "subject" else np.arange(true.size)
    return Paired(
        parts=np.bincount(place, weights * differences).astype(np.float64),
        shares=np.bincount(place, weights).astype(np.float64),
        unit=unit,
        samples=int(true.size),
    )


def upper_bound(answers: Paired, *, confidence: float = CONFIDENCE, tests: int = 1) -> Bound:
    """The bound on the expected drop of UAR, in [0, 1].

    Args:
        answers: of `paired`.
        confidence: with which all of the `tests` bounds hold at once (Bonferroni: each is made with an error
            of (1 - confidence) / tests).
        tests: among how many variants one will be chosen by its bound.

    Raises:
        InputError: a confidence outside (0, 1), fewer than 1 test, or so few units that not even equal answers
            throughout would bound the drop below 1.
    """
    alpha = _alpha(confidence, tests)
    least = _smallest(np.zeros_like(answers.parts), answers.shares, alpha)
    if least >= 1:
        count = len(answers.parts)
        units = f"1 {answers.unit} is" if count == 1 else f"{count} {answers.unit}s are"
        raise InputError(
            f"{units} too few for any statement on the drop of UAR at {confidence:.0%} confidence (for {tests} variants): judge more"
        )
    return Bound(
        drop=float(answers.parts.sum()),
        upper=_smallest(answers.parts, answers.shares, alpha),
        least=least,
        confidence=confidence,
        tests=tests,
        unit=answers.unit,
        units=len(answers.parts),
        samples=answers.samples,
    )


def needed_factor(
    answers: Paired, limit: float, *, confidence: float = CONFIDENCE, tests: int = 1
) -> float | None:
    """Returns how many times as much data of the same kind would bring the bound down to `limit`.

    Data r times as many, with the same shares of answers, has each unit's share divided by r, and its capital
    to the power of r: the smallest r is found by bisection.

    Returns:
        1 where the bound is there already; None where no amount would do: the drop that was measured reaches the
        limit.

    Raises:
        InputError: as `upper_bound`; or a limit outside (0, 1).
    """
    if not 0 < limit < 1:
        raise InputError(f"a limit on the drop of UAR is a share in (0, 1), got {limit:g}")
    wanted = -math.log(_alpha(confidence, tests))
    growth = _log_growth(answers.parts, answers.shares, limit)  # (stakes,)
    if growth.max() <= 0:
        return None

    def reached(factor: float) -> bool:
        return _log_mean(factor * growth) >= wanted

    if reached(1.0):
        return 1.0
    low, high = 1.0, 2.0
    while not reached(high):
        low, high = high, 2 * high
    return _bisect(reached, low, high)


def _alpha(confidence: float, tests: int) -> float:
    if not 0 < confidence < 1:
        raise InputError(f"a confidence is a share in (0, 1), got {confidence:g}")
    if tests < 1:
        raise InputError(f"a bound is for at least 1 variant, got {tests}")
    return (1 - confidence) / tests


def _log_growth(parts: Floats, shares: Floats, theta: float) -> Floats:
    """(stakes,) logarithm of each stake's capital against an expected drop of `theta` >= 0."""
    scaled = (shares * theta - parts) / shares.max()  # (S,); at least theta - 1
    with np.errstate(divide="ignore"):  # at theta = 0 and the largest stake one unit may lose everything
        result: Floats = np.log1p(np.multiply.outer(STAKES, scaled)).sum(axis=1)
    return result


def _log_mean(growth: Floats) -> float:
    return float(np.logaddexp.reduce(growth + np.log(WEIGHTS)))


def _smallest(parts: Floats, shares: Floats, alpha: float) -> float:
    """The smallest drop in [0, 1] that is rejected; 1 where none is."""
    wanted = -math.log(alpha)

    def rejected(theta: float) -> bool:
        return _log_mean(_log_growth(parts, shares, theta)) >= wanted

    if rejected(0.0):
        return 0.0
    if not rejected(1.0):
        return 1.0
    return _bisect(rejected, 0.0, 1.0)


def _bisect(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The smallest value in (low, high] at which a condition holds that holds at `high` and not at `low`."""
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
