"""What a variant is made of may not grow unnoticed: operators by kind, and the bytes that are only moved.

Of a PTSR of two blocks at 9 of 36 tokens, whatever its width: counts depend on no load and on no processor. One that falls is
written down here as well, so that it stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper
from typed_graphs import CONFIG, TOKENS, flows, request, saved
from typed_graphs import graph as traced

from ptsr_edge.export.targets.base import BuildRequest, find_target
from ptsr_edge.profile.roofline import operators_run

MOVING = ("Transpose", "Gather", "Concat", "Pad", "Slice", "Split")
"""ONNX operators that compute nothing."""

SELECTIONS = ("strain", "class-attention")

COPIED = {"strain": 53_364, "class-attention": 100_220}
"""Bytes that these write in one inference of the fp32 graph."""

WATCHED = (
    "Transpose",
    "Gather",
    "Split",
    "Reshape",
    "Reorder",
    "QuantizeLinear",
    "DequantizeLinear",
    "FakeQuantize",
    "Convert",
)
"""Kinds that are no arithmetic of the model; the last number is of all kinds."""

RUN = {
    ("strain", "fp32"): ((10, 9, 2, 39, 0, 0, 0, 0, 0), 120),
    ("strain", "int8"): ((10, 9, 2, 19, 0, 10, 0, 0, 0), 110),
    ("class-attention", "fp32"): ((11, 11, 2, 40, 0, 0, 0, 0, 0), 130),
    ("class-attention", "int8"): ((11, 11, 2, 18, 0, 12, 2, 0, 0), 122),
}
"""What ONNX Runtime executes, by its own names."""

LAYERS = {
    ("strain", "fp32"): ((10, 9, 2, 19, 0, 0, 0, 0, 0), 135),
    ("strain", "int8"): ((10, 9, 2, 19, 0, 0, 0, 13, 16), 180),
    ("class-attention", "fp32"): ((11, 11, 2, 18, 0, 0, 0, 0, 0), 145),
    ("class-attention", "int8"): ((11, 11, 2, 18, 0, 0, 0, 14, 16), 191),
}
"""Layers of the IR that OpenVINO compiles; constants are not counted."""


def asked(score: str, precision: str, folder: Path) -> BuildRequest:
    made = request(folder / "out", precision)
    graph = saved(traced(TOKENS, score), folder / f"{CONFIG.name}.onnx")
    return BuildRequest(**{**vars(made), "graphs": {TOKENS: graph}})


def watched(counts: Mapping[str, int]) -> tuple[tuple[int, ...], int]:
    return tuple(counts.get(kind, 0) for kind in WATCHED), sum(counts.values())


def bytes_copied(model: ModelProto) -> int:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    kinds = {value.name: value.type.tensor_type for value in inferred.graph.value_info}
    total = 0
    for node in inferred.graph.node:
        for name in node.output if node.op_type in MOVING else ():
            shape = [dim.dim_value for dim in kinds[name].shape.dim]
            total += int(np.prod(shape)) * helper.tensor_dtype_to_np_dtype(kinds[name].elem_type).itemsize
    return total


@pytest.mark.parametrize("score", SELECTIONS)
def test_no_more_bytes_are_moved(score: str) -> None:
    assert bytes_copied(traced(TOKENS, score)) == COPIED[score]


@pytest.mark.parametrize(("score", "precision"), RUN)
def test_onnx_runtime_runs_no_more_operators(score: str, precision: str, tmp_path: Path) -> None:
    artifact = find_target("cpu").build(asked(score, precision, tmp_path))[TOKENS]
    counts = operators_run("cpu", artifact.path, 1, flows(1))
    assert isinstance(counts, dict)
    assert watched(counts) == RUN[score, precision]


@pytest.mark.parametrize(("score", "precision"), LAYERS)
def test_an_ir_has_no_more_layers(score: str, precision: str, tmp_path: Path) -> None:
    artifact = find_target("openvino").build(asked(score, precision, tmp_path))[TOKENS]
    kinds = Counter(str(layer.get("type")) for layer in ElementTree.parse(artifact.path).iter("layer"))
    del kinds["Const"]
    assert watched(kinds) == LAYERS[score, precision]
