"""Folds are subject-disjoint, nobody is judged who was seen in training, and artifacts answer as the eager model."""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptsr_edge.bundle import describe_file, read_bundle
from ptsr_edge.core.config import LABELS, Preprocess
from ptsr_edge.core.errors import InputError, JobError
from ptsr_edge.data.datasets import FlowDataset, load
from ptsr_edge.evaluate.cli import lines_of
from ptsr_edge.evaluate.evaluation import (
    Fold,
    evaluate_bundle,
    evaluate_graph,
    folds,
    judged_samples,
    scores_of,
    set_of,
    unit_ceiling,
    unseen_subjects,
)
from ptsr_edge.export.targets.typed_graph import TypedGraphRunner
from ptsr_edge.models.checkpoint import load_checkpoint, predict_logits
from ptsr_edge.runtimes.build_on_device import cuda_devices


def toy_data(subjects: int = 6, clips: int = 3) -> FlowDataset:
    rng = np.random.default_rng(0)
    count = subjects * clips
    return FlowDataset(
        flows=rng.normal(size=(count, 16, 16, 3)).astype(np.float32),
        labels=np.arange(count, dtype=np.int64) % 3,
        subjects=np.repeat([f"s{number}" for number in range(subjects)], clips),
        names=[f"clip{number}" for number in range(count)],
        label_names=LABELS,
        preprocess=Preprocess(image_size=16),
        source="toy",
    )


@pytest.mark.parametrize(("protocol", "count"), [("loso", 10), ("groups", 5), ("holdout", 1)])
def test_folds_are_disjoint_and_complete(protocol: str, count: int) -> None:
    names = [f"s{number}" for number in range(10)]
    made = folds(protocol, names * 3)
    assert len(made) == count
    for fold in made:
        assert not set(fold.train) & set(fold.held_out)
        assert set(fold.train) | set(fold.held_out) == set(names)
    held = [name for fold in made for name in fold.held_out]
    assert len(held) == len(set(held))
    if protocol != "holdout":
        assert set(held) == set(names)


def test_groups_depend_on_the_seed_and_nothing_else() -> None:
    names = [f"s{number}" for number in range(11)]
    assert folds("groups", names, 1) == folds("groups", names[::-1], 1)
    assert folds("groups", names, 1) != folds("groups", names, 2)


def test_as_many_groups_as_are_asked_for() -> None:
    names = [f"s{number}" for number in range(7)]
    made = folds("groups", names, 0, groups=3)
    assert sorted(len(fold.held_out) for fold in made) == [2, 2, 3]
    assert sorted(name for fold in made for name in fold.held_out) == names


def test_each_set_of_a_composite_is_held_out_in_turn() -> None:
    made = folds("cross", ["smic/s1", "casme2/sub02", "samm/006", "casme2/sub01", "smic/s1"])
    assert [{set_of(name) for name in fold.held_out} for fold in made] == [{"casme2"}, {"samm"}, {"smic"}]
    assert made[2] == Fold(("casme2/sub01", "casme2/sub02", "samm/006"), ("smic/s1",))


@pytest.mark.parametrize(
    ("protocol", "names", "words"),
    [("leave-one-out", ["a", "b"], "loso, groups, holdout, cross"), ("loso", ["a"], "the 1 found"),
     ("groups", ["a", "b", "c"], "the 3 found"), ("cross", ["a/1", "a/2"], "two data sets or more, found a")],
)  # fmt: skip
def test_refused(protocol: str, names: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        folds(protocol, names)


def test_scores_pool_all_clips() -> None:
    # By hand: 2 of 2 negatives, 1 of 2 positives (the other called negative), 1 of 2 surprises
    # (the other called positive). Recalls 1, 1/2, 1/2: UAR 2/3. F1 = 2 TP / (2 TP + FP + FN):
    # 4/5, 2/4, 2/3: UF1 .6556.
    data = toy_data(2, 3).subset(np.array([0, 3, 1, 4, 2, 5]))
    found = scores_of(data, np.array([0, 0, 1, 0, 2, 1]))
    assert found["uar"] == pytest.approx(2 / 3)
    assert found["uf1"] == pytest.approx((4 / 5 + 2 / 4 + 2 / 3) / 3)
    assert found["recall"] == {"negative": 1.0, "positive": 0.5, "surprise": 0.5}
    assert found["n"] == 6
    assert found["subjects"] == 2


def test_unseen_subjects_by_provenance() -> None:
    data = toy_data(4)
    assert unseen_subjects(data, {"data": "toy", "train_subjects": ["s0", "s2"]}) == ["s1", "s3"]
    # A composite and its sets call a person alike: who was seen in one is known in the other.
    assert unseen_subjects(data, {"data": "other", "train_subjects": ["s0"]}) == ["s1", "s2", "s3"]
    assert unseen_subjects(data, {"data": "other", "train_subjects": ["t0"]}) == data.subject_names


SUBJECTS = ["synthetic/001", "synthetic/002", "synthetic/003"]


@pytest.fixture(scope="module")
def clips() -> FlowDataset:
    return load("synthetic", image_size=32, subjects=SUBJECTS, limit=4)


def test_artifacts_give_the_eager_classes_at_every_budget(
    tiny_bundle: Path, tiny_checkpoint: Path, clips: FlowDataset
) -> None:
    model, _ = load_checkpoint(tiny_checkpoint)
    records = evaluate_bundle(tiny_bundle, clips, model, threads=1)
    assert [record["keep_rate"] for record in records] == [1.0, 0.5, 0.25]
    assert {record["through"] for record in records} == {"artifact"}
    assert all(record["agrees_with_eager"] == record["n"] == 12 for record in records)
    assert all(np.sum(record["confusion"]) == 12 for record in records)


def test_typed_graphs_stand_for_engines_and_that_is_said(
    graphs_only: Path, tiny_checkpoint: Path, clips: FlowDataset
) -> None:
    model, _ = load_checkpoint(tiny_checkpoint)
    records = evaluate_bundle(graphs_only, clips, model)
    assert [record["id"] for record in records] == ["ptsr-test-trt-fp16-k16", "ptsr-test-trt-fp16-k4"]
    for record, tokens in zip(records, (16, 4), strict=True):
        assert record["through"] == "typed graph computed on the CPU"
        # fp16 rounds these logits by less than a hundredth: no class of the 12 clips changes.
        exact = predict_logits(model, clips.flows, tokens)[0]
        margins = np.diff(np.sort(exact, axis=1)[:, -2:])[:, 0]
        assert record["agrees_with_eager"] >= (margins > 0.02).sum() >= 8
    for line in lines_of(records):
        assert line.endswith("[typed graph computed on the CPU: no engine ran]")


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt-rtx is missing: the extra trt-rtx brings it",
)
@pytest.mark.skipif(bool(cuda_devices()), reason="a GPU is here, which runs the engine itself")
def test_a_plan_is_judged_through_the_graph_beside_it(
    graphs_only: Path, typed_bundle: Callable[..., Path], clips: FlowDataset, tmp_path: Path
) -> None:
    folder = typed_bundle(tmp_path / "bundle", flavour="tensorrt-rtx", compute_capabilities=["8.6"])
    assert all(variant.artifact.endswith(".plan") for variant in read_bundle(folder).variants)
    records = evaluate_bundle(folder, clips)
    assert {record["through"] for record in records} == {"typed graph computed on the CPU"}
    assert records == evaluate_bundle(graphs_only, clips)


@pytest.mark.parametrize("name", ["ptsr-test-trt-fp16-k4.onnx", "weights-trt-fp16.bin"])
def test_a_typed_graph_that_has_changed_is_not_judged(
    graphs_only: Path, clips: FlowDataset, tmp_path: Path, name: str
) -> None:
    folder = shutil.copytree(graphs_only, tmp_path / "bundle")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match=f"{name} has changed since it was exported"):
        evaluate_bundle(folder, clips)


def test_an_engine_without_its_typed_graph_cannot_be_judged(
    graphs_only: Path, clips: FlowDataset, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(graphs_only, tmp_path / "bundle"))
    bundle = read_bundle(folder)
    engine = folder / "alone.plan"
    engine.write_bytes(b"plan")
    alone = bundle.variants[0].model_copy(
        update={"artifact": engine.name, "files": [describe_file(folder, engine)]}
    )
    with pytest.raises(JobError, match=r"cannot run here, and has no typed graph alone\.onnx"):
        evaluate_graph(folder, alone, clips)


def test_a_typed_graph_that_answers_nothing_finite_is_a_failed_job(
    graphs_only: Path, clips: FlowDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TypedGraphRunner, "run", lambda *_: (np.full(3, np.inf, np.float32), None))
    with pytest.raises(JobError, match="gave an answer that is not finite"):
        evaluate_graph(graphs_only, read_bundle(graphs_only).variants[0], clips)


def test_subjects_seen_in_training_are_left_out_or_said(clips: FlowDataset) -> None:
    provenance = {"data": "synthetic", "train_subjects": ["synthetic/001", "synthetic/099"]}
    judged, words = judged_samples(clips, provenance, everyone=False)
    assert judged.subject_names == SUBJECTS[1:]
    assert words == "held-out subjects"
    judged, words = judged_samples(clips, provenance, everyone=True)
    assert judged.subject_names == SUBJECTS
    assert "1 of them SEEN" in words
    with pytest.raises(InputError, match="--subjects all"):
        judged_samples(clips, {"data": "synthetic", "train_subjects": SUBJECTS}, everyone=False)


def annotated(units: dict[int, list[int]], **changes: Any) -> FlowDataset:
    """Toy data whose clips show the units of their class."""
    data = dataclasses.replace(toy_data(), **changes)
    return dataclasses.replace(data, units=[frozenset(units[int(label)]) for label in data.labels])


def test_units_that_tell_every_class_reach_the_top() -> None:
    found = unit_ceiling(annotated({0: [4, 7], 1: [12], 2: [1, 2]}))
    assert found is not None
    assert (found["uf1"], found["uar"], found["n"], found["subjects"]) == (1, 1, 18, 6)


def test_units_that_two_classes_share_are_a_ceiling() -> None:
    found = unit_ceiling(annotated({0: [4], 1: [4], 2: [1]}), "groups", seeds=(0, 1), groups=3)
    assert found is not None
    assert found["uar"] == pytest.approx(2 / 3)
    assert found["uf1"] < 2 / 3


def test_nobody_tells_the_ceiling_of_himself() -> None:
    """Each person has units of his own: nothing that is learnt from others tells his classes apart."""
    data = toy_data()
    units = [
        frozenset([3 * int(name[1:]) + int(label) + 1])
        for name, label in zip(data.subjects, data.labels, strict=True)
    ]
    found = unit_ceiling(dataclasses.replace(data, units=units))
    assert found is not None
    assert found["uar"] == pytest.approx(1 / 3)


def test_clips_without_units_are_left_out_of_the_ceiling() -> None:
    data = annotated({0: [4], 1: [12], 2: []})
    found = unit_ceiling(data)
    assert found is not None
    assert (found["n"], found["subjects"]) == (12, 6)
    one_set_only = dataclasses.replace(
        data,
        subjects=np.array([f"{'ab'[place >= 9]}/{name}" for place, name in enumerate(data.subjects)]),
        units=[units if place < 9 else frozenset() for place, units in enumerate(data.units)],
    )
    assert unit_ceiling(one_set_only, "cross") is None  # nothing to learn from where the other set is judged
    assert unit_ceiling(toy_data()) is None
    assert unit_ceiling(data.of_subjects(["s0"])) is None


def test_units_go_with_their_clips() -> None:
    data = annotated({0: [4], 1: [12], 2: [1]})
    part = data.of_subjects(["s2", "s4"])
    assert [(frozenset([[4], [12], [1]][label])) for label in part.labels] == part.units
    assert toy_data().of_subjects(["s2"]).units == []
