"""The verb `evaluate`: its record, its refusals, and that it needs torch only where a model answers in it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from signalled import signalled

from ptsr_edge.bundle import read_bundle, write_bundle
from ptsr_edge.core.errors import install_line
from ptsr_edge.evaluate.cli import main

pytestmark = pytest.mark.slow


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


def test_data_with_other_classes_are_a_wrong_call(tiny_bundle: Path, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    rows = ["subject,clip,onset,apex,label"]
    for name in ("smile", "frown"):
        (tmp_path / name).mkdir()
        for number in range(2):
            cv2.imwrite(str(tmp_path / name / f"{number}.png"), np.full((32, 32), 99 * number, np.uint8))
        rows.append(f"anna,{name},0,1,{name}")
    (tmp_path / "clips.csv").write_text("\n".join(rows), encoding="utf-8")
    (tmp_path / "dataset.toml").write_text('frames = "crops"', encoding="utf-8")
    call = ["--data", "folder", "--root", str(tmp_path), "--bundle", str(tiny_bundle)]
    result = CliRunner().invoke(main, call)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].endswith(
        "data folder has the classes frown, smile; ptsr-test answers negative, positive, surprise"
    )


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


NO_TORCH = "import sys; sys.modules['torch'] = None"
"""As on a device: Python refuses to import a module that is None in sys.modules."""

ONE_PERSON = """
from ptsr_edge.data import datasets
from ptsr_edge.evaluate import cli
cli.load = lambda *given, **more: datasets.load(*given, **more, subjects=["synthetic/001"], limit=3)
cli.main()
"""
"""The verb on 3 of the 3,840 synthetic clips."""


def test_a_bundle_is_judged_the_same_without_torch(tiny_bundle: Path) -> None:
    call = ["--bundle", str(tiny_bundle), "--data", "synthetic", "--threads", "1", "--json"]
    answers = []
    for first in ("import torch", NO_TORCH):
        program = [sys.executable, "-c", f"{first}\n{ONE_PERSON}", *call]
        done = subprocess.run(program, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(done.stdout))
    assert answers[0] == answers[1]
    assert [found["n"] for found in answers[0]["results"]] == [3, 3, 3]


@pytest.mark.parametrize(
    "call", [["--checkpoint", "any.safetensors"], ["--model", "ptsr-nano"]], ids=["checkpoint", "model"]
)
def test_what_needs_torch_says_how_to_install_it(
    call: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "any.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", f"{NO_TORCH}; from ptsr_edge.evaluate.cli import main; main()", *call],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.endswith(f"{install_line('train')}\n")


def test_budgets_choose_among_the_variants_of_a_bundle(tiny_bundle: Path, megc_folder: Path) -> None:
    call = ["--bundle", str(tiny_bundle), "--data", "megc-flow", "--root", str(megc_folder), "--json"]
    some = CliRunner().invoke(main, [*call, "--budgets", "0.25,1.0"])
    assert some.exit_code == 0, some.stderr
    everything = json.loads(CliRunner().invoke(main, call).stdout)["results"]
    assert json.loads(some.stdout)["results"] == [everything[0], everything[2]]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--bundle", "BUNDLE", "--budgets", "0.3"], "the bundle has no budget 0.3; it has 1, 0.5, 0.25"),
        (["--bundle", "BUNDLE", "--budgets", "0.25,0.25"], "--budgets: 0.25 is there twice in '0.25,0.25'"),
        (
            ["--checkpoint", "CHECKPOINT", "--threads", "2"],
            "--threads is of an artifact: it goes with --bundle",
        ),
        (["--checkpoint", "none.safetensors"], "there is no checkpoint at none.safetensors"),
        (["--model", "ptsr-nano", "--subjects", "all"], "--subjects is about what was trained before"),
        (["--model", "ptsr-nano", "--threads", "2"], "--threads is about what was trained before"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(
    tiny_bundle: Path, tiny_checkpoint: Path, megc_folder: Path, arguments: list[str], says: str
) -> None:
    places = {"BUNDLE": str(tiny_bundle), "CHECKPOINT": str(tiny_checkpoint)}
    call = [places.get(word, word) for word in arguments]
    result = CliRunner().invoke(main, [*call, "--data", "megc-flow", "--root", str(megc_folder)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert says in result.stderr


def test_a_bundle_and_the_checkpoint_of_another_model_are_a_wrong_call(
    tiny_bundle: Path, tiny_checkpoint: Path, megc_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "other"))
    bundle = read_bundle(folder)
    write_bundle(
        folder, bundle.model_copy(update={"model": bundle.model.model_copy(update={"name": "other"})})
    )
    call = ["--bundle", str(folder), "--checkpoint", str(tiny_checkpoint), "--data", "megc-flow"]
    result = CliRunner().invoke(main, [*call, "--root", str(megc_folder)])
    assert result.exit_code == 2
    assert f"{folder} holds other, {tiny_checkpoint} is ptsr-test" in result.stderr


def test_ctrl_c_ends_all_processes_and_says_where_the_folds_are(megc_folder: Path, tmp_path: Path) -> None:
    ended = signalled(
        "evaluate", "--data", "megc-flow", "--root", megc_folder, "--model", "vit-nano", "--epochs", 40,
        "--jobs", 2, "--run-folder", "folds", after="loso, seeds: 1 ...", appears="folds/*.npz",
        number=signal.SIGINT, folder=tmp_path,
    )  # fmt: skip
    assert (ended.code, ended.stdout) == (130, "")
    says = "folds holds the folds that are done; the same command with --resume goes on"
    assert ended.line == f"python -m ptsr_edge evaluate: ended by SIGINT: {says}"
