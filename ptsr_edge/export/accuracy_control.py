"""int8 that loses too much accuracy: the layers that suffer most are found and put back to floating point.

Layers are ranked by what the logits lose when that layer *alone* is int8, so that the error of one is not taken for
that of the next; then as many are put back as it takes, twice as many each time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from ptsr_edge.core.console import progress, say
from ptsr_edge.core.errors import JobError
from ptsr_edge.core.records import Record
from ptsr_edge.export.onnx_graph import PRODUCTS, layer_of
from ptsr_edge.export.targets.base import (
    THROUGH_ARTIFACT,
    THROUGH_GRAPH,
    Artifact,
    Graph,
    Target,
    open_built,
)
from ptsr_edge.export.targets.quantization import products_kept_float, quantize_static_qdq
from ptsr_edge.runtimes.base import Runner
from ptsr_edge.runtimes.onnxruntime import OrtRunner
from ptsr_edge.stats.classification import confusion, uar

RANKED_SAMPLES = 32
"""Calibration samples that a ranking looks at."""


@dataclass(frozen=True)
class JudgedSamples:
    """Samples that int8 is judged on, and what fp32 reaches on them.

    Attributes:
        inputs: (n, C, S, S) float32, normalised.
        labels: (n,) true classes.
        classes: how many there are.
        expected: UAR of fp32 by token count.
    """

    inputs: NDArray[np.float32]
    labels: NDArray[np.int64]
    classes: int
    expected: Mapping[int, float]

    def uar(self, runner: Runner) -> float:
        """Returns the UAR of an artifact on the samples."""
        answers = [
            int(runner.run(one[None])[0].argmax()) for one in progress(list(self.inputs), "judging int8")
        ]
        return uar(confusion(self.labels, np.array(answers), self.classes))


def build_within(
    limit: float,
    target: Target,
    build: Callable[[Sequence[str]], Mapping[int, Artifact]],
    samples: JudgedSamples,
    rank: Callable[[], list[LayerSensitivity]],
) -> tuple[Mapping[int, Artifact], dict[str, Any]]:
    """Builds int8 and puts layers back, twice as many each time, until no budget loses more than the limit.

    Args:
        limit: the largest loss of UAR, in [0, 1].
        target: opens what was built.
        build: builds all budgets with some layers kept in floating point.
        samples: to judge on.
        rank: returns the layers, the most sensitive first; called only when something has to be repaired.

    Returns:
        The artifacts, and a record: `limit`, `kept_float`, `uar` and `uar_fp32` by token count, the
        `sensitivity` list, null where nothing had to be repaired, how many `samples` were judged on, and what
        the artifacts were judged `through`.

    Raises:
        JobError: putting all layers back does not reach the limit, or nothing can be judged here.
    """
    kept: list[str] = []
    ranking: list[LayerSensitivity] | None = None
    by_graph = False
    while True:
        artifacts = build(kept)
        found: dict[int, float] = {}
        for tokens, artifact in artifacts.items():
            runner, through = open_built(target, artifact)
            if runner is None:
                raise JobError(
                    "the loss of UAR cannot be measured here: the artifact cannot run on this machine"
                )
            if through == "graph" and not by_graph:
                by_graph = True
                say(f"{target.name} int8 is judged through its {THROUGH_GRAPH}: no engine runs here")
            found[tokens] = samples.uar(runner)
        worst = max(samples.expected[tokens] - value for tokens, value in found.items())
        if worst <= limit:
            return artifacts, {
                "limit": limit,
                "kept_float": kept,
                "uar": {str(tokens): round(value, 4) for tokens, value in found.items()},
                "uar_fp32": {str(tokens): round(samples.expected[tokens], 4) for tokens in found},
                "sensitivity": None if ranking is None else [layer.model_dump() for layer in ranking],
                "samples": len(samples.inputs),
                "through": THROUGH_GRAPH if by_graph else THROUGH_ARTIFACT,
            }
        ranking = rank() if ranking is None else ranking
        if len(kept) == len(ranking):
            listed = ", ".join(f"{layer.layer} ({layer.error:.2g})" for layer in ranking[:8])
            raise JobError(
                f"int8 loses {worst:.3f} UAR (limit {limit:g}) "
                f"with every layer put back; the most sensitive: {listed}"
            )
        kept = [layer.layer for layer in ranking[: max(1, 2 * len(kept))]]


class LayerSensitivity(Record):
    """The mean absolute change of the logits when this layer alone is int8."""

    layer: str
    error: float


def rank_layers(graph: Graph, calibration: NDArray[np.float32]) -> list[LayerSensitivity]:
    """Quantizes one layer at a time and measures what that does to the logits; the worst first.

    Args:
        graph: its products are named by `onnx_graph.name_products`.
        calibration: (n, C, S, S) float32 normalised inputs; the first `RANKED_SAMPLES` are used.
    """
    samples = calibration[:RANKED_SAMPLES]
    expected = _logits(graph.path, samples)
    products = [node.name for node in graph.model.graph.node if node.op_type in PRODUCTS]
    ranking = []
    with TemporaryDirectory(prefix="ptsr-edge-") as scratch:
        for layer in progress(quantizable_layers(graph.model), "layer sensitivity"):
            others = [name for name in products if layer_of(name) != layer]
            alone = Path(scratch) / "alone.onnx"
            quantize_static_qdq(graph.model, alone, samples, symmetric_activations=False, exclude=others)
            error = float(np.abs(_logits(alone, samples) - expected).mean())
            ranking.append(LayerSensitivity(layer=layer, error=error))
    return sorted(ranking, key=lambda found: -found.error)


def quantizable_layers(model: ModelProto) -> list[str]:
    """Returns the layers that int8 would take, in the graph's order; products by one layer count once."""
    kept = set(products_kept_float(model))
    names = [node.name for node in model.graph.node if node.op_type in PRODUCTS and node.name not in kept]
    return list(dict.fromkeys(layer_of(name) for name in names))


def _logits(graph: Path, samples: NDArray[np.float32]) -> NDArray[np.float32]:
    runner = OrtRunner(graph, threads=1)
    return np.stack([runner.run(one[None])[0] for one in samples])
