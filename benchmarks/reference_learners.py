"""What a transformer has to beat: a very small CNN, an RBF SVM and a linear model of 441 multiply-adds, as learners of a
protocol, and a PTSR's read-out of means without the PTSR.

All see the very samples and folds that the models see. The CNN and the read-out of means run through the same training loop with
the same augmentation; the SVM and the linear model, which have closed solutions, see each clip and its mirror image.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.svm import SVC
from torch import Tensor, nn
from torch.nn import functional as F

from ptsr_edge.core.config import ModelConfig, named_model
from ptsr_edge.data.datasets import FlowDataset
from ptsr_edge.evaluate.executor import Arrays
from ptsr_edge.models.checkpoint import predict_logits
from ptsr_edge.models.ptsr import MeanReadout, Output, Ptsr, build_model
from ptsr_edge.train.trainer import (
    REACH,
    STRENGTH,
    TrainConfig,
    class_weights,
    digest_weights,
    fit,
    flip_horizontally,
    solve_means,
)
from ptsr_edge.vision.flow import resize, to_input

SIDE = 28
FILTERS = (3, 5, 8)
SVM_SIDE = 14


class Ststnet(nn.Module):
    """STSTNet: (B, 3, 28, 28) -> logits (B, k); 1,683 parameters for three classes.

    Three streams of one 3 x 3 convolution with 3, 5 and 8 filters, pooled to 10 x 10 and 5 x 5, and a linear layer.
    Source: Liong et al., Shallow triple stream three-dimensional CNN, FG 2019 (arXiv 1902.03634).
    """

    def __init__(self, classes: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.streams = nn.ModuleList(
                nn.Sequential(
                    nn.Conv2d(3, filters, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(filters),
                    nn.MaxPool2d(3, 3, padding=1), nn.Dropout(0.5),
                )
                for filters in FILTERS
            )  # fmt: skip
            self.head = nn.Linear(sum(FILTERS) * 25, classes)

    def forward(self, flow: Tensor, tokens: int | None = None) -> Output:  # noqa: ARG002
        """Keeps no tokens, having none."""
        pooled = F.avg_pool2d(torch.cat([stream(flow) for stream in self.streams], dim=1), 2)  # (B, 16, 5, 5)
        return Output(self.head(pooled.flatten(1)), torch.zeros(len(flow), 0, dtype=torch.long))

    @staticmethod
    def macs(classes: int = 3) -> int:
        """Multiply-adds of one inference: the convolutions and the linear layer."""
        return SIDE * SIDE * 27 * sum(FILTERS) + sum(FILTERS) * 25 * classes


@dataclass(frozen=True)
class CnnLearner:
    """STSTNet, trained by the recipe of the models; `start`: weights to begin with, else seeded random ones."""

    name: str
    recipe: TrainConfig
    start: Ststnet | None = None
    image_size: int = SIDE
    keep_rates: tuple[float, ...] = (1.0,)

    def identity(self) -> dict[str, Any]:
        start = None if self.start is None else digest_weights(self.start)  # type: ignore[arg-type]
        return {"recipe": self.recipe.model_dump(mode="json"), "start": start}

    def answer(self, train: FlowDataset, held: FlowDataset, seed: int) -> Arrays:
        model = fit_cnn(train, self.recipe, seed, self.start)
        return {"logits": predict_logits(model, held.flows)[0][None]}  # type: ignore[arg-type]


def fit_cnn(data: FlowDataset, recipe: TrainConfig, seed: int, start: Ststnet | None = None) -> Ststnet:
    """Trains the CNN by the models' own loop; of the configuration only the number of classes is read there."""
    config: ModelConfig = named_model("vit-nano")
    first = copy.deepcopy(start) if start is not None else Ststnet(config.classes, seed)
    return fit(config, data, recipe, seed, initial=first)  # type: ignore[arg-type, return-value]


@dataclass(frozen=True)
class SvmLearner:
    """An RBF SVM on the samples and their mirror images, averaged down to 14 x 14."""

    name: str = "svm"
    c: float = 1.0
    image_size: int = SIDE
    keep_rates: tuple[float, ...] = (1.0,)

    def identity(self) -> dict[str, Any]:
        return {"c": self.c, "side": SVM_SIDE}

    def answer(self, train: FlowDataset, held: FlowDataset, seed: int) -> Arrays:  # noqa: ARG002
        seen = torch.from_numpy(to_input(train.flows))
        inputs = np.concatenate([_features(seen), _features(flip_horizontally(seen))])
        model = SVC(C=self.c).fit(inputs, np.tile(train.labels, 2))
        answers = model.predict(_features(torch.from_numpy(to_input(held.flows))))
        return {"logits": np.eye(len(train.label_names), dtype=np.float32)[answers][None]}


@dataclass(frozen=True)
class MeansLearner:
    """PTSR's read-out of the patches' means without a PTSR; `start`: what the ridge pulls to, else zero."""

    name: str
    start: MeanReadout | None = None
    image_size: int = SIDE
    keep_rates: tuple[float, ...] = (1.0,)

    def identity(self) -> dict[str, Any]:
        start = None if self.start is None else digest_weights(self.start)  # type: ignore[arg-type]
        return {"reach": REACH, "strength": STRENGTH, "start": start}

    def answer(self, train: FlowDataset, held: FlowDataset, seed: int) -> Arrays:  # noqa: ARG002
        readout = fit_means(named_model("ptsr-nano"), train, self.start)
        with torch.no_grad():
            return {"logits": readout(torch.from_numpy(to_input(held.flows))).numpy()[None]}


def fit_means(config: ModelConfig, data: FlowDataset, start: MeanReadout | None = None) -> MeanReadout:
    """The read-out of a model's patch means, solved on all of `data`; `start`: what the ridge pulls to, else zero."""
    readout = MeanReadout(config) if start is None else copy.deepcopy(start)
    if start is None:
        nn.init.zeros_(readout.linear.weight)
    labels = torch.from_numpy(data.labels)
    inputs = torch.from_numpy(to_input(data.flows))
    solve_means(readout, inputs, labels, class_weights(labels, config.classes))
    return readout


class MeansAlone(nn.Module):
    """A PTSR's read-out of means and nothing else: (B, 3, S, S) -> logits (B, k)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        means = cast(Ptsr, build_model(config)).means
        assert means is not None
        self.means = means

    def forward(self, flow: Tensor, tokens: int | None = None) -> Output:  # noqa: ARG002
        """Keeps no tokens, having none."""
        return Output(self.means(flow), torch.zeros(len(flow), 0, dtype=torch.long))


def fit_means_alone(config: ModelConfig, data: FlowDataset, recipe: TrainConfig) -> MeansAlone:
    """Trains the read-out of means of `config` by the models' own loop."""
    return fit(config, data, recipe, seed=0, initial=MeansAlone(config))  # type: ignore[arg-type, return-value]


def _features(batch: Tensor) -> NDArray[np.float32]:
    """(B, 3, S, S) -> (B, 14 * 14 * 3)."""
    pictures = batch.permute(0, 2, 3, 1).numpy()
    return np.stack([resize(np.ascontiguousarray(picture), SVM_SIDE).ravel() for picture in pictures])
