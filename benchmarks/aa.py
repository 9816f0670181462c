"""A variant against itself: how often the interval of its ratio holds 1.0, and how much two processes differ.

    python benchmarks/aa.py --bundle DIR [--tries 20] [--processes 5] [--duration-s 1] [--load 1]

Exit code 1 where fewer than 19 of 20 tries hold it; a ratio that is withheld holds nothing. The machine should have
nothing else to do but, with `--load`, so many planted busy processes a core.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from planted_load import busy

from ptsr_edge.bundle import find_variant, read_bundle
from ptsr_edge.profile.timing import TimingConfig, measure_interleaved, ratio_between
from ptsr_edge.profile.worker import ProfiledVariant
from ptsr_edge.stats.latency import Ratio


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--variant", help="Default: the smallest budget.")
    parser.add_argument("--tries", type=int, default=20)
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--duration-s", type=float, default=1.0)
    parser.add_argument("--load", type=float, default=0.0, help="Busy processes a core.")
    arguments = parser.parse_args()
    bundle = read_bundle(arguments.bundle)
    name = arguments.variant or min(bundle.variants, key=lambda variant: variant.tokens).id
    variant = find_variant(bundle, name)
    twins = [ProfiledVariant(place, arguments.bundle, bundle, variant) for place in ("a", "b")]
    held, spread = 0, []
    for number in range(arguments.tries):
        config = TimingConfig(
            duration_s=arguments.duration_s, processes=arguments.processes, seed=100 * number
        )
        with busy(arguments.load):
            timings = measure_interleaved(twins, config)
        ratio = ratio_between(timings["a"].blocks, timings["b"].blocks, "a", threads=1, seed=config.seed)
        if not isinstance(ratio, Ratio):
            print(f"{number + 1:3d}  withheld: {ratio.reason}", flush=True)
            continue
        holds = ratio.low <= 1.0 <= ratio.high
        held += holds
        spread.append(np.log(ratio.per_process))
        print(
            f"{number + 1:3d}  {ratio.median:.4f} [{ratio.low:.4f}, {ratio.high:.4f}]  {ratio.clock:4}  "
            f"{'holds' if holds else 'MISSES'}",
            flush=True,
        )
    deviation = float(np.concatenate(spread).std(ddof=1)) if spread else float("nan")
    print(
        f"{name}: {held} of {arguments.tries} hold 1.0; one pair of processes: sd {deviation:.2%} of the ratio"
    )
    return 0 if held >= 0.95 * arguments.tries else 1


if __name__ == "__main__":
    sys.exit(main())
