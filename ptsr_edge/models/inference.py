"""Eager answers over many samples: what every exported artifact is compared with."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptsr_edge.core.errors import InputError
from ptsr_edge.models.ptsr import Model, Ptsr
from ptsr_edge.vision.flow import to_input

DEVICES = ("auto", "cpu", "cuda")


def choose_device(name: str) -> str:
    """`cpu` or `cuda`; for `auto` the GPU where torch sees one.

    Raises:
        InputError: another name, or `cuda` where torch sees no GPU.
    """
    if name not in DEVICES:
        raise InputError(f"unknown device {name!r}; accepted: {', '.join(DEVICES)}")
    sees_gpu = torch.cuda.is_available()
    if name == "cuda" and not sees_gpu:
        raise InputError(
            f"device cuda was asked for, but torch {torch.__version__} sees no GPU; accepted: auto, cpu"
        )
    return "cuda" if name != "cpu" and sees_gpu else "cpu"


def predict_logits(
    model: Model,
    flows: NDArray[np.float32],
    tokens: int | None = None,
    batch: int = 64,
    forced: Tensor | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Logits (n, k) and kept patches (n, K) of flow samples (n, H, W, 3), before normalisation.

    The model is put into evaluation mode and left in the mode it was in; it answers where it is.

    Args:
        model: a PTSR or a ViT.
        flows: samples, before normalisation.
        tokens: how many patches are kept; None: all.
        batch: how many samples at once.
        forced: (n, K) patches that each sample keeps, instead of DTSM's choice; for a PTSR only.
    """
    training = model.training
    device = next(model.parameters()).device
    model.eval()
    logits, kept = [], []
    with torch.no_grad():
        for start in range(0, len(flows), batch):
            part = slice(start, start + batch)
            inputs = torch.from_numpy(to_input(flows[part])).to(device)
            if forced is not None and isinstance(model, Ptsr):
                output = model(inputs, tokens, forced[part].to(device))
            else:
                output = model(inputs, tokens)
            logits.append(output.logits.float().cpu().numpy())
            kept.append(output.kept.cpu().numpy())
    model.train(training)
    return np.concatenate(logits), np.concatenate(kept)
