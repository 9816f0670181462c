"""Target `cpu`: ONNX Runtime on any CPU."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import onnx

from ptsr_edge.backend_ort import OrtRunner
from ptsr_edge.onnx_graph import OPSET, write_sharing_weights
from ptsr_edge.target import Artifact, BuildRequest, variant_id


class CpuTarget:
    """ONNX files that ONNX Runtime loads; the budgets of a precision share one weights file."""

    name = "cpu"
    precisions: tuple[str, ...] = ("fp32",)

    def build(self, request: BuildRequest) -> dict[int, Artifact]:
        """See `Target.build`."""
        graphs = {tokens: onnx.load(path) for tokens, path in request.graphs.items()}
        return self._write(request, graphs)

    def runner(self, artifact: Artifact, threads: int | None) -> OrtRunner:
        """See `Target.runner`; this target runs wherever it is built."""
        return OrtRunner(artifact.path, threads)

    def _write(self, request: BuildRequest, graphs: dict[int, onnx.ModelProto]) -> dict[int, Artifact]:
        paths = {
            tokens: request.folder / f"{variant_id(request.name, self.name, request.precision, tokens)}.onnx"
            for tokens in graphs
        }
        weights = request.folder / f"weights-{self.name}-{request.precision}.bin"
        write_sharing_weights({paths[tokens]: graph for tokens, graph in graphs.items()}, weights)
        built_with = {"opset": OPSET} | {package: version(package) for package in ("onnx", "onnxruntime")}
        return {
            tokens: Artifact(path, [path, weights], dict(built_with), _runs_on(path))
            for tokens, path in paths.items()
        }


def _runs_on(_path: Path) -> dict[str, str]:
    return {"runtime": "onnxruntime", "device": "any CPU"}
