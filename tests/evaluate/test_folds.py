"""`evaluate --model`: who is trained, in which folds, and what the record says, against what is worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fold_data import NearestMean, composite, toy_learner

from ptsr_edge.core.errors import InputError
from ptsr_edge.evaluate.cli import main
from ptsr_edge.evaluate.cross_validation import Answers
from ptsr_edge.evaluate.folds import (
    FoldCall,
    lines_of_folds,
    paired_records,
    plan_learners,
    run_records,
    summaries,
)
from ptsr_edge.train.trainer import train_config_for

pytestmark = pytest.mark.slow

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
    assert record["ceiling"] is None  # the published fields come without units
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


DATA = composite()


def answers_of(classes: np.ndarray, *, oracle: np.ndarray | None = None, name: str = "toy") -> Answers:
    """Answers of these classes (seeds, rates, n)."""
    rates = (1.0, 0.25)[: classes.shape[1]]
    learner = NearestMean(name=name, keep_rates=rates)
    one_hot = np.eye(3, dtype=np.float32)[classes]
    return Answers(learner, DATA, tuple(range(len(classes))), one_hot, oracle)


def wrong_at(*places: int) -> np.ndarray:
    classes = DATA.labels.copy()
    classes[list(places)] = (classes[list(places)] + 1) % 3
    return classes


def test_runs_are_pooled_and_by_set() -> None:
    # Clips 0..2 and 6..8 are of set `one`. Clip 0 (class 0) is called 1: recalls 3/4, 1, 1 pooled, 1/2, 1, 1
    # in `one`, all 1 in `two`.
    (record,) = run_records(answers_of(wrong_at(0)[None, None]))
    assert record["uar"] == pytest.approx((3 / 4 + 1 + 1) / 3)
    assert record["sets"]["one"]["uar"] == pytest.approx((1 / 2 + 1 + 1) / 3)
    assert record["sets"]["two"]["uar"] == 1.0
    assert record["sets"]["one"]["n"] == record["sets"]["two"]["n"] == 6
    assert record["n"] == 12
    assert "oracle" not in record


def test_mean_and_spread_over_seeds() -> None:
    # UAR of the seeds: 1 and (3/4 + 1 + 1) / 3 = 11/12. Mean 23/24; spread with n - 1: (1/12) / sqrt 2.
    (record,) = summaries(answers_of(np.stack([wrong_at(), wrong_at(0)])[:, None]))
    assert record["uar"]["mean"] == pytest.approx(23 / 24)
    assert record["uar"]["spread"] == pytest.approx(1 / 12 / 2**0.5)
    assert record["sets"]["two"]["uar"] == {"mean": 1.0, "spread": 0.0}
    assert "n - 1" in record["spread"]
    (single,) = summaries(answers_of(wrong_at(0)[None, None]))
    assert single["uar"]["spread"] is None


def test_the_oracle_stands_beside_and_is_called_leaky() -> None:
    found = answers_of(wrong_at(0, 3)[None, None], oracle=wrong_at()[None, None])
    (run,), (summary,) = run_records(found), summaries(found)
    assert run["uar"] < 1
    assert run["oracle"]["uar"] == 1
    assert summary["oracle"]["uar"]["mean"] == 1
    record = {"results": [run], "summary": [summary], "paired": [], "ceiling": None}
    (line,) = [line for line in lines_of_folds(record) if "UF1 1.000" in line]
    assert "LEAKY oracle" in line
    assert "LEAKY" in run["oracle"]["note"]


def test_paired_differences_of_two_budgets_and_of_two_learners() -> None:
    both = answers_of(np.stack([[wrong_at(), wrong_at(0)], [wrong_at(), wrong_at(3)]]))
    pair = {record["metric"]: record for record in paired_records((both, 1.0), (both, 0.25))}
    # Both seeds of the second budget miss one of the four clips of class 0: 1 - 11/12.
    assert pair["uar"]["difference"] == pytest.approx(1 / 12)
    assert 0 <= pair["uar"]["low"] <= pair["uar"]["high"]
    assert pair["uar"]["against"] == {"model": "toy", "keep_rate": 0.25}
    same = paired_records((both, 1.0), (answers_of(wrong_at()[None, None], name="other"), 1.0))
    assert [(record["difference"], record["low"], record["high"]) for record in same] == [(0, 0, 0)] * 2


def test_lines_say_everything_and_the_record_is_json() -> None:
    found = answers_of(np.stack([[wrong_at(), wrong_at(0)], [wrong_at(), wrong_at(3)]]))
    record = {
        "results": run_records(found),
        "summary": summaries(found),
        "paired": paired_records((found, 1.0), (found, 0.25), resamples=50),
        "ceiling": {"what": "how", "n": 12, "subjects": 4, "uf1": 0.5, "uar": 0.75},
    }
    lines = lines_of_folds(json.loads(json.dumps(record, allow_nan=False)))
    text = "\n".join(lines)
    assert len(record["results"]) == 4
    assert "toy at 25%, mean +- standard deviation of 2 seeds: UF1 0.91" in text
    assert "  two: UF1" in text
    assert "toy at 100% against toy at 25%: UAR +0.083 [" in text
    assert "annotated action units alone: UF1 0.500  UAR 0.750  (n = 12, 4 subjects)  <- how" in text


def test_one_set_has_no_sets() -> None:
    alone = DATA.of_subjects([name for name in DATA.subject_names if name.startswith("one/")])
    found = Answers(
        toy_learner(keep_rates=(1.0,)),
        alone,
        (0,),
        np.eye(3, dtype=np.float32)[alone.labels][None, None],
        None,
    )
    assert run_records(found)[0]["sets"] is None
    assert summaries(found)[0]["sets"] is None
