"""PTSR and the full-token ViT that it is measured against, top to bottom in one file.

Shapes: B images, C channels, H = W input side, p patch side, N = (H / p)^2 patches, K kept patches,
d width, h heads, k classes. Patch indices are row-major.

PTSR (Fu et al., ICMR 2025, doi 10.1145/3731715.3733415) is public as an abstract. What stands here is a
reconstruction from the published building blocks that fit each name:

* DNSPT: shifted patch tokenization (Lee et al. 2021, arXiv 2112.13492, section 3.1) between the two
  norms of Dual PatchNorm (Kumar et al. 2023, arXiv 2302.01327).
* Attention of LAM: locality self-attention (Lee et al. 2021, section 3.2): one learnable temperature a
  head, and no token attends to itself.
* DTSM: tokens chosen by the class token's attention (EViT, Liang et al. 2022, arXiv 2202.07800; part
  selection of TransFG, He et al. 2022), by attention rollout (Abnar and Zuidema 2020), or, before the
  embedding, by the optical strain of the patch; random choice is the control.
* Local-global feature: the class token, plus the kept tokens read out by their positions, plus (`mean_readout`)
  a linear read-out of every patch's mean: a patch that is dropped leaves that much behind.

Baseline: ViT (Dosovitskiy et al. 2021), pre-norm, as in timm and Hugging Face transformers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ptsr_edge.core.config import ModelConfig
from ptsr_edge.core.errors import InputError
from ptsr_edge.models.blocks import Block
from ptsr_edge.models.selection import (
    class_scores,
    dynamic_counts,
    gather_tokens,
    rollout_scores,
    static_selection,
    strain_scores,
)


class Output(NamedTuple):
    """`logits` (B, k) and `kept` (B, K): the patches that the logits were read from."""

    logits: Tensor
    kept: Tensor


# ---------------------------------------------------------------------------------------------
# DNSPT


class ShiftedPatchTokenization(nn.Module):
    """DNSPT: (B, C, H, W) -> (B, N, d).

    The image and its four diagonal half-patch shifts (zero padded) are concatenated, cut into patches
    and projected between two norms (`token_norm`: LayerNorm, or BatchNorm over all patches).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.patch = config.patch_size
        features = 5 * config.channels * config.patch_size**2
        self.norm_in = _token_norm(config, features)
        self.project = nn.Linear(features, config.dim)
        self.norm_out = _token_norm(config, config.dim)

    def forward(self, image: Tensor) -> Tensor:
        views = torch.cat([image, *shifted(image, self.patch // 2)], dim=1)  # (B, 5C, H, W)
        tokens = F.unfold(views, self.patch, stride=self.patch).transpose(1, 2)  # (B, N, 5C p^2)
        result: Tensor = self.norm_out(self.project(self.norm_in(tokens)))
        return result


def shifted(image: Tensor, half: int) -> list[Tensor]:
    """The four views of (B, C, H, W) moved by `half` pixels along the diagonals, zero padded.

    In the order of the offsets at which each view reads: (-,-), (-,+), (+,-), (+,+) in (y, x).
    """
    height, width = image.shape[-2:]
    padded = F.pad(image, (half, half, half, half))
    return [
        padded[..., half + dy : half + dy + height, half + dx : half + dx + width]
        for dy, dx in view_offsets(half)
    ]


def view_offsets(half: int) -> list[tuple[int, int]]:
    """Where the four shifted views read, as (y, x) offsets in pixels."""
    return [(dy, dx) for dy in (-half, half) for dx in (-half, half)]


class TokenBatchNorm(nn.BatchNorm1d):
    """BatchNorm over the features of tokens, (B, N, features), with all B N tokens as its batch."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens.flatten(0, 1)).view_as(tokens)


def _token_norm(config: ModelConfig, features: int) -> nn.Module:
    if config.token_norm == "batch":
        return TokenBatchNorm(features)
    return nn.LayerNorm(features, eps=1e-5)


# ---------------------------------------------------------------------------------------------
# The local-global head


class LocalGlobalHead(nn.Module):
    """Logits from the class token (global) and from every kept token by its position (local).

    A kept token meets the weights of the place that it came from; a dropped place contributes nothing.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.global_ = nn.Linear(config.dim, config.classes)
        self.local = (
            nn.Parameter(torch.zeros(config.patches, config.classes, config.dim))
            if config.local_readout
            else None
        )

    def forward(self, tokens: Tensor, kept: Tensor) -> Tensor:
        """tokens (B, 1 + K, d) with the class token first, kept (B, K) -> logits (B, k)."""
        logits: Tensor = self.global_(tokens[:, 0])
        if self.local is not None:
            logits = logits + torch.einsum("bnd,bnkd->bk", tokens[:, 1:], self.local[kept])
        return logits


class MeanReadout(nn.Module):
    """Logits from the mean of every patch, kept or not: flow (B, C, H, W) -> (B, k), in C N k multiply-adds.

    It is solved, not descended to: see `ridge`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.patch = config.patch_size
        self.linear = nn.Linear(config.channels * config.patches, config.classes)

    def forward(self, flow: Tensor) -> Tensor:
        result: Tensor = self.linear(patch_means(flow, self.patch))
        return result


def patch_means(flow: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) -> (B, C N): the mean of every patch, channel by channel."""
    return F.avg_pool2d(flow, patch).flatten(1)


# ---------------------------------------------------------------------------------------------
# The two models


class Ptsr(nn.Module):
    """PTSR: flow (B, C, H, W) -> logits (B, k) and kept patches (B, K).

    One set of weights serves every budget. This is the plain form that all exported graphs are proven
    against: it embeds and attends first and drops tokens afterwards.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = ShiftedPatchTokenization(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.patches, config.dim))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.head = LocalGlobalHead(config)
        self.means = MeanReadout(config) if config.mean_readout else None
        order = torch.rand(config.patches, generator=torch.Generator().manual_seed(0))
        self.register_buffer("random_scores", order, persistent=False)

    def forward(self, flow: Tensor, tokens: int | None = None, forced: Tensor | None = None) -> Output:
        """Keeps `tokens` patches (all when None), or the `forced` ones (B, K) instead of DTSM's choice.

        Raises:
            InputError: more tokens than there are, or fewer than 1.
        """
        config = self.config
        count = config.check_tokens(config.patches if tokens is None else tokens)
        x = self.tokenizer(flow) + self.pos_embed[:, 1:]  # (B, N, d)
        kept = torch.arange(config.patches, device=flow.device).expand(len(flow), -1)
        drops = count < config.patches
        if drops and config.selects_before_embedding:
            kept = static_selection(self._scores_of_input(flow), count) if forced is None else forced
            x = gather_tokens(x, kept)
        x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(len(flow), -1, -1), x], dim=1)
        seen: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            x, weights = block(x)
            seen.append(weights)
            if drops and index == config.select_block and not config.selects_before_embedding:
                kept = static_selection(self._scores_of_attention(seen), count) if forced is None else forced
                x = torch.cat([x[:, :1], gather_tokens(x[:, 1:], kept)], dim=1)
        logits = self.head(self.dropout(self.norm(x)), kept)
        return Output(logits if self.means is None else logits + self.means(flow), kept)

    def scores(self, flow: Tensor) -> Tensor:
        """What DTSM selects by: (B, N), not negative."""
        if self.config.selects_before_embedding:
            return self._scores_of_input(flow)
        x = self.tokenizer(flow) + self.pos_embed[:, 1:]
        x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(len(flow), -1, -1), x], dim=1)
        seen: list[Tensor] = []
        for block in self.blocks[: self.config.select_block + 1]:
            x, weights = block(x)
            seen.append(weights)
        return self._scores_of_attention(seen)

    def forward_dynamic(self, flow: Tensor, mass: float) -> list[Output]:
        """DTSM's dynamic mode: each image keeps the smallest set that holds `mass` of the score."""
        counts = dynamic_counts(self.scores(flow), mass)
        return [self(flow[i : i + 1], int(count)) for i, count in enumerate(counts)]

    def _scores_of_input(self, flow: Tensor) -> Tensor:
        if self.config.score == "strain":
            return strain_scores(flow, self.config.patch_size)
        if self.training:
            return torch.rand(len(flow), self.config.patches, device=flow.device)
        fixed: Tensor = self.random_scores  # type: ignore[assignment]
        return fixed.expand(len(flow), -1)

    def _scores_of_attention(self, seen: list[Tensor]) -> Tensor:
        return rollout_scores(seen) if self.config.score == "rollout" else class_scores(seen[-1])


class PatchEmbed(nn.Module):
    """Plain patch embedding: (B, C, H, W) -> (B, N, d)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        side = config.patch_size
        self.proj = nn.Conv2d(config.channels, config.dim, kernel_size=side, stride=side)

    def forward(self, image: Tensor) -> Tensor:
        result: Tensor = self.proj(image).flatten(2).transpose(1, 2)
        return result


class Vit(nn.Module):
    """The baseline: a plain full-token ViT with timm's parameter names.

    flow (B, C, H, W) -> logits (B, k) and all patches (B, N).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.patches, config.dim))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.dim, config.classes)

    def forward(self, flow: Tensor, tokens: int | None = None) -> Output:
        """Raises InputError for any `tokens` but all of them."""
        total = self.config.patches
        if tokens not in (None, total):
            raise InputError(f"{self.config.name} keeps all of its {total} tokens, got a budget of {tokens}")
        x = torch.cat([self.cls_token.expand(len(flow), -1, -1), self.patch_embed(flow)], dim=1)
        x = x + self.pos_embed
        for block in self.blocks:
            x, _ = block(x)
        kept = torch.arange(total, device=flow.device).expand(len(flow), -1)
        return Output(self.head(self.dropout(self.norm(x)[:, 0])), kept)


Model = Ptsr | Vit


def build_model(config: ModelConfig, seed: int = 0) -> Model:
    """A model with seeded random weights, in evaluation mode.

    Linear weights are drawn from a truncated normal of width .02, as ViT's are; the local read-out
    sums N d products and is drawn that much narrower. The read-out of the means begins at zero.
    """
    model: Model = Ptsr(config) if config.kind == "ptsr" else Vit(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "head.local":
                nn.init.normal_(parameter, std=0.5 * parameter[:, 0].numel() ** -0.5, generator=generator)
            elif name.startswith("means."):
                parameter.zero_()
            elif parameter.ndim >= 2:
                nn.init.trunc_normal_(parameter, std=0.02, a=-0.04, b=0.04, generator=generator)
            elif name.endswith("bias"):
                parameter.zero_()
    return model.eval()


def count_parameters(model: nn.Module) -> int:
    """Number of trainable values."""
    return sum(parameter.numel() for parameter in model.parameters())
