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
    values = []
    for rows, columns in _blocks(*mask.shape):
        counts_here = mask[rows, columns]
        if counts_here.mean() < 0.25:
            continue
        here, found = directions[rows, columns][counts_here], differences[rows, columns][counts_here]
        main = np.bincount(here, minlength=DIRECTIONS).argmax()
        values.append(_top_mean(found[here == main]))
    return _top_mean(np.array(values))


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


def _blocks(height: int, width: int) -> list[tuple[slice, slice]]:
    down = np.linspace(0, height, BLOCKS + 1).round().astype(int)
    across = np.linspace(0, width, BLOCKS + 1).round().astype(int)
    return [
        (slice(down[row], down[row + 1]), slice(across[column], across[column + 1]))
        for row in range(BLOCKS)
        for column in range(BLOCKS)
    ]


def _top_mean(values: Array) -> float:
    count = max(1, math.ceil(TOP_SHARE * len(values)))
    return float(np.partition(values, -count)[-count:].mean())
