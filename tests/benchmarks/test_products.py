"""Products cut out of graphs that are written here, so that what has to be left is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from speed.contenders import products_of
from speed.products import cut_products

from ptsr_edge.core.errors import JobError
from ptsr_edge.profile.schema import Missing
from ptsr_edge.runtimes.openvino import RT_SECTION, load_openvino, matrix_products

WEIGHTS = np.arange(16, dtype=np.float32).reshape(4, 4)


def write_onnx(path: Path, nodes: list[onnx.NodeProto]) -> Path:
    constants = {
        "w": WEIGHTS, "w8": WEIGHTS.astype(np.int8), "step": np.float32(0.5), "zero8": np.int8(0), "zero": np.uint8(7),
        "bias": np.ones(4, np.float32),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes, "written", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    domains = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=10), path)
    return path


def test_onnx_products_keep_their_form_and_nothing_else(tmp_path: Path) -> None:
    source = write_onnx(
        tmp_path / "whole.onnx",
        [
            helper.make_node("MatMul", ["x", "w"], ["a"]),
            helper.make_node(
                "BiasGelu", ["a", "bias"], ["b"], domain="com.microsoft"
            ),  # whose shape onnx cannot infer
            helper.make_node("QuantizeLinear", ["b", "step", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["d"]),
            helper.make_node("DequantizeLinear", ["w8", "step", "zero8"], ["dw"]),
            helper.make_node("MatMul", ["d", "dw"], ["c"]),
            helper.make_node("Transpose", ["c"], ["t"], perm=[0, 2, 1]),
            helper.make_node("MatMul", ["c", "t"], ["e"]),
            helper.make_node("Softmax", ["e"], ["y"]),
        ],
    )
    cut = tmp_path / "cut.onnx"
    assert cut_products("cpu", source, cut) == 3
    graph = onnx.load(cut).graph
    assert [node.op_type for node in graph.node] == ["MatMul", *["DequantizeLinear"] * 2, "MatMul", "MatMul"]
    kinds = [value.type.tensor_type.elem_type for value in graph.input]
    assert sorted(kinds) == sorted(
        [TensorProto.FLOAT, TensorProto.UINT8, TensorProto.FLOAT]
    )  # x and c are one
    assert len(graph.output) == 3


def test_equal_products_stay_two(tmp_path: Path) -> None:
    source = write_onnx(
        tmp_path / "whole.onnx",
        [
            helper.make_node("MatMul", ["x", "w"], ["a"]),
            helper.make_node("Softmax", ["a"], ["b"]),
            helper.make_node("MatMul", ["b", "w"], ["y"]),
        ],
    )
    cut = tmp_path / "cut.onnx"
    assert cut_products("cpu", source, cut) == 2
    assert len(onnx.load(cut).graph.input) == 2


def test_an_artifact_without_products_is_told_and_goes_on(tmp_path: Path) -> None:
    source = write_onnx(tmp_path / "none.onnx", [helper.make_node("Softmax", ["x"], ["y"])])
    why = products_of("cpu", source, tmp_path / "products")
    assert isinstance(why, Missing)
    assert why.reason == "the products cannot be cut out: none.onnx has no matrix product"


def test_a_graph_without_a_product_is_refused(tmp_path: Path) -> None:
    source = write_onnx(tmp_path / "none.onnx", [helper.make_node("Softmax", ["x"], ["y"])])
    with pytest.raises(JobError, match="none.onnx has no matrix product"):
        cut_products("cpu", source, tmp_path / "cut.onnx")
    assert not (tmp_path / "cut.onnx").exists()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_openvino_products_run_in_the_types_that_they_have_in_the_whole(
    precision: str, tmp_path: Path
) -> None:
    ov = load_openvino()
    ops, core = ov.opset13, ov.Core()
    rng = np.random.default_rng(0)
    x = ops.parameter([1, 50, 64], np.float32)
    bounds = [ops.constant(np.float32(end)) for end in (-1, 1, -1, 1)]

    def product(value, weights):
        factors = [ops.constant(weights), value]
        if precision == "int8":
            factors = [ops.fake_quantize(one, *bounds, 255) for one in factors]
        return ops.matmul(factors[1], factors[0], False, True)

    first = ops.softmax(product(x, rng.uniform(-1, 1, (64, 64)).astype(np.float32)), 2)
    second = product(first, rng.uniform(-1, 1, (64, 64)).astype(np.float32))
    attended = ops.matmul(ops.softmax(second, 2), ops.relu(second), False, True)
    model = ov.Model([ops.softmax(attended, 2)], [x], "whole")
    model.set_rt_info(precision, [RT_SECTION, "precision"])
    source, cut = tmp_path / "whole.xml", tmp_path / "cut.xml"
    ov.save_model(model, source, compress_to_fp16=False)
    assert cut_products("openvino", source, cut) == 3
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    whole, alone = (matrix_products(core.compile_model(path, "CPU", settings)) for path in (source, cut))
    assert alone == whole
