"""Whether a run can be trusted: what makes it unstable, in words."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np

from ptsr_edge.profile.worker import RawTiming
from ptsr_edge.stats.latency import Ratio

INTERVAL_LIMIT = 0.05
"""Half-width of a ratio's interval, relative to the ratio, above which a change of 10 % would go unseen."""

DRIFT_LIMIT = 0.10
"""How far the baseline's median may differ between its processes."""

CPU_SHARE_LIMIT = 0.9
"""A single-threaded process that had its core for less of the timed time was disturbed."""


def why_unstable(
    timings: Mapping[str, RawTiming],
    ratios: Mapping[str, Ratio],
    baseline: str,
    threads: int,
    waiting: Collection[str] = (),
) -> str | None:
    """What is wrong with a run, worst first of each kind, in one line; None where nothing is.

    Args:
        timings: of all variants that ran, by id.
        ratios: against the baseline, by id; of the variants that have one.
        baseline: the id that all ratios are against.
        threads: how many each artifact may use.
        waiting: ids of variants that wait for a GPU, and are not judged by their share of a core.
    """
    faults = []
    widths = {name: math.log(ratio.high / ratio.low) / 2 for name, ratio in ratios.items()}
    if widths and max(widths.values()) > INTERVAL_LIMIT:
        worst = max(widths, key=lambda name: widths[name])
        faults.append(f"the ratio of {worst} is known to {widths[worst]:.0%} only")
    base = timings[baseline]
    if base.processes > 1:
        launches = np.array(base.launches)
        medians = [
            float(
                np.median(np.concatenate([base.blocks_ns[place] for place in np.flatnonzero(launches == n)]))
            )
            for n in np.unique(launches)
        ]
        drift = max(medians) / min(medians) - 1
        if drift > DRIFT_LIMIT:
            faults.append(f"the baseline's median differs by {drift:.0%} between its processes")
    judged = timings.keys() - waiting if threads == 1 else ()
    shares = {name: timings[name].cpu_share for name in judged}
    disturbed = [name for name, share in shares.items() if share < CPU_SHARE_LIMIT]
    if disturbed:
        worst = min(disturbed, key=lambda name: shares[name])
        faults.append(f"{worst} had a core for {shares[worst]:.0%} of the timed time")
    return "; ".join(faults) or None
