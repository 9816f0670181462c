"""`evaluate --model`: who is trained, in which folds, and what the record says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from ptsr_edge.core.errors import InputError
from ptsr_edge.evaluate.cli import main
from ptsr_edge.evaluate.folds import FoldCall, plan_learners
from ptsr_edge.train.trainer import train_config_for

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a GPU here")


def evaluate(megc_folder: Path, *call: str) -> Any:
    data = ["--data", "megc-flow", "--root", str(megc_folder), "--device", "cpu"]
    return CliRunner().invoke(main, [*data, *call])


def record_of(megc_folder: Path, out: Path, *call: str) -> Any:
    result = evaluate(megc_folder, *call, "--out", str(out))
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(out)
    return json.loads(out.read_text())


def test_two_models_and_two_budgets_in_the_same_folds(megc_folder: Path, tmp_path: Path) -> None:
    call = ["--model", "ptsr-nano", "--against", "vit-nano", "--against", "ptsr-nano@1", "--protocol", "groups",
            "--groups", "2", "--seeds", "2", "--epochs", "1", "--budgets", "0.5,0.25", "--oracle"]  # fmt: skip
    record = record_of(megc_folder, tmp_path / "record.json", *call)
    assert record["protocol"] == "groups"
    assert record["seeds"] == [0, 1]
    judged = {(entry["model"], entry["keep_rate"]) for entry in record["summary"]}
    assert judged == {("ptsr-nano", 0.5), ("ptsr-nano", 0.25), ("ptsr-nano", 1.0), ("vit-nano", 1.0)}
    assert len(record["results"]) == 8
    assert {entry["n"] for entry in record["results"]} == {36}
    assert all("LEAKY" in entry["oracle"]["note"] for entry in (*record["results"], *record["summary"]))
    pairs = [(p["keep_rate"], p["against"]["model"]) for p in record["paired"] if p["metric"] == "uf1"]
    assert sorted(pairs) == [(0.25, "ptsr-nano"), (0.25, "vit-nano"), (0.5, "ptsr-nano"), (0.5, "vit-nano"),
                             (1.0, "vit-nano")]  # fmt: skip
    by_id = {entry["id"]: entry for entry in record["results"]}
    means = [
        sum(by_id[f"{name}-seed{seed}-100%"]["uf1"] for seed in (0, 1)) / 2
        for name in ("ptsr-nano", "vit-nano")
    ]
    (pair,) = [p for p in record["paired"] if p["metric"] == "uf1" and p["keep_rate"] == 1.0]
    assert pair["difference"] == pytest.approx(means[0] - means[1])


def test_a_run_is_resumed_from_its_folder(
    megc_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = ["--model", "ptsr-nano", "--protocol", "groups", "--groups", "2", "--epochs", "1", "--budgets", "0.25",
            "--run-folder", str(tmp_path / "folds")]  # fmt: skip
    first = record_of(megc_folder, tmp_path / "first.json", *call)
    assert len(list((tmp_path / "folds").iterdir())) == 2
    monkeypatch.setattr(
        "ptsr_edge.evaluate.cross_validation.fit", lambda *_, **__: pytest.fail("nothing is left to train")
    )
    assert record_of(megc_folder, tmp_path / "second.json", *call, "--resume") == first


def test_folds_answer_through_one_exported_graph(megc_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    call = ["--model", "vit-nano", "--protocol", "groups", "--groups", "2", "--epochs", "1"]
    eager = record_of(megc_folder, tmp_path / "eager.json", *call)
    through = record_of(megc_folder, tmp_path / "through.json", *call, "--through", "cpu")
    assert (eager["through"], through["through"]) == ("torch", "cpu")
    assert [entry["confusion"] for entry in through["results"]] == [
        entry["confusion"] for entry in eager["results"]
    ]


def test_a_model_is_trained_once_with_all_budgets_that_are_asked_for() -> None:
    learners, references = plan_learners(
        FoldCall(models=["ptsr-nano", "vit-nano", "ptsr-nano"], against=["ptsr-nano@0.25", "vit-tiny"],
                 budgets=[0.5, 0.5], epochs=3, device="cpu"),
        "megc-flow",
    )  # fmt: skip
    assert [(learner.name, learner.keep_rates) for learner in learners] == [
        ("ptsr-nano", (0.5, 0.25)),
        ("vit-nano", (1.0,)),
        ("vit-tiny", (1.0,)),
    ]
    assert references == [("ptsr-nano", 0.25), ("vit-tiny", 1.0)]
    assert learners[0].recipe == train_config_for(learners[0].config, "megc-flow").model_copy(
        update={"epochs": 3}
    )
    # 13 of 49 tokens either way: the keep rate that is there is taken.
    _, references = plan_learners(
        FoldCall(models=["ptsr-nano"], budgets=[0.25], against=["ptsr-nano@0.26"]), "synthetic"
    )
    assert references == [("ptsr-nano", 0.25)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(protocol="leave-one-out"), "accepted: loso, groups, holdout, cross"),
        (dict(groups=3), "goes with protocol groups, not with loso"),
        (dict(through="trt"), "accepted: torch, cpu"),
        (dict(models=["ptsr-huge"]), "nearest: ptsr-"),
        (dict(models=["vit-nano"], budgets=[0.5]), "all tokens are kept by vit-nano"),
        (dict(against=["vit-nano@0.5"]), "cannot be compared with at 0.5"),
        (dict(against=["ptsr-nano@half"]), "accepted: MODEL or MODEL@RATE"),
        (dict(against=["ptsr-nano@2"]), r"a keep rate in \(0, 1\], got 2"),
        (dict(how={"engine": "dask"}), "needs the address of a scheduler"),
        (dict(how={"resume": True}), "name the folder"),
        pytest.param(dict(device="cuda"), "sees no GPU", marks=NO_GPU),
    ],
)
def test_wrong_calls_are_refused_before_anything_starts(changes: dict[str, Any], words: str) -> None:
    call = FoldCall(**{"models": ["ptsr-nano"]} | changes)
    with pytest.raises(InputError, match=words):
        plan_learners(call, "megc-flow")


@NO_GPU
def test_cuda_is_refused_in_one_line(megc_folder: Path) -> None:
    result = evaluate(megc_folder, "--model", "ptsr-nano", "--device", "cuda")
    assert result.exit_code == 2
    assert "device cuda was asked for, but torch" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_composite_of_one_set_has_no_cross(megc_folder: Path) -> None:
    result = evaluate(megc_folder, "--model", "ptsr-nano", "--protocol", "cross")
    assert result.exit_code == 2
    assert "protocol cross needs two data sets or more, found casme2" in result.stderr
