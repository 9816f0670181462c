"""Eager answers over many samples: what every exported artifact is compared with."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ptsr_edge.flow import to_input
from ptsr_edge.model import Model


def predict_logits(
    model: Model, flows: NDArray[np.float32], tokens: int | None = None, batch: int = 64
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Logits (n, k) and kept patches (n, K) of flow samples (n, H, W, 3), before normalisation.

    The model is put into evaluation mode and left in the mode it was in.
    """
    training = model.training
    model.eval()
    logits, kept = [], []
    with torch.no_grad():
        for start in range(0, len(flows), batch):
            output = model(torch.from_numpy(to_input(flows[start : start + batch])), tokens)
            logits.append(output.logits.float().numpy())
            kept.append(output.kept.numpy())
    model.train(training)
    return np.concatenate(logits), np.concatenate(kept)
