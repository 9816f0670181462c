"""What it costs and saves that the budgets of a session share their weights in memory.

    python benchmarks/shared_weights.py --bundle out/small

Each target and precision of the bundle that runs here on a processor: the memory of a process that has answered at its
largest budget, and of one that has answered at all of them, apart and sharing; and the time of an inference sharing over
apart at each budget, one thread, interleaved in one process. Memory is what the process adds to a machine (`Pss`): its own,
and its part of mapped files. A second line leaves out what the runtime takes before any model is loaded.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from ptsr_edge import Session
from ptsr_edge.bundle import read_bundle
from ptsr_edge.runtimes.base import find_runtime

ROUNDS = 60
ANSWER_ALL = """
import pathlib, sys
import numpy as np
from ptsr_edge import Session

folder, target, precision, share, package, *rates = sys.argv[1:]

def taken():
    lines = pathlib.Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))

if target == "openvino":
    from ptsr_edge.runtimes.openvino import capabilities
    capabilities()
else:
    __import__(package)
print(taken())
kind = {"target": target, "precision": precision, "threads": 1, "share_weights": share == "True"}
session = Session.open(folder, budget=float(rates[0]), **kind)
flow = np.zeros((1, *session.bundle.model.input_shape), np.float32)
for rate in rates:
    session.switch(float(rate))
    session.infer(flow)
print(taken())
"""


def megabytes(
    folder: Path, target: str, precision: str, rates: list[float], *, share: bool
) -> tuple[float, float]:
    """Memory of a process before it loads a model, and after it has answered at some budgets."""
    call = [sys.executable, "-c", ANSWER_ALL, str(folder), target, precision, str(share)]
    call += [find_runtime(target).packages[0], *map(str, rates)]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    empty, full = (int(line) / 1024 for line in done.stdout.split())
    return empty, full


def slowdown(folder: Path, target: str, precision: str, rates: list[float]) -> list[float]:
    """Median over rounds of the time with shared weights over the time without, at each budget."""
    apart, sharing = (
        Session.open(folder, target=target, precision=precision, threads=1, share_weights=share)
        for share in (False, True)
    )
    flow = np.random.default_rng(0).normal(size=(1, *apart.bundle.model.input_shape)).astype(np.float32)
    found = []
    for rate in rates:
        ratios = []
        for _ in range(ROUNDS):
            taken = []
            for session in (apart, sharing):
                session.switch(rate)
                session.infer(flow)
                started = time.perf_counter()
                session.infer(flow)
                taken.append(time.perf_counter() - started)
            ratios.append(taken[1] / taken[0])
        found.append(float(np.median(ratios)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    folder = parser.parse_args().bundle
    variants = [one for one in read_bundle(folder).variants if find_runtime(one.target).is_threaded]
    for target, precision in dict.fromkeys((one.target, one.precision) for one in variants):
        rates = [one.keep_rate for one in variants if (one.target, one.precision) == (target, precision)]
        empty, single = megabytes(folder, target, precision, rates[:1], share=False)
        print(f"{target} {precision}: {single:.0f} MB with one budget, of which {empty:.0f} without a model")
        for share, word in ((False, "apart"), (True, "sharing")):
            full = megabytes(folder, target, precision, rates, share=share)[1]
            above = (full - empty) / (single - empty)
            print(
                f"  {len(rates)} budgets {word}: {full:.0f} MB, x {full / single:.2f}; models alone x {above:.2f}"
            )
        times = ", ".join(
            f"{rate:.0%} x {ratio:.2f}"
            for rate, ratio in zip(rates, slowdown(folder, target, precision, rates), strict=True)
        )
        print(f"  time of an inference, sharing over apart: {times}")


if __name__ == "__main__":
    main()
