"""Target `cpu`: ONNX Runtime on any CPU, in fp32 or int8."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from ptsr_edge.core.files import scratch_folder
from ptsr_edge.export.config import CpuOptions
from ptsr_edge.export.onnx_graph import OPSET, layer_of, write_sharing_weights
from ptsr_edge.export.targets.base import (
    Artifact,
    BuildRequest,
    TargetOptions,
    read_options,
    variant_id,
)
from ptsr_edge.export.targets.quantization import (
    products_kept_float,
    quantize_dynamic_int8,
    quantize_static_qdq,
)
from ptsr_edge.runtimes.onnxruntime import OrtRunner, load_ort

SCHEMES = ("static", "dynamic")
ROUNDS = 15
RUNS = 3
JUDGED = 32

TIE = 0.25
"""Dynamic must be cheaper than static by this share. On one machine the product of time and error moves by less from
run to run; so what is chosen there is chosen again."""


class CpuTarget:
    """ONNX files that ONNX Runtime loads; the budgets of a precision share one weights file."""

    name = "cpu"
    precisions: tuple[str, ...] = ("fp32", "int8")
    options: type[TargetOptions] = CpuOptions

    def check_tools(self, precisions: Sequence[str]) -> None:
        """See `ChecksTools.check_tools`."""
        del precisions
        load_ort("exporting for target cpu")

    def build(self, request: BuildRequest) -> dict[int, Artifact]:
        """See `Target.build`.

        Raises:
            InputError: an option or precision is not known, or there are no calibration samples for static int8.
            JobError: ONNX Runtime cannot quantize it.
        """
        options = read_options(self, CpuOptions, request)
        built_with: dict[str, Any] = {"opset": OPSET}
        built_with |= {package: version(package) for package in ("onnx", "onnxruntime")}
        if request.precision == "fp32":
            graphs = {tokens: graph.model for tokens, graph in request.graphs.items()}
            return self._write(request, graphs, built_with)
        scheme: str = options.int8_scheme
        if scheme == "auto":
            with scratch_folder() as scratch:
                choice = measure_schemes(request, options, scratch)
            scheme, built_with["int8_choice"] = choice["chosen"], choice
        graphs = {
            tokens: _quantized(request, options, graph.model, scheme)
            for tokens, graph in request.graphs.items()
        }
        built_with |= {"int8_scheme": scheme, "keep_float": list(options.keep_float)}
        return self._write(request, graphs, built_with)

    def runner(self, artifact: Artifact, threads: int | None) -> OrtRunner:
        """See `Target.runner`; this target runs wherever it is built."""
        return OrtRunner(artifact.path, threads)

    def _write(
        self, request: BuildRequest, graphs: dict[int, ModelProto], built_with: dict[str, Any]
    ) -> dict[int, Artifact]:
        paths = {
            tokens: request.folder / f"{variant_id(request.name, self.name, request.precision, tokens)}.onnx"
            for tokens in graphs
        }
        weights = request.folder / f"weights-{self.name}-{request.precision}.bin"
        write_sharing_weights({paths[tokens]: graph for tokens, graph in graphs.items()}, weights)
        runs_on = {"runtime": "onnxruntime", "device": "any CPU"}
        return {
            tokens: Artifact(path, [path, weights], dict(built_with), dict(runs_on))
            for tokens, path in paths.items()
        }


def _quantized(request: BuildRequest, options: CpuOptions, source: ModelProto, scheme: str) -> ModelProto:
    kept = [node.name for node in source.graph.node if layer_of(node.name) in options.keep_float]
    exclude = [*products_kept_float(source), *kept]
    if scheme == "dynamic":
        return quantize_dynamic_int8(source, exclude=exclude)
    return quantize_static_qdq(source, request.calibration, symmetric_activations=False, exclude=exclude)


def measure_schemes(request: BuildRequest, options: CpuOptions, scratch: Path) -> dict[str, Any]:
    """Builds both int8 schemes at the smallest budget, and measures their time and error side by side.

    Returns:
        `chosen`, `why`, and per scheme `median_ms` (one thread, interleaved with the other) and `error`
        (mean absolute difference of the logits from fp32 over some calibration samples). Chosen is "dynamic"
        where its product of time and error is smaller by more than `TIE` (twice the error must buy twice the
        speed), else "static".
    """
    source = request.graphs[min(request.graphs)]
    exact = OrtRunner(source.path, threads=1)
    judged = request.calibration[:JUDGED]
    expected = _logits(exact, judged)
    files = {scheme: scratch / f"{scheme}.onnx" for scheme in SCHEMES}
    for scheme, path in files.items():
        onnx.save(_quantized(request, options, source.model, scheme), path)
    runners = {scheme: OrtRunner(path, threads=1) for scheme, path in files.items()}
    times: dict[str, list[float]] = {scheme: [] for scheme in SCHEMES}
    errors = {
        scheme: float(np.abs(_logits(runner, judged) - expected).mean()) for scheme, runner in runners.items()
    }
    for _ in range(ROUNDS):
        for scheme, runner in runners.items():
            started = time.perf_counter()
            for one in request.calibration[:RUNS]:
                runner.run(one[None])
            times[scheme].append((time.perf_counter() - started) / RUNS * 1e3)
    found = {
        scheme: {"median_ms": round(float(np.median(times[scheme])), 4), "error": round(errors[scheme], 6)}
        for scheme in SCHEMES
    }
    return {**choose_scheme(found), **found}


def choose_scheme(found: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """Returns `chosen` and `why` of what was measured; see `measure_schemes`."""
    cost = {scheme: found[scheme]["median_ms"] * found[scheme]["error"] for scheme in SCHEMES}
    if cost["dynamic"] < (1 - TIE) * cost["static"]:
        return {"chosen": "dynamic", "why": "smaller product of median_ms and error"}
    if cost["static"] < (1 - TIE) * cost["dynamic"]:
        return {"chosen": "static", "why": "smaller product of median_ms and error"}
    return {"chosen": "static", "why": f"products of median_ms and error within {TIE:.0%}: the default"}


def _logits(runner: OrtRunner, samples: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.stack([runner.run(one[None])[0] for one in samples])
