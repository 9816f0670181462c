"""TensorRT and TensorRT-RTX on an NVIDIA GPU, behind the interface that every runtime has here.

Needs numpy, the TensorRT that built the plan, and `cuda-bindings` (of cuda-python). Everything is allocated
once: pinned host buffers, device buffers and a stream of its own; copies and network are captured into one
CUDA graph, so that an inference is one launch.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.core.errors import InputError, JobError, MissingExtraError
from ptsr_edge.runtimes.trt_engine import MODULES, describe_gpus, shared_log
from ptsr_edge.runtimes.trt_flavour import INSTALL
from ptsr_edge.runtimes.trt_plan import Plan, read_plan, rebuild_line, require_capability, require_version

TYPES: dict[str, np.dtype[Any]] = {"FLOAT": np.dtype(np.float32), "INT64": np.dtype(np.int64)}


def check_plan(path: Path) -> tuple[Plan, ModuleType]:
    """A plan that can be loaded here, and the TensorRT that loads it.

    Raises:
        JobError: it is damaged, of another TensorRT version, for another GPU, or there is no GPU.
        MissingExtraError: its TensorRT is not installed.
    """
    plan = read_plan(path)
    try:
        trt = importlib.import_module(MODULES[plan.flavour])
    except (ImportError, OSError) as error:
        raise MissingExtraError(
            f"{path.name} needs {plan.flavour} {plan.version}, which is not installed ({error}): "
            f"{INSTALL[plan.flavour]}"
        ) from error
    require_version(plan, trt.__version__)
    gpus = describe_gpus()
    if not gpus:
        wanted = ", ".join(plan.capabilities) or "the kind that it was built on"
        raise JobError(f"{path.name} needs an NVIDIA GPU ({wanted}) and its driver; none was found here")
    require_capability(plan, gpus[0])
    return plan, trt


def why_not_here(path: Path, _runs_on: Mapping[str, Any] | None = None) -> str:
    """Why a plan cannot be loaded here, by the record beside it; empty where it can."""
    try:
        check_plan(path)
        _cuda_runtime()
    except JobError as error:
        return str(error)
    return ""


class TrtRunner:
    """One loaded engine: `run` takes (1, C, S, S) float32, gives logits (k,) and kept patches or None.

    Not thread-safe; several runners in several threads are fine, each has its own stream. Closing it (or
    leaving a `with` block) gives back its memory.
    """

    def __init__(
        self,
        artifact: Path,
        threads: int | None = None,
        *,
        share_weights: bool = False,
        cuda_graph: bool = True,
    ) -> None:
        """Loads a plan. `threads` and `share_weights` mean nothing here and are accepted as by every runner:
        a plan holds its own weights.

        Raises:
            MissingExtraError: TensorRT or cuda-bindings is not installed.
            JobError: the plan is damaged, of another version, for another GPU, or TensorRT refuses it.
        """
        del threads, share_weights
        plan, self._trt = check_plan(artifact)
        self._cuda = Cuda()
        log = shared_log(self._trt)
        self._runtime = self._trt.Runtime(log)
        self._engine = self._runtime.deserialize_cuda_engine(artifact.read_bytes())
        if self._engine is None:
            reason = log.errors[-1] if log.errors else "no reason given"
            raise JobError(
                f"{plan.flavour} {plan.version} cannot load {artifact.name}: {reason}; {rebuild_line(plan)}"
            )
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise JobError(f"no room on the GPU to run {artifact.name}")
        self._stream = self._cuda.call("cudaStreamCreate")
        self._buffers = self._allocate()
        self._graph: Any = None
        self._enqueue()  # the first run sets up what a capture may not
        self._cuda.call("cudaStreamSynchronize", self._stream)
        if cuda_graph:
            self._graph = self._capture()

    @property
    def uses_cuda_graph(self) -> bool:
        """Whether an inference is one launch of a captured graph."""
        return self._graph is not None

    def run(self, flow: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
        """flow (1, C, S, S) -> logits (k,) and kept (K,), None where the graph keeps all.

        Raises:
            InputError: another shape than the engine's.
            JobError: the GPU reports an error.
        """
        source = self._buffers["flow"].host
        if flow.shape != source.shape:
            raise InputError(f"the engine takes {source.shape}, got {flow.shape}")
        np.copyto(source, flow)
        if self._graph is not None:
            self._cuda.call("cudaGraphLaunch", self._graph, self._stream)
        else:
            self._enqueue()
        self._cuda.call("cudaStreamSynchronize", self._stream)
        kept = self._buffers.get("kept")
        return self._buffers["logits"].host[0].copy(), None if kept is None else kept.host[0].copy()

    def close(self) -> None:
        """Gives back the runner's memory, stream and graph; it cannot run any more."""
        if self._graph is not None:
            self._cuda.call("cudaGraphExecDestroy", self._graph)
            self._graph = None
        for buffer in self._buffers.values():
            buffer.free(self._cuda)
        self._buffers = {}
        if self._stream is not None:
            self._cuda.call("cudaStreamDestroy", self._stream)
            self._stream = None
        self._context = self._engine = self._runtime = None

    def __enter__(self) -> TrtRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _allocate(self) -> dict[str, Buffer]:
        buffers = {}
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            kind = self._engine.get_tensor_dtype(name).name
            if kind not in TYPES:
                raise JobError(f"the engine's {name!r} is {kind}; accepted: {', '.join(TYPES)}")
            reads = self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT
            shape = tuple(self._engine.get_tensor_shape(name))
            buffers[name] = Buffer(self._cuda, shape, TYPES[kind], reads)
            self._context.set_tensor_address(name, buffers[name].device)
        return buffers

    def _enqueue(self) -> None:
        """Copies in, network, copies out, all on the stream."""
        kinds = self._cuda.runtime.cudaMemcpyKind
        for buffer in self._buffers.values():
            if buffer.is_input:
                self._copy(buffer.device, buffer.address, buffer.host.nbytes, kinds.cudaMemcpyHostToDevice)
        if not self._context.execute_async_v3(int(self._stream)):
            log = shared_log(self._trt)
            raise JobError(
                f"TensorRT cannot run the engine: {log.errors[-1] if log.errors else 'no reason given'}"
            )
        for buffer in self._buffers.values():
            if not buffer.is_input:
                self._copy(buffer.address, buffer.device, buffer.host.nbytes, kinds.cudaMemcpyDeviceToHost)

    def _copy(self, to: int, source: int, size: int, kind: Any) -> None:
        self._cuda.call("cudaMemcpyAsync", to, source, size, kind, self._stream)

    def _capture(self) -> Any:
        """The whole inference as an executable CUDA graph; None where this engine cannot be captured."""
        # Thread-local: other sessions may allocate in their threads meanwhile.
        mode = self._cuda.runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._cuda.call("cudaStreamBeginCapture", self._stream, mode)
        try:
            self._enqueue()
        except JobError:
            self._cuda.runtime.cudaStreamEndCapture(self._stream)
            return None
        error, graph = self._cuda.runtime.cudaStreamEndCapture(self._stream)
        if int(error):
            return None
        executable = self._cuda.call("cudaGraphInstantiate", graph, 0)
        self._cuda.call("cudaGraphDestroy", graph)
        return executable


class Buffer:
    """A tensor in pinned host memory (`host`, at `address`) and on the device (at `device`)."""

    def __init__(self, cuda: Cuda, shape: tuple[int, ...], dtype: np.dtype[Any], is_input: bool) -> None:
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self.is_input = is_input
        self.address = int(cuda.call("cudaMallocHost", size))
        self.device = int(cuda.call("cudaMalloc", size))
        memory = (ctypes.c_byte * size).from_address(self.address)
        self.host: NDArray[Any] = np.frombuffer(memoryview(memory), dtype=dtype).reshape(shape)
        self.host[...] = 0

    def free(self, cuda: Cuda) -> None:
        """Gives both sides back; `host` is not to be touched after."""
        cuda.call("cudaFree", self.device)
        cuda.call("cudaFreeHost", self.address)


class Cuda:
    """CUDA's runtime: a call gives its result or raises what the GPU says."""

    def __init__(self) -> None:
        """Finds cuda-bindings.

        Raises:
            MissingExtraError: it is not installed.
        """
        self.runtime = _cuda_runtime()

    def call(self, name: str, *arguments: Any) -> Any:
        """Calls a function of the runtime.

        Raises:
            JobError: it fails; the message is CUDA's.
        """
        error, *results = getattr(self.runtime, name)(*arguments)
        if int(error):
            _, text = self.runtime.cudaGetErrorString(error)
            raise JobError(f"{name} failed: {text.decode() if isinstance(text, bytes) else text}")
        return results[0] if results else None


def _cuda_runtime() -> ModuleType:
    for module in ("cuda.bindings.runtime", "cuda.cudart"):  # the second is its name before 12.8
        try:
            return importlib.import_module(module)
        except ImportError:
            continue
    raise MissingExtraError("running a TensorRT plan needs cuda-bindings: pip install 'ptsr-edge[trt]'")
