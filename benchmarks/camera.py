"""The camera on real face video: how many times real time it is, what a push takes, and whether memory grows.

    python benchmarks/camera.py --bundle DIR                       one stream, and four together
    python benchmarks/camera.py --bundle DIR --soak --minutes 30   half an hour of frames

Frames are decoded from the clip in each stream's own thread, within the time that is measured, and looped with pts that
go on. The clip is fetched by `python tests/support/face_clips.py`. Exit code 1 where a claim is missed. The machine should have
nothing else to do: CPU times are printed beside wall times to show whether it had.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from face_clips import FACE, clip

from ptsr_edge.camera.pipeline import Pipeline
from ptsr_edge.core.files import write_json
from ptsr_edge.core.system import describe_environment

FRAME_NS = 33_333_333
DEADLINE_MS = 33.0


def looped(path: Path, count: int) -> Iterator[tuple[Any, int]]:
    """`count` frames of a clip, again and again, 30 a second."""
    video = cv2.VideoCapture(str(path))
    try:
        for number in range(count):
            there, frame = video.read()
            if not there:
                video.release()
                video = cv2.VideoCapture(str(path))
                there, frame = video.read()
            yield frame, number * FRAME_NS
    finally:
        video.release()


class Run:
    """A number of streams, each in a thread of its own."""

    def __init__(self, pipeline: Pipeline, path: Path, streams: int, count: int, paced: bool) -> None:
        self.pipeline, self.path, self.count, self.paced = pipeline, path, count, paced
        self.wall_ms: list[list[float]] = [[] for _ in range(streams)]
        self.cpu_ms: list[list[float]] = [[] for _ in range(streams)]
        self.events = [0] * streams

    def go(self) -> dict[str, Any]:
        """Runs all streams to their ends; what was measured."""
        streams = len(self.events)
        start = threading.Barrier(streams + 1)
        workers = [threading.Thread(target=self._stream, args=(place, start)) for place in range(streams)]
        for worker in workers:
            worker.start()
        start.wait()
        began, cpu_began = time.perf_counter(), time.process_time()
        for worker in workers:
            worker.join()
        took, cpu = time.perf_counter() - began, time.process_time() - cpu_began
        stats = self.pipeline.stats()
        stages: dict[str, float] = {}
        for place in range(streams):
            for stage, spent in stats[self._name(place)].stages.items():
                stages[stage] = stages.get(stage, 0.0) + spent.total_ms / (streams * self.count)
            self.pipeline.close(self._name(place))
        seconds = self.count * FRAME_NS / 1e9
        return {
            "streams": streams,
            "paced": self.paced,
            "frames_each": self.count,
            "wall_s": took,
            "cpu_s": cpu,
            "times_real_time": seconds / took,
            "cores_busy_at_real_time": cpu / seconds,
            "push_ms": percentiles(self.wall_ms),
            "push_cpu_ms": percentiles(self.cpu_ms),
            "stage_ms_per_frame": stages,
            "events": sum(self.events),
        }

    def _name(self, place: int) -> str:
        return f"{'paced' if self.paced else 'free'} {place} of {len(self.events)}"

    def _stream(self, place: int, start: threading.Barrier) -> None:
        start.wait()
        began = time.perf_counter() + place * FRAME_NS / 1e9 / len(self.events)
        for frame, pts in looped(self.path, self.count):
            if self.paced:
                time.sleep(max(0.0, began + pts / 1e9 - time.perf_counter()))
            wall, cpu = time.perf_counter(), time.thread_time()
            self.events[place] += len(self.pipeline.push(frame, pts, self._name(place)))
            self.wall_ms[place].append((time.perf_counter() - wall) * 1e3)
            self.cpu_ms[place].append((time.thread_time() - cpu) * 1e3)


def percentiles(samples: list[list[float]]) -> dict[str, float]:
    values = np.concatenate([np.asarray(part) for part in samples])
    shares = dict(p50=0.5, p95=0.95, p99=0.99, max=1.0)
    return {name: float(np.quantile(values, share)) for name, share in shares.items()} | {"n": len(values)}


def measure(arguments: argparse.Namespace, path: Path) -> tuple[dict[str, Any], bool]:
    count = round(arguments.seconds * 30)
    runs, claims = [], []
    for streams in arguments.streams:
        for paced in (False, True):
            with open_pipeline(arguments) as pipeline:
                run = Run(pipeline, path, streams, count, paced).go()
            runs.append(run)
            push, cpu = run["push_ms"], run["push_cpu_ms"]
            print(
                f"{streams} stream{'s' * (streams > 1)}, {'at 30 frames a second' if paced else 'as fast as it goes'}: "
                f"{run['times_real_time']:.2f} x real time (CPU alone: {1 / run['cores_busy_at_real_time']:.2f} x on one "
                f"core); push p50 {push['p50']:.2f}, p95 {push['p95']:.2f}, p99 {push['p99']:.2f} ms, CPU p50 "
                f"{cpu['p50']:.2f}, p95 {cpu['p95']:.2f} ms; {run['events']} events",
                flush=True,
            )
            print(
                "    ms a frame: " + ", ".join(f"{k} {v:.2f}" for k, v in run["stage_ms_per_frame"].items())
            )
            if paced:
                claims.append((f"{streams} streams: p95 of a push under 33 ms", push["p95"] < DEADLINE_MS))
            else:
                wanted = 3.0 if streams == 1 else 1.0
                claims.append(
                    (f"{streams} streams: at least {wanted:g} x real time", run["times_real_time"] >= wanted)
                )
    for claim, holds in claims:
        print(f"{'holds ' if holds else 'MISSES'}  {claim}")
    return {"runs": runs, "claims": dict(claims)}, all(holds for _, holds in claims)


def soak(arguments: argparse.Namespace, path: Path) -> tuple[dict[str, Any], bool]:
    """Frames for so many minutes of the source, from four streams in turn, each of which ends and begins anew."""
    frames = [frame.copy() for frame, _ in looped(path, 72)]
    count = round(arguments.minutes * 60 * 30)
    before = (entries("/proc/self/task"), entries("/proc/self/fd"))
    rss: list[tuple[float, float]] = []
    events, began = 0, time.perf_counter()
    with open_pipeline(arguments) as pipeline:
        for number in range(count):
            if number % 18_000 == 17_999:
                events += len(pipeline.close("soak"))
            events += len(pipeline.push(frames[number % 72], number * FRAME_NS, "soak"))
            if number % 300 == 299:
                rss.append((number / 1800, rss_mb()))
    took = time.perf_counter() - began
    del pipeline
    after = (entries("/proc/self/task"), entries("/proc/self/fd"))
    first = max(value for minute, value in rss if minute <= 1.0)
    growth = max(value for minute, value in rss if minute > 1.0) / first - 1
    speed = count * FRAME_NS / 1e9 / took
    print(
        f"{arguments.minutes:g} minutes of frames in {took / 60:.1f} minutes ({speed:.2f} x real time), {events} events; "
        f"RSS {first:.1f} MB in the first minute, at most {growth:+.2%} after it; threads {before[0]} -> {after[0]}, "
        f"open files {before[1]} -> {after[1]}"
    )
    claims = {
        "at least 4 x real time": speed >= 4,
        "memory grows by less than 2 % after the first minute": growth < 0.02,
        "no thread is left": after[0] <= before[0] + pool_threads(),
        "no open file is left": after[1] <= before[1],
    }
    for claim, holds in claims.items():
        print(f"{'holds ' if holds else 'MISSES'}  {claim}")
    record = {
        "minutes": arguments.minutes, "wall_s": took, "times_real_time": speed, "events": events,
        "rss_mb": [[round(minute, 2), round(value, 2)] for minute, value in rss], "growth": growth,
        "threads": before[0:1] + after[0:1], "open_files": before[1:] + after[1:],
    }  # fmt: skip
    return {"soak": record, "claims": claims}, all(claims.values())


def entries(folder: str) -> int:
    return sum(1 for _ in Path(folder).iterdir())


def pool_threads() -> int:
    """Threads that OpenCV keeps for itself from its first parallel call to the end of the process."""
    return max(0, cv2.getNumThreads() - 1)


def rss_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def open_pipeline(arguments: argparse.Namespace) -> Pipeline:
    return Pipeline(
        arguments.bundle, budget=arguments.budget, deadline_ms=DEADLINE_MS, face=arguments.face,
        precision=arguments.precision, threads=1,
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--precision", default="int8")
    parser.add_argument(
        "--budget", default="auto", type=lambda text: float(text) if text[0].isdigit() else text
    )
    parser.add_argument("--face", default="auto")
    parser.add_argument("--video", type=Path, default=clip(FACE))
    parser.add_argument("--seconds", type=float, default=60.0, help="Of video, each stream.")
    parser.add_argument(
        "--streams", type=lambda text: [int(part) for part in text.split(",")], default=[1, 4]
    )
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--cv-threads", type=int, default=1)
    parser.add_argument("--soak", action="store_true")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--out", type=Path, help="A JSON file for what was measured.")
    arguments = parser.parse_args()
    if arguments.video is None:
        parser.error(
            "the clip is not there: python tests/support/face_clips.py fetches it, or name one with --video"
        )
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    cv2.setNumThreads(arguments.cv_threads)
    began = os.getloadavg()[0]
    found, holds = (soak if arguments.soak else measure)(arguments, arguments.video)
    print(f"load average {began:.1f} before, {os.getloadavg()[0]:.1f} after")
    if arguments.out is not None:
        words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv]
        said = shlex.join(["python", *words])
        head = {"command": said, "video": arguments.video.name, "cores": arguments.cores}
        load = {"load_average": [began, os.getloadavg()[0]]}
        write_json(arguments.out, head | {"environment": describe_environment()} | load | found)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
