"""Which variants stand in a profile; what `profile` refuses is tested through its command."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from bundle_data import write_tiny_bundle

from ptsr_edge.bundle import Bundle, read_bundle
from ptsr_edge.core.config import MODELS
from ptsr_edge.core.errors import InputError, JobError
from ptsr_edge.profile import variants
from ptsr_edge.profile.results import samples_file
from ptsr_edge.profile.variants import (
    ALIKE,
    baseline_training,
    baselines_for,
    check_same_model,
    choose_baselines,
    exported_baseline,
    given_baseline,
    read_bundles,
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
    [reference] = given_baseline(folders[1], next(iter(bundles.values())))
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


def test_the_baseline_is_fp32_on_the_bundles_target(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, vit = (read_bundle(folder) for folder in folders)
    only = vit.variants[0]
    kinds = [("trt", "fp32"), ("cpu", "int8"), ("cpu", "fp32"), ("openvino", "fp32")]
    many = [only.model_copy(update={"id": f"{t}-{p}", "target": t, "precision": p}) for t, p in kinds]
    folder = folders[1].parent / "many"
    folder.mkdir()
    (folder / "bundle.json").write_text(
        vit.model_copy(update={"variants": many}).model_dump_json(by_alias=True), encoding="utf-8"
    )

    def chosen(bundle: Bundle) -> list[str]:
        return [one.id for one in choose_baselines(given_baseline(folder, bundle), [bundle])]

    quantized = first.model_copy(
        update={"variants": [first.variants[0].model_copy(update={"precision": p}) for p in ("fp32", "int8")]}
    )
    # The baseline itself is no second reference, and a target that no bundle has is none at all.
    assert chosen(first) == ["cpu-fp32"]
    assert chosen(quantized) == ["cpu-fp32", "cpu-int8"]
    assert chosen(first.model_copy(update={"target": "openvino"})) == ["openvino-fp32", "cpu-fp32"]
    # What all is measured against has to run: not without its runtime, and no engine where there is no GPU.
    with monkeypatch.context() as patch:
        patch.setattr(variants, "find_spec", lambda name: None if name == "onnxruntime" else find_spec(name))
        assert chosen(first) == ["openvino-fp32", "cpu-fp32"]
    monkeypatch.setattr(variants, "cuda_devices", list)
    assert chosen(first.model_copy(update={"target": "trt"})) == ["cpu-fp32"]


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
    assert {one.variant.target for one in exported_baseline([engines], tmp_path)} == {"cpu"}


def test_the_baseline_has_the_classes_of_the_model(folders: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("torch")
    model = MODELS["ptsr-tiny"].model_copy(update={"classes": 2})
    own = read_bundle(folders[0]).model_copy(update={"model": model, "labels": ["frown", "smile"]})
    baseline = exported_baseline([own], tmp_path)[0].bundle
    assert (baseline.labels, baseline.model.classes) == (["frown", "smile"], 2)
    assert baseline.provenance["kind"] == "random"  # the embedded ones answer other classes


def test_the_baselines_beside_the_bundles_are_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    bundles = {place: write_tiny_bundle(place, [0.5]) for place in (one, other)}
    write_tiny_bundle(tmp_path / "other-baseline", [1.0], kind="vit")
    [found] = baselines_for(bundles, None, tmp_path)
    assert (found.folder, found.shown) == (tmp_path / "other-baseline", "other-baseline")
    assert "other-baseline, made by the export" in capsys.readouterr().err
    # What is named beats what lies beside.
    write_tiny_bundle(tmp_path / "vit", [1.0], kind="vit")
    assert [one.folder for one in baselines_for(bundles, tmp_path / "vit", tmp_path)] == [tmp_path / "vit"]
    # Two with one set of weights are one reference of a kind; two with other weights are none.
    write_tiny_bundle(tmp_path / "one-baseline", [1.0], kind="vit")
    assert [one.folder for one in baselines_for(bundles, None, tmp_path)] == [tmp_path / "one-baseline"]
    write_tiny_bundle(tmp_path / "one-baseline", [1.0], kind="vit", provenance={"checkpoint_sha256": "abc"})
    with pytest.raises(InputError, match="one-baseline and .*other-baseline differ in their weights"):
        baselines_for(bundles, None, tmp_path)


def test_a_precision_that_the_baseline_cannot_have_leaves_fp32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    from ptsr_edge.export import exporter

    bundle = write_tiny_bundle(tmp_path / "ptsr", [0.5])
    int8 = bundle.variants[0].model_copy(update={"precision": "int8"})
    bundle = bundle.model_copy(update={"variants": [*bundle.variants, int8]})
    export = exporter.export_baseline

    def without_quantizer(*arguments: Any, **options: Any) -> Bundle:
        if "int8" in options["precisions"]:
            raise JobError("no quantizer here")
        return export(*arguments, **options)

    monkeypatch.setattr(exporter, "export_baseline", without_quantizer)
    assert [one.kind for one in exported_baseline([bundle], tmp_path)] == [("cpu", "fp32")]
    assert "made in fp32 for cpu alone: no quantizer here" in capsys.readouterr().err
