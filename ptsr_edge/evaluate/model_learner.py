"""A named model as one of those that a protocol trains afresh in each fold."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ptsr_edge.core.config import ModelConfig
from ptsr_edge.core.files import sha256_of
from ptsr_edge.data.datasets import FlowData
from ptsr_edge.evaluate.executor import Arrays
from ptsr_edge.export.parity import eager_reference, measure_parity, require_parity
from ptsr_edge.export.refill import Template, export_template
from ptsr_edge.models.checkpoint import starting_checkpoint
from ptsr_edge.models.inference import predict_logits
from ptsr_edge.models.ptsr import Model
from ptsr_edge.models.selection import random_tokens
from ptsr_edge.runtimes.onnxruntime import OrtRunner
from ptsr_edge.train.trainer import Recipe, digest_weights, fit

THROUGH = ("torch", "cpu")
"""What answers for a fold's model: itself, or its artifact of target `cpu` (fp32, ONNX Runtime)."""


@dataclass(frozen=True)
class ModelLearner:
    """A model and its recipe, judged at some keep rates; see `cross_validation.Learner`.

    Attributes:
        config: geometry.
        recipe: how it is trained.
        keep_rates: judged with one set of weights.
        oracle: also answer for each held-out subject by the epoch that does best on that very subject.
        templates: graphs, one a keep rate, through which folds answer; none: they answer in torch.
        device: where it is trained, `cpu` or `cuda`.
        label: its name among the others, where that is not the model's.
        initial: weights that training begins with; None: those that the recipe says.
    """

    config: ModelConfig
    recipe: Recipe
    keep_rates: tuple[float, ...]
    oracle: bool = False
    templates: tuple[Template, ...] = ()
    device: str = "cpu"
    label: str = ""
    initial: Model | None = None

    @property
    def name(self) -> str:
        """What results call it."""
        return self.label or self.config.name

    @property
    def image_size(self) -> int:
        """Side of the samples that it takes."""
        return self.config.image_size

    def identity(self) -> dict[str, Any]:
        """All that its answers depend on but code, data and seed."""
        begins = self.recipe.start == "synthetic" and self.initial is None
        start = starting_checkpoint(self.config.name) if begins else None
        return {
            "model": self.config.model_dump(mode="json"),
            "recipe": self.recipe.model_dump(mode="json"),
            "keep_rates": list(self.keep_rates),
            "oracle": self.oracle,
            "through": THROUGH[bool(self.templates)],
            "device": self.device,
            "initial": None if self.initial is None else digest_weights(self.initial),
            "start": None if start is None else sha256_of(start),
        }

    def answer(self, train: FlowData, held: FlowData, seed: int) -> Arrays:
        """Trains, and answers for the held-out clips.

        Returns:
            `logits` (rates, n, k) float32; with `oracle` also `oracle` (rates, n), the classes by the best epoch.

        Raises:
            ParityError: an artifact departs from the model that it holds the weights of.
        """
        best = _BestEpoch(held, self._tokens) if self.oracle else None
        first = copy.deepcopy(self.initial)
        model = fit(self.config, train, self.recipe, seed, initial=first, on_epoch=best, device=self.device)
        if self.templates:
            logits = [artifact_logits(model, template, held) for template in self.templates]
        else:
            logits = [
                predict_logits(model, held.flows, tokens, forced=self._drawn(held, tokens, seed))[0]
                for tokens in self._tokens
            ]
        answers: Arrays = {"logits": np.stack(logits)}
        if best is not None:
            answers["oracle"] = best.predicted
        return answers

    def with_templates(self) -> ModelLearner:
        """The same, answering through artifacts: exports the graph of each keep rate, once for all folds."""
        templates = tuple(export_template(self.config, tokens) for tokens in self._tokens)
        return dataclasses.replace(self, templates=templates)

    def _drawn(self, held: FlowData, tokens: int, seed: int) -> Tensor | None:
        """The control's patches, drawn anew for each clip as they are in training; None for all other scores.

        A random model's own choice in evaluation, one set of places for all clips, can be exported; but which
        places these are decides more than anything else, so it is no measure of random selection.
        """
        if self.config.kind != "ptsr" or self.config.score != "random":
            return None
        fold = int(held.digest()[:12], 16)
        return random_tokens(len(held), self.config.patches, tokens, fold + seed)

    @property
    def _tokens(self) -> list[int]:
        return [self.config.tokens_at(rate) for rate in self.keep_rates]


def artifact_logits(model: Model, template: Template, data: FlowData) -> NDArray[np.float32]:
    """Logits (n, k) of the artifact that holds a model's weights, one sample at a time, as a camera runs it.

    Raises:
        ParityError: it departs from the eager model by more than fp32 may.
    """
    reference = eager_reference(model, template.tokens, data.flows)
    with TemporaryDirectory(prefix="ptsr-edge-") as folder:
        runner = OrtRunner(template.write(model, Path(folder)), threads=1)
        parity = measure_parity(reference, runner.run, "fp32")
        require_parity(parity, f"{model.config.name} at {template.tokens} tokens", "fp32")
        return np.stack([runner.run(one[None])[0] for one in reference.inputs])


class _BestEpoch:
    """Keeps, for each held-out subject and budget, the answers of the epoch that had most of them right.

    This looks at the held-out labels: what it gives is the leaky figure that some published code reports, and
    nothing that is trained or chosen may depend on it. Of equal epochs the first is kept.
    """

    def __init__(self, held: FlowData, tokens: Sequence[int]) -> None:
        self.held, self.tokens = held, tokens
        self.predicted = np.zeros((len(tokens), len(held)), dtype=np.int64)
        self.hits = np.full((len(tokens), len(held)), -1, dtype=np.int64)

    def __call__(self, model: Model) -> None:
        _, owner = np.unique(self.held.subjects, return_inverse=True)
        for place, tokens in enumerate(self.tokens):
            answers = predict_logits(model, self.held.flows, tokens)[0].argmax(axis=1)
            hits = np.bincount(owner, answers == self.held.labels).astype(np.int64)[owner]
            better = hits > self.hits[place]
            self.predicted[place, better] = answers[better]
            self.hits[place, better] = hits[better]
