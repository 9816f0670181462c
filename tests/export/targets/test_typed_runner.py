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

from ptsr_edge.core.errors import JobError
from ptsr_edge.export.targets.typed_graph import TypedGraphRunner, fold_constants
from ptsr_edge.runtimes.onnxruntime import OrtRunner


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
