"""Block timings of two variants as a machine might give them. Test material."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ptsr_edge.stats.latency import Ratio, ratio_interval

Blocks = list[npt.NDArray[np.float64]]


def simulated(
    seed: int, speedup: float, rounds: int = 60, runs: int = 8, noise: float = 0.02
) -> tuple[Blocks, Blocks]:
    """Two interleaved variants of 10 ms and 10 / speedup ms on a machine with a life of its own.

    The clock drifts by 10 % over the run and wanders (a random walk), samples of one block are
    auto-correlated (AR(1), .7), and one run in a hundred is held up by a neighbour.
    """
    rng = np.random.default_rng(seed)
    drift = 1 + 0.1 * np.linspace(0, 1, rounds) + np.cumsum(rng.normal(0, 0.003, rounds))
    pair: tuple[Blocks, Blocks] = ([], [])
    for clock in drift:
        for blocks, base in zip(pair, (10e6, 10e6 / speedup), strict=True):
            level = rng.normal(0, noise)
            samples = np.empty(runs)
            for run in range(runs):
                level = 0.7 * level + np.sqrt(1 - 0.7**2) * rng.normal(0, noise)
                samples[run] = base * clock * (1 + level) * (3.0 if rng.random() < 0.01 else 1.0)
            blocks.append(samples)
    return pair


def launched(
    seed: int, speedup: float, processes: int = 5, spread: float = 0.01
) -> tuple[Blocks, Blocks, list[int]]:
    """As `simulated`, in several starts of both processes, each of which is faster or slower for good.

    `spread` is the standard deviation of a process: an assumption. How large it is on a machine is what
    `python benchmarks/aa.py` prints; on a busy one it is several times as large.
    """
    rng = np.random.default_rng(seed)
    pair: tuple[Blocks, Blocks] = ([], [])
    launches: list[int] = []
    for launch in range(processes):
        blocks = simulated(1000 * seed + launch, speedup, rounds=4)
        for side, found in zip(pair, blocks, strict=True):
            luck = rng.normal(1, spread)
            side.extend(block * luck for block in found)
        launches += [launch] * 4
    return *pair, launches


def ratio(seed: int, slowdown: float) -> Ratio:
    """Of a variant 1.3 times as fast as its baseline, and then slowed down, in five starts of both."""
    baseline, variant, launches = launched(seed, 1.3 / slowdown)
    return ratio_interval(baseline, variant, against="vit", launches=launches, resamples=500)
