"""The whole measurement on small real graphs: what is recorded, and why results are missing. No test looks at a time."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_data import PATCHES, SIDE, TRAINED, check_reasons, tiny_flows, write_tiny_bundle

import ptsr_edge.export.calibration  # noqa: F401 - takes data.load by name: before a test replaces it
from ptsr_edge.bundle import Bundle, read_bundle, write_bundle
from ptsr_edge.core.config import MODELS
from ptsr_edge.core.errors import InputError, JobError
from ptsr_edge.core.files import sha256_of
from ptsr_edge.data.datasets import FlowDataset
from ptsr_edge.models.checkpoint import embedded_checkpoint
from ptsr_edge.profile import profiler
from ptsr_edge.profile import timing as timing_module
from ptsr_edge.profile.profiler import (
    ALIKE,
    baseline_training,
    baselines_for,
    check_same_model,
    choose_baselines,
    exported_baseline,
    given_baseline,
    profile_bundles,
    read_bundles,
    variants_of,
    warn_of_load,
)
from ptsr_edge.profile.results import samples_file
from ptsr_edge.profile.schema import NEW_CLIPS
from ptsr_edge.profile.timing import TimingConfig
from ptsr_edge.profile.worker import shown_path

SHORT = TimingConfig(duration_s=0.05, min_runs=20, block=2)

pytestmark = pytest.mark.usefixtures("short_runs")


def test_accuracy_and_kept_patches_of_held_out_subjects(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, baseline = folders
    asked: list[Any] = []

    def load(name: str, root: Path | None, **more: Any) -> FlowDataset:
        asked.append((name, root, more))
        return tiny_flows()

    monkeypatch.setattr("ptsr_edge.evaluate.evaluation.load", load)
    record = profile_bundles([bundle], out=tmp_path / "p", baseline=baseline, data="synthetic", timing=SHORT)
    # The provenance names who was held out: nobody else is loaded.
    how = {"image_size": SIDE, "flow": read_bundle(bundle).preprocess.flow, "crop": "wide"}
    assert asked == [("synthetic", None, {**how, "subjects": ["s000", "s001"]})]
    base = record.variants[0].accuracy
    assert base is not None
    for row in record.variants:
        assert row.accuracy is not None
        assert row.accuracy.protocol == "held-out subjects"
        assert row.accuracy.uar_drop == pytest.approx(base.uar - row.accuracy.uar)
        check_reasons(row)
    assert record.data_is_rendered
    kept = record.kept_patches
    assert kept is not None
    # The first of each class; the graph at half the budget keeps the first half, by construction.
    assert kept.names == ["clip0", "clip1", "clip2"]
    assert kept.labels == ["negative", "positive", "surprise"]
    assert kept.kept == {"ptsr-test-cpu-fp32-k8": [list(range(PATCHES // 2))] * 3}
    assert np.shape(kept.strain) == (3, SIDE, SIDE)


def test_people_are_rendered_to_be_judged(folders: tuple[Path, Path], tmp_path: Path) -> None:
    bundle, baseline = folders
    record = profile_bundles(
        [bundle], out=tmp_path / "p", baseline=baseline, data="synthetic", subjects=4, timing=SHORT
    )
    assert record.judged is not None
    assert record.judged.subject == [person for person in range(4) for _ in range(NEW_CLIPS)]
    assert "--data synthetic --subjects 4" in record.command
    assert {row.accuracy.protocol for row in record.variants if row.accuracy} == {
        "subjects rendered to be judged alone"
    }
    assert record.kept_patches is not None
    assert all(name.startswith("synthetic/new-") for name in record.kept_patches.names)


def test_weights_that_a_name_stands_for_are_told(tmp_path: Path) -> None:
    def named(name: str, **provenance: str) -> bool | None:
        folder = tmp_path / "-".join([name, *provenance])
        write_tiny_bundle(folder, [1.0], name=name, provenance={"kind": "trained", **provenance})
        write_tiny_bundle(tmp_path / "vit", [1.0], kind="vit", name=name.replace("ptsr", "vit"))
        out = tmp_path / f"{folder.name}-profile"
        return profile_bundles(
            [folder], out=out, baseline=tmp_path / "vit", timing=SHORT
        ).weights_are_named  # fmt: skip

    embedded = embedded_checkpoint("ptsr-tiny")
    assert embedded is not None
    assert named("ptsr-tiny", checkpoint_sha256=sha256_of(embedded)) is True
    assert named("ptsr-tiny") is False


@pytest.mark.parametrize("random", ["both", "baseline", "model"])
def test_random_weights_have_no_accuracy(
    random: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ptsr_edge.evaluate.evaluation.load", lambda *_, **__: tiny_flows())
    split = TRAINED | {"held_out_subjects": ["s000"]}
    ours, its = ({"kind": "random"} if random in ("both", one) else split for one in ("model", "baseline"))
    write_tiny_bundle(tmp_path / "ptsr", [0.5], provenance=ours)
    write_tiny_bundle(tmp_path / "vit", [1.0], kind="vit", provenance=its)
    record = profile_bundles(
        [tmp_path / "ptsr"], out=tmp_path / "p", baseline=tmp_path / "vit", data="synthetic", timing=SHORT
    )
    vit, ptsr = record.variants
    for row in record.variants:
        check_reasons(row)
    assert vit.accuracy is None
    assert vit.missing["accuracy"].kind == "random_weights"
    if random == "baseline":
        assert ptsr.accuracy is not None
        assert ptsr.missing["accuracy.uar_drop"].reason == (
            "no drop of UAR: the weights of the baseline vit-test are random"
        )
    else:
        assert ptsr.accuracy is None
        assert ptsr.missing["accuracy"].reason == "accuracy was not measured: the weights are random"
        assert record.kept_patches is None


@pytest.mark.parametrize(
    ("target", "kind", "said"),
    [
        ("cpu", "failed", "could not be run here, so nothing was timed: ONNX Runtime"),
        ("trt", "no_device", "built, not run here: "),
    ],
)
def test_a_variant_that_cannot_run_here_is_listed_without_results(
    target: str, kind: str, said: str, tmp_path: Path
) -> None:
    bundle = write_tiny_bundle(tmp_path / "ptsr", [1.0, 0.5], broken=[0.5])
    good, bad = bundle.variants
    elsewhere = bad.model_copy(update={"target": target})
    write_bundle(tmp_path / "ptsr", bundle.model_copy(update={"variants": [good, elsewhere]}))
    write_tiny_bundle(tmp_path / "vit", [1.0], kind="vit")
    record = profile_bundles([tmp_path / "ptsr"], out=tmp_path / "p", baseline=tmp_path / "vit", timing=SHORT)
    for row in record.variants:
        check_reasons(row)
    timed, refused = record.variants[1:]
    assert timed.latency_ms is not None
    assert refused.latency_ms is None
    assert refused.size_bytes > 0
    why = refused.missing["latency_ms"]
    assert why.kind == kind
    assert why.reason.startswith(said)
    assert str(tmp_path) not in str(refused.missing)
    assert not (tmp_path / "p" / "samples" / f"{refused.id}.npz").exists()


def test_without_its_baseline_nothing_is_written(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "ptsr", [1.0])
    write_tiny_bundle(tmp_path / "vit", [1.0], kind="vit", broken=[1.0])
    with pytest.raises(JobError, match="vit-test-cpu-fp32-k16: ONNX Runtime"):
        profile_bundles([tmp_path / "ptsr"], out=tmp_path / "p", baseline=tmp_path / "vit", timing=SHORT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ptsr", "vit"]


def test_all_attempts_are_kept_and_the_last_one_counts(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdicts = iter([{"drift": "a neighbour woke up", "wide": "and stayed"}, {}])
    monkeypatch.setattr(timing_module, "why_unstable", lambda *_: next(verdicts))
    record = profile_bundles(
        [folders[0]], out=tmp_path / "p", baseline=folders[1], timing=replace(SHORT, attempts=3)
    )
    assert [attempt.unstable for attempt in record.attempts] == ["a neighbour woke up; and stayed", None]
    assert [attempt.faults for attempt in record.attempts] == [["drift", "wide"], []]
    for row in record.variants:
        assert (tmp_path / "p" / str(row.raw_samples)).is_file()
        assert (tmp_path / "p" / "attempt-1" / str(row.raw_samples)).is_file()


def test_a_busy_machine_is_said_beforehand(capsys: pytest.CaptureFixture[str]) -> None:
    cpu = {"cores_visible": 4}
    for load in (None, [1.9, 9.0, 9.0]):
        warn_of_load({"cpu": cpu, "load_average": load})
    assert capsys.readouterr().err == ""
    warn_of_load({"cpu": cpu, "load_average": [2.6, 0.0, 0.0]})
    assert "busy (load 2.6 on 4 cores)" in capsys.readouterr().err


def test_the_default_baseline_is_exported_for_the_run(tmp_path: Path) -> None:
    from ptsr_edge.export.exporter import export_bundle

    export_bundle(out=tmp_path / "nano", model="ptsr-nano", budgets=[0.25], precisions=["fp32"], cache=True)
    record = profile_bundles([tmp_path / "nano"], out=tmp_path / "p", timing=SHORT)
    base, variant = record.variants
    assert (base.id, base.bundle) == ("vit-nano-cpu-fp32-k49", None)
    assert (variant.tokens, variant.bundle) == (13, "nano")
    assert variant.macs == sum((variant.macs_by_operator or {}).values())
    assert not any("operators without a formula" in note for row in record.variants for note in row.notes)


def test_the_default_baseline_has_every_kind_and_is_exported_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ptsr_edge.export.exporter import export_bundle

    export_bundle(
        out=tmp_path / "nano", model="ptsr-nano", budgets=[0.25], calibration_samples=16, cache=True
    )
    # A cache without bundles: graphs and faces, which are not looked at here, stay those of the run.
    (tmp_path / "cache").mkdir()
    for kind in ("graphs", "rendered"):
        (tmp_path / "cache" / kind).symlink_to(Path(os.environ["PTSR_EDGE_CACHE"]) / kind)
    monkeypatch.setenv("PTSR_EDGE_CACHE", str(tmp_path / "cache"))
    capsys.readouterr()
    said, bases = [], []
    for _ in range(2):
        record = profile_bundles([tmp_path / "nano"], out=tmp_path / "p", timing=SHORT)
        said.append(capsys.readouterr().err)
        bases.append([row.files_sha256 for row in record.variants[:2]])
    assert ["served from the cache" in text for text in said] == [False, True]
    assert bases[0] == bases[1]
    assert [row.id for row in record.variants[:2]] == ["vit-nano-cpu-fp32-k49", "vit-nano-cpu-int8-k49"]
    for row in record.variants[2:]:
        assert row.ratio_same_precision is not None
        assert row.ratio_same_precision.against == f"vit-nano-cpu-{row.precision}-k49"


@pytest.mark.slow
def test_shown_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown_path(tmp_path / "out" / "bundle") == "out/bundle"
    assert shown_path(Path("out/bundle")) == "out/bundle"
    assert shown_path(tmp_path.parent / "elsewhere" / "bundle") == "bundle"


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_bundle_given_twice_is_refused(folders: tuple[Path, Path]) -> None:
    assert list(read_bundles(folders)) == list(folders)
    with pytest.raises(InputError, match="a bundle was given twice"):
        read_bundles([folders[0], folders[1] / ".." / folders[0].name])


@pytest.mark.slow
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
        patch.setattr(profiler, "find_spec", lambda name: None if name == "onnxruntime" else find_spec(name))
        assert chosen(first) == ["openvino-fp32", "cpu-fp32"]
    monkeypatch.setattr(profiler, "cuda_devices", list)
    assert chosen(first.model_copy(update={"target": "trt"})) == ["cpu-fp32"]


@pytest.mark.slow
def test_bundles_of_one_model_may_differ_in_target_and_variants(folders: tuple[Path, Path]) -> None:
    first = read_bundle(folders[0])
    other = first.model_copy(update={"target": "openvino", "variants": first.variants[:1]})
    assert check_same_model({folders[0]: first, folders[1]: other}) is first


@pytest.mark.slow
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

    assert baseline_training(*bundles(recipe=recipe | {"budgets": [1.0], "local_lr": 1.0})) == ALIKE
    assert baseline_training(*bundles(seed=1, recipe=recipe | {"epochs": 2})) == (
        "otherwise than the model, in seed, epochs (10 for the model, 2 for the baseline)"
    )
    assert baseline_training(*bundles(train_subjects=["s2"])) == "otherwise than the model, in train subjects"
    assert baseline_training(*bundles(kind="random")) == "not at all: random weights"


@pytest.mark.slow
def test_the_baseline_of_engines_runs_on_the_processor_where_there_is_no_gpu(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    engines = read_bundle(folders[0]).model_copy(update={"target": "trt", "model": MODELS["ptsr-nano"]})
    monkeypatch.setattr(profiler, "cuda_devices", list)
    assert {one.variant.target for one in exported_baseline([engines], tmp_path)} == {"cpu"}


@pytest.mark.slow
def test_the_baseline_has_the_classes_of_the_model(folders: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("torch")
    model = MODELS["ptsr-tiny"].model_copy(update={"classes": 2})
    own = read_bundle(folders[0]).model_copy(update={"model": model, "labels": ["frown", "smile"]})
    baseline = exported_baseline([own], tmp_path)[0].bundle
    assert (baseline.labels, baseline.model.classes) == (["frown", "smile"], 2)
    assert baseline.provenance["kind"] == "random"  # the embedded ones answer other classes


@pytest.mark.slow
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


@pytest.mark.slow
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
