"""The read-out of the patches' means, solved in closed form: a ridge regression towards the weights it holds.

A few hundred weights on a few hundred clips are nothing to descend to: descent needs a step size and overfits, the
minimum of

    sum over clips and their mirror images of  w |logits - REACH (one-hot - 1 / k)|^2  +  STRENGTH |W - W0|^2

is one linear system. W0 is what the read-out held: zero at first, the solution on synthetic faces where training goes
on from starting weights.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ptsr_edge.models.ptsr import MeanReadout, patch_means
from ptsr_edge.train.augment import flip_horizontally

REACH = 2.0
"""How far apart the logits of the right class and of the others are asked to be."""

STRENGTH = 100.0
"""Of the ridge, for means of inputs whose channels have deviation 1. Both are chosen in benchmarks/ACCURACY.md."""


@torch.no_grad()
def solve_means(readout: MeanReadout, inputs: Tensor, labels: Tensor, weights: Tensor) -> None:
    """Sets the read-out to the minimum above, in place; the intercept is not held back.

    Args:
        readout: on the CPU; what it holds is what the ridge pulls to.
        inputs: (n, 3, H, W), normalised.
        labels: (n,) class indices.
        weights: (k,) of a clip of each class; their scale does not matter.
    """
    features = patch_means(torch.cat([inputs, flip_horizontally(inputs)]), readout.patch).double()
    labels = torch.cat([labels, labels])
    weight = weights.double()[labels]
    weight = weight / weight.mean()
    classes = readout.linear.out_features
    targets = REACH * (F.one_hot(labels, classes).double() - 1 / classes)
    middle = (weight[:, None] * features).sum(0) / weight.sum()
    level = (weight[:, None] * targets).sum(0) / weight.sum()
    centred = features - middle
    weighted = centred.T * weight  # (f, 2 n)
    held = readout.linear.weight.double().T  # (f, k)
    ridge = STRENGTH * torch.eye(len(held), dtype=torch.float64)
    solved = held + torch.linalg.solve(
        weighted @ centred + ridge, weighted @ (targets - level - centred @ held)
    )
    readout.linear.weight.copy_(solved.T)
    readout.linear.bias.copy_(level - middle @ solved)
