"""What it costs and saves that the budgets of a session share their weights in memory (ONNX Runtime).

    python benchmarks/shared_weights.py --bundle out/small-cpu

Each precision of the bundle's target `cpu`: private memory of a process that has loaded all budgets, and the
time of an inference at the smallest and the largest one, interleaved in one process, one thread.
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

ROUNDS = 60
LOAD_ALL = """
import pathlib, sys
from ptsr_edge import Session
from ptsr_edge.bundle import read_bundle

folder, precision, share = sys.argv[1:]
session = Session.open(folder, target="cpu", precision=precision, threads=1, share_weights=share == "True")
for variant in read_bundle(pathlib.Path(folder)).variants:
    if (variant.target, variant.precision) == ("cpu", precision):
        session.load(variant.keep_rate)
lines = pathlib.Path("/proc/self/smaps_rollup").read_text().splitlines()
print(next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")))
"""


def private_mb(folder: Path, precision: str, share: bool) -> float:
    """Anonymous memory of a process that holds all budgets: mapped files are not in it."""
    call = [sys.executable, "-c", LOAD_ALL, str(folder), precision, str(share)]
    return int(subprocess.run(call, capture_output=True, text=True, check=True).stdout) / 1024


def slowdown(folder: Path, precision: str, budget: float) -> float:
    """Median over rounds of the time with shared weights over the time without."""
    sessions = [
        Session.open(folder, target="cpu", precision=precision, budget=budget, threads=1, share_weights=share)
        for share in (False, True)
    ]
    size = sessions[0].bundle.preprocess.image_size
    flow = np.random.default_rng(0).normal(size=(1, 3, size, size)).astype(np.float32)
    ratios = []
    for _ in range(ROUNDS):
        taken = []
        for session in sessions:
            session.infer(flow)
            started = time.perf_counter()
            session.infer(flow)
            taken.append(time.perf_counter() - started)
        ratios.append(taken[1] / taken[0])
    return float(np.median(ratios))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    folder = parser.parse_args().bundle
    variants = [variant for variant in read_bundle(folder).variants if variant.target == "cpu"]
    for precision in dict.fromkeys(variant.precision for variant in variants):
        rates = [variant.keep_rate for variant in variants if variant.precision == precision]
        own, shared = (private_mb(folder, precision, share) for share in (False, True))
        print(f"{precision}, {len(rates)} budgets: {own:.0f} MB private, {shared:.0f} MB with shared weights")
        for budget in (max(rates), min(rates)):
            print(f"  time of an inference at {budget:.0%}: x {slowdown(folder, precision, budget):.2f}")


if __name__ == "__main__":
    main()
