"""DTSM, dynamic token selection, as pure functions over scores (B, N) that are not negative.

Two modes of one module: dynamic (each image keeps the smallest set of tokens that holds a given mass of
the score: what the method does) and static (exactly K tokens: what can be exported). The scores are
interchangeable: the class token's attention (EViT, Liang et al. 2022, arXiv 2202.07800; part selection
of TransFG, He et al. 2022), attention rollout (Abnar and Zuidema 2020), or a patch's optical strain,
which is known before anything is embedded.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ptsr_edge.core.errors import InputError


def static_selection(scores: Tensor, tokens: int) -> Tensor:
    """DTSM's static mode: scores (B, N) -> the indices (B, K) of the K highest, best first."""
    return scores.topk(tokens, dim=1).indices


def dynamic_counts(scores: Tensor, mass: float) -> Tensor:
    """DTSM's dynamic mode: how many tokens the smallest set has that holds `mass` of the score.

    Args:
        scores: (B, N), not negative; each row is taken relative to its sum.
        mass: share in (0, 1].

    Returns:
        (B,) counts in [1, N]; a row that is zero throughout needs all N.

    Raises:
        InputError: `mass` outside (0, 1].
    """
    if not 0 < mass <= 1:
        raise InputError(f"an attention mass is a share in (0, 1], got {mass:g}")
    ordered = scores.sort(dim=1, descending=True).values.double()
    total = ordered.sum(dim=1, keepdim=True)
    reached = ordered.cumsum(dim=1) / total.clamp_min(torch.finfo(torch.float64).tiny)
    counts = (reached < mass - 1e-12).sum(dim=1) + 1  # (B,)
    return counts.clamp_max(scores.shape[1])


def strain_scores(image: Tensor, patch: int) -> Tensor:
    """Mean optical strain of each patch: (B, C, H, W) with the strain as last channel -> (B, N)."""
    return F.avg_pool2d(image[:, -1:], patch).flatten(1)


def class_scores(weights: Tensor) -> Tensor:
    """The class token's attention to the patches, mean over heads: (B, h, N + 1, N + 1) -> (B, N)."""
    return weights[:, :, 0, 1:].mean(dim=1)


def rollout_scores(weights: list[Tensor]) -> Tensor:
    """Attention rollout of the class token over blocks of (B, h, N + 1, N + 1) -> (B, N).

    Source: Abnar and Zuidema 2020 (arXiv 2005.00928): the product of (A + I) / 2, A averaged over heads.
    """
    row = None
    for layer in reversed(weights):
        mixed = (layer.mean(dim=1) + torch.eye(layer.shape[-1], device=layer.device)) / 2
        row = mixed[:, :1] if row is None else row @ mixed  # (B, 1, N + 1)
    assert row is not None
    return row[:, 0, 1:]


def gather_tokens(tokens: Tensor, kept: Tensor) -> Tensor:
    """Rows `kept` (B, K) of tokens (B, N, d) -> (B, K, d)."""
    return tokens.gather(1, kept.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def random_tokens(samples: int, patches: int, tokens: int, seed: int) -> Tensor:
    """(samples, tokens) indices without repetition, drawn anew for each sample."""
    scores = torch.rand(samples, patches, generator=torch.Generator().manual_seed(seed))
    return static_selection(scores, tokens)
