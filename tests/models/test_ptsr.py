"""The parts of PTSR and the selection of tokens against literal transcriptions of their papers, in float64."""

from __future__ import annotations

import itertools
import math
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ptsr_edge.core.config import ModelConfig, named_model
from ptsr_edge.core.errors import InputError
from ptsr_edge.models.ptsr import (
    SCORES,
    Attention,
    Block,
    LocalGlobalHead,
    LocalitySelfAttention,
    Mlp,
    Ptsr,
    ShiftedPatchTokenization,
    Vit,
    build_model,
    class_scores,
    count_parameters,
    dynamic_counts,
    find_score,
    gather_tokens,
    random_tokens,
    rollout_scores,
    selects_before_embedding,
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


Array = NDArray[np.float64]


def array(tensor: torch.Tensor) -> Array:
    return tensor.detach().double().numpy()


def literal_attention(layer: Attention, tokens: torch.Tensor) -> torch.Tensor:
    """Head by head and token by token, as the paper writes it; float64."""
    _, count, dim = tokens.shape
    head = dim // layer.heads
    qkv = tokens[0].double() @ layer.qkv.weight.double().T + layer.qkv.bias.double()
    out = torch.zeros(count, dim, dtype=torch.float64)
    for h in range(layer.heads):
        q, k, v = (qkv[:, part * dim + h * head : part * dim + (h + 1) * head] for part in range(3))
        for i in range(count):
            weights = torch.softmax(torch.stack([q[i] @ k[j] / math.sqrt(head) for j in range(count)]), 0)
            out[i, h * head : (h + 1) * head] = sum(w * v[j] for j, w in enumerate(weights))
    return out @ layer.proj.weight.double().T + layer.proj.bias.double()


def test_plain_attention(ptsr_config: Any, randomised: Any) -> None:
    layer = randomised(ptsr_config(kind="vit", depth=1)).blocks[0].attn
    tokens = torch.randn(1, 5, 24, generator=torch.Generator().manual_seed(0))
    expected = literal_attention(layer, tokens)
    # fp32 against float64 on sums of 24 products: a few 1e-6.
    torch.testing.assert_close(layer(tokens)[0][0].double(), expected, atol=1e-5, rtol=1e-5)


def test_a_block_is_two_pre_norm_residuals_with_their_scales(ptsr_config: Any, randomised: Any) -> None:
    block = randomised(ptsr_config(depth=1, layer_scale=0.1)).blocks[0]
    assert isinstance(block, Block)
    assert isinstance(block.mlp, Mlp)
    tokens = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(0))
    inner = tokens + block.ls1.gamma * block.attn(block.norm1(tokens))[0]
    expected = inner + block.ls2.gamma * block.mlp(block.norm2(inner))
    torch.testing.assert_close(block(tokens)[0], expected)


def flows(count: int = 2, side: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def norm_by_hand(norm: torch.nn.Module, features: Array) -> Array:
    """Over (N, features): LayerNorm along a row, or BatchNorm with running statistics."""
    state = {name: array(value) for name, value in norm.state_dict().items()}
    if "running_mean" in state:
        scaled = (features - state["running_mean"]) / np.sqrt(state["running_var"] + 1e-5)
    else:
        centred = features - features.mean(1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
    return scaled * state["weight"] + state["bias"]


@pytest.mark.parametrize("token_norm", ["layer", "batch"])
@pytest.mark.parametrize("patch", [4, 8])
def test_dnspt_is_a_loop_over_patches_and_views(
    ptsr_config: Any, randomised: Any, token_norm: str, patch: int
) -> None:
    # Lee et al. 2021, equations 5 and 6: the image and its four views shifted by half a patch along the
    # diagonals, concatenated along the channels, cut into patches; between the norms of Dual PatchNorm
    # (Kumar et al. 2023). 1e-5 is float32's rounding over 5 x 3 x 64 products of size 1.
    tokenizer = randomised(ptsr_config(token_norm=token_norm, patch_size=patch)).tokenizer
    image = flows(1)
    pixels, half, rows = array(image[0]), patch // 2, []
    for row in range(32 // patch):
        for column in range(32 // patch):
            features = []
            for dy, dx in ((0, 0), (-half, -half), (-half, half), (half, -half), (half, half)):
                for channel in range(3):
                    for y in range(row * patch, (row + 1) * patch):
                        for x in range(column * patch, (column + 1) * patch):
                            inside = 0 <= y + dy < 32 and 0 <= x + dx < 32
                            features.append(pixels[channel, y + dy, x + dx] if inside else 0.0)
            rows.append(features)
    normed = norm_by_hand(tokenizer.norm_in, np.array(rows))
    projected = normed @ array(tokenizer.project.weight).T + array(tokenizer.project.bias)
    expected = norm_by_hand(tokenizer.norm_out, projected)
    with torch.no_grad():
        found = tokenizer(image)[0]
    np.testing.assert_allclose(array(found), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_locality_self_attention_by_hand(ptsr_config: Any, randomised: Any) -> None:
    # Lee et al. 2021, equations 7 and 8: softmax(q k^T / tau) with a learned tau (here 1 / scale) and
    # minus infinity on the diagonal, one head after another. 1e-6: softmax weights below 1 in float32.
    attention = cast(LocalitySelfAttention, randomised(ptsr_config()).blocks[0].attn)
    tokens = torch.randn(1, 7, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mixed, weights = attention(tokens)
    fused = array(tokens[0]) @ array(attention.qkv.weight).T + array(attention.qkv.bias)
    query, key, value = fused[:, :24], fused[:, 24:48], fused[:, 48:]
    heads = []
    for head in range(2):
        part = slice(12 * head, 12 * (head + 1))
        logits = query[:, part] @ key[:, part].T * float(attention.scale[head].detach())
        np.fill_diagonal(logits, -np.inf)
        shares = np.exp(logits - logits.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        np.testing.assert_allclose(array(weights[0, head]), shares, atol=1e-6)
        heads.append(shares @ value[:, part])
    expected = np.concatenate(heads, 1) @ array(attention.proj.weight).T + array(attention.proj.bias)
    np.testing.assert_allclose(array(mixed[0]), expected, atol=1e-5)


def test_no_token_attends_to_itself(ptsr_config: Any, randomised: Any) -> None:
    attention = cast(LocalitySelfAttention, randomised(ptsr_config()).blocks[0].attn)
    with torch.no_grad():
        _, weights = attention(1e3 * torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(0)))
    assert (weights.diagonal(dim1=-2, dim2=-1) == 0).all()
    assert torch.isfinite(weights).all()


def test_the_temperature_is_learned_per_head_and_starts_at_the_usual_scale() -> None:
    attention = LocalitySelfAttention(named_model("ptsr-tiny"))
    # 192 / 3 = 64 dimensions a head: 1 / sqrt(64).
    assert attention.scale.tolist() == [0.125] * 3
    assert attention.scale.requires_grad
    before = attention(torch.ones(1, 4, 192) * torch.arange(4.0).view(1, 4, 1))[1]
    with torch.no_grad():
        attention.scale[1] *= 4
    after = attention(torch.ones(1, 4, 192) * torch.arange(4.0).view(1, 4, 1))[1]
    assert torch.equal(before[:, [0, 2]], after[:, [0, 2]])
    assert not torch.allclose(before[:, 1], after[:, 1])


def test_the_positional_read_out_by_hand(ptsr_config: Any, randomised: Any) -> None:
    head = cast(LocalGlobalHead, randomised(ptsr_config()).head)
    assert head.local is not None
    tokens = torch.randn(2, 1 + 3, 24, generator=torch.Generator().manual_seed(0))
    kept = torch.tensor([[5, 0, 11], [15, 2, 3]])
    expected = np.zeros((2, 3))
    for image in range(2):
        expected[image] = array(head.global_.weight) @ array(tokens[image, 0]) + array(head.global_.bias)
        for slot, place in enumerate(kept[image].tolist()):
            expected[image] += array(head.local[place]) @ array(tokens[image, 1 + slot])
    # 4 x 24 products of size 1 in float32.
    np.testing.assert_allclose(array(head(tokens, kept)), expected, atol=1e-5)


@pytest.mark.parametrize("score", SCORES)
def test_a_dropped_patch_contributes_nothing_to_the_read_out(
    ptsr_config: Any, randomised: Any, score: str
) -> None:
    model = cast(Ptsr, randomised(ptsr_config(score=score)))
    local = cast(torch.nn.Parameter, model.head.local)
    image = flows(1)
    with torch.no_grad():
        before = model(image, 4)
        dropped = sorted(set(range(16)) - set(before.kept[0].tolist()))
        local[dropped] = math.nan
        assert torch.equal(model(image, 4).logits, before.logits)
        local[before.kept[0, 0]] += 1.0
        assert not torch.allclose(model(image, 4).logits, before.logits)


@pytest.mark.parametrize("score", ["strain", "random"])
def test_selecting_before_the_embedding_hides_what_is_dropped(
    ptsr_config: Any, randomised: Any, score: str
) -> None:
    # With forced places, another content of a patch that no kept window touches cannot show.
    model = cast(Ptsr, randomised(ptsr_config(score=score)))
    image = flows(1)
    changed = image.clone()
    changed[..., 16:, 16:] = 7.0
    forced = torch.tensor([[0]])
    with torch.no_grad():
        assert torch.equal(model(image, 1, forced).logits, model(changed, 1, forced).logits)


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("score", SCORES)
def test_one_set_of_weights_serves_every_budget(
    ptsr_config: Any, randomised: Any, score: str, local: bool
) -> None:
    model = cast(Ptsr, randomised(ptsr_config(score=score, local_readout=local, select_block=1)))
    image = flows(2)
    with torch.no_grad():
        scores = model.scores(image)
        for tokens in range(1, 17):
            logits, kept = model(image, tokens)
            assert logits.shape == (2, 3)
            assert kept.shape == (2, tokens)
            assert torch.isfinite(logits).all()
            for one, chosen in zip(scores, kept, strict=True):
                # The set of the K highest: nothing that was left out scores above what was kept.
                left = sorted(set(range(16)) - set(chosen.tolist()))
                assert len(set(chosen.tolist())) == tokens
                assert not left or one[chosen].min() >= one[left].max()
        assert torch.equal(model(image).logits, model(image, 16).logits)
        assert model(image).kept.tolist() == [list(range(16))] * 2


def test_what_each_score_is_taken_from(ptsr_config: Any, randomised: Any) -> None:
    image = flows(1)
    with torch.no_grad():
        for score in ("class-attention", "rollout"):
            model = cast(Ptsr, randomised(ptsr_config(score=score, select_block=1)))
            x = model.tokenizer(image) + model.pos_embed[:, 1:]
            x = torch.cat([model.cls_token + model.pos_embed[:, :1], x], dim=1)
            x, first = model.blocks[0](x)
            _, second = model.blocks[1](x)
            if score == "class-attention":
                expected = array(second)[0].mean(0)[0, 1:]
            else:
                mixed = [(array(layer)[0].mean(0) + np.eye(17)) / 2 for layer in (first, second)]
                expected = (mixed[1] @ mixed[0])[0, 1:]
            # Attention shares below 1, in float32.
            np.testing.assert_allclose(array(model.scores(image)[0]), expected, atol=1e-6)
        model = cast(Ptsr, randomised(ptsr_config(score="strain")))
        patches = array(image[0, 2]).reshape(4, 8, 4, 8).mean((1, 3)).ravel()
        np.testing.assert_allclose(array(model.scores(image)[0]), patches, atol=1e-6)


def test_random_selection_is_a_fixed_draw_when_it_is_evaluated(ptsr_config: Any, randomised: Any) -> None:
    config = ptsr_config(score="random")
    model, other = cast(Ptsr, randomised(config)), cast(Ptsr, build_model(config, seed=5))
    with torch.no_grad():
        kept = model(flows(3), 5).kept
        assert torch.equal(kept, kept[:1].expand(3, -1))
        assert torch.equal(kept[:1], model(flows(1, seed=7), 5).kept)
        assert torch.equal(kept[:1], other(flows(1), 5).kept)
        model.train()
        drawn = [model(flows(1), 5).kept[0].tolist() for _ in range(8)]
    assert len({tuple(sorted(one)) for one in drawn}) > 1


@pytest.mark.parametrize("score", SCORES)
def test_dynamic_mode_is_static_mode_at_its_count(ptsr_config: Any, randomised: Any, score: str) -> None:
    model = cast(Ptsr, randomised(ptsr_config(score=score)))
    images = flows(3).abs()  # a strain is not negative
    with torch.no_grad():
        outputs = model.forward_dynamic(images, 0.6)
        scores = array(model.scores(images))
        counts = set()
        for image, output, one in zip(images, outputs, scores, strict=True):
            count = output.kept.shape[1]
            ordered = np.sort(one)[::-1]
            assert ordered[:count].sum() >= 0.6 * one.sum() - 1e-9
            assert ordered[: count - 1].sum() < 0.6 * one.sum()
            same = model(image[None], count)
            assert torch.equal(output.logits, same.logits)
            assert torch.equal(output.kept, same.kept)
            counts.add(count)
    assert all(1 <= count < 16 for count in counts)


def test_forced_places_replace_the_choice(ptsr_config: Any, randomised: Any) -> None:
    for score in ("class-attention", "strain"):
        model = cast(Ptsr, randomised(ptsr_config(score=score)))
        with torch.no_grad():
            chosen = model(flows(2), 4)
            assert torch.equal(model(flows(2), 4, chosen.kept).logits, chosen.logits)
            forced = torch.tensor([[0, 1, 2, 3]]).expand(2, -1)
            assert torch.equal(model(flows(2), 4, forced).kept, forced)


@pytest.mark.parametrize("tokens", [0, 17, -1])
def test_counts_that_there_are_not_are_refused(ptsr_config: Any, tokens: int) -> None:
    with pytest.raises(InputError, match=f"ptsr-test keeps 1 to 16 tokens, got {tokens}"):
        build_model(ptsr_config())(flows(1), tokens)


def test_the_baseline_keeps_all_of_its_tokens() -> None:
    model = build_model(named_model("vit-nano"))
    image = flows(2, side=28)
    with torch.no_grad():
        assert torch.equal(model(image).logits, model(image, 49).logits)
        assert model(image).kept.tolist() == [list(range(49))] * 2
    with pytest.raises(InputError, match="vit-nano keeps all of its 49 tokens, got a budget of 12"):
        model(image, 12)


def test_equal_seeds_give_equal_weights(ptsr_config: Any) -> None:
    torch.manual_seed(1)
    first = build_model(ptsr_config(), seed=3).state_dict()
    torch.manual_seed(2)
    again, other = (build_model(ptsr_config(), seed=seed).state_dict() for seed in (3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.local"], other["head.local"])


def test_weights_begin_as_narrow_as_they_are_said_to() -> None:
    state = build_model(named_model("ptsr-nano"), seed=0).state_dict()
    assert not any(state[name].any() for name in state if name.startswith("means."))
    assert not any(state[name].any() for name in state if name.endswith("bias"))
    # A truncated normal of width .02, cut at two of them: its standard deviation is .88 of that.
    weight = state["tokenizer.project.weight"]
    assert weight.abs().max() <= 0.04
    assert float(weight.std()) == pytest.approx(0.88 * 0.02, rel=0.05)
    # The local read-out of N d = 49 x 24 products: half of 1 / sqrt(N d).
    assert float(state["head.local"].std()) == pytest.approx(0.5 / (49 * 24) ** 0.5, rel=0.05)


def test_parameters_by_hand() -> None:
    # vit-nano: patches 24 x 48 + 24; class and positions 24 + 50 x 24; a block: qkv 72 x 25, projection
    # 24 x 25, MLP 2 x 24 x 25, two norms and two layer scales; last norm; head 3 x 25.
    block = 72 * 25 + 24 * 25 + 2 * 24 * 25 + 2 * 48 + 2 * 24
    assert count_parameters(Vit(named_model("vit-nano"))) == 24 * 49 + 51 * 24 + block + 48 + 3 * 25
    # ptsr-nano: DNSPT over 5 x 48 features between BatchNorms, one temperature a head, local read-out, and
    # three classes from the means of three channels of 49 patches.
    ptsr = 2 * 240 + 24 * 241 + 2 * 24 + 51 * 24 + block + 2 + 48 + 3 * 25 + 49 * 3 * 24 + 3 * (3 * 49 + 1)
    assert count_parameters(Ptsr(named_model("ptsr-nano"))) == ptsr


def test_batch_norm_counts_all_tokens_as_its_batch() -> None:
    config = ModelConfig(**named_model("ptsr-nano").model_dump())
    tokenizer = ShiftedPatchTokenization(config).train()
    images = flows(4, side=28)
    tokens = tokenizer(images).detach()  # (4, 49, 24)
    # At its initial weights the second norm leaves mean 0 and variance 1 over B x N tokens (minus eps).
    np.testing.assert_allclose(array(tokens.mean((0, 1))), 0, atol=1e-6)
    np.testing.assert_allclose(array(tokens.var((0, 1), correction=0)), 1, atol=1e-3)


@pytest.mark.parametrize("kind", ["build", "find"])
def test_an_unknown_score_is_refused_with_the_nearest(ptsr_config: Any, kind: str) -> None:
    with pytest.raises(InputError, match=r"unknown score 'strian'; known: .*random.* \(nearest: strain\)"):
        build_model(ptsr_config(score="strian")) if kind == "build" else find_score("strian")


@pytest.mark.parametrize("score", SCORES)
def test_scores_before_the_embedding_need_the_input_only(ptsr_config: Any, score: str) -> None:
    config = ptsr_config(score=score)
    assert selects_before_embedding(config) == (score in ("strain", "random"))
