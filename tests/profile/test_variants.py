"""Which variants stand in a profile; what `profile` refuses is tested through its command."""

from __future__ import annotations

from pathlib import Path

import pytest
from bundle_data import write_tiny_bundle

from ptsr_edge.bundle import Bundle, read_bundle
from ptsr_edge.core.config import MODELS
from ptsr_edge.core.errors import InputError
from ptsr_edge.profile import variants
from ptsr_edge.profile.results import samples_file
from ptsr_edge.profile.variants import (
    ALIKE,
    baseline_training,
    check_same_model,
    exported_baseline,
    given_baseline,
    read_bundles,
    same_precision_baselines,
    shown_path,
    variants_of,
)

pytestmark = pytest.mark.slow


def test_shown_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown_path(tmp_path / "out" / "bundle") == "out/bundle"
    assert shown_path(Path("out/bundle")) == "out/bundle"
    assert shown_path(tmp_path.parent / "elsewhere" / "bundle") == "bundle"


def test_two_bundles_of_one_model_have_ids_of_their_own(folders: tuple[Path, Path], tmp_path: Path) -> None:
    bundles = {tmp_path / name: write_tiny_bundle(tmp_path / name, [0.5]) for name in ("plain", "other")}
    reference = given_baseline(folders[1], next(iter(bundles.values())))
    found = variants_of(bundles, reference)
    assert [one.id for one in found] == ["plain/ptsr-test-cpu-fp32-k8", "other/ptsr-test-cpu-fp32-k8"]
    assert [samples_file(one.id) for one in found] == [
        "samples/plain--ptsr-test-cpu-fp32-k8.npz",
        "samples/other--ptsr-test-cpu-fp32-k8.npz",
    ]
    twins = {tmp_path / place / "plain": bundles[tmp_path / "plain"] for place in "ab"}
    with pytest.raises(InputError, match="two bundles of one folder name"):
        variants_of(twins, reference)


def test_a_bundle_given_twice_is_refused(folders: tuple[Path, Path]) -> None:
    assert list(read_bundles(folders)) == list(folders)
    with pytest.raises(InputError, match="a bundle was given twice"):
        read_bundles([folders[0], folders[1] / ".." / folders[0].name])


def test_the_baseline_is_fp32_on_the_bundles_target(folders: tuple[Path, Path]) -> None:
    first, vit = (read_bundle(folder) for folder in folders)
    only = vit.variants[0]
    kinds = [("trt", "fp32"), ("cpu", "int8"), ("cpu", "fp32"), ("openvino", "fp32")]
    many = [only.model_copy(update={"id": f"{t}-{p}", "target": t, "precision": p}) for t, p in kinds]
    folder = folders[1].parent / "many"
    folder.mkdir()
    (folder / "bundle.json").write_text(
        vit.model_copy(update={"variants": many}).model_dump_json(by_alias=True), encoding="utf-8"
    )
    assert given_baseline(folder, first).id == "cpu-fp32"
    reference = given_baseline(folder, first)
    quantized = first.model_copy(
        update={"variants": [first.variants[0].model_copy(update={"precision": p}) for p in ("fp32", "int8")]}
    )
    # The baseline itself is no second reference, and a target that no bundle has is none at all.
    assert [one.id for one in same_precision_baselines(folder, reference, [quantized])] == ["cpu-int8"]
    assert same_precision_baselines(folder, reference, [first]) == []
    elsewhere = first.model_copy(update={"target": "openvino"})
    assert given_baseline(folder, elsewhere).id == "openvino-fp32"


def test_bundles_of_one_model_may_differ_in_target_and_variants(folders: tuple[Path, Path]) -> None:
    first = read_bundle(folders[0])
    other = first.model_copy(update={"target": "openvino", "variants": first.variants[:1]})
    assert check_same_model({folders[0]: first, folders[1]: other}) is first


def test_a_baseline_that_was_trained_otherwise_is_told(folders: tuple[Path, Path]) -> None:
    ours, vit = (read_bundle(folder) for folder in folders)
    recipe = {"epochs": 10, "lr": 0.001, "budgets": [1.0, 0.5]}
    same = {"kind": "trained", "data": "synthetic", "data_sha256": "a", "train_subjects": ["s1"], "seed": 0}

    def bundles(**its: object) -> tuple[Bundle, Bundle]:
        provenance = {**same, "recipe": recipe}
        return (
            ours.model_copy(update={"provenance": provenance}),
            vit.model_copy(update={"provenance": provenance | its}),
        )

    assert baseline_training(*bundles(recipe=recipe | {"budgets": [1.0]})) == ALIKE
    assert baseline_training(*bundles(seed=1, recipe=recipe | {"epochs": 2})) == (
        "otherwise than the model, in seed, epochs (10 for the model, 2 for the baseline)"
    )
    assert baseline_training(*bundles(train_subjects=["s2"])) == "otherwise than the model, in train subjects"
    assert baseline_training(*bundles(kind="random")) == "not at all: random weights"


def test_the_baseline_of_engines_runs_on_the_processor_where_there_is_no_gpu(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    engines = read_bundle(folders[0]).model_copy(update={"target": "trt", "model": MODELS["ptsr-nano"]})
    monkeypatch.setattr(variants, "cuda_devices", list)
    assert exported_baseline(engines, tmp_path).variant.target == "cpu"


def test_the_baseline_has_the_classes_of_the_model(folders: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("torch")
    model = MODELS["ptsr-tiny"].model_copy(update={"classes": 2})
    own = read_bundle(folders[0]).model_copy(update={"model": model, "labels": ["frown", "smile"]})
    baseline = exported_baseline(own, tmp_path).bundle
    assert (baseline.labels, baseline.model.classes) == (["frown", "smile"], 2)
    assert baseline.provenance["kind"] == "random"  # the embedded ones answer other classes
