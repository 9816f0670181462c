"""The same profile in quiet and beside planted load: each ratio's interval must overlap the quiet one's, or be withheld.

    python benchmarks/planted_load.py --bundle DIR [--baseline DIR] [--loads 0.5,1,2,4] [--processes 5]

Busy processes of two kinds are planted, so many for each core: `arithmetic` stays in its own caches, `memory` streams
through 32 MB and so takes the others' as well. The machine is profiled in quiet before and after; what lies between is
held against both runs together, since a machine drifts in quiet too. Prints a table; exit code 1 where an interval lies
apart. What a clock on the wall would have said stands beside it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ptsr_edge.profile.profiler import profile_bundles
from ptsr_edge.profile.schema import Measured, Profile
from ptsr_edge.profile.timing import TimingConfig
from ptsr_edge.stats.latency import Ratio

BUSY = {
    "arithmetic": "import numpy as np\na = np.eye(64)\nwhile True: a = a @ a",
    "memory": "import numpy as np\na = np.ones((1024, 4096))\nwhile True: a *= 1.0000001",
}


@contextmanager
def busy(load: float, kind: str = "arithmetic") -> Iterator[None]:
    """Runs `load` busy processes for each core, at least one where it is above 0."""
    count = 0 if load == 0 else max(1, round(load * len(os.sched_getaffinity(0))))
    one_thread = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    planted = [subprocess.Popen([sys.executable, "-c", BUSY[kind]], env=one_thread) for _ in range(count)]
    try:
        yield
    finally:
        for process in planted:
            process.kill()
            process.wait()


def by_the_wall(folder: Path, profile: Profile, row: Measured) -> float:
    """The ratio of medians over all samples: what a plain benchmark would print."""
    (base,) = (one for one in profile.variants if one.id == profile.baseline)
    medians = []
    for one in (base, row):
        with np.load(folder / str(one.raw_samples)) as stored:
            medians.append(float(np.median(stored["samples_ns"])))
    return medians[0] / medians[1]


def shown(ratio: Ratio | None) -> str:
    return (
        "withheld"
        if ratio is None
        else f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}] {ratio.clock}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--baseline", type=Path, help="Default: BUNDLE-baseline, else it is exported.")
    parser.add_argument("--loads", default="0.5,1,2,4", help="Busy processes a core.")
    parser.add_argument("--kinds", default=",".join(BUSY))
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--duration-s", type=float, default=2.0)
    arguments = parser.parse_args()
    timing = TimingConfig(duration_s=arguments.duration_s, processes=arguments.processes)
    conditions = [
        (float(load), kind) for kind in arguments.kinds.split(",") for load in arguments.loads.split(",")
    ]
    found: dict[tuple[float, str, str], dict[str, tuple[Ratio | None, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        for number, (load, kind) in enumerate([(0.0, "arithmetic"), *conditions, (0.0, "arithmetic")]):
            out = Path(name) / str(number)
            with busy(load, kind):
                profile = profile_bundles(
                    [arguments.bundle], out=out, baseline=arguments.baseline, timing=timing
                )
            when = ("before", "after")[number > 0] if load == 0 else kind
            found[load, kind, when] = {
                row.id: (row.ratio, by_the_wall(out, profile, row))
                for row in profile.variants
                if row.id != profile.baseline
            }
    first, *between, last = found
    apart = 0
    for name in found[first]:
        quiet = [ratio for key in (first, last) if (ratio := found[key][name][0]) is not None]
        if not quiet:
            print(f"{name}: no ratio in quiet: is the machine at rest?")
            apart += 1
            continue
        low, high = min(ratio.low for ratio in quiet), max(ratio.high for ratio in quiet)
        print(f"\n{name}\n| beside | ratio | by the wall's clock alone | |\n|---|---|---:|---|")
        for key in (first, *between, last):
            ratio, wall = found[key][name]
            is_quiet = key in (first, last)
            overlaps = ratio is None or (ratio.low <= high and low <= ratio.high)
            apart += not overlaps
            beside = f"nothing, {key[2]}" if is_quiet else f"{key[0]:g} a core, {key[1]}"
            verdict = "" if is_quiet else "withheld" if ratio is None else "overlaps" if overlaps else "APART"
            print(f"| {beside} | {shown(ratio)} | {wall:.2f} | {verdict} |", flush=True)
    return 1 if apart else 0


if __name__ == "__main__":
    sys.exit(main())
