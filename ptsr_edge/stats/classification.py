"""UF1 and UAR as the MEGC challenges define them, and what a difference of them is worth.

A class that no true label names is left out of both means: its recall is not defined, and an F1 of 0
for what could not be found would punish a small test set for being small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptsr_edge.core.errors import InputError

Counts = NDArray[np.int64]

Metric = Callable[[Counts], float]


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
    true_labels, predicted_labels = (
        _labels(true, classes, "true"),
        _labels(predicted, classes, "predicted"),
    )
    if true_labels.shape != predicted_labels.shape:
        raise InputError(
            f"true and predicted labels must be as many; found {true_labels.size} and {predicted_labels.size}"
        )
    cells = np.bincount(true_labels * classes + predicted_labels, minlength=classes**2)
    return cells.reshape(classes, classes).astype(np.int64)


def uf1(counts: Counts) -> float:
    """Unweighted F1: mean over the classes of 2 TP / (2 TP + FP + FN), counts pooled over all folds.

    Args:
        counts: (classes, classes) of `confusion`; leading axes are not accepted.

    Raises:
        InputError: there is no sample.

    Source: See et al., MEGC 2019, FG 2019.
    """
    hits, present = np.diag(counts), _present(counts)
    f1 = 2 * hits[present] / (counts.sum(axis=0) + counts.sum(axis=1))[present]
    return float(f1.mean())


def uar(counts: Counts) -> float:
    """Unweighted average recall: the mean over the classes of TP / (TP + FN).

    Raises:
        InputError: there is no sample.

    Source: See et al., MEGC 2019, FG 2019.
    """
    return float(np.nanmean(per_class_recall(counts)))


def per_class_recall(counts: Counts) -> NDArray[np.float64]:
    """(classes,) TP / (TP + FN); NaN for a class that has no sample.

    Raises:
        InputError: there is no sample.
    """
    present = _present(counts)
    recall = np.full(len(counts), np.nan)
    recall[present] = np.diag(counts)[present] / counts.sum(axis=1)[present]
    return recall


def paired_bootstrap(
    true: ArrayLike,
    predicted_a: ArrayLike,
    predicted_b: ArrayLike,
    subjects: Sequence[str] | NDArray[np.str_],
    metric: Metric = uar,
    resamples: int = 2000,
    seed: int = 0,
    classes: int | None = None,
) -> tuple[float, float, float]:
    """The difference metric(a) - metric(b) with a 95 % interval from resampling subjects.

    Clips of one person are no independent draws: whole subjects are drawn with replacement, and both
    models are judged on the same draw. Of several runs (seeds) the metric is averaged inside each draw: the
    interval is of the mean over these very runs, and tells what other people would change, not other seeds.

    Args:
        true: (n,) integers.
        predicted_a: (n,) integers, or (runs, n).
        predicted_b: (n,) integers, or (runs, n).
        subjects: (n,) names.
        metric: `uar`, `uf1`, or any other function of a confusion matrix.
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
    shapes = [values.shape for values in (labels, *(run[0] for run in runs if len(run)), names)]
    if len(set(shapes)) != 1 or len(shapes) != 4 or names.ndim != 1 or not names.size:
        raise InputError(
            "true, both predictions and subjects must be as many, at least 1; found "
            + ", ".join(str(shape) for shape in shapes)
        )
    if resamples < 1:
        raise InputError(f"resamples must be at least 1, got {resamples}")
    if classes is None:
        classes = int(max(values.max() for values in (labels, *runs))) + 1
    _, owner = np.unique(names, return_inverse=True)
    people = int(owner.max()) + 1
    per_subject = [
        np.array(
            [[confusion(labels[owner == s], one[owner == s], classes) for s in range(people)] for one in run]
        )
        for run in runs
    ]  # two of (runs, subjects, classes, classes)

    def difference(drawn: NDArray[np.intp]) -> float:
        tables = [counts[:, drawn].sum(axis=1) for counts in per_subject]  # two of (runs, classes, classes)
        a, b = (float(np.mean([metric(table) for table in run])) for run in tables)
        return a - b

    draws = np.random.default_rng(seed).integers(0, people, size=(resamples, people))
    low, high = np.percentile([difference(drawn) for drawn in draws], [2.5, 97.5])
    return difference(np.arange(people)), float(low), float(high)


def uar_interval(
    true: ArrayLike,
    predicted: ArrayLike,
    subjects: ArrayLike,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """The 95 % interval of a UAR from resampling subjects: (low, high), the 2.5 % and 97.5 % percentiles.

    Args:
        true: (n,) integers.
        predicted: (n,) integers.
        subjects: (n,) who is seen, as integers or names: whole subjects are drawn with replacement.
        resamples: how many draws; a class that a draw misses is left out of its mean.
        seed: of the draws.

    Raises:
        InputError: lengths differ, or there is no sample.
    """
    labels, answers, names = (np.asarray(values) for values in (true, predicted, subjects))
    if len({labels.shape, answers.shape, names.shape}) != 1 or labels.ndim != 1 or not labels.size:
        raise InputError(
            "true, predicted and subjects must be as many, at least 1; found "
            f"{labels.shape}, {answers.shape}, {names.shape}"
        )
    _, label = np.unique(labels, return_inverse=True)
    _, owner = np.unique(names, return_inverse=True)
    shape = (int(owner.max()) + 1, int(label.max()) + 1)  # (subjects, classes)
    cell = owner * shape[1] + label
    counts = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape)
    hits = np.bincount(cell, answers == labels, minlength=shape[0] * shape[1]).reshape(shape)
    draws = np.random.default_rng(seed).multinomial(shape[0], np.full(shape[0], 1 / shape[0]), size=resamples)
    with np.errstate(invalid="ignore"):
        spread = np.nanmean((draws @ hits) / (draws @ counts), axis=1)
    low, high = np.percentile(spread, [2.5, 97.5])
    return float(low), float(high)


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


def _present(counts: Counts) -> NDArray[np.bool_]:
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise InputError(f"a confusion matrix must be (classes, classes); found {counts.shape}")
    present: NDArray[np.bool_] = counts.sum(axis=1) > 0
    if not present.any():
        raise InputError("a confusion matrix without a sample has no UF1 or UAR")
    return present


RESAMPLES = 4000

Classes = NDArray[np.int64]


def gain_interval(
    truth: Classes,
    ours: Sequence[Classes],
    others: Sequence[Classes],
    subjects: NDArray[np.str_],
    resamples: int = RESAMPLES,
) -> tuple[float, float, float]:
    """UAR of `ours` minus that of `others`, each the mean over its runs, with a 95 % interval.

    Whole subjects are drawn with replacement, the same ones for all runs.

    Args:
        truth: (n,) classes.
        ours: runs of (n,) answers.
        others: runs of (n,) answers.
        subjects: (n,) names.
        resamples: how many draws.
    """
    _, label = np.unique(truth, return_inverse=True)
    _, owner = np.unique(subjects, return_inverse=True)
    shape = (int(owner.max()) + 1, int(label.max()) + 1)
    cell = owner * shape[1] + label

    def per_subject(values: NDArray[Any]) -> NDArray[np.float64]:  # (subjects, classes)
        sums = np.bincount(cell, values, minlength=shape[0] * shape[1])
        return sums.astype(np.float64).reshape(shape)

    right = [np.mean([answers == truth for answers in runs], axis=0) for runs in (ours, others)]
    counts, gained = per_subject(np.ones(len(truth))), per_subject(right[0] - right[1])
    draws = np.random.default_rng(0).multinomial(shape[0], np.full(shape[0], 1 / shape[0]), size=resamples)
    with np.errstate(invalid="ignore"):  # a draw may miss a class: it is left out, as UAR does
        spread = np.nanmean((draws @ gained) / (draws @ counts), axis=1)
    low, high = np.percentile(spread, [2.5, 97.5])
    point = float(np.mean(gained.sum(axis=0) / counts.sum(axis=0)))
    return point, float(low), float(high)
