"""ONNX Runtime on the CPU, behind the interface that every runtime has here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.core.errors import JobError, MissingExtraError, require


def why_not_here(_artifact: Path, _runs_on: Mapping[str, Any]) -> str:
    """Why an ONNX file cannot be run here; empty where it can."""
    try:
        _load_ort()
    except MissingExtraError as error:
        return str(error)
    return ""


def _load_ort() -> ModuleType:
    return require("onnxruntime", "ort", "running a bundle of target cpu")


class OrtRunner:
    """One loaded graph: `run` takes (1, C, S, S) float32, gives logits (k,) and kept patches or None."""

    def __init__(self, artifact: Path, threads: int | None = None, *, share_weights: bool = False) -> None:
        """Loads an ONNX file; `threads` of one operator, by default ONNX Runtime's choice.

        With `share_weights` it computes on the mapped weights file, which all graphs that name it share, and
        not on a copy of its own that is laid out for speed.

        Raises:
            MissingExtraError: onnxruntime is not installed.
            JobError: onnxruntime refuses the file.
        """
        ort = _load_ort()
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        # Idle threads that spin would slow whatever else runs: the camera, or the runtime timed next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if share_weights:
            options.add_session_config_entry("session.disable_prepacking", "1")
        try:
            self._session: Any = ort.InferenceSession(
                str(artifact), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise JobError(f"ONNX Runtime {ort.__version__} cannot load {artifact.name}: {error}") from error
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, flow: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
        """flow (1, C, S, S) -> logits (k,) and kept (K,), None where the graph keeps all."""
        outputs = dict(zip(self._outputs, self._session.run(None, {"flow": flow}), strict=True))
        kept = outputs.get("kept")
        return outputs["logits"][0], None if kept is None else kept[0]
