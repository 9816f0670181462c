"""Augmentation that knows what a flow is: moving the picture also turns its vectors.

A batch is (B, 3, H, W): u, v, strain, normalised. A horizontal flip mirrors the picture and negates u; a
rotation turns picture and vectors by the same angle; strain is a magnitude and only moves.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ptsr_edge.core.records import Record


class Augmentation(Record):
    """How far a batch is moved.

    Attributes:
        flip: probability of a horizontal flip.
        shift: largest shift, as a share of the side.
        degrees: largest rotation.
        scale: largest change of size, as a share.
        gain: standard deviation of the logarithm of the intensity.
        head_motion: standard deviation of each coefficient of an affine flow that is added to u and v, in
            units of their own spread: what is left of the head's motion after any removal of it.
    """

    flip: float = 0.5
    shift: float = 0.07
    degrees: float = 10.0
    scale: float = 0.1
    gain: float = 0.2
    head_motion: float = 0.0


def flip_horizontally(batch: Tensor) -> Tensor:
    """The mirrored scene: (B, 3, H, W) -> (B, 3, H, W), u negated."""
    signs = torch.tensor([-1.0, 1.0, 1.0], device=batch.device).view(1, 3, 1, 1)
    return batch.flip(-1) * signs


def rotate_scale_shift(batch: Tensor, radians: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Turns (clockwise as seen, y down), scales and moves the scene; vectors turn along.

    Args:
        batch: (B, 3, H, W).
        radians: (B,) angle.
        scale: (B,) factor; above 1 the scene grows.
        shift: (B, 2) x and y, as a share of the side.

    Returns:
        (B, 3, H, W); what comes in from outside is 0: no motion.
    """
    cos, sin = torch.cos(radians), torch.sin(radians)
    # grid_sample asks where each output pixel reads: the inverse motion.
    inverse = torch.stack([cos, sin, -sin, cos], dim=1).view(-1, 2, 2) / scale.view(-1, 1, 1)
    offset = -(inverse @ (2 * shift).unsqueeze(-1))  # (B, 2, 1), in grid units
    grid = F.affine_grid(torch.cat([inverse, offset], dim=2), list(batch.shape), align_corners=False)
    moved = F.grid_sample(batch, grid, align_corners=False)
    u, v, strain = moved.unbind(dim=1)  # each (B, H, W)
    cos, sin = cos.view(-1, 1, 1), sin.view(-1, 1, 1)
    return torch.stack([cos * u - sin * v, sin * u + cos * v, strain], dim=1)


def add_affine_flow(batch: Tensor, coefficients: Tensor) -> Tensor:
    """Adds an affine flow to u and v; the strain stays that of the face.

    Args:
        batch: (B, 3, H, W).
        coefficients: (B, 2, 3): of u and of v, the constant and the change along x and y from the centre to
            the rim.

    Returns:
        (B, 3, H, W).
    """
    height, width = batch.shape[-2:]
    y = torch.linspace(-1, 1, height, device=batch.device).view(1, 1, height, 1)
    x = torch.linspace(-1, 1, width, device=batch.device).view(1, 1, 1, width)
    constant, along_x, along_y = coefficients.to(batch.device)[..., None, None].unbind(dim=2)  # (B, 2, 1, 1)
    return torch.cat([batch[:, :2] + constant + along_x * x + along_y * y, batch[:, 2:]], dim=1)


def augment(batch: Tensor, how: Augmentation, generator: torch.Generator) -> Tensor:
    """A randomly moved copy of a batch (B, 3, H, W)."""
    count = len(batch)

    def between(limit: float, *shape: int) -> Tensor:
        return (2 * torch.rand(count, *shape, generator=generator) - 1) * limit

    flipped = torch.rand(count, generator=generator) < how.flip
    batch = torch.where(flipped.view(-1, 1, 1, 1), flip_horizontally(batch), batch)
    batch = rotate_scale_shift(
        batch,
        radians=between(math.radians(how.degrees)),
        scale=1 + between(how.scale),
        shift=between(how.shift, 2),
    )
    gain = torch.exp(torch.randn(count, generator=generator) * how.gain)
    batch = batch * gain.view(-1, 1, 1, 1)
    if how.head_motion:
        batch = add_affine_flow(batch, how.head_motion * torch.randn(count, 2, 3, generator=generator))
    return batch
