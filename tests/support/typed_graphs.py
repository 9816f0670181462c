"""Small fp32 graphs for the tests of typing, quantizing and building: seeded random weights."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from ptsr_edge.core.config import ModelConfig, Preprocess
from ptsr_edge.export.onnx_graph import trace
from ptsr_edge.export.static_model import to_static
from ptsr_edge.export.targets.base import BuildRequest, Graph
from ptsr_edge.models.ptsr import build_model

CONFIG = ModelConfig(
    name="ptsr-test", kind="ptsr", image_size=24, patch_size=4, dim=32, depth=2, heads=2, mlp_ratio=2.0,
    score="class-attention", select_block=0,
)  # fmt: skip
"""36 patches; LayerNorm tokenizer with statistics of cells, selection by class attention."""

TOKENS = 9


def graph(tokens: int = TOKENS, score: str = "class-attention") -> ModelProto:
    return _traced(tokens, score)


@functools.cache
def _traced(tokens: int, score: str) -> ModelProto:
    torch.manual_seed(0)
    config = CONFIG.model_copy(update={"score": score})
    return trace(to_static(build_model(config), tokens), config)


def flows(count: int = 4, seed: int = 0) -> NDArray[np.float32]:
    """(count, 3, 24, 24) normalised inputs."""
    shape = (count, 3, CONFIG.image_size, CONFIG.image_size)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def saved(model: ModelProto, path: Path) -> Graph:
    """The graph as builders get it, its file with the weights inside."""
    onnx.save(model, path)
    return Graph(path, model)


def request(folder: Path, precision: str, **options: object) -> BuildRequest:
    """A request to build the graph of `TOKENS` tokens into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    return BuildRequest(
        name=CONFIG.name, graphs={TOKENS: saved(graph(), folder.parent / f"{CONFIG.name}.onnx")}, precision=precision, folder=folder,
        labels=["negative", "positive", "surprise"], preprocess=Preprocess(image_size=CONFIG.image_size),
        calibration=flows(), options=options,
    )  # fmt: skip


def small_graph(
    nodes: list[NodeProto], shape: list[int], constants: dict[str, NDArray[np.float32]], opset: int = 20
) -> ModelProto:
    """A graph from `flow` of a shape to `logits` of any."""
    made = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("flow", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [None, None])],
        [onnx.numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
