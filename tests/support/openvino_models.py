"""The small PTSR of the tests, traced, for OpenVINO to build from. Test material."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ptsr_edge.core.config import LABELS, Preprocess
from ptsr_edge.export.onnx_graph import trace, write_sharing_weights
from ptsr_edge.export.static_model import to_static
from ptsr_edge.export.targets.base import BuildRequest, Graph
from ptsr_edge.models.ptsr import Model

TOKENS = (16, 8)


def write_graphs(folder: Path, model: Model) -> dict[int, Graph]:
    """fp32 graphs at 16 and 8 tokens, weights beside them."""
    folder.mkdir(parents=True)
    graphs = {
        tokens: Graph(folder / f"k{tokens}.onnx", trace(to_static(model, tokens), model.config))
        for tokens in TOKENS
    }
    write_sharing_weights({graph.path: graph.model for graph in graphs.values()}, folder / "weights.bin")
    return graphs


def samples(count: int = 16, side: int = 32) -> np.ndarray:
    """Normalised inputs (n, 3, S, S): strain not negative."""
    drawn = np.random.default_rng(0).normal(size=(count, 3, side, side)).astype(np.float32)
    drawn[:, 2] = np.abs(drawn[:, 2])
    return drawn


def request_for(folder: Path, graphs: dict[int, Graph], precision: str, **options: object) -> BuildRequest:
    folder.mkdir(parents=True, exist_ok=True)
    return BuildRequest(
        name="ptsr-test", graphs=graphs, precision=precision, folder=folder, labels=list(LABELS),
        preprocess=Preprocess(image_size=32), calibration=samples(), options=options,
    )  # fmt: skip
