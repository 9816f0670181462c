"""The whole sample (two crops to an answer) of this checkout against an earlier one, in one interleaved run.

    git worktree add ../before COMMIT
    python benchmarks/since.py --before ../before --old-bundle DIR --bundle DIR [--budget 0.25] [--precision int8]

Each side runs its own code on its own bundle, in measuring processes of its own that are asked in turn; each target that both
bundles have is compared. The earlier checkout has to know the requests of today's measuring process.
"""

from __future__ import annotations

import argparse
import random
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from ptsr_edge.bundle import read_bundle
from ptsr_edge.profile.timing import ratio_between
from ptsr_edge.profile.worker import PROCESS, ProfiledVariant, Worker
from ptsr_edge.session import choose_variant
from ptsr_edge.stats.latency import Block, Ratio

HERE = Path(__file__).resolve().parents[1]


class Side(Worker):
    """A measuring process that runs the code of a checkout."""

    def __init__(self, checkout: Path, variant: ProfiledVariant) -> None:
        super().__init__(variant)
        # From its folder: `-m` looks there before anywhere else.
        self._command = ["env", "-C", str(checkout), f"PYTHONPATH={checkout}", *PROCESS]


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
    checkouts = {"before": arguments.before.resolve(), "now": HERE}
    folders = {"before": arguments.old_bundle.resolve(), "now": arguments.bundle.resolve()}
    bundles = {name: read_bundle(folder) for name, folder in folders.items()}
    targets = [
        {variant.target for variant in bundle.variants if variant.precision == arguments.precision}
        for bundle in bundles.values()
    ]
    order = random.Random(0)
    for target in sorted(targets[0] & targets[1]):
        variants = {
            name: choose_variant(bundle, folders[name], arguments.budget, target, arguments.precision)
            for name, bundle in bundles.items()
        }
        blocks: dict[str, list[Block]] = {name: [] for name in bundles}
        for launch in range(arguments.processes):
            with ExitStack() as stack:
                sides = {
                    name: stack.enter_context(
                        Side(
                            checkouts[name],
                            ProfiledVariant(name, folders[name], bundles[name], variants[name]),
                        )
                    )
                    for name in order.sample(list(bundles), k=2)
                }
                for side in sides.values():
                    side.load()
                for _ in range(arguments.rounds):
                    for name in order.sample(list(sides), k=2):
                        timed = sides[name].block(duration_s=0.1, runs=8, call="sample")
                        blocks[name].append(replace(timed, launch=launch))
        ratio = ratio_between(blocks["before"], blocks["now"], "before", threads=1)
        times = {
            name: np.median(np.concatenate([block.cpu_ns for block in timed])) / 1e6
            for name, timed in blocks.items()
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
