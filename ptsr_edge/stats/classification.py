"""UF1 and UAR as the MEGC challenges define them, what a difference of them is worth, and an upper bound on a drop of UAR.

A class that no true label names is left out of both means: its recall is not defined, and an F1 of 0
for what could not be found would punish a small test set for being small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptsr_edge.core.errors import InputError

Classes = NDArray[np.int64]
Counts = NDArray[np.int64]
Floats = NDArray[np.float64]
Metric = Literal["uf1", "uar"]
Unit = Literal["subject", "sample"]

CONFIDENCE = 0.95

STAKES = 2.0 ** -np.arange(7)
WEIGHTS = STAKES / STAKES.sum()
"""Shares of the largest stake, and their weights. Nearly equal answers, the common case, are shown best by the
largest one; two models that differ much, by small ones. Fixed beforehand: stakes that were fitted to the
data would void the bound."""


def confusion(true: ArrayLike, predicted: ArrayLike, classes: int) -> Counts:
    """Counts how often each true class was predicted as each class.

    Args:
        true: (n,) integers in [0, classes).
        predicted: (n,) integers in [0, classes).
        classes: how many classes there are.

    Returns:
        (classes, classes) int64: rows are true classes, columns predicted ones.

    Raises:
        InputError: the two differ in length, are no integers, or a class is out of range.
    """
    true_labels = _labels(true, classes, "true")
    predicted_labels = _labels(predicted, classes, "predicted")
    if true_labels.shape != predicted_labels.shape:
        raise InputError(
            f"true and predicted labels must be as many; found {true_labels.size} and {predicted_labels.size}"
        )
    cells = np.bincount(true_labels * classes + predicted_labels, minlength=classes**2)
    return cells.reshape(classes, classes).astype(np.int64)


def uf1(counts: Counts) -> float:
    """Unweighted F1: mean over the classes of 2 TP / (2 TP + FP + FN), counts pooled over all folds.

    Args:
        counts: (classes, classes) of `confusion`.

    Raises:
        InputError: there is no sample.

    Source: See et al., MEGC 2019, FG 2019.
    """
    return float(_mean_over_classes(_checked(counts), "uf1"))


def uar(counts: Counts) -> float:
    """Unweighted average recall: the mean over the classes of TP / (TP + FN).

    Raises:
        InputError: there is no sample.

    Source: See et al., MEGC 2019, FG 2019.
    """
    return float(_mean_over_classes(_checked(counts), "uar"))


def per_class_recall(counts: Counts) -> Floats:
    """(classes,) TP / (TP + FN); NaN for a class that has no sample.

    Raises:
        InputError: there is no sample.
    """
    return _by_class(_checked(counts), "uar")


def _by_class(counts: NDArray[np.number], metric: Metric) -> Floats:
    """(..., classes) F1 or recall of confusion matrices (..., classes, classes); NaN for a class without a sample."""
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    there = counts.sum(axis=-1)
    if metric == "uf1":
        hits, whole = 2 * hits, there + counts.sum(axis=-2)
    else:
        whole = there
    found = np.full(hits.shape, np.nan)
    np.divide(hits, whole, out=found, where=there > 0)
    return found


def _mean_over_classes(counts: NDArray[np.number], metric: Metric) -> Floats:
    """(...) UF1 or UAR of confusion matrices (..., classes, classes)."""
    return np.asarray(np.nanmean(_by_class(counts, metric), axis=-1), dtype=np.float64)


def paired_bootstrap(
    true: ArrayLike,
    predicted_a: ArrayLike,
    predicted_b: ArrayLike,
    subjects: Sequence[str] | NDArray[np.str_],
    metric: Metric = "uar",
    resamples: int = 2000,
    seed: int = 0,
    classes: int | None = None,
) -> tuple[float, float, float]:
    """The difference metric(a) - metric(b) with a 95 % interval from resampling subjects.

    Both models are judged on the same draw. Of several runs (seeds) the metric is averaged inside each draw: the
    interval is of the mean over these very runs, and tells what other people would change, not other seeds.

    Args:
        true: (n,) integers.
        predicted_a: (n,) integers, or (runs, n).
        predicted_b: (n,) integers, or (runs, n).
        subjects: (n,) names.
        metric: `uar` or `uf1`.
        resamples: how many draws.
        seed: of the draws.
        classes: how many there are; by default one more than the highest label.

    Returns:
        (difference, low, high): the difference on all subjects, and its 2.5 % and 97.5 % percentiles.

    Raises:
        InputError: lengths differ, there is no sample, or fewer than 1 resample is asked for.
    """
    labels, names = np.asarray(true), np.asarray(subjects)
    runs = [np.atleast_2d(np.asarray(values)) for values in (predicted_a, predicted_b)]
    _check_as_many(labels, *(run[0] if len(run) else run for run in runs), names)
    if classes is None:
        classes = int(max(values.max() for values in (labels, *runs))) + 1
    tables = [np.stack([_per_subject(labels, one, names, classes) for one in run], axis=1) for run in runs]

    def difference(weights: Counts) -> Floats:  # (draws, subjects) -> (draws,)
        a, b = (_mean_over_classes(np.tensordot(weights, side, 1), metric).mean(axis=1) for side in tables)
        return np.asarray(a - b, dtype=np.float64)

    people = len(tables[0])
    low, high = np.percentile(difference(_draws(people, resamples, seed)), [2.5, 97.5])
    return float(difference(np.ones((1, people), dtype=np.int64))[0]), float(low), float(high)


def uar_interval(
    true: ArrayLike, predicted: ArrayLike, subjects: ArrayLike, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The 95 % interval of a UAR from resampling subjects: (low, high), the 2.5 % and 97.5 % percentiles.

    Args:
        true: (n,) integers.
        predicted: (n,) integers.
        subjects: (n,) who is seen, as integers or names.
        resamples: how many draws; a class that a draw misses is left out of its mean.
        seed: of the draws.

    Raises:
        InputError: lengths differ, there is no sample, or fewer than 1 resample is asked for.
    """
    labels, answers, names = (np.asarray(values) for values in (true, predicted, subjects))
    _check_as_many(labels, answers, names)
    tables = _per_subject(labels, answers, names, int(max(labels.max(), answers.max())) + 1)
    drawn = np.tensordot(_draws(len(tables), resamples, seed), tables, 1)
    low, high = np.percentile(_mean_over_classes(drawn, "uar"), [2.5, 97.5])
    return float(low), float(high)


def _draws(people: int, resamples: int, seed: int) -> Counts:
    """(resamples, people) how often each subject is drawn.

    Clips of one person are no independent draws: whole subjects are drawn with replacement.
    """
    if resamples < 1:
        raise InputError(f"resamples must be at least 1, got {resamples}")
    drawn = np.random.default_rng(seed).integers(0, people, size=(resamples, people))
    cells = drawn + people * np.arange(resamples)[:, None]
    return (
        np.bincount(cells.ravel(), minlength=resamples * people).reshape(resamples, people).astype(np.int64)
    )


def _per_subject(true: Classes, predicted: Classes, subjects: NDArray[np.generic], classes: int) -> Counts:
    """(subjects, classes, classes) a confusion matrix per subject."""
    _, owner = np.unique(subjects, return_inverse=True)
    return np.array(
        [confusion(true[owner == s], predicted[owner == s], classes) for s in range(owner.max() + 1)]
    )


def uar_half_width(tables: Sequence[ArrayLike], added: float) -> float:
    """Half the 95 % interval of a UAR, or of a sum or difference of several, by a normal approximation.

    Recalls are taken as independent binomials; the variance of a UAR is the mean of theirs over the number of
    classes. `added` hits and as many misses are added to each, so that a recall of 0 or 1 is not taken for certain.

    Args:
        tables: confusion matrices (classes, classes); one without a sample adds nothing.
        added: 2 for one UAR (Agresti and Coull 1998), 1 for a difference of two (Agresti and Caffo 2000).
    """
    variance = 0.0
    for counts in map(np.asarray, tables):
        there = counts.sum(axis=1) > 0
        totals = counts.sum(axis=1)[there] + 2 * added
        recalls = (np.diag(counts)[there] + added) / totals
        if there.any():
            variance += float((recalls * (1 - recalls) / totals).sum()) / int(there.sum()) ** 2
    return 1.96 * math.sqrt(variance)


def _check_as_many(*values: NDArray[np.generic]) -> None:
    shapes = [one.shape for one in values]
    if len(set(shapes)) != 1 or len(shapes[0]) != 1 or not shapes[0][0]:
        raise InputError(
            "true and predicted labels and subjects must be as many, at least 1; found "
            + ", ".join(str(shape) for shape in shapes)
        )


def _labels(values: ArrayLike, classes: int, name: str) -> Counts:
    labels = np.asarray(values)
    if labels.size == 0:
        return np.zeros(0, dtype=np.int64)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{name} labels must be (n,) integers; found {labels.shape} {labels.dtype}")
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(
            f"{name} labels must be in [0, {classes - 1}]; found {labels.min()} to {labels.max()}"
        )
    return labels.astype(np.int64)


def _checked(counts: Counts) -> Counts:
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise InputError(f"a confusion matrix must be (classes, classes); found {counts.shape}")
    if not counts.any():
        raise InputError("a confusion matrix without a sample has no UF1 or UAR")
    return counts


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
    """Returns the bound on the expected drop of UAR, in [0, 1], which assumes no distribution.

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
