from __future__ import annotations

import cv2
import numpy as np
import pytest
from camera_data import face_image, scene

from ptsr_edge.vision.face_detection import Face
from ptsr_edge.vision.face_tracking import MAX_SHIFT, CropRing, Region, StableCrop, region_of


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
