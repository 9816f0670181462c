"""What is judged, on whom, and that artifacts answer as the eager model does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ptsr_edge.checkpoint import load_checkpoint
from ptsr_edge.data import load
from ptsr_edge.errors import InputError
from ptsr_edge.evaluate import evaluate_bundle, judged_samples, main

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
    assert all(record["agrees_with_eager"] == record["n"] == 12 for record in records)
    assert all(np.sum(record["confusion"]) == 12 for record in records)


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
        (["--checkpoint", "x", "--protocol", "loso"], "goes with --model"),
        (["--model", "ptsr-nano", "--data", "megc-flow", "--protocol", "all"], "needs a root"),
    ],
)
def test_wrong_calls_get_one_line_and_exit_code_2(call: list[str], words: str) -> None:
    result = CliRunner().invoke(main, call)
    assert result.exit_code == 2
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
