"""A data set becomes a checkpoint that says where it comes from; a wrong call becomes one line."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import recorded_trees
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file
from signalled import signalled

from ptsr_edge.core.config import LABELS, Preprocess, named_model
from ptsr_edge.core.errors import JobError, install_line
from ptsr_edge.data.datasets import load
from ptsr_edge.evaluate.cli import main as evaluate_main
from ptsr_edge.models.checkpoint import EMBEDDED, load_checkpoint, predict_logits, read_info
from ptsr_edge.models.ptsr import build_model
from ptsr_edge.profile.profiler import NOT_OF_A_VIT
from ptsr_edge.stats.classification import confusion, uar, uf1
from ptsr_edge.train.cli import History, held_out_scores, main
from ptsr_edge.train.trainer import (
    PRETRAINING,
    TRAIN_CONFIGS,
    Epoch,
    TrainConfig,
    digest_weights,
    fit,
    train_config_for,
)

pytestmark = pytest.mark.slow


def train(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="ptsr-edge train")


def test_a_checkpoint_and_everything_it_says(
    megc_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "deep" / "nano.safetensors"
    call = ["--data", "megc-flow", f"--root={megc_folder}", "--model", "ptsr-nano", "--epochs", "2",
            "--holdout", "0.34", "--seed", "3", "--out", str(out)]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["train", *call])
    result = train(*call)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[-1] == str(out)
    assert [line.split(":")[0] for line in lines[:-1]] == [
        "held out,    1 of the tokens", "held out,  0.5 of the tokens", "held out, 0.25 of the tokens",
    ]  # fmt: skip
    assert sorted(path.name for path in out.parent.iterdir()) == ["nano.history.csv", "nano.safetensors"]

    model, info = load_checkpoint(out)
    said = info.provenance
    assert (info.model, info.labels) == (named_model("ptsr-nano"), list(LABELS))
    assert info.preprocess == Preprocess(image_size=28, crop="close", flow="published", global_motion="none")
    assert (said["kind"], said["data"], said["seed"]) == ("trained", "megc-flow", 3)
    assert said["recipe"]["epochs"] == 2
    assert "non-commercial" in said["card"]
    assert {"python", "torch", "numpy"} <= set(said["versions"])
    # The command of the contract, without this machine's paths.
    assert said["command"] == (
        "python -m ptsr_edge.train --data megc-flow --root=DIR --model ptsr-nano --epochs 2 "
        "--holdout 0.34 --seed 3 --out nano.safetensors"
    )
    assert str(megc_folder.parent) not in json.dumps(said)
    # A third of six subjects is held out, and nobody is on both sides.
    seen, held = set(said["train_subjects"]), set(said["held_out_subjects"])
    assert (len(seen), len(held), seen & held) == (4, 2, set())

    # The weights are those of `fit` on the training side alone, and the figures those of the other side.
    data = load("megc-flow", megc_folder, image_size=28)
    training = data.of_subjects(sorted(seen))
    assert said["data_sha256"] == training.digest()
    recipe = train_config_for(info.model, "megc-flow").model_copy(update={"epochs": 2})
    again = fit(info.model, training, recipe, seed=3)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    held_data = data.of_subjects(sorted(held))
    logits, _ = predict_logits(model, held_data.flows, 25)  # half of 49 patches
    table = confusion(held_data.labels, logits.argmax(1), 3)
    expected = {"n": 12, "uf1": round(uf1(table), 4), "uar": round(uar(table), 4)}
    assert said["held_out"]["0.5"] == expected

    # A row and a line an epoch; the last is about the weights that were kept.
    rows = list(csv.DictReader((out.parent / "nano.history.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(0 < float(row["loss"]) < 3 for row in rows)
    assert float(rows[-1]["uar"]) == said["held_out"]["1"]["uar"]
    told = [line for line in result.stderr.splitlines() if line.startswith("epoch")]
    assert [line.split("loss")[0].split() for line in told] == [
        ["epoch", "1", "of", "2"],
        ["epoch", "2", "of", "2"],
    ]


def test_json_prints_the_record(megc_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "nano.safetensors"
    result = train(
        "--data", "megc-flow", "--root", megc_folder, "--model", "vit-nano", "--epochs", 1, "--half",
        "--out", out, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["checkpoint"] == str(out)
    assert set(record["held_out"]) == {"1"}  # the baseline has one budget
    assert record["held_out"] == read_info(out).provenance["held_out"]


def test_without_a_held_out_side_there_are_no_figures(megc_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "nano.safetensors"
    result = train(
        "--data", "megc-flow", "--root", megc_folder, "--model", "vit-nano", "--epochs", 1, "--holdout", 0,
        "--out", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{out}\n"
    said = read_info(out).provenance
    assert (len(said["train_subjects"]), said["held_out_subjects"], said["held_out"]) == (6, [], {})


def test_the_baseline_starts_from_a_vit_of_another_project(megc_folder: Path, tmp_path: Path) -> None:
    # At a learning rate that changes next to nothing the result is the ViT that was given. timm's names
    # are the baseline's own.
    state = dict(build_model(named_model("vit-nano"), seed=9).state_dict().items())
    save_file(state, tmp_path / "vit.safetensors")
    out = tmp_path / "nano.safetensors"
    result = train(
        "--data", "megc-flow", "--root", megc_folder, "--model", "vit-nano", "--epochs", 1,
        "--init", tmp_path / "vit.safetensors", "--out", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    model, _ = load_checkpoint(out)
    other = build_model(named_model("vit-nano"), seed=0).state_dict()
    for name in ("pos_embed", "patch_embed.proj.weight"):
        found = model.state_dict()[name]
        assert (found - state[name]).abs().mean() < 0.2 * (found - other[name]).abs().mean()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "vit-nanno"], "unknown model 'vit-nanno'; known: ptsr-nano, "),
        (["--data", "casme9"], "unknown data 'casme9'; known: synthetic, ict-face, faces"),
        (["--root", "nowhere"], "nowhere is no megc-flow: no such folder; accepted: a folder with"),
        (["--root", "."], ". is no megc-flow: no combined_3_class2_for_optical_flow.csv and no"),
        (["--out", "weights.pth"], "a checkpoint ends in .safetensors, got 'weights.pth'"),
        (["--epochs", "0"], "Invalid value for '--epochs': 0 is not in the range x>=1."),
        (["--holdout", "1"], "Invalid value for '--holdout': 1.0 is not in the range"),
        (["--device", "tpu"], "Invalid value for '--device': 'tpu' is not one of 'auto', 'cpu', 'cuda'."),
        pytest.param(
            ["--device", "cuda"],
            "device cuda was asked for, but torch",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a GPU here"),
        ),
        (["--init", "none.safetensors"], "there is no checkpoint at none.safetensors"),
        (
            ["--model", "ptsr-nano", "--init", "v.safetensors"],
            "--init fills a baseline (vit-*), not ptsr-nano",
        ),
        (["--threads", "0"], "Invalid value for '--threads': 0 is not in the range 1<=x<=1024."),
        (["--out", "/dev/null/nano.safetensors"], "cannot be written: /dev/null is no folder"),
    ],
)
def test_a_wrong_call_is_one_line_and_writes_nothing(
    megc_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = train(
        "--data", "megc-flow", "--root", megc_folder, "--model", "vit-nano", "--epochs", 1,
        "--out", "nano.safetensors", *arguments,
    )  # fmt: skip
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("ptsr-edge train: ")
    assert result.stderr.count("\n") == 1
    assert says in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_found_before_the_training(
    megc_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ptsr_edge.train.cli.load", lambda *_, **__: pytest.fail("the data must not be read"))
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder.safetensors").mkdir()
    for out, says in (
        ("file/nano.safetensors", "file is no folder"),
        ("folder.safetensors", "it is a folder"),
    ):
        result = train("--data", "megc-flow", "--root", megc_folder, "--out", tmp_path / out)
        assert result.exit_code == 2
        assert result.stderr.count("\n") == 1
        assert f"{out} cannot be written: " in result.stderr
        assert says in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.safetensors"]


@pytest.mark.parametrize("package", ["torch", "safetensors"])
def test_as_a_module_it_names_a_package_that_is_missing(package: str, tmp_path: Path) -> None:
    program = (
        "import runpy, sys\nsys.modules[sys.argv.pop(1)] = None\n"
        "runpy.run_module('ptsr_edge.train', run_name='__main__', alter_sys=True)"
    )
    call = [sys.executable, "-c", program, package, "--out", str(tmp_path / "x.safetensors")]
    result = subprocess.run(call, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    says = f"python -m ptsr_edge.train: train needs the package {package!r}, which is not installed"
    assert result.stderr.startswith(says)
    assert result.stderr.endswith(f"{install_line('train')}\n")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_ended_says_how_to_go_on_and_goes_on_there(
    number: signal.Signals, megc_folder: Path, tmp_path: Path
) -> None:
    call = ["--data", "megc-flow", "--root", megc_folder, "--model", "ptsr-nano"]
    out = tmp_path / "nano.safetensors"
    ended = signalled(
        "train", *call, "--epochs", 2000, "--out", out.name, after="epoch   3", number=number, folder=tmp_path
    )
    assert (ended.code, ended.stdout, ended.left) == (128 + number, "", [])
    says = "nano.state and nano.history.csv are left; the same command with --resume goes on from there"
    assert ended.line == f"python -m ptsr_edge train: ended by {number.name}: {says}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nano.history.csv", "nano.state", "scratch"]


def test_the_history_of_a_resumed_run_is_that_of_one_that_was_never_ended(
    megc_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = ["--data", "megc-flow", "--root", megc_folder, "--model", "vit-nano", "--epochs", 4]
    assert train(*call, "--out", tmp_path / "whole.safetensors").exit_code == 0
    add = History.add

    def interrupted(history: History, epoch: Epoch) -> None:
        add(history, epoch)
        if epoch.number == 3:
            raise KeyboardInterrupt  # after the row, before the state: that epoch is trained again

    with monkeypatch.context() as patch:
        patch.setattr(History, "add", interrupted)
        assert train(*call, "--out", tmp_path / "cut.safetensors").exit_code == 130
    assert train(*call, "--resume", "--out", tmp_path / "cut.safetensors").exit_code == 0
    histories = [(tmp_path / f"{name}.history.csv").read_text(encoding="utf-8") for name in ("whole", "cut")]
    assert histories[0] == histories[1]
    assert histories[0].count("\n") == 5


@pytest.mark.parametrize(
    "earlier", ["1,0.9,,\n", "\u00b2,0.9,,\n", f"{'1' * 5000},0.9,,\n", f"1,{'9' * 200_000},,\n"]
)
def test_what_is_no_history_is_begun_anew(tmp_path: Path, earlier: str) -> None:
    path = tmp_path / "nano.history.csv"
    path.write_text(f"epoch,loss,uf1,uar\n{earlier}", encoding="utf-8")
    History(path, None).add(Epoch(2, 2, 0.5, build_model(named_model("vit-nano"))))
    kept = earlier if earlier == "1,0.9,,\n" else ""
    assert path.read_text(encoding="utf-8") == f"epoch,loss,uf1,uar\n{kept}2,0.5000,,\n"


def test_a_finished_training_is_not_lost_where_its_checkpoint_cannot_be_written(
    megc_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = ["--data", "megc-flow", "--root", megc_folder, "--model", "vit-nano", "--epochs", 2]
    assert train(*call, "--out", tmp_path / "whole.safetensors").exit_code == 0

    def no_room(path: Path, *_: object) -> None:
        raise JobError(f"cannot write {path}: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("ptsr_edge.models.checkpoint.save_checkpoint", no_room)
        assert train(*call, "--out", tmp_path / "cut.safetensors").exit_code == 1
    assert (tmp_path / "cut.state").is_file()
    monkeypatch.setattr(
        "ptsr_edge.train.trainer._train_step", lambda *_: pytest.fail("what was done is done again")
    )
    assert train(*call, "--resume", "--out", tmp_path / "cut.safetensors").exit_code == 0
    states = [load_checkpoint(tmp_path / f"{name}.safetensors")[0].state_dict() for name in ("whole", "cut")]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not (tmp_path / "cut.state").exists()


def test_a_class_without_a_sample_is_a_wrong_call(megc_folder: Path, tmp_path: Path) -> None:
    table = "combined_3_class2_for_optical_flow.csv"
    images = "STSNet_whole_norm_u_v_os"
    (tmp_path / images).symlink_to(megc_folder / images)
    rows = (megc_folder / table).read_text(encoding="utf-8").splitlines()
    kept = [rows[0], *(row for row in rows[1:] if not row.endswith(",2"))]
    (tmp_path / table).write_text("\n".join(kept) + "\n", encoding="utf-8")
    out = tmp_path / "out" / "nano.safetensors"
    result = train(
        "--data", "megc-flow", "--root", tmp_path, "--model", "vit-nano", "--epochs", 1, "--out", out
    )
    assert result.exit_code == 2
    assert "every class needs a clip to train on, found negative" in result.stderr.splitlines()[-1]
    assert not out.parent.exists()


def test_the_state_of_another_run_is_refused_and_kept(megc_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "nano.safetensors"
    state = tmp_path / "nano.state"
    save_file({"x": torch.zeros(1)}, state, {"step": "1", "identity": "another"})
    before = state.read_bytes()
    result = train(
        "--data", "megc-flow", "--root", megc_folder, "--model", "vit-nano", "--epochs", 1, "--resume",
        "--out", out,
    )  # fmt: skip
    assert result.exit_code == 2
    assert "is the state of another run" in result.stderr.splitlines()[-1]
    assert state.read_bytes() == before
    assert not out.exists()


def test_held_out_scores_of_a_known_answer(megc_folder: Path) -> None:
    # A head that always says class 1: recall 0, 1, 0, so UAR 1/3; F1 of class 1 is 2 TP / (2 TP + FP) =
    # 24 / (24 + 24) = 1/2 on 12 of 36 clips, so UF1 1/6.
    model = build_model(named_model("vit-nano"))
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
    data = load("megc-flow", megc_folder, image_size=28)
    assert np.bincount(data.labels).tolist() == [12, 12, 12]
    assert held_out_scores(model, data, (1.0, 0.5)) == {"1": {"n": 36, "uf1": 0.1667, "uar": 0.3333}}


def test_unfit_rows_of_recorded_data_are_refused_or_skipped(tmp_path: Path) -> None:
    """Through both verbs that learn or judge."""
    root = recorded_trees.casme2(tmp_path / "set")
    (root / "Cropped/sub01/EP01_2/reg_img35.jpg").unlink()
    out = tmp_path / "nano.safetensors"
    call = ("--data", "casme2", "--root", root)
    training = (*call, "--model", "ptsr-nano", "--epochs", 1, "--holdout", 0, "--out", out)
    refused = train(*training)
    assert refused.exit_code == 2
    assert "20140508.xlsx, row 4, column ApexFrame: frame 35 is not in" in refused.stderr.splitlines()[-1]
    assert not out.exists()
    trained = train(*training, "--skip-bad")
    assert trained.exit_code == 0, trained.stderr
    said = read_info(out).provenance
    assert said["train_subjects"] == ["casme2/sub01", "casme2/sub02", "casme2/sub17"]
    assert said["card"].startswith("trained on CASME II, whose licence")

    judging = [*map(str, call), "--checkpoint", str(out), "--subjects", "all", "--json"]
    assert CliRunner().invoke(evaluate_main, judging).exit_code == 2
    judged = CliRunner().invoke(evaluate_main, [*judging, "--skip-bad"])
    assert judged.exit_code == 0, judged.stderr
    assert {result["n"] for result in json.loads(judged.stdout)["results"]} == {4}


@pytest.mark.parametrize("joined", [False, True])
def test_the_recorded_command_redacts_folders_and_never_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, joined: bool
) -> None:
    """Also where a folder is called as its data are."""
    monkeypatch.chdir(tmp_path)
    recorded_trees.smic(tmp_path / "smic")
    words = ["--data", "smic", "--root", "smic", "--model", "ptsr-nano", "--epochs", "1", "--holdout", "0",
             "--skip-bad", "--out", "deep/smic.safetensors"]  # fmt: skip
    if joined:
        words = ["--data=smic", "--root=smic", *words[4:-2], "--out=deep/smic.safetensors"]
    monkeypatch.setattr(sys, "argv", ["ptsr-edge", "train", *words])
    result = train(*words)
    assert result.exit_code == 0, result.stderr
    said = read_info(tmp_path / "deep/smic.safetensors").provenance
    shown = said["command"].replace("=", " ").removeprefix("python -m ptsr_edge.train ")
    assert shown == (
        "--data smic --root DIR --model ptsr-nano --epochs 1 --holdout 0 --skip-bad --out smic.safetensors"
    )
    assert "start" not in said


def test_closely_cropped_synthetic_faces_have_a_recipe_of_their_own(tmp_path: Path) -> None:
    out = tmp_path / "close.safetensors"
    result = train("--crop", "close", "--clips", 1, "--model", "ptsr-nano", "--epochs", 1, "--out", out)
    assert result.exit_code == 0, result.stderr
    model, info = load_checkpoint(out)
    said = info.provenance
    close = load("synthetic", image_size=28, limit=1, crop="close")
    training = close.of_subjects(said["train_subjects"])
    assert (len(training), said["data_sha256"]) == (128, training.digest())
    recipe = PRETRAINING["nano"].model_copy(update={"epochs": 1})
    assert said["recipe"] == recipe.model_dump(mode="json")
    assert info.preprocess.crop == "close"
    again = fit(info.model, training, recipe, seed=0)
    assert digest_weights(model) == digest_weights(again)


def test_a_size_without_such_a_recipe_is_refused(tmp_path: Path) -> None:
    result = train("--crop", "close", "--model", "ptsr-small", "--out", tmp_path / "s.safetensors")
    assert (result.exit_code, list(tmp_path.iterdir())) == (2, [])
    assert "no recipe for starting weights of ptsr-small; sizes: nano" in result.stderr


@pytest.mark.parametrize("name", ["ptsr-nano", "vit-nano"])
def test_weights_that_saw_no_recorded_face_say_how_they_were_made(name: str) -> None:
    info = read_info(EMBEDDED / f"{name}.safetensors")
    assert (info.model, info.preprocess) == (named_model(name), Preprocess(image_size=28, crop="close"))
    provenance = info.provenance
    assert provenance["data"] == "ict-face"
    assert "MIT licence" in provenance["card"]
    assert TrainConfig.model_validate_json(json.dumps(provenance["recipe"])) == PRETRAINING["nano"]
    assert provenance["command"].startswith(
        f"python -m ptsr_edge.train --data ict-face --root DIR --crop close --model {name} --seed 0"
    )
    assert not set(provenance["train_subjects"]) & set(provenance["held_out_subjects"])
    assert all(entry["uar"] > 0.6 for entry in provenance["held_out"].values())  # chance is 1/3


@pytest.mark.parametrize("name", ["ptsr-tiny", "vit-tiny"])
def test_weights_of_rendered_and_drawn_people_say_how_they_were_made(name: str) -> None:
    info = read_info(EMBEDDED / f"{name}.safetensors")
    assert (info.model, info.preprocess) == (named_model(name), Preprocess(image_size=112))
    provenance = info.provenance
    assert (provenance["data"], provenance["synthetic"]) == ("faces", True)
    assert "MIT licence" in provenance["card"]
    recipe = TrainConfig.model_validate_json(json.dumps(provenance["recipe"]))
    # What only a PTSR reads was changed after the ViT had been trained.
    unread = {} if name == "ptsr-tiny" else {field: getattr(recipe, field) for field in NOT_OF_A_VIT}
    assert recipe == TRAIN_CONFIGS["tiny"].model_copy(update={"bfloat16": True, **unread})
    assert provenance["command"].startswith(
        f"python -m ptsr_edge.train --data faces --root DIR --model {name} --bf16 --half"
    )
