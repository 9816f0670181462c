"""TensorRT for real where tensorrt-rtx is installed; it needs no GPU to build."""

from __future__ import annotations

import ast
import json
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from typed_graphs import graph, small_graph

from ptsr_edge.export.targets.typed_graph import product_types, to_strong_fp16
from ptsr_edge.runtimes import build_on_device
from ptsr_edge.runtimes.build_on_device import (
    BuildError,
    build_plan,
    count_products,
    describe_gpus,
    judge_layers,
    load_tensorrt,
    parse_network,
    require_precision,
    shared_log,
)

FP16 = {"precision": "fp16"}


@pytest.fixture(scope="module")
def rtx() -> ModuleType:
    return pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is missing: pip install 'ptsr-edge[trt]'")


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "graph.onnx"
    onnx.save(model, path)
    return path


def test_the_network_tells_what_its_products_compute_in(rtx: ModuleType, tmp_path: Path) -> None:
    builder = rtx.Builder(shared_log(rtx))
    for model in (graph(), to_strong_fp16(graph())):
        network = parse_network(rtx, builder, saved(model, tmp_path))
        assert count_products(rtx, network) == Counter(product_types(model).values())


def test_kept_patches_come_out_as_int64(rtx: ModuleType, tmp_path: Path) -> None:
    network = parse_network(rtx, rtx.Builder(shared_log(rtx)), saved(to_strong_fp16(graph()), tmp_path))
    outputs = {network.get_output(i).name: network.get_output(i) for i in range(network.num_outputs)}
    assert outputs["kept"].dtype == rtx.DataType.INT64
    assert outputs["logits"].dtype == rtx.DataType.FLOAT


def test_a_graph_that_keeps_all_has_a_constant_output(rtx: ModuleType, tmp_path: Path) -> None:
    path = saved(to_strong_fp16(graph(36)), tmp_path)
    plan, record = build_plan("tensorrt-rtx", rtx, path, FP16, ["SM86"])
    assert plan[:4] == b"vtrt"
    assert record["capabilities"] == ["SM86"]


def test_an_fp32_graph_is_no_fp16_engine(rtx: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"graph\.onnx is not fp16: of its matrix products \d+ in fp32"):
        build_plan("tensorrt-rtx", rtx, saved(graph(), tmp_path), FP16, ["SM86"])


@pytest.mark.parametrize(
    ("operator", "attributes", "hint"),
    [
        ("NonZero", {}, "select a fixed number with TopK"),
        ("Unique", {"sorted": 1}, "select a fixed number with TopK"),
        ("Det", {}, "rewrite it with operators that TensorRT has"),
    ],
)
def test_a_refused_operator_is_named_with_a_hint(
    operator: str, attributes: dict[str, int], hint: str, rtx: ModuleType, tmp_path: Path
) -> None:
    node = helper.make_node(operator, ["flow"], ["logits"], "culprit", **attributes)
    path = saved(small_graph([node], [4, 4], {}), tmp_path)
    with pytest.raises(
        BuildError, match=f"refuses operator {operator} \\(node 'culprit' of graph.onnx\\): .*{hint}"
    ):
        parse_network(rtx, rtx.Builder(shared_log(rtx)), path)


def test_a_zero_point_is_refused_with_a_hint(rtx: ModuleType, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["flow", "scale", "zero"], ["int8"], "quantize"),
        helper.make_node("DequantizeLinear", ["int8", "scale", "zero"], ["logits"], "dequantize"),
    ]
    model = small_graph(nodes, [4, 4], {"scale": np.array(0.1, np.float32)})
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(128, np.uint8), "zero"))
    with pytest.raises(BuildError, match=r"QuantizeLinear .*signed int8 with zero point 0"):
        parse_network(rtx, rtx.Builder(shared_log(rtx)), saved(model, tmp_path))


def test_a_corrupt_graph_is_refused(rtx: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    path.write_bytes(b"garbage" * 9)
    with pytest.raises(BuildError, match=r"graph\.onnx"):
        parse_network(rtx, rtx.Builder(shared_log(rtx)), path)


def test_turing_refuses_fp32_products(rtx: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="FP32 GEMM is not supported"):
        build_plan("tensorrt-rtx", rtx, saved(graph(), tmp_path), {"precision": "fp32"}, ["SM75"])


@pytest.mark.skipif(bool(describe_gpus()), reason="a GPU is here")
def test_the_gpu_of_a_machine_without_one_is_refused(rtx: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"cannot build graph.onnx: .*CUDA"):
        build_plan("tensorrt-rtx", rtx, saved(to_strong_fp16(graph()), tmp_path), FP16, [])


@pytest.mark.parametrize(
    ("precision", "found", "fault"),
    [
        ("fp32", {"fp32": 3}, None),
        ("fp16", {"fp16": 3}, None),
        ("int8", {"int8": 2, "fp16": 1}, None),
        ("fp16", {"fp16": 2, "fp32": 1}, "is not fp16: of its matrix products 2 in fp16, 1 in fp32"),
        ("int8", {"int8": 1, "fp16": 2}, "expected 2 in int8"),
        ("int8", {"fp16": 3}, "is not int8"),
        ("fp32", {"fp16": 3}, "is not fp32"),
        ("fp16", {}, "of its matrix products none"),
    ],
)
def test_which_products_a_precision_allows(precision: str, found: dict[str, int], fault: str | None) -> None:
    settings = {"precision": precision, "products": {"int8": 2}}
    if fault is None:
        require_precision(Counter(found), settings, "engine")
    else:
        with pytest.raises(BuildError, match=fault):
            require_precision(Counter(found), settings, "engine")


@pytest.mark.parametrize("mark", ["Half", "Row major linear FP16 format"], ids=["TensorRT 10", "TensorRT 8"])
def test_an_engine_that_tells_its_types(mark: str) -> None:
    layers = json.dumps({"Layers": [{"Inputs": [{"Name": "x", "Format/Datatype": mark}]}]})
    assert judge_layers(layers, FP16, "engine")["tensor_types"] == {"fp32": 0, "fp16": 1, "int8": 0}
    with pytest.raises(BuildError, match="asked for int8, but the engine has"):
        judge_layers(layers, {"precision": "int8"}, "engine")


def test_an_engine_that_tells_nothing_is_not_judged() -> None:
    assert judge_layers('{"Layers": ["one", "two"]}', FP16, "engine") == {}


def test_a_missing_module_is_named() -> None:
    if build_on_device.load_tensorrt.__module__ and "tensorrt" in sys.modules:
        pytest.skip("tensorrt is installed here")
    with pytest.raises(BuildError, match=r"no TensorRT here \(tensorrt: No module named 'tensorrt'"):
        load_tensorrt("tensorrt")


def test_the_device_script_needs_nothing_but_the_standard_library() -> None:
    imported = set()
    for node in ast.walk(ast.parse(Path(build_on_device.__file__).read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported.add(node.module.partition(".")[0])
    assert imported <= sys.stdlib_module_names


def test_a_mixed_graph_names_its_node(rtx: ModuleType, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["flow"], ["half"], "cast", to=TensorProto.FLOAT16),
        helper.make_node("Add", ["half", "flow"], ["logits"], "mixed"),
    ]
    with pytest.raises(BuildError, match=r"refuses operator Add \(node 'mixed'"):
        parse_network(rtx, rtx.Builder(shared_log(rtx)), saved(small_graph(nodes, [1, 4], {}), tmp_path))
