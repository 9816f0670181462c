"""Exact rewrites of PTSR's weights for static graphs, as pure functions.

Each returns weights for a cheaper graph with the same result as the training graph up to rounding.

Layout shared by all: half = p / 2; the padded image is cut into blocks of p x p, each into 2 x 2 cells of
half x half pixels. The window of a patch (2p x 2p, the patch in its middle) is 2 x 2 blocks, 16 cells.
"Window order" is: block (2, 2), cell within the block (2, 2), channel, row, column.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ptsr_edge.models.blocks import LocalitySelfAttention
from ptsr_edge.models.ptsr import ShiftedPatchTokenization, TokenBatchNorm, view_offsets


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
    """Concatenation, patchify, first norm and projection of DNSPT as one product over windows.

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
    """Both norms are affine at inference: everything goes into one kernel and one constant."""
    scale_in, shift_in = _affine(cast(TokenBatchNorm, tokenizer.norm_in))
    scale_out, shift_out = _affine(cast(TokenBatchNorm, tokenizer.norm_out))
    weight = tokenizer.project.weight.double()
    const = (weight @ shift_in + tokenizer.project.bias.double()) * scale_out + shift_out
    kernel = _in_window_order(weight * scale_in * scale_out[:, None], tokenizer.patch)
    return FoldedTokenizer(kernel.flatten(1).float(), const.float(), None, None, 0.0)


def _affine(norm: TokenBatchNorm) -> tuple[Tensor, Tensor]:
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    scale = norm.weight.double() / (variance.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - mean.double() * scale


def _in_window_order(weight: Tensor, patch: int) -> Tensor:
    """(d, 5 C p^2) over the five views -> (d, 16, C half^2) over the window, views that overlap summed."""
    half = patch // 2
    dim = weight.shape[0]
    views = weight.view(dim, 5, -1, patch, patch)  # (d, view, C, p, p)
    window = weight.new_zeros(dim, views.shape[2], 2 * patch, 2 * patch)
    for view, (dy, dx) in enumerate([(0, 0), *view_offsets(half)]):
        window[:, :, half + dy : half + dy + patch, half + dx : half + dx + patch] += views[:, view]
    parts = window.view(dim, -1, 2, 2, half, 2, 2, half)  # (d, C, block y, cell y, y, block x, cell x, x)
    return parts.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(dim, 16, -1)


def _centre_cells() -> list[int]:
    """The four cells that the centre view covers: in each block the one next to the window's middle."""
    return [block * 4 + (3 - block) for block in range(4)]


def block_table(grid: int) -> Tensor:
    """The four blocks of each patch's window: (N, 4) indices into the (grid + 1)^2 blocks, row-major."""
    row, column = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    first = (row * (grid + 1) + column).flatten()
    return torch.stack([first, first + 1, first + grid + 1, first + grid + 2], dim=1)


def fold_temperature(attention: LocalitySelfAttention) -> tuple[Tensor, Tensor]:
    """The fused query-key-value weights (3d, d) and bias (3d) with the temperatures in the query's rows."""
    factor = attention.scale.detach().repeat_interleave(attention.head_dim)  # (d,)
    rows = torch.cat([factor, torch.ones(2 * len(factor))])
    return attention.qkv.weight * rows[:, None], attention.qkv.bias * rows
