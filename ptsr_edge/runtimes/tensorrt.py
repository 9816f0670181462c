"""TensorRT and TensorRT-RTX on an NVIDIA GPU: which of them can build and run here, their plans, and the runner.

There are two flavours: `tensorrt` 10.x (as on a Jetson) or 11.x builds for the GPU in the machine and needs it;
`tensorrt-rtx` builds without one, for the compute capabilities that are asked for. A plan is run by the very version
that built it, with numpy and `cuda-bindings` (of cuda-python).
"""

from __future__ import annotations

import ctypes
import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ptsr_edge.core.config import Record, read_record
from ptsr_edge.core.errors import InputError, JobError, MissingExtraError, install_line
from ptsr_edge.runtimes.build_on_device import MODULES, BuildError, cuda_devices, load_tensorrt, shared_log

CAPABILITIES = ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121")
"""What tensorrt-rtx builds for: Turing, A100, RTX 30, RTX 40, RTX 50, GB10."""

NO_FP32_PRODUCTS = ("SM75",)
"""Compute capabilities for which tensorrt-rtx has no fp32 matrix products."""

MAJORS = {"tensorrt": (10, 11), "tensorrt-rtx": (1,)}
"""Major versions that are known to build what is exported here."""


def _remedy(flavour: str) -> str:
    """How a flavour that is missing is installed."""
    if flavour == "tensorrt-rtx":
        return f"it is proprietary, under NVIDIA's Software License Agreement: {install_line('trt-rtx')}"
    return (
        "it comes with JetPack on a Jetson (python3 -m venv --system-site-packages), elsewhere with "
        "NVIDIA's own TensorRT packages"
    )


@dataclass(frozen=True)
class TensorRtVersion:
    """The TensorRT of one flavour that is installed, and whether it can build here.

    Attributes:
        flavour: `tensorrt` or `tensorrt-rtx`.
        version: None where it is not installed.
        hindrance: why it cannot build here; empty when it can.
    """

    flavour: str
    version: str | None
    hindrance: str


def find_version(flavour: str) -> TensorRtVersion:
    """Looks for the TensorRT of a flavour."""
    try:
        version = str(load_tensorrt(flavour)[1].__version__)
    except BuildError as error:
        return TensorRtVersion(flavour, None, f"not installed ({error}): {_remedy(flavour)}")
    hindrance = ""
    if int(version.split(".")[0]) not in MAJORS[flavour]:
        wanted = " or ".join(f"{known}.x" for known in MAJORS[flavour])
        hindrance = f"version {version} is installed, {wanted} is needed"
    elif flavour == "tensorrt" and not cuda_devices():
        hindrance = "it builds on the GPU itself, and no NVIDIA GPU is here"
    return TensorRtVersion(flavour, version, hindrance)


def choose_version(flavour: str | None) -> TensorRtVersion:
    """Returns the TensorRT of a flavour, by default the first that can build here.

    Raises:
        MissingExtraError: none that was asked for is installed.
        JobError: what is installed cannot build here.
    """
    found = [find_version(name) for name in ([flavour] if flavour else MODULES)]
    for version in found:
        if not version.hindrance:
            return version
    reasons = "; ".join(f"{version.flavour}: {version.hindrance}" for version in found)
    kind = JobError if any(version.version for version in found) else MissingExtraError
    raise kind(f"no TensorRT can build here: {reasons}")


def choose_capabilities(flavour: str, precision: str, asked: Sequence[str] | None) -> list[str]:
    """Returns the compute capabilities to build for: those asked for, else all that the precision allows.

    Empty where the flavour builds for the GPU in the machine.

    Args:
        flavour: `tensorrt` or `tensorrt-rtx`.
        precision: fp32, fp16 or int8.
        asked: such as `8.6`, `86`, `sm_86` or `SM86`.

    Raises:
        InputError: an unknown capability, one that the precision is not to be had on, or any for a
            flavour that builds for the GPU in the machine only.
    """
    if flavour == "tensorrt":
        if asked:
            raise InputError(f"{flavour} builds for the GPU in the machine only, got {', '.join(asked)}")
        return []
    allowed = [name for name in CAPABILITIES if precision != "fp32" or name not in NO_FP32_PRODUCTS]
    names = list(dict.fromkeys(read_capability(text) for text in asked)) if asked is not None else allowed
    if not names:
        raise InputError(f"no compute capability given; accepted: {', '.join(allowed)}")
    for name in names:
        if name not in allowed:
            raise InputError(f"tensorrt-rtx has no fp32 matrix products for {name}: fp16 and int8 do build")
    return names


def read_capability(text: str) -> str:
    """Reads a compute capability as TensorRT writes it: `8.6`, `86` or `sm_86` -> `SM86`.

    Raises:
        InputError: not one of `CAPABILITIES`.
    """
    match = re.fullmatch(r"(?:sm_?)?(\d+)\.?(\d)", str(text).strip(), flags=re.IGNORECASE)
    name = f"SM{match[1]}{match[2]}" if match else ""
    if name not in CAPABILITIES:
        known = ", ".join(map(dotted, CAPABILITIES))
        raise InputError(f"unknown compute capability {text!r}; tensorrt-rtx builds for {known}")
    return name


def dotted(capability: str) -> str:
    """Writes a compute capability as NVIDIA's tables do: `SM86` -> `8.6`."""
    return f"{capability[2:-1]}.{capability[-1]}"


def hindrances(modules: Sequence[str], gpus: Sequence[Mapping[str, str]]) -> tuple[str, str]:
    """Tells why nothing can be built and why nothing can be run here; see `Runtime.hindrances`."""
    cannot_build = "" if "tensorrt_rtx" in modules or gpus else "building with TensorRT needs an NVIDIA GPU"
    if not gpus:
        return cannot_build, "running needs an NVIDIA GPU and its driver; building with TensorRT-RTX does not"
    if "tensorrt" in modules or any(gpu["capability"] in CAPABILITIES for gpu in gpus):
        return cannot_build, ""
    found = ", ".join(f"{gpu['name']} has {dotted(gpu['capability'])}" for gpu in gpus)
    known = ", ".join(map(dotted, CAPABILITIES))
    return cannot_build, f"TensorRT-RTX runs on compute capability {known}; {found}"


TAGS = {b"ftrt": "tensorrt", b"vtrt": "tensorrt-rtx"}

HEADER_BYTES = 28


@dataclass(frozen=True)
class TensorRtPlan:
    """A plan file.

    Attributes:
        flavour: `tensorrt` or `tensorrt-rtx`.
        version: of the TensorRT that built it, such as `10.3.0.30`.
        capabilities: compute capabilities it was built for (`SM86`), empty where no record tells.
    """

    path: Path
    flavour: str
    version: str
    capabilities: tuple[str, ...]


def read_plan(path: Path) -> TensorRtPlan:
    """Reads a plan's header and the record of its build beside it (`NAME.build.json`), if there is one.

    Raises:
        JobError: the file is missing, no file or no plan, not all of it is there, or its record is damaged.
    """
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for its writer, for ever
            raise JobError(f"{path} is no file; export the bundle again")
        with path.open("rb") as stream:
            header = stream.read(HEADER_BYTES)
        size = path.stat().st_size
    except OSError as error:
        raise JobError(f"cannot read {path}: {error.strerror}; export the bundle again") from error
    flavour = TAGS.get(header[:4])
    if flavour is None or len(header) < HEADER_BYTES:
        raise JobError(f"{path} is no TensorRT plan (it begins with {header[:4]!r}); export the bundle again")
    expected, capabilities = _record(path)
    if flavour == "tensorrt-rtx":
        expected = int.from_bytes(header[16:24], "little")
    if expected is not None and size != expected:
        raise JobError(f"{path} has {size} bytes, {expected} are needed: truncated; export the bundle again")
    version = ".".join(str(number) for number in header[24:28])
    return TensorRtPlan(path, flavour, version, capabilities)


def require_version(plan: TensorRtPlan, installed: str) -> None:
    """Makes sure that a plan was built by the TensorRT that is to load it.

    Raises:
        JobError: it was built by another version.
    """
    if plan.version.split(".")[:4] != installed.split(".")[:4]:
        raise JobError(
            f"{plan.path.name} was built by {plan.flavour} {plan.version}, here is {installed}, and a plan "
            f"loads in its own version only: {REBUILD}"
        )


def require_capability(plan: TensorRtPlan, gpu: dict[str, str]) -> None:
    """Makes sure that a plan was built for a GPU's compute capability, where its record tells.

    Raises:
        JobError: it was built for others.
    """
    if plan.capabilities and gpu["capability"] not in plan.capabilities:
        raise JobError(
            f"{plan.path.name} was built for {', '.join(plan.capabilities)}, the GPU here is {gpu['name']} "
            f"({gpu['capability']}): {REBUILD}"
        )


REBUILD = "run `python3 -m ptsr_edge.runtimes.build_on_device BUNDLE`"
"""Builds a plan anew where it is to run, by the package and not by a file of the bundle."""


Capability = Annotated[str, Field(pattern=r"^SM\d{2,3}$")]


class _Gpu(Record, extra="ignore"):
    capability: Capability


class _Engine(Record, extra="ignore"):
    bytes: int | None = None
    capabilities: tuple[Capability, ...] = ()
    gpu: _Gpu | None = None


class _Build(Record, extra="ignore"):
    """What `build_on_device` writes beside a graph, as far as it tells of the plan; null before one was built."""

    engine: _Engine | None


def _record(path: Path) -> tuple[int | None, tuple[str, ...]]:
    """Returns a plan's length and compute capabilities, as far as the record of its build tells."""
    side = path.with_suffix(".build.json")
    if not side.is_file():
        return None, ()
    try:
        engine = read_record(_Build, side).engine or _Engine()
    except InputError as error:
        raise JobError(f"{side.name} is damaged ({error}); export the bundle again") from error
    return engine.bytes, engine.capabilities or ((engine.gpu.capability,) if engine.gpu else ())


TYPES: dict[str, np.dtype[Any]] = {"FLOAT": np.dtype(np.float32), "INT64": np.dtype(np.int64)}


def check_plan(path: Path) -> tuple[TensorRtPlan, ModuleType]:
    """Reads a plan that can be loaded here; returns it and the TensorRT that loads it.

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
            f"{_remedy(plan.flavour)}"
        ) from error
    require_version(plan, trt.__version__)
    gpus = cuda_devices()
    if not gpus:
        wanted = ", ".join(plan.capabilities) or "the kind that it was built on"
        raise JobError(f"{path.name} needs an NVIDIA GPU ({wanted}) and its driver; none was found here")
    require_capability(plan, gpus[0])
    return plan, trt


class TrtRunner:
    """One loaded engine: `run` takes (1, C, S, S) float32, gives logits (k,) and kept patches or None.

    Everything is allocated once: pinned host buffers, device buffers and a stream of its own. Copies and network
    are captured into one CUDA graph, so that an inference is one launch. It computes one answer at a time; several runners
    compute at once, each on its own stream. Closing it gives back its memory.
    """

    def __init__(self, artifact: Path, threads: int | None = None) -> None:
        """Loads a plan; see `RunnerClass`. `threads` means nothing.

        Raises:
            MissingExtraError: TensorRT or cuda-bindings is not installed.
            JobError: the plan is damaged, of another version, for another GPU, or TensorRT refuses it.
        """
        del threads
        plan, self._trt = check_plan(artifact)
        self._cuda = Cuda()
        log = shared_log(self._trt)
        self._runtime = self._trt.Runtime(log)
        self._engine = self._runtime.deserialize_cuda_engine(artifact.read_bytes())
        if self._engine is None:
            reason = log.errors[-1] if log.errors else "no reason given"
            raise JobError(f"{plan.flavour} {plan.version} cannot load {artifact.name}: {reason}; {REBUILD}")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise JobError(f"no room on the GPU to run {artifact.name}")
        self._stream = self._cuda.call("cudaStreamCreate")
        self._buffers = self._allocate()
        self._enqueue()  # the first run sets up what a capture may not
        self._cuda.call("cudaStreamSynchronize", self._stream)
        self._graph: Any = self._capture()
        self._lock = Lock()

    def run(self, flow: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
        """flow (1, C, S, S) -> logits (k,) and kept (K,), None where the graph keeps all.

        Raises:
            InputError: another shape than the engine's.
            JobError: the GPU reports an error.
        """
        source = self._buffers["flow"].host
        if flow.shape != source.shape:
            raise InputError(f"the engine takes {source.shape}, got {flow.shape}")
        with self._lock:
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

    @staticmethod
    def why_not_here(artifact: Path, _runs_on: Mapping[str, Any]) -> str:
        """See `RunnerClass`: by the plan and the record beside it, without loading it."""
        try:
            check_plan(artifact)
            _cuda_runtime()
        except JobError as error:
            return str(error)
        return ""

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
        """Puts copies in, network and copies out on the stream."""
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
        """Captures the whole inference as an executable CUDA graph; None where this engine cannot be captured."""
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
    raise MissingExtraError(f"running a TensorRT plan needs cuda-bindings: {install_line('trt')}")
