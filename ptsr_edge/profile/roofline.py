"""What this machine can do at all: a plain matrix product in the runtime that a variant runs in.

A product of (ROWS, WIDTH) with constant weights (WIDTH, WIDTH), as the layers of a transformer are, in the same
precision and with the same threads. It is no data sheet's peak: it is what the runtime's own kernel reaches on
an easy shape, on this machine, just now. A smaller layer may be faster where its weights stay in the cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np

from ptsr_edge.core.errors import require
from ptsr_edge.runtimes.openvino import CAPABILITY, DEVICE, load_openvino

ROWS, WIDTH = 256, 768
SETTLE = 3

Run = Callable[[], object]


def measure_ceiling(target: str, precision: str, threads: int, duration_s: float) -> dict[str, Any]:
    """The ceiling of a runtime, a precision and a number of threads.

    Returns:
        `gmacs_per_s`: 10^9 multiply-adds a second in the fastest run, or None and `why`; `shape`: m, k, n.
    """
    builders: dict[str, Callable[[str, int], Run | str]] = {"cpu": _onnx_runtime, "openvino": _openvino}
    shape = [ROWS, WIDTH, WIDTH]
    if target not in builders:
        return {"gmacs_per_s": None, "shape": shape, "why": f"no ceiling is measured for target {target}"}
    run = builders[target](precision, threads)
    if isinstance(run, str):
        return {"gmacs_per_s": None, "shape": shape, "why": run}
    for _ in range(SETTLE):
        run()
    taken: list[int] = []
    end = time.perf_counter_ns() + int(duration_s * 1e9)
    while len(taken) < SETTLE or time.perf_counter_ns() < end:
        start = time.perf_counter_ns()
        run()
        taken.append(time.perf_counter_ns() - start)
    return {"gmacs_per_s": ROWS * WIDTH * WIDTH / min(taken), "shape": shape, "why": None}


def _onnx_runtime(precision: str, threads: int) -> Run | str:
    if find_spec("onnx") is None:
        return "the package onnx, which writes the graph, is not installed"
    if precision not in ("fp32", "int8"):
        return f"no matrix product in {precision} is known for ONNX Runtime on a CPU"
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    onnxruntime = require("onnxruntime", "ort", "measuring a ceiling")

    quantized = precision == "int8"
    rng = np.random.default_rng(0)
    weights = rng.integers(-64, 64, (WIDTH, WIDTH)).astype(np.int8 if quantized else np.float32)
    kinds = (TensorProto.UINT8, TensorProto.INT32) if quantized else (TensorProto.FLOAT,) * 2
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger" if quantized else "MatMul", ["x", "w"], ["y"])],
        "ceiling",
        [helper.make_tensor_value_info("x", kinds[0], [ROWS, WIDTH])],
        [helper.make_tensor_value_info("y", kinds[1], [ROWS, WIDTH])],
        [numpy_helper.from_array(weights, "w")],
    )
    model: onnx.ModelProto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    rows = rng.integers(0, 128, (ROWS, WIDTH)).astype(np.uint8 if quantized else np.float32)
    return lambda: session.run(None, {"x": rows})


OPENVINO_TYPES = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32"}
"""The precision hint: what is between quantized products stays fp32."""

LEVELS = 255


def _openvino(precision: str, threads: int) -> Run | str:
    ov = load_openvino()
    ops = ov.opset13
    core = ov.Core()
    kind = OPENVINO_TYPES.get(precision)
    if kind is None:
        return f"OpenVINO takes a plain matrix product for {' or '.join(OPENVINO_TYPES)}, not for {precision}"
    quantized = precision == "int8"
    if CAPABILITY[kind] not in core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"):
        return f"OpenVINO on this CPU offers no {precision}"
    rng = np.random.default_rng(0)
    rows = ops.parameter([ROWS, WIDTH], np.float32)
    weights = ops.constant(rng.uniform(-1, 1, (WIDTH, WIDTH)).astype(np.float32))
    ends = [ops.constant(np.float32(end)) for end in (-1, 1, -1, 1)]
    # As in what NNCF writes: rounded to the levels of int8, which the plugin turns into an int8 product.
    factors = [ops.fake_quantize(x, *ends, LEVELS) if quantized else x for x in (rows, weights)]
    product = ops.matmul(*factors, False, False)
    compiled = core.compile_model(
        ov.Model([product], [rows], "ceiling"),
        DEVICE,
        {
            "INFERENCE_PRECISION_HINT": kind, "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False, "CACHE_DIR": "",
        },
    )  # fmt: skip
    if quantized and (ran := _product_precision(compiled)) not in ("i8", "u8"):
        return f"OpenVINO on this CPU calculates a quantized matrix product in {ran}"
    request = compiled.create_infer_request()
    given = rng.uniform(-1, 1, (ROWS, WIDTH)).astype(np.float32)
    return lambda: request.infer([given], share_inputs=True, share_outputs=True)


def _product_precision(compiled: Any) -> str:
    """The type that the compiled graph's product reads, as the runtime tells it."""
    for operator in compiled.get_runtime_model().get_ops():
        told = operator.get_rt_info()
        if told["layerType"].astype(str) in ("FullyConnected", "MatMul"):
            return str(told["runtimePrecision"].astype(str))
    return "an operator that is no matrix product"
