"""A fold's model answers in torch and through its artifact alike, and the oracle is what it is called."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fold_data import QUICK, TOY, composite, toy_learner

from ptsr_edge.core.errors import ParityError
from ptsr_edge.evaluate.cross_validation import ModelLearner, artifact_logits
from ptsr_edge.export import onnx_graph
from ptsr_edge.export import onnx_graph as refill
from ptsr_edge.export.onnx_graph import export_template
from ptsr_edge.models.checkpoint import predict_logits
from ptsr_edge.models.ptsr import Model
from ptsr_edge.train.trainer import fit

DATA = composite()
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

    monkeypatch.setattr(refill, "trace", counted)
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
    real = refill.flat_weights
    monkeypatch.setattr(refill, "flat_weights", lambda static: real(static) * np.float32(1.01))
    with pytest.raises(ParityError, match="toy at 4 tokens"):
        artifact_logits(fit(TOY, TRAIN, QUICK, seed=0), template, HELD)


def test_the_oracle_takes_the_best_epoch_of_each_subject() -> None:
    epochs: list[np.ndarray] = []

    def watch(model: Model) -> None:
        epochs.append(predict_logits(model, DATA.flows, 4)[0].argmax(axis=1))

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
