from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from typed_graphs import TOKENS, flows, graph, small_graph

from ptsr_edge.backend_ort import OrtRunner
from ptsr_edge.errors import JobError
from ptsr_edge.typed_runner import TypedGraphRunner


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


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(JobError, match="no readable ONNX graph"):
        TypedGraphRunner(path)
