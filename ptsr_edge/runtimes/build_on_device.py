"""Builds TensorRT engines from the typed ONNX graphs of a bundle, on the machine that is to run them.

    python3 build_on_device.py                     # every graph in this file's folder
    python3 build_on_device.py model.onnx --json   # one graph; the record of what was built on stdout
    python3 -m ptsr_edge.runtimes.build_on_device BUNDLE   # by the installed package: nothing of the folder is run

It needs TensorRT and nothing else: the Python module `tensorrt` (10.x, as on a Jetson, or 11.x) or
`tensorrt_rtx`, else the program `trtexec`. Beside each `NAME.onnx` stands `NAME.build.json` with what is to
be built; this writes `NAME.plan` and the record of the build. A `bundle.json` in the folder is brought up to
date. `ptsr-edge export --target trt` runs this same file, so what is tested there is what a device runs.

Exit codes: 0 done, 1 TensorRT refused or built another precision than was asked for, 2 the call was wrong.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
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

TRTEXEC = "/usr/src/tensorrt/bin/trtexec"
"""Where JetPack puts the program."""

_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading a JSON record of another shape raises."""


class BuildError(Exception):
    """TensorRT is missing, refuses a graph, or built something else; one line says what."""


def cuda_devices() -> list[dict[str, str]]:
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
    """Imports a flavour, by default the first that is installed; returns its name and module.

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
    """Returns the process's one logger per flavour (TensorRT wants no second): it keeps errors in `.errors`."""
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
    """Parses a graph into a strongly typed network.

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
    """Counts the matrix products of a parsed network by the type that they compute in; int8 is between Q/DQ pairs."""
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
    """Builds a plan; returns it and the record of the build.

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
        "gpu": None if capabilities else next(iter(cuda_devices()), None),
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
    """Returns what a built engine says of its types; needs its GPU.

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


def build_with_trtexec(onnx_path: Path, plan_path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Builds with the program where there is no Python module; the same checks as far as it tells.

    Raises:
        BuildError: there is no such program, or it fails.
    """
    program = shutil.which("trtexec") or (TRTEXEC if Path(TRTEXEC).is_file() else None)
    if program is None:
        raise BuildError("neither a TensorRT module nor the program trtexec is installed")
    with tempfile.TemporaryDirectory() as folder:
        layers = Path(folder) / "layers.json"
        call = [
            program, f"--onnx={onnx_path}", f"--saveEngine={plan_path}", "--stronglyTyped", "--skipInference",
            "--profilingVerbosity=detailed", f"--exportLayerInfo={layers}",
        ]  # fmt: skip
        started = time.perf_counter()
        done = subprocess.run(
            [*call, *([] if settings.get("tf32") else ["--noTF32"])], capture_output=True, text=True
        )
        if done.returncode or not plan_path.is_file():
            errors = [line for line in (done.stdout + done.stderr).splitlines() if "[E]" in line]
            raise BuildError(f"trtexec fails on {onnx_path.name}: {(errors or ['no reason given'])[-1]}")
        told = judge_layers(layers.read_text() if layers.is_file() else "", settings, onnx_path.name)
    version = ".".join(str(part) for part in plan_path.read_bytes()[24:28])
    return {
        "flavour": "tensorrt", "version": version, "capabilities": [],
        "gpu": next(iter(cuda_devices()), None), "build_s": round(time.perf_counter() - started, 3),
        "build_cpu_s": None, "products": None, "read_back_from": "nothing", **told,
    }  # fmt: skip


def build(onnx_path: Path, flavour: str | None, capabilities: list[str]) -> dict[str, Any]:
    """Builds one graph by the settings beside it; writes plan and record; returns the record.

    Raises:
        BuildError: the graph or its settings are missing or damaged, or it cannot be built.
    """
    side = onnx_path.with_suffix(".build.json")
    try:
        record: dict[str, Any] = read_json(side)
        settings, graph = dict(record["settings"]), dict(record["graph"])
        products = {**settings.get("products", {})}.values()
        if not all(isinstance(number, int) for number in products):
            raise ValueError("a number of products is none")
        if settings["precision"] not in ALLOWED or onnx_path.name not in graph:
            raise ValueError(f"it is of no graph {onnx_path.name} in {', '.join(ALLOWED)}")
    except _DAMAGED as error:
        raise BuildError(
            f"{side} is missing or damaged ({error!r}); it says how to build the graph"
        ) from error
    for name, digest in graph.items():
        path = onnx_path.parent / name
        if not path.is_file() or sha256(path) != digest:
            raise BuildError(f"{path} is missing or has changed since it was exported: export again")
    plan_path = onnx_path.with_suffix(".plan")
    try:
        name, trt = load_tensorrt(flavour)
    except BuildError:
        if flavour or capabilities:
            raise
        partial = plan_path.with_suffix(".partial")
        try:
            engine = build_with_trtexec(onnx_path, partial, settings)
            partial.replace(plan_path)
        finally:
            partial.unlink(missing_ok=True)
    else:
        plan, engine = build_plan(name, trt, onnx_path, settings, capabilities)
        write(plan_path, plan)
    engine.update(plan=plan_path.name, bytes=plan_path.stat().st_size, sha256=sha256(plan_path))
    record["engine"] = engine
    write(side, (json.dumps(record, indent=2) + "\n").encode())
    return record


def read_json(path: Path) -> Any:
    """Reads JSON that the package takes, too, once it was written again: in UTF-8, at most 64 deep, numbers of 64 bits.

    Raises:
        ValueError: it is another.
        OSError: it cannot be read.
    """

    def held(digits: str) -> float:
        number = float(digits)
        if not abs(number) < 2**64:  # NaN is not, either
            raise ValueError(f"{digits[:30]} is no number that can be held")
        return int(digits) if digits.lstrip("-").isdecimal() else number

    def depth(part: Any) -> int:
        parts = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        return 1 + max(map(depth, parts), default=-1)

    if not path.is_file():  # of a pipe there is no end
        raise ValueError("it is no file")
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    found = json.loads(text, parse_int=held, parse_float=held, parse_constant=held)
    if re.search(r"[\ud800-\udfff]", json.dumps(found, ensure_ascii=False)):
        raise ValueError("it is no UTF-8")
    if depth(found) > 64:
        raise ValueError("it is nested more than 64 deep")
    return found


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The folder's `bundle.json`, None where there is none.

    Raises:
        BuildError: it is there and no manifest, or it is signed, and engines would change it.
    """
    manifest = folder / "bundle.json"
    if not manifest.is_file():
        return None
    if (folder / "bundle.sig").exists():
        raise BuildError(
            f"{folder} is signed, and an engine changes what was signed: check it with `ptsr-edge info`, remove "
            "bundle.sig, build, and have it signed again"
        )
    try:
        bundle: dict[str, Any] = read_json(manifest)
        _ = [
            (entry["path"], {**variant["built_with"]})
            for variant in bundle["variants"]
            for entry in variant["files"]
        ]
    except _DAMAGED as error:
        raise BuildError(f"{manifest} is damaged ({error!r}): export again") from error
    return bundle


def adopt(folder: Path, onnx_path: Path, record: dict[str, Any]) -> None:
    """Enters a plan that was built here into the folder's `bundle.json`, where there is one."""
    bundle = read_manifest(folder)
    if bundle is None:
        return
    names = [onnx_path.with_suffix(".plan").name, onnx_path.with_suffix(".build.json").name]
    for variant in bundle["variants"]:
        if onnx_path.name not in [entry["path"] for entry in variant["files"]]:
            continue
        variant["files"] = [entry for entry in variant["files"] if entry["path"] not in names]
        for name in names:
            path = folder / name
            variant["files"].append({"path": name, "bytes": path.stat().st_size, "sha256": sha256(path)})
        variant["artifact"] = names[0]
        variant["built_with"].update(built_with(record))
        variant["runs_on"] = runs_on(record)
    write(folder / "bundle.json", (json.dumps(bundle, indent=2, ensure_ascii=False) + "\n").encode())


def built_with(record: dict[str, Any]) -> dict[str, Any]:
    """A manifest's `built_with` for a record."""
    engine = record["engine"] or {}
    shown = ("flavour", "version", "build_s", "build_cpu_s", "products", "tensor_types", "read_back_from")
    return {**record["settings"], **{key: engine[key] for key in shown if key in engine}}


def runs_on(record: dict[str, Any]) -> dict[str, Any]:
    """A manifest's `runs_on` for a record."""
    engine = record["engine"]
    if engine is None:
        return {"runtime": "TensorRT 10 or later", "device": "none yet: run build_on_device.py on the device"}
    capabilities = engine["capabilities"] or ([engine["gpu"]["capability"]] if engine["gpu"] else [])
    device = f"NVIDIA GPU of compute capability {', '.join(capabilities) or 'unknown'}"
    return {
        "runtime": engine["flavour"], "version": engine["version"], "device": device,
        "compute_capabilities": capabilities,
    }  # fmt: skip


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write(path: Path, content: bytes) -> None:
    """Writes a file through a temporary one beside it and a rename.

    Raises:
        BuildError: it cannot be written; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        raise BuildError(f"cannot write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Build TensorRT engines from a bundle's typed ONNX graphs.")
    parser.add_argument(
        "graphs", nargs="*", type=Path, help="ONNX files, or folders with them; default: this file's folder"
    )
    parser.add_argument("--flavour", choices=list(MODULES), help="default: the first that is installed")
    parser.add_argument(
        "--compute-capability", action="append", default=[], metavar="SM86", dest="capabilities",
        help="tensorrt-rtx only, may be repeated; default: the GPU in this machine",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the records instead of the paths")
    chosen = parser.parse_args(arguments)
    graphs = []
    for place in chosen.graphs or [Path(__file__).resolve().parent]:
        found = [place]
        if place.is_dir():
            sides = sorted(place.glob("*.build.json"))
            found = [side.with_name(side.name.replace(".build.json", ".onnx")) for side in sides]
        if not found:
            parser.error(f"no graph with its .build.json in {place}")
        graphs += found
    records = []
    for graph in graphs:
        if not graph.is_file():
            print(f"build_on_device: there is no graph at {graph}", file=sys.stderr)
            return 2
        try:
            read_manifest(graph.resolve().parent)  # before minutes of building, not after
            record = build(graph.resolve(), chosen.flavour, chosen.capabilities)
            adopt(graph.resolve().parent, graph, record)
        except (BuildError, OSError) as error:
            print(f"build_on_device: {error}", file=sys.stderr)
            return 1
        records.append(record)
        if not chosen.json:
            print(graph.with_suffix(".plan"))
    if chosen.json:
        print(json.dumps(records))
    return 0


if __name__ == "__main__":
    sys.exit(main())
