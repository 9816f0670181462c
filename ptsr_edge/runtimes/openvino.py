"""OpenVINO on the CPU, its telemetry off, and the runner of target `openvino`.

Left alone, OpenVINO chooses the precision of the arithmetic by the CPU (bfloat16 where there is some), and
takes bfloat16 even where float16 is asked for and missing. So the precision is always asked for, and read
back: of the compiled model's configuration, and of each of its matrix products.

OpenVINO and NNCF hand events to the package `openvino_telemetry`: the import of OpenVINO alone sends one, and NNCF
sends some without ever asking for consent. Both work where that package is not installed, so before either is
imported it is made to look absent, whatever the user's consent file says.
"""

from __future__ import annotations

import filecmp
import logging
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any, BinaryIO, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.core.errors import InputError, JobError, require
from ptsr_edge.core.files import DIGEST_BYTES, DiskCache, cache_key
from ptsr_edge.runtimes.base import Parameter, Value

log = logging.getLogger("ptsr_edge")

DEVICE = "CPU"

RT_SECTION = "ptsr_edge"
"""Where an IR's `rt_info` says how it wants to be run: `precision`, `inference_precision`."""

CAPABILITY = {"f32": "FP32", "f16": "FP16", "bf16": "BF16"}
"""What OpenVINO calls the ability of a device to calculate in a type."""

MATRIX_LAYERS = ("FullyConnected", "MatMul", "Convolution", "Gemm")

INT8 = ("i8", "u8")

KEPT_BYTES = 500_000_000
"""What compiled models may take in the user's cache."""

SENDER = "openvino_telemetry"

_SENDING = (
    "send_event",
    "send_error",
    "send_stack_trace",
    "send_opt_in_event",
    "start_session",
    "end_session",
)


def silence() -> None:
    """Turns the telemetry off for this process.

    Where the application imported OpenVINO by itself before, what that import sent is gone; everything
    after this call is dropped.
    """
    loaded: Any = sys.modules.get(SENDER)
    if loaded is None:
        # None makes the import system raise ModuleNotFoundError for that name.
        cast(dict[str, Any], sys.modules)[SENDER] = None
        return

    def drop(*_args: Any, **_kwargs: Any) -> None:
        """Takes an event and sends nothing."""

    for method in _SENDING:
        setattr(loaded.Telemetry, method, drop)
    queue: Any = sys.modules.get(f"{SENDER}.utils.sender")
    if queue is not None:
        queue.TelemetrySender.send = drop


def require_silenced(module: str, extra: str, purpose: str) -> ModuleType:
    """Imports `openvino` or `nncf` with their telemetry off; the only way in which this package does.

    Raises:
        MissingExtraError: the module is not installed; the message holds the `pip install` line.
    """
    silence()
    return require(module, extra, purpose)


def load_openvino(purpose: str = "running a bundle of target openvino") -> ModuleType:
    """Imports `openvino`, its telemetry off.

    Raises:
        MissingExtraError: openvino is not installed; the message says the `purpose`.
    """
    return require_silenced("openvino", "openvino", purpose)


PARAMETERS = (
    Parameter("ENABLE_CPU_PINNING", (True,)),
    Parameter("ENABLE_HYPER_THREADING", (True,), needs="several threads"),
    Parameter("TBB_PARTITIONER", ("AUTO",), needs="several threads"),
    Parameter("SCHEDULING_CORE_TYPE", ("PCORE_ONLY", "ECORE_ONLY"), needs="cores of two kinds"),
)
"""What may cost or save time for one stream: properties of the CPU plugin. Those that change the arithmetic, such as the
precision or the groups of dynamic quantization, are none of them; nor is denormals as zero, which would hold for the arithmetic
of the caller's thread too."""


class OpenVinoRunner:
    """One compiled IR: `run` takes (1, C, S, S) float32, gives logits (k,) and kept patches or None.

    Attributes:
        inference_precision: the type that everything is calculated in that is not quantized.
        matrix_products: how many matrix products run in which type, read back from the compiled model.
    """

    parameters: ClassVar = PARAMETERS

    def __init__(
        self,
        artifact: Path,
        threads: int | None = None,
        *,
        digest: str = "",
        settings: Mapping[str, Value] | None = None,
    ) -> None:
        """Reads and compiles an IR; see `RunnerClass`.

        What an int8 IR is compiled to is kept in the user's cache, and is taken from there by the same version on the
        same CPU. That halves the start, most of which is rewriting the graph; in float32 most of it is laying out the
        weights, which is done anew either way.

        Raises:
            MissingExtraError: openvino is not installed.
            JobError: OpenVINO refuses the file, or would calculate in another precision than the IR asks for.
        """
        core = load_openvino().Core()
        own = _settings(threads, settings)
        kept = _take_compiled(core, digest, own, artifact.name) if digest else None
        if kept is not None:
            quantized, (self.inference_precision, compiled) = True, kept
        else:
            model = read_ir(core, artifact)
            quantized = rt_entry(model, "precision", artifact.name) == "int8"
            self.inference_precision, compiled = compile_ir(core, model, artifact.name, threads, settings)
            if quantized and digest:
                _keep_compiled(core, digest, own, self.inference_precision, compiled)
        self.matrix_products = matrix_products(compiled)
        check_precision(compiled, self.inference_precision, quantized, self.matrix_products, artifact.name)
        self._attach(compiled.create_infer_request(), Lock(), tuple(compiled.inputs[0].shape), None)

    def _attach(self, request: Any, lock: Lock, shape: tuple[int, ...], budget: int | None) -> None:
        """Answers by a request, which computes one answer at a time; of a model of several budgets, by that one."""
        self._request = request
        self._lock = lock
        self._shape = shape
        self._budget = [] if budget is None else [np.array(budget, np.int32)]
        names = [output.get_any_name() for output in request.model_outputs]
        self._logits = request.get_output_tensor(names.index("logits"))
        self._kept_place = names.index("kept") if "kept" in names else None
        self._classes = tuple(self._logits.shape)

    @classmethod
    def open_sharing(cls, artifacts: Sequence[Path], threads: int | None) -> list[OpenVinoRunner]:
        """See `RunnerClass`: all budgets become one model whose second input chooses among them.

        OpenVINO lays the weights out once for each compiled model, so once for all of them. It fuses less inside of
        such a choice: logits of int8 move by up to what its int8 moves them at all.
        """
        ov = load_openvino()
        core = ov.Core()
        # Read through one mapping where the files are alike: by its address OpenVINO knows that a weight is the same.
        files = [weights_of(artifact) for artifact in artifacts]
        alike = all(filecmp.cmp(files[0], other, shallow=False) for other in files[1:])
        shared = ov.Tensor(np.memmap(files[0], np.uint8, mode="r")) if alike else None
        models = [read_ir(core, artifact, shared) for artifact in artifacts]
        precision, compiled = compile_ir(core, one_of(models), artifacts[0].name, threads)
        request, lock = compiled.create_infer_request(), Lock()
        runners = []
        for budget, model in enumerate(models):
            runner = cls.__new__(cls)
            runner.inference_precision, runner.matrix_products = precision, {}
            runner._attach(request, lock, tuple(model.inputs[0].shape), budget)
            runners.append(runner)
        return runners

    def run(self, flow: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
        """flow (1, C, S, S) -> logits (k,) and kept (K,), None where the graph keeps all.

        Raises:
            InputError: another shape or type than the model's.
            JobError: the answer has another shape than the model's, as from a miscompiled graph.
        """
        if flow.shape != self._shape or flow.dtype != np.float32:
            raise InputError(f"the model takes float32 {self._shape}, got {flow.dtype} {flow.shape}")
        with self._lock:
            try:
                self._request.infer([flow, *self._budget], share_inputs=True, share_outputs=True)
            except RuntimeError as error:
                raise JobError(f"OpenVINO cannot run the model: {last_line(error)}") from error
            answer = self._logits.data
            if answer.shape != self._classes:
                raise JobError(
                    f"OpenVINO answered with logits {answer.shape}; the model's are {self._classes}"
                )
            logits: NDArray[np.float32] = answer[0].copy()  # the next answer is written into the same memory
            if self._kept_place is None:
                return logits, None
            return logits, self._request.get_output_tensor(self._kept_place).data[0].astype(np.int64)

    @staticmethod
    def version() -> str:
        """See `RunnerClass`."""
        return f"openvino {load_openvino().__version__}"

    @staticmethod
    def why_not_here(_artifact: Path, runs_on: Mapping[str, Any]) -> str:
        """See `RunnerClass`: openvino must be installed, and the CPU must calculate in the IR's precision."""
        try:
            wanted = str(runs_on.get("inference_precision", "")).split()
            if not wanted:
                return "the bundle does not say which precision it is to be calculated in: export it again"
            choose_precision(wanted, capabilities(), "it")
        except JobError as error:
            return str(error)
        return ""


def weights_of(artifact: Path) -> Path:
    """Returns the weights of an IR: under its own name beside it.

    Bundles of older versions have them once for all budgets of a precision: of `m-openvino-int8-k49.xml` in
    `m-openvino-int8.bin`.
    """
    own = artifact.with_suffix(".bin")
    shared = artifact.with_name(re.sub(r"-k\d+$", "", artifact.stem) + ".bin")
    return shared if shared.is_file() and not own.is_file() else own


def one_of(models: Sequence[Any]) -> Any:
    """Joins models of one input and the same outputs into one, with a second input: the number of the one that answers."""
    ov = load_openvino()
    ops = ov.opset13
    shape = models[0].inputs[0].shape
    names = [output.get_any_name() for output in models[0].outputs]

    def choice(place: int) -> tuple[Any, list[Any]]:
        """The models from a place on, as one: it, and its parameters."""
        if place == len(models) - 1:
            return models[place], [*models[place].get_parameters(), None]
        flow, budget = ops.parameter(shape, ov.Type.f32), ops.parameter([], ov.Type.i32)
        here, (there, (their_flow, their_budget)) = models[place], choice(place + 1)
        node = ops.if_op(ops.equal(budget, ops.constant(np.int32(place))).output(0))
        node.set_then_body(here)
        node.set_else_body(there)
        node.set_input(flow.output(0), here.get_parameters()[0], their_flow)
        if their_budget is not None:
            node.set_input(budget.output(0), None, their_budget)
        outputs = [node.set_output(*(_result(body, name) for body in (here, there))) for name in names]
        joined = ov.Model([ops.result(output) for output in outputs], [flow, budget], "budgets")
        for output, name in zip(joined.outputs, names, strict=True):
            output.set_names({name})
        return joined, [flow, budget]

    joined = choice(0)[0]
    for key in ("precision", "inference_precision"):
        joined.set_rt_info(rt_entry(models[0], key, "the first model"), [RT_SECTION, key])
    return joined


def _result(model: Any, name: str) -> Any:
    places = [output.get_any_name() for output in model.outputs]
    return model.get_results()[places.index(name)]


def read_ir(core: Any, artifact: Path, shared: Any = None) -> Any:
    """Reads an IR with its weights, which are mapped and not copied.

    Args:
        core: of OpenVINO.
        artifact: the IR.
        shared: a tensor of the weights file's bytes, for IRs that share one; None: the file is mapped.

    Raises:
        JobError: a file is missing or is no IR.
    """
    weights = weights_of(artifact)
    for path in (artifact, weights):
        if not path.is_file():
            raise JobError(f"{path.name} is missing, or no manifest lists it: export the bundle again")
    try:
        model = (
            core.read_model(artifact, weights)
            if shared is None
            else core.read_model(artifact.read_bytes(), shared)
        )
    except (RuntimeError, ValueError) as error:  # of bytes that are no text its own message cannot be made
        raise JobError(f"OpenVINO cannot read {artifact.name}: {last_line(error)}") from error

    check_places(model, artifact.name)
    return model


MOVES = ("Gather", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Convert", "StridedSlice", "Slice")
"""Operators that hand on values of their first input as they are."""


MOST_PADDING = 65_536
"""Rows or columns that an IR may add."""


def check_places(model: Any, name: str) -> None:
    """Makes sure that no Gather takes from outside of its data and no Pad cuts off or adds without end, as constants decide it.

    OpenVINO does not look: it would read foreign memory, or end the process.

    Raises:
        JobError: one does.
    """
    for node in model.get_ops():
        kind = node.get_type_name()
        if kind == "Pad":
            for place in (1, 2):
                found = _bounds(node.input_value(place))
                if found is not None and not 0 <= found[0] <= found[1] <= MOST_PADDING:
                    raise JobError(f"{name} pads by {found[0]} to {found[1]}: export the bundle again")
        elif kind == "Gather":
            shape, axis = node.input_value(0).get_partial_shape(), _bounds(node.input_value(2))
            found = _bounds(node.input_value(1))
            if found is None or axis is None or shape.is_dynamic:
                continue
            size = shape.to_shape()[axis[0]]
            if not -size <= found[0] <= found[1] < size:
                raise JobError(
                    f"{name} takes the places {found[0]} to {found[1]} of {size}: export the bundle again"
                )


def _bounds(output: Any) -> tuple[int, int] | None:
    """The least and the largest value of whole numbers that constants and TopK decide; None of others."""
    node = output.get_node()
    kind = node.get_type_name()
    if kind == "Constant":
        values = node.get_data()
        return (int(values.min()), int(values.max())) if values.size and values.dtype.kind in "iu" else None
    if kind in MOVES:
        return _bounds(node.input_value(0))
    if kind == "TopK" and output.get_index() == 1:
        shape = node.input_value(0).get_partial_shape()
        return None if shape.is_dynamic else (0, shape.to_shape()[node.get_axis()] - 1)
    return None


def rt_entry(model: Any, key: str, name: str) -> str:
    """Reads an entry of the IR's own section of `rt_info`.

    Raises:
        JobError: it is not there.
    """
    path = [RT_SECTION, key]
    if not model.has_rt_info(path):
        raise JobError(f"{name} has no rt_info {'/'.join(path)}: not an IR made by `ptsr-edge export`")
    return str(model.get_rt_info(path).astype(str))


def capabilities() -> list[str]:
    """Returns what this CPU can calculate in, in OpenVINO's words.

    Raises:
        MissingExtraError: openvino is not installed.
    """
    found: list[str] = load_openvino().Core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
    return found


def can_calculate(wanted: Sequence[str]) -> bool:
    """Tells whether this CPU can calculate in one of the wanted types.

    Raises:
        MissingExtraError: openvino is not installed.
    """
    here = capabilities()
    return any(CAPABILITY.get(precision) in here for precision in wanted)


def choose_precision(wanted: Sequence[str], available: Sequence[str], name: str) -> str:
    """Returns the first of the wanted types that the device can calculate in.

    Raises:
        JobError: it can do none of them.
    """
    for precision in wanted:
        if CAPABILITY.get(precision) in available:
            return precision
    raise JobError(
        f"{name} is to be calculated in {' or '.join(wanted)}; OpenVINO on this CPU offers "
        f"{', '.join(available)}: take another precision of the bundle"
    )


def compile_ir(
    core: Any, model: Any, name: str, threads: int | None, settings: Mapping[str, Value] | None = None
) -> tuple[str, Any]:
    """Compiles an IR in the first of the precisions that it asks for and this CPU has.

    Returns:
        The precision, and the compiled model.

    Raises:
        JobError: the CPU has none of them, or OpenVINO refuses the model.
    """
    wanted = rt_entry(model, "inference_precision", name).split()
    precision = choose_precision(wanted, core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"), name)
    return precision, compile_model(core, model, precision, threads, name, settings)


COMPILED = "compiled"
"""Kind of the cache's entries: the precision, filled up with blanks so that the compiled model begins a page of the file."""

_BLANKS = 4096 - DIGEST_BYTES


def _compiled_key(core: Any, digest: str, own: Mapping[str, Value]) -> str:
    cpu = [core.get_property(DEVICE, name) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")]
    version = load_openvino().__version__
    return cache_key({"files": digest, "settings": dict(own), "cpu": cpu, "openvino": version})


def _take_compiled(core: Any, digest: str, own: Mapping[str, Value], name: str) -> tuple[str, Any] | None:
    """Returns precision and compiled model that are kept of an artifact; None where none is, or OpenVINO refuses it."""
    # Mapped and not read: an entry is only ever replaced by another file of its name.
    found = DiskCache(COMPILED).fetch(
        _compiled_key(core, digest, own),
        lambda stream: (stream.read(_BLANKS), np.memmap(stream, np.uint8, mode="r", offset=4096)),
    )
    if found is None:
        return None
    precision = found[0].decode().strip()
    try:
        content = load_openvino().Tensor(found[1])
        return precision, core.import_model(content, DEVICE, {**own, "INFERENCE_PRECISION_HINT": precision})
    except RuntimeError as error:
        log.info("%s is compiled anew: OpenVINO refuses what was kept (%s)", name, last_line(error))
        return None


def _keep_compiled(core: Any, digest: str, own: Mapping[str, Value], precision: str, compiled: Any) -> None:
    def write(stream: BinaryIO) -> None:
        stream.write(precision.encode().ljust(_BLANKS))
        stream.write(compiled.export_model().getbuffer())

    cache = DiskCache(COMPILED, limit_bytes=KEPT_BYTES)
    cache.store(_compiled_key(core, digest, own), write)
    cache.shrink()


def _settings(threads: int | None, settings: Mapping[str, Value] | None) -> dict[str, Value]:
    """OpenVINO's settings for one synchronous stream of the least latency, without the precision; those given come before."""
    own: dict[str, Value] = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }
    if threads is not None:
        own["INFERENCE_NUM_THREADS"] = threads
    return {**own, **(settings or {})}


def compile_model(
    core: Any,
    model: Any,
    precision: str,
    threads: int | None,
    name: str,
    settings: Mapping[str, Value] | None = None,
) -> Any:
    """Compiles for one synchronous stream of the least latency, at an explicit precision.

    Raises:
        JobError: OpenVINO refuses the model.
    """
    own = _settings(threads, settings)
    try:
        return core.compile_model(
            model, DEVICE, {**own, "INFERENCE_PRECISION_HINT": precision, "CACHE_DIR": ""}
        )
    except RuntimeError as error:
        raise JobError(
            f"OpenVINO cannot compile {name} for {precision} on this CPU: {last_line(error)}"
        ) from error


def matrix_products(compiled: Any) -> dict[str, int]:
    """Counts the matrix products of a compiled model by the type of their activations: {"u8": 48, "f32": 3}.

    The activations tell: weights may be kept in a smaller type and widened on the way, which OpenVINO then
    gives as the `runtimePrecision`. Products that the runtime fused with what surrounds them are not counted.
    """
    counts: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ordered_ops():
        if node.get_rt_info()["layerType"].astype(str) in MATRIX_LAYERS:
            counts[node.input(0).get_element_type().get_type_name()] += 1
    return dict(sorted(counts.items()))


def check_precision(
    compiled: Any, precision: str, quantized: bool, products: dict[str, int], name: str
) -> None:
    """Makes sure that a compiled model calculates in what it was asked to.

    Raises:
        JobError: the configuration or a matrix product says otherwise, or none is quantized that should be.
    """
    effective = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if effective != precision:
        raise JobError(f"{name} was to be calculated in {precision}; OpenVINO made it {effective}")
    # A product may stay in float32 where the runtime has no faster kernel for it; never in less than asked.
    accepted = {precision, "f32", *(INT8 if quantized else ())}
    foreign = {kind: count for kind, count in products.items() if kind not in accepted}
    if foreign:
        raise JobError(
            f"{name} was to be calculated in {precision}; OpenVINO runs matrix products as {foreign}"
        )
    due = INT8 if quantized else (precision,)
    if not any(products.get(kind) for kind in due):
        raise JobError(
            f"{name} was to run its matrix products in {' or '.join(due)}; OpenVINO on this CPU runs {products}"
        )


def last_line(error: BaseException) -> str:
    """Returns the last line of OpenVINO's message: the first ones name its own source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
