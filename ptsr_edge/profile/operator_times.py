"""Where the time of an inference goes, by class of operator, as the runtime's own profiler says.

Profiling slows a runtime, by the more the smaller its operators are: its times are handed on as shares of their
sum, never as a latency.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.core.errors import require
from ptsr_edge.runtimes.openvino import choose_precision, compile_ir, load_openvino, read_ir, rt_entry

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
) -> tuple[dict[str, float] | None, str | None]:
    """Shares of the inference's time by class of operator, the largest first; or None and why not.

    Args:
        target: whose runtime runs the artifact.
        artifact: an ONNX file or an IR.
        threads: of one operator.
        flow: (1, C, S, S) float32.
        runs: how many inferences are profiled, after one that is not.
    """
    if target == "cpu":
        times = _onnx_runtime(artifact, threads, flow, runs)
    elif target == "openvino":
        times = _openvino(artifact, threads, flow, runs)
    else:
        return None, f"the profiler of target {target} is not read"
    return shares_of(times), None


def shares_of(times: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Operators with their times in any unit -> shares by class, the largest first, 1 in all."""
    sums: Counter[str] = Counter()
    for name, time in times:
        sums[_CLASS_OF.get(name, name)] += time  # type: ignore[assignment]  # a Counter holds floats as well
    total = sum(sums.values())
    return {name: time / total for name, time in sums.most_common() if time > 0}


def _onnx_runtime(
    artifact: Path, threads: int, flow: NDArray[np.float32], runs: int
) -> list[tuple[str, float]]:
    ort = require("onnxruntime", "ort", "profiling operators")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.enable_profiling = True
    with TemporaryDirectory(prefix="ptsr-edge-") as scratch:
        options.profile_file_prefix = str(Path(scratch) / "operators")
        session = ort.InferenceSession(str(artifact), options, providers=["CPUExecutionProvider"])
        for _ in range(runs + 1):
            session.run(None, {"flow": flow})
        events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    kernels = [
        (str(event["args"]["op_name"]), float(event["dur"]))
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    ]
    return kernels[len(kernels) // (runs + 1) :]


def _openvino(artifact: Path, threads: int, flow: NDArray[np.float32], runs: int) -> list[tuple[str, float]]:
    ov = load_openvino()
    core = ov.Core()
    core.set_property("CPU", {"PERF_COUNT": True})
    model = read_ir(core, artifact)
    wanted = rt_entry(model, "inference_precision", artifact).split()
    precision = choose_precision(wanted, core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"), artifact.name)
    request = compile_ir(core, model, precision, threads, artifact.name).create_infer_request()
    request.infer([flow])
    times: list[tuple[str, float]] = []
    for _ in range(runs):
        request.infer([flow])
        times += [
            (str(entry.node_type), entry.real_time.total_seconds()) for entry in request.get_profiling_info()
        ]
    return times
