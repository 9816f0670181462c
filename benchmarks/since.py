"""The whole sample (two crops to an answer) of this checkout against an earlier one, in one interleaved run.

    git worktree add ../before COMMIT
    python benchmarks/since.py --before ../before --old-bundle DIR --bundle DIR [--budget 0.25] [--precision int8]

Each side runs its own code and its own bundle, on the same rendered crops and one thread, in fresh processes that are asked
in turn; a variant that both bundles have under one name is compared.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np

from ptsr_edge.bundle import read_bundle
from ptsr_edge.profile.timing import ratio_between
from ptsr_edge.profile.worker import Block
from ptsr_edge.stats.latency import Ratio

CLIPS = 8

CHILD = """
import json, sys, time
import cv2
from ptsr_edge import Session
from ptsr_edge.data.synthetic_clips import render_clip
folder, budget, target, precision, clips = sys.argv[1:]
cv2.setNumThreads(1)
session = Session.open(folder, budget=float(budget), target=target, precision=precision, threads=1)
side = session.bundle.preprocess.image_size
crops = [render_clip(0, clip, side)[:2] for clip in range(int(clips))]
for pair in crops:
    session.predict_frames(*pair)
print("ready", flush=True)
for line in sys.stdin:
    told = []
    for place in range(int(line)):
        wall, cpu = time.perf_counter_ns(), time.process_time_ns()
        session.predict_frames(*crops[place % len(crops)])
        told.append((time.perf_counter_ns() - wall, time.process_time_ns() - cpu))
    print(json.dumps(told), flush=True)
"""


class Side:
    """One checkout at work: a process that answers how long each of some whole samples took."""

    def __init__(self, checkout: Path, bundle: Path, budget: float, target: str, precision: str) -> None:
        call = [sys.executable, "-c", CHILD, str(bundle), str(budget), target, precision, str(CLIPS)]
        around = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
        # From its folder: Python looks there before anywhere else.
        self._process = subprocess.Popen(
            call, cwd=checkout, env=around, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a side ended; its message is above")
        return line

    def block(self, runs: int, launch: int) -> Block:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{runs}\n")
        self._process.stdin.flush()
        wall, cpu = np.array(json.loads(self._line()), dtype=np.int64).T
        return Block(wall_ns=wall, cpu_ns=cpu, cores=os.cpu_count() or 1, launch=launch)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, required=True, help="A checkout of the earlier commit.")
    parser.add_argument("--old-bundle", type=Path, required=True, help="Exported by it.")
    parser.add_argument("--bundle", type=Path, required=True, help="Exported by this checkout.")
    parser.add_argument("--budget", type=float, default=0.25)
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=12, help="Of each pair of processes.")
    arguments = parser.parse_args()
    here = Path(__file__).resolve().parents[1]
    both = [
        {
            variant.target
            for variant in read_bundle(folder).variants
            if variant.precision == arguments.precision
        }
        for folder in (arguments.old_bundle, arguments.bundle)
    ]
    order = random.Random(0)
    for target in sorted(both[0] & both[1]):
        blocks: dict[str, list[Block]] = {"before": [], "now": []}
        for launch in range(arguments.processes):
            starts = [("before", arguments.before, arguments.old_bundle), ("now", here, arguments.bundle)]
            order.shuffle(starts)
            sides = {
                name: Side(
                    checkout.resolve(), bundle.resolve(), arguments.budget, target, arguments.precision
                )
                for name, checkout, bundle in starts
            }
            for _ in range(arguments.rounds):
                for name in order.sample(list(sides), k=2):
                    blocks[name].append(sides[name].block(2 * CLIPS, launch))
            for side in sides.values():
                side.close()
        ratio = ratio_between(blocks["before"], blocks["now"], "before", threads=1)
        times = {
            name: np.median(np.concatenate([block.cpu_ns for block in found])) / 1e6
            for name, found in blocks.items()
        }
        told = (
            f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}] times as fast by {ratio.clock} time"
            if isinstance(ratio, Ratio)
            else ratio.reason
        )
        print(
            f"whole sample, {target} {arguments.precision} at {arguments.budget:.0%}: {times['before']:.2f} ms before, "
            f"{times['now']:.2f} ms now (CPU time): {told}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
