"""Who is trained on and who is judged: strict subject-disjoint protocols and their pooled figures.

Strict means that nothing about a held-out subject is looked at before the one evaluation: no epoch is
chosen by it, no statistic is taken from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.core.errors import InputError
from ptsr_edge.data.datasets import HELD_OUT, FlowData, split_subjects
from ptsr_edge.stats.classification import confusion, per_class_recall, uar, uf1

PROTOCOLS = ("loso", "groups", "holdout", "cross")

GROUPS = 5


@dataclass(frozen=True)
class Fold:
    """Two sets of subjects without a common one."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]


def set_of(subject: str) -> str:
    """The data set that a subject is of: `casme2` of `casme2/sub01`."""
    return str(subject).partition("/")[0]


def folds(
    protocol: str, subjects: Sequence[str] | NDArray[np.str_], seed: int = 0, groups: int = GROUPS
) -> list[Fold]:
    """The folds of a protocol over the subjects of a data set.

    `loso`: each subject is held out once; `groups`: subject-disjoint groups, for quick looks; `holdout`: a
    fifth of the subjects, once; `cross`: each data set of a composite once, trained on the others.

    Args:
        protocol: one of `PROTOCOLS`.
        subjects: names; a name may come more than once, as in `FlowData.subjects`.
        seed: draws the groups.
        groups: how many there are.

    Raises:
        InputError: an unknown protocol, or too few subjects, or sets, for it.
    """
    names = sorted({str(subject) for subject in subjects})
    if protocol == "holdout":
        train, held = split_subjects(names, HELD_OUT, seed=0)
        return [Fold(tuple(train), tuple(held))]
    if protocol == "loso":
        parts = [[name] for name in names]
    elif protocol == "groups":
        order = np.random.default_rng(seed).permutation(len(names))
        parts = [sorted(names[place] for place in order[start::groups]) for start in range(groups)]
    elif protocol == "cross":
        sets = sorted({set_of(name) for name in names})
        if len(sets) < 2:
            raise InputError(f"protocol cross needs two data sets or more, found {', '.join(sets) or 'none'}")
        parts = [[name for name in names if set_of(name) == held] for held in sets]
    else:
        raise InputError(f"unknown protocol {protocol!r}; accepted: {', '.join(PROTOCOLS)}")
    if len(names) < 2 or not all(parts):
        raise InputError(f"protocol {protocol} needs more subjects than the {len(names)} found")
    return [Fold(tuple(name for name in names if name not in part), tuple(part)) for part in parts]


def figures(data: FlowData, predicted: NDArray[np.int64]) -> dict[str, Any]:
    """Sample count, UF1, UAR, recall per class and confusion matrix, pooled over all clips.

    Of a composite also those of each of its sets, by `sets`; null where the data are one set.
    """
    sets = sorted({set_of(name) for name in data.subject_names})
    whole = _figures(data, predicted)
    if len(sets) < 2:
        return whole | {"sets": None}
    owner = np.array([set_of(name) for name in data.subjects])
    return whole | {
        "sets": {name: _figures(data.subset(owner == name), predicted[owner == name]) for name in sets}
    }


def _figures(data: FlowData, predicted: NDArray[np.int64]) -> dict[str, Any]:
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
    """The subjects of a data set that a model was not trained on, by its provenance.

    Names are unique over data sets, and a composite calls its people as their own sets do: who was seen in one is
    known in the other.
    """
    seen = set(provenance.get("train_subjects", []))
    return [subject for subject in data.subject_names if subject not in seen]
