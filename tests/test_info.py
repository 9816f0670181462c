"""What `info` says of a bundle is what its manifest, its files and this machine say."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from camera_data import cascade
from click.testing import CliRunner

from ptsr_edge.bundle import RecommendedVariant, describe_file, read_bundle, write_bundle, write_recommended
from ptsr_edge.info import describe, lines_of, main
from ptsr_edge.session import Session

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def test_it_says_what_the_manifest_says(folder: Path) -> None:
    bundle, record = read_bundle(folder), describe(folder)
    for variant, told in zip(bundle.variants, record["variants"], strict=True):
        assert variant.parity is not None
        for key in ("id", "target", "precision", "keep_rate", "tokens", "macs", "parameters"):
            assert told[key] == getattr(variant, key)
        assert told["parity"] == variant.parity.model_dump(mode="json")
        assert told["size_bytes"] == sum(entry.bytes for entry in variant.files)
        assert told["runs_here"]
    assert record["labels"] == bundle.labels
    assert record["trained"]["data"] == "megc-flow"
    assert record["trained"]["subjects"] == 3
    assert record["default"] == {"variant": Session.open(folder).variant.id, "why_not": None}
    assert record["recommended"]["kind"] == "unjudged"


def test_a_file_counts_once_however_many_variants_or_names_it_has(folder: Path) -> None:
    bundle = read_bundle(folder)
    expected = {entry.path: entry.bytes for variant in bundle.variants for entry in variant.files}
    assert describe(folder)["size_bytes"] == sum(expected.values())
    assert sum(expected.values()) < sum(entry.bytes for v in bundle.variants for entry in v.files)
    first = bundle.variants[0]
    os.link(folder / first.artifact, folder / "linked.onnx")
    files = [*first.files, describe_file(folder, folder / "linked.onnx")]
    write_bundle(
        folder,
        bundle.model_copy(
            update={"variants": [first.model_copy(update={"files": files}), *bundle.variants[1:]]}
        ),
    )
    assert describe(folder)["size_bytes"] == sum(expected.values())


def test_lines_have_every_variant_the_default_with_its_reason_and_the_card(folder: Path) -> None:
    chosen = read_bundle(folder).variants[1].id
    write_recommended(folder, RecommendedVariant(variant=chosen, kind="measured", reason="it is quick"))
    answer = CliRunner().invoke(main, [str(folder)])
    assert answer.exit_code == 0
    lines = answer.stdout.splitlines()
    marked = [line for line in lines if line.startswith("*")]
    assert [line.split()[0] for line in marked] == [f"*{chosen}"]
    assert f"recommended: {chosen} (measured): it is quick" in lines
    assert not any(line.startswith("taken here by default") for line in lines), "it is the recommended one"
    assert any(line.startswith("model card: made by a test. A class is") for line in lines)
    assert lines[-1] == str(folder)
    record = json.loads(CliRunner().invoke(main, [str(folder), "--json"]).stdout)
    assert record == describe(folder)


def test_what_cannot_run_here_is_told_with_the_reason(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    record = describe(folder)
    assert not any(variant["runs_here"] for variant in record["variants"])
    assert "'onnxruntime', which is not installed" in record["variants"][0]["why_not_here"]
    reasons = [line for line in lines_of(record) if line.startswith("not here")]
    assert len(reasons) == 1, "one reason of three variants stands once"
    assert all(variant["id"] in reasons[0] for variant in record["variants"])


def test_a_target_that_is_not_known_here_is_told(folder: Path) -> None:
    bundle = read_bundle(folder)
    foreign = bundle.variants[0].model_copy(update={"target": "npu", "id": "foreign"})
    write_bundle(folder, bundle.model_copy(update={"variants": [*bundle.variants, foreign]}))
    assert "unknown target 'npu'" in describe(folder)["variants"][-1]["why_not_here"]


def test_what_was_judged_and_what_was_never_run_are_told_with_the_proof(folder: Path) -> None:
    bundle = read_bundle(folder)
    record = {"uar": {"8": 0.71}, "uar_fp32": {"8": 0.72}, "limit": 0.02, "samples": 90}
    judged = bundle.variants[0].model_copy(
        update={"tokens": 8, "built_with": {**bundle.variants[0].built_with, "accuracy": record}}
    )
    unrun = bundle.variants[1].model_copy(update={"parity": None})
    write_bundle(folder, bundle.model_copy(update={"variants": [judged, unrun, *bundle.variants[2:]]}))
    told = describe(folder)
    assert told["variants"][0]["accuracy"] == {"uar": 0.71, "uar_fp32": 0.72, "limit": 0.02, "samples": 90}
    lines = lines_of(told)
    assert any(judged.id in line and "; UAR 0.710, fp32 0.720 on 90" in line for line in lines)
    assert any(unrun.id in line and "built, not run where it was exported" in line for line in lines)


def test_a_changed_file_is_told_and_a_failed_job(folder: Path) -> None:
    variant = read_bundle(folder).variants[2]
    (folder / variant.artifact).write_bytes(b"other")
    answer = CliRunner().invoke(main, [str(folder)], prog_name="ptsr-edge info")
    assert answer.exit_code == 1
    assert f"{variant.artifact} has changed since it was exported" in answer.stdout
    (line,) = answer.stderr.splitlines()
    assert line == (
        f"ptsr-edge info: files of {variant.id} are missing or have changed: export the bundle again"
    )


def test_what_is_no_bundle_is_a_wrong_call(tmp_path: Path) -> None:
    answer = CliRunner().invoke(main, [str(tmp_path)])
    assert answer.exit_code == 2
    assert len(answer.stderr.splitlines()) == 1
    assert "holds no bundle.json" in answer.stderr


@pytest.mark.parametrize("odd", [7, None, "ten people"])
def test_a_provenance_of_odd_kinds_says_less(folder: Path, odd: object) -> None:
    provenance = {"train_subjects": odd, "recipe": odd}
    write_bundle(folder, read_bundle(folder).model_copy(update={"provenance": provenance}))
    trained = describe(folder)["trained"]
    assert (trained["subjects"], trained["epochs"]) == (None, None)


def test_a_cascade_of_an_earlier_version_that_asks_nothing_is_called_useless(folder: Path) -> None:
    rules = [cascade().model_copy(update={"escalated": share}) for share in (0.0, 0.3)]
    write_bundle(folder, read_bundle(folder).model_copy(update={"cascades": rules, "recommended": None}))
    record = describe(folder)
    assert [rule["useless"] for rule in record["cascades"]] == [True, False]
    told = [line for line in lines_of(record) if line.startswith("cascade")]
    assert "never asks the full budget: take the budget 0.5 alone" in told[0]
    assert "asks the full budget for 30% of the samples" in told[1]
    assert "recommended: none; this bundle was exported before there was any" in lines_of(record)
