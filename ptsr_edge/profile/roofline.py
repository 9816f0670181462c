"""The limit that a runtime's speed is seen against, and the operators that an inference spends its time on.

The ceiling is a product of (ROWS, WIDTH) with constant weights (WIDTH, WIDTH), as in the layers of a transformer, in
the variant's runtime, precision and threads. It is no data sheet's peak, but the speed of the runtime's own kernel on
an easy shape, on this machine, just now. A smaller layer may be faster where its weights stay in the cache.

Operators are timed by the runtime's own profiler. Profiling slows a runtime, by the more the smaller its operators
are: the times are handed on as shares of their sum, never as a latency.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.core.files import scratch_folder
from ptsr_edge.runtimes.onnxruntime import open_session
from ptsr_edge.runtimes.openvino import (
    CAPABILITY,
    DEVICE,
    compile_ir,
    compile_model,
    load_openvino,
    read_ir,
)

ROWS, WIDTH = 256, 768

SETTLE = 3

Run = Callable[[], object]


class Untold(NamedTuple):
    """Why a runtime does not tell a result: `schema.Missing` in a process that does not load that."""

    kind: str
    reason: str


def measure_ceiling(target: str, precision: str, threads: int, duration_s: float) -> dict[str, Any]:
    """Measures the ceiling of a runtime, a precision and a number of threads.

    Returns:
        `gmacs_per_s`: 10^9 multiply-adds a second in the fastest run, or None; `shape`: m, k, n; `why` there is no
        ceiling, or None; `missing`: by field, `kind` and `reason` of a `schema.Missing`.
    """
    shape = [ROWS, WIDTH, WIDTH]
    run: Run | Untold = Untold("not_supported", f"no ceiling is measured for target {target}")
    if target in PRODUCTS:
        run = PRODUCTS[target](precision, threads)
    if isinstance(run, Untold):
        why = Untold(run.kind, f"there is no ceiling: {run.reason}")._asdict()
        missing = {"gmacs_per_s": why, "share": why}
        return {"gmacs_per_s": None, "shape": shape, "why": run.reason, "missing": missing}
    for _ in range(SETTLE):
        run()
    taken: list[int] = []
    end = time.perf_counter_ns() + int(duration_s * 1e9)
    while len(taken) < SETTLE or time.perf_counter_ns() < end:
        start = time.perf_counter_ns()
        run()
        taken.append(time.perf_counter_ns() - start)
    return {"gmacs_per_s": ROWS * WIDTH * WIDTH / min(taken), "shape": shape, "why": None, "missing": {}}


def _onnx_runtime_product(precision: str, threads: int) -> Run | Untold:
    if find_spec("onnx") is None:
        return Untold("not_installed", "the package onnx, which writes the graph, is not installed")
    if precision not in ("fp32", "int8"):
        return Untold("not_supported", f"no matrix product in {precision} is known for ONNX Runtime on a CPU")
    import onnx
    from onnx import TensorProto, helper, numpy_helper

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
    session = open_session(model.SerializeToString(), threads)
    rows = rng.integers(0, 128, (ROWS, WIDTH)).astype(np.uint8 if quantized else np.float32)
    return lambda: session.run(None, {"x": rows})


OPENVINO_TYPES = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32"}
"""The precision hint: what is between quantized products stays fp32."""

LEVELS = 255


def _openvino_product(precision: str, threads: int) -> Run | Untold:
    ov = load_openvino()
    ops = ov.opset13
    core = ov.Core()
    kind = OPENVINO_TYPES.get(precision)
    if kind is None:
        known = " or ".join(OPENVINO_TYPES)
        return Untold(
            "not_supported", f"OpenVINO takes a plain matrix product for {known}, not for {precision}"
        )
    quantized = precision == "int8"
    if CAPABILITY[kind] not in core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"):
        return Untold("not_supported", f"OpenVINO on this CPU offers no {precision}")
    rng = np.random.default_rng(0)
    rows = ops.parameter([ROWS, WIDTH], np.float32)
    weights = ops.constant(rng.uniform(-1, 1, (WIDTH, WIDTH)).astype(np.float32))
    ends = [ops.constant(np.float32(end)) for end in (-1, 1, -1, 1)]
    # As in what NNCF writes: rounded to the levels of int8, which the plugin turns into an int8 product.
    factors = [ops.fake_quantize(x, *ends, LEVELS) if quantized else x for x in (rows, weights)]
    product = ops.matmul(*factors, False, False)
    compiled = compile_model(core, ov.Model([product], [rows], "ceiling"), kind, threads, "a matrix product")
    if quantized and (ran := _product_precision(compiled)) not in ("i8", "u8"):
        return Untold("not_supported", f"OpenVINO on this CPU calculates a quantized matrix product in {ran}")
    request = compiled.create_infer_request()
    given = rng.uniform(-1, 1, (ROWS, WIDTH)).astype(np.float32)
    return lambda: request.infer([given], share_inputs=True, share_outputs=True)


def _product_precision(compiled: Any) -> str:
    """Returns the type that the compiled graph's product reads, as the runtime tells it."""
    for operator in compiled.get_runtime_model().get_ops():
        told = operator.get_rt_info()
        if told["layerType"].astype(str) in ("FullyConnected", "MatMul"):
            return str(told["runtimePrecision"].astype(str))
    return "an operator that is no matrix product"


PRODUCTS: dict[str, Callable[[str, int], Run | Untold]] = {
    "cpu": _onnx_runtime_product,
    "openvino": _openvino_product,
}
"""Builders of the matrix product by target, from precision and threads."""

CLASSES: dict[str, tuple[str, ...]] = {
    "matrix products": (
        "MatMul", "Gemm", "Conv", "FullyConnected", "Convolution", "MHA", "ScaledDotProductAttention",
        "MatMulInteger", "QLinearMatMul", "QLinearConv", "ConvInteger", "QGemm", "FusedMatMul", "FusedGemm",
        "FusedConv", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "Attention", "QAttention", "NhwcFusedConv",
        "MultiHeadAttention", "FullyConnectedQuantizedLegacy", "FullyConnectedQuantized", "LLMMLP", "QKVProjection", "MatMulNBits",
    ),
    "normalisation": (
        "LayerNormalization", "SkipLayerNormalization", "SimplifiedLayerNormalization", "MVN", "RMS", "RMSNorm",
        "NormalizeL2", "ReduceMean", "ReduceSum", "ReduceSumSquare", "Reduce", "Sqrt", "BatchNormalization",
    ),
    "softmax and activations": (
        "Softmax", "SoftMax", "Gelu", "BiasGelu", "FastGelu", "QuickGelu", "Erf", "Relu", "Sigmoid", "Tanh", "Exp",
        "QLinearSoftmax",
    ),
    "element-wise": (
        "Add", "Sub", "Mul", "Div", "Pow", "Reciprocal", "Neg", "Eltwise", "Subgraph", "Math", "Where", "Select",
        "QLinearAdd", "QLinearMul", "Clip", "Max", "Min",
    ),
    "selection": (
        "TopK", "Gather", "GatherElements", "GatherND", "ArgMax", "OneHot", "AveragePool", "Pooling", "AvgPool",
        "QLinearAveragePool", "GlobalAveragePool",
    ),
    "number formats": (
        "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast", "Convert", "FakeQuantize", "Quantize",
    ),
    "shapes and copies": (
        "Reshape", "Transpose", "Concat", "Concatenation", "Split", "Slice", "StridedSlice", "Squeeze", "Unsqueeze",
        "Expand", "Tile", "Pad", "Flatten", "Identity", "Reorder", "Broadcast", "Const", "Constant", "Input",
        "Output", "Result", "Parameter", "VariadicSplit", "ReorderOutput", "MemcpyFromHost", "Shape", "ShapeOf",
    ),
}  # fmt: skip
"""Classes of operators and their names in ONNX Runtime and OpenVINO; any other stands under its own name."""

_CLASS_OF = {name: kind for kind, names in CLASSES.items() for name in names}


def operator_shares(
    target: str, artifact: Path, threads: int, flow: NDArray[np.float32], runs: int
) -> dict[str, float] | Untold:
    """Returns the shares of an inference's time by class of operator, the largest first; or why there are none.

    Args:
        target: whose runtime runs the artifact.
        artifact: an ONNX file or an IR.
        threads: of one operator.
        flow: (1, C, S, S) float32.
        runs: number of inferences that are profiled, after one that is not.
    """
    if target not in OPERATOR_TIMES:
        return Untold("not_supported", f"the profiler of target {target} is not read")
    return shares_of(OPERATOR_TIMES[target](artifact, threads, flow, runs))


def operators_run(
    target: str, artifact: Path, threads: int, flow: NDArray[np.float32]
) -> dict[str, int] | Untold:
    """Returns how many operators of each name a runtime executes in one inference, the most frequent first; or why not.

    The names are the runtime's own, after its optimisations: what was fused or folded is not counted. ONNX Runtime tells
    what it executes; OpenVINO what its compiled graph holds, where a reshape may stand that does nothing.
    """
    if target not in OPERATOR_NAMES:
        return Untold(
            "not_supported", f"operators were not counted: the profiler of target {target} is not read"
        )
    counts = Counter(OPERATOR_NAMES[target](artifact, threads, flow))
    return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))


def shares_of(times: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Sums operators' times, in any unit, to shares by class: the largest first, 1 in all."""
    sums: Counter[str] = Counter()
    for name, spent in times:
        sums[_CLASS_OF.get(name, name)] += spent  # type: ignore[assignment]  # a Counter holds floats as well
    total = sum(sums.values())
    return {name: spent / total for name, spent in sums.most_common() if spent > 0}


def _onnx_runtime_times(
    artifact: Path, threads: int, flow: NDArray[np.float32], runs: int
) -> list[tuple[str, float]]:
    with scratch_folder() as scratch:
        session = open_session(artifact, threads, profile=scratch / "operators")
        for _ in range(runs + 1):
            session.run(None, {"flow": flow})
        events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    kernels = [
        (str(event["args"]["op_name"]), float(event["dur"]))
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    ]
    return kernels[len(kernels) // (runs + 1) :]


def _onnx_runtime_names(artifact: Path, threads: int, flow: NDArray[np.float32]) -> list[str]:
    return [name for name, _ in _onnx_runtime_times(artifact, threads, flow, 1)]


def _openvino_compiled(artifact: Path, threads: int) -> Any:
    core = load_openvino().Core()
    core.set_property(DEVICE, {"PERF_COUNT": True})
    return compile_ir(core, read_ir(core, artifact), artifact.name, threads)[1]


ENDS = ("Const", "Input", "Output")
"""What an execution graph of OpenVINO holds beside its operators."""


def _openvino_names(artifact: Path, threads: int, _flow: NDArray[np.float32]) -> list[str]:
    """Names the operators of the execution graph that depend on its input.

    Profiling tells less: what took no whole microsecond is reported as not run, and changes from run to run.
    """
    constant: set[str] = set()
    names = []
    for operator in _openvino_compiled(artifact, threads).get_runtime_model().get_ordered_ops():
        name = str(operator.get_rt_info()["layerType"].astype(str))
        sources = [value.get_node().get_friendly_name() for value in operator.input_values()]
        if name == "Const" or (sources and constant.issuperset(sources)):  # folded while it was compiled
            constant.add(operator.get_friendly_name())
        elif name not in ENDS:
            names.append(name)
    return names


def _openvino_times(
    artifact: Path, threads: int, flow: NDArray[np.float32], runs: int
) -> list[tuple[str, float]]:
    request = _openvino_compiled(artifact, threads).create_infer_request()
    request.infer([flow])
    times: list[tuple[str, float]] = []
    for _ in range(runs):
        request.infer([flow])
        times += [
            (str(entry.node_type), entry.real_time.total_seconds()) for entry in request.get_profiling_info()
        ]
    return times


OPERATOR_TIMES: dict[str, Callable[[Path, int, NDArray[np.float32], int], list[tuple[str, float]]]] = {
    "cpu": _onnx_runtime_times,
    "openvino": _openvino_times,
}
"""Readers of the runtime's profiler by target: artifact, threads, flow, runs -> names and times of operators."""

OPERATOR_NAMES: dict[str, Callable[[Path, int, NDArray[np.float32]], list[str]]] = {
    "cpu": _onnx_runtime_names,
    "openvino": _openvino_names,
}
"""Readers of what is executed in one inference by target: artifact, threads, flow -> the operator's name, once each time."""
