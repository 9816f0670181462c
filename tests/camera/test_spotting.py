"""Online spotting on rendered clips whose truth is known, and its behaviour at the borders of a stream."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from interval_metrics import count_intervals
from pydantic import ValidationError

from ptsr_edge.camera.spotting import (
    FrameAverager,
    Spot,
    SpotSettings,
    Spotter,
    TrailingNoise,
    bump,
    bump_kernels,
    count_swings,
)
from ptsr_edge.core.errors import InputError
from ptsr_edge.data.synthetic_clips import Happening, Script, draw_script, film
from ptsr_edge.data.synthetic_faces import LANDMARKS

pytestmark = pytest.mark.slow

pytest.importorskip("cv2")

SECONDS = 16.0
Clip = list[tuple[int, np.ndarray]]


@functools.cache
def script(expressive: bool = True) -> Script:
    return draw_script(7, SECONDS, seed=5, expressive=expressive)


@functools.cache
def clip(fps: int = 30, expressive: bool = True) -> Clip:
    return list(film(script(expressive), fps))


def spot(frames: Clip, spotter: Spotter | None = None) -> list[tuple[Spot, int]]:
    """Each spot with the pts of the frame that it was answered with."""
    spotter = spotter or Spotter()
    return [(found, pts_ns) for pts_ns, frame in frames for found in spotter.push(frame, pts_ns)]


def shifted(frames: Clip, by_ns: int) -> Clip:
    return [(pts_ns + by_ns, frame) for pts_ns, frame in frames]


@pytest.mark.parametrize("fps", [25, 30, 100, 200])
def test_micro_expressions_are_spotted_alike_at_every_rate(fps: int) -> None:
    """On this clip all are strong enough to be found at every rate, beside blinks, jerks and a longer expression."""
    found = [one for one, _ in spot(clip(fps))]
    true = [(happening.onset_s, happening.offset_s) for happening in script().micro]
    counts = count_intervals([(one.onset_ns / 1e9, one.offset_ns / 1e9) for one in found], true)
    assert len(true) >= 2
    assert counts.hits == len(true)
    assert counts.false_alarms == 0
    for one, happening in zip(found, script().micro, strict=True):
        # Two samples of .02 s and a frame, to which the apex of a flat top may fall.
        assert one.apex_ns / 1e9 == pytest.approx(happening.apex_s, abs=0.04 + 1 / fps)
        assert one.score >= SpotSettings().threshold


@pytest.mark.parametrize("fps", [30, 100])
def test_answers_are_of_frames_that_were_pushed_and_come_in_time(fps: int) -> None:
    frames = clip(fps)
    pushed = {pts_ns for pts_ns, _ in frames}
    answers = spot(frames)
    assert answers
    for one, answered_ns in answers:
        assert {one.onset_ns, one.apex_ns, one.offset_ns} <= pushed
        assert one.onset_ns < one.apex_ns < one.offset_ns <= answered_ns
        assert answered_ns - one.apex_ns <= 1e9 * SpotSettings().max_delay_s


def test_the_future_changes_nothing_that_was_answered() -> None:
    """Trailing statistics only: what was answered by then is the same when the stream ends there."""
    whole = spot(clip())
    cut = len(clip()) * 3 // 4
    assert spot(clip()[:cut]) == [answer for answer in whole if answer[1] <= clip()[cut - 1][0]]


def test_a_neutral_face_that_blinks_and_moves_gives_nothing() -> None:
    kinds = {happening.kind for happening in script(expressive=False).happenings}
    assert kinds == {"blink"}
    assert spot(clip(expressive=False)) == []


def test_duplicates_are_left_out() -> None:
    twice = [each for frame in clip() for each in (frame, frame)]
    assert spot(twice) == spot(clip())


def test_a_constant_offset_of_the_clock_changes_nothing() -> None:
    by_ns = 10**15
    plain = [one for one, _ in spot(clip())]
    late = [one for one, _ in spot(shifted(clip(), by_ns))]
    assert [(one.onset_ns - by_ns, one.apex_ns - by_ns, one.offset_ns - by_ns) for one in late] == [
        (one.onset_ns, one.apex_ns, one.offset_ns) for one in plain
    ]


@pytest.mark.parametrize("jump_s", [-1000.0, -0.5, 0.3, 1000.0])
def test_after_a_jump_everything_begins_anew(jump_s: float) -> None:
    spotter = Spotter()
    before = clip()[:60]
    spot(before, spotter)
    after = shifted(clip(), before[-1][0] + round(1e9 * jump_s))
    resumed = [one for one, _ in spot(after, spotter)]
    fresh = [one for one, _ in spot(after)]
    assert fresh
    # Nothing reaches across the jump, and nothing is lost; more may be seen, as the noise is known by then.
    assert all(one.onset_ns >= after[0][0] for one in resumed)
    assert {(one.onset_ns, one.apex_ns) for one in fresh} <= {(one.onset_ns, one.apex_ns) for one in resumed}


def test_a_change_of_size_begins_anew() -> None:
    spotter = Spotter()
    spot([(pts_ns, np.kron(frame, np.ones((2, 2), np.uint8))) for pts_ns, frame in clip()[:30]], spotter)
    found = spot(shifted(clip(), clip()[30][0]), spotter)
    assert len(found) == len(script().micro)


def test_flush_answers_what_has_come_back_already() -> None:
    happening = script().micro[-1]
    end = next(
        number for number, (pts_ns, _) in enumerate(clip(100)) if pts_ns > 1e9 * (happening.offset_s + 0.05)
    )
    spotter = Spotter()
    answered = spot(clip(100)[:end], spotter)
    ended = spotter.flush()
    assert len(answered) == len(script().micro) - 1
    assert [one.apex_ns / 1e9 for one in ended] == pytest.approx([happening.apex_s], abs=0.05)
    assert spotter.flush() == []


def test_a_foreign_picture_in_between_gives_nothing() -> None:
    rng = np.random.default_rng(0)
    frames = clip(expressive=False)[:240]
    noise = [
        (pts_ns, rng.integers(0, 256, frame.shape).astype(np.uint8))
        if 120 <= number < 123
        else (pts_ns, frame)
        for number, (pts_ns, frame) in enumerate(frames)
    ]
    assert spot(noise) == []


@pytest.mark.parametrize("level", [0, 128])
def test_a_flat_picture_gives_nothing(level: int) -> None:
    flat = np.full((112, 112), level, np.uint8)
    spotter = Spotter()
    assert spot([(33_333_333 * number, flat) for number in range(120)], spotter) == []
    assert spotter.flush() == []


def test_what_is_held_does_not_grow() -> None:
    spotter = Spotter()
    spot(clip(100)[:400], spotter)
    held = len(spotter._pts)
    spot(clip(100)[400:], spotter)
    assert len(spotter._pts) <= max(held, 100 * (SpotSettings().max_delay_s + 2))


@pytest.mark.parametrize(
    "crop",
    [
        np.zeros((112, 112, 3), np.uint8),
        np.zeros((112, 100), np.uint8),
        np.zeros((8, 8), np.uint8),
        np.zeros((112, 112), np.float32),
        "a crop",
    ],
)
def test_what_is_no_crop_is_refused_and_not_taken(crop: object) -> None:
    spotter = Spotter()
    with pytest.raises(InputError, match=r"a face crop must be \(S, S\) uint8, gray"):
        spotter.push(crop, 0)  # type: ignore[arg-type]
    assert spotter.push(clip()[0][1], 0) == []


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"durations_s": (0.5, 0.1)}, "must ascend"),
        ({"durations_s": ()}, "must ascend"),
        ({"durations_s": (0.03, 0.1)}, "at least two samples, 0.04 s"),
        ({"sample_s": 0.2, "durations_s": (0.5,)}, "at most rest_s"),
        ({"threshold": 0}, "greater than 0"),
        ({"treshold": 3}, "Extra inputs"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        SpotSettings.model_validate(settings)


def test_the_stated_delay_is_the_sum_of_its_parts() -> None:
    settings = SpotSettings()
    # Half of .5 s twice, .12 s of rest, .15 s apart, three samples of .02 s and a gap of .25 s.
    assert settings.max_delay_s == pytest.approx(0.5 + 0.12 + 0.15 + 0.06 + 0.25)


STEP_S = 0.02
DURATIONS_S = (0.08, 0.2, 0.5)


@pytest.fixture(scope="module")
def kernels() -> np.ndarray:
    return bump_kernels(DURATIONS_S, 0.12, STEP_S)


def times(kernels: np.ndarray) -> np.ndarray:
    half = kernels.shape[1] // 2
    return STEP_S * np.arange(-half, half + 1, dtype=float)


def test_a_bump_rises_from_0_to_1_and_comes_back() -> None:
    at = bump(np.array([-0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2]), 0.2)
    # Half a cosine down from the middle: (1 + cos(pi / 2)) / 2 = .5 halfway.
    np.testing.assert_allclose(at, [0, 0, 0.5, 1, 0.5, 0, 0], atol=1e-12)


def test_each_kernel_reads_the_height_of_its_bump(kernels: np.ndarray) -> None:
    for row, lasts_s in zip(kernels, DURATIONS_S, strict=True):
        # Least squares of a signal that it can explain is exact.
        assert row @ (0.7 * bump(times(kernels), lasts_s)) == pytest.approx(0.7, abs=1e-9)


def test_level_and_slope_are_no_bump(kernels: np.ndarray) -> None:
    np.testing.assert_allclose(kernels @ (3.0 - 8.0 * times(kernels)), 0, atol=1e-9)


def test_a_shorter_bump_looks_at_less(kernels: np.ndarray) -> None:
    # Half of .5 s and .12 s of rest are 18 or 19 samples of .02 s; half of .08 s and .12 s are 8.
    assert kernels.shape[1] == 2 * round((0.25 + 0.12) / STEP_S) + 1
    middle = kernels.shape[1] // 2
    assert not kernels[0, : middle - 8].any()
    assert not kernels[0, middle + 9 :].any()
    assert kernels[0, middle - 8] != 0


def test_noise_is_the_standard_deviation_that_rare_events_do_not_change() -> None:
    rng = np.random.default_rng(0)
    noise = TrailingNoise(window=2000, refresh=1, floor=0.01)
    for number in range(2000):
        noise.add(np.array([rng.normal(0, 0.3), 0.0]) + (50 if number % 40 == 0 else 0))
    # 2.5 % of outliers move the median by about 4 %; 2000 draws leave about 3 %.
    assert noise.sigma[0] == pytest.approx(0.3, rel=0.1)
    assert noise.sigma[1] == pytest.approx(0.01), "no noise at all is taken to be the floor"


def test_noise_forgets_what_is_older_than_its_window() -> None:
    noise = TrailingNoise(window=10, refresh=1, floor=1e-6)
    for height in [5.0] * 10 + [1.0] * 10:
        noise.add(np.array([height]))
    assert noise.sigma == pytest.approx(1.4826)  # the median of ten ones, as a standard deviation
    assert len(noise) == 10


def test_noise_is_looked_at_now_and_then() -> None:
    noise = TrailingNoise(window=10, refresh=4, floor=1e-6)
    seen = []
    for height in (1.0, 9.0, 9.0, 9.0, 9.0):
        noise.add(np.array([height]))
        seen.append(float(noise.sigma[0]) / 1.4826)
    assert seen == pytest.approx([1, 1, 1, 1, 9])  # the first, then after four more


def samples(fps: float, seconds: float = 1.0) -> list[tuple[float, float]]:
    """Time and gray level of each sample of frames whose level is their number."""
    average, found = FrameAverager(0.02), []
    for number in range(round(seconds * fps)):
        sample = average.push(np.full((4, 4), number, np.uint8), round(1e9 * number / fps))
        if sample is not None:
            assert sample.frame.dtype == np.float32
            found.append((sample.time_s, float(sample.frame[0, 0])))
    return found


@pytest.mark.parametrize("fps", [10, 25, 30, 50])
def test_at_a_low_rate_each_frame_is_a_sample(fps: int) -> None:
    found = samples(fps)
    assert len(found) == fps
    # The level is the frame's number, so level / fps is its time.
    np.testing.assert_allclose([time for time, _ in found], [level / fps for _, level in found], atol=1e-8)


@pytest.mark.parametrize(("fps", "together"), [(100, 2), (150, 3), (200, 4)])
def test_at_a_high_rate_frames_are_averaged(fps: int, together: int) -> None:
    found = samples(fps)[1:]  # the first frame is a sample by itself
    steps = np.diff([level for _, level in found])
    np.testing.assert_allclose(steps, together)
    # Mean of the numbers and mean of the times belong together: nothing is shifted.
    np.testing.assert_allclose([time for time, _ in found], [level / fps for _, level in found], atol=1e-8)


def test_large_timestamps_keep_their_digits() -> None:
    average = FrameAverager(0.02)
    frame = np.zeros((2, 2), np.uint8)
    average.push(frame, 10**15)
    average.push(frame, 10**15 + 10_000_000)
    sample = average.push(frame, 10**15 + 20_000_000)
    assert sample is not None
    # A million seconds in a double leave 1e-10 s.
    assert sample.time_s - 1e6 == pytest.approx(0.015, abs=1e-9)


def test_swings_are_counted_by_hand() -> None:
    up_and_down = np.array([0, 1, 2, 1, 0, 0.4, 0, 2, 0], float)
    assert count_swings(up_and_down, 1.0) == 4
    assert count_swings(up_and_down, 0.3) == 6
    assert count_swings(up_and_down, 2.5) == 0
    assert count_swings(-up_and_down, 1.0) == 4
    assert count_swings(np.zeros(1), 1.0) == 0
    assert count_swings(np.linspace(0, 5, 50), 1.0) == 1, "a slow rise is one swing"


def alone() -> Script:
    """A neutral face that holds still, and one micro-expression of the mouth at 5 s."""
    still = draw_script(0, 9.0, moving=False, expressive=False)
    micro = next(happening for happening in draw_script(0, 8.0).happenings if happening.kind == "micro")
    moved = replace(micro, onset_s=5.0, apex_s=5.12, hold_s=5.12, offset_s=5.3)
    return replace(still, happenings=(moved,))


def louder(script: Script, most_px: float = 8.0) -> Script:
    (micro,) = script.happenings
    farthest = np.linalg.norm(micro.moves, axis=1).max()
    return replace(script, happenings=(replace(micro, moves=most_px / farthest * micro.moves),))


def talking(script: Script) -> Script:
    """The mouth opens and closes four times a second, from before the motion on."""
    (micro,) = script.happenings
    moves = np.zeros_like(micro.moves)
    for name in ("lower_lip", "chin", "jaw"):
        for place, landmark in enumerate(LANDMARKS):
            if landmark.startswith(name):
                moves[place] = (0.0, 1.5)
    starts = np.arange(3.0, 7.0, 0.25)
    words = [Happening("macro", at, at + 0.1, at + 0.1, at + 0.22, moves) for at in starts]
    return replace(script, happenings=tuple(words))


def nodding(script: Script) -> Script:
    """The head goes four pixels aside and back within the motion."""
    sway = script.head
    jerk = np.zeros((2, sway.amplitudes.shape[1]))
    jerk[0, 0], jerk[1, 0] = 4.0, -4.0
    head = replace(sway, jerks=jerk, starts_s=np.array([4.95, 5.13]), lasts_s=np.array([0.15, 0.15]))
    return replace(louder(script, 2.0), head=head)


@pytest.mark.parametrize(
    ("change", "cause"),
    [(lambda script: script, None), (louder, "large_motion"), (talking, "speech"), (nodding, "head_turn")],
    ids=["a micro-expression", "a large motion", "speech", "a turn of the head"],
)
def test_what_comes_and_goes_is_told_apart(change: Callable[[Script], Script], cause: str | None) -> None:
    found = [one for one, _ in spot(list(film(change(alone()), 30)))]
    assert found
    assert {one.cause for one in found if one.apex_ns > 4.5e9} == {cause}


def test_a_motion_that_was_cut_and_one_behind_another_picture_have_a_cause() -> None:
    happening = script().micro[-1]
    end = next(
        number for number, (pts_ns, _) in enumerate(clip(100)) if pts_ns > 1e9 * (happening.offset_s + 0.05)
    )
    spotter = Spotter()
    spot(clip(100)[:end], spotter)
    assert [one.cause for one in spotter.flush()] == ["truncated"]
    spot(clip(100)[:end], spotter)
    foreign = np.random.default_rng(0).integers(0, 256, (112, 112)).astype(np.uint8)
    after = clip(100)[end - 1][0]
    found = [one for number in (1, 2, 3) for one in spotter.push(foreign, after + 10_000_000 * number)]
    assert {one.cause for one in found} == {"occlusion"}
