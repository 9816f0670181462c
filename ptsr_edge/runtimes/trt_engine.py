"""Builds one engine from one typed ONNX graph with whatever TensorRT is there, and reads its precision back.

One way for `tensorrt` 10.x, 11.x and `tensorrt_rtx`. Standard library only: `build_on_device` carries this
source to devices that have TensorRT and nothing else.
"""

from __future__ import annotations

import ctypes
import importlib
import re
import sys
import time
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""The Python module of each flavour, in the order in which they are tried."""

HINTS = {
    "Attention": "write attention as MatMul, Softmax, MatMul: export at opset 20",
    "NonZero": "its output's length depends on the input: select a fixed number with TopK",
    "Unique": "its output's length depends on the input: select a fixed number with TopK",
    "QuantizeLinear": "quantize symmetrically: signed int8 with zero point 0",
    "DequantizeLinear": "quantize symmetrically: signed int8, zero point 0, no quantized bias",
}
TYPES = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8"}
ALLOWED = {"fp32": {"fp32"}, "fp16": {"fp16"}, "int8": {"int8", "fp16"}}
"""Types that matrix products may compute in, by precision."""


class BuildError(Exception):
    """TensorRT is missing, refuses a graph, or built something else; one line says what."""


def describe_gpus() -> list[dict[str, str]]:
    """Name and compute capability (as `SM87`) of each GPU, by the CUDA driver; empty without one."""
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return []
    count, device, value = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return []
    found = []
    for index in range(count.value):
        name = ctypes.create_string_buffer(128)
        cuda.cuDeviceGet(ctypes.byref(device), index)
        cuda.cuDeviceGetName(name, len(name), device)
        digits = ""
        for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
            cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
            digits += str(value.value)
        found.append({"name": name.value.decode(errors="replace"), "capability": f"SM{digits}"})
    return found


def load_tensorrt(flavour: str | None) -> tuple[str, ModuleType]:
    """The flavour's name and module: the one named, or the first that is installed.

    Raises:
        BuildError: none can be imported; the message says which were tried and why not.
    """
    faults = []
    for name in [flavour] if flavour else MODULES:
        try:
            return name, importlib.import_module(MODULES[name])
        except (ImportError, OSError) as error:
            faults.append(f"{MODULES[name]}: {error}")
    raise BuildError(f"no TensorRT here ({'; '.join(faults)})")


_logs: dict[str, Any] = {}


def shared_log(trt: ModuleType) -> Any:
    """The one logger of a process for a flavour (TensorRT wants no second): keeps errors in `.errors`."""
    if trt.__name__ not in _logs:

        class Log(trt.ILogger):  # type: ignore[name-defined,misc]
            def __init__(self) -> None:
                super().__init__()
                self.errors: list[str] = []

            def log(self, severity: Any, message: str) -> None:
                if int(severity) <= int(trt.ILogger.Severity.ERROR):
                    self.errors.append(" ".join(message.split()))

        _logs[trt.__name__] = Log()
    return _logs[trt.__name__]


def parse_network(trt: ModuleType, builder: Any, onnx_path: Path) -> Any:
    """The strongly typed network of a graph.

    Raises:
        BuildError: TensorRT refuses the graph; the message names the operator.
    """
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, shared_log(trt))
    if parser.parse_from_file(str(onnx_path)):
        return network
    if not parser.num_errors:
        raise BuildError(f"{onnx_path.name} is no ONNX graph that {describe_version(trt)} can read")
    error = parser.get_error(parser.num_errors - 1)
    operator = error.node_operator()
    reason = " ".join(error.desc().split()) or "no reason given"
    if not operator:
        raise BuildError(f"{describe_version(trt)} cannot read {onnx_path.name}: {reason}")
    hint = HINTS.get(operator, "rewrite it with operators that TensorRT has")
    raise BuildError(
        f"{describe_version(trt)} refuses operator {operator} (node {error.node_name()!r} of "
        f"{onnx_path.name}): {reason[:200]}; {hint}"
    )


def count_products(trt: ModuleType, network: Any) -> Counter[str]:
    """How many matrix products of a parsed network compute in which type; int8 is between Q/DQ pairs."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    producers = {
        layer.get_output(index).name: layer for layer in layers for index in range(layer.num_outputs)
    }
    through = (trt.LayerType.SHUFFLE, trt.LayerType.IDENTITY)

    def source(tensor: Any) -> Any:
        layer = producers.get(tensor.name)
        while layer is not None and layer.type in through:
            layer = producers.get(layer.get_input(0).name)
        return layer

    found: Counter[str] = Counter()
    for layer in layers:
        if layer.type not in (trt.LayerType.MATRIX_MULTIPLY, trt.LayerType.CONVOLUTION):
            continue
        sources = [source(layer.get_input(i)) for i in range(min(layer.num_inputs, 2))]
        if all(s is not None and s.type == trt.LayerType.DEQUANTIZE for s in sources):
            found["int8"] += 1
        else:
            kind = layer.get_output(0).dtype.name
            found[TYPES.get(kind, kind)] += 1
    return found


def require_precision(found: Counter[str], settings: dict[str, Any], where: str) -> None:
    """Makes sure that matrix products compute in what was asked for.

    Raises:
        BuildError: some compute in another type, or fewer are int8 than the graph says.
    """
    precision = settings["precision"]
    wrong = {kind: number for kind, number in found.items() if kind not in ALLOWED[precision]}
    expected = settings.get("products", {}).get(precision, 1)
    if wrong or found[precision] < expected:
        have = ", ".join(f"{number} in {kind}" for kind, number in sorted(found.items())) or "none"
        raise BuildError(
            f"{where} is not {precision}: of its matrix products {have}; expected {expected} in {precision}"
        )


def build_plan(
    flavour: str, trt: ModuleType, onnx_path: Path, settings: dict[str, Any], capabilities: list[str]
) -> tuple[bytes, dict[str, Any]]:
    """A plan and what is to be known of it.

    Raises:
        BuildError: TensorRT refuses the graph, cannot build it here, or builds another precision.
    """
    log = shared_log(trt)
    builder = trt.Builder(log)
    if builder is None:
        raise BuildError(f"{describe_version(trt)} cannot build here: {last_error(log)}")
    network = parse_network(trt, builder, onnx_path)
    products = count_products(trt, network)
    require_precision(products, settings, onnx_path.name)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that the engine tells its types
    if not settings.get("tf32", False):
        config.clear_flag(trt.BuilderFlag.TF32)
    if hasattr(config, "num_compute_capabilities"):
        _set_capabilities(trt, config, capabilities)
    elif capabilities:
        raise BuildError(
            f"{describe_version(trt)} builds for the GPU in the machine only, not for {capabilities}"
        )
    started, started_cpu = time.perf_counter(), time.process_time()
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildError(f"{describe_version(trt)} cannot build {onnx_path.name}: {last_error(log)}")
    record = {
        "flavour": flavour, "version": trt.__version__, "capabilities": capabilities,
        "gpu": None if capabilities else next(iter(describe_gpus()), None),
        "build_s": round(time.perf_counter() - started, 3),
        "build_cpu_s": round(time.process_time() - started_cpu, 3),
        "products": dict(products), "read_back_from": "parsed network",
    }  # fmt: skip
    if not capabilities:
        record.update(inspect_engine(trt, bytes(plan), settings, onnx_path.name))
    return bytes(plan), record


def _set_capabilities(trt: ModuleType, config: Any, capabilities: list[str]) -> None:
    config.num_compute_capabilities = max(1, len(capabilities))
    for index, name in enumerate(capabilities or ["CURRENT"]):
        known = getattr(trt.ComputeCapability, name, None)
        if known is None or not config.set_compute_capability(known, index):
            raise BuildError(
                f"{describe_version(trt)} does not build for {name}: {last_error(shared_log(trt))}"
            )


def inspect_engine(trt: ModuleType, plan: bytes, settings: dict[str, Any], name: str) -> dict[str, Any]:
    """What a built engine says of its types; needs its GPU.

    Raises:
        BuildError: the engine cannot be loaded, or nothing in it is of the precision asked for.
    """
    engine = trt.Runtime(shared_log(trt)).deserialize_cuda_engine(plan)
    if engine is None:
        raise BuildError(f"{name}: the engine cannot be loaded again: {last_error(shared_log(trt))}")
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return judge_layers(text, settings, name)


def judge_layers(text: str, settings: dict[str, Any], name: str) -> dict[str, Any]:
    """Counts the types that an engine's layer information mentions.

    Raises:
        BuildError: it mentions types, and none of the precision asked for.
    """
    marks = {"fp32": r"FP32|Float(?!16)", "fp16": r"FP16|Half|Float16", "int8": r"INT8|Int8"}
    formats = re.findall(r'"(?:Format/)?Datatype"\s*:\s*"([^"]*)"', text, flags=re.IGNORECASE)
    found = {kind: sum(bool(re.search(mark, entry)) for entry in formats) for kind, mark in marks.items()}
    if any(found.values()) and not found[settings["precision"]]:
        raise BuildError(f"{name}: asked for {settings['precision']}, but the engine has {found} tensors")
    if not any(found.values()):  # this version's inspector tells no types
        return {}
    return {"tensor_types": found, "read_back_from": "parsed network and engine"}


def describe_version(trt: ModuleType) -> str:
    """Name and version for messages."""
    return f"{'TensorRT-RTX' if trt.__name__ == 'tensorrt_rtx' else 'TensorRT'} {trt.__version__}"


def last_error(log: Any) -> str:
    """The last thing that TensorRT complained about."""
    return log.errors[-1][:300] if log.errors else "no reason given"
