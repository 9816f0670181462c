"""Attention and transformer blocks: plain (ViT) and with locality self-attention (the attention of LAM).

Shapes: B images, T tokens with the class token first, d width, h heads.

Sources: Dosovitskiy et al. 2021 (ViT, pre-norm); Lee et al. 2021 (arXiv 2112.13492, section 3.2: a learnable
temperature a head, no token attends to itself); Touvron et al. 2021 (LayerScale).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ptsr_edge.core.config import ModelConfig


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
    """The attention of LAM: a learnable temperature a head, the diagonal masked."""

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
    """A learnable factor a channel, started at `initial` (Touvron et al. 2021, arXiv 2103.17239)."""

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
