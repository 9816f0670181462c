"""DTSM's controls: exact where they can be, and intervals against the metrics' own bootstrap."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from bundle_data import PATCH, SIDE, tiny_flows, write_tiny_bundle

from ptsr_edge.core.config import LABELS, ModelConfig, Preprocess, Score
from ptsr_edge.core.errors import InputError
from ptsr_edge.core.files import sha256_of
from ptsr_edge.models.checkpoint import CheckpointInfo, predict_logits, save_checkpoint
from ptsr_edge.models.ptsr import Ptsr, build_model, dynamic_counts, strain_scores
from ptsr_edge.profile.accuracy import compare_selections, dynamic_record, eager_model
from ptsr_edge.stats.classification import confusion, uar
from ptsr_edge.vision.flow import to_input


def model_of(score: Score) -> Ptsr:
    config = ModelConfig(
        name="ptsr-test", kind="ptsr", image_size=SIDE, patch_size=PATCH, dim=8, depth=2, heads=2, score=score
    )
    model = build_model(config, seed=3)
    assert isinstance(model, Ptsr)
    return model


def test_each_selection_is_the_models_own_answer_with_those_tokens() -> None:
    data, model = tiny_flows(30), model_of("class-attention")
    found = compare_selections(model, data, [16, 4, 4], seeds=2)
    assert [(entry.tokens, entry.selection, entry.seeds) for entry in found] == [
        (4, "DTSM", 1),
        (4, "random", 2),
        (4, "strain", 1),
    ]
    answers = predict_logits(model, data.flows, 4)[0].argmax(axis=1)
    assert found[0].uar == pytest.approx(uar(confusion(data.labels, answers, 3)))
    # Strain energy as the selection of a model with the same weights that selects so.
    inputs = torch.from_numpy(to_input(data.flows))
    forced = strain_scores(inputs, PATCH).topk(4, dim=1).indices
    with torch.no_grad():
        plain = model(inputs, 4, forced).logits.argmax(dim=1).numpy()
    assert found[2].uar == pytest.approx(uar(confusion(data.labels, plain, 3)))
    assert found[2].gain == pytest.approx(found[0].uar - found[2].uar)
    for entry in found[1:]:
        assert entry.gain_low is not None
        assert entry.gain_high is not None
        assert entry.gain_low <= (entry.gain or 0.0) <= entry.gain_high


def test_strain_is_no_control_of_a_model_that_selects_by_it() -> None:
    found = compare_selections(model_of("strain"), tiny_flows(), [8], seeds=1)
    assert [entry.selection for entry in found] == ["DTSM", "random"]


def test_only_the_weights_of_the_bundle_are_taken(tmp_path: Path) -> None:
    model = model_of("strain")
    info = CheckpointInfo(
        model=model.config, preprocess=Preprocess(image_size=SIDE), labels=list(LABELS), provenance={}
    )
    path = tmp_path / "weights.safetensors"
    save_checkpoint(path, model, info)
    bundle = write_tiny_bundle(tmp_path / "b", provenance={"checkpoint_sha256": sha256_of(path)})
    found = eager_model(bundle, path)
    assert found is not None
    assert torch.equal(found.pos_embed, model.pos_embed)
    assert eager_model(bundle, None) is None  # no such embedded weights
    other = write_tiny_bundle(tmp_path / "c", provenance={"checkpoint_sha256": "abc"})
    with pytest.raises(InputError, match="is not the checkpoint that ptsr-test was exported from"):
        eager_model(other, path)
    with pytest.raises(InputError, match="does not exist"):
        eager_model(bundle, tmp_path / "none.safetensors")


def test_dynamic_counts_come_from_the_export_or_are_made_here(tmp_path: Path) -> None:
    said = {"mass": 0.8, "quantiles": {"0.5": 3}, "counts": {"3": 2}}
    provenance = {"dynamic_counts": said, "calibration": {"data": "megc-flow"}}
    exported = write_tiny_bundle(tmp_path / "b", provenance=provenance)
    found = dynamic_record(exported, None, None, exported.model)
    assert found is not None
    assert (found.data, found.on, found.mass, found.counts) == ("megc-flow", "calibration", 0.8, {"3": 2})
    bundle, data = write_tiny_bundle(tmp_path / "c"), tiny_flows()
    assert dynamic_record(bundle, None, None, bundle.model) is None
    made = dynamic_record(bundle, None, data, bundle.model)  # by strain: no weights are needed
    assert made is not None
    scores = strain_scores(torch.from_numpy(to_input(data.flows)), PATCH)
    expected = np.unique(dynamic_counts(scores, 0.9).numpy(), return_counts=True)
    assert made.counts == {str(count): number for count, number in zip(*expected, strict=True)}
    assert (made.on, made.samples) == ("judged", len(data))
    attends = bundle.model.model_copy(update={"score": "class-attention"})
    assert dynamic_record(bundle, None, data, attends) is None  # its weights are not at hand
