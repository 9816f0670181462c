"""Pictures of latency and multiply-adds."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from report_data import make_profile, without, write_profile

from ptsr_edge.report.comparison import Comparison, compare, quantity, read_sources, three_digits
from ptsr_edge.report.cost_charts import MOST_OPERATORS, MOST_ROWS, latency, macs
from ptsr_edge.report.recommendation import decide


def compared(folder: Path) -> Comparison:
    return compare(read_sources([folder]))


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0"), (999, "999"), (1234, "1.23 k"), (999_600, "1 M"), (540_000_000, "540 M"), (1.234e9, "1.23 G")],
)
def test_quantity(count: float, expected: str) -> None:
    assert quantity(count) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0536, "0.0536"), (0.79, "0.790"), (3.1, "3.10"), (9.996, "10.0"), (99.96, "100"), (1234.5, "1,234")],
)
def test_three_digits(value: float, expected: str) -> None:
    assert three_digits(value) == expected


def test_latency_shows_the_raw_samples(tmp_path: Path) -> None:
    make_profile(tmp_path / "one", samples=400, kept=False)
    comparison = compared(tmp_path / "one")
    picture = latency(comparison, decide(comparison))
    assert picture.wide is not None
    assert "All raw samples, 400 a variant" in picture.caption
    for row in comparison.rows:
        stored = np.load(tmp_path / "one" / (row.measured.raw_samples or ""))["samples_ns"] / 1e6
        p50, p99 = np.percentile(stored, (50, 99))
        tip = re.search(rf"<title>{row.name}: p50 ([\d.]+) ms, p90 [\d.]+ ms, p99 ([\d.]+) ms", picture.wide)
        assert tip is not None
        assert [float(part) for part in tip.groups()] == pytest.approx([p50, p99], rel=5e-3)


def test_latency_without_samples_says_so(tmp_path: Path) -> None:
    make_profile(tmp_path / "one", raw="none", kept=False)
    comparison = compared(tmp_path / "one")
    picture = latency(comparison, decide(comparison))
    assert picture.wide is None
    assert picture.note == "Not drawn: no raw samples were recorded."


def test_latency_names_the_one_that_is_missing(tmp_path: Path) -> None:
    profile = make_profile(tmp_path / "one", samples=100, kept=False)
    (tmp_path / "one" / (profile.variants[1].raw_samples or "")).unlink()
    comparison = compared(tmp_path / "one")
    picture = latency(comparison, decide(comparison))
    assert "Not drawn: 100 % (samples/ptsr-k1-fp32-cpu.npz is not beside profile.json)" in picture.caption


def test_latency_of_many_keeps_the_verdict_and_its_baseline(tmp_path: Path) -> None:
    rates = tuple(place / 20 for place in range(1, 21))
    made = {rate: 0.88 - 0.05 * (1 - rate) for rate in rates}
    make_profile(tmp_path / "one", rates=rates, uars=made, samples=60, kept=False)
    comparison = compared(tmp_path / "one")
    verdict = decide(comparison)
    picture = latency(comparison, verdict)
    assert f"{len(comparison.rows) - MOST_ROWS} slower ones are left out" in picture.caption
    assert f"{verdict.name}: p50" in picture.words
    assert "full ViT: p50" in picture.words


def test_bars_are_as_long_as_their_counts(tmp_path: Path) -> None:
    make_profile(tmp_path / "one", samples=50, kept=False)
    comparison = compared(tmp_path / "one")
    picture = macs(comparison, decide(comparison))
    assert picture.wide is not None
    # Lengths are read back from the drawn paths, counts from the profile.
    bars = re.findall(
        r"<title>([^,]+), (\w+): [^<]*</title>\s*<path d=\"M ([\d.]+) [\d.]+\s+L ([\d.]+) ", picture.wide
    )
    lengths = {(name, operator): float(right) - float(left) for name, operator, left, right in bars}
    counts = {
        (row.name, operator): count
        for row in comparison.rows
        for operator, count in (row.measured.macs_by_operator or {}).items()
    }
    assert lengths.keys() == counts.keys()
    scale = lengths["full ViT", "linear"] / counts["full ViT", "linear"]
    for key, length in lengths.items():
        assert length == pytest.approx(scale * counts[key], abs=0.03)  # two roundings to 0.01 px


def test_one_bar_for_all_precisions_of_a_budget(tmp_path: Path) -> None:
    make_profile(tmp_path / "one", precisions=("fp32", "int8"), samples=50, kept=False)
    comparison = compared(tmp_path / "one")
    assert macs(comparison, decide(comparison)).words.count(";") == 3


def test_operators_beyond_the_colours_are_one(tmp_path: Path) -> None:
    profile = make_profile(tmp_path / "one", samples=50, kept=False)
    split = {f"op{place}": 10**6 for place in range(MOST_OPERATORS + 3)}
    write_profile(tmp_path / "one", without(profile, macs_by_operator=split, macs=sum(split.values())))
    comparison = compared(tmp_path / "one")
    picture = macs(comparison, decide(comparison))
    assert picture.wide is not None
    assert "full ViT, other: 3 MMAC" in picture.wide


def test_a_split_that_was_not_recorded_is_said(tmp_path: Path) -> None:
    profile = make_profile(tmp_path / "one", samples=50, kept=False)
    write_profile(tmp_path / "one", without(profile, macs_by_operator=None))
    comparison = compared(tmp_path / "one")
    assert "The split by operator was not recorded." in macs(comparison, decide(comparison)).caption
