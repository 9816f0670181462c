"""My own twelve clips with labels smile and frown: trained, exported and judged by the commands that a person types."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import own_folder
import pytest
from click.testing import CliRunner, Result

from ptsr_edge import Session
from ptsr_edge.__main__ import main
from ptsr_edge.data.datasets import load
from ptsr_edge.models.checkpoint import read_info

pytestmark = pytest.mark.slow

pytest.importorskip("av", reason="PyAV is not installed: a clip is a video")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

CARD = "trained on own clips, which their owner calls 'my clips'; licence, as their owner gives it: all of it is mine"


def ptsr_edge(line: str) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ptsr-edge", *line.split()])
        return CliRunner().invoke(main, line.split())


def done(line: str) -> str:
    result = ptsr_edge(line)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder with `mine` in it, filled in after `data init`; the commands run in it."""
    folder = tmp_path_factory.mktemp("own")
    own_folder.write_frames(folder / "mine")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert done("data init --root mine").splitlines()[-1] == "mine/clips.csv"
        empty = ptsr_edge("data check --data folder --root mine")
        assert (empty.exit_code, "fewer than two classes" in empty.stdout) == (1, True)
        own_folder.fill_in(Path("mine/clips.csv"))
        settings = Path("mine/dataset.toml").read_text(encoding="utf-8")
        for said, meant in (
            ('frames = "whole"', 'frames = "crops"'), ('# name = "my clips"', 'name = "my clips"'),
            ('# licence = ""', 'licence = "all of it is mine"'),
        ):  # fmt: skip
            assert said in settings
            settings = settings.replace(said, meant)
        Path("mine/dataset.toml").write_text(settings, encoding="utf-8")
        done(
            "train --data folder --root mine --model ptsr-nano --epochs 1 --device cpu --out out/nano.safetensors"
        )
        yield folder


@pytest.fixture(scope="module")
def exported(place: Path) -> str:
    """What the export said on the console: it runs in a process of its own, as it does for a person."""
    call = "-m ptsr_edge export --checkpoint out/nano.safetensors --calibration mine --target cpu --budgets 1.0,0.25 --out out/bundle"
    ran = subprocess.run(
        [sys.executable, *call.split()], cwd=place, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stderr


@pytest.mark.usefixtures("place")
def test_the_check_finds_twelve_clips_of_four_people() -> None:
    record = json.loads(done("data check --data folder --root mine --json"))
    (found,) = record["sets"]
    assert (record["ok"], found["used"], found["subjects"]["used"]) == (True, 12, 4)
    assert {name: counts["used"] for name, counts in found["classes"].items()} == {"frown": 6, "smile": 6}
    assert (found["name"], found["odd"], found["cropped"]) == ("folder:my clips", [], True)


@pytest.mark.usefixtures("place")
def test_the_checkpoint_says_what_it_was_trained_on() -> None:
    info = read_info(Path("out/nano.safetensors"))
    said = info.provenance
    assert (info.labels, info.model.classes) == (["frown", "smile"], 2)
    assert (said["data"], said["card"], said["recipe"]["start"]) == ("folder", CARD, "random")
    assert "are left out: the data have frown, smile" in said["start"]
    assert "--data folder --root DIR --model ptsr-nano" in said["command"]
    people = set(said["train_subjects"]) | set(said["held_out_subjects"])
    assert people == {f"folder:my clips/{name}" for name in own_folder.PEOPLE}


def test_an_export_is_calibrated_and_proven_on_the_people_of_training(exported: str) -> None:
    (line,) = [line for line in exported.splitlines() if line.startswith("calibrating")]
    assert line == (
        "calibrating on 9 samples of data folder and proving on 9 of them (3 people, 3 of them seen in training)"
    )
    manifest = json.loads(Path("out/bundle/bundle.json").read_text(encoding="utf-8"))
    said = manifest["provenance"]
    assert set(said["calibration"]["subjects"]) == set(said["train_subjects"])
    assert manifest["labels"] == ["frown", "smile"]
    assert said["model_card"].startswith(CARD)
    assert all(variant["parity"]["samples"] == 9 for variant in manifest["variants"])


@pytest.mark.usefixtures("exported")
def test_the_bundle_is_judged_on_who_was_held_out() -> None:
    record = json.loads(
        done(
            "evaluate --data folder --root mine --bundle out/bundle --checkpoint out/nano.safetensors --json"
        )
    )
    for result in record["results"]:
        assert (result["n"], result["subjects"], list(result["recall"])) == (3, 1, ["frown", "smile"])
        assert np.shape(result["confusion"]) == (2, 2)
        if "fp32" in result["id"]:
            assert result["agrees_with_eager"] == 3


@pytest.mark.usefixtures("exported")
def test_a_profile_and_its_report_know_the_classes() -> None:
    done("profile --bundle out/bundle --data folder --root mine --checkpoint out/nano.safetensors --duration-s 0.01 "
         "--min-runs 2 --processes 1 --attempts 1 --streams 0 --out out/profile")  # fmt: skip
    profile = json.loads(Path("out/profile/profile.json").read_text(encoding="utf-8"))
    assert (profile["labels"], profile["model_card"], profile["kept_patches"]) == (
        ["frown", "smile"],
        CARD,
        None,
    )
    assert sorted(set(profile["judged"]["truth"])) == [0, 1]
    done("report --profile out/profile --out out/report")
    page = Path("out/report/report.html").read_text(encoding="utf-8")
    assert "Recall, frown" in page
    assert "Recall, smile" in page


@pytest.mark.usefixtures("exported")
def test_a_session_answers_with_these_labels_what_the_model_learnt() -> None:
    """Folds of one epoch tell smiles from frowns, and so does the artifact on the clips that it was trained on."""
    session = Session.open("out/bundle", target="cpu", precision="fp32")
    data = load("folder", "mine", image_size=28)
    answers = [session.predict(flow) for flow in data.flows]
    assert {answer.label for answer in answers} <= {"frown", "smile"}
    assert all(list(answer.probabilities) == ["frown", "smile"] for answer in answers)
    seen = np.isin(data.subjects, read_info(Path("out/nano.safetensors")).provenance["train_subjects"])
    right = [
        answer.label == data.label_names[label] for answer, label in zip(answers, data.labels, strict=True)
    ]
    assert np.array(right)[seen].mean() > 0.75  # chance is half


@pytest.mark.usefixtures("place")
def test_models_are_trained_afresh_in_folds_of_own_clips() -> None:
    result = ptsr_edge(
        "evaluate --data folder --root mine --model ptsr-nano --epochs 1 --budgets 0.5 --through cpu --device cpu --json"
    )
    assert result.exit_code == 0, result.output
    assert "ptsr-nano: the starting weights answer" in result.stderr
    (found,) = json.loads(result.stdout)["results"]
    assert (found["n"], found["subjects"], np.shape(found["confusion"])) == (12, 4, (2, 2))
