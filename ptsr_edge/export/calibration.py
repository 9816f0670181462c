"""Samples to calibrate and to prove on: stratified, seeded, from the training side, never from those that
accuracy is reported on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.core.errors import InputError
from ptsr_edge.core.records import Record
from ptsr_edge.data.datasets import DATA_NAMES, HELD_OUT, FlowData, load, split_subjects
from ptsr_edge.data.synthetic.clips import subject_names
from ptsr_edge.models.checkpoint import CheckpointInfo
from ptsr_edge.models.ptsr import Model, Ptsr, dynamic_counts
from ptsr_edge.vision.flow import MIN_FRAME

log = logging.getLogger("ptsr_edge")

MOST_SUBJECTS = 48
MASS = 0.9
QUANTILES = (0.5, 0.9, 0.99)


class CalibrationRecord(Record):
    """What a bundle was calibrated and proven on.

    Attributes:
        data: name of the data set.
        samples: how many there are.
        asked: how many were asked for.
        seed: of the draw.
        sha256: of flows, labels and subjects.
        subjects: whose clips they are; none of them is among those that accuracy is reported on.
        classes: samples of each class.
    """

    data: str
    samples: int
    asked: int
    seed: int
    sha256: str
    subjects: list[str]
    classes: dict[str, int]


def calibration_side(
    info: CheckpointInfo, root: Path | None, name: str | None, count: int, seed: int = 0
) -> FlowData:
    """Clips that may be calibrated on, at least twice as many as `count` where there are so many.

    Of the data that a model was trained on: clips of subjects it was trained on. Of other data: the
    training side of their `holdout` split. Of many subjects, a seeded draw.

    Args:
        info: of the model.
        root: folder of the data; `synthetic` needs none.
        name: of the data; by default what the model was trained on where that needs no folder or one is
            given, else `synthetic`.
        count: samples that will be drawn.
        seed: of the draw of subjects.

    Raises:
        InputError: unknown data, or a folder that does not hold them.
    """
    trained_on = info.provenance.get("data")
    if name is None:
        usable = trained_on in DATA_NAMES and (trained_on == "synthetic" or root is not None)
        name = str(trained_on) if usable else "synthetic"
    size = info.model.image_size
    if name == trained_on and info.provenance.get("train_subjects"):
        allowed: Sequence[str] = info.provenance["train_subjects"]
    else:
        allowed = split_subjects(load_subjects(name, root), HELD_OUT, seed=0)[0]
    wanted = min(MOST_SUBJECTS, max(8, count // 2)) if name == "synthetic" else len(allowed)
    if len(allowed) > wanted:
        drawn = np.random.default_rng(seed).choice(len(allowed), wanted, replace=False)
        allowed = [allowed[place] for place in sorted(drawn)]
    limit = max(6, -(-2 * count // len(allowed))) if name == "synthetic" else None
    return load(name, root, image_size=size, subjects=allowed, limit=limit)


def load_subjects(name: str, root: Path | None) -> list[str]:
    """The subjects of a data set; of `synthetic` without rendering any."""
    if name == "synthetic":
        return subject_names()
    return load(name, root, image_size=MIN_FRAME, limit=1).subject_names


def draw(data: FlowData, count: int, seed: int = 0) -> tuple[FlowData, CalibrationRecord]:
    """Draws samples that are spread over classes and, within a class, over subjects.

    Classes take turns, and within a class subjects do, in an order that the seed draws; so counts differ
    by one at most as long as there are clips.

    Raises:
        InputError: fewer than one sample asked for.
    """
    if count < 1:
        raise InputError(f"calibration needs at least 1 sample, got {count}")
    order = _spread(data, np.random.default_rng(seed))[:count]
    if len(order) < count:
        log.warning("calibration: %d samples asked for, %s has %d", count, data.source, len(order))
    chosen = data.subset(np.sort(order))
    counts = np.bincount(chosen.labels, minlength=len(data.label_names))
    return chosen, CalibrationRecord(
        data=data.source,
        samples=len(chosen),
        asked=count,
        seed=seed,
        sha256=chosen.digest(),
        subjects=chosen.subject_names,
        classes={label: int(number) for label, number in zip(data.label_names, counts, strict=True)},
    )


def _spread(data: FlowData, rng: np.random.Generator) -> NDArray[np.intp]:
    """All places in the order in which they are drawn."""
    shuffled = rng.permutation(len(data))
    turns: dict[tuple[int, str], int] = {}
    keys: list[tuple[int, int, int]] = []
    for place in shuffled:
        group = (int(data.labels[place]), str(data.subjects[place]))
        turns[group] = turns.get(group, 0) + 1
        keys.append((turns[group], len(keys), int(data.labels[place])))
    by_class: dict[int, list[int]] = {}
    for (_, _, label), place in sorted(zip(keys, shuffled.tolist(), strict=True)):
        by_class.setdefault(label, []).append(place)
    ranked = [(rank, label, place) for label, places in by_class.items() for rank, place in enumerate(places)]
    return np.array([place for _, _, place in sorted(ranked)], dtype=np.intp)


def budgets_from_data(model: Model, inputs: NDArray[np.float32], mass: float = MASS) -> dict[str, Any]:
    """Static budgets from DTSM's dynamic mode: quantiles of its counts over calibration samples.

    Args:
        model: PTSR; a baseline keeps all tokens and has nothing to choose.
        inputs: (n, C, S, S) float32, normalised.
        mass: share of the score that each sample's tokens must hold.

    Returns:
        `mass`, `quantiles` (the budgets, in tokens, by quantile), `counts` (count: how many samples).

    Raises:
        InputError: the model is a baseline.
    """
    import torch

    if not isinstance(model, Ptsr):
        raise InputError(f"{model.config.name} keeps all tokens: `--budgets auto` needs a PTSR")
    with torch.no_grad():
        parts = [
            dynamic_counts(model.scores(torch.from_numpy(part)), mass)
            for part in np.array_split(inputs, max(1, len(inputs) // 32))
        ]
    counts = torch.cat(parts).numpy()
    tokens = np.quantile(counts, QUANTILES, method="higher").astype(int)
    values, numbers = np.unique(counts, return_counts=True)
    return {
        "mass": mass,
        "quantiles": {f"{q:g}": int(t) for q, t in zip(QUANTILES, tokens, strict=True)},
        "counts": {str(int(v)): int(n) for v, n in zip(values, numbers, strict=True)},
    }
