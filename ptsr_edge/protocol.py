"""Who is trained on and who is judged: strict subject-disjoint protocols and their pooled figures.

Strict means that nothing about a held-out subject is looked at before the one evaluation: no epoch is
chosen by it, no statistic is taken from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.config import ModelConfig
from ptsr_edge.data import FlowData, split_subjects
from ptsr_edge.errors import InputError
from ptsr_edge.fit import Recipe, fit
from ptsr_edge.inference import predict_logits
from ptsr_edge.metrics import confusion, per_class_recall, uar, uf1

PROTOCOLS = ("loso", "groups", "holdout")
GROUPS = 5
HELD_OUT = 0.2


@dataclass(frozen=True)
class Fold:
    """Two sets of subjects without a common one."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]


def folds(protocol: str, subjects: Sequence[str] | NDArray[np.str_], seed: int = 0) -> list[Fold]:
    """The folds of a protocol over the subjects of a data set.

    `loso`: each subject is held out once; `groups`: five subject-disjoint groups, for quick looks;
    `holdout`: a fifth of the subjects, once.

    Raises:
        InputError: an unknown protocol, or too few subjects for it.
    """
    names = sorted({str(subject) for subject in subjects})
    if protocol == "holdout":
        train, held = split_subjects(names, HELD_OUT, seed=0)
        return [Fold(tuple(train), tuple(held))]
    if protocol == "loso":
        parts = [[name] for name in names]
    elif protocol == "groups":
        order = np.random.default_rng(seed).permutation(len(names))
        parts = [sorted(names[place] for place in order[start::GROUPS]) for start in range(GROUPS)]
    else:
        raise InputError(f"unknown protocol {protocol!r}; accepted: {', '.join(PROTOCOLS)}")
    if len(names) < 2 or not all(parts):
        raise InputError(f"protocol {protocol} needs more subjects than the {len(names)} found")
    return [Fold(tuple(name for name in names if name not in part), tuple(part)) for part in parts]


def run_fold(
    config: ModelConfig, data: FlowData, fold: Fold, recipe: Recipe, seed: int, rates: Sequence[float]
) -> dict[float, NDArray[np.int64]]:
    """Trains on a fold's training side; the predicted classes of its held-out clips at each keep rate."""
    model = fit(config, data.of_subjects(fold.train), recipe, seed)
    held = data.of_subjects(fold.held_out)
    return {
        rate: predict_logits(model, held.flows, config.tokens_at(rate))[0].argmax(axis=1) for rate in rates
    }


def run_protocol(
    config: ModelConfig,
    data: FlowData,
    protocol: str,
    recipe: Recipe,
    seed: int,
    rates: Sequence[float],
    on_fold: Callable[[], None] | None = None,
) -> tuple[FlowData, dict[float, NDArray[np.int64]]]:
    """Runs all folds; the judged clips and, at each keep rate, the class predicted for each of them."""
    predicted: dict[float, list[NDArray[np.int64]]] = {rate: [] for rate in rates}
    places = []
    for fold in folds(protocol, data.subjects, seed):
        for rate, classes in run_fold(config, data, fold, recipe, seed, rates).items():
            predicted[rate].append(classes)
        places.append(np.flatnonzero(np.isin(data.subjects, fold.held_out)))
        if on_fold is not None:
            on_fold()
    judged = data.subset(np.concatenate(places))
    return judged, {rate: np.concatenate(parts) for rate, parts in predicted.items()}


def figures(data: FlowData, predicted: NDArray[np.int64]) -> dict[str, Any]:
    """Sample count, UF1, UAR, recall per class and confusion matrix, pooled over all clips."""
    table = confusion(data.labels, predicted, len(data.label_names))
    recalls = per_class_recall(table)
    return {
        "n": len(data),
        "subjects": len(data.subject_names),
        "uf1": uf1(table),
        "uar": uar(table),
        "recall": {
            name: None if np.isnan(value) else float(value)
            for name, value in zip(data.label_names, recalls, strict=True)
        },
        "confusion": table.tolist(),
    }


def unseen_subjects(data: FlowData, provenance: dict[str, Any]) -> list[str]:
    """The subjects of a data set that a model was not trained on, by its provenance."""
    if provenance.get("data") != data.source:
        return data.subject_names
    seen = set(provenance.get("train_subjects", []))
    return [subject for subject in data.subject_names if subject not in seen]
