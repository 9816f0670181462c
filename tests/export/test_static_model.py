"""The static graph is the model: part by part, and whole over every configuration."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from ptsr_edge.core.errors import InputError
from ptsr_edge.export.static_model import (
    ClassOnlyBlock,
    SelectingBlock,
    StaticBlock,
    StaticPtsr,
    StaticTokenizer,
    diagonal_mask,
    to_static,
)
from ptsr_edge.models.ptsr import Ptsr, build_model, class_scores, rollout_scores

SCORES = ("class-attention", "rollout", "strain", "random")


def inputs() -> dict[str, Tensor]:
    noise = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    still = noise.clone()
    still[..., 18:, :] = 0
    return {"random": noise, "half motionless": still, "thousands": 1e3 * noise}


def tokens_of(count: int) -> Tensor:
    return torch.randn(1, count, 24, generator=torch.Generator().manual_seed(0))


def assert_close(found: Tensor, expected: Tensor) -> None:
    """To 1e-5 of the largest value: float32's rounding through a few sums of up to 192 products."""
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("token_norm", ["layer", "batch"])
@pytest.mark.parametrize(("local", "means"), [(True, False), (False, False), (True, True)])
@pytest.mark.parametrize("score", SCORES)
def test_the_static_graph_is_the_model(
    ptsr_config: Any, randomised: Any, score: str, local: bool, means: bool, token_norm: str
) -> None:
    # Reference: the training graph with float64 arithmetic, forced to the float32 choice; the choice
    # itself must be the same set. 1e-5 of the largest logit: float32's rounding through three blocks.
    model_scale = 0.1 if token_norm == "batch" else None
    for select_block in (0, 1, 2) if score in ("class-attention", "rollout") else (0,):
        config = ptsr_config(
            score=score, local_readout=local, token_norm=token_norm, select_block=select_block,
            layer_scale=model_scale, mean_readout=means,
        )  # fmt: skip
        model = cast(Ptsr, randomised(config))
        precise = copy.deepcopy(model).double()
        for tokens in (1, 4, 16):
            static = to_static(model, tokens)
            for kind, flow in inputs().items():
                with torch.no_grad():
                    logits, kept = static(flow)
                    chosen = model(flow, tokens).kept
                    expected = precise(flow.double(), tokens, chosen).logits
                case = f"{kind}, {tokens} tokens, select_block {select_block}"
                assert kept.shape == (1, tokens)
                assert set(kept[0].tolist()) == set(chosen[0].tolist()), case
                assert (logits - expected).abs().max() < 1e-5 * expected.abs().max(), case


@pytest.mark.parametrize("count", [2, 5, 17])
def test_a_block_with_constant_mask(ptsr_config: Any, randomised: Any, count: int) -> None:
    block = randomised(ptsr_config(layer_scale=0.1)).blocks[0]
    with torch.no_grad():
        expected, weights = block(tokens_of(count))
        found, ours = StaticBlock(block, count)(tokens_of(count))
    assert_close(found, expected)
    assert_close(ours, weights)
    assert (ours.diagonal(dim1=-2, dim2=-1) == 0).all()


def test_the_class_only_block_is_the_first_row(ptsr_config: Any, randomised: Any) -> None:
    # Dropping the class token's own key is masking it.
    block = randomised(ptsr_config(layer_scale=0.1)).blocks[2]
    with torch.no_grad():
        assert_close(ClassOnlyBlock(block)(tokens_of(9)), block(tokens_of(9))[0][:, :1])


@pytest.mark.parametrize("kept_count", [1, 5, 16])
def test_the_selecting_block_scores_by_one_row_and_gathers_early(
    ptsr_config: Any, randomised: Any, kept_count: int
) -> None:
    block = randomised(ptsr_config(layer_scale=0.1)).blocks[1]
    selecting = SelectingBlock(block, 16, kept_count)
    with torch.no_grad():
        full, weights = block(tokens_of(17))
        found, kept = selecting(tokens_of(17), None)
        one_row = selecting._scores(weights[:, :, :1, 1:], None)
        assert_close(one_row, class_scores(weights))
    expected = class_scores(weights).topk(kept_count).indices
    assert set(kept[0].tolist()) == set(expected[0].tolist())
    assert_close(found, torch.cat([full[:, :1], full[:, 1:][:, kept[0]]], dim=1))


@pytest.mark.parametrize("before", [0, 1, 2])
def test_the_selecting_block_rolls_one_row_back(ptsr_config: Any, randomised: Any, before: int) -> None:
    # A row vector times the mixed matrices, last block first, is the class row of their product.
    model = randomised(ptsr_config(score="rollout", select_block=before))
    x, seen = tokens_of(17), []
    with torch.no_grad():
        for block in model.blocks[: before + 1]:
            x, weights = block(x)
            seen.append(weights)
        selecting = SelectingBlock(model.blocks[before], 16, 4)
        found = selecting._scores(seen[-1][:, :, :1, 1:], seen[:-1])
    assert_close(found, rollout_scores(seen))


def test_where_nothing_reads_the_patches_the_last_block_is_for_the_class_token(ptsr_config: Any) -> None:
    kinds = {
        (local, tokens): [type(block) for block in cast(StaticPtsr, to_static(model, tokens)).blocks]
        for local in (True, False)
        for model in [build_model(ptsr_config(local_readout=local, select_block=1))]
        for tokens in (4, 16)
    }
    assert kinds[True, 4] == [StaticBlock, SelectingBlock, StaticBlock]
    assert kinds[False, 4] == [StaticBlock, SelectingBlock, ClassOnlyBlock]
    assert kinds[True, 16] == [StaticBlock] * 3
    assert kinds[False, 16] == [StaticBlock, StaticBlock, ClassOnlyBlock]


def test_the_mask_survives_float16() -> None:
    mask = diagonal_mask(3).half()
    assert torch.isfinite(mask).all()
    assert (mask + torch.eye(3).half() * 100).softmax(-1).diagonal().tolist() == [0, 0, 0]


@pytest.mark.parametrize("score", ["class-attention", "strain"])
def test_the_model_is_left_untouched(ptsr_config: Any, randomised: Any, score: str) -> None:
    model = cast(Ptsr, randomised(ptsr_config(score=score))).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    static = to_static(model, 4)
    assert not static.training
    assert not any(parameter.requires_grad for parameter in static.parameters())
    for parameter in static.parameters():
        parameter.fill_(7.0)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_baseline_is_exported_as_it_is(ptsr_config: Any, randomised: Any) -> None:
    model = randomised(ptsr_config(kind="vit"))
    flow = inputs()["random"]
    with torch.no_grad():
        assert torch.equal(to_static(model, 16)(flow).logits, model(flow).logits)
        with pytest.raises(InputError, match="keeps all of its 16 tokens, got a budget of 4"):
            to_static(model, 4)


@pytest.mark.parametrize("tokens", [0, 17])
def test_counts_that_there_are_not_are_refused(ptsr_config: Any, tokens: int) -> None:
    with pytest.raises(InputError, match=f"keeps 1 to 16 tokens, got {tokens}"):
        to_static(build_model(ptsr_config()), tokens)


def test_only_the_kept_windows_are_projected(ptsr_config: Any, randomised: Any) -> None:
    # NaN in pixels that no kept window holds does not reach the tokens.
    config = ptsr_config()
    static = StaticTokenizer(randomised(config).tokenizer, config.grid)
    flow = inputs()["random"]
    flow[..., 16:, :] = float("nan")
    with torch.no_grad():
        # Patches 0 to 3, the upper row: their windows end at row 8 + 4.
        assert torch.isfinite(static(flow, torch.arange(4))).all()
        assert torch.isnan(static(flow, torch.arange(8, 12))).all()
