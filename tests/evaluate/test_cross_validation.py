"""All learners go through the same folds, and a fold is the same numbers wherever it runs."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dask_cluster import dask_cluster
from fold_data import QUICK, TOY, NearestMean, composite, toy_learner

from ptsr_edge.core.errors import InputError, ParityError
from ptsr_edge.core.files import closure_digest
from ptsr_edge.data.datasets import FlowDataset
from ptsr_edge.evaluate import cross_validation
from ptsr_edge.evaluate.cross_validation import (
    Learner,
    ModelLearner,
    artifact_logits,
    cross_validate,
    deciding_versions,
)
from ptsr_edge.evaluate.evaluation import folds
from ptsr_edge.export import onnx_graph
from ptsr_edge.export.onnx_graph import export_template
from ptsr_edge.models.checkpoint import predict_logits
from ptsr_edge.models.ptsr import build_model
from ptsr_edge.train.trainer import Epoch, fit

pytestmark = pytest.mark.slow

DATA = composite()


def logits(learners: Sequence[Learner], seeds: Sequence[int] = (0, 1), **how: Any) -> list[bytes]:
    found = cross_validate(learners, DATA, "loso", seeds, **how)
    return [answers.logits.tobytes() for answers in found]


def test_every_engine_gives_the_same_bits(tmp_path: Path) -> None:
    pytest.importorskip("joblib")
    pytest.importorskip("distributed")
    learners = [toy_learner(oracle=True), NearestMean()]
    here = logits(learners)
    assert logits(learners, jobs=2) == here
    with dask_cluster(tmp_path, workers=1) as address:
        assert logits(learners, engine="dask", scheduler=address) == here
    assert here[0] != logits([toy_learner()], seeds=(0, 2))[0]


def test_training_never_sees_the_held_out_subject(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[str]] = []

    def spy(config: Any, data: FlowDataset, _recipe: Any, seed: int, **_: Any) -> object:
        seen.append(set(data.subject_names))
        return build_model(config, seed)

    monkeypatch.setattr(cross_validation, "fit", spy)
    (answers,) = cross_validate([toy_learner()], DATA, "loso", [0])
    assert [set(DATA.subject_names) - subjects for subjects in seen] == [
        {name} for name in DATA.subject_names
    ]
    assert answers.data.names == DATA.names
    assert answers.logits.shape == (1, 2, len(DATA), 3)
    assert np.isfinite(answers.logits).all()
    assert answers.oracle is None


def test_answers_stand_at_their_clips() -> None:
    """By another way: each subject's clips judged by the rest, put back by hand."""
    (answers,) = cross_validate([NearestMean()], DATA, "loso", [0])
    for fold in folds("loso", DATA.subjects):
        mine = np.isin(DATA.subjects, fold.held_out)
        expected = NearestMean().answer(DATA.of_subjects(fold.train), DATA.subset(mine), 0)["logits"]
        np.testing.assert_array_equal(answers.logits[0][:, mine], expected)
    np.testing.assert_array_equal(answers.predicted, answers.logits.argmax(axis=-1))


def test_only_the_held_out_part_is_judged_by_holdout() -> None:
    (answers,) = cross_validate([NearestMean()], DATA, "holdout", [0])
    (fold,) = folds("holdout", DATA.subjects)
    assert answers.data.subject_names == list(fold.held_out)
    assert answers.logits.shape[2] == len(answers.data) == 3


def test_kept_folds_are_taken_over_where_all_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[int] = []
    real = cross_validation.fit

    def counted(config: Any, data: FlowDataset, recipe: Any, seed: int, **more: Any) -> object:
        fitted.append(seed)
        return real(config, data, recipe, seed, **more)

    monkeypatch.setattr(cross_validation, "fit", counted)
    how: dict[str, Any] = dict(folder=tmp_path, resume=True)
    first = logits([toy_learner()], seeds=[0], **how)
    assert fitted == [0] * 4
    assert logits([toy_learner()], seeds=[0], **how) == first
    assert len(fitted) == 4
    longer = logits([toy_learner()], seeds=[0, 1], **how)
    assert fitted[4:] == [1] * 4, "a seed more needs its own folds only"
    assert longer[0].startswith(first[0])
    slower = toy_learner(recipe=toy_learner().recipe.model_copy(update={"lr": 1e-3}))
    logits([slower], seeds=[0], **how)
    assert len(fitted) == 12
    fewer = DATA.subset(np.arange(len(DATA)) != 5)
    cross_validate([toy_learner()], fewer, "loso", [0], **how)
    assert len(fitted) == 16
    monkeypatch.setattr(cross_validation, "deciding_versions", lambda: {"torch": "another"})
    logits([toy_learner()], seeds=[0], **how)
    assert len(fitted) == 20


def test_what_decides_a_fold_is_told_by_source_and_tools() -> None:
    assert deciding_versions() == {
        "code": closure_digest("ptsr_edge.evaluate.cross_validation"),
        **{tool: version(tool) for tool in cross_validation.TOOLS},
    }


@pytest.mark.parametrize(
    ("learners", "data", "words"),
    [
        ([NearestMean(), NearestMean(scale=2.0)], DATA, "names of their own"),
        ([NearestMean()], {32: DATA}, "no samples of 16 pixels"),
        (
            [NearestMean(), NearestMean(name="wide", image_size=32)],
            {16: DATA, 32: DATA.subset(np.arange(len(DATA))[::-1])},
            "the same clips in the same order",
        ),
    ],
)
def test_learners_that_cannot_be_compared(learners: list[Learner], data: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        cross_validate(learners, data, "loso", [0])


def test_progress_is_told_fold_by_fold() -> None:
    told: list[int] = []
    cross_validate([NearestMean(), toy_learner()], DATA, "cross", [0, 1], on_fold=lambda: told.append(1))
    assert len(told) == 2 * 2 * 2
    assert TOY.name == toy_learner().name


TRAIN, HELD = DATA.of_subjects(DATA.subject_names[:3]), DATA.of_subjects(DATA.subject_names[3:])


def test_a_learner_trains_by_its_recipe_and_answers_at_each_budget() -> None:
    answers = toy_learner().answer(TRAIN, HELD, seed=1)
    model = fit(TOY, TRAIN, QUICK, seed=1)
    assert list(answers) == ["logits"]
    for place, tokens in enumerate((16, 4)):
        np.testing.assert_array_equal(answers["logits"][place], predict_logits(model, HELD.flows, tokens)[0])


def test_the_control_draws_the_patches_of_each_clip() -> None:
    config = TOY.model_copy(update={"score": "random"})
    learner = ModelLearner(config, QUICK, (1.0, 0.25))
    answers = learner.answer(TRAIN, HELD, seed=1)["logits"]
    model = fit(config, TRAIN, QUICK, seed=1)
    np.testing.assert_array_equal(answers[0], predict_logits(model, HELD.flows, 16)[0])  # all are all
    assert np.abs(answers[1] - predict_logits(model, HELD.flows, 4)[0]).max() > 1e-4  # not one set for all
    np.testing.assert_array_equal(answers[1], learner.answer(TRAIN, HELD, seed=1)["logits"][1])


def test_artifacts_answer_as_the_eager_model_of_the_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    exports: list[int] = []
    real = onnx_graph.trace

    def counted(*arguments: Any) -> Any:
        exports.append(1)
        return real(*arguments)

    monkeypatch.setattr(onnx_graph, "trace", counted)
    learner = toy_learner().with_templates()
    for seed in (0, 1):  # two folds' models
        through = learner.answer(TRAIN, HELD, seed)["logits"]
        eager = toy_learner().answer(TRAIN, HELD, seed)["logits"]
        np.testing.assert_array_equal(through.argmax(axis=-1), eager.argmax(axis=-1))
        # The limit of an export in fp32; equal to the last bit they are not: another program computed them.
        np.testing.assert_allclose(through, eager, atol=1e-4)
        assert not np.array_equal(through, eager)
    assert len(exports) == 2, "one export a budget, however many folds"
    assert learner.identity()["through"] == "cpu"
    assert toy_learner().identity()["through"] == "torch"


def test_an_artifact_that_departs_from_its_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    template = export_template(TOY, 4)
    real = onnx_graph.flat_weights
    monkeypatch.setattr(onnx_graph, "flat_weights", lambda static: real(static) * np.float32(1.01))
    with pytest.raises(ParityError, match="toy at 4 tokens"):
        artifact_logits(fit(TOY, TRAIN, QUICK, seed=0), template, HELD)


def test_the_oracle_takes_the_best_epoch_of_each_subject() -> None:
    epochs: list[np.ndarray] = []

    def watch(epoch: Epoch) -> None:
        epochs.append(predict_logits(epoch.model, DATA.flows, 4)[0].argmax(axis=1))

    fit(TOY, TRAIN, QUICK, seed=0, on_epoch=watch)
    assert len(epochs) == QUICK.epochs
    # All four subjects as held out: each has an epoch of its own.
    found = toy_learner(keep_rates=(0.25,), oracle=True).answer(TRAIN, DATA, seed=0)["oracle"][0]
    for subject in DATA.subject_names:
        mine = DATA.subjects == subject
        hits = [(answers == DATA.labels)[mine].sum() for answers in epochs]
        np.testing.assert_array_equal(found[mine], epochs[int(np.argmax(hits))][mine])


def test_looking_at_the_oracle_changes_no_strict_answer() -> None:
    strict, watched = (
        toy_learner(oracle=oracle).answer(TRAIN, HELD, 0)["logits"] for oracle in (False, True)
    )
    np.testing.assert_array_equal(strict, watched)
