"""Synthetic micro-expressions: units after FACS, classes in their shares, clips that are their numbers, scripts of long clips and their films."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from ptsr_edge.core.config import LABELS, Preprocess
from ptsr_edge.core.errors import InputError
from ptsr_edge.data import synthetic_clips as synthetic
from ptsr_edge.data.synthetic_faces import LANDMARKS
from ptsr_edge.vision.flow import optical_strain

BOTH_SIDES = {name.partition(".")[0] for name in LANDMARKS}


def test_displacement_is_smooth():
    # At 1.8 px over some 10 px of skin the strain is about .2; a plateau's edge would reach 1.
    who = synthetic.person(1)
    for unit, habit in who.habits.items():
        field = who.face.displacement(1.8 * habit / np.hypot(*habit.T).max(), 112)
        assert optical_strain(field).max() < 0.5, unit


def test_units_name_landmarks_that_exist():
    for unit, moves in synthetic.ACTION_UNITS.items():
        assert set(moves) <= BOTH_SIDES, unit
    used = {unit for recipes in synthetic.RECIPES for r in recipes for unit in r.core + r.options}
    assert used <= set(synthetic.ACTION_UNITS) - {synthetic.BLINK}
    assert len(synthetic.RECIPES) == len(synthetic.CLASS_SHARES) == len(LABELS)


@pytest.mark.parametrize(
    ("unit", "landmark", "axis", "sign"),
    [
        pytest.param(1, "brow_inner.left", 1, -1, id="AU1 raises the inner brow"),
        pytest.param(4, "brow_inner.right", 1, 1, id="AU4 lowers it"),
        pytest.param(4, "brow_inner.right", 0, -1, id="AU4 draws the right brow to the middle"),
        pytest.param(12, "mouth_corner.left", 0, -1, id="AU12 pulls the left corner outwards"),
        pytest.param(12, "mouth_corner.right", 0, 1, id="AU12 pulls the right corner outwards"),
        pytest.param(12, "mouth_corner.right", 1, -1, id="AU12 pulls it up"),
        pytest.param(15, "mouth_corner.left", 1, 1, id="AU15 pulls it down"),
        pytest.param(26, "chin_boss", 1, 1, id="AU26 drops the jaw"),
        pytest.param(45, "eye_top.left", 1, 1, id="AU45 closes the lid"),
    ],
)
def test_units_move_as_facs_says(unit, landmark, axis, sign):
    # y grows downwards. Mean over subjects: each has its own direction.
    place = LANDMARKS.index(landmark)
    mean = np.mean([synthetic.person(subject).habits[unit][place, axis] for subject in range(8)])
    assert np.sign(mean) == sign
    assert abs(mean) > 0.2


def test_expression_reaches_its_peak():
    # Without blink and other units the largest landmark displacement is the peak by construction.
    who = synthetic.person(2)
    drawn = [synthetic.draw_expression(who, 1, np.random.default_rng(seed)) for seed in range(60)]
    peaks = np.array([expression.peak_px for expression in drawn])
    reached = np.array([np.hypot(*expression.moves.T).max() for expression in drawn])
    low, high = synthetic.PEAK_PX
    assert peaks.min() >= low
    assert peaks.max() <= high
    assert np.isclose(reached, peaks, rtol=1e-9).sum() >= 5


def test_clips_are_drawn_in_shares():
    labels = [synthetic.clip_label(subject, clip) for subject in range(160) for clip in range(24)]
    assert labels[24 * 3 + 5] == synthetic.render_clip(3, 5, 32)[2]
    shares = np.bincount(labels, minlength=3) / len(labels)
    # 3840 draws: standard deviation at most .008.
    np.testing.assert_allclose(shares, synthetic.CLASS_SHARES, atol=0.03)


def test_a_clip_is_the_same_alone_and_among_others():
    alone = synthetic.render_clip(7, 5, 112)
    synthetic.person.cache_clear()
    for clip in (0, 6, 5):
        again = synthetic.render_clip(7, clip, 112)
    np.testing.assert_array_equal(alone[0], again[0])
    np.testing.assert_array_equal(alone[1], again[1])
    assert alone[2] == again[2]


def test_clips_differ_by_subject_clip_and_seed():
    base = synthetic.render_clip(0, 0, 64)[1].astype(int)
    for arguments in ((1, 0, 64, 0), (0, 1, 64, 0), (0, 0, 64, 1)):
        assert np.abs(synthetic.render_clip(*arguments)[1] - base).mean() > 1


def test_frames_look_like_exposed_photographs():
    for subject in range(6):
        onset, apex, label = synthetic.render_clip(subject, 0, 112)
        assert onset.shape == apex.shape == (112, 112)
        assert onset.dtype == apex.dtype == np.uint8
        assert label in range(len(LABELS))
        assert 60 < onset.mean() < 190
        assert onset.std() > 20
        assert np.mean((onset == 0) | (onset == 255)) < 0.25


def test_a_small_model_gets_flow_of_reference_frames():
    # Measured at 112 and averaged down by 4: the mean stays.
    small, labels = synthetic.render_subject(0, 2, Preprocess(image_size=28))
    large, same = synthetic.render_subject(0, 2, Preprocess(image_size=112))
    assert small.shape == (2, 28, 28, 3)
    np.testing.assert_array_equal(labels, same)
    np.testing.assert_allclose(small, large.reshape(2, 28, 4, 28, 4, 3).mean((2, 4)), atol=1e-5)


def test_frames_scale_with_the_model():
    onset, _, label = synthetic.render_clip(0, 0, 224)
    assert onset.shape == (224, 224)
    assert label == synthetic.render_clip(0, 0, 112)[2]


@pytest.mark.parametrize("arguments", [(-1, 0, 64), (0, -1, 64), (0, 0, 64, -1)])
def test_negative_numbers(arguments):
    with pytest.raises(InputError, match="must not be negative"):
        synthetic.render_clip(*arguments)


def test_what_was_rendered_is_taken_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTSR_EDGE_CACHE", str(tmp_path))
    drawn = []
    render = synthetic.render_subject
    monkeypatch.setattr(synthetic, "render_subject", lambda *asked: drawn.append(asked[:2]) or render(*asked))
    preprocess = Preprocess(image_size=28)
    first = synthetic.render_subjects([0, 3], 2, preprocess)
    again = synthetic.render_subjects([3, 0, 5], 2, preprocess)
    # Faces are drawn side by side, in whatever order.
    assert sorted(drawn) == [(0, 2), (3, 2), (5, 2)]
    for before, after in zip(first, again, strict=True):
        np.testing.assert_array_equal(before, after[[1, 0]])
    # Other clips, sizes and seeds are other entries.
    synthetic.render_subjects([0], 1, preprocess)
    synthetic.render_subjects([0], 2, Preprocess(image_size=32))
    synthetic.render_subjects([0], 2, preprocess, seed=1)
    assert len(drawn) == 6
    entries = list((tmp_path / "rendered").rglob("*.entry"))
    assert len(entries) == 6
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:-1])
    spoiled = synthetic.render_subjects([0, 3], 2, preprocess)
    assert len(drawn) == 8
    np.testing.assert_array_equal(spoiled[0], first[0])


def test_an_expression_rises_and_returns() -> None:
    one = synthetic.Happening("macro", 1.0, 1.2, 2.0, 2.4, np.zeros((1, 2)))
    times = (0.9, 1.0, 1.1, 1.2, 1.6, 2.0, 2.2, 2.4, 3.0)
    # Half cosines: .5 halfway up and down, 1 from the apex to the end of the hold.
    assert [one.intensity(time) for time in times] == pytest.approx([0, 0, 0.5, 1, 1, 1, 0.5, 0, 0])


def test_a_script_is_its_numbers() -> None:
    one, same, other = (synthetic.draw_script(3, 30.0, seed) for seed in (1, 1, 2))
    assert [h.onset_s for h in one.happenings] == [h.onset_s for h in same.happenings]
    assert [h.onset_s for h in one.happenings] != [h.onset_s for h in other.happenings]
    np.testing.assert_array_equal(one.moves(12.3), same.moves(12.3))


def test_happenings_are_what_they_are_called() -> None:
    kinds = set()
    for subject in range(3):
        script = synthetic.draw_script(subject, 60.0, 1)
        expressions = [h for h in script.happenings if h.kind != "blink"]
        for one, following in itertools.pairwise(expressions):
            assert following.onset_s - one.offset_s >= 2.5, "expressions never touch"
        for one in script.happenings:
            kinds.add(one.kind)
            assert 0 < one.onset_s < one.apex_s <= one.hold_s < one.offset_s < 60
            lasts = one.offset_s - one.onset_s
            if one.kind == "micro":
                assert synthetic.MICRO_S[0] <= lasts <= synthetic.MICRO_S[1]
                assert one.apex_s == one.hold_s
                assert one.label in range(len(LABELS))
                # The expression itself is at most 1.8 px at 112; weaker units of others come on top.
                assert 0.2 < np.hypot(*one.moves.T).max() < 3.5
            elif one.kind == "macro":
                assert lasts > 1
        assert script.micro == [h for h in script.happenings if h.kind == "micro"]
    assert kinds == {"micro", "macro", "blink"}


def test_a_neutral_clip_has_blinks_alone_and_a_still_one_stands_still() -> None:
    script = synthetic.draw_script(0, 20.0, 1, expressive=False, moving=False)
    assert {h.kind for h in script.happenings} == {"blink"}
    assert not script.head.at(3.3).any()
    assert not script.light.at(3.3).any()
    assert synthetic.draw_script(0, 20.0, 1).head.at(3.3).any()


def test_every_rate_shows_the_same_at_the_same_time() -> None:
    script = synthetic.draw_script(2, 1.0, 1)
    slow, fast = list(synthetic.film(script, 25)), list(synthetic.film(script, 100))
    assert [pts for pts, _ in slow] == [pts for pts, _ in fast[::4]] == [40_000_000 * n for n in range(25)]
    for (_, one), (_, other) in zip(slow, fast[::4], strict=True):
        # Only the sensor's noise differs: read noise of at most 3, shot noise of .03 a level, drawn twice.
        assert np.abs(one.astype(float) - other).mean() < 6
    assert slow[0][1].shape == (112, 112)
    assert slow[0][1].dtype == np.uint8


def test_a_film_is_the_same_again() -> None:
    script = synthetic.draw_script(2, 0.2, 1)
    for (pts, one), (again, other) in zip(
        synthetic.film(script, 30), synthetic.film(script, 30), strict=True
    ):
        assert pts == again
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("bad", [0, -1.0, float("nan"), float("inf")])
def test_durations_and_rates_are_checked(bad: float) -> None:
    with pytest.raises(InputError, match="must last more than 0 s"):
        synthetic.draw_script(0, bad)
    with pytest.raises(InputError, match="fps must be above 0"):
        next(synthetic.film(synthetic.draw_script(0, 1.0), bad))


def test_numbers_below_zero_are_refused() -> None:
    with pytest.raises(InputError, match="must not be negative"):
        synthetic.draw_script(-1, 1.0)
