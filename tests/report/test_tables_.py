"""Tables and facts as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from report_data import make_profile, without, write_profile

from ptsr_edge.report.comparison import Comparison, compare, read_sources
from ptsr_edge.report.recommendation import decide
from ptsr_edge.report.tables import TABLES, aligned, build_tables, markdown, pipe_table, remarks


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    make_profile(tmp_path / "one", samples=50, kept=False)
    return compare(read_sources([tmp_path / "one"]))


def test_every_table_has_every_variant_and_every_column(comparison: Comparison) -> None:
    tables = build_tables(comparison, decide(comparison))
    assert [table.name for table in tables] == [name for name, _, _ in TABLES]
    for table, (name, _, columns) in zip(tables, TABLES, strict=True):
        recalls = len(comparison.labels) if name == "accuracy" else 0
        headings = [column.heading for column in columns if not column.is_optional]
        assert list(table.headings[1 : len(headings) + 1]) == headings
        assert len(table.headings) == len(headings) + 1 + recalls
        assert [line.name for line in table.lines] == ["full ViT", "100 %", "50 %", "25 %"]
        assert all(len(line.cells) == len(headings) + recalls for line in table.lines)
        assert [line.is_picked for line in table.lines] == [False, False, False, True]


def test_baselines_are_not_compared_with_themselves(comparison: Comparison) -> None:
    summary = build_tables(comparison, decide(comparison))[0]
    cells = dict(zip(summary.headings[1:], summary.lines[0].cells, strict=True))
    assert cells["Times as fast"].text == cells["UAR lost"].text == "baseline"
    assert not summary.notes


def noted(folder: Path, **changes: Any) -> Comparison:
    profile = make_profile(folder, samples=50, raw="none", kept=False)
    write_profile(folder, without(profile, **changes))
    return compare(read_sources([folder]))


def test_a_missing_figure_points_to_its_reason(tmp_path: Path) -> None:
    notes = [
        "p99 has 1 of 50 samples beyond it: too few to quote it",
        "throughput was not measured: all runs are synchronous",
        "accuracy was not measured: no --data was given",
    ]
    comparison = noted(tmp_path / "one", accuracy=None, throughput_per_s=None, notes=notes)
    tables = {table.name: table for table in build_tables(comparison, decide(comparison))}
    assert tables["summary"].notes == (notes[2],)
    assert tables["cost"].notes[0] == notes[1]
    assert tables["timing"].notes == ()
    cell = tables["cost"].lines[0].cells[tables["cost"].headings.index("Per second") - 1]
    assert (cell.text, cell.sort, cell.notes) == ("not measured", None, (1,))


def test_a_missing_figure_without_a_reason_says_so(tmp_path: Path) -> None:
    comparison = noted(tmp_path / "one", peak_rss_bytes=None, energy_mj=1.0, streams=1, notes=[])
    tables = {table.name: table for table in build_tables(comparison, decide(comparison))}
    assert tables["cost"].notes == ("no reason was recorded",)


def test_what_could_not_be_run_has_that_reason_everywhere(tmp_path: Path) -> None:
    refusal = "could not be run here, so nothing was timed: no GPU"
    missing = dict.fromkeys(
        (
            "latency_ms",
            "ratio",
            "load_ms",
            "first_ms",
            "peak_rss_bytes",
            "throughput_per_s",
            "accuracy",
            "stages",
        )
    )
    comparison = noted(tmp_path / "one", notes=[refusal], **missing)
    for table in build_tables(comparison, decide(comparison)):
        assert table.notes == (refusal,)


def test_remarks_say_what_is_shared_once(tmp_path: Path) -> None:
    profile = make_profile(tmp_path / "one", samples=50, raw="none", kept=False)
    rows = [
        row.model_copy(
            update={"notes": ["all share this", f"only {row.id}"] if place else ["all share this"]}
        )
        for place, row in enumerate(profile.variants)
    ]
    write_profile(tmp_path / "one", profile.model_copy(update={"variants": rows}))
    entries = remarks(compare(read_sources([tmp_path / "one"])))
    assert entries[0] == ("every variant", ["all share this"])
    assert [name for name, _ in entries] == ["every variant", "100 %", "50 %", "25 %"]


def test_terminal_table_is_aligned(comparison: Comparison) -> None:
    lines = aligned(build_tables(comparison, decide(comparison))[0])
    assert len(lines) == 5
    ends = {line.rindex(" MB") for line in lines[1:]}
    assert len(ends) == 1


def test_markdown_table_keeps_its_columns(comparison: Comparison) -> None:
    table = build_tables(comparison, decide(comparison))[0]
    lines = pipe_table(table)
    assert {line.count("|") for line in lines} == {len(table.headings) + 1}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a|b", r"a\|b"), ("<b>x</b>", r"\<b\>x\</b\>"), ("two\nlines", "two lines"), ("a_b*c", r"a\_b\*c")],
)
def test_markdown_is_escaped(text: str, expected: str) -> None:
    assert markdown(text) == expected
