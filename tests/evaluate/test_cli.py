"""What is judged, on whom, and that artifacts answer as the eager model does."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ptsr_edge.bundle import read_bundle
from ptsr_edge.core.errors import InputError
from ptsr_edge.data.datasets import load
from ptsr_edge.evaluate.cli import lines_of, main
from ptsr_edge.evaluate.evaluation import evaluate_bundle, judged_samples
from ptsr_edge.models.checkpoint import load_checkpoint, predict_logits
from ptsr_edge.runtimes.build_on_device import describe_gpus

SUBJECTS = ["synthetic/001", "synthetic/002", "synthetic/003"]


@pytest.fixture(scope="module")
def clips():
    return load("synthetic", image_size=32, subjects=SUBJECTS, limit=4)


def test_artifacts_give_the_eager_classes_at_every_budget(
    tiny_bundle: Path, tiny_checkpoint: Path, clips
) -> None:
    model, _ = load_checkpoint(tiny_checkpoint)
    records = evaluate_bundle(tiny_bundle, clips, model, threads=1)
    assert [record["keep_rate"] for record in records] == [1.0, 0.5, 0.25]
    assert {record["through"] for record in records} == {"artifact"}
    assert all(record["agrees_with_eager"] == record["n"] == 12 for record in records)
    assert all(np.sum(record["confusion"]) == 12 for record in records)


def typed_bundle(folder: Path, checkpoint: Path, calibration: Path, **options: object) -> Path:
    """The fp16 bundle of target trt at 16 and 4 tokens; `options` are the target's."""
    from ptsr_edge.export.exporter import export_bundle

    export_bundle(
        out=folder, checkpoint=checkpoint, target="trt", budgets=(1.0, 0.25), precisions=("fp16",),
        calibration=calibration, options=options,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def graphs_only(tiny_checkpoint: Path, megc_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return typed_bundle(
        tmp_path_factory.mktemp("trt") / "bundle", tiny_checkpoint, megc_folder, onnx_only=True
    )


def test_typed_graphs_stand_for_engines_and_that_is_said(
    graphs_only: Path, tiny_checkpoint: Path, clips
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
    reason="tensorrt-rtx is missing: pip install 'ptsr-edge[trt]'",
)
@pytest.mark.skipif(bool(describe_gpus()), reason="a GPU is here, which runs the engine itself")
def test_a_plan_is_judged_through_the_graph_beside_it(
    graphs_only: Path, tiny_checkpoint: Path, megc_folder: Path, clips, tmp_path: Path
) -> None:
    folder = typed_bundle(
        tmp_path / "bundle",
        tiny_checkpoint,
        megc_folder,
        flavour="tensorrt-rtx",
        compute_capabilities=["8.6"],
    )
    assert all(variant.artifact.endswith(".plan") for variant in read_bundle(folder).variants)
    records = evaluate_bundle(folder, clips)
    assert {record["through"] for record in records} == {"typed graph computed on the CPU"}
    assert records == evaluate_bundle(graphs_only, clips)


def test_the_command_says_what_no_engine_ran_for(
    graphs_only: Path, megc_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "record.json"
    data = ["--data", "megc-flow", "--root", str(megc_folder)]
    result = CliRunner().invoke(main, ["--bundle", str(graphs_only), *data, "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert result.stdout.count("[typed graph computed on the CPU: no engine ran]") == 2
    record = json.loads(out.read_text())
    assert [found["through"] for found in record["results"]] == 2 * ["typed graph computed on the CPU"]
    assert [found["n"] for found in record["results"]] == [18, 18]  # 6 clips of the 3 subjects held out


@pytest.mark.parametrize("name", ["ptsr-test-trt-fp16-k4.onnx", "weights-trt-fp16.bin"])
def test_a_typed_graph_that_has_changed_is_not_judged(
    graphs_only: Path, clips, tmp_path: Path, name: str
) -> None:
    folder = shutil.copytree(graphs_only, tmp_path / "bundle")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match=f"{name} has changed since it was exported"):
        evaluate_bundle(folder, clips)


def test_subjects_seen_in_training_are_left_out_or_said(clips) -> None:
    provenance = {"data": "synthetic", "train_subjects": ["synthetic/001", "synthetic/099"]}
    judged, words = judged_samples(clips, provenance, everyone=False)
    assert judged.subject_names == SUBJECTS[1:]
    assert words == "held-out subjects"
    judged, words = judged_samples(clips, provenance, everyone=True)
    assert judged.subject_names == SUBJECTS
    assert "1 of them SEEN" in words
    with pytest.raises(InputError, match="--subjects all"):
        judged_samples(clips, {"data": "synthetic", "train_subjects": SUBJECTS}, everyone=False)


def test_a_protocol_trains_and_judges(megc_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "record.json"
    call = ["--data", "megc-flow", "--root", str(megc_folder), "--model", "ptsr-nano", "--protocol", "groups",
            "--epochs", "1", "--budgets", "1.0,0.25", "--out", str(out)]  # fmt: skip
    result = CliRunner().invoke(main, call)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(out)
    record = json.loads(out.read_text())
    assert [found["n"] for found in record["results"]] == [36, 36]
    assert [found["subjects"] for found in record["results"]] == [6, 6]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ([], "give --bundle DIR, --checkpoint FILE or --model NAME"),
        (["--model", "ptsr-nano", "--bundle", "x"], "does not go with"),
        (["--bundle", "nowhere"], "nowhere is not a folder"),
        (["--checkpoint", "nowhere.safetensors"], "no checkpoint at nowhere.safetensors"),
        (["--model", "ptsr-huge"], "nearest: ptsr-"),
        (["--model", "ptsr-nano", "--data", "synthetik"], "nearest: synthetic"),
        (["--checkpoint", "x", "--protocol", "loso"], "--protocol is about training afresh in each fold"),
        (["--bundle", "x", "--run-folder", "y"], "--run-folder is about training afresh in each fold"),
        (["--checkpoint", "x", "--jobs", "1"], "it goes with --model"),
        (["--model", "ptsr-nano", "--data", "megc-flow", "--protocol", "loso"], "needs a root"),
        (["--model", "ptsr-nano", "--out", "."], "it is a folder"),
    ],
)
def test_wrong_calls_get_one_line_and_exit_code_2(call: list[str], words: str) -> None:
    result = CliRunner().invoke(main, call)
    assert result.exit_code == 2
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
