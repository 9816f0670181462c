"""The static graph is the model: each rewrite of weights, each part, and whole over every configuration."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ptsr_edge.core.errors import InputError
from ptsr_edge.export.static_model import (
    ClassOnlyBlock,
    SelectingBlock,
    StaticBlock,
    StaticPtsr,
    StaticTokenizer,
    block_table,
    diagonal_mask,
    fold_temperature,
    fold_tokenizer,
    to_static,
)
from ptsr_edge.models.ptsr import (
    SCORES,
    AttentionScore,
    Ptsr,
    ShiftedPatchTokenization,
    build_model,
    class_scores,
    rollout_scores,
    shifted,
)


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
@pytest.mark.parametrize(("local", "means"), [(True, None), (False, None), (True, 0), (True, 8)])
@pytest.mark.parametrize("score", list(SCORES))
def test_the_static_graph_is_the_model(
    ptsr_config: Any, randomised: Any, score: str, local: bool, means: int | None, token_norm: str
) -> None:
    # Reference: the training graph with float64 arithmetic, forced to the float32 choice; the choice
    # itself must be the same set. 1e-5 of the largest logit: float32's rounding through three blocks.
    model_scale = 0.1 if token_norm == "batch" else None
    for select_block in (0, 1, 2) if score in ("class-attention", "rollout") else (0,):
        config = ptsr_config(
            score=score, local_readout=local, token_norm=token_norm, select_block=select_block,
            layer_scale=model_scale, mean_readout=means is not None, mean_hidden=means or 0,
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
    score = cast(AttentionScore, SCORES["class-attention"])
    selecting = SelectingBlock(block, score, 16, kept_count)
    with torch.no_grad():
        full, weights = block(tokens_of(17))
        found, kept = selecting(tokens_of(17), [])
        one_row = score.static(weights[:, :, :1, 1:], [])
        assert_close(one_row, class_scores(weights))
    expected = class_scores(weights).topk(kept_count).indices
    assert set(kept[0].tolist()) == set(expected[0].tolist())
    assert_close(found, torch.cat([full[:, :1], full[:, 1:][:, kept[0]]], dim=1))


@pytest.mark.parametrize("before", [0, 1, 2])
def test_the_static_rollout_rolls_one_row_back(ptsr_config: Any, randomised: Any, before: int) -> None:
    # A row vector times the mixed matrices, last block first, is the class row of their product.
    model = randomised(ptsr_config(score="rollout", select_block=before))
    x, seen = tokens_of(17), []
    with torch.no_grad():
        for block in model.blocks[: before + 1]:
            x, weights = block(x)
            seen.append(weights)
        found = cast(AttentionScore, SCORES["rollout"]).static(seen[-1][:, :, :1, 1:], seen[:-1])
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


SIDE = 32


def image(kind: str) -> Tensor:
    """(1, 3, 32, 32) inputs that are hard on a norm in their own ways."""
    noise = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    right = torch.arange(SIDE) >= SIDE // 2
    return {
        "random": noise,
        "motionless": torch.zeros_like(noise),
        "flat": torch.full_like(noise, 3.3),
        "flat by channel": torch.tensor([1.3, -2.1, 0.7]).view(1, 3, 1, 1).expand_as(noise).contiguous(),
        "half motionless": noise.masked_fill(right, 0.0),
        "half flat": noise.masked_fill(right, 1.7),
        "near-flat": 5 + 1e-3 * noise,
        "ramp": torch.linspace(-3, 3, SIDE).expand_as(noise).contiguous(),
        "thousands": 1e3 * noise,
        "ten thousands": 1e4 * noise,
        "near-flat at a thousand": 1e3 + 1e-2 * noise,
    }[kind]


KINDS = ["random", "motionless", "flat", "flat by channel", "half motionless", "half flat", "near-flat",
         "ramp", "thousands", "ten thousands"]  # fmt: skip


def in_float64(tokenizer: ShiftedPatchTokenization, picture: Tensor) -> Tensor:
    """The training graph's tokens (N, d) with float64 arithmetic."""
    with torch.no_grad():
        tokens: Tensor = copy.deepcopy(tokenizer).double()(picture.double())
    return tokens[0]


def error(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value; NaN counts as infinite."""
    difference = float((found.double() - expected).abs().max() / expected.abs().max())
    return difference if difference == difference else float("inf")


def naive(tokenizer: ShiftedPatchTokenization, picture: Tensor) -> Tensor:
    """The obvious fold: one product of the uncentred views, variance as E[x^2] - E[x]^2. (N, d)."""
    kind = picture.dtype
    views = torch.cat([picture, *shifted(picture, tokenizer.patch // 2)], dim=1)
    features = F.unfold(views, tokenizer.patch, stride=tokenizer.patch).transpose(1, 2)  # (1, N, 5C p^2)
    weight = tokenizer.project.weight * tokenizer.norm_in.weight
    weight = (weight - weight.mean(1, keepdim=True)).to(kind)
    const = (tokenizer.project.weight @ tokenizer.norm_in.bias + tokenizer.project.bias).to(kind)
    mean = features.mean(-1, keepdim=True)
    variance = (features * features).mean(-1, keepdim=True) - mean * mean
    projected = F.linear(features, weight) * torch.rsqrt(variance.clamp_min(0) + 1e-5) + const
    result: Tensor = copy.deepcopy(tokenizer.norm_out).to(kind)(projected)[0]
    return result


@pytest.mark.parametrize("token_norm", ["layer", "batch"])
@pytest.mark.parametrize("patch", [4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_the_folded_tokenizer_is_exact(
    ptsr_config: Any, randomised: Any, token_norm: str, patch: int, kind: str
) -> None:
    # float32 keeps 6e-8 of each of 12 C (p/2)^2 = 144 to 576 products; a near-flat patch multiplies what
    # is lost of it by up to 1 / sqrt(1e-5) = 316. 1e-5 holds both; the naive form misses it by 20 to 6000.
    config = ptsr_config(token_norm=token_norm, patch_size=patch)
    tokenizer = randomised(config).tokenizer
    static = StaticTokenizer(tokenizer, config.grid)
    expected = in_float64(tokenizer, image(kind))
    kept = torch.randperm(config.patches, generator=torch.Generator().manual_seed(1))[: config.patches // 4]
    with torch.no_grad():
        assert error(static(image(kind), None)[0], expected) < 1e-5
        assert error(static(image(kind), kept)[0], expected[kept]) < 1e-5
        assert error(static(image(kind), kept[:1])[0], expected[kept[:1]]) < 1e-5


def test_the_folded_tokenizer_loses_less_than_the_training_graph(ptsr_config: Any, randomised: Any) -> None:
    # Noise of .01 on 1000 has 3 digits left in float32, whatever is computed from it: no relative 1e-5
    # exists. Centred by cells, at least 10 times less is lost than in the graph that was trained.
    config = ptsr_config(patch_size=4)
    tokenizer = randomised(config).tokenizer
    picture = image("near-flat at a thousand")
    expected = in_float64(tokenizer, picture)
    with torch.no_grad():
        static = error(StaticTokenizer(tokenizer, config.grid)(picture, None)[0], expected)
        assert static < 0.1 * error(tokenizer(picture)[0], expected)
        assert static < 1e-3
        assert error(naive(tokenizer, picture), expected) > 0.1


@pytest.mark.parametrize("token_norm", ["layer", "batch"])
@pytest.mark.parametrize("patch", [4, 8])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "thousand" not in kind])
def test_the_folded_tokenizer_holds_in_float16(
    ptsr_config: Any, randomised: Any, token_norm: str, patch: int, kind: str
) -> None:
    # Reference: the training graph in float64 on what float16 leaves of the input. float16 keeps 5e-4;
    # 5e-3 leaves room for ten such roundings in a row and none for a factor of 316.
    config = ptsr_config(token_norm=token_norm, patch_size=patch)
    tokenizer = randomised(config).tokenizer
    static = StaticTokenizer(tokenizer, config.grid)
    picture = image(kind).half()
    expected = in_float64(tokenizer, picture)
    with torch.no_grad():
        found = copy.deepcopy(static).half()(picture, None)[0]
    assert found.dtype == torch.float16
    assert error(found, expected) < 5e-3


@pytest.mark.parametrize(
    ("dtype", "limit", "lost"), [(torch.float32, 1e-5, 1e-4), (torch.float16, 5e-3, 0.1)]
)
def test_why_the_statistics_are_centred_by_cells(
    ptsr_config: Any, randomised: Any, dtype: torch.dtype, limit: float, lost: float
) -> None:
    # On a flat patch E[x^2] - E[x]^2 and the product with centred weights are differences of equal
    # numbers: what rounding leaves of them is multiplied by 316. Limits as in the tests above.
    config = ptsr_config(patch_size=4)
    tokenizer = randomised(config).tokenizer
    static = copy.deepcopy(StaticTokenizer(tokenizer, config.grid)).to(dtype)
    for kind in ("flat", "half flat"):
        picture = image(kind).to(dtype)
        expected = in_float64(tokenizer, picture)
        with torch.no_grad():
            assert error(static(picture, None)[0], expected) < limit
            assert kind != "flat" or error(naive(tokenizer, picture), expected) > lost


def test_a_flat_window_leaves_only_the_constant(ptsr_config: Any, randomised: Any) -> None:
    # Its centred pixels and the offsets of its cell means are exactly 0, not merely small. 0.75 and its
    # sums are exact in binary; a patch in the middle sees no padding.
    config = ptsr_config(patch_size=4)
    static = StaticTokenizer(randomised(config).tokenizer, config.grid)
    with torch.no_grad():
        found = static(torch.full((1, 3, SIDE, SIDE), 0.75), torch.tensor([9]))[0, 0]
        assert torch.equal(found, static.norm_out(static.const))


@pytest.mark.parametrize("token_norm", ["layer", "batch"])
def test_the_fold_needs_four_fifths_of_the_products(
    ptsr_config: Any, randomised: Any, token_norm: str
) -> None:
    config = ptsr_config(token_norm=token_norm, patch_size=8)
    tokenizer = randomised(config).tokenizer
    folded = fold_tokenizer(tokenizer)
    # The window of 2p x 2p pixels against five views of p x p.
    assert folded.kernel.shape == (24, 4 * 3 * 8**2)
    assert tokenizer.project.weight.shape == (24, 5 * 3 * 8**2)


def test_layer_norm_needs_statistics_of_16_cells(ptsr_config: Any, randomised: Any) -> None:
    folded = fold_tokenizer(randomised(ptsr_config()).tokenizer)
    assert folded.cell_map is not None
    assert folded.cell_weights is not None
    # Of the 20 cells that five views cover, the window's four middle ones come twice: in the middle
    # (rows and columns 1 and 2 of 4 x 4), which is the last cell of the first block, and so on.
    expected = [1, 1, 1, 2, 1, 1, 2, 1, 1, 2, 1, 1, 2, 1, 1, 1]
    assert (folded.cell_weights * 20).tolist() == pytest.approx(expected)
    # A constant added to the window must not show: each filter sums to 0, over pixels and over cells.
    # 1e-5: 1024 float32 values of size .1.
    assert folded.kernel.sum(1).abs().max() < 1e-5
    assert folded.cell_map.sum(1).abs().max() < 1e-5


def test_batch_norms_fold_into_one_product(ptsr_config: Any, randomised: Any) -> None:
    folded = fold_tokenizer(randomised(ptsr_config(token_norm="batch")).tokenizer)
    assert folded.cell_map is None
    assert folded.cell_weights is None


def test_the_block_table_by_hand() -> None:
    # 2 x 2 patches lie on 3 x 3 blocks, numbered row by row: the patch at row r, column c has the
    # blocks (r, c), (r, c + 1), (r + 1, c), (r + 1, c + 1).
    assert block_table(2).tolist() == [[0, 1, 3, 4], [1, 2, 4, 5], [3, 4, 6, 7], [4, 5, 7, 8]]
    assert block_table(1).tolist() == [[0, 1, 2, 3]]


def test_temperatures_fold_into_the_queries(ptsr_config: Any, randomised: Any) -> None:
    attention = randomised(ptsr_config()).blocks[0].attn
    weight, bias = fold_temperature(attention)
    first, second = attention.scale.detach().tolist()
    # 24 query rows: 12 of head 0, 12 of head 1; 48 rows of keys and values stay.
    factor = torch.tensor([first] * 12 + [second] * 12 + [1.0] * 48)
    assert torch.equal(weight, attention.qkv.weight.detach() * factor[:, None])
    assert torch.equal(bias, attention.qkv.bias.detach() * factor)
    tokens = torch.randn(1, 5, 24, generator=torch.Generator().manual_seed(0))
    fused = F.linear(tokens, weight, bias).view(1, 5, 3, 2, 12)
    query, key, _ = fused.permute(2, 0, 3, 1, 4)
    logits = (query @ key.transpose(-2, -1)).masked_fill(torch.eye(5, dtype=torch.bool), float("-inf"))
    with torch.no_grad():
        _, weights = attention(tokens)
    # Softmax weights below 1, in float32.
    assert (logits.softmax(-1) - weights).abs().max() < 1e-6
