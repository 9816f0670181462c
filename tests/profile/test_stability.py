"""What is called unstable, from timings whose faults are known."""

from __future__ import annotations

import numpy as np

from ptsr_edge.profile.timing import why_unstable
from ptsr_edge.profile.worker import RawTiming
from ptsr_edge.stats.latency import Ratio


def timing(medians: list[int], share: float = 1.0) -> RawTiming:
    """Two rounds in each process, of constant samples."""
    blocks = [np.full(4, median) for median in medians for _ in range(2)]
    launches = [launch for launch in range(len(medians)) for _ in range(2)]
    return RawTiming(
        1.0, 1.0, 1.0, None, blocks_ns=blocks, launches=launches,
        cpu_ns=[int(block.sum() * share) for block in blocks],
    )  # fmt: skip


def ratio(low: float, high: float) -> Ratio:
    return Ratio(against="vit", median=1.0, low=low, high=high)


QUIET = {"vit": timing([1000, 1010]), "a": timing([500, 505])}


def test_a_quiet_run() -> None:
    assert why_unstable(QUIET, {"a": ratio(0.98, 1.02)}, "vit", 1) is None


def test_a_ratio_that_is_hardly_known() -> None:
    # ln(1.2 / .9) / 2 = .144.
    said = why_unstable(QUIET, {"b": ratio(0.98, 1.02), "a": ratio(0.9, 1.2)}, "vit", 1)
    assert said == "the ratio of a is known to 14% only"


def test_a_baseline_that_drifts() -> None:
    drifting = QUIET | {"vit": timing([1000, 1200, 1100])}
    assert (
        why_unstable(drifting, {}, "vit", 1) == "the baseline's median differs by 20% between its processes"
    )


def test_a_core_that_was_shared() -> None:
    shared = QUIET | {"a": timing([500, 500], share=0.6)}
    assert why_unstable(shared, {}, "vit", 1) == "a had a core for 60% of the timed time"
    # Several threads, or waiting for a GPU: the share says nothing.
    assert why_unstable(shared, {}, "vit", 2) is None
    assert why_unstable(shared, {}, "vit", 1, waiting=["a"]) is None
