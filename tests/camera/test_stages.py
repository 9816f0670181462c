from __future__ import annotations

import itertools
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_data import SIDE, tiny_flows, write_tiny_bundle
from camera_data import FRAME_NS, ClockSpotter, PaintDetector, cascade, painted, scene, steady, with_face

from ptsr_edge.bundle import RecommendedVariant, read_bundle, write_bundle, write_recommended
from ptsr_edge.camera.stages import (
    HOLD_S,
    MAX_GAP_S,
    RING_MOST,
    BudgetController,
    CameraStream,
    OnlineSpotter,
    SharedSession,
    Sighting,
    check_pts,
    goes_on,
    probability_margin,
)
from ptsr_edge.core.errors import InputError
from ptsr_edge.session import Session
from ptsr_edge.vision.face_detection import Detector, FixedCrop

pytest.importorskip("onnxruntime")

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
    camera = stream(FixedCrop((0, 0, 32, 32)), spotter=ClockSpotter, side=16)
    frame = np.zeros((32, 32), np.uint8)
    camera.take(frame, 0)
    for number in range(1, 40):
        camera._ring.clear()
        camera.take(frame, number * 10**8)
    assert camera.stats.lost_spots == 5  # one of eight frames


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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    bundle = write_tiny_bundle(tmp_path / "tiny", (1.0, 0.5, 0.25))
    write_bundle(tmp_path / "tiny", bundle.model_copy(update={"cascades": [cascade()]}))
    return tmp_path / "tiny"


def test_all_budgets_are_loaded_and_timed_beforehand(folder: Path) -> None:
    shared = SharedSession(folder)
    assert shared.budgets == [0.25, 0.5, 1.0]
    assert set(shared.inference_ms) == {0.25, 0.5, 1.0}
    assert all(took > 0 for took in shared.inference_ms.values())
    assert shared.artifact == "cpu/fp32"
    for variant in shared.bundle.variants:
        (folder / variant.artifact).unlink()  # nothing is loaded any more
    flow = tiny_flows(1).flows[0]
    assert [len(shared.predict(flow, budget).prediction.kept_tokens) for budget in shared.budgets] == [
        4,
        8,
        16,
    ]


@pytest.mark.parametrize(
    ("keep_rate", "ladder"), [(0.5, [0.25, 0.5]), (0.25, [0.25]), (None, [0.25, 0.5, 1.0])]
)
def test_auto_moves_among_budgets_up_to_the_recommended_one(
    folder: Path, keep_rate: float | None, ladder: list[float]
) -> None:
    for variant in read_bundle(folder).variants:
        if variant.keep_rate == keep_rate:
            write_recommended(folder, RecommendedVariant(variant=variant.id, kind="judged", reason="a test"))
    shared = SharedSession(folder)
    assert sorted(shared.ladder) == ladder
    assert shared.budgets == [0.25, 0.5, 1.0], "any other may still be asked for"


def test_it_answers_as_a_session_does(folder: Path) -> None:
    shared = SharedSession(folder)
    for flow in tiny_flows(5).flows:
        for budget in (0.5, 1.0):
            answer = shared.predict(flow, budget)
            expected = Session.open(folder, budget=budget).predict(flow)
            np.testing.assert_array_equal(answer.prediction.logits, expected.logits)
            assert answer.prediction.budget == budget
            assert list(answer.inference_ms) == [budget]


def test_a_cascade_goes_on_exactly_where_the_small_answer_is_close(folder: Path) -> None:
    shared, went_on = SharedSession(folder), []
    small = Session.open(folder, budget=0.5)
    for flow in tiny_flows(40).flows / 40:
        answer = shared.predict_in_cascade(flow)
        close = probability_margin(small.predict(flow).probabilities) < 0.5
        assert list(answer.inference_ms) == ([0.5, 1.0] if close else [0.5])
        assert answer.prediction.budget == (1.0 if close else 0.5)
        went_on.append(close)
    assert {True, False} == set(went_on)


def test_many_threads_get_their_own_answers(folder: Path) -> None:
    shared, flows = SharedSession(folder), tiny_flows(40).flows
    expected = {budget: Session.open(folder, budget=budget) for budget in shared.budgets}
    wanted = [[expected[budget].predict(flow).logits for flow in flows] for budget in shared.budgets]
    wrong: list[Any] = []
    start = threading.Barrier(6)

    def work(place: int) -> None:
        budget = shared.budgets[place % 3]
        start.wait()
        for number, flow in enumerate(flows):
            answer = shared.predict(flow, budget).prediction
            if answer.budget != budget or not np.array_equal(answer.logits, wanted[place % 3][number]):
                wrong.append((place, number))

    workers = [threading.Thread(target=work, args=(place,)) for place in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def test_budgets_that_there_are_not_are_refused(folder: Path) -> None:
    shared = SharedSession(folder)
    assert shared.check_budget(0.5) == 0.5
    assert shared.check_budget(0.24) == 0.25  # as many tokens
    assert shared.check_budget(1) == 1.0
    with pytest.raises(InputError, match=r"no budget 0\.7 in cpu/fp32; it has 0\.25, 0\.5, 1"):
        shared.check_budget(0.7)
    for wrong in (0, 1.5, True, "half", None):
        with pytest.raises(InputError, match="a budget is auto, cascade or a keep rate"):
            shared.check_budget(wrong)  # type: ignore[arg-type]


def test_a_flow_that_is_none_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="a flow sample must be"):
        SharedSession(folder).predict(np.zeros((SIDE, SIDE), np.float32), 1.0)


def test_a_model_of_ready_made_flow_cannot_be_used_with_a_camera(tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match="trained on flow fields that came ready-made"):
        SharedSession(tiny_bundle)


def test_the_margin_is_the_lead_over_the_second() -> None:
    assert probability_margin({"a": 0.2, "b": 0.7, "c": 0.1}) == pytest.approx(0.5)
    assert probability_margin([0.5, 0.5, 0.0]) == 0.0
    assert probability_margin([0.0, 1.0]) == 1.0


def test_a_margin_below_the_calibrated_one_goes_on() -> None:
    rule = cascade(margin=0.3)
    assert goes_on(rule, 0.29)
    assert not goes_on(rule, 0.3)
    assert not goes_on(cascade(margin=0.0), 0.0)


def test_the_rule_is_that_of_target_and_precision(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path)
    rules = [cascade(target="openvino"), cascade(margin=0.1), cascade(precision="int8")]
    write_bundle(tmp_path, bundle.model_copy(update={"cascades": rules}))
    assert SharedSession(tmp_path).cascade().margin == 0.1
    write_bundle(tmp_path, bundle.model_copy(update={"cascades": rules[:1]}))
    with pytest.raises(
        InputError, match=r"no calibrated cascade for cpu/fp32 \(it has openvino/fp32\): export it with --cas"
    ):
        SharedSession(tmp_path).cascade()
    write_bundle(tmp_path, bundle.model_copy(update={"cascades": [cascade(small=0.25)]}))
    with pytest.raises(InputError, match=r"no budget 0\.25"):
        SharedSession(tmp_path).cascade()


COSTS = {0.25: 2.0, 0.5: 4.0, 1.0: 10.0}


class Load:
    """Pushes of a machine that is `slow` times slower than when it was timed; every third one has an inference."""

    def __init__(self, controller: BudgetController) -> None:
        self.controller, self.pts, self.misses = controller, 0, 0

    def run(self, pushes: int, slow: float, rest_ms: float = 4.0) -> list[float]:
        budgets = []
        for number in range(pushes):
            self.pts += FRAME_NS
            budget = self.controller.budget
            spent = {budget: slow * COSTS[budget]} if number % 3 == 0 else {}
            took = slow * rest_ms + sum(spent.values())
            self.controller.saw_push(took, spent, self.pts)
            budgets.append(budget)
        return budgets


def test_it_starts_at_the_largest_budget_that_fits() -> None:
    assert BudgetController(COSTS, 33).budget == 1.0
    assert BudgetController(COSTS, 9).budget == 0.5
    assert BudgetController(COSTS, 1).budget == 0.25


def test_it_steps_down_when_the_machine_slows_and_comes_back_up_when_it_does_not() -> None:
    load = Load(BudgetController(COSTS, 33))
    assert set(load.run(60, slow=1.0)) == {1.0}
    slow = load.run(120, slow=4.0)  # 16 + 40 ms at full budget, 16 + 16 at half
    assert slow[-1] < 1.0
    misses = load.controller.misses
    load.run(60, slow=4.0)
    assert load.controller.misses == misses, "the deadline is held once it has stepped down"
    assert load.run(1200, slow=1.0)[-1] == 1.0


def test_it_does_not_swing() -> None:
    """At a load where full budget just fits and leaves no reserve, it goes down once and stays."""
    load = Load(BudgetController(COSTS, 33))
    load.run(3, slow=3.0)
    budgets = load.run(
        900, slow=2.1, rest_ms=5.0
    )  # 10.5 + 21 = 31.5 of 33 ms: fits, with less than a fifth left
    moves = sum(one != other for one, other in itertools.pairwise(budgets))
    assert moves <= 1


def test_it_holds_a_budget_for_some_time_before_it_goes_up() -> None:
    load = Load(BudgetController(COSTS, 33))
    load.run(30, slow=6.0)
    assert load.controller.budget == 0.25
    budgets = load.run(2000, slow=1.0)
    changes = [place for place in range(1, len(budgets)) if budgets[place] != budgets[place - 1]]
    assert budgets[-1] == 1.0
    assert len(changes) == 2
    assert (changes[1] - changes[0]) * FRAME_NS >= HOLD_S * 1e9


def test_a_slow_push_without_an_inference_is_a_miss_but_no_reason_to_move() -> None:
    controller = BudgetController(COSTS, 33)
    for number in range(40):
        controller.saw_push(3.0, {}, number * FRAME_NS)
    controller.saw_push(50.0, {}, 41 * FRAME_NS)
    assert controller.misses == 1
    assert controller.budget == 1.0


def test_a_clock_that_jumps_back_does_not_hold_it_forever() -> None:
    load = Load(BudgetController(COSTS, 33))
    load.run(30, slow=6.0)
    load.pts -= 10**15
    assert load.run(2000, slow=1.0)[-1] == 1.0


@pytest.mark.parametrize("deadline", [0, -1, math.nan, math.inf])
def test_a_deadline_that_is_none_is_refused(deadline: float) -> None:
    with pytest.raises(InputError, match="deadline_ms must be positive"):
        BudgetController(COSTS, deadline)
