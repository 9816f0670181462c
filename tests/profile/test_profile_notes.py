"""What is said beside a figure, from timings whose faults are known."""

from __future__ import annotations

from typing import Any

import numpy as np

from ptsr_edge.profile.results import timing_notes
from ptsr_edge.profile.worker import RawTiming


def timing(blocks: np.ndarray, cpu_share: float = 1.0, **more: Any) -> RawTiming:
    rows = [row.astype(np.int64) for row in blocks]
    return RawTiming(
        1.0, 1.0, 1.0, 1000, blocks_ns=rows, cpu_ns=[int(row.sum() * cpu_share) for row in rows], **more
    )


STEADY = np.full((40, 30), 1_000_000)


def test_a_steady_run_has_nothing_to_confess() -> None:
    notes = timing_notes(timing(STEADY), timing(STEADY), "cpu", 1)
    assert notes == [
        "p99 has 12 of 1200 samples beyond it",
        "peak memory was not measured: this system does not tell it",
        "stages were not timed",
        "throughput was not measured: all runs are synchronous",
    ]


def test_what_weakens_a_figure_is_said() -> None:
    rng = np.random.default_rng(0)
    few = timing(STEADY[:20, :5])
    assert "p99 has 1 of 100 samples beyond it: too few to quote it" in timing_notes(few, few, "cpu", 1)
    # Uniform in 1 +- .2: standard deviation .4 / sqrt(12) = 11.5 %.
    noisy = timing(1e6 * rng.uniform(0.8, 1.2, size=(40, 30)))
    assert any("varies by 11." in note for note in timing_notes(noisy, noisy, "cpu", 1))
    shared = timing(STEADY, cpu_share=0.8)
    assert any("a core for 80% of the timed time" in note for note in timing_notes(shared, shared, "cpu", 1))
    assert not any("a core for" in note for note in timing_notes(shared, shared, "trt", 1))
    # Twice as much wall time at .4 of a core is as much CPU time as half of it at .8.
    slow, quick = timing(2 * STEADY, cpu_share=0.4), timing(STEADY, cpu_share=0.8)
    assert any(
        "it is 1.00 [1.00, 1.00] times as fast" in note for note in timing_notes(quick, slow, "cpu", 1)
    )
    wandering = timing(STEADY * (1 + 0.1 * np.sin(np.arange(40) / 6))[:, None])
    assert any("interval is too narrow" in note for note in timing_notes(wandering, timing(STEADY), "cpu", 1))


def test_why_there_is_no_ceiling_and_no_flow() -> None:
    ceiling = {"gmacs_per_s": None, "shape": [1, 1, 1], "why": "not for this precision"}
    notes = timing_notes(timing(STEADY, ceiling=ceiling, stages={"flow_ms": None}), timing(STEADY), "cpu", 1)
    assert "there is no ceiling: not for this precision" in notes
    assert any(note.startswith("the stages flow and strain were not timed") for note in notes)
