"""Which layers lose most when quantized to int8: a ranking, measured one layer at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ptsr_edge.core.console import progress
from ptsr_edge.core.errors import JobError
from ptsr_edge.core.records import Record
from ptsr_edge.export.onnx_graph import PRODUCTS
from ptsr_edge.export.targets.base import Artifact
from ptsr_edge.export.targets.quantization import load_inferred, products_kept_float, quantize_static_qdq
from ptsr_edge.runtimes.base import Runner
from ptsr_edge.runtimes.onnxruntime import OrtRunner
from ptsr_edge.stats.classification import confusion, uar

SAMPLES = 32
"""Calibration samples that a ranking looks at."""


class LayerSensitivity(Record):
    """The mean absolute change of the logits when this layer alone is int8."""

    layer: str
    error: float


def quantizable_layers(graph: Path) -> list[str]:
    """Names of the layers that int8 would take, in the graph's order; products by one layer count once."""
    model = load_inferred(graph)
    kept = set(products_kept_float(model))
    names = [node.name for node in model.graph.node if node.op_type in PRODUCTS and node.name not in kept]
    return list(dict.fromkeys(layer_of(name) for name in names))


def layer_of(node: str) -> str:
    """The layer that a product belongs to: `blocks.1.attention.query/2` is `blocks.1.attention.query`."""
    return node.partition("/")[0]


def rank_layers(
    graph: Path,
    calibration: NDArray[np.float32],
    progress: Callable[[Iterable[str], str], Iterable[str]] = lambda items, _label: items,
) -> list[LayerSensitivity]:
    """Quantizes one layer at a time and measures what that does to the logits; the worst first.

    Args:
        graph: fp32 ONNX graph with named products (`onnx_graph.name_products`).
        calibration: (n, C, S, S) float32 normalised inputs; the first `SAMPLES` are used.
        progress: wraps the layers to show how far it has come.
    """
    samples = calibration[:SAMPLES]
    expected = _logits(graph, samples)
    model = onnx.load(graph, load_external_data=False)
    products = [node.name for node in model.graph.node if node.op_type in PRODUCTS]
    ranking = []
    with TemporaryDirectory(prefix="ptsr-edge-") as scratch:
        for layer in progress(quantizable_layers(graph), "layer sensitivity"):
            others = [name for name in products if layer_of(name) != layer]
            alone = Path(scratch) / "alone.onnx"
            quantize_static_qdq(graph, alone, samples, symmetric_activations=False, exclude=others)
            error = float(np.abs(_logits(alone, samples) - expected).mean())
            ranking.append(LayerSensitivity(layer=layer, error=error))
    return sorted(ranking, key=lambda found: -found.error)


def _logits(graph: Path, samples: NDArray[np.float32]) -> NDArray[np.float32]:
    runner = OrtRunner(graph, threads=1)
    return np.stack([runner.run(one[None])[0] for one in samples])


# FOLDED from export.repair: int8 that loses too much accuracy is repaired: its most sensitive layers go back to floating point.

Build = Callable[[Sequence[str]], Mapping[int, Artifact]]

Open = Callable[[Artifact], Runner | None]


def uar_of(runner: Runner, inputs: NDArray[np.float32], labels: NDArray[np.int64], classes: int) -> float:
    """UAR of an artifact over normalised inputs (n, C, S, S), with a progress bar."""
    answers = [int(runner.run(one[None])[0].argmax()) for one in progress(list(inputs), "judging int8")]
    return uar(confusion(labels, np.array(answers), classes))


def build_within(
    limit: float,
    build: Build,
    open_artifact: Open,
    expected: Mapping[int, float],
    judge: Callable[[Runner], float],
    rank: Callable[[], list[LayerSensitivity]],
) -> tuple[Mapping[int, Artifact], dict[str, Any]]:
    """Builds int8 and puts layers back, twice as many each time, until no budget loses more than the limit.

    Args:
        limit: the largest loss of UAR, in [0, 1].
        build: builds all budgets with some layers kept in floating point.
        open_artifact: loads an artifact; None where it cannot run here.
        expected: UAR in fp32 by token count, on the same samples.
        judge: UAR of a loaded artifact.
        rank: the layers, the most sensitive first; called only when something has to be repaired.

    Returns:
        The artifacts, and a record: `limit`, `kept_float`, `uar` and `uar_fp32` by token count, and the
        `sensitivity` list, null where nothing had to be repaired.

    Raises:
        JobError: putting all layers back does not reach the limit, or nothing can be judged here.
    """
    kept: list[str] = []
    ranking: list[LayerSensitivity] | None = None
    while True:
        artifacts = build(kept)
        found: dict[int, float] = {}
        for tokens, artifact in artifacts.items():
            runner = open_artifact(artifact)
            if runner is None:
                raise JobError(
                    "the loss of UAR cannot be measured here: the artifact cannot run on this machine"
                )
            found[tokens] = judge(runner)
        worst = max(expected[tokens] - value for tokens, value in found.items())
        if worst <= limit:
            return artifacts, {
                "limit": limit,
                "kept_float": kept,
                "uar": {str(tokens): round(value, 4) for tokens, value in found.items()},
                "uar_fp32": {str(tokens): round(expected[tokens], 4) for tokens in found},
                "sensitivity": None if ranking is None else [layer.model_dump() for layer in ranking],
            }
        ranking = rank() if ranking is None else ranking
        if len(kept) == len(ranking):
            listed = ", ".join(f"{layer.layer} ({layer.error:.2g})" for layer in ranking[:8])
            raise JobError(
                f"int8 loses {worst:.3f} UAR (limit {limit:g}) "
                f"with every layer put back; the most sensitive: {listed}"
            )
        kept = [layer.layer for layer in ranking[: max(1, 2 * len(kept))]]
