"""Attention and blocks against literal formulas."""

from __future__ import annotations

import math

import torch

from ptsr_edge.models.ptsr import Attention, Block, LocalitySelfAttention, Mlp


def literal_attention(
    layer: Attention, tokens: torch.Tensor, scales: list[float], masked: bool
) -> torch.Tensor:
    """Head by head and token by token, as the papers write it; float64."""
    _, count, dim = tokens.shape
    head = dim // layer.heads
    qkv = tokens[0].double() @ layer.qkv.weight.double().T + layer.qkv.bias.double()
    out = torch.zeros(count, dim, dtype=torch.float64)
    for h in range(layer.heads):
        q, k, v = (qkv[:, part * dim + h * head : part * dim + (h + 1) * head] for part in range(3))
        for i in range(count):
            others = [j for j in range(count) if not (masked and i == j)]
            weights = torch.softmax(torch.stack([scales[h] * (q[i] @ k[j]) for j in others]), 0)
            out[i, h * head : (h + 1) * head] = sum(w * v[j] for w, j in zip(weights, others, strict=True))
    return out @ layer.proj.weight.double().T + layer.proj.bias.double()


def test_plain_attention(ptsr_config, randomised) -> None:
    layer = randomised(ptsr_config(kind="vit", depth=1)).blocks[0].attn
    tokens = torch.randn(1, 5, 24, generator=torch.Generator().manual_seed(0))
    expected = literal_attention(layer, tokens, [1 / math.sqrt(12)] * 2, masked=False)
    # fp32 against float64 on sums of 24 products: a few 1e-6.
    torch.testing.assert_close(layer(tokens)[0][0].double(), expected, atol=1e-5, rtol=1e-5)


def test_locality_self_attention(ptsr_config, randomised) -> None:
    layer = randomised(ptsr_config(depth=1)).blocks[0].attn
    assert isinstance(layer, LocalitySelfAttention)
    tokens = torch.randn(1, 5, 24, generator=torch.Generator().manual_seed(0))
    mixed, weights = layer(tokens)
    expected = literal_attention(layer, tokens, layer.scale.tolist(), masked=True)
    torch.testing.assert_close(mixed[0].double(), expected, atol=1e-5, rtol=1e-5)
    assert torch.diagonal(weights, dim1=-2, dim2=-1).abs().max() == 0
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 2, 5))


def test_a_block_is_two_pre_norm_residuals_with_their_scales(ptsr_config, randomised) -> None:
    block = randomised(ptsr_config(depth=1, layer_scale=0.1)).blocks[0]
    assert isinstance(block, Block)
    assert isinstance(block.mlp, Mlp)
    tokens = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(0))
    inner = tokens + block.ls1.gamma * block.attn(block.norm1(tokens))[0]
    expected = inner + block.ls2.gamma * block.mlp(block.norm2(inner))
    torch.testing.assert_close(block(tokens)[0], expected)
