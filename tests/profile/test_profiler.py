"""The whole measurement on small real graphs: what is recorded, and why results are missing. No test looks at a time."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_data import PATCHES, SIDE, TRAINED, check_reasons, tiny_flows, write_tiny_bundle

import ptsr_edge.export.calibration  # noqa: F401 - takes data.load by name: before a test replaces it
from ptsr_edge.bundle import write_bundle
from ptsr_edge.core.errors import JobError
from ptsr_edge.core.files import sha256_of
from ptsr_edge.data.datasets import FlowDataset
from ptsr_edge.models.checkpoint import embedded_checkpoint
from ptsr_edge.profile import timing as timing_module
from ptsr_edge.profile.profiler import profile_bundles, warn_of_load
from ptsr_edge.profile.schema import NEW_CLIPS
from ptsr_edge.profile.timing import TimingConfig

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
    assert asked == [("synthetic", None, {"image_size": SIDE, "subjects": ["s000", "s001"]})]
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
