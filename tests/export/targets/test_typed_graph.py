"""Typed graphs say what is computed in which type, and are computed with that rounding."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from typed_graphs import TOKENS, flows, graph, small_graph

from ptsr_edge.core.errors import InputError, JobError
from ptsr_edge.export.targets.typed_graph import (
    TypedGraphRunner,
    columns_to_sums,
    fold_constants,
    inline_constants,
    nodes_kept_fp32,
    product_types,
    require_types,
    to_strong_fp16,
    value_types,
)
from ptsr_edge.runtimes.onnxruntime import OrtRunner

pytestmark = pytest.mark.slow


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


def test_an_fp32_graph_is_answered_as_by_onnx_runtime(tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    onnx.save(graph(), path)
    for one in flows(2):
        logits, kept = TypedGraphRunner(path).run(one[None])
        expected, chosen = OrtRunner(path, threads=1).run(one[None])
        np.testing.assert_allclose(logits, expected, atol=1e-5)  # fp32 sums in another order
        assert kept is not None
        assert chosen is not None
        assert len(kept) == TOKENS
        assert set(kept.tolist()) == set(chosen.tolist())


def test_the_runner_rounds_what_onnx_runtime_does_not(tmp_path: Path) -> None:
    # 1 + 2^-11 lies halfway between fp16's 1 and 1 + 2^-10; to even it becomes 1.
    nodes = [
        helper.make_node("Cast", ["flow"], ["half"], "cast", to=TensorProto.FLOAT16),
        helper.make_node("Add", ["half", "step"], ["sum"], "add"),
        helper.make_node("Cast", ["sum"], ["logits"], "back", to=TensorProto.FLOAT),
    ]
    source = small_graph(nodes, [1, 1], {})
    source.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2.0**-11], np.float16), "step"))
    path = tmp_path / "rounding.onnx"
    onnx.save(source, path)
    logits, _ = TypedGraphRunner(path).run(np.ones((1, 1), np.float32))
    assert logits.tolist() == [1.0]


def wide(values: NDArray[np.float16]) -> NDArray[np.float64]:
    return values.astype(np.float64)


RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(3, 16)).astype(np.float16)
OTHER = RNG.normal(size=(3, 16)).astype(np.float16)
SQUARE = RNG.normal(size=(16, 16)).astype(np.float16)
SCALE, SHIFT = RNG.normal(size=(2, 16)).astype(np.float16)
NORMED = (wide(ROWS) - wide(ROWS).mean(1, keepdims=True)) / np.sqrt(wide(ROWS).var(1, keepdims=True) + 1e-5)
POWERS = np.exp(wide(ROWS))
ERF = np.vectorize(math.erf)


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes", "exact"),
    # By each operator's definition in ONNX, in float64.
    [
        ("Add", [ROWS, OTHER], {}, wide(ROWS) + wide(OTHER)),
        ("MatMul", [ROWS, SQUARE], {}, wide(ROWS) @ wide(SQUARE)),
        ("Gemm", [ROWS, SQUARE, SHIFT], {"transB": 1}, wide(ROWS) @ wide(SQUARE).T + wide(SHIFT)),
        ("Gelu", [ROWS], {}, wide(ROWS) * (1 + ERF(wide(ROWS) / 2**0.5)) / 2),
        ("Softmax", [ROWS], {"axis": -1}, POWERS / POWERS.sum(1, keepdims=True)),
        ("LayerNormalization", [ROWS, SCALE, SHIFT], {"epsilon": 1e-5}, NORMED * wide(SCALE) + wide(SHIFT)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_operator_in_fp16_is_rounded_once(
    tmp_path: Path, operator: str, inputs: list[Any], attributes: dict[str, Any], exact: Any
) -> None:
    names = ["half", *(f"constant{place}" for place in range(1, len(inputs)))]
    nodes = [
        helper.make_node("Cast", ["flow"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node(operator, names, ["result"], **attributes),
        helper.make_node("Cast", ["result"], ["logits"], to=TensorProto.FLOAT),
    ]
    path = tmp_path / "operator.onnx"
    onnx.save(small_graph(nodes, [3, 16], dict(zip(names[1:], inputs[1:], strict=True))), path)
    row, _ = TypedGraphRunner(path).run(inputs[0].astype(np.float32))
    exact = exact[0]
    # Half of the last bit of fp16, and what fp32 rounds inside: 1e-6 of the largest addend.
    np.testing.assert_array_less(np.abs(row - exact), np.spacing(np.abs(exact).astype(np.float16)) / 2 + 2e-5)


def test_int8_is_rounded_to_even_steps_and_ends_at_its_range(tmp_path: Path) -> None:
    values = np.array([[0.25, 0.75, -0.75, 63.6, 1000.0, -1000.0]], np.float32)
    nodes = [
        helper.make_node("Cast", ["flow"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("QuantizeLinear", ["half", "step", "zero"], ["steps"]),
        helper.make_node("Cast", ["steps"], ["logits"], to=TensorProto.FLOAT),
    ]
    source = small_graph(nodes, [1, 6], {"step": np.array(0.5, np.float16)})
    source.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0, np.int8), "zero"))
    path = tmp_path / "int8.onnx"
    onnx.save(source, path)
    # In steps of .5: .5, 1.5 and -1.5 are halfway and go to the even one.
    assert TypedGraphRunner(path).run(values)[0].tolist() == [0.0, 2.0, -2.0, 127.0, 127.0, -128.0]


@pytest.mark.parametrize(("largest", "expected"), [(1, [3, 1, 4]), (0, [0, 2, 5])])
def test_of_equal_scores_the_lower_index_is_taken(largest: int, expected: list[int], tmp_path: Path) -> None:
    """As ONNX asks: two equal values are ordered by their index, the lower one first."""
    nodes = [
        helper.make_node("TopK", ["flow", "k"], ["values", "places"], largest=largest),
        helper.make_node("Cast", ["places"], ["logits"], to=TensorProto.FLOAT),
    ]
    source = small_graph(nodes, [1, 6], {})
    source.graph.initializer.append(onnx.numpy_helper.from_array(np.array([3], np.int64), "k"))
    path = tmp_path / "ties.onnx"
    onnx.save(source, path)
    scores = np.array([[1, 3, 1, 4, 3, 1]], np.float32)
    assert TypedGraphRunner(path).run(scores)[0].tolist() == expected


def test_weights_are_scaled_once_and_not_at_every_run(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["steps", "step"], ["weights"], axis=1),
        helper.make_node("MatMul", ["flow", "weights"], ["logits"]),
    ]
    source = small_graph(nodes, [1, 2], {"step": np.array([0.5, 2.0], np.float32)})
    steps = np.array([[1, 2], [3, 4]], np.int8)
    source.graph.initializer.append(onnx.numpy_helper.from_array(steps, "steps"))
    path = tmp_path / "folded.onnx"
    onnx.save(source, path)
    fold_constants(source)
    assert [node.op_type for node in source.graph.node] == ["MatMul"]
    # By hand: columns (1, 3) / 2 and (2, 4) x 2, times (1, 10).
    assert TypedGraphRunner(path).run(np.array([[1, 10]], np.float32))[0].tolist() == [15.5, 84.0]


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(JobError, match="no readable ONNX graph"):
        TypedGraphRunner(path)
