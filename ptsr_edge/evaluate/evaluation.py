"""UF1, UAR and confusion matrix of a checkpoint or of a bundle's artifacts, on people that training never saw.

A protocol is strict: no held-out subject is looked at before the one evaluation; no epoch is chosen by it, no statistic
is taken from it. Judging a bundle needs its runtime only; torch is imported where a model answers in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.bundle import Bundle, Variant, private_copy
from ptsr_edge.core.config import ModelConfig, Preprocess
from ptsr_edge.core.console import progress
from ptsr_edge.core.errors import InputError, JobError, require
from ptsr_edge.data.datasets import (
    DATASETS,
    HELD_OUT,
    DatasetEntry,
    FlowDataset,
    as_for,
    find_dataset,
    load,
    refuse_root_of_rendered,
    split_subjects,
)
from ptsr_edge.export.targets.base import THROUGH_ARTIFACT, THROUGH_GRAPH
from ptsr_edge.runtimes.base import find_runtime
from ptsr_edge.session import Session, why_not_here
from ptsr_edge.sign import read_verified
from ptsr_edge.stats.classification import confusion, per_class_recall, uar, uf1
from ptsr_edge.vision.flow import to_input

if TYPE_CHECKING:
    from ptsr_edge.models.ptsr import Model

PROTOCOLS = ("loso", "groups", "holdout", "cross")
GROUPS = 5

THROUGH = ("torch", "cpu")
"""What answers for a model that a fold trains: itself, or its artifact of target `cpu` (fp32, ONNX Runtime)."""


UNIT_STRENGTH = 1.0
"""Of the ridge in `unit_ceiling`, for columns of 0 and 1."""

CEILING = (
    "what the annotators' own action units tell of the classes: a ridge regression on them, classes weighted "
    "equally, in the same folds, over the clips that have such annotations"
)


@dataclass(frozen=True)
class Fold:
    """Two sets of subjects without a common one."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]


def set_of(subject: str) -> str:
    """Returns the data set of a subject: `casme2` of `casme2/sub01`."""
    return str(subject).partition("/")[0]


def folds(
    protocol: str, subjects: Sequence[str] | NDArray[np.str_], seed: int = 0, groups: int = GROUPS
) -> list[Fold]:
    """The folds of a protocol over the subjects of a data set.

    `loso`: each subject is held out once; `groups`: subject-disjoint groups, for quick looks; `holdout`: a
    fifth of the subjects, once; `cross`: each data set of a composite once, trained on the others.

    Args:
        protocol: one of `PROTOCOLS`.
        subjects: names; a name may come more than once, as in `FlowDataset.subjects`.
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


def scores_of(data: FlowDataset, predicted: NDArray[np.int64]) -> dict[str, Any]:
    """Returns sample count, UF1, UAR, recall per class and confusion matrix, pooled over all clips.

    `sets` holds the same of each set of a composite; None where the data are one set.
    """
    sets = sorted({set_of(name) for name in data.subject_names})
    whole = _pooled(data, predicted)
    if len(sets) < 2:
        return whole | {"sets": None}
    owner = np.array([set_of(name) for name in data.subjects])
    return whole | {
        "sets": {name: _pooled(data.subset(owner == name), predicted[owner == name]) for name in sets}
    }


def _pooled(data: FlowDataset, predicted: NDArray[np.int64]) -> dict[str, Any]:
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


def unit_ceiling(
    data: FlowDataset, protocol: str = "loso", seeds: Sequence[int] = (0,), groups: int = GROUPS
) -> dict[str, Any] | None:
    """Judges what the annotated action units tell of the classes, as a model is judged that was trained in each fold.

    What the annotators saw does not settle their own label. A model that comes near this ceiling has read what the
    labels hold; what it lacks to 1 beyond that is not its fault.

    Args:
        data: all clips of the protocol.
        protocol, groups: as in `folds`.
        seeds: those that the models were run with.

    Returns:
        `what`, `n`, `subjects`, and `uf1` and `uar`, the means over the seeds; or None where no fold has annotated clips
        on both sides.
    """
    annotated = np.array([bool(units) for units in data.units] or [False] * len(data))
    if not annotated.any() or len(data.subject_names) < 2:
        return None
    columns = sorted(set().union(*data.units))
    shown = np.array([[unit in units for unit in columns] for units in data.units], dtype=np.float64)
    runs = []
    for seed in seeds:
        predicted = np.full(len(data), -1)
        for fold in folds(protocol, data.subjects, seed, groups):
            train, held = (
                annotated & np.isin(data.subjects, people) for people in (fold.train, fold.held_out)
            )
            if train.any() and held.any():
                predicted[held] = _ridge_classes(
                    shown[train], data.labels[train], shown[held], len(data.label_names)
                )
        judged = predicted >= 0
        if not judged.any():
            return None
        runs.append(_pooled(data.subset(judged), predicted[judged]))
    return {
        "what": CEILING,
        **{name: runs[0][name] for name in ("n", "subjects")},
        **{name: float(np.mean([run[name] for run in runs])) for name in ("uf1", "uar")},
    }


def _ridge_classes(
    seen: NDArray[np.float64], labels: NDArray[np.int64], held: NDArray[np.float64], classes: int
) -> NDArray[np.int64]:
    """Returns the classes (m,) of `held` (m, f) by a ridge regression on `seen` (n, f), each class of equal weight."""
    counts = np.bincount(labels, minlength=classes)
    weight = 1 / counts[labels]
    weight /= weight.mean()
    targets = np.eye(classes)[labels]
    middle, level = (np.average(values, axis=0, weights=weight) for values in (seen, targets))
    centred = seen - middle
    weighted = centred.T * weight
    solved = np.linalg.solve(
        weighted @ centred + UNIT_STRENGTH * np.eye(len(middle)), weighted @ (targets - level)
    )
    found: NDArray[np.int64] = (level + (held - middle) @ solved).argmax(axis=1)
    return found


def lines_of_ceiling(ceiling: Mapping[str, Any] | None) -> list[str]:
    """Returns the line on what `unit_ceiling` found, or none."""
    if ceiling is None:
        return []
    return [
        f"annotated action units alone: UF1 {ceiling['uf1']:.3f}  UAR {ceiling['uar']:.3f}  "
        f"(n = {ceiling['n']}, {ceiling['subjects']} subjects)  <- {ceiling['what']}"
    ]


def unseen_subjects(data: FlowDataset, provenance: dict[str, Any]) -> list[str]:
    """Returns the subjects of a data set that a model was not trained on, by its provenance.

    Names are unique over data sets, and a composite calls its people as their own sets do: who was seen in one is
    known in the other.
    """
    seen = set(provenance.get("train_subjects", []))
    return [subject for subject in data.subject_names if subject not in seen]


def evaluate_session(session: Session, data: FlowDataset) -> NDArray[np.int64]:
    """Returns an artifact's classes (n,) for all samples, one at a time as a camera would."""
    flows = progress(data.flows, session.variant.id)
    return np.array([session.predict(flow).logits.argmax() for flow in flows], dtype=np.int64)


def evaluate_graph(folder: Path, variant: Variant, data: FlowDataset) -> NDArray[np.int64]:
    """Returns the classes (n,) that the typed graph beside an engine gives for all samples, computed on the CPU.

    It stands for an engine that cannot run here, and tells what its types cost, not what TensorRT makes of them.

    Raises:
        InputError: a file of the variant is missing or has changed.
        JobError: the variant has no typed graph, or gives an answer that is not finite.
        MissingExtraError: torch is not installed.
    """
    require("torch", "train", f"computing the typed graph of {variant.id}, which cannot run here,")
    from ptsr_edge.export.targets.typed_graph import TypedGraphRunner

    graph = str(PurePosixPath(variant.artifact).with_suffix(".onnx"))
    if graph not in [entry.path for entry in variant.files]:
        raise JobError(f"{variant.id} cannot run here, and has no typed graph {graph} to stand for it")
    with private_copy(folder, [variant]) as place:
        runner = TypedGraphRunner(place / graph)
    answers = [runner.run(to_input(flow))[0] for flow in progress(data.flows, f"{variant.id}, typed graph")]
    if not np.isfinite(answers).all():
        raise JobError(f"the typed graph of {variant.id} gave an answer that is not finite")
    classes: np.ndarray = np.array(answers).argmax(axis=1)
    return classes


def judged_samples(data: FlowDataset, provenance: dict[str, Any], everyone: bool) -> tuple[FlowDataset, str]:
    """Returns the samples to judge a trained model on, and how to name that choice.

    Raises:
        InputError: training has seen every subject of the data, and `everyone` is not set.
    """
    unseen = unseen_subjects(data, provenance)
    if len(unseen) == len(data.subject_names):
        return data, "all subjects, none seen in training"
    if everyone:
        return data, f"all subjects, {len(data.subject_names) - len(unseen)} of them SEEN in training"
    if not unseen:
        raise InputError(
            f"training has seen all {len(data.subject_names)} subjects of {data.source}: nothing honest "
            "can be said on them; `--subjects all` evaluates them anyway and says so"
        )
    return data.of_subjects(unseen), "held-out subjects"


def check_classes(data: FlowDataset, name: str, labels: Sequence[str]) -> None:
    """Makes sure that a model answers the classes of the data.

    Raises:
        InputError: it answers others, or in another order.
    """
    if list(data.label_names) != list(labels):
        raise InputError(
            f"data {data.source} has the classes {', '.join(data.label_names)}; {name} answers {', '.join(labels)}"
        )


def variants_at(bundle: Bundle, rates: Sequence[float] | None) -> list[Variant]:
    """Returns the variants of a bundle that keep as many tokens as some keep rates; all where None are named.

    Raises:
        InputError: a rate that none of them has; the message lists those that there are.
    """
    if rates is None:
        return list(bundle.variants)
    wanted = {bundle.model.tokens_at(rate): rate for rate in rates}
    have = {variant.tokens: variant.keep_rate for variant in bundle.variants}
    for tokens, rate in wanted.items():
        if tokens not in have:
            known = ", ".join(f"{have[count]:g}" for count in sorted(have, reverse=True))
            raise InputError(f"the bundle has no budget {rate:g}; it has {known}")
    return [variant for variant in bundle.variants if variant.tokens in wanted]


def evaluate_bundle(
    folder: Path,
    data: FlowDataset,
    model: Model | None = None,
    threads: int | None = None,
    rates: Sequence[float] | None = None,
) -> list[dict[str, Any]]:
    """Returns the scores of a bundle's variants at some keep rates, by default all; `through` says what answered.

    An artifact answers itself; an engine that cannot run here is judged through its typed graph. With `model`,
    also how many of the eager model's classes each variant reproduces at its budget.
    """
    records = []
    eager: dict[int, NDArray[np.int64]] = {}
    for variant in variants_at(read_verified(folder), rates):
        by_graph = find_runtime(variant.target).needs_gpu and bool(why_not_here(variant, folder))
        if by_graph:
            answers = evaluate_graph(folder, variant, data)
        else:
            session = Session.open(
                folder, budget=variant.keep_rate, target=variant.target, precision=variant.precision,
                threads=threads,
            )  # fmt: skip
            answers = evaluate_session(session, data)
        through = THROUGH_GRAPH if by_graph else THROUGH_ARTIFACT
        record = {"id": variant.id, "keep_rate": variant.keep_rate, "through": through}
        record |= scores_of(data, answers)
        if model is not None:
            from ptsr_edge.models.checkpoint import predict_logits

            if variant.tokens not in eager:
                eager[variant.tokens] = predict_logits(model, data.flows, variant.tokens)[0].argmax(axis=1)
            record["agrees_with_eager"] = int((answers == eager[variant.tokens]).sum())
        records.append(record)
    return records


def default_rates(config: ModelConfig) -> list[float]:
    """Returns the keep rates that are judged where none are named."""
    return [1.0, 0.5, 0.25] if config.kind == "ptsr" else [1.0]


def evaluate_checkpoint(model: Model, data: FlowDataset, rates: Sequence[float]) -> list[dict[str, Any]]:
    """Returns the scores of the eager model at each keep rate."""
    from ptsr_edge.models.checkpoint import predict_logits

    config = model.config
    return [
        {"id": f"{config.name}-eager-k{config.tokens_at(rate)}", "keep_rate": rate}
        | scores_of(data, predict_logits(model, data.flows, config.tokens_at(rate))[0].argmax(axis=1))
        for rate in rates
    ]


def is_random(bundle: Bundle) -> bool:
    """Tells whether a bundle's weights were never trained, so that its answers mean nothing."""
    return bundle.provenance.get("kind") == "random"


def judged_data(
    name: str, root: Path | None, bundles: Sequence[Bundle], new: tuple[int, int] | None = None
) -> tuple[FlowDataset, str]:
    """Returns the samples that none of the bundles was trained on, and how to name that choice.

    Args:
        name: of the data set.
        root: its folder; synthetic data needs none.
        bundles: of one input size and one list of labels.
        new: judge that many people, so many clips of each, who are rendered for nothing else, instead of those that
            training left out.

    Raises:
        InputError: unknown data, other classes than the bundles', or no subject left; or `new` with data that are not
            rendered.
        MissingExtraError: what reads the data is not installed.
    """
    require("torch", "train", "judging accuracy")
    first = bundles[0]
    entry, how, known = find_dataset(name), first.preprocess, None
    if new is None and entry.is_rendered and first.provenance.get("data") == name:  # renders no one else
        known = first.provenance.get("held_out_subjects")
    data = (
        load(name, root, **as_for(how), subjects=known or None)
        if new is None
        else _render_new(name, entry, root, new, how)
    )
    check_classes(data, first.name, first.labels)
    protocol = ""
    for bundle in bundles:
        whole = len(data)
        data, named = judged_samples(data, bundle.provenance, everyone=False)
        protocol = "held-out subjects" if known or len(data) < whole else protocol or named
    return data, protocol if new is None else "subjects rendered to be judged alone"


def _render_new(
    name: str, entry: DatasetEntry, root: Path | None, new: tuple[int, int], preprocess: Preprocess
) -> FlowDataset:
    refuse_root_of_rendered(name, entry, root)
    if entry.render_new is None:
        able = ", ".join(known for known, other in DATASETS.items() if other.render_new)
        raise InputError(f"--subjects renders new people, which data {name} cannot; accepted: {able}")
    return entry.render_new(*new, preprocess)
