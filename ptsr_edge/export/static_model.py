"""PTSR at one token budget as a graph of fixed shapes, batch 1: what is exported.

The same weights and the same result as `models.ptsr.Ptsr` (proven by tests and by the parity gate of every
export), with these rewrites: DNSPT as one product over the kept patches' windows, statistics centred by
cells (flat patches amplify rounding by up to 316 otherwise); temperatures folded into the query weights;
the diagonal mask a constant; a selection by class attention scored by the class token's row alone; queries,
projections and MLP of the selecting block for kept rows only; a last block of which only the class token
is read computed for the class token only.

Shapes: T = 1 + K tokens with the class token first; other letters as in `models.ptsr`.

The tokenizer's layout: half = p / 2. The padded image is cut into blocks of p x p, each into 2 x 2 cells of half x half
pixels. The window of a patch (2p x 2p, the patch in its middle) is 2 x 2 blocks, 16 cells. "Window order" is: block
(2, 2), cell within the block (2, 2), channel, row, column.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ptsr_edge.models.ptsr import (
    AttentionScore,
    Block,
    InputScore,
    LocalGlobalHead,
    LocalitySelfAttention,
    Model,
    Output,
    Ptsr,
    ShiftedPatchTokenization,
    TokenBatchNorm,
    static_selection,
    view_offsets,
)


@dataclass(frozen=True)
class FoldedTokenizer:
    """DNSPT as one product over windows, in window order.

    `kernel` (d, 16 C half^2) and `const` (d) give `kernel @ window + const`. With `cell_map` the first
    norm still needs each window's statistics: `cell_map` (d, 16) acts on the cells' means,
    `cell_weights` (16) averages cells over the five views, `eps` is the first norm's.
    """

    kernel: Tensor
    const: Tensor
    cell_map: Tensor | None
    cell_weights: Tensor | None
    eps: float


def fold_tokenizer(tokenizer: ShiftedPatchTokenization) -> FoldedTokenizer:
    """Folds concatenation, patchify, first norm and projection of DNSPT into one product over windows.

    The four shifted views of a patch tile its window and the centre view covers the window's middle, so
    one kernel over the window replaces the 5 C p^2 wide projection: 4 parts of work instead of 5.
    """
    if isinstance(tokenizer.norm_in, TokenBatchNorm):
        return _fold_batch_norms(tokenizer)
    norm = cast(nn.LayerNorm, tokenizer.norm_in)
    project = tokenizer.project
    scaled = project.weight.double() * norm.weight.double()  # (d, 5 C p^2)
    const = project.weight.double() @ norm.bias.double() + project.bias.double()
    centred = scaled - scaled.mean(dim=1, keepdim=True)
    kernel = _in_window_order(centred, tokenizer.patch)  # (d, 16, C half^2)
    cells = torch.full((16,), 1.0, dtype=torch.float64)
    cells[_centre_cells()] = 2.0
    return FoldedTokenizer(
        kernel=kernel.flatten(1).float(),
        const=const.float(),
        cell_map=kernel.sum(dim=2).float(),
        cell_weights=(cells / cells.sum()).float(),
        eps=norm.eps,
    )


def _fold_batch_norms(tokenizer: ShiftedPatchTokenization) -> FoldedTokenizer:
    """Folds all into one kernel and one constant: both norms are affine at inference."""
    scale_in, shift_in = _affine(cast(TokenBatchNorm, tokenizer.norm_in))
    scale_out, shift_out = _affine(cast(TokenBatchNorm, tokenizer.norm_out))
    weight = tokenizer.project.weight.double()
    const = (weight @ shift_in + tokenizer.project.bias.double()) * scale_out + shift_out
    kernel = _in_window_order(weight * scale_in * scale_out[:, None], tokenizer.patch)
    return FoldedTokenizer(kernel.flatten(1).float(), const.float(), None, None, 0.0)


def _affine(norm: TokenBatchNorm) -> tuple[Tensor, Tensor]:
    """Returns scale and shift (features,) that a batch norm comes to at inference, in float64."""
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    scale = norm.weight.double() / (variance.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - mean.double() * scale


def _in_window_order(weight: Tensor, patch: int) -> Tensor:
    """Lays weights over the five views (d, 5 C p^2) out over the window (d, 16, C half^2); views that overlap are summed."""
    half = patch // 2
    dim = weight.shape[0]
    views = weight.view(dim, 5, -1, patch, patch)  # (d, view, C, p, p)
    window = weight.new_zeros(dim, views.shape[2], 2 * patch, 2 * patch)
    for view, (dy, dx) in enumerate([(0, 0), *view_offsets(half)]):
        window[:, :, half + dy : half + dy + patch, half + dx : half + dx + patch] += views[:, view]
    parts = window.view(dim, -1, 2, 2, half, 2, 2, half)  # (d, C, block y, cell y, y, block x, cell x, x)
    return parts.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(dim, 16, -1)


def _centre_cells() -> list[int]:
    """Returns the four cells that the centre view covers: in each block the one next to the window's middle."""
    return [block * 4 + (3 - block) for block in range(4)]


class StaticTokenizer(nn.Module):
    """DNSPT over the windows of the kept patches: (1, C, H, W), kept (K) or None for all -> (1, K, d)."""

    def __init__(self, tokenizer: ShiftedPatchTokenization, grid: int) -> None:
        super().__init__()
        folded = fold_tokenizer(tokenizer)
        self.half_patch = tokenizer.patch // 2
        self.grid = grid
        self.eps = folded.eps
        self.needs_statistics = folded.cell_map is not None
        self.kernel = nn.Parameter(folded.kernel)
        self.const = nn.Parameter(folded.const)
        if folded.cell_map is not None and folded.cell_weights is not None:
            self.cell_map = nn.Parameter(folded.cell_map)
            self.cell_weights = nn.Parameter(folded.cell_weights.view(16, 1))
            self.norm_out = tokenizer.norm_out
        self.register_buffer("blocks", block_table(grid))

    def forward(self, image: Tensor, kept: Tensor | None) -> Tensor:
        cells = self._cells(image)  # ((grid + 1)^2, 4, C half^2)
        index = cast(Tensor, self.blocks)
        index = (index if kept is None else index.index_select(0, kept)).flatten()  # (4 K,)
        if not self.needs_statistics:
            window = cells.flatten(1).index_select(0, index).view(1, index.numel() // 4, -1)
            return F.linear(window, self.kernel, self.const)
        mean = cells.mean(dim=2, keepdim=True)
        centred = cells - mean
        spread = (centred * centred).mean(dim=2)  # ((grid + 1)^2, 4)
        window = centred.flatten(1).index_select(0, index).view(1, index.numel() // 4, -1)
        means = mean.flatten(1).index_select(0, index).view(1, -1, 16)  # (1, K, 16)
        spreads = spread.index_select(0, index).view(1, -1, 16)
        offset = means - means @ self.cell_weights
        variance = (offset * offset + spreads) @ self.cell_weights  # (1, K, 1)
        projected = F.linear(window, self.kernel) + F.linear(offset, self.cell_map)
        result: Tensor = self.norm_out(projected * torch.rsqrt(variance + self.eps) + self.const)
        return result

    def _cells(self, image: Tensor) -> Tensor:
        """The zero-padded image cut into blocks of 2 x 2 cells: ((grid + 1)^2, 4, C half^2)."""
        side, half = self.grid + 1, self.half_patch
        padded = F.pad(image, (half, half, half, half))
        parts = padded.view(-1, side, 2, half, side, 2, half)  # (C, by, cy, y, bx, cx, x)
        return parts.permute(1, 4, 2, 5, 0, 3, 6).reshape(side * side, 4, -1)


def block_table(grid: int) -> Tensor:
    """Returns the four blocks of each patch's window: (N, 4) indices into the (grid + 1)^2 blocks, row-major."""
    row, column = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    first = (row * (grid + 1) + column).flatten()
    return torch.stack([first, first + 1, first + grid + 1, first + grid + 2], dim=1)


class StaticAttention(nn.Module):
    """Locality self-attention with folded temperatures over fixed token counts."""

    def __init__(self, attention: LocalitySelfAttention) -> None:
        super().__init__()
        self.heads = attention.heads
        weight, bias = fold_temperature(attention)
        dim = weight.shape[1]
        self.query_weight = nn.Parameter(weight[:dim].clone())
        self.query_bias = nn.Parameter(bias[:dim].clone())
        self.key_value_weight = nn.Parameter(weight[dim:].clone())
        self.key_value_bias = nn.Parameter(bias[dim:].clone())
        self.proj = attention.proj

    def queries(self, rows: Tensor) -> Tensor:
        """(1, R, d) -> (1, h, R, d / h)."""
        return self._heads(F.linear(rows, self.query_weight, self.query_bias))

    def keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(1, T, d) -> keys (1, h, d / h, T) and values (1, h, T, d / h)."""
        both = F.linear(tokens, self.key_value_weight, self.key_value_bias)
        key, value = both.chunk(2, dim=-1)
        return self._heads(key).transpose(-2, -1), self._heads(value)

    def mix(self, weights: Tensor, value: Tensor) -> Tensor:
        """Weights (1, h, R, T) over values (1, h, T, d / h), projected: (1, R, d)."""
        mixed = (weights @ value).transpose(1, 2)
        result: Tensor = self.proj(mixed.reshape(1, mixed.shape[1], -1))
        return result

    def _heads(self, rows: Tensor) -> Tensor:
        return rows.view(1, rows.shape[1], self.heads, -1).transpose(1, 2)


def fold_temperature(attention: LocalitySelfAttention) -> tuple[Tensor, Tensor]:
    """Returns the fused query-key-value weights (3d, d) and bias (3d) with the temperatures in the query's rows."""
    factor = attention.scale.detach().repeat_interleave(attention.head_dim)  # (d,)
    rows = torch.cat([factor, torch.ones(2 * len(factor))])
    return attention.qkv.weight * rows[:, None], attention.qkv.bias * rows


class StaticBlock(nn.Module):
    """A block over all of its T tokens: (1, T, d) -> (1, T, d) and its weights (1, h, T, T)."""

    def __init__(self, block: Block, tokens: int) -> None:
        super().__init__()
        self.attention = StaticAttention(cast(LocalitySelfAttention, block.attn))
        self.tail = Tail(block)
        self.norm1 = block.norm1
        self.register_buffer("mask", diagonal_mask(tokens))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        normed = self.norm1(tokens)
        key, value = self.attention.keys_values(normed)
        logits = self.attention.queries(normed) @ key + cast(Tensor, self.mask)
        weights = logits.softmax(dim=-1)
        return self.tail(tokens, self.attention.mix(weights, value)), weights


MASKED = -3e4
"""Stands for minus infinity: far below any logit, and inside float16's range."""


def diagonal_mask(tokens: int) -> Tensor:
    """Returns (T, T): `MASKED` from a token to itself, 0 elsewhere."""
    return torch.eye(tokens) * MASKED


class SelectingBlock(nn.Module):
    """The block in which DTSM selects: (1, 1 + N, d) -> (1, 1 + K, d) and kept (1, K).

    Keys and values are computed for all tokens, everything else for the kept rows. The score needs one
    query, the class token's, against the patches' keys: dropping its own key is masking it.
    """

    def __init__(self, block: Block, score: AttentionScore, total: int, kept: int) -> None:
        super().__init__()
        self.attention = StaticAttention(cast(LocalitySelfAttention, block.attn))
        self.tail = Tail(block)
        self.norm1 = block.norm1
        self.score = score
        self.kept = kept
        self.register_buffer("mask", diagonal_mask(1 + total))
        self.register_buffer("class_row", torch.zeros(1, dtype=torch.int64))

    def forward(self, tokens: Tensor, earlier: list[Tensor]) -> tuple[Tensor, Tensor]:
        """`earlier`: weights (1, h, 1 + N, 1 + N) of the blocks before."""
        normed = self.norm1(tokens)
        key, value = self.attention.keys_values(normed)
        class_row = (self.attention.queries(normed[:, :1]) @ key[..., 1:]).softmax(dim=-1)  # (1, h, 1, N)
        kept = static_selection(self.score.static(class_row, earlier), self.kept)  # (1, K)
        rows = torch.cat([cast(Tensor, self.class_row), kept[0] + 1])  # (1 + K,)
        logits = self.attention.queries(normed.index_select(1, rows)) @ key
        weights = (logits + cast(Tensor, self.mask).index_select(0, rows)).softmax(dim=-1)
        return self.tail(tokens.index_select(1, rows), self.attention.mix(weights, value)), kept


class ClassOnlyBlock(nn.Module):
    """A last block of which only the class token is read: (1, T, d) -> (1, 1, d)."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.attention = StaticAttention(cast(LocalitySelfAttention, block.attn))
        self.tail = Tail(block)
        self.norm1 = block.norm1

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.norm1(tokens)
        key, value = self.attention.keys_values(normed[:, 1:])
        weights = (self.attention.queries(normed[:, :1]) @ key).softmax(dim=-1)
        result: Tensor = self.tail(tokens[:, :1], self.attention.mix(weights, value))
        return result


class Tail(nn.Module):
    """What follows attention in a block: both residuals, the second norm and the MLP."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.ls1, self.norm2, self.mlp, self.ls2 = block.ls1, block.norm2, block.mlp, block.ls2

    def forward(self, tokens: Tensor, mixed: Tensor) -> Tensor:
        tokens = tokens + self.ls1(mixed)
        result: Tensor = tokens + self.ls2(self.mlp(self.norm2(tokens)))
        return result


class StaticHead(nn.Module):
    """The local-global head: (1, T, d) and kept (K), None for all -> logits (1, k)."""

    def __init__(self, head: LocalGlobalHead) -> None:
        super().__init__()
        self.global_ = head.global_
        self.local = head.local

    def forward(self, tokens: Tensor, kept: Tensor | None) -> Tensor:
        logits: Tensor = self.global_(tokens[:, 0])
        if self.local is None:
            return logits
        places = self.local if kept is None else self.local.index_select(0, kept)  # (K, k, d)
        read = places @ tokens[0, 1:].unsqueeze(-1)  # (K, k, 1)
        # The axis is kept and squeezed: OpenVINO 2025.4 to 2026.4 drops a transpose behind a sum that loses its
        # axis (https://github.com/openvinotoolkit/openvino/issues/37959).
        return logits + read.sum(dim=0, keepdim=True).squeeze(0).transpose(0, 1)


class StaticPtsr(nn.Module):
    """PTSR that keeps exactly `tokens` patches: flow (1, C, H, W) -> logits (1, k), kept (1, K)."""

    random_scores: Tensor

    def __init__(self, model: Ptsr, tokens: int) -> None:
        super().__init__()
        config = model.config
        self.config = config
        self.tokens = config.check_tokens(tokens)
        self.total = config.patches
        self.score = model.score if tokens < config.patches else None
        self.tokenizer = StaticTokenizer(model.tokenizer, config.grid)
        self.class_token = nn.Parameter((model.cls_token + model.pos_embed[:, :1]).detach())
        self.positions = nn.Parameter(model.pos_embed[0, 1:].detach())  # (N, d)
        self.norm = model.norm
        self.head = StaticHead(model.head)
        self.means = model.means
        self.register_buffer("random_scores", model.random_scores)
        self.register_buffer("every", torch.arange(config.patches)[None])
        self.blocks = nn.ModuleList(self._blocks(model))

    def _blocks(self, model: Ptsr) -> list[nn.Module]:
        blocks: list[nn.Module] = []
        count = 1 + (self.tokens if isinstance(self.score, InputScore) else self.total)
        for index, layer in enumerate(model.blocks):
            block = cast(Block, layer)
            last = index == len(model.blocks) - 1
            if index == self.config.select_block and isinstance(self.score, AttentionScore):
                blocks.append(SelectingBlock(block, self.score, self.total, self.tokens))
                count = 1 + self.tokens
            elif last and model.head.local is None:
                blocks.append(ClassOnlyBlock(block))
            else:
                blocks.append(StaticBlock(block, count))
        return blocks

    def forward(self, flow: Tensor) -> Output:
        kept = cast(Tensor, self.every)
        chosen: Tensor | None = None
        if isinstance(self.score, InputScore):
            kept = static_selection(self.score.scores(self, flow), self.tokens)
            chosen = kept[0]
        positions = self.positions if chosen is None else self.positions.index_select(0, chosen)
        x = torch.cat([self.class_token, self.tokenizer(flow, chosen) + positions], dim=1)  # (1, T, d)
        seen: list[Tensor] = []
        for block in self.blocks:
            if isinstance(block, SelectingBlock):
                x, kept = block(x, seen)
                chosen = kept[0]
            elif isinstance(block, ClassOnlyBlock):
                x = block(x)
            else:
                x, weights = block(x)
                seen.append(weights)
        logits = self.head(self.norm(x), chosen)
        return Output(logits if self.means is None else logits + self.means(flow), kept)


def to_static(model: Model, tokens: int) -> nn.Module:
    """Builds the module of fixed shapes for a budget of `tokens`; the ViT baseline is exported as it is.

    Raises:
        InputError: more tokens than there are, or fewer than 1; for the baseline, any but all.
    """
    model.config.check_tokens(tokens)
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    static = StaticPtsr(frozen, tokens) if isinstance(frozen, Ptsr) else frozen
    return static.eval().requires_grad_(False)
