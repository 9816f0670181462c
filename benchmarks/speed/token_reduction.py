"""EViT and ToMe on the plain ViT, as graphs of fixed shapes: the token reduction that a user would find elsewhere.

Written from the papers for batch 1, with static counts:

* EViT (Liang et al. 2022, arXiv 2202.07800, section 3): after the attention of a block the k patches that the class token
  attends to most are kept, and the others become one token, summed by that attention.
* ToMe (Bolya et al. 2023, arXiv 2210.09461, section 3): after the attention of a block the tokens are dealt into two sets
  in turn; the r most similar pairs, by the keys' mean over heads, become one token each, their mean by size. From then on
  attention is proportional: the logarithm of a token's size is added to its logits.

Shapes: T tokens with the class token first, d width, h heads, k classes; batch 1 throughout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ptsr_edge.core.config import ModelConfig
from ptsr_edge.models.ptsr import Attention, Block, Vit, class_scores, gather_tokens


@dataclass(frozen=True)
class Keep:
    """EViT in one block: the patches to keep."""

    tokens: int


@dataclass(frozen=True)
class Merge:
    """ToMe in one block: the pairs to merge, at most as many as there are."""

    pairs: int


Step = Keep | Merge


@dataclass(frozen=True)
class Reduction:
    """A named schedule of one of the two, by block from 0."""

    name: str
    label: str
    keep_rate: float
    steps: Mapping[int, Step]


def reductions(config: ModelConfig) -> tuple[list[Reduction], dict[str, str]]:
    """Returns the schedules that a network of this depth can have, and by name why it cannot have the others."""
    count, last = config.patches, config.depth - 1
    block = min(1, last)
    found = [
        Reduction(
            f"evit-{round(100 * rate)}",
            f"EViT at block {block}, {round(100 * rate)} %",
            rate,
            {block: Keep(config.tokens_at(rate))},
        )
        for rate in (0.5, 0.25)
    ]
    if last == 0:
        why = "a network of one block merges once, and at most half of its tokens"
        found.append(Reduction("tome-half", "ToMe, half once", 0.5, {0: Merge(count // 2)}))
        return found, {"tome-even": why, "tome-half-twice": why}
    pairs = round(0.75 * count / last)
    even = Reduction(
        "tome-even", f"ToMe, {pairs} a block", 0.25, {index: Merge(pairs) for index in range(config.depth)}
    )
    half = count // 2
    twice = Reduction("tome-half-twice", "ToMe, half twice", 0.25, {0: Merge(half), 1: Merge(half // 2)})
    return [*found, even, twice], {}


class ReducedVit(nn.Module):
    """A ViT that reduces its tokens: flow (1, C, S, S) -> logits (1, k)."""

    def __init__(self, vit: Vit, steps: Mapping[int, Step]) -> None:
        super().__init__()
        self.vit, self.steps = vit, dict(steps)

    def forward(self, flow: Tensor) -> Tensor:
        vit = self.vit
        x = torch.cat([vit.cls_token, vit.patch_embed(flow)], dim=1) + vit.pos_embed  # (1, T, d)
        size: Tensor | None = None
        for index, layer in enumerate(vit.blocks):
            block = cast(Block, layer)
            mixed, weights, keys = attend(block.attn, block.norm1(x), size)
            x = x + block.ls1(mixed)
            step = self.steps.get(index)
            if isinstance(step, Keep):
                x = keep_attended(x, weights, step.tokens)
            elif isinstance(step, Merge):
                x, size = merge_similar(x, size, keys.mean(dim=1), step.pairs)
            x = x + block.ls2(block.mlp(block.norm2(x)))
        logits: Tensor = vit.head(vit.norm(x)[:, 0])
        return logits

    def tokens(self) -> int:
        """Patch tokens, merged and fused ones included, that the last block attends to."""
        count = self.vit.config.patches
        for index in range(self.vit.config.depth - 1):
            step = self.steps.get(index)
            if isinstance(step, Keep):
                count = step.tokens + 1
            elif isinstance(step, Merge):
                count -= min(step.pairs, count // 2)
        return count


def attend(attention: Attention, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of x (1, T, d), proportional to the sizes (1, T, 1): what it mixed, weights (1, h, T, T), keys (1, h, T, d/h)."""
    batch, count, dim = x.shape
    qkv = attention.qkv(x).view(batch, count, 3, attention.heads, attention.head_dim)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (1, h, T, d/h)
    logits = attention.logits(query, key)
    if size is not None:
        logits = logits + size.log().view(1, 1, 1, count)
    weights = logits.softmax(dim=-1)
    mixed = (weights @ value).transpose(1, 2).reshape(batch, count, dim)
    return attention.proj(mixed), weights, key


def keep_attended(x: Tensor, weights: Tensor, tokens: int) -> Tensor:
    """EViT: x (1, 1 + N, d) -> (1, 1 + K + 1, d), what is dropped fused into the last token."""
    scores = class_scores(weights)  # (1, N)
    patches = x[:, 1:]
    if tokens >= patches.shape[1]:
        return x
    best = scores.topk(tokens, dim=1)
    kept = gather_tokens(patches, best.indices)
    # The weighted sum of the dropped ones is that of all less that of the kept ones.
    fused = scores.unsqueeze(1) @ patches - best.values.unsqueeze(1) @ kept  # (1, 1, d)
    return torch.cat([x[:, :1], kept, fused], dim=1)


def merge_similar(x: Tensor, size: Tensor | None, metric: Tensor, pairs: int) -> tuple[Tensor, Tensor | None]:
    """ToMe's bipartite soft matching: x (1, T, d), sizes (1, T, 1), None for ones, metric (1, T, c) -> T - pairs tokens.

    The class token is never merged, and stays the first.
    """
    pairs = min(pairs, (x.shape[1] - 1) // 2)
    if pairs <= 0:
        return x, size
    metric = metric / metric.norm(dim=-1, keepdim=True)
    similar = metric[:, ::2] @ metric[:, 1::2].transpose(1, 2)  # (1, A, B), the class token in A
    nearest = similar.max(dim=2)
    # The class token behind all others: its best match is rated below what a cosine can be.
    rated = torch.cat([torch.full_like(nearest.values[:, :1], -2.0), nearest.values[:, 1:]], dim=1)
    order = rated.argsort(dim=1, descending=True)  # (1, A)
    source, stay = order[:, :pairs], torch.cat([order[:, -1:], order[:, pairs:-1]], dim=1)
    weight = torch.ones_like(x[..., :1]) if size is None else size
    summed = torch.cat([x * weight, weight], dim=2)  # (1, T, d + 1): sums and sizes go one way
    ours, theirs = summed[:, ::2], summed[:, 1::2]
    target = nearest.indices.gather(1, source)  # (1, r)
    places = torch.arange(theirs.shape[1], device=x.device).view(1, -1, 1)
    merged = theirs + (places == target.unsqueeze(1)).to(x.dtype) @ gather_tokens(ours, source)
    result = torch.cat([gather_tokens(ours, stay), merged], dim=1)  # (1, T - r, d + 1)
    return result[..., :-1] / result[..., -1:], result[..., -1:]
