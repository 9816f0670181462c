"""Columns: where a figure is found, how it is written, and what stands where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_data import LABELS, make_profile, without, write_profile

from ptsr_edge.profile.schema import NOT_RUN, Ceiling, Measured, Profile
from ptsr_edge.report.comparison import bytes_text, compare, read_sources, signed
from ptsr_edge.report.recommendation import decide
from ptsr_edge.report.tables import build_tables


def cells(folder: Path, profile: Profile, table: str, line: str) -> dict[str, str]:
    """Heading to text of one line of a table."""
    write_profile(folder, profile)
    comparison = compare(read_sources([folder]))
    found = next(entry for entry in build_tables(comparison, decide(comparison)) if entry.name == table)
    row = next(entry for entry in found.lines if entry.name == line)
    return dict(zip(found.headings[1:], (cell.text for cell in row.cells), strict=True))


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 B"), (512, "512 B"), (1000, "1 kB"), (10_900_000, "10.9 MB"), (999_999_999, "1 GB")],
)
def test_bytes_text(count: int, expected: str) -> None:
    assert bytes_text(count) == expected


def test_signed() -> None:
    assert [signed(value) for value in (0.0124, -0.02, 0.0004)] == ["+0.012", "-0.020", "0.000"]


def test_all_counts_of_multiply_adds_and_the_share_of_the_ceiling(tmp_path: Path) -> None:
    profile = make_profile(tmp_path, samples=50, kept=False)
    row = next(row for row in profile.variants if row.keep_rate == 0.25)
    assert row.latency_ms is not None
    speed = row.macs / (row.latency_ms.p50 * 1e6)
    ceiling = Ceiling(gmacs_per_s=2 * speed, shape=[1, 1, 1], share=0.5, why=None)
    full = without(profile, macs_eager=900_000_000, macs_graph=row.macs, ceiling=ceiling)
    found = cells(tmp_path, full, "work", "25 %")
    assert found["As written"] == "900 M"
    assert found["Exported"] == found["In the file"]
    assert found["Share of it"] == "50.0 %"
    assert float(found["Ceiling"]) == pytest.approx(2 * float(found["10\u2079 a second"]), rel=0.01)


def test_recalls_are_the_rows_of_the_confusion_matrix(tmp_path: Path) -> None:
    profile = make_profile(tmp_path, samples=50, kept=False)
    row = next(row for row in profile.variants if row.keep_rate == 0.5)
    assert row.accuracy is not None
    assert row.accuracy.confusion is not None
    found = cells(tmp_path, profile, "accuracy", "50 %")
    for place, label in enumerate(LABELS):
        counts = row.accuracy.confusion[place]
        assert found[f"Recall, {label}"] == f"{counts[place] / sum(counts):.3f}"


def test_the_ratio_within_a_precision_is_a_column_where_there_is_one(tmp_path: Path) -> None:
    profile = make_profile(tmp_path, samples=50, kept=False)
    heading = "Times as fast as the ViT alike"
    assert heading not in cells(tmp_path, profile, "timing", "25 %")
    rows = [row.model_copy(update={"ratio_same_precision": row.ratio}) for row in profile.variants]
    found = cells(tmp_path, profile.model_copy(update={"variants": rows}), "timing", "25 %")
    assert "x [" in found[heading]


def test_energy_and_streams(tmp_path: Path) -> None:
    profile = make_profile(tmp_path, samples=50, kept=False)
    why = "energy was not measured: no counter"
    notes = cells(tmp_path, without(profile, notes=[why], streams=2), "cost", "25 %")
    assert (notes["Energy, mJ"], notes["Streams"]) == ("not measured", "2")
    assert cells(tmp_path, without(profile, energy_mj=12.34), "cost", "25 %")["Energy, mJ"] == "12.3"


def test_an_engine_that_was_not_run_has_no_time_in_any_table(tmp_path: Path) -> None:
    profile = make_profile(tmp_path, samples=50, kept=False)
    gone = {name: None for name, field in Measured.model_fields.items() if field.default is None}
    own = "the artifact's own graph is not ONNX"
    gone |= {"target": "trt", "bundle": "out/engine", "notes": [f"{NOT_RUN}: no GPU", own]}
    rows = [*profile.variants, profile.variants[1].model_copy(update={"id": "engine", **gone})]
    engine = profile.model_copy(update={"variants": rows})
    write_profile(tmp_path, engine)
    comparison = compare(read_sources([tmp_path]))
    facts_of_the_file = {"Tokens", "MACs", "Size", "Target", "Precision", "Budget", "Parameters", "Exported"}
    for table in build_tables(comparison, decide(comparison)):
        line = next(line for line in table.lines if "trt" in line.name)
        for heading, cell in zip(table.headings[1:], line.cells, strict=True):
            if heading == "In the file":
                assert (cell.text, table.notes[cell.notes[0] - 1]) == ("not measured", own)
            elif heading not in facts_of_the_file:
                assert (cell.text, cell.sort, cell.is_missing) == (NOT_RUN, None, True), heading
                assert table.notes[cell.notes[0] - 1] == f"{NOT_RUN}: no GPU"
