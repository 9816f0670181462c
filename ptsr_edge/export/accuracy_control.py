"""Which layers lose most when quantized to int8: a ranking, measured one layer at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from numpy.typing import NDArray

from ptsr_edge.core.records import Record
from ptsr_edge.export.onnx_graph import PRODUCTS
from ptsr_edge.export.targets.quantization import load_inferred, products_kept_float, quantize_static_qdq
from ptsr_edge.runtimes.onnxruntime import OrtRunner

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
