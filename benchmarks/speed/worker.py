"""The process that times one artifact of any tool: JSON lines in on stdin, JSON lines out on stdout.

    {"op": "load", "kind": "onnxruntime", "path": FILE, "inputs": FILE.npy, "threads": 1, "options": {}}
    {"op": "block", "call": "infer", "duration_s": 0.01, "runs": 3, "settle": 2}

It stands alone and needs numpy and the tool, so that it runs in any environment; it answers as
`ptsr_edge.profile.worker_process` does, so that `ptsr_edge.profile.worker.MeasuringProcess` starts and asks both.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TextIO

import numpy as np

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

Run = Callable[[], Any]
"""One inference; what it returns, the loader reads as logits (1, k)."""

Opened = tuple[Callable[[np.ndarray], Any], dict[str, Any]]
"""What runs one input (1, C, S, S) -> logits (1, k), and what the tool says of itself."""


def open_onnxruntime(path: Path, threads: int, options: dict[str, Any]) -> Opened:
    """Opens a graph as a user does, but for threads that would spin beside the next one to be timed."""
    import onnxruntime as ort

    session = _ort_session(ort, path, threads)
    name, wanted = session.get_inputs()[0].name, options.get("output")
    outputs = None if wanted is None else [wanted]
    return (lambda x: session.run(outputs, {name: x})[0]), {}


def _ort_session(ort: Any, path: Path, threads: int) -> Any:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])


def open_onnxruntime_products(path: Path, threads: int, options: dict[str, Any]) -> Opened:
    """Opens a graph of many inputs and outputs, all of them bound once: what is timed is the graph alone."""
    del options
    import onnxruntime as ort

    session = _ort_session(ort, path, threads)
    binding, rng = session.io_binding(), np.random.default_rng(0)
    kinds = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(int8)": np.int8}
    held = []
    for value in session.get_inputs():
        held.append(ort.OrtValue.ortvalue_from_numpy(_draw(rng, value.shape, kinds[value.type])))
        binding.bind_ortvalue_input(value.name, held[-1])
    for value in session.get_outputs():
        kind = {**kinds, "tensor(int32)": np.int32}[value.type]
        held.append(ort.OrtValue.ortvalue_from_shape_and_type(value.shape, kind, "cpu"))
        binding.bind_ortvalue_output(value.name, held[-1])

    def run(_: np.ndarray, _held: Any = held) -> None:
        session.run_with_iobinding(binding)

    return run, {}


def _draw(rng: np.random.Generator, shape: Iterable[int], kind: Any) -> np.ndarray:
    values = (
        rng.integers(0, 100, tuple(shape)) if np.dtype(kind).kind in "iu" else rng.normal(size=tuple(shape))
    )
    return np.asarray(values, dtype=kind)


def open_openvino(path: Path, threads: int, options: dict[str, Any]) -> Opened:
    """Compiles a model with the options given and no others, but for pinning: all would take the same core."""
    compiled = _ov_compiled(path, threads, options)
    request, key = compiled.create_infer_request(), compiled.output(0)
    told = {"precision": compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()}
    return (lambda x: request.infer([x], share_inputs=True, share_outputs=True)[key]), told


def _ov_compiled(path: Path, threads: int, options: dict[str, Any]) -> Any:
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # nothing is sent
    import openvino as ov

    settings = {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False, **options}
    return ov.Core().compile_model(str(path), "CPU", settings)


def open_openvino_products(path: Path, threads: int, options: dict[str, Any]) -> Opened:
    """See `open_onnxruntime_products`; tells in which types the products run."""
    compiled = _ov_compiled(path, threads, options)
    request, rng = compiled.create_infer_request(), np.random.default_rng(0)
    import openvino as ov

    for value in compiled.inputs:
        kind, shape = value.get_element_type(), value.get_shape()
        if kind == ov.Type.bf16:  # the upper half of a float
            upper = (_draw(rng, shape, np.float32).view(np.uint32) >> 16).astype(np.uint16)
            request.set_tensor(value, ov.Tensor(upper, shape, kind))
        else:
            request.set_tensor(value, ov.Tensor(_draw(rng, shape, kind.to_dtype())))

    def run(_: np.ndarray) -> None:
        # `infer` would hand out every one of the outputs.
        request.start_async(share_inputs=True)
        request.wait()

    return run, {}


def open_torch(path: Path, threads: int, options: dict[str, Any]) -> Opened:
    """Loads Hugging Face's ViT, eager or compiled."""
    import torch
    from transformers import ViTForImageClassification

    torch.set_num_threads(threads)
    kind = getattr(torch, options.get("dtype", "float32"))
    model = ViTForImageClassification.from_pretrained(path, dtype=kind).eval()
    call = torch.compile(model) if options.get("compile") else model

    def run(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return call(torch.from_numpy(x).to(kind)).logits.float().numpy()

    return run, {}


def open_litert(path: Path, threads: int, options: dict[str, Any]) -> Opened:
    """Opens a model in LiteRT's interpreter, which takes XNNPACK by itself."""
    del options
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=threads)
    interpreter.allocate_tensors()
    given, found = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def run(x: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(given, x)
        interpreter.invoke()
        return interpreter.get_tensor(found)

    return run, {}


def open_executorch(path: Path, threads: int, options: dict[str, Any]) -> Opened:
    """Loads a program whose XNNPACK parts run on a pool of so many threads."""
    del options
    import torch
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    torch.set_num_threads(threads)
    portable_lib._unsafe_reset_threadpool(threads)
    method = Runtime.get().load_program(path).load_method("forward")
    return (lambda x: method.execute([torch.from_numpy(x)])[0].numpy()), {}


KINDS: dict[str, Callable[[Path, int, dict[str, Any]], Opened]] = {
    "onnxruntime": open_onnxruntime,
    "onnxruntime-products": open_onnxruntime_products,
    "openvino": open_openvino,
    "openvino-products": open_openvino_products,
    "torch": open_torch,
    "litert": open_litert,
    "executorch": open_executorch,
}


class Bench:
    """One opened artifact."""

    def load(
        self, *, kind: str, path: str, inputs: str, threads: int, options: dict[str, Any]
    ) -> dict[str, Any]:
        """Opens it and runs each of the inputs (n, C, S, S) once: their logits, and what the tool tells."""
        given = np.load(inputs)
        run, told = KINDS[kind](Path(path), threads, options)
        answers = [_listed(run(one[None].copy())) for one in given]
        first = given[:1].copy()
        self._run: Run = lambda: run(first)
        return {"logits": answers, "told": told}

    def block(self, *, call: str, duration_s: float, runs: int, settle: int) -> dict[str, Any]:
        """Times runs until both minima are reached, after some that are not timed."""
        if call != "infer":
            raise ValueError(f"no call {call!r}; accepted: infer")
        for _ in range(settle):
            self._run()
        before = disturbances()
        wall, cpu = timed_runs(self._run, duration_s, runs)
        met = {name: count - before[name] for name, count in disturbances().items() if name in before}
        return {"wall_ns": wall, "cpu_ns": cpu, **met, "cores": os.cpu_count() or 1}


def _listed(logits: Any) -> list[float] | None:
    """Reads an answer at once: some runtimes write the next one into the same memory."""
    return None if logits is None else np.asarray(logits, dtype=np.float64).ravel().tolist()


def timed_runs(run: Run, duration_s: float, runs: int) -> tuple[list[int], list[int]]:
    """Wall and CPU nanoseconds of each run."""
    wall: list[int] = []
    cpu: list[int] = []
    end = time.perf_counter_ns() + int(duration_s * 1e9)
    while len(wall) < runs or time.perf_counter_ns() < end:
        cpu_start, start = time.process_time_ns(), time.perf_counter_ns()
        run()
        wall.append(time.perf_counter_ns() - start)
        cpu.append(time.process_time_ns() - cpu_start)
    return wall, cpu


def disturbances() -> dict[str, int]:
    """Counts what kept this process from its cores so far, as far as the system tells."""
    found: dict[str, int] = {}
    if resource is not None:
        found["switches"] = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    try:
        threads = [path.read_text().split() for path in Path("/proc/self/task").glob("*/schedstat")]
        found["waited_ns"] = sum(int(fields[1]) for fields in threads)
        stolen = int(Path("/proc/stat").read_text().split(maxsplit=9)[8])
        found["stolen_ns"] = stolen * 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError):  # no Linux, or a thread has ended meanwhile
        pass
    return found


def serve(requests: Iterable[str], answers: TextIO) -> None:
    """Answers each line of `requests` by one line; what goes wrong in a tool is an answer too."""
    bench = Bench()
    for line in requests:
        request = json.loads(line)
        try:
            answer = getattr(bench, request.pop("op"))(**request)
        except Exception as error:  # noqa: BLE001  (tools raise what they like)
            said = " ".join(f"{type(error).__name__}: {error}".split())
            answer = {"error": said[:400], "kind": "JobError"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main() -> int:
    # Tools print to stdout as they please: the answers keep the real one for themselves.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.stdin, answers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
