"""A variant's row, from timings that were made up: what stands in it, and what is null."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bundle_data import write_pair

from ptsr_edge.bundle import read_bundle
from ptsr_edge.profile.results import measured, write_samples
from ptsr_edge.profile.timing import TimingConfig, ratios_to
from ptsr_edge.profile.variants import Entry
from ptsr_edge.profile.worker import RawTiming


def timing(median: int) -> RawTiming:
    blocks = [np.full(5, median) for _ in range(8)]
    ceiling = {"gmacs_per_s": 10.0, "shape": [1, 1, 1], "why": None}
    return RawTiming(
        1.0, 1.0, 1.0, None, blocks_ns=blocks, cpu_ns=[int(b.sum()) for b in blocks],
        launches=[0, 0, 0, 0, 1, 1, 1, 1], ceiling=ceiling,
    )  # fmt: skip


@pytest.fixture
def entries(tmp_path: Path) -> list[Entry]:
    """The baseline, the same as int8, and an int8 variant."""
    folders = write_pair(tmp_path)
    ptsr, vit = (read_bundle(folder) for folder in folders)
    small = {"precision": "int8"}
    return [
        Entry("vit", folders[1], vit, vit.variants[0], "vit"),
        Entry("vit8", folders[1], vit, vit.variants[0].model_copy(update=small), "vit"),
        Entry("a", folders[0], ptsr, ptsr.variants[1].model_copy(update=small), "ptsr"),
    ]


def test_ratios_against_the_baseline_and_against_its_own_precision(entries: list[Entry]) -> None:
    timings = {"vit": timing(8_000_000), "vit8": timing(4_000_000), "a": timing(2_000_000)}
    row = measured(entries[2], entries[:2], timings, {}, None, None, TimingConfig())
    assert row.ratio is not None
    assert (row.ratio.against, row.ratio.median) == ("vit", pytest.approx(4.0))
    assert row.ratio_same_precision is not None
    assert (row.ratio_same_precision.against, row.ratio_same_precision.median) == ("vit8", pytest.approx(2.0))
    assert ratios_to(timings, "vit", 0)["vit8"].per_process == [2.0, 2.0]
    # 6,168 multiply-adds (see test_profile) in 2 ms are 3.084e6 a second, of 10e9.
    assert row.ceiling is not None
    assert row.ceiling.share == pytest.approx(row.macs / 2e-3 / 10e9)
    for reference in entries[:2]:
        assert (
            measured(reference, entries[:2], timings, {}, None, None, TimingConfig()).ratio_same_precision
            is None
        )


@pytest.mark.parametrize(
    ("target", "said"),
    [("trt", "built, not run here: no GPU"), ("cpu", "could not be run here, so nothing was timed: no GPU")],
)
def test_an_engine_that_did_not_run_has_no_number(entries: list[Entry], target: str, said: str) -> None:
    only = entries[2]
    engine = Entry(
        only.id, only.folder, only.bundle, only.variant.model_copy(update={"target": target}), None
    )
    row = measured(
        engine, entries[:1], {"vit": timing(8_000_000)}, {"a": "no GPU"}, None, None, TimingConfig()
    )
    assert row.notes[0] == said
    figures = (
        row.latency_ms, row.ratio, row.ratio_same_precision, row.load_ms, row.first_ms, row.throughput_per_s,
        row.energy_mj, row.stages, row.ceiling, row.peak_rss_bytes, row.raw_samples,
    )  # fmt: skip
    assert figures == (None,) * len(figures)


def test_samples_know_their_process(tmp_path: Path) -> None:
    write_samples(tmp_path / "samples" / "a.npz", timing(7))
    with np.load(tmp_path / "samples" / "a.npz") as stored:
        assert stored["launch"].tolist() == [0] * 20 + [1] * 20
        assert stored["round"].tolist() == [number for number in range(8) for _ in range(5)]
