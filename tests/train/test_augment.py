"""A moved picture of a flow: where its pixels go, and which way its vectors point afterwards."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ptsr_edge.train.trainer import (
    Augmentation,
    add_affine_flow,
    augment,
    flip_horizontally,
    rotate_scale_shift,
)

STILL = Augmentation(flip=0, shift=0, degrees=0, scale=0, gain=0)


def batch(side: int = 8) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def moved(
    flows: Tensor, degrees: float = 0.0, scale: float = 1.0, shift: tuple[float, float] = (0, 0)
) -> Tensor:
    count = len(flows)
    return rotate_scale_shift(
        flows,
        torch.full((count,), math.radians(degrees)),
        torch.full((count,), scale),
        torch.tensor(shift, dtype=torch.float32).expand(count, 2),
    )


def test_a_flip_mirrors_the_picture_and_negates_u() -> None:
    field = torch.zeros(1, 3, 2, 3)
    field[0, :, 1, 0] = torch.tensor([2.0, 3.0, 5.0])  # lower left: right 2, down 3, strain 5
    flipped = flip_horizontally(field)
    assert flipped[0, :, 1, 2].tolist() == [-2.0, 3.0, 5.0]
    assert flipped[0, :, 1, :2].abs().sum() == 0
    assert flipped[0, :, 0].abs().sum() == 0


def test_flipping_twice_changes_nothing() -> None:
    assert torch.equal(flip_horizontally(flip_horizontally(batch())), batch())


def test_a_quarter_turn_takes_the_vectors_along() -> None:
    # Clockwise as seen: the middle of the right side goes to the middle of the bottom, and what pointed
    # right points down: (u, v) -> (-v, u). 1e-5: the cosine of a float32 right angle is 4e-8, times a
    # side of 8 and values of 3.
    turned = moved(batch(), degrees=90)
    u, v, strain = torch.rot90(batch(), k=-1, dims=(-2, -1)).unbind(1)
    assert (turned - torch.stack([-v, u, strain], 1)).abs().max() < 1e-5


def test_a_quarter_turn_on_a_field_by_hand() -> None:
    field = torch.zeros(1, 3, 4, 4)
    field[0, :, 0, 3] = torch.tensor([1.0, 0.0, 7.0])  # upper right corner, pointing right
    turned = moved(field, degrees=90)
    assert turned[0, :, 3, 3].tolist() == pytest.approx([0.0, 1.0, 7.0], abs=1e-5)
    assert turned.abs().sum() == pytest.approx(8.0, abs=1e-4)


def test_a_turn_keeps_the_length_of_vectors() -> None:
    turned = moved(torch.ones(1, 3, 9, 9), degrees=30)
    # The centre of a constant field: (1, 1) turned by 30 degrees, sqrt(2) long at 45 + 30 degrees.
    expected = [math.sqrt(2) * math.cos(math.radians(75)), math.sqrt(2) * math.sin(math.radians(75)), 1.0]
    assert turned[0, :, 4, 4].tolist() == pytest.approx(expected, abs=1e-5)


def test_a_shift_moves_the_content_and_leaves_zero() -> None:
    # A quarter of 8 pixels: 2 to the right; an eighth down: 1. 1e-5: bilinear weights of float32 places.
    shifted = moved(batch(), shift=(0.25, 0.125))
    assert (shifted[..., 1:, 2:] - batch()[..., :-1, :-2]).abs().max() < 1e-5
    assert (shifted[..., :2] == 0).all()
    assert (shifted[..., :1, :] == 0).all()


def test_a_larger_scale_grows_the_scene() -> None:
    # By 2 around the centre: a plateau of the middle 4 x 4 pixels comes to fill 8 x 8 but for the edge,
    # where bilinear reading mixes in the neighbours.
    field = torch.zeros(1, 3, 8, 8)
    field[..., 2:6, 2:6] = 1.0
    grown = moved(field, scale=2)
    assert torch.allclose(grown[..., 1:7, 1:7], torch.ones(1, 3, 6, 6), atol=1e-5)
    assert moved(field, scale=0.5)[..., 0].abs().max() == 0


def test_what_comes_in_from_outside_is_no_motion() -> None:
    shrunk = moved(torch.ones(1, 3, 8, 8), scale=0.5)
    assert (shrunk[..., :1, :] == 0).all()
    assert torch.allclose(shrunk[..., 3:5, 3:5], torch.ones(1, 3, 2, 2), atol=1e-5)


def test_nothing_asked_for_is_nothing_done() -> None:
    same = augment(batch(), STILL, torch.Generator().manual_seed(0))
    assert (same - batch()).abs().max() < 1e-5  # bilinear weights of float32 places


def test_every_image_is_flipped_where_that_is_certain() -> None:
    flipped = augment(batch(), STILL.model_copy(update={"flip": 1.0}), torch.Generator().manual_seed(0))
    assert (flipped - flip_horizontally(batch())).abs().max() < 1e-5


def test_gain_is_one_positive_factor_an_image() -> None:
    louder = augment(batch(), STILL.model_copy(update={"gain": 0.5}), torch.Generator().manual_seed(0))
    factors = (louder / batch()).flatten(1)
    assert (factors.std(1) < 1e-3).all()
    assert (factors > 0).all()
    assert abs(float(factors[0, 0] - factors[1, 0])) > 0.01


def test_the_draws_come_from_the_generator_alone() -> None:
    how = Augmentation()
    torch.manual_seed(1)
    first = augment(batch(), how, torch.Generator().manual_seed(3))
    torch.manual_seed(2)
    assert torch.equal(first, augment(batch(), how, torch.Generator().manual_seed(3)))
    assert not torch.equal(first, augment(batch(), how, torch.Generator().manual_seed(4)))


def test_an_affine_flow_is_added_to_u_and_v_and_not_to_the_strain() -> None:
    # u + 1 + 2 x - y and v - 1 with x and y from -1 at the first to 1 at the last pixel.
    coefficients = torch.tensor([[[1.0, 2.0, -1.0], [-1.0, 0.0, 0.0]]])
    drifted = add_affine_flow(torch.zeros(1, 3, 5, 9), coefficients)
    assert torch.allclose(drifted[0, 0, 0, 0], torch.tensor(1.0 - 2.0 + 1.0))
    assert torch.allclose(drifted[0, 0, 4, 8], torch.tensor(1.0 + 2.0 - 1.0))
    assert torch.allclose(drifted[0, 0, 2, 4], torch.tensor(1.0))
    assert torch.allclose(drifted[0, 1], torch.full((5, 9), -1.0))
    assert (drifted[0, 2] == 0).all()


def test_head_motion_is_drawn_as_wide_as_it_is_asked_for() -> None:
    # The mean of u over a picture is its constant: of 4000 draws of width .5 the spread is .5 within 4 %.
    how = STILL.model_copy(update={"head_motion": 0.5})
    moved_by = augment(torch.zeros(4000, 3, 4, 4), how, torch.Generator().manual_seed(0))
    assert abs(float(moved_by[:, 0].mean(dim=(1, 2)).std()) - 0.5) < 0.02
    assert (moved_by[:, 2] == 0).all()
