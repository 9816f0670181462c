"""A variant of a profile, its measuring process as seen from the one that started it, and the timings that it answers.

Each variant gets a process of its own: runtimes then share no threads, no allocators and no peak memory. The other
side is `worker_process`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.bundle import Bundle, Variant
from ptsr_edge.core import errors
from ptsr_edge.core.errors import JobError
from ptsr_edge.core.files import scratch_folder
from ptsr_edge.profile.schema import Missing, MissingKind
from ptsr_edge.stats.latency import Block

SETTLE_RUNS = 2
"""Untimed runs at the start of each block: another process has had the caches since the last one."""

ANSWER_LIMIT_S = 600.0
"""Longest wait for an answer; loading may compile."""

PROCESS = [sys.executable, "-m", "ptsr_edge.profile.worker_process"]

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class ProfiledVariant:
    """A variant in the run.

    Attributes:
        id: unique in the run; `variant.id` is unique in its bundle only.
        folder: of its bundle.
        shown: the name of its bundle in the record; None for a bundle that was made for this run alone.
    """

    id: str
    folder: Path
    bundle: Bundle
    variant: Variant
    shown: str | None = None

    @property
    def kind(self) -> tuple[str, str]:
        """Target and precision."""
        return self.variant.target, self.variant.precision


def shown_path(folder: Path) -> str:
    """Names a folder for the record: relative to here, or by its name alone; never by a whole path."""
    place, here = folder.resolve(), Path.cwd()
    return place.relative_to(here).as_posix() if place.is_relative_to(here) else place.name


@dataclass
class RawTiming:
    """Everything that was measured of one variant; nothing is trimmed.

    Attributes:
        import_ms: importing the runtime's package, not part of `load_ms`.
        load_ms: `Session.open`: the manifest, the files' hashes, the runtime's loading or compiling.
        first_ms: the first inference after it.
        base_rss_bytes: resident memory with the runtime imported and nothing loaded.
        settings: the tuned parameters of the runtime that it ran with; empty: the defaults.
        warm_up_runs: number of runs before the first round, the first inference included.
        blocks: per round, runs of `Session.infer`.
        whole: runs of `Session.predict_frames`, in every second round; none where that cannot be called.
        predict_ms: median of the whole `Session.predict` call, normalising and softmax included.
        peak_rss_bytes: largest resident memory of the process.
        throughput_per_s: inferences a second with `streams` sessions in threads of one process.
        energy_mj: energy of one inference, everything included that the meter sees.
        energy_from: the meter, or why there is none.
        stages: fields of `schema.Stages`.
        ceiling: fields of `schema.Ceiling`, but for `share`.
        operators_run: how many operators the runtime executes in one inference, by its own names.
        instructions: of one inference; `counted_by` names the counter.
        missing: why results are missing, by the name of the field in the record.
    """

    import_ms: float
    load_ms: float
    first_ms: float
    base_rss_bytes: int | None
    settings: dict[str, Any] = field(default_factory=dict)
    warm_up_runs: int = 0
    blocks: list[Block] = field(default_factory=list)
    whole: list[Block] = field(default_factory=list)
    predict_ms: float | None = None
    peak_rss_bytes: int | None = None
    throughput_per_s: float | None = None
    streams: int | None = None
    energy_mj: float | None = None
    energy_from: str | None = None
    stages: dict[str, Any] | None = None
    ceiling: dict[str, Any] | None = None
    operators_run: dict[str, int] | None = None
    instructions: int | None = None
    counted_by: str | None = None
    missing: dict[str, Missing] = field(default_factory=dict)

    @property
    def processes(self) -> int:
        """Number of processes that the rounds were timed in."""
        return len({block.launch for block in self.blocks})

    @property
    def samples_ns(self) -> NDArray[np.int64]:
        """(n,) nanoseconds of all inferences, in the order in which they were taken."""
        return all_runs(self.blocks).wall_ns

    @property
    def cpu_ns(self) -> NDArray[np.int64]:
        """(n,) CPU nanoseconds of all inferences."""
        return all_runs(self.blocks).cpu_ns

    @property
    def cpu_share(self) -> float:
        """CPU time over wall time of all runs: below 1 for one thread, something else had the core."""
        return int(self.cpu_ns.sum()) / int(self.samples_ns.sum())


class Runs(NamedTuple):
    """(n,) each, of all runs of some blocks, in order: times in nanoseconds, the round, the start of the process."""

    wall_ns: NDArray[np.int64]
    cpu_ns: NDArray[np.int64]
    round: NDArray[np.int32]
    launch: NDArray[np.int32]


def all_runs(blocks: Sequence[Block]) -> Runs:
    """Joins blocks, of which there may be none."""
    none = np.array([], dtype=np.int64)
    counts = [block.wall_ns.size for block in blocks]
    return Runs(
        np.concatenate([none, *(block.wall_ns for block in blocks)]),
        np.concatenate([none, *(block.cpu_ns for block in blocks)]),
        np.repeat(np.arange(len(blocks), dtype=np.int32), counts),
        np.repeat(np.array([block.launch for block in blocks], dtype=np.int32), counts),
    )


P = TypeVar("P", bound="MeasuringProcess")


class MeasuringProcess:
    """A process that answers JSON lines and can time blocks of runs; as a context it always ends with the block."""

    def __init__(self, name: str, command: Sequence[str], threads: int) -> None:
        """Takes the `name` that errors begin with, the `command` to start, and the `threads` of one operator."""
        self._name, self._command, self._threads = name, command, threads
        self._process: subprocess.Popen[str] | None = None
        self._stderr: IO[bytes] | None = None

    def __enter__(self: P) -> P:
        """Starts the process."""
        self._stderr = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            encoding="utf-8",
            env=os.environ | dict.fromkeys(_THREAD_VARIABLES, str(self._threads)),
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Number of the running process."""
        return self._running().pid

    def block(self, *, duration_s: float, runs: int, call: str = "infer", settle: int = SETTLE_RUNS) -> Block:
        """Runs until both minima are reached."""
        request = {"op": "block", "call": call, "duration_s": duration_s, "runs": runs, "settle": settle}
        answer = self._ask(request)
        wall, cpu = (np.array(answer.pop(name), dtype=np.int64) for name in ("wall_ns", "cpu_ns"))
        return Block(wall, cpu, **answer)

    def close(self) -> None:
        """Ends the process: politely by closing its stdin, by force after five seconds."""
        process, self._process = self._process, None
        if process is not None:
            stdin, stdout = _pipes(process)
            try:
                with contextlib.suppress(BrokenPipeError):
                    stdin.close()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=5)
            finally:
                process.kill()
                process.wait()
                stdout.close()
        if self._stderr is not None:
            self._stderr.close()

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            raise JobError(f"{self._name}: the measuring process is not running")
        return self._process

    def _ask(self, request: Mapping[str, Any], limit_s: float = ANSWER_LIMIT_S) -> dict[str, Any]:
        process = self._running()
        stdin, stdout = _pipes(process)
        late = threading.Event()

        def give_up() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(limit_s, give_up)
        timer.daemon = True  # Ctrl-C may come before it could be cancelled; nothing then waits for it
        try:
            timer.start()
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if not line:
            raise JobError(self._obituary(process, str(request["op"]), limit_s if late.is_set() else None))
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise getattr(errors, answer["kind"])(f"{self._name}: {answer['error']}")
        return answer

    def _obituary(self, process: subprocess.Popen[str], op: str, limit_s: float | None) -> str:
        """Tells in one line how the process ended, at which request, and the last thing that it said."""
        code = process.wait()
        if limit_s is not None:
            end = f"gave no answer within {limit_s:g} s"
        elif code < 0:
            end = f"was ended by {signal.Signals(-code).name}"
        else:
            end = f"ended with exit code {code}"
        return f"{self._name}: the measuring process {end} at {op!r}{self._last_words()}"

    def _last_words(self) -> str:
        assert self._stderr is not None
        self._stderr.seek(0)
        lines = self._stderr.read().decode("utf-8", errors="replace").splitlines()
        said = [line.strip() for line in lines if line.strip()]
        return f": {said[-1][:300]}" if said else "; it said nothing"


class Worker(MeasuringProcess):
    """The measuring process of one variant."""

    def __init__(
        self,
        variant: ProfiledVariant,
        *,
        threads: int = 1,
        cpus: Sequence[int] | None = None,
        seed: int = 0,
    ) -> None:
        """Names what to measure; `threads` of one operator, `cpus` to be bound to, `seed` of the input."""
        super().__init__(variant.id, PROCESS, threads)
        self.variant = variant
        self._cpus, self._seed = cpus, seed

    def load(self) -> RawTiming:
        """Opens the artifact and runs it once.

        Raises:
            InputError: no such bundle or variant.
            JobError: the runtime is missing or refuses the artifact, or the process died.
        """
        return RawTiming(**self._ask(_load_request(self.variant, self._threads, self._cpus, self._seed)))

    def throughput(self, *, streams: int, duration_s: float) -> float:
        """Inferences a second of `streams` sessions in threads of the process."""
        answer = self._ask({"op": "throughput", "streams": streams, "duration_s": duration_s})
        return float(answer["per_s"])

    def operators(self) -> dict[str, Any]:
        """Counts what the runtime executes in one inference; see `worker_process.Bench.operators`."""
        return self._ask({"op": "operators"})

    def stages(self, *, runs: int) -> dict[str, Any]:
        """Times one sample by stage; see `worker_process.Bench.stages`."""
        return self._ask({"op": "stages", "runs": runs})

    def ceiling(self, *, duration_s: float) -> dict[str, Any]:
        """Measures a plain matrix product; see `roofline.measure_ceiling`."""
        return self._ask({"op": "ceiling", "duration_s": duration_s})

    def peak_rss_bytes(self) -> int | None:
        """Largest resident memory of the process so far; None where the system does not tell."""
        answer: int | None = self._ask({"op": "memory"})["peak_rss_bytes"]
        return answer


def _load_request(
    variant: ProfiledVariant, threads: int, cpus: Sequence[int] | None, seed: int
) -> dict[str, Any]:
    return {
        "op": "load", "bundle": str(variant.folder), "variant": variant.variant.id,
        "threads": threads, "cpus": cpus, "seed": seed,
    }  # fmt: skip


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


# ---------------------------------------------------------------------------------------------
# Instructions

FIRST_RUNS = 10
"""Runs of the shorter of two counts: what only the first runs do is then in both."""


@dataclass(frozen=True)
class Counter:
    """A tool that counts the instructions of a process in user space.

    Attributes:
        command: that starts the tool, up to the process that is counted; `{file}` stands for where it writes.
        found: how the count stands in what it writes.
        told: for the record, how instructions were counted.
        runs_s: how long the counted runs take where nothing slows them; at least `least_runs` are made.
        least_runs: least number of counted runs.
    """

    command: tuple[str, ...]
    found: re.Pattern[str]
    told: str
    runs_s: float
    least_runs: int

    def instructions(self, variant: ProfiledVariant, *, p50_s: float, seed: int) -> int | Missing:
        """Counts one inference on one thread: the difference of two processes that differ in their number of runs.

        Args:
            variant: what runs.
            p50_s: of an inference, to choose the number of runs.
            seed: of the input.
        """
        runs = max(self.least_runs, round(self.runs_s / p50_s))
        load = _load_request(variant, 1, None, seed)
        counts: list[int] = []
        for number in (FIRST_RUNS, FIRST_RUNS + runs):
            block = {"op": "block", "call": "infer", "duration_s": 0, "runs": number, "settle": 0}
            count = self.count(PROCESS, "".join(json.dumps(request) + "\n" for request in (load, block)))
            if isinstance(count, Missing):
                return count
            counts.append(count)
        return round((counts[1] - counts[0]) / runs)

    def count(self, command: Sequence[str], given: str = "") -> int | Missing:
        """Counts a whole process, which reads `given` on stdin and answers lines without `error`."""
        with scratch_folder() as scratch:
            file = f"{scratch}/count"
            try:
                done = subprocess.run(
                    [*(word.replace("{file}", file) for word in self.command), *command],
                    input=given,
                    capture_output=True,
                    text=True,
                    errors="replace",
                    timeout=ANSWER_LIMIT_S,
                    check=False,
                    # What the order of sets depends on would differ from process to process.
                    env=os.environ | dict.fromkeys(_THREAD_VARIABLES, "1") | {"PYTHONHASHSEED": "0"},
                )
            except subprocess.TimeoutExpired:
                return _uncounted(f"{self.command[0]} took longer than {ANSWER_LIMIT_S:g} s")
            wrote = Path(file).read_text(encoding="utf-8") if Path(file).exists() else ""
        answers = [json.loads(line) for line in done.stdout.splitlines() if given]
        failed = next((str(answer["error"]) for answer in answers if "error" in answer), None)
        if failed is not None or done.returncode:
            said = failed or next(iter(reversed(done.stderr.strip().splitlines())), "it said nothing")
            return _uncounted(f"under {self.command[0]} the process failed: {said[:300]}")
        match = self.found.search(wrote)
        if match is None:
            return _uncounted(f"{self.command[0]} tells no number", "not_supported")
        return int(match[1])


def _uncounted(why: str, kind: MissingKind = "failed") -> Missing:
    return Missing(kind=kind, reason=f"instructions were not counted: {why}")


def perf_counter_of(event: str) -> Counter:
    """Returns the counter of an event of the processor or the kernel, such as `instructions:u`."""
    return Counter(
        command=("perf", "stat", "-x,", "-e", event, "-o", "{file}", "--"),
        found=re.compile(rf"^(\d+),[^,]*,{re.escape(event)},", re.MULTILINE),
        told=f"perf stat -e {event}: difference of two processes, on one thread",
        runs_s=2.0,
        least_runs=20,
    )


CALLGRIND = Counter(
    command=("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", "--log-file={file}"),
    found=re.compile(r"Collected : (\d+)"),
    told="valgrind's callgrind: difference of two processes, on one thread; it runs them as a processor without "
    "AVX-512, VNNI and AMX would be asked to",
    runs_s=0.0,
    least_runs=20,
)


def find_counter(*, asked: bool) -> Counter | Missing:
    """Returns what counts instructions here; valgrind, which is slow, only where it was asked for."""
    perf = perf_counter_of("instructions:u")
    why = "perf is not installed"
    if shutil.which("perf") is not None:
        if isinstance(perf.count(["true"]), int):
            return perf
        why = "this machine's processor does not tell them to perf"
    if not asked:
        return _uncounted(f"{why}, and --count-instructions was not given", "not_asked")
    if shutil.which("valgrind") is not None:
        return CALLGRIND
    return _uncounted(f"{why}, and valgrind is not installed", "not_installed")
