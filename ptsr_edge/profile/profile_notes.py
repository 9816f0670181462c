"""What stands beside a figure: how far it can be trusted, and why another one is missing."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.profile.worker import RawTiming
from ptsr_edge.stats.latency import (
    CV_LIMIT,
    lag_one_correlation,
    latency_summary,
    ratio_interval,
    round_ratios,
)

CPU_SHARE_LIMIT = 0.97
"""A single-threaded process that had its core for less of the timed time was not alone."""

TAIL_SAMPLES = 10
"""Percentiles with fewer samples beyond them are called weak."""


def timing_notes(timing: RawTiming, baseline: RawTiming, target: str, threads: int) -> list[str]:
    """What a reader has to know of one variant's latency.

    Args:
        timing: of the variant.
        baseline: of the baseline; the same object for the baseline itself.
        target: what the variant runs on.
        threads: how many it may use.
    """
    summary = latency_summary(timing.samples_ns)
    beyond = math.floor(summary.n * 0.01)
    weak = "" if beyond >= TAIL_SAMPLES else ": too few to quote it"
    notes = [f"p99 has {beyond} of {summary.n} samples beyond it{weak}"]
    if summary.cv > CV_LIMIT:
        notes.append(
            f"the latency varies by {summary.cv:.1%} (coefficient of variation): above {CV_LIMIT:.1%} the "
            "mean and the tail say as much about the machine as about the model"
        )
    if threads == 1 and target != "trt" and timing.cpu_share < CPU_SHARE_LIMIT:
        notes.append(
            f"the process had a core for {timing.cpu_share:.0%} of the timed time: it was not alone on it"
        )
        if timing is not baseline:
            ratio = ratio_interval(_cpu_per_run(baseline), _cpu_per_run(timing), against="")
            notes.append(
                f"by CPU time instead of wall time it is {ratio.median:.2f} [{ratio.low:.2f}, "
                f"{ratio.high:.2f}] times as fast: on a busy machine, the fairer figure"
            )
    if timing is not baseline and timing.processes == 1:
        correlation = lag_one_correlation(round_ratios(baseline.blocks_ns, timing.blocks_ns))
        if correlation > 2 / math.sqrt(len(timing.blocks_ns)):
            notes.append(
                f"neighbouring rounds resemble each other (correlation {correlation:.2f}): the ratio's "
                "interval is too narrow"
            )
    if timing.predict_ms is not None:
        notes.append(
            f"a whole predict call takes {timing.predict_ms:.3g} ms at the median, normalising included"
        )
    if timing.peak_rss_bytes is None:
        notes.append("peak memory was not measured: this system does not tell it")
    elif timing.base_rss_bytes is not None:
        notes.append(
            f"{timing.base_rss_bytes / 1e6:.0f} MB of the peak memory are Python, numpy and the runtime"
        )
    if timing.ceiling is not None and timing.ceiling["why"]:
        notes.append(f"there is no ceiling: {timing.ceiling['why']}")
    if timing.stages is None:
        notes.append("stages were not timed")
    elif timing.stages["flow_ms"] is None:
        notes.append(
            "the stages flow and strain were not timed: no OpenCV, or the model takes ready-made flow"
        )
    if timing.throughput_per_s is None:
        notes.append("throughput was not measured: all runs are synchronous")
    if timing.energy_mj is None and timing.energy_why:
        notes.append(f"energy was not measured: {timing.energy_why}")
    return notes


def _cpu_per_run(timing: RawTiming) -> list[NDArray[np.float64]]:
    """Per round, (1,) mean CPU nanoseconds of a run."""
    return [np.array([cpu / len(b)]) for cpu, b in zip(timing.cpu_ns, timing.blocks_ns, strict=True)]
