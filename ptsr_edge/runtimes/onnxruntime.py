"""ONNX Runtime on the CPU: one way to open a session, and the runner of target `cpu`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.core.errors import JobError, MissingExtraError, require
from ptsr_edge.runtimes.base import Parameter, Value


def load_ort(purpose: str = "running a bundle of target cpu") -> ModuleType:
    """Imports `onnxruntime`.

    Raises:
        MissingExtraError: it is not installed; the message says for which purpose it is needed.
    """
    return require("onnxruntime", "ort", purpose)


SLOWER_FUSIONS = {"SkipLayerNormFusion"}
"""Of ONNX Runtime's rewrites those that cost time on a CPU: an addition fused with the LayerNorm behind it is computed value
by value, and takes 53 microseconds for 50 x 192 where the two apart take 15."""


PARAMETERS = (
    Parameter("graph_optimization_level", ("ORT_ENABLE_EXTENDED", "ORT_ENABLE_BASIC")),
    Parameter("disabled_optimizers", ("",)),
    Parameter("session.disable_prepacking", ("1",)),
    Parameter("enable_cpu_mem_arena", (False,)),
    Parameter("enable_mem_pattern", (False,)),
    Parameter("session.force_spinning_stop", ("0",), needs="several threads"),
    Parameter("session.dynamic_block_base", ("4",), needs="several threads"),
)
"""What may cost or save time: attributes and configuration entries of `SessionOptions`, and the optimizers that are left out
(by default `SLOWER_FUSIONS`). Denormals as zero is none of them: the first session decides it for the whole process, and for
the arithmetic of its other libraries too."""


def open_session(
    model: Path | bytes,
    threads: int | None = None,
    *,
    share_weights: bool = False,
    optimize: bool = True,
    profile: Path | None = None,
    settings: Mapping[str, Value] | None = None,
) -> Any:
    """Opens an `InferenceSession` on the CPU.

    Args:
        model: an ONNX file, its weights beside it, or the bytes of a graph that holds its own.
        threads: of one operator; None leaves it to ONNX Runtime.
        share_weights: compute on the mapped weights file, which all graphs that name it share, and not on a
            copy of its own that is laid out for speed.
        optimize: fuse operators.
        profile: time each operator, into a file that begins with this path.
        settings: by the names of `PARAMETERS`; they come before what is said here.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        JobError: onnxruntime refuses the graph.
    """
    ort = load_ort()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # Idle threads that spin would slow whatever else runs: the camera, or the runtime timed next.
    entries = {"session.force_spinning_stop": "1"}
    if threads is not None:
        options.intra_op_num_threads = threads
    if share_weights:
        entries["session.disable_prepacking"] = "1"
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    disabled = set(SLOWER_FUSIONS)
    for parameter, value in (settings or {}).items():
        if parameter == "disabled_optimizers":
            disabled = set(filter(None, str(value).split(",")))
        elif parameter == "graph_optimization_level":
            options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, str(value))
        elif parameter.startswith("session."):
            entries[parameter] = str(value)
        else:
            setattr(options, parameter, value)
    for entry, text in entries.items():
        options.add_session_config_entry(entry, text)
    name, source = (model.name, str(model)) if isinstance(model, Path) else ("a graph in memory", model)
    try:
        return ort.InferenceSession(
            source, options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
        )
    except Exception as error:
        raise JobError(f"ONNX Runtime {ort.__version__} cannot load {name}: {error}") from error


class OrtRunner:
    """One loaded graph: `run` takes (1, C, S, S) float32, gives logits (k,) and kept patches or None."""

    parameters: ClassVar = PARAMETERS

    def __init__(
        self,
        artifact: Path,
        threads: int | None = None,
        *,
        share_weights: bool = False,
        settings: Mapping[str, Value] | None = None,
    ) -> None:
        """Loads an ONNX file; see `RunnerClass` and `open_session`."""
        self._session = open_session(artifact, threads, share_weights=share_weights, settings=settings)
        self._name = artifact.name
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, flow: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
        """flow (1, C, S, S) -> logits (k,) and kept (K,), None where the graph keeps all.

        Raises:
            JobError: ONNX Runtime refuses the input, or cannot compute the graph.
        """
        try:
            outputs = dict(zip(self._outputs, self._session.run(None, {"flow": flow}), strict=True))
        except Exception as error:
            raise JobError(f"ONNX Runtime cannot run {self._name}: {error}") from error
        kept = outputs.get("kept")
        return outputs["logits"][0], None if kept is None else kept[0]

    @classmethod
    def open_sharing(cls, artifacts: Sequence[Path], threads: int | None) -> list[OrtRunner]:
        """See `RunnerClass`: all compute on the mapped weights file, for some more time an inference."""
        return [cls(artifact, threads, share_weights=True) for artifact in artifacts]

    @staticmethod
    def version() -> str:
        """See `RunnerClass`."""
        return f"onnxruntime {load_ort().__version__}"

    @staticmethod
    def why_not_here(_artifact: Path, _runs_on: Mapping[str, Any]) -> str:
        """See `RunnerClass`: onnxruntime must be installed, any CPU will do."""
        try:
            load_ort()
        except MissingExtraError as error:
            return str(error)
        return ""
