from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from camera_data import FRAME_NS, ClockSpotter, PaintDetector, painted, scene, steady, with_face

from ptsr_edge.camera.stream import (
    MAX_GAP_S,
    RING_MOST,
    CameraStream,
    OnlineSpotter,
    Sighting,
    check_pts,
)
from ptsr_edge.core.errors import InputError
from ptsr_edge.vision.face_detection import Detector, FixedCrop

BOX = (40, 60, 100, 110)


class Quiet(ClockSpotter):
    """Finds nothing while frames come."""

    def push(self, crop: Any, pts_ns: int) -> list[Any]:
        super().push(crop, pts_ns)
        return []


def stream(
    detector: Detector | None = None, spotter: type[OnlineSpotter] = ClockSpotter, side: int = 32
) -> CameraStream:
    return CameraStream(detector or PaintDetector(), spotter, side)


def feed(camera: CameraStream, frames: Any) -> list[Sighting]:
    return [sighting for frame, pts in frames for sighting in camera.take(frame, pts)]


def test_a_spotted_motion_comes_with_its_own_two_crops() -> None:
    camera = stream(FixedCrop((0, 0, 32, 32)))
    frames = [(np.full((64, 64), number, np.uint8), number * FRAME_NS) for number in range(16)]
    first, second = feed(camera, frames)
    # The clock spotter's apex is two frames before the eighth, its onset five.
    assert (first.onset.crop[0, 0], first.apex.crop[0, 0]) == (2, 5)
    assert (second.onset.crop[0, 0], second.apex.crop[0, 0]) == (10, 13)
    assert second.motion.apex_ns == 13 * FRAME_NS
    assert second.cause is None
    assert [held.number for held in (second.onset, second.apex, second.offset)] == [10, 13, 15]
    assert (first.region.width, first.region.height) == (32, 32)


def test_a_stream_without_a_face_has_no_sightings() -> None:
    camera = stream()
    assert feed(camera, steady(60, scene() // 4)) == []
    assert camera.end() == []
    assert camera.stats.no_face == camera.stats.frames == 60
    assert camera.stats.windows == 0
    assert camera.stats.ring == 0


def test_a_stream_that_ends_in_the_middle_of_a_window_tells_what_it_can() -> None:
    camera = stream()
    assert feed(camera, steady(7, painted(BOX))) == []
    (last,) = camera.end()
    assert last.cause == "truncated"
    assert last.motion.offset_ns == 6 * FRAME_NS
    assert camera.end() == []
    # The next video begins anew, at any pts.
    assert len(feed(camera, steady(8, painted(BOX)))) == 1


def test_a_duplicate_pts_and_one_a_little_before_are_left_out() -> None:
    def sightings(pts: list[int]) -> tuple[list[int], CameraStream]:
        camera = stream(FixedCrop((0, 0, 32, 32)))
        found = feed(camera, [(np.zeros((64, 64), np.uint8), time) for time in pts])
        return [sighting.motion.apex_ns for sighting in found], camera

    plain = [number * FRAME_NS for number in range(24)]
    doubled = [pts for time in plain for pts in (time, time, max(0, time - 5))]
    expected, _ = sightings(plain)
    found, camera = sightings(doubled)
    assert found == expected
    assert len(expected) == 3
    stats = camera.stats
    assert (stats.frames, stats.duplicates, stats.backwards, stats.jumps) == (24, 25, 23, 0)


@pytest.mark.parametrize("jump_ns", [round(0.6e9), 3600 * 10**9, -10 * 10**9, -(10**15)])
def test_a_jump_ends_the_window_and_nothing_is_measured_across_it(jump_ns: int) -> None:
    assert abs(jump_ns) > MAX_GAP_S * 1e9
    camera = stream()
    before = feed(camera, steady(5, painted(BOX)))
    after = 4 * FRAME_NS + jump_ns
    (cut,) = camera.take(painted(BOX), after)
    assert before == []
    assert cut.cause == "truncated"
    assert cut.motion.offset_ns == 4 * FRAME_NS
    found = feed(camera, [(painted(BOX), after + number * FRAME_NS) for number in range(1, 8)])
    assert [sighting.motion.onset_ns for sighting in found] == [after + 2 * FRAME_NS]
    assert camera.stats.jumps == 1
    assert camera.stats.windows == 2


def test_a_slow_camera_is_no_jump() -> None:
    camera = stream()
    assert len(feed(camera, [(painted(BOX), number * 400_000_000) for number in range(8)])) == 1
    assert camera.stats.jumps == 0


def test_another_size_of_frames_begins_anew() -> None:
    camera = stream(spotter=Quiet)
    feed(camera, steady(6, painted(BOX)))
    (cut,) = camera.take(painted(BOX, width=402, height=302), 6 * FRAME_NS)
    assert cut.cause == "truncated"
    assert camera.stats.size_changes == 1
    assert camera.stats.tracks == 2


def test_a_face_that_leaves_ends_the_window_and_may_come_back() -> None:
    camera = stream(spotter=Quiet)
    found = []
    for number in range(150):
        frame = painted(BOX) if number < 30 or number >= 90 else scene() // 4
        found += camera.take(frame, number * FRAME_NS)
    (cut,) = found
    assert cut.cause == "truncated"
    stats = camera.stats
    assert stats.windows == 2
    assert 20 <= stats.no_face <= 60
    assert camera.stats.tracks == 2


def test_a_head_that_moves_far_begins_a_window_and_one_that_sways_does_not() -> None:
    swaying, walking = stream(spotter=Quiet), stream(spotter=Quiet)
    for number in range(60):
        sway = round(4 * np.sin(number / 5))
        swaying.take(painted((100 + sway, 60, 100, 110)), number * FRAME_NS)
        walking.take(painted((20 + 2 * number, 60, 100, 110)), number * FRAME_NS)
    assert swaying.stats.windows == 1
    # 118 pixels in steps of a tenth of the crop's side of 101.
    assert 8 <= walking.stats.windows <= 13


def test_of_two_faces_one_is_followed() -> None:
    camera = stream()
    found = feed(camera, steady(16, painted(BOX, (220, 60, 60, 66))))
    assert {sighting.face.x for sighting in found} == {40}
    assert len(found) == 2


def test_the_ring_never_grows_beyond_its_bounds() -> None:
    camera = stream(FixedCrop((0, 0, 32, 32)), side=16)
    frame = np.zeros((32, 32), np.uint8)
    for number in range(3 * RING_MOST):
        camera.take(frame, number * 1_000_000)
    assert camera.stats.ring == RING_MOST
    feed(camera, [(frame, 10**12 + number * 10**8) for number in range(40)])
    assert camera.stats.ring == 26  # two and a half seconds of ten frames a second, and the one at their edge


def test_a_spot_whose_crops_are_gone_is_counted() -> None:
    class Late(ClockSpotter):
        def push(self, crop: Any, pts_ns: int) -> list[Any]:
            self.crops = self.crops or [(pts_ns, crop)] * 6
            return super().push(crop, pts_ns)

    camera = stream(FixedCrop((0, 0, 32, 32)), spotter=Late, side=16)
    frame = np.zeros((32, 32), np.uint8)
    camera.take(frame, 0)
    for number in range(1, 40):
        camera._ring.clear()
        camera.take(frame, number * 10**8)
    assert camera.stats.lost_spots >= 3


def test_a_fixed_crop_outside_of_the_frame_leaves_the_stream_as_it_was() -> None:
    camera = stream(FixedCrop((250, 150, 50, 50)))
    feed(camera, steady(4, scene()))
    with pytest.raises(InputError, match="lies outside of the frame of 200 x 100"):
        camera.take(scene(200, 100), 4 * FRAME_NS)
    assert len(feed(camera, steady(4, scene(), first=4))) == 1


@pytest.mark.parametrize("pts", [1.0, "1", None, True, 2**63, float("nan")])
def test_what_is_no_timestamp_is_refused(pts: Any) -> None:
    with pytest.raises(InputError, match="pts_ns must be an integer number of nanoseconds"):
        check_pts(pts)
    assert check_pts(np.int64(5)) == 5
    assert check_pts(-5) == -5


def test_a_hand_that_leaves_is_an_occlusion_whatever_the_spotter_says() -> None:
    """The apex of the clock's spot shows a face, its onset the same face behind a patterned square."""
    plain = with_face(scene(), 80, 40)
    covered = plain.copy()
    covered[130:190, 130:190] = (
        np.random.default_rng(0).integers(0, 256, (6, 6, 1)).repeat(10, 0).repeat(10, 1)
    )
    shown = [covered if number < 4 else plain for number in range(8)]
    for pictures, cause in ((shown, "occlusion"), ([plain] * 8, None)):
        camera = stream(FixedCrop((80, 40, 160, 160)), side=112)
        (found,) = feed(camera, [(picture, number * FRAME_NS) for number, picture in enumerate(pictures)])
        assert found.cause == cause
