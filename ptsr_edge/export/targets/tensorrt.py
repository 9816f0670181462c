"""Target `trt`: strongly typed ONNX graphs, and TensorRT engines built from them.

With tensorrt-rtx the engines are built without a GPU, for the compute capabilities asked for. Where nothing
can build, the checked graphs and `build_on_device.py` are what comes out: the device builds for itself.
Building happens in a process of its own, by that same script: TensorRT can crash on a graph it does not like.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Collection, Iterable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from ptsr_edge.core.console import progress
from ptsr_edge.core.errors import InputError, JobError
from ptsr_edge.core.files import sha256_of, write_json, write_whole
from ptsr_edge.export.config import Method, TrtOptions
from ptsr_edge.export.onnx_graph import OPSET, PRODUCTS, layer_of, write_sharing_weights
from ptsr_edge.export.targets.base import (
    Artifact,
    BuildRequest,
    Graph,
    TargetOptions,
    read_options,
    variant_id,
)
from ptsr_edge.export.targets.quantization import (
    first_products,
    infer_shapes,
    products_kept_float,
    quantize_static_qdq,
)
from ptsr_edge.export.targets.typed_graph import (
    TypedGraphRunner,
    inline_constants,
    require_types,
    to_strong_fp16,
)
from ptsr_edge.runtimes import build_on_device
from ptsr_edge.runtimes.tensorrt import (
    TensorRtVersion,
    TrtRunner,
    choose_capabilities,
    choose_version,
)

SCRIPT = "build_on_device.py"


class TrtTarget:
    """Plans for TensorRT and TensorRT-RTX; the budgets of a precision share one weights file."""

    name = "trt"
    precisions: tuple[str, ...] = ("fp32", "fp16", "int8")
    options: type[TargetOptions] = TrtOptions

    def build(self, request: BuildRequest) -> dict[int, Artifact]:
        """See `Target.build`; the artifact is the plan, or with `onnx_only` the typed graph.

        Where nothing here can build engines, the artifacts are the typed graphs, complete with settings and script,
        and say so by `not_built`.

        Raises:
            InputError: an option is not known, or not to be had.
            JobError: TensorRT refuses a graph, crashes, or built another precision than was asked for.
        """
        options = read_options(self, TrtOptions, request)
        version, hindrance = _choose(options)
        asked = options.compute_capabilities
        capabilities = choose_capabilities(version.flavour, request.precision, asked) if version else []
        graphs = write_graphs(request, options)
        if version is None:
            reason = (
                ""
                if options.onnx_only
                else (
                    f"no engine was built, only typed ONNX graphs and {SCRIPT}: {hindrance}; "
                    "run the script on the device, or ask for --onnx-only"
                )
            )
            return {tokens: replace(_artifact(path), not_built=reason) for tokens, path in graphs.items()}
        built = {}
        for tokens, path in progress(list(graphs.items()), f"building {request.precision} engines"):
            run_builder(path, version, capabilities)
            built[tokens] = _artifact(path)
        return built

    def runner(self, artifact: Artifact, threads: int | None) -> TrtRunner | None:
        """See `Target.runner`: None without a plan, its TensorRT, or a GPU that it was built for."""
        if artifact.path.suffix != ".plan" or TrtRunner.why_not_here(artifact.path, artifact.runs_on):
            return None
        return TrtRunner(artifact.path, threads)

    def graph_runner(self, artifact: Artifact) -> TypedGraphRunner:
        """The typed graph that an artifact was built from, computed on the CPU with its types' rounding.

        It proves the graph where the engine cannot run; it says nothing about the engine.
        """
        return TypedGraphRunner(artifact.path.with_suffix(".onnx"))


def _choose(options: TrtOptions) -> tuple[TensorRtVersion | None, str]:
    """Returns the TensorRT that builds, or None and why there is none."""
    if options.onnx_only:
        return None, ""
    try:
        return choose_version(options.flavour), ""
    except JobError as error:
        return None, str(error)


def write_graphs(request: BuildRequest, options: TrtOptions) -> dict[int, Path]:
    """Writes typed graphs by token count, their shared weights, what is to be built, and the script.

    Raises:
        InputError: int8 without calibration samples, or a layer to keep that none of the graphs has.
        JobError: a graph cannot be typed, or a file cannot be written.
    """
    typed: dict[Path, ModelProto] = {}
    paths: dict[int, Path] = {}
    settings: dict[Path, dict[str, Any]] = {}
    _check_layers(options.keep_float, request.graphs.values())
    for tokens, source in progress(list(request.graphs.items()), f"typing {request.precision} graphs"):
        name = variant_id(request.name, TrtTarget.name, request.precision, tokens)
        path = request.folder / f"{name}.onnx"
        typed[path], products = typed_graph(
            source.model, request.precision, request.calibration, options.keep_float, options.method
        )
        paths[tokens] = path
        settings[path] = {"precision": request.precision, "tf32": options.tf32, "products": products}
        if request.precision == "int8":
            settings[path] |= {
                "quantization": f"symmetric S8 x S8, per channel, {options.method}",
                "calibration_samples": len(request.calibration),
                "keep_float": sorted(options.keep_float),
            }
    weights = request.folder / f"weights-trt-{request.precision}.bin"
    write_sharing_weights(typed, weights)
    for path in typed:
        graph = {part.name: sha256_of(part) for part in (path, weights)}
        tools = {"opset": OPSET} | {package: version(package) for package in ("onnx", "onnxruntime")}
        write_json(
            path.with_suffix(".build.json"),
            {"schema": 1, "graph": graph, "tools": tools, "settings": settings[path], "engine": None},
        )
    write_whole(request.folder / SCRIPT, Path(build_on_device.__file__).read_text(encoding="utf-8"))
    return paths


def _check_layers(layers: Iterable[str], graphs: Iterable[Graph]) -> None:
    """Refuses a layer that none of the graphs has a product of."""
    known: set[str] = set()
    for graph in graphs:
        nodes = graph.model.graph.node
        known.update(layer_of(node.name) for node in nodes if node.op_type in PRODUCTS)
    for layer in layers:
        if layer not in known:
            raise InputError(f"keep_float names {layer!r}, which is a layer of none of the graphs")


def typed_graph(
    source: ModelProto,
    precision: str,
    calibration: NDArray[np.float32],
    keep_float: Collection[str] = (),
    method: Method = "minmax",
) -> tuple[ModelProto, dict[str, int]]:
    """Returns a strongly typed graph, and how many of its products compute in which type.

    Args:
        source: fp32 graph, opset 20.
        precision: fp32, fp16 or int8; with int8 what is not quantized is fp16.
        calibration: (n, C, S, S), read for int8 only.
        keep_float: with int8, layers that stay fp16 beside attention, read-out and tokenizer.

    Raises:
        InputError: no calibration sample.
        JobError: the graph cannot be quantized or typed.
    """
    model = infer_shapes(source)
    if precision == "fp32":
        model = inline_constants(model)
        return model, dict(require_types(model, precision))
    if precision == "fp16":
        model = to_strong_fp16(model)
        return model, dict(require_types(model, precision))
    named = [node.name for node in model.graph.node if layer_of(node.name) in keep_float]
    kept = list(dict.fromkeys([*products_kept_float(model), *first_products(model), *named]))
    typed = to_strong_fp16(
        quantize_static_qdq(source, calibration, symmetric_activations=True, exclude=kept, method=method)
    )
    typed.metadata_props.extend(entry for entry in model.metadata_props if not typed.metadata_props)
    return typed, dict(require_types(typed, precision, kept))


def run_builder(path: Path, trt: TensorRtVersion, capabilities: list[str]) -> None:
    """Builds one graph by the script beside it, in a process of its own.

    Raises:
        JobError: TensorRT refuses the graph or crashes on it, or built another precision.
    """
    call = [sys.executable, str(path.parent / SCRIPT), str(path), "--flavour", trt.flavour, "--json"]
    for name in capabilities:
        call += ["--compute-capability", name]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    if done.returncode < 0:
        suspects = sorted({node.op_type for node in onnx.load(path, load_external_data=False).graph.node})
        hints = [f"{op}: {build_on_device.HINTS[op]}" for op in suspects if op in _CRASHING]
        raise JobError(
            f"{trt.flavour} {trt.version} crashed ({signal.Signals(-done.returncode).name}) on "
            f"{path.name}; {'; '.join(hints) or 'no operator in it is known to do that'}"
        )
    lines = [line for line in done.stderr.splitlines() if line.startswith("build_on_device: ")]
    reason = lines[-1].removeprefix("build_on_device: ") if lines else done.stderr.strip()[-300:]
    raise JobError(reason or f"{trt.flavour} failed on {path.name} with exit code {done.returncode}")


_CRASHING = ("Attention",)
"""Operators that tensorrt-rtx 1.7 parses and crashes on while building."""


def _artifact(path: Path) -> Artifact:
    """Describes what was made from a typed graph, by the record beside it."""
    side = path.with_suffix(".build.json")
    record = json.loads(side.read_text(encoding="utf-8"))
    files = [
        path,
        side,
        path.parent / SCRIPT,
        *(path.parent / name for name in record["graph"] if name != path.name),
    ]
    plan = path.with_suffix(".plan")
    if record["engine"] is not None:
        files.insert(0, plan)
    return Artifact(
        path=files[0],
        files=files,
        built_with=record["tools"] | build_on_device.built_with(record),
        runs_on=build_on_device.runs_on(record),
    )
