"""UF1 and UAR as the MEGC challenges define them, and what a difference of them is worth.

A class that no true label names is left out of both means: its recall is not defined, and an F1 of 0
for what could not be found would punish a small test set for being small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptsr_edge.core.errors import InputError

Classes = NDArray[np.int64]
Counts = NDArray[np.int64]
Floats = NDArray[np.float64]
Metric = Literal["uf1", "uar"]


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
