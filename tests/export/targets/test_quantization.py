from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, helper, numpy_helper
from typed_graphs import flows, graph, saved, small_graph

import ptsr_edge
from ptsr_edge.core.errors import InputError, JobError
from ptsr_edge.export.onnx_graph import trace
from ptsr_edge.export.static_model import to_static
from ptsr_edge.export.targets.base import Graph
from ptsr_edge.export.targets.quantization import (
    attention_products,
    first_products,
    means_products,
    products_kept_float,
    quantize_dynamic_int8,
    quantize_static_qdq,
    statistics_products,
)
from ptsr_edge.runtimes.onnxruntime import OrtRunner

pytestmark = pytest.mark.slow

EMULATOR = "qemu-x86_64-static"
ANSWERS = """
import json, sys, numpy as np
from pathlib import Path
from ptsr_edge.runtimes.onnxruntime import OrtRunner
runner = OrtRunner(Path(sys.argv[1]), threads=1)
print(json.dumps([runner.run(one[None])[0].tolist() for one in np.load(sys.argv[2])]))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return saved(graph(), tmp_path_factory.mktemp("fp32") / "graph.onnx")


def zero_points(model: ModelProto) -> dict[str, list[np.generic]]:
    """Zero points by the type of the quantized values."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found: dict[str, list[np.generic]] = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            values = constants[node.input[2]]
            found.setdefault(str(values.dtype), []).extend(values.reshape(-1))
    return found


def quantized_products(model: ModelProto) -> set[str]:
    producers = {name: node.op_type for node in model.graph.node for name in node.output}
    return {
        node.name
        for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm")
        and all(producers.get(name) == "DequantizeLinear" for name in node.input[:2])
    }


def test_symmetric_pairs_have_zero_points_of_zero(source: Graph, tmp_path: Path) -> None:
    out = tmp_path / "int8.onnx"
    kept = products_kept_float(source.model)
    quantize_static_qdq(source.model, out, flows(), symmetric_activations=True, exclude=kept)
    model = onnx.load(out)
    points = zero_points(model)
    assert set(points) == {"int8"}
    assert not np.any(points["int8"])
    products = {n.name for n in model.graph.node if n.op_type in ("MatMul", "Gemm")}
    assert quantized_products(model) == products - set(kept)


def test_onnx_runtime_gets_unsigned_activations(source: Graph, tmp_path: Path) -> None:
    out = tmp_path / "int8.onnx"
    kept = products_kept_float(source.model)
    quantize_static_qdq(source.model, out, flows(), symmetric_activations=False, exclude=kept)
    assert set(zero_points(onnx.load(out))) == {"uint8"}


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_onnx_runtime_multiplies_integers(dynamic: bool, source: Graph, tmp_path: Path) -> None:
    """Read back from the graph that ONNX Runtime makes of it: Q/DQ pairs alone may end in float products."""
    out = tmp_path / "int8.onnx"
    kept = products_kept_float(source.model)
    if dynamic:
        quantize_dynamic_int8(source.model, out, exclude=kept)
    else:
        quantize_static_qdq(source.model, out, flows(), symmetric_activations=False, exclude=kept)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(str(out), options, providers=["CPUExecutionProvider"])
    kernels = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    integer = ("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulInteger", "QLinearMatMul", "QGemm")
    every = sum(node.op_type in ("MatMul", "Gemm") for node in source.model.graph.node)
    assert sum(kernels[kind] for kind in integer) == every - len(kept) > 10
    assert kernels["MatMul"] + kernels["Gemm"] + kernels["FusedMatMul"] == len(kept)


def test_weights_have_a_scale_per_output_channel(source: Graph, tmp_path: Path) -> None:
    out = tmp_path / "int8.onnx"
    quantize_static_qdq(source.model, out, flows(), symmetric_activations=True, exclude=[])
    model = onnx.load(out)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            weight, scale = constants[node.input[0]], constants[node.input[1]]
            assert weight.data_type == onnx.TensorProto.INT8
            assert list(scale.dims) in ([weight.dims[0]], [weight.dims[-1]])


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_int8_answers_nearly_as_fp32(dynamic: bool, source: Graph, tmp_path: Path) -> None:
    out = tmp_path / "int8.onnx"
    model = source.model
    kept = [*products_kept_float(model), *first_products(model)]
    if dynamic:
        quantize_dynamic_int8(source.model, out, exclude=kept)
    else:
        quantize_static_qdq(source.model, out, flows(16), symmetric_activations=True, exclude=kept)
    exact, int8 = OrtRunner(source.path, threads=1), OrtRunner(out, threads=1)
    errors = [np.abs(exact.run(one[None])[0] - int8.run(one[None])[0]).max() for one in flows(4)]
    # A step of int8 is 1/127 of a range; behind a dozen products errors of some steps add up.
    assert max(errors) < 0.1


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not shutil.which(EMULATOR),
    reason=f"{EMULATOR} is missing: apt-get install qemu-user-static",
)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_int8_answers_alike_on_a_cpu_without_vnni(dynamic: bool, source: Graph, tmp_path: Path) -> None:
    """Haswell adds two products of 8 bits in 16 bits: 255 x 127 + 255 x 127 would not fit, 255 x 64 does."""
    out = tmp_path / "int8.onnx"
    kept = products_kept_float(source.model)
    if dynamic:
        quantize_dynamic_int8(source.model, out, exclude=kept)
    else:
        quantize_static_qdq(source.model, out, flows(), symmetric_activations=False, exclude=kept)
    np.save(tmp_path / "flows.npy", 3 * flows(8, seed=1))  # beyond the calibrated range: 255 is common
    # An emulated program does not find its virtual environment.
    call = [str(Path(sys.executable).resolve()), "-c", ANSWERS, str(out), str(tmp_path / "flows.npy")]
    packages = os.pathsep.join([sysconfig.get_path("purelib"), str(Path(ptsr_edge.__file__).parents[1])])
    answers = []
    for emulator in ([], [EMULATOR, "-cpu", "Haswell"]):
        done = subprocess.run(
            [*emulator, *call], capture_output=True, text=True, check=True,
            env=os.environ | {"PYTHONPATH": packages},
        )  # fmt: skip
        answers.append(np.array(json.loads(done.stdout)))
    # Integer sums are exact unless they overflow; float32 between them rounds in another order, which at
    # worst moves an activation by one step (1/255 of its range). 8-bit weights are 0.17 and 0.24 apart.
    assert np.abs(answers[0] - answers[1]).max() < 0.02
    assert np.median(np.abs(answers[0] - answers[1])) < 1e-4


def test_which_products_stay_in_floating_point() -> None:
    model = graph()
    by_name = {node.name: node for node in model.graph.node}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    assert len(attention_products(model)) == 6  # the class row's, 2 blocks x 2, and the positional read-out
    statistics = [constants[by_name[name].input[1]].dims for name in statistics_products(model)]
    assert [list(dims) for dims in statistics] == [[16, 1], [16, 1], [16, 32]]
    first = [list(constants[by_name[name].input[1]].dims) for name in first_products(model)]
    assert first == [[16 * 3 * 2 * 2, 32]]  # the tokenizer's: 16 cells of 3 channels and 2 x 2 pixels


def test_the_read_out_of_the_means_stays_in_floating_point(ptsr_config: Any, randomised: Any) -> None:
    for score, tokens in (("strain", 4), ("class-attention", 4), ("strain", 16)):
        for means in (True, False):
            config = ptsr_config(score=score, mean_readout=means)
            model = trace(to_static(randomised(config), tokens), config)
            assert means_products(model) == (["means.linear"] if means else [])
            assert ("means.linear" in products_kept_float(model)) == means


def test_a_wrong_call_is_refused(source: Graph, tmp_path: Path) -> None:
    out = tmp_path / "int8.onnx"
    with pytest.raises(InputError, match="with n >= 1, got \\(0, 3, 24, 24\\)"):
        quantize_static_qdq(source.model, out, flows(0), symmetric_activations=True, exclude=[])
    with pytest.raises(InputError, match="no node of that name"):
        quantize_static_qdq(source.model, out, flows(), symmetric_activations=True, exclude=["nowhere"])
    assert not out.exists()


def test_an_invalid_graph_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["flow", "weights"], ["logits"], "product")
    broken = small_graph([node], [4, 4], {"weights": np.eye(3, dtype=np.float32)})
    with pytest.raises(JobError, match="no valid ONNX graph: .*MatMul"):
        quantize_dynamic_int8(broken, tmp_path / "out.onnx", exclude=[])
