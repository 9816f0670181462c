"""A small composite of two sets with two subjects or more each, and learners for it. Test material."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ptsr_edge.core.config import LABELS, ModelConfig, Preprocess
from ptsr_edge.data.datasets import FlowDataset
from ptsr_edge.evaluate.cross_validation import ModelLearner
from ptsr_edge.evaluate.executor import Arrays
from ptsr_edge.train.trainer import TrainConfig

TOY = ModelConfig(
    name="toy", kind="ptsr", image_size=16, patch_size=4, dim=8, depth=1, heads=2, score="strain",
    token_norm="batch",
)  # fmt: skip
QUICK = TrainConfig(epochs=3, batch_size=6, lr=1e-2, budgets=(1.0, 0.5))


def composite(subjects: int = 4, clips: int = 3, side: int = 16) -> FlowDataset:
    """Noise with a sign of the class; subjects are of the sets `one` and `two` in turn."""
    count = subjects * clips
    flows = np.random.default_rng(0).normal(size=(count, side, side, 3)).astype(np.float32)
    labels = np.arange(count, dtype=np.int64) % 3
    flows[np.arange(count), 4 * labels, :, 1] += 2.0
    flows[..., 2] = np.abs(flows[..., 2])
    names = [f"{('one', 'two')[number % 2]}/s{number}" for number in range(subjects)]
    return FlowDataset(
        flows=flows,
        labels=labels,
        subjects=np.repeat(names, clips),
        names=[f"clip{number}" for number in range(count)],
        label_names=LABELS,
        preprocess=Preprocess(image_size=side),
        source="toy",
    )


def toy_learner(**changes: Any) -> ModelLearner:
    return ModelLearner(**(dict(config=TOY, recipe=QUICK, keep_rates=(1.0, 0.25)) | changes))


@dataclass(frozen=True)
class NearestMean:
    """A learner that is no model of the package: the class whose mean flow is nearest."""

    name: str = "nearest-mean"
    image_size: int = 16
    keep_rates: tuple[float, ...] = (1.0,)
    scale: float = 1.0

    def identity(self) -> dict[str, Any]:
        return {"scale": self.scale}

    def answer(self, train: FlowDataset, held: FlowDataset, seed: int) -> Arrays:
        means = np.stack([train.flows[train.labels == label].mean(axis=0) for label in range(3)])
        distance = ((held.flows[:, None] - means) ** 2).sum(axis=(2, 3, 4))  # (n, k)
        return {"logits": -self.scale * distance[None].astype(np.float32) + 0.0 * seed}
