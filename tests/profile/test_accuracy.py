"""The accuracy part of a profile: through the artifacts, paired, by subject, without names."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from bundle_data import PATCH, SIDE, profiled, tiny_flows, write_tiny_bundle

from ptsr_edge.bundle import read_bundle
from ptsr_edge.core.config import LABELS, ModelConfig, Preprocess
from ptsr_edge.core.errors import InputError
from ptsr_edge.core.files import sha256_of
from ptsr_edge.models.checkpoint import CheckpointInfo, predict_logits, save_checkpoint
from ptsr_edge.models.ptsr import Ptsr, build_model, dynamic_counts, strain_scores
from ptsr_edge.profile.accuracy import (
    AccuracyResults,
    compare_selections,
    dynamic_record,
    eager_model,
    evaluate_variant,
    evaluate_variants,
    gray_picture,
    judged_record,
    kept_patches,
)
from ptsr_edge.session import Session
from ptsr_edge.stats.classification import confusion, paired_bootstrap, uar, uf1
from ptsr_edge.vision.flow import to_input

pytestmark = pytest.mark.slow


def test_accuracy_is_the_artifacts_own(folders: tuple[Path, Path]) -> None:
    bundle, _ = folders
    variant = read_bundle(bundle).variants[1]
    data = tiny_flows()
    found = evaluate_variant(bundle, variant, data, "held-out subjects", threads=1)
    # The same through the public call, sample by sample, and the metrics' own tested formulas.
    session = Session.open(bundle, budget=0.5)
    labels = [data.label_names.index(session.predict(flow).label) for flow in data.flows]
    counts = confusion(data.labels, np.array(labels), 3)
    assert found.confusion == counts.tolist()
    assert (found.n, found.uar, found.uf1) == (12, uar(counts), uf1(counts))
    assert found.protocol == "held-out subjects"


def test_recorded_data_is_never_shown(folders: tuple[Path, Path]) -> None:
    bundle = read_bundle(folders[0])
    licensed = dataclasses.replace(tiny_flows(), source="megc-flow")
    assert kept_patches(bundle, {"half": (folders[0], bundle.variants[1])}, licensed) is None
    shown = kept_patches(bundle, {"half": (folders[0], bundle.variants[1])}, tiny_flows())
    assert shown is not None
    assert shown.kept == {"half": [list(range(8))] * 3}


def test_a_variant_that_keeps_all_shows_nothing(folders: tuple[Path, Path]) -> None:
    bundle = read_bundle(folders[0])
    shown = kept_patches(bundle, {"all": (folders[0], bundle.variants[0])}, tiny_flows())
    assert shown is not None
    assert shown.kept == {}


@pytest.mark.parametrize(
    ("size", "grid", "side"),
    [(112, 14, 56), (224, 14, 56), (28, 7, 28), (16, 4, 16), (120, 5, 40), (118, 59, 118)],
)
def test_pictures_keep_whole_patches(size: int, grid: int, side: int) -> None:
    # 120 of 5 patches: steps 2 (60 a side), then 3 (40): the first that fits into 56. 118 of 59 patches:
    # a patch is 2 pixels, and 59 a side is still too many, so nothing is averaged.
    strain = np.zeros((size, size), dtype=np.float32)
    strain[: size // grid, : size // grid] = 2.0
    picture = np.array(gray_picture(strain, grid))
    assert picture.shape == (side, side)
    assert picture[: side // grid, : side // grid].min() == picture.max() == 255
    assert picture.sum() == 255 * (side // grid) ** 2
    assert np.array(gray_picture(strain * 0, grid)).max() == 0


def test_answers_truth_and_subjects_can_be_paired_again(folders: tuple[Path, Path]) -> None:
    data, references = tiny_flows(24), profiled(folders[1])
    found = evaluate_variants(references, profiled(folders[0]), (data, "held-out subjects"), (), threads=1)
    assert found.judged is not None
    assert found.judged.truth == data.labels.tolist()
    base = found.accuracies[references[0].id]
    for accuracy in found.accuracies.values():
        assert accuracy.predicted is not None
        hits = np.array(accuracy.predicted) == data.labels
        assert accuracy.uar == pytest.approx(np.mean([hits[data.labels == k].mean() for k in range(3)]))
        expected = paired_bootstrap(
            data.labels, np.array(base.predicted), np.array(accuracy.predicted), data.subjects, classes=3
        )
        assert (accuracy.uar_drop, accuracy.uar_drop_low, accuracy.uar_drop_high) == pytest.approx(expected)
    assert base.is_told_apart is False


def test_what_cannot_run_here_is_not_judged(folders: tuple[Path, Path]) -> None:
    base, *variants = profiled(folders[1]) + profiled(folders[0])
    refused = variants[1].id
    found = evaluate_variants([base], variants, (tiny_flows(), "x"), [refused], threads=1)
    assert set(found.accuracies) == {base.id, variants[0].id}
    assert found.kept_patches is not None
    assert refused not in found.kept_patches.kept


def test_subjects_become_numbers() -> None:
    data = dataclasses.replace(
        tiny_flows(4), subjects=np.array(["casme2/b", "casme2/a", "casme2/b", "smic/c"])
    )
    record = judged_record(data)
    assert record.subject == [0, 1, 0, 2]
    assert "casme2" not in record.model_dump_json()


def test_nothing_is_judged_without_samples(folders: tuple[Path, Path]) -> None:
    found = evaluate_variants(profiled(folders[1]), profiled(folders[0]), None, (), threads=1)
    assert found == AccuracyResults()


def test_a_comparison_of_selections_needs_the_weights(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluate_variants(
        profiled(folders[1]), profiled(folders[0]), (tiny_flows(), "x"), (), threads=1, control_seeds=1
    )
    assert found.controls is None
    assert "DTSM is not compared with random and strain selection" in capsys.readouterr().err


def model_of(score: str) -> Ptsr:
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


def test_strain_is_no_baseline_of_a_model_that_selects_by_it() -> None:
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
    found = dynamic_record(exported, None, None)
    assert found is not None
    assert (found.data, found.on, found.mass, found.counts) == ("megc-flow", "calibration", 0.8, {"3": 2})
    bundle, data = write_tiny_bundle(tmp_path / "c"), tiny_flows()
    assert dynamic_record(bundle, None, None) is None
    made = dynamic_record(bundle, None, data)  # by strain: no weights are needed
    assert made is not None
    scores = strain_scores(torch.from_numpy(to_input(data.flows)), PATCH)
    expected = np.unique(dynamic_counts(scores, 0.9).numpy(), return_counts=True)
    assert made.counts == {str(count): number for count, number in zip(*expected, strict=True)}
    assert (made.on, made.samples) == ("judged", len(data))
    attends = bundle.model.model_copy(update={"score": "class-attention"})
    attending = bundle.model_copy(update={"model": attends})
    assert dynamic_record(attending, None, data) is None  # its weights are not at hand
