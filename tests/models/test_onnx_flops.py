"""Counts on graphs against formulas worked out by hand, with dimensions that are all different.

A product of (m, k) with (k, n) takes m k n multiply-adds; everything below comes from that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from ptsr_edge.core.config import named_model
from ptsr_edge.core.errors import InputError
from ptsr_edge.export.onnx_graph import trace
from ptsr_edge.export.static_model import to_static
from ptsr_edge.models.macs import MacCount, count_macs, onnx_macs
from ptsr_edge.models.ptsr import build_model

FLOAT, UINT8, INT8 = TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT8


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[Any]]],
    constants: dict[str, np.ndarray] | None = None,
    output: str = "y",
) -> Path:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_empty_tensor_value_info(output)],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets), path)
    return path


@pytest.mark.parametrize(
    ("node", "inputs", "macs"),
    [
        (helper.make_node("MatMul", ["a", "b"], ["y"]), {"a": [2, 3, 5], "b": [5, 7]}, 2 * 3 * 5 * 7),
        (helper.make_node("MatMul", ["a", "b"], ["y"]), {"a": [3, 5], "b": [2, 5, 7]}, 2 * 3 * 5 * 7),
        (helper.make_node("Gemm", ["a", "b"], ["y"]), {"a": [3, 5], "b": [5, 7]}, 3 * 5 * 7),
        (
            helper.make_node("Gemm", ["a", "b"], ["y"], transA=1, transB=1),
            {"a": [5, 3], "b": [7, 5]},
            3 * 5 * 7,
        ),
        (
            helper.make_node("Conv", ["a", "b"], ["y"], strides=[2, 2]),
            {"a": [2, 4, 11, 9], "b": [7, 4, 3, 2]},
            2 * 20 * 7 * 24,
        ),
        (
            helper.make_node("Conv", ["a", "b"], ["y"], group=2),
            {"a": [1, 4, 5, 6], "b": [6, 2, 3, 2]},
            15 * 6 * 12,
        ),
        (
            helper.make_node("ConvTranspose", ["a", "b"], ["y"]),
            {"a": [2, 4, 5, 7], "b": [4, 6, 3, 2]},
            2 * 35 * 4 * 36,
        ),
        (
            helper.make_node("Einsum", ["a", "b"], ["y"], equation="bnd,bnkd->bk"),
            {"a": [2, 3, 5], "b": [2, 3, 7, 5]},
            2 * 3 * 7 * 5,
        ),
        (
            helper.make_node("FusedMatMul", ["a", "b"], ["y"], domain="com.microsoft", transB=1),
            {"a": [2, 3, 5], "b": [2, 7, 5]},
            2 * 3 * 5 * 7,
        ),
    ],
    ids=lambda value: value.op_type if isinstance(value, onnx.NodeProto) else "",
)
def test_onnx_operators(
    tmp_path: Path, node: onnx.NodeProto, inputs: dict[str, list[int]], macs: int
) -> None:
    path = save(tmp_path / "g.onnx", [node], {name: (FLOAT, shape) for name, shape in inputs.items()})
    assert onnx_macs(path) == MacCount(macs, {node.op_type: macs}, {})


SCALE = np.float32(0.1)
ZERO = np.uint8(0)


def test_onnx_quantized_operators(tmp_path: Path) -> None:
    constants = {"s": np.array(SCALE), "z": np.array(ZERO)}
    nodes = [
        helper.make_node("QLinearMatMul", ["a", "s", "z", "b", "s", "z", "s", "z"], ["m"]),  # (3,5)(5,7)
        helper.make_node("MatMulInteger", ["m", "c"], ["i"]),  # (3,7)(7,2)
        helper.make_node("QLinearConv", ["x", "s", "z", "w", "s", "z", "s", "z"], ["q"]),
        helper.make_node("ConvInteger", ["x", "w"], ["y"]),
    ]
    inputs = {"a": [3, 5], "b": [5, 7], "c": [7, 2], "x": [1, 4, 6, 5], "w": [2, 4, 3, 2]}
    path = save(tmp_path / "g.onnx", nodes, {n: (UINT8, shape) for n, shape in inputs.items()}, constants)
    conv = (4 * 4) * 2 * (4 * 3 * 2)
    counted = onnx_macs(path)
    assert counted.uncounted == {}
    assert counted.by_operator == {
        "QLinearMatMul": 3 * 5 * 7,
        "MatMulInteger": 3 * 7 * 2,
        "QLinearConv": conv,
        "ConvInteger": conv,
    }


def test_onnx_qdq_counts_the_product_once(tmp_path: Path) -> None:
    constants = {"s": np.array(SCALE), "z": np.array(ZERO), "w8": np.zeros((5, 7), np.uint8)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["x8"]),
        helper.make_node("DequantizeLinear", ["x8", "s", "z"], ["xf"]),
        helper.make_node("DequantizeLinear", ["w8", "s", "z"], ["wf"]),
        helper.make_node("MatMul", ["xf", "wf"], ["y"]),
    ]
    path = save(tmp_path / "g.onnx", nodes, {"x": (FLOAT, [3, 5])}, constants)
    assert onnx_macs(path) == MacCount(105, {"MatMul": 105}, {})


def test_onnx_what_it_cannot_count_is_listed(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("DFT", ["x"], ["d"]),
        helper.make_node("Secret", ["x"], ["u"], domain="com.microsoft"),
        helper.make_node("MatMul", ["x", "u"], ["y"]),
    ]
    path = save(tmp_path / "g.onnx", nodes, {"x": (FLOAT, [1, 4, 4, 1])})
    assert onnx_macs(path) == MacCount(0, {}, {"DFT": 1, "MatMul (shape unknown)": 1, "Secret": 1})


def test_onnx_a_symbolic_shape_is_not_guessed(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    path = save(tmp_path / "g.onnx", nodes, {"x": (FLOAT, ["batch", 5]), "w": (FLOAT, [5, 7])})
    assert onnx_macs(path).uncounted == {"MatMul (shape unknown)": 1}


def test_onnx_needs_no_weights_beside_it(tmp_path: Path) -> None:
    # The reshape's target lies in the second file as well and is needed; the 140 kB of weights are not.
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["y"]),
    ]
    constants = {"shape": np.array([3, 500]), "w": np.zeros((500, 70), np.float32)}
    path = save(tmp_path / "g.onnx", nodes, {"x": (FLOAT, [1500])}, constants)
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    weights = tmp_path / "weights.bin"
    content = weights.read_bytes()
    assert onnx_macs(path).total == 3 * 500 * 70
    shape_end = 4096
    weights.write_bytes(content[:shape_end])
    assert onnx_macs(path).total == 3 * 500 * 70


def test_onnx_agrees_with_torch_on_an_exported_model(tmp_path: Path) -> None:
    config = named_model("ptsr-nano")
    static = to_static(build_model(config), 13)
    onnx.save(trace(static, config), tmp_path / "g.onnx")
    by_graph = onnx_macs(tmp_path / "g.onnx")
    by_module = count_macs(static, (torch.zeros(1, 3, 28, 28),))
    assert by_graph.uncounted == by_module.uncounted == {}
    assert by_graph.total == by_module.total


def test_onnx_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        onnx_macs(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("not a graph")
    with pytest.raises(InputError, match="no readable ONNX model"):
        onnx_macs(tmp_path / "text.onnx")
