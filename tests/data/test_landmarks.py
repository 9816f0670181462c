"""The landmarks of the base face: order, sides and depth."""

from __future__ import annotations

from ptsr_edge.data.synthetic_faces import DEPTHS, LANDMARKS, PAIRS, PLACES, RIM_PLACES


def test_partners_stand_behind_each_other_in_the_same_order() -> None:
    left, right = LANDMARKS[:PAIRS], LANDMARKS[PAIRS : 2 * PAIRS]
    assert [name.removesuffix(".left") for name in left] == [name.removesuffix(".right") for name in right]
    assert not any("." in name for name in LANDMARKS[2 * PAIRS :])


def test_places_are_inside_and_on_their_side() -> None:
    assert PLACES.shape == (len(LANDMARKS), 2)
    assert DEPTHS.shape == (len(LANDMARKS),)
    assert PLACES.min() > 0
    assert PLACES.max() < 1
    assert (PLACES[:PAIRS, 0] < PLACES[PAIRS : 2 * PAIRS, 0]).all()


def test_the_rim_holds_the_edge_of_the_frame() -> None:
    assert all(0.0 in place or 1.0 in place for place in RIM_PLACES.tolist())
