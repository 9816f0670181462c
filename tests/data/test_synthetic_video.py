"""Scripts of long clips and their films."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ptsr_edge.core.config import LABELS
from ptsr_edge.core.errors import InputError
from ptsr_edge.data.synthetic_video import MICRO_S, Happening, draw_script, film

pytest.importorskip("cv2")


def test_an_expression_rises_and_returns() -> None:
    one = Happening("macro", 1.0, 1.2, 2.0, 2.4, np.zeros((1, 2)))
    times = (0.9, 1.0, 1.1, 1.2, 1.6, 2.0, 2.2, 2.4, 3.0)
    # Half cosines: .5 halfway up and down, 1 from the apex to the end of the hold.
    assert [one.intensity(time) for time in times] == pytest.approx([0, 0, 0.5, 1, 1, 1, 0.5, 0, 0])


def test_a_script_is_its_numbers() -> None:
    one, same, other = (draw_script(3, 30.0, seed) for seed in (1, 1, 2))
    assert [h.onset_s for h in one.happenings] == [h.onset_s for h in same.happenings]
    assert [h.onset_s for h in one.happenings] != [h.onset_s for h in other.happenings]
    np.testing.assert_array_equal(one.moves(12.3), same.moves(12.3))


def test_happenings_are_what_they_are_called() -> None:
    kinds = set()
    for subject in range(3):
        script = draw_script(subject, 60.0, 1)
        expressions = [h for h in script.happenings if h.kind != "blink"]
        for one, following in itertools.pairwise(expressions):
            assert following.onset_s - one.offset_s >= 2.5, "expressions never touch"
        for one in script.happenings:
            kinds.add(one.kind)
            assert 0 < one.onset_s < one.apex_s <= one.hold_s < one.offset_s < 60
            lasts = one.offset_s - one.onset_s
            if one.kind == "micro":
                assert MICRO_S[0] <= lasts <= MICRO_S[1]
                assert one.apex_s == one.hold_s
                assert one.label in range(len(LABELS))
                # The expression itself is at most 1.8 px at 112; weaker units of others come on top.
                assert 0.2 < np.hypot(*one.moves.T).max() < 3.5
            elif one.kind == "macro":
                assert lasts > 1
        assert script.micro == [h for h in script.happenings if h.kind == "micro"]
    assert kinds == {"micro", "macro", "blink"}


def test_a_neutral_clip_has_blinks_alone_and_a_still_one_stands_still() -> None:
    script = draw_script(0, 20.0, 1, expressive=False, moving=False)
    assert {h.kind for h in script.happenings} == {"blink"}
    assert not script.head.at(3.3).any()
    assert not script.light.at(3.3).any()
    assert draw_script(0, 20.0, 1).head.at(3.3).any()


def test_every_rate_shows_the_same_at_the_same_time() -> None:
    script = draw_script(2, 1.0, 1)
    slow, fast = list(film(script, 25)), list(film(script, 100))
    assert [pts for pts, _ in slow] == [pts for pts, _ in fast[::4]] == [40_000_000 * n for n in range(25)]
    for (_, one), (_, other) in zip(slow, fast[::4], strict=True):
        # Only the sensor's noise differs: read noise of at most 3, shot noise of .03 a level, drawn twice.
        assert np.abs(one.astype(float) - other).mean() < 6
    assert slow[0][1].shape == (112, 112)
    assert slow[0][1].dtype == np.uint8


def test_a_film_is_the_same_again() -> None:
    script = draw_script(2, 0.2, 1)
    for (pts, one), (again, other) in zip(film(script, 30), film(script, 30), strict=True):
        assert pts == again
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("bad", [0, -1.0, float("nan"), float("inf")])
def test_durations_and_rates_are_checked(bad: float) -> None:
    with pytest.raises(InputError, match="must last more than 0 s"):
        draw_script(0, bad)
    with pytest.raises(InputError, match="fps must be above 0"):
        next(film(draw_script(0, 1.0), bad))


def test_numbers_below_zero_are_refused() -> None:
    with pytest.raises(InputError, match="must not be negative"):
        draw_script(-1, 1.0)
