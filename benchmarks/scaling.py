"""How a LOSO scales over processes, and how long a whole one takes: the command that people type, timed.

    python benchmarks/scaling.py --root DIR

Runs `evaluate --model ptsr-nano --protocol loso` for one seed with one process and with two, in turn, starting of
Python included. Wall time is what is claimed; on a machine that others use it says little, so that CPU time stands
beside it: processes that cost each other nothing take as much CPU time together as one alone. Exits with 1 where
a limit is missed or a run gives other figures.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

SPEED_UP = 1.7
LIMIT_S = 12 * 60


def run(jobs: int, options: argparse.Namespace, out: Path) -> tuple[float, float]:
    """Wall and CPU seconds of one LOSO; its record goes to `out`."""
    call = [sys.executable, "-m", "ptsr_edge.evaluate", "--data", "megc-flow", "--root", options.root,
            "--model", "ptsr-nano", "--protocol", "loso", "--device", "cpu", "--jobs", str(jobs),
            "--out", str(out)]  # fmt: skip
    if options.epochs:
        call += ["--epochs", str(options.epochs)]
    started = time.perf_counter()
    process = subprocess.Popen(call, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)  # with all that it has waited for itself
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"evaluate ended with exit code {process.returncode}")
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--root", required=True, help="folder of megc-flow")
    parser.add_argument("--rounds", type=int, default=1, help="how often each is run")
    parser.add_argument(
        "--epochs", type=int, help="fewer than the recipe's: quicker, and no claim on the whole"
    )
    options = parser.parse_args()
    times: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    records = []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(options.rounds):
            for jobs in (1, 2) if turn % 2 == 0 else (2, 1):
                out = Path(folder) / "record.json"
                times[jobs].append(run(jobs, options, out))
                records.append(json.loads(out.read_text()))
                wall, cpu = times[jobs][-1]
                load = os.getloadavg()[0]
                print(
                    f"{jobs} process(es): {wall:6.1f} s wall  {cpu:6.1f} s CPU  (load of the machine {load:.1f})"
                )
    walls = {jobs: median(wall for wall, _ in found) for jobs, found in times.items()}
    cpus = {jobs: median(cpu for _, cpu in found) for jobs, found in times.items()}
    speed_up = walls[1] / walls[2]
    same = all(record == records[0] for record in records)
    print(f"figures are the same: {same}")
    print(
        f"CPU time of one process over that of two: {cpus[1] / cpus[2]:.2f} (1: they cost each other nothing)"
    )
    print(f"two processes over one: {speed_up:.2f} times as fast (claimed: at least {SPEED_UP})")
    missed = not same or speed_up < SPEED_UP
    if not options.epochs:
        print(f"whole LOSO of one seed in two processes: {walls[2]:.0f} s (claimed: at most {LIMIT_S} s)")
        missed |= walls[2] > LIMIT_S
    sys.exit(int(missed))


if __name__ == "__main__":
    main()
