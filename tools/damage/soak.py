"""Four streams for a long time, with planted faults: nothing may be lost uncounted, grow, or hold up the other streams.

Frames come from sources that fail as cameras do; everything behind them is real: the streams' threads and queues, the pipeline,
the face detector and the runtime. A source knows when each frame was born, so that its way can be timed to the end.
"""

from __future__ import annotations

import threading
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from camera_data import ClockSpotter, scene, with_face
from numpy.typing import NDArray

from damage.trial import Outcome, Scene, growth_per_hour, resident_bytes
from ptsr_edge.camera import Pipeline
from ptsr_edge.camera.runner import Backoff, FrameQueue, Stream, Streams
from ptsr_edge.camera.sources import TimedFrame
from ptsr_edge.core.errors import JobError
from ptsr_edge.runtimes.onnxruntime import OrtRunner
from ptsr_edge.vision.face_detection import Face, open_detector

FPS = 25
SPACED_S, CLOSE_S = (3.5, 8.0), (0.2, 1.5)
"""Of a stream, from the end of a fault to the beginning of the next, drawn evenly: so that each recovery can be judged; else so
that a short run has all kinds."""

DETECTIONS = (12, 4)
"""So many detections, of which there are two a second, are between two faults of the detector, likewise."""

RECOVERY_S = 2.0
"""After a fault, frames have to take no longer than `SLOW_S` or four times what they usually take."""

SLOW_S = 0.25
GROWTH_BYTES_PER_H = 16e6
"""What the process may grow by; a frame that leaked a second would be 200 MB."""


@dataclass(frozen=True)
class Born(TimedFrame):
    """A frame that knows when it was made, by `time.monotonic`."""

    born_s: float = 0.0


@dataclass
class Planted:
    """One fault: of which kind, from when to when."""

    kind: str
    begin_s: float
    end_s: float


@dataclass
class FailingSource:
    """A camera that fails now and then, in the ways that are named; live until its time is over.

    Attributes:
        given: frames that it gave.
        planted: faults that it made.
    """

    kinds: Sequence[str]
    image: NDArray[np.uint8]
    until_s: float
    draw: np.random.Generator
    spaced_s: tuple[float, float]
    live: bool = True
    damaged: int = 0
    given: int = 0
    planted: list[Planted] = field(default_factory=list)

    def check(self) -> None:
        """Nothing can be told beforehand."""

    def frames(self, stop: threading.Event) -> Generator[TimedFrame, None, None]:
        """Yields frames in real time; a fault breaks them off, changes one or leaves one out."""
        pts_ns, fault_s = int(self.draw.integers(0, 10**12)), self._next()
        while not stop.wait(1 / FPS):
            now = time.monotonic()
            if now >= self.until_s:
                self.live = False  # as a file that has ended: what waits in the queue is still taken
                return
            pts_ns += 1_000_000_000 // FPS
            image = self.image
            if self.kinds and now >= fault_s:
                kind = self.kinds[len(self.planted) % len(self.kinds)]
                pts_ns, image = self._fail(kind, pts_ns, stop)
                self.planted.append(Planted(kind, now, time.monotonic()))
                fault_s = self._next()
                if kind in BREAKS:
                    raise JobError(kind)
                if image is None:
                    continue
            self.given += 1
            yield Born(image, pts_ns, 1e-4, time.monotonic())

    def _next(self) -> float:
        return time.monotonic() + float(self.draw.uniform(*self.spaced_s))

    def _fail(self, kind: str, pts_ns: int, stop: threading.Event) -> tuple[int, Any]:
        if kind == "stall":
            stop.wait(1.0)
        elif kind == "damaged packet":
            self.damaged += 1
            return pts_ns, None
        elif kind == "tiny frame":
            return pts_ns, self.image[:8, :8].copy()
        elif kind == "noise":
            return pts_ns, self.draw.integers(0, 256, self.image.shape, dtype=np.uint8)
        elif kind == "other size":
            return pts_ns, np.ascontiguousarray(self.image[:, :-16])
        elif kind == "clock jumps ahead":
            return pts_ns + 10_000_000_000, self.image
        elif kind == "clock jumps back":
            return pts_ns - 5_000_000_000, self.image
        elif kind == "clock stands":
            return pts_ns - 1_000_000_000 // FPS, self.image
        return pts_ns, self.image


BREAKS = ("stall", "connection reset")
"""Faults after which the source has to be opened again."""

KINDS = {
    "steady": (),
    "breaking": BREAKS,
    "garbled": ("damaged packet", "tiny frame", "noise", "other size", "clock jumps ahead", "clock jumps back", "clock stands"),
    "unseen": (),
}  # fmt: skip
"""Faults of each stream's source; the detector fails for `unseen`, the runtime for all."""


@dataclass
class FailingDetector:
    """The real face detector, which for frames of one size hangs and fails in turn."""

    detector: Any
    shape: tuple[int, ...]
    every: int
    planted: list[Planted] = field(default_factory=list)
    calls: int = 0

    def detect(self, frame: NDArray[np.uint8]) -> list[Face]:
        """Hangs for a second, or fails, at each so-manieth detection."""
        if frame.shape == self.shape:
            self.calls += 1
            if self.calls % self.every == 0:
                kind = ("detector hangs", "detector fails")[self.calls // self.every % 2]
                begin_s = time.monotonic()
                if kind == "detector hangs":
                    time.sleep(1.0)
                self.planted.append(Planted(kind, begin_s, time.monotonic()))
                if kind == "detector fails":
                    raise RuntimeError("as a library does")
        return list(self.detector.detect(frame))


@contextmanager
def failing_runtime(every: int) -> Iterator[Callable[[], int]]:
    """Has each so-manieth inference fail in ONNX Runtime itself; yields how many did."""
    run, lock, count = OrtRunner.run, threading.Lock(), 0

    def fails(self: OrtRunner, flow: NDArray[np.float32]) -> Any:
        nonlocal count
        with lock:
            count += 1
            turn = count % every == 0
        return run(self, flow[..., :1] if turn else flow)

    OrtRunner.run = fails  # type: ignore[method-assign]
    try:
        yield lambda: count // every
    finally:
        OrtRunner.run = run  # type: ignore[method-assign]


class CountingFlushes:
    """A pipeline whose flushes that fail are counted by stream."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.push = pipeline.push
        self.failed: Counter[str] = Counter()
        self._flush = pipeline.flush

    def flush(self, stream: str) -> Sequence[Any]:
        """As `Pipeline.flush`."""
        try:
            return self._flush(stream)
        except JobError:
            self.failed[stream] += 1
            raise


@dataclass
class Seen:
    """What came out: per stream the time that each frame was born and how long it took, and memory over time.

    In arrays, 16 bytes a frame: what a soak notes itself would else be most of what grows.
    """

    born_s: dict[str, array[float]] = field(default_factory=lambda: defaultdict(lambda: array("d")))
    took_s: dict[str, array[float]] = field(default_factory=lambda: defaultdict(lambda: array("d")))
    times_s: list[float] = field(default_factory=list)
    resident: list[float] = field(default_factory=list)

    def output(self, name: str, frame: TimedFrame | None, _events: Sequence[Any]) -> None:
        """Takes what comes out, as `runner.Output`."""
        if isinstance(frame, Born):
            self.note(name, frame.born_s, time.monotonic() - frame.born_s)

    def note(self, name: str, born_s: float, took_s: float) -> None:
        """Notes when a frame of a stream was born and how long it took."""
        self.born_s[name].append(born_s)
        self.took_s[name].append(took_s)

    def tick(self) -> None:
        """Notes the memory, once a second."""
        if not self.times_s or time.monotonic() - self.times_s[-1] >= 1:
            self.times_s.append(time.monotonic())
            self.resident.append(float(resident_bytes()))

    def took(self, name: str, begin_s: float, end_s: float) -> list[float]:
        """Returns how long the frames of a stream took that were born in a time."""
        return [took for born, took in self.frames(name) if begin_s <= born < end_s]

    def frames(self, name: str) -> Iterator[tuple[float, float]]:
        """Yields when each frame of a stream was born and how long it took."""
        return zip(self.born_s[name], self.took_s[name], strict=True)


def run(scene_: Scene) -> Iterator[Outcome]:
    """Runs the four streams for the time that is asked for and judges what came of every fault."""
    effort, seen, base = scene_.effort, Seen(), with_face(scene(), 60, 40)
    until_s = time.monotonic() + effort.duration_s
    spaced_s, detections = (SPACED_S, DETECTIONS[0]) if effort.judges else (CLOSE_S, DETECTIONS[1])
    draws = scene_.draw.spawn(len(KINDS))
    sources = {
        name: FailingSource(kinds, np.ascontiguousarray(base[: 240 - 2 * place]), until_s, draw, spaced_s)
        for place, ((name, kinds), draw) in enumerate(zip(KINDS.items(), draws, strict=True))
    }
    detector = FailingDetector(open_detector("auto"), sources["unseen"].image.shape, detections)
    every = 1000 if effort.judges else 20
    streams = [
        Stream(name, name, source, FrameQueue(8, "oldest"), Backoff(0.05, 0.2, retries=1000))
        for name, source in sources.items()
    ]
    with failing_runtime(every) as failures, Pipeline(
        scene_.material / "pair1" / "ptsr", face=detector, spotter=ClockSpotter, tell_truncated=True
    ) as pipeline:  # fmt: skip
        counting = CountingFlushes(pipeline)
        runner = Streams(counting, streams, seen.output)
        fault = ""
        try:
            runner.run(tick=seen.tick)
        except Exception as error:  # noqa: BLE001 what ends a stream is what is looked for
            fault = f"{type(error).__name__}: {error}"
        counters, stats = runner.observe(), pipeline.stats()
    wrong = [f"{name}: {one.state}: {one.reason}" for name, one in counters.items() if one.state != "ended"]
    wrong += [f"the run raises {fault}"] if fault else []
    for name, source in sources.items():
        blind = sum(one.kind == "detector fails" for one in detector.planted) if name == "unseen" else 0
        wrong += losses(name, source, counters[name], stats[name], counting.failed[name], blind)
    yield Outcome(
        "frames of four streams", "answered, or lost and counted" if not wrong else "lost", wrong,
        tried=sum(source.given for source in sources.values()),
        figures={"dropped_share": sum(one.dropped for one in counters.values()) / max(1, sum(s.given for s in sources.values()))},
    )  # fmt: skip
    # A stream counts the failures of its detector with those of the runtime.
    found = sum(one.failed for one in stats.values()) - sum(
        one.kind == "detector fails" for one in detector.planted
    )
    yield Outcome("runtime error", "counted", [] if found == failures() else [f"{failures()} made, {found} counted"],
                  tried=failures())  # fmt: skip
    planted = {name: source.planted for name, source in sources.items()} | {"unseen": detector.planted}
    yield from recoveries(seen, planted, until_s, effort.judges)
    yield from neighbours(seen, planted, effort.judges)
    growth = growth_per_hour(seen.times_s, seen.resident) if len(seen.times_s) > 4 else 0.0
    grown = (
        [f"it grows by {growth / 1e6:.0f} MB an hour"]
        if effort.judges and growth > GROWTH_BYTES_PER_H
        else []
    )
    yield Outcome("memory", "grew" if grown else "flat" if effort.judges else "noted", grown,
                  figures={"rss_growth_mb_per_h": growth / 1e6, "rss_mb": max(seen.resident, default=0) / 1e6})  # fmt: skip


def losses(name: str, source: FailingSource, counted: Any, stats: Any, flushes: int, blind: int) -> list[str]:
    """Returns where a frame of a stream is in no count, or in two.

    `flushes` is how many of the failures were in a flush, which refuses no frame; `blind` how many were the detector's, which leave a
    frame unprocessed.
    """
    failed = stats.failed - flushes
    sums = {
        "given by the source, counted by the stream": (source.given, counted.frames),
        "counted by the stream, pushed + refused + dropped": (
            counted.frames, counted.pushed + counted.refused + counted.dropped),
        "refused, rejected + failed": (counted.refused, stats.rejected + failed),
        "pushed, processed + left out - failed": (
            counted.pushed, stats.frames + stats.duplicates + stats.backwards - (failed - blind)),
        "damaged packets": (source.damaged, counted.damaged),
        "rejected, tiny frames": (stats.rejected, sum(one.kind == "tiny frame" for one in source.planted)),
    }  # fmt: skip
    return [
        f"{name}: {what}: {first} and {second}" for what, (first, second) in sums.items() if first != second
    ]


def recoveries(
    seen: Seen, planted: dict[str, list[Planted]], until_s: float, judges: bool
) -> Iterator[Outcome]:
    """Judges each fault by its own stream: frames come again, and two seconds later as quickly as ever."""
    usual = np.quantile(seen.took_s["steady"] or [0.0], 0.95)
    tried: Counter[str] = Counter()
    wrong: dict[str, list[str]] = defaultdict(list)
    slowest: dict[str, float] = defaultdict(float)
    for name, faults in planted.items():
        for one in faults:
            tried[one.kind] += 1
            if one.end_s + RECOVERY_S + 0.5 > until_s:
                continue
            after = seen.took(name, one.end_s, until_s)
            if not after:
                wrong[one.kind].append(f"{name}: no frame came after it")
            settled = seen.took(name, one.end_s + RECOVERY_S, one.end_s + RECOVERY_S + 1)
            # Another fault of the stream may fall into that second.
            if any(
                other.begin_s < one.end_s + RECOVERY_S + 1 and other.end_s > one.end_s
                for other in faults
                if other is not one
            ):
                continue
            slowest[one.kind] = max(slowest[one.kind], *settled, 0.0)
            if judges and settled and float(np.median(settled)) > max(4 * usual, SLOW_S):
                wrong[one.kind].append(f"{name}: two seconds later a frame takes {np.median(settled):.2f} s")
    for kind, count in sorted(tried.items()):
        yield Outcome(kind, "recovered" if not wrong[kind] else "not recovered", wrong[kind], tried=count,
                      figures={"settled_s": slowest[kind]})  # fmt: skip


def neighbours(seen: Seen, planted: dict[str, list[Planted]], judges: bool) -> Iterator[Outcome]:
    """Judges the stream without faults while others have theirs: it goes on, and no slower than by the share of one stream."""
    inside: list[float] = []
    wrong = []
    longer = [one for faults in planted.values() for one in faults if one.end_s - one.begin_s >= 0.5]
    for one in longer:
        took = seen.took("steady", one.begin_s, one.end_s)
        inside += took
        if not took:
            wrong.append(f"it stands still during {one.kind}")
    outside = [
        took
        for born, took in seen.frames("steady")
        if not any(one.begin_s <= born < one.end_s for one in longer)
    ]
    with_, without = (float(np.quantile(values or [0.0], 0.95)) for values in (inside, outside))
    # A frame may wait for one frame of each other stream; the share of one stream is a part of that.
    if judges and with_ > without * (1 + 1 / (len(KINDS) - 1)) + 1 / FPS:
        wrong.append(f"its frames take {with_:.3f} s while another stream fails, else {without:.3f} s")
    yield Outcome("the steady stream while another stalls or hangs", "goes on" if not wrong else "held up", wrong,
                  tried=len(longer), figures={"p95_beside_faults_s": with_, "p95_else_s": without})  # fmt: skip
