from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from typed_graphs import flows, graph, small_graph

from ptsr_edge.core.errors import InputError, JobError
from ptsr_edge.export.targets.typed_graph import (
    TypedGraphRunner,
    columns_to_sums,
    inline_constants,
    nodes_kept_fp32,
    product_types,
    require_types,
    to_strong_fp16,
    value_types,
)


def run(
    model: onnx.ModelProto, folder: Path, flow: NDArray[np.float32]
) -> tuple[NDArray[np.float32], set[int]]:
    path = folder / "graph.onnx"
    onnx.save(model, path)
    logits, kept = TypedGraphRunner(path).run(flow)
    assert kept is not None
    return logits, set(kept.tolist())


@pytest.mark.parametrize("score", ["class-attention", "strain"])
def test_products_become_fp16_and_inputs_and_outputs_stay(score: str) -> None:
    typed = to_strong_fp16(graph(score=score))
    assert set(product_types(typed).values()) == {"fp16"}
    types = value_types(typed)
    assert types["flow"] == types["logits"] == TensorProto.FLOAT
    assert types["kept"] == TensorProto.INT64
    assert require_types(typed, "fp16") == {"fp16": len(product_types(typed))}


@pytest.mark.parametrize("name", ["samples", "flat", "half flat", "half faint", "constant"])
def test_fp16_is_near_fp32_on_motionless_skin_too(name: str, tmp_path: Path) -> None:
    # Half of the mantissa's last bit is 4.9e-4; about ten roundings lie between input and logits of size 1.
    flow = flows(1)
    if name == "flat":
        flow[...] = 0
    elif name == "constant":
        flow[...] = 3.7
    elif name.startswith("half"):
        flow[..., :12] *= 0.0 if name == "half flat" else 1e-3
    exact, _ = run(graph(score="strain"), tmp_path, flow)
    typed, _ = run(to_strong_fp16(graph(score="strain")), tmp_path, flow)
    assert np.abs(typed - exact).max() < 5e-3


def test_statistics_and_scores_stay_fp32() -> None:
    source = inline_constants(graph())
    columns_to_sums(source.graph)
    floats = {name for name, kind in value_types(source).items() if kind == TensorProto.FLOAT}
    kept = nodes_kept_fp32(source.graph, floats)
    operators = {node.op_type for node in source.graph.node if node.output[0] in kept}
    assert {"Sqrt", "Reciprocal", "ReduceMean", "TopK", "Softmax"} <= operators
    softmax = [node for node in source.graph.node if node.op_type == "Softmax"]
    assert sum(node.output[0] in kept for node in softmax) == 1  # the class row's, not attention's


def test_without_the_exceptions_a_faint_window_is_lost(tmp_path: Path) -> None:
    """Why the statistics stay fp32: a variance of 1e-9 is 0 in fp16, and so is a variance of 0 plus 1e-8."""
    eps = np.array([1e-8], np.float32)
    nodes = [
        helper.make_node("Mul", ["flow", "flow"], ["square"], "square"),
        helper.make_node("MatMul", ["square", "mean"], ["variance"], "variance"),
        helper.make_node("Add", ["variance", "eps"], ["safe"], "safe"),
        helper.make_node("Sqrt", ["safe"], ["deviation"], "deviation"),
        helper.make_node("Div", ["flow", "deviation"], ["normal"], "normal"),
        helper.make_node("MatMul", ["normal", "weights"], ["logits"], "project"),
    ]
    weights = np.eye(4, 3, dtype=np.float32)
    constants = {"mean": np.full((4, 1), 0.25, np.float32), "eps": eps, "weights": weights}
    source = small_graph(nodes, [1, 4], constants)
    flow = np.array([[3e-5, -3e-5, 3e-5, -3e-5]], np.float32)
    path = tmp_path / "typed.onnx"
    onnx.save(to_strong_fp16(source), path)
    logits, _ = TypedGraphRunner(path).run(flow)
    # By hand: variance 9e-10, deviation sqrt(1.09e-8) = 1.044e-4, so 3e-5 / 1.044e-4 = 0.2873.
    np.testing.assert_allclose(logits, [0.28735, -0.28735, 0.28735], rtol=1e-3)
    assert np.float16(9e-10) + np.float16(1e-8) == 0  # what all of it in fp16 would divide by


def test_a_column_product_is_a_weighted_sum(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["flow", "column"], ["logits"], "mean")]
    source = small_graph(nodes, [2, 3], {"column": np.array([[1.0], [2.0], [4.0]], np.float32)})
    columns_to_sums(source.graph)
    assert [node.op_type for node in source.graph.node] == ["Mul", "ReduceSum"]
    path = tmp_path / "sums.onnx"
    onnx.save(source, path)
    logits, _ = TypedGraphRunner(path).run(np.array([[1, 1, 1], [1, 0, -1]], np.float32))
    assert logits.tolist() == [7.0]  # 1 + 2 + 4, the first row's


def test_a_weight_beyond_fp16_is_refused() -> None:
    nodes = [helper.make_node("MatMul", ["flow", "weights"], ["logits"], "product")]
    source = small_graph(nodes, [1, 2], {"weights": np.full((2, 3), 1e5, np.float32)})
    with pytest.raises(InputError, match="'weights' reaches 1e\\+05: fp16 ends at 65504"):
        to_strong_fp16(source)


def test_a_graph_inside_a_node_is_refused() -> None:
    inner = helper.make_graph([], "inner", [], [])
    node = helper.make_node("If", ["flow"], ["logits"], "branch", then_branch=inner, else_branch=inner)
    with pytest.raises(InputError, match="'branch' \\(If\\) holds a graph"):
        to_strong_fp16(small_graph([node], [1], {}))


def test_the_product_of_another_type_is_named() -> None:
    with pytest.raises(JobError, match=r"fp16 was asked for, but product '.*' computes in fp32, not fp16"):
        require_types(graph(), "fp16")


def test_types_that_contradict_each_other_are_refused() -> None:
    nodes = [
        helper.make_node("Cast", ["flow"], ["half"], "cast", to=TensorProto.FLOAT16),
        helper.make_node("Add", ["half", "flow"], ["logits"], "add"),
    ]
    with pytest.raises(JobError, match="no valid ONNX graph"):
        value_types(small_graph(nodes, [1, 4], {}))
