from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from camera_data import FRAME_NS, PaintDetector, painted, scene

from ptsr_edge.vision.face_detection import Face, FixedCrop
from ptsr_edge.vision.face_tracking import LOST_AFTER_S, FaceTracker, choose_face

BIG, SMALL = (40, 60, 100, 110), (220, 60, 60, 66)


def test_the_largest_face_is_taken_first_then_the_nearest() -> None:
    large, small = Face(0, 0, 50, 50), Face(100, 0, 20, 20)
    assert choose_face([small, large], None) is large
    assert choose_face([large, small], Face(98, 2, 20, 20)) is small
    assert choose_face([large], Face(98, 2, 20, 20)) is None
    assert choose_face([], large) is None


def test_the_face_that_was_taken_is_kept_when_a_larger_one_comes() -> None:
    tracker = FaceTracker(PaintDetector(), detect_every_s=0)
    for number in range(3):
        face = tracker.update(painted(SMALL), number * FRAME_NS)
    both = painted(SMALL, (20, 60, 150, 170))
    for number in range(3, 8):
        face = tracker.update(both, number * FRAME_NS)
    assert face is not None
    assert face.centre[0] > 200
    assert tracker.tracks == 1


def test_between_detections_the_box_follows_the_face() -> None:
    detector = PaintDetector()
    tracker = FaceTracker(detector, detect_every_s=10)
    for number in range(16):
        face = tracker.update(painted((40 + 3 * number, 60 + number, 100, 110)), number * FRAME_NS)
    assert detector.calls == 1
    assert face is not None
    # Sparse flow is right to a tenth of a pixel a frame on this pattern.
    assert (face.x, face.y) == pytest.approx((40 + 45, 60 + 15), abs=2)
    assert (face.width, face.height) == (100, 110)


def test_the_detector_runs_by_the_clock_of_the_source_and_not_by_the_frame() -> None:
    frame = painted(BIG)
    for rate in (25, 30, 100, 200):
        detector = PaintDetector()
        tracker = FaceTracker(detector, detect_every_s=0.5)
        for number in range(2 * rate):
            tracker.update(frame, number * round(1e9 / rate))
        assert detector.calls in (4, 5), rate


def test_a_box_that_jitters_is_smoothed() -> None:
    class Jittery:
        def __init__(self) -> None:
            self.rng = np.random.default_rng(0)

        def detect(self, _frame: Any) -> list[Face]:
            x, y = 100 + self.rng.normal(0, 4, 2)
            return [Face(float(x), float(y), 80, 90)]

    tracker = FaceTracker(Jittery(), detect_every_s=0)
    frame, places = painted((95, 95, 90, 100)), []
    for number in range(200):
        face = tracker.update(frame, number * FRAME_NS)
        assert face is not None
        places.append(face.x)
    # First-order smoothing with a share of a half: variance (1/2) / (2 - 1/2) = 1/3 of that of one detection.
    assert np.std(places[20:]) == pytest.approx(4 * 3**-0.5, rel=0.15)


def test_a_face_that_leaves_is_lost_after_a_second_and_found_again() -> None:
    tracker = FaceTracker(PaintDetector())
    seen = []
    for number in range(150):
        frame = painted(BIG) if number < 30 or number >= 90 else scene() // 4
        seen.append(tracker.update(frame, number * FRAME_NS) is not None)
    gone = seen.index(False)
    assert 30 <= gone <= 30 + 30 * (LOST_AFTER_S + 0.5)
    back = seen.index(True, gone)
    assert 90 <= back <= 90 + 30 * 0.2 + 1
    assert all(seen[back:])
    assert tracker.tracks == 2


def test_where_corners_are_lost_the_detector_is_asked_at_once() -> None:
    detector = PaintDetector()
    tracker = FaceTracker(detector, detect_every_s=10)
    tracker.update(painted(BIG), 0)
    face = tracker.update(painted((180, 90, 90, 100)), FRAME_NS)  # elsewhere, and not to be tracked there
    for number in range(2, 5):
        face = tracker.update(painted((180, 90, 90, 100)), number * FRAME_NS)
    assert detector.calls >= 2
    assert face is not None


def test_a_fixed_crop_is_asked_for_once() -> None:
    tracker = FaceTracker(FixedCrop((10, 10, 50, 60)))
    for number in range(100):
        face = tracker.update(scene(seed=number % 3), number * FRAME_NS)
    assert face == Face(10, 10, 50, 60, aligned=True)
    assert tracker.detections == 1


def test_gray_and_odd_frames_are_tracked() -> None:
    tracker = FaceTracker(PaintDetector(), detect_every_s=10)
    tracker.update(painted(BIG, width=641, height=361), 0)
    moved = painted((46, 60, 100, 110), width=641, height=361)
    face = tracker.update(np.ascontiguousarray(moved[:, :, ::-1])[..., ::-1], FRAME_NS)
    assert face is not None
    assert face.x == pytest.approx(46, abs=1)


def test_a_reset_forgets_the_face() -> None:
    tracker = FaceTracker(PaintDetector())
    tracker.update(painted(BIG), 0)
    tracker.reset()
    assert tracker.face is None
    assert tracker.update(scene() // 4, 5) is None
