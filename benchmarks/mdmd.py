"""Main Directional Maximal Difference analysis (MDMD), the named baseline of spotting.

For each frame, the flow from the frame k before it (HF) to the frame itself (CF) is held against the flow
from HF to the frame k after it (TF). In each block the vectors of the main direction of HF -> CF count; what
they are longer than in HF -> TF is a movement that came and went. A frame's value is then held against its
neighbours in time, and a threshold is laid over the whole clip: it looks at all of it, as published.

Source: Wang, Wu, Qian, Li and Fu, A main directional maximal difference analysis for spotting facial movements
from long-term videos, Neurocomputing 230, 2017; intervals as in He, Wang, Yap and Li, FG 2020.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCKS = 6
DIRECTIONS = 4
LEAST_SHARE = 0.25
"""Of a block, that has to count."""

TOP_SHARE = 1 / 3
"""Of the vectors in a block, and of the blocks in a frame, that are averaged."""

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Rule:
    """How a frame's values become intervals.

    Attributes:
        k_s: distance of the frames that are compared.
        p: where the threshold lies between the mean and the maximum of a clip's values.
        widen: whether k/2 before and after a spotted frame belong to the interval too.
    """

    k_s: float
    p: float
    widen: bool


def maximal_difference(head_current: Array, head_tail: Array, mask: Mask) -> float:
    """The value d of one frame.

    Args:
        head_current: (H, W, 2) flow from the frame k before to the frame itself.
        head_tail: (H, W, 2) flow from the frame k before to the frame k after.
        mask: (H, W) pixels that count; a block of which less than a quarter counts is left out.

    Returns:
        Mean over the top third of the blocks, of the mean of the top third of the differences in a block.
    """
    u, v = head_current[..., 0], head_current[..., 1]
    differences = np.hypot(u, v) - np.hypot(head_tail[..., 0], head_tail[..., 1])
    # Right, left, down and up, each an eighth of a turn to both sides.
    directions = np.where(np.abs(u) >= np.abs(v), np.where(u >= 0, 0, 1), np.where(v >= 0, 2, 3))
    inside, here, found = _blocks(mask), _blocks(directions), _blocks(differences)  # each (36, n)
    kept = inside.mean(axis=1) >= LEAST_SHARE
    inside, here, found = inside[kept], here[kept], found[kept]
    counts = np.stack([((here == direction) & inside).sum(axis=1) for direction in range(DIRECTIONS)], axis=1)
    main = counts.argmax(axis=1)[:, None]
    ordered = -np.sort(np.where(inside & (here == main), -found, np.inf), axis=1)
    top = np.ceil(TOP_SHARE * counts.max(axis=1))[:, None]
    values = np.where(np.arange(ordered.shape[1]) < top, ordered, 0).sum(axis=1) / top[:, 0]
    most = math.ceil(TOP_SHARE * len(values))
    return float(np.sort(values)[-most:].mean())


def relative_differences(differences: Array, k: int) -> NDArray[np.float64]:
    """r of each frame: d less the mean of d at k - 1 frames before and after; negative ones are 0.

    Args:
        differences: (n,) d of each frame; NaN where a frame has no k neighbours.
        k: in frames.
    """
    relative = np.zeros(len(differences))
    apart = max(1, k - 1)
    middle = differences[apart:-apart]
    around = (differences[: -2 * apart] + differences[2 * apart :]) / 2
    relative[apart:-apart] = np.maximum(np.nan_to_num(middle - around), 0)
    return relative


def intervals(
    times_s: Array, relative: Array, rule: Rule, longest_s: float, shortest_s: float = 1 / 25
) -> list[tuple[float, float]]:
    """Frames above mean + p (maximum - mean), next to one another, form an interval.

    Args:
        times_s: (n,) of the frames.
        relative: (n,) r of each.
        rule: threshold and width.
        longest_s: a longer interval is no micro-expression and is dropped.
        shortest_s: a shorter one is dropped too.
    """
    threshold = relative.mean() + rule.p * (relative.max() - relative.mean())
    step = float(np.median(np.diff(times_s)))
    reach = rule.k_s / 2 if rule.widen else step / 2
    found: list[tuple[float, float]] = []
    for time in times_s[relative > threshold]:
        start, end = float(time - reach), float(time + reach)
        if found and start <= found[-1][1] + 1e-6:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return [part for part in found if shortest_s - 1e-6 <= part[1] - part[0] <= longest_s]


def _blocks(values: Array | Mask) -> NDArray:
    """(36, n): the pixels of 6 x 6 equal blocks; what does not divide by 6 is left out around the rim."""
    height, width = (side // BLOCKS * BLOCKS for side in values.shape)
    top, left = (values.shape[0] - height) // 2, (values.shape[1] - width) // 2
    cut = values[top : top + height, left : left + width]
    parts = cut.reshape(BLOCKS, height // BLOCKS, BLOCKS, width // BLOCKS).swapaxes(1, 2)
    return parts.reshape(BLOCKS * BLOCKS, -1)
