"""PTSR and the full-token ViT that it is measured against, top to bottom in one file.

Shapes: B images, C channels, H = W input side, p patch side, N = (H / p)^2 patches, K kept patches,
d width, h heads, k classes. Patch indices are row-major.

PTSR (Fu et al., ICMR 2025, doi 10.1145/3731715.3733415) is public as an abstract. What stands here is a
reconstruction from the published building blocks that fit each name:

* DNSPT: shifted patch tokenization (Lee et al. 2021, arXiv 2112.13492, section 3.1) between the two
  norms of Dual PatchNorm (Kumar et al. 2023, arXiv 2302.01327).
* Attention of LAM: locality self-attention (Lee et al. 2021, section 3.2): one learnable temperature
  per head, and no token attends to itself.
* DTSM: tokens chosen by the class token's attention (EViT, Liang et al. 2022, arXiv 2202.07800; part
  selection of TransFG, He et al. 2022), by attention rollout (Abnar and Zuidema 2020), or, before the
  embedding, by the optical strain of the patch; random choice is the control.
* Local-global feature: the class token, plus the kept tokens read out by their positions, plus (`mean_readout`)
  a read-out of every patch's mean, linear or with a hidden layer: a patch that is dropped leaves that much behind.

Baseline: ViT (Dosovitskiy et al. 2021), pre-norm, as in timm and Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ptsr_edge.core.config import ModelConfig, nearest
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


def gather_tokens(tokens: Tensor, kept: Tensor) -> Tensor:
    """Rows `kept` (B, K) of tokens (B, N, d) -> (B, K, d)."""
    return tokens.gather(1, kept.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def random_tokens(samples: int, patches: int, tokens: int, seed: int) -> Tensor:
    """(samples, tokens) indices without repetition, drawn anew for each sample."""
    scores = torch.rand(samples, patches, generator=torch.Generator().manual_seed(seed))
    return static_selection(scores, tokens)


def strain_scores(image: Tensor, patch: int) -> Tensor:
    """Mean optical strain of each patch: (B, C, H, W) with the strain as last channel -> (B, N)."""
    return F.avg_pool2d(image[:, -1:], patch).flatten(1)


def class_scores(weights: Tensor) -> Tensor:
    """The class token's attention to the patches, mean over heads: (B, h, N + 1, N + 1) -> (B, N)."""
    return weights[:, :, 0, 1:].mean(dim=1)


def rollout_scores(weights: Sequence[Tensor]) -> Tensor:
    """Attention rollout of the class token over blocks of (B, h, N + 1, N + 1) -> (B, N).

    Source: Abnar and Zuidema 2020 (arXiv 2005.00928): the product of (A + I) / 2, A averaged over heads.
    """
    row = None
    for layer in reversed(weights):
        mixed = (layer.mean(dim=1) + torch.eye(layer.shape[-1], device=layer.device)) / 2
        row = mixed[:, :1] if row is None else row @ mixed  # (B, 1, N + 1)
    assert row is not None
    return row[:, 0, 1:]


def _class_of(weights: Sequence[Tensor]) -> Tensor:
    return class_scores(weights[-1])


def _static_class_scores(class_row: Tensor, _: Sequence[Tensor]) -> Tensor:
    return class_row.mean(dim=1)[:, 0]


def _static_rollout_scores(class_row: Tensor, earlier: Sequence[Tensor]) -> Tensor:
    """Rollout from the last block's class row, without a product by the identity."""
    padded = F.pad(class_row, (1, 0))  # (1, h, 1, 1 + N): the class token does not see itself
    if not earlier:
        return rollout_scores([padded])
    row = padded.mean(dim=1) / 2 + F.pad(torch.full((1, 1, 1), 0.5), (0, padded.shape[-1] - 1))
    for layer in reversed(earlier):
        row = (row @ layer.mean(dim=1) + row) / 2
    return row[:, 0, 1:]


def _rollout_macs(config: ModelConfig) -> int:
    """One row through the matrix of each block before the selecting one."""
    return config.select_block * (1 + config.patches) ** 2


class Scoring(Protocol):
    """The part of a model, eager or static, that a score of the input may read."""

    config: ModelConfig
    training: bool
    random_scores: Tensor
    """(1, N) one draw, the same in every model of N patches."""


def _strain_of(model: Scoring, flow: Tensor) -> Tensor:
    return strain_scores(flow, model.config.patch_size)


def _random_of(model: Scoring, flow: Tensor) -> Tensor:
    """Draws anew in training; evaluates by the one draw, which can be exported."""
    if model.training:
        return torch.rand(len(flow), model.config.patches, device=flow.device)
    # One sample needs no copy, and its graph no node for one.
    return model.random_scores if len(flow) == 1 else model.random_scores.expand(len(flow), -1)


def _no_macs(_: ModelConfig) -> int:
    return 0


@dataclass(frozen=True)
class InputScore:
    """A score that the input alone decides: tokens are dropped before anything is embedded.

    Attributes:
        scores: (model, flow (B, C, H, W)) -> (B, N), not negative; in plain torch, as the static graph is traced
            from the same function, with B = 1 and the model in evaluation mode.
        macs: multiply-adds of one sample's scores, in the eager model and in the static graph alike.
    """

    scores: Callable[[Scoring, Tensor], Tensor]
    macs: Callable[[ModelConfig], int] = _no_macs


@dataclass(frozen=True)
class AttentionScore:
    """A score of the attention in the blocks up to `select_block`, behind which tokens are dropped.

    Attributes:
        eager: weights (B, h, 1 + N, 1 + N) of these blocks -> (B, N), not negative.
        static: the same for the static graph, batch 1, from the class token's row (1, h, 1, N) in the last of them,
            its weight for itself (0) left out, and the weights (1, h, 1 + N, 1 + N) of the blocks before.
        macs: multiply-adds of one sample's scores beyond the attention itself, in both.
    """

    eager: Callable[[Sequence[Tensor]], Tensor]
    static: Callable[[Tensor, Sequence[Tensor]], Tensor]
    macs: Callable[[ModelConfig], int] = _no_macs


Score = InputScore | AttentionScore

SCORES: dict[str, Score] = {
    "class-attention": AttentionScore(_class_of, _static_class_scores),
    "rollout": AttentionScore(rollout_scores, _static_rollout_scores, _rollout_macs),
    "strain": InputScore(_strain_of),
    "random": InputScore(_random_of),
}
"""Every score by its name in `ModelConfig.score`: the one place where one is added."""


def find_score(name: str) -> Score:
    """Returns the entry of `SCORES`.

    Raises:
        InputError: there is none of that name; the message lists them and the nearest.
    """
    if name in SCORES:
        return SCORES[name]
    raise InputError(f"unknown score {name!r}; known: {', '.join(SCORES)} (nearest: {nearest(name, SCORES)})")


def selects_before_embedding(config: ModelConfig) -> bool:
    """True where tokens are dropped before they are embedded."""
    return isinstance(find_score(config.score), InputScore)


class Attention(nn.Module):
    """Plain multi-head self-attention: (B, T, d) -> (B, T, d) and its weights (B, h, T, T)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.head_dim = config.dim // config.heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.proj = nn.Linear(config.dim, config.dim)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        batch, count, dim = tokens.shape
        qkv = self.qkv(tokens).view(batch, count, 3, self.heads, self.head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, h, T, d/h)
        weights = self.logits(query, key).softmax(dim=-1)  # (B, h, T, T)
        mixed = (weights @ value).transpose(1, 2).reshape(batch, count, dim)
        return self.proj(mixed), weights

    def logits(self, query: Tensor, key: Tensor) -> Tensor:
        """Attention logits (B, h, T, T) before the softmax."""
        logits: Tensor = (query * self.head_dim**-0.5) @ key.transpose(-2, -1)
        return logits


class LocalitySelfAttention(Attention):
    """The attention of LAM: a learnable temperature per head, the diagonal masked."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.scale = nn.Parameter(torch.full((config.heads,), self.head_dim**-0.5))

    def logits(self, query: Tensor, key: Tensor) -> Tensor:
        """Attention logits (B, h, T, T), minus infinity from a token to itself."""
        logits = (query * self.scale.view(1, -1, 1, 1)) @ key.transpose(-2, -1)
        itself = torch.eye(logits.shape[-1], dtype=torch.bool, device=logits.device)
        return logits.masked_fill(itself, float("-inf"))


class Mlp(nn.Module):
    """Two linear layers around a GELU: (B, T, d) -> (B, T, d)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.dim, config.mlp_dim)
        self.fc2 = nn.Linear(config.mlp_dim, config.dim)

    def forward(self, tokens: Tensor) -> Tensor:
        result: Tensor = self.fc2(F.gelu(self.fc1(tokens)))
        return result


class LayerScale(nn.Module):
    """A learnable factor per channel, started at `initial` (Touvron et al. 2021, arXiv 2103.17239)."""

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), initial))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block: (B, T, d) -> (B, T, d) and its attention weights (B, h, T, T)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        local = config.kind == "ptsr"
        self.norm1 = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.attn = LocalitySelfAttention(config) if local else Attention(config)
        self.ls1 = _layer_scale(config)
        self.norm2 = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.mlp = Mlp(config)
        self.ls2 = _layer_scale(config)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        mixed, weights = self.attn(self.norm1(tokens))
        tokens = tokens + self.ls1(mixed)
        return tokens + self.ls2(self.mlp(self.norm2(tokens))), weights


def _layer_scale(config: ModelConfig) -> nn.Module:
    return nn.Identity() if config.layer_scale is None else LayerScale(config.dim, config.layer_scale)


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
    """Returns the offsets at which the four shifted views read, (y, x) in pixels."""
    return [(dy, dx) for dy in (-half, half) for dx in (-half, half)]


class TokenBatchNorm(nn.BatchNorm1d):
    """BatchNorm over the features of tokens, (B, N, features), with all B N tokens as its batch."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens.flatten(0, 1)).view_as(tokens)


def _token_norm(config: ModelConfig, features: int) -> nn.Module:
    if config.token_norm == "batch":
        return TokenBatchNorm(features)
    return nn.LayerNorm(features, eps=1e-5)


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
    """Logits from the mean of every patch, kept or not: flow (B, C, H, W) -> (B, k).

    It is linear, in C N k multiply-adds, or has a hidden layer of h features, in (C N + k) h.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.patch = config.patch_size
        features, hidden = config.channels * config.patches, config.mean_hidden
        self.hidden = nn.Linear(features, hidden) if hidden else None
        self.linear = nn.Linear(hidden or features, config.classes)

    def forward(self, flow: Tensor) -> Tensor:
        features = patch_means(flow, self.patch)
        if self.hidden is not None:
            # Of rank 3: OpenVINO 2026.4 dies while it compiles two products of rank 2 in a row for one thread.
            features = F.gelu(self.hidden(features[:, None])).flatten(1)
        result: Tensor = self.linear(features)
        return result


def patch_means(flow: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) -> (B, C N): the mean of every patch, channel by channel."""
    return F.avg_pool2d(flow, patch).flatten(1)


class Output(NamedTuple):
    """`logits` (B, k) and `kept` (B, K): the patches that the logits were read from."""

    logits: Tensor
    kept: Tensor


class Ptsr(nn.Module):
    """PTSR: flow (B, C, H, W) -> logits (B, k) and kept patches (B, K).

    One set of weights serves every budget. This is the plain form that all exported graphs are proven
    against: it embeds and attends first and drops tokens afterwards.

    Raises:
        InputError: `config` names a score that `SCORES` has not.
    """

    random_scores: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.score = find_score(config.score)
        self.tokenizer = ShiftedPatchTokenization(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.patches, config.dim))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.head = LocalGlobalHead(config)
        self.means = MeanReadout(config) if config.mean_readout else None
        draw = torch.rand(1, config.patches, generator=torch.Generator().manual_seed(0), device="cpu")
        self.register_buffer("random_scores", draw, persistent=False)

    def forward(self, flow: Tensor, tokens: int | None = None, forced: Tensor | None = None) -> Output:
        """Keeps `tokens` patches (all when None), or the `forced` ones (B, K) instead of DTSM's choice.

        Raises:
            InputError: more tokens than there are, or fewer than 1.
        """
        config = self.config
        count = config.check_tokens(config.patches if tokens is None else tokens)
        drops = count < config.patches
        kept = torch.arange(config.patches, device=flow.device).expand(len(flow), -1)
        x = self._embed(flow)  # (B, N, d)
        if drops and isinstance(self.score, InputScore):
            kept = static_selection(self.score.scores(self, flow), count) if forced is None else forced
            x = gather_tokens(x, kept)
        x = self._with_class_token(x)
        attention: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            x, weights = block(x)
            attention.append(weights)
            if drops and index == config.select_block and isinstance(self.score, AttentionScore):
                kept = static_selection(self.score.eager(attention), count) if forced is None else forced
                x = torch.cat([x[:, :1], gather_tokens(x[:, 1:], kept)], dim=1)
        logits = self.head(self.dropout(self.norm(x)), kept)
        return Output(logits if self.means is None else logits + self.means(flow), kept)

    def scores(self, flow: Tensor) -> Tensor:
        """The scores that DTSM selects by: (B, N), not negative."""
        if isinstance(self.score, InputScore):
            return self.score.scores(self, flow)
        x = self._with_class_token(self._embed(flow))
        attention: list[Tensor] = []
        for block in self.blocks[: self.config.select_block + 1]:
            x, weights = block(x)
            attention.append(weights)
        return self.score.eager(attention)

    def forward_dynamic(self, flow: Tensor, mass: float) -> list[Output]:
        """DTSM's dynamic mode: each image keeps the smallest set that holds `mass` of the score."""
        counts = dynamic_counts(self.scores(flow), mass)
        return [self(flow[i : i + 1], int(count)) for i, count in enumerate(counts)]

    def _embed(self, flow: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, d), with positions."""
        embedded: Tensor = self.tokenizer(flow) + self.pos_embed[:, 1:]
        return embedded

    def _with_class_token(self, tokens: Tensor) -> Tensor:
        """(B, K, d) -> (B, 1 + K, d), the class token first."""
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(tokens), -1, -1)
        return torch.cat([first, tokens], dim=1)


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
        self.config.check_tokens(total if tokens is None else tokens)
        x = torch.cat([self.cls_token.expand(len(flow), -1, -1), self.patch_embed(flow)], dim=1)
        x = x + self.pos_embed
        for block in self.blocks:
            x, _ = block(x)
        kept = torch.arange(total, device=flow.device).expand(len(flow), -1)
        return Output(self.head(self.dropout(self.norm(x)[:, 0])), kept)


Model = Ptsr | Vit


def model_of(config: ModelConfig) -> Model:
    """Returns a model of a geometry, its weights as torch makes them.

    Raises:
        InputError: `config` names a score that there is not.
    """
    return Ptsr(config) if config.kind == "ptsr" else Vit(config)


def build_model(config: ModelConfig, seed: int = 0) -> Model:
    """Returns a model with seeded random weights, in evaluation mode.

    Linear weights are drawn from a truncated normal of width .02, as ViT's are; the local read-out
    sums N d products and is drawn that much narrower. The answers of the read-out of the means begin at zero.

    Raises:
        InputError: `config` names a score that there is not.
    """
    model = model_of(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "head.local":
                nn.init.normal_(parameter, std=0.5 * parameter[:, 0].numel() ** -0.5, generator=generator)
            elif name.startswith("means.linear."):
                parameter.zero_()
            elif parameter.ndim >= 2:
                nn.init.trunc_normal_(parameter, std=0.02, a=-0.04, b=0.04, generator=generator)
            elif name.endswith("bias"):
                parameter.zero_()
    return model.eval()


def count_parameters(model: nn.Module) -> int:
    """Returns the number of trainable values."""
    return sum(parameter.numel() for parameter in model.parameters())
