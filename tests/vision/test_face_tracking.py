from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from camera_data import FRAME_NS, PaintDetector, face_image, painted, scene

from ptsr_edge.vision.face_detection import Face, FixedCrop
from ptsr_edge.vision.face_tracking import (
    LOST_AFTER_S,
    MAX_SHIFT,
    CropRing,
    FaceTracker,
    Region,
    StableCrop,
    choose_face,
    region_of,
)

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


def test_a_frame_that_is_the_crop_comes_back_bit_for_bit() -> None:
    image = face_image(side=112)
    window = StableCrop(112)
    window.follow(Face(0, 0, 112, 112, aligned=True))
    crop = window.cut(image)
    np.testing.assert_array_equal(crop, image)
    assert not np.shares_memory(crop, image)
    colour = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    # Gray as colour: 0.114 + 0.587 + 0.299 = 1 in OpenCV's fixed point.
    np.testing.assert_array_equal(window.cut(colour), image)


def test_a_crop_is_cut_from_where_it_is_and_area_averaged() -> None:
    frame = np.zeros((100, 120), np.uint8)
    frame[20:60, 30:70] = np.kron(np.arange(100, dtype=np.uint8).reshape(10, 10), np.ones((4, 4), np.uint8))
    window = StableCrop(10)
    window.follow(Face(30, 20, 40, 40, aligned=True))
    np.testing.assert_array_equal(window.cut(frame), np.arange(100).reshape(10, 10))


@pytest.mark.parametrize("place", [(-10, -5), (90, 70), (-300, 20), (20, 400)])
def test_beyond_the_frame_its_edge_is_repeated(place: tuple[int, int]) -> None:
    frame = scene(120, 100)[..., 0]
    window = StableCrop(40)
    window.region = Region(*place, 40, 40)
    rows = np.clip(np.arange(place[1], place[1] + 40), 0, 99)
    columns = np.clip(np.arange(place[0], place[0] + 40), 0, 119)
    np.testing.assert_array_equal(window.cut(frame), frame[np.ix_(rows, columns)])


def test_the_crop_stays_while_the_face_is_near_and_moves_when_it_is_not() -> None:
    window = StableCrop(112)
    face = Face(100, 50, 100, 100)
    assert window.follow(face)
    held = window.region
    assert held is not None
    limit = MAX_SHIFT * held.height
    assert not window.follow(face.shifted(limit - 1.5, 1.5 - limit))
    assert window.region is held
    assert window.follow(face.shifted(limit + 1.5, 0))
    assert window.region == Region(held.x + round(limit + 1.5), held.y, held.width, held.height)
    assert window.follow(Face(80, 30, 140, 140))  # nearer by 40 %
    window.leave()
    assert window.follow(Face(80, 30, 140, 140))


def test_landmarks_place_the_crop_where_training_has_the_eyes() -> None:
    # The template itself, in a crop of 200 at 50, 30: side and corner come back.
    template = [(0.324, 0.326), (0.693, 0.327), (0.505, 0.515), (0.337, 0.678), (0.662, 0.678)]
    points = tuple((50 + 200 * x, 30 + 200 * y) for x, y in template)
    assert region_of(Face(60, 20, 150, 215, landmarks=points)) == Region(50, 30, 200, 200)
    # Points on one spot are no face: the box decides.
    bad = region_of(Face(60, 20, 150, 200, landmarks=((130, 100),) * 5))
    assert bad == Region(43, 36, 184, 184)


def test_the_box_alone_places_the_crop_at_the_chin() -> None:
    region = region_of(Face(60, 20, 150, 200))
    assert region.height == region.width == 184
    assert region.y + region.height == 220
    assert region.x + region.width / 2 == pytest.approx(135, abs=0.5)


def test_the_ring_is_bounded_in_time_and_in_number() -> None:
    ring = CropRing(span_ns=1_000, most=50)
    for pts in range(0, 10_000, 100):
        ring.add(pts, np.full((2, 2), pts // 100, np.uint8))
    assert len(ring) == 11
    assert ring.at(8_800) is None
    for pts in (8_900, 9_900):
        crop = ring.at(pts)
        assert crop is not None
        assert crop[0, 0] == pts // 100
    assert ring.at(8_950) is None
    for pts in range(10_000, 10_200):
        ring.add(pts, np.zeros((2, 2), np.uint8))
    assert len(ring) == 50
    ring.clear()
    assert len(ring) == 0
    assert ring.at(10_199) is None
