"""DTSM as pure functions, on examples worked out by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from ptsr_edge.core.errors import InputError
from ptsr_edge.models.ptsr import (
    class_scores,
    dynamic_counts,
    gather_tokens,
    random_tokens,
    rollout_scores,
    static_selection,
    strain_scores,
)


def test_static_selection_is_the_set_of_the_highest() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.3, 0.7], [4.0, 3.0, 2.0, 1.0]])
    assert static_selection(scores, 1).tolist() == [[1], [0]]
    assert static_selection(scores, 3).tolist() == [[1, 3, 2], [0, 1, 2]]
    assert sorted(static_selection(scores, 4)[0].tolist()) == [0, 1, 2, 3]


def test_static_selection_breaks_ties_into_distinct_tokens() -> None:
    kept = static_selection(torch.zeros(1, 9), 5)[0].tolist()
    assert len(set(kept)) == 5


@pytest.mark.parametrize(
    ("mass", "counts"),
    # Row 0 ordered: 1/2 1/4 1/8 1/8 with sums .5 .75 .875 1, exact in binary; row 1 holds all in one
    # token; row 2 is even.
    [(0.05, [1, 1, 1]), (0.5, [1, 1, 2]), (0.51, [2, 1, 3]), (0.75, [2, 1, 3]), (0.76, [3, 1, 4]),
     (0.875, [3, 1, 4]), (0.88, [4, 1, 4]), (1.0, [4, 1, 4])],
)  # fmt: skip
def test_dynamic_counts_by_hand(mass: float, counts: list[int]) -> None:
    scores = torch.tensor([[0.125, 0.5, 0.125, 0.25], [0.0, 0.0, 5.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    assert dynamic_counts(scores, mass).tolist() == counts


def test_no_smaller_set_holds_the_mass() -> None:
    scores = torch.rand(6, 7, generator=torch.Generator().manual_seed(0))
    for mass in (0.2, 0.5, 0.8, 0.95):
        for row, count in zip(scores.double().tolist(), dynamic_counts(scores, mass).tolist(), strict=True):
            # Over all subsets: the definition, without an ordering.
            sums = [max(map(sum, itertools.combinations(row, size))) for size in range(1, 8)]
            smallest = 1 + next(index for index, held in enumerate(sums) if held >= mass * sum(row) - 1e-12)
            assert count == smallest


def test_scores_of_zero_need_every_token() -> None:
    assert dynamic_counts(torch.zeros(2, 5), 0.5).tolist() == [5, 5]


@pytest.mark.parametrize("mass", [0, -0.1, 1.01, math.nan, math.inf])
def test_a_mass_outside_of_0_to_1_is_refused(mass: float) -> None:
    with pytest.raises(InputError, match=r"an attention mass is a share in \(0, 1\], got "):
        dynamic_counts(torch.ones(1, 4), mass)


def test_strain_scores_are_the_means_of_the_last_channel() -> None:
    image = torch.zeros(1, 3, 4, 4)
    image[0, 2] = torch.arange(16.0).view(4, 4)
    image[0, :2] = 99.0
    # Patches of 2 x 2 over rows 0..3, 4..7, 8..11, 12..15: e.g. (0 + 1 + 4 + 5) / 4 = 2.5.
    assert strain_scores(image, 2).tolist() == [[2.5, 4.5, 10.5, 12.5]]


def test_class_scores_are_the_class_row_over_heads() -> None:
    weights = torch.zeros(1, 2, 3, 3)
    weights[0, 0, 0] = torch.tensor([0.5, 0.25, 0.25])
    weights[0, 1, 0] = torch.tensor([0.0, 0.75, 0.25])
    assert class_scores(weights).tolist() == [[0.5, 0.25]]


def test_rollout_is_the_product_of_the_mixed_matrices() -> None:
    # Abnar and Zuidema 2020: A = (W + I) / 2 averaged over heads, rollout = A_3 A_2 A_1, in float64.
    # Three products of rows that sum to 1 in float32: 1e-6 is 8 roundings of values below 1.
    generator = torch.Generator().manual_seed(0)
    layers = [torch.rand(2, 2, 5, 5, generator=generator).softmax(-1) for _ in range(3)]
    for image in range(2):
        mixed = [(layer[image].double().mean(0).numpy() + np.eye(5)) / 2 for layer in layers]
        expected = (mixed[2] @ mixed[1] @ mixed[0])[0, 1:]
        np.testing.assert_allclose(rollout_scores(layers)[image].numpy(), expected, atol=1e-6)


def test_rollout_of_one_layer_orders_as_its_class_row() -> None:
    layer = torch.rand(1, 2, 6, 6, generator=torch.Generator().manual_seed(0)).softmax(-1)
    # (W + I) / 2 halves the class row's patch entries; halving is exact in binary.
    assert torch.equal(rollout_scores([layer]), class_scores(layer) / 2)


def test_gather_takes_each_image_its_own_rows() -> None:
    tokens = torch.arange(12.0).view(2, 3, 2)
    kept = torch.tensor([[2, 0], [1, 1]])
    assert gather_tokens(tokens, kept).tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]


def test_random_tokens_differ_by_sample_and_seed() -> None:
    one = random_tokens(50, 16, 6, seed=0)
    assert one.shape == (50, 6)
    assert all(len(set(row)) == 6 for row in one.tolist())
    assert len({tuple(sorted(row)) for row in one.tolist()}) > 30
    assert torch.equal(one, random_tokens(50, 16, 6, seed=0))
    assert not torch.equal(one, random_tokens(50, 16, 6, seed=1))
    # Each patch is kept in 6 of 16 samples: 3,000 draws, standard deviation .009.
    shares = torch.bincount(random_tokens(3000, 16, 6, seed=2).flatten(), minlength=16) / 3000
    assert (shares - 6 / 16).abs().max() < 0.04
