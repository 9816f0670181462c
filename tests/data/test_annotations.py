"""Tables in all the ways they are handed out; every row of them ends up in exactly one place."""

from __future__ import annotations

import zipfile
from pathlib import Path

import openpyxl
import pytest
from recorded_trees import SAMM_HEADING, SAMM_ROWS, write_workbook

from ptsr_edge.core.errors import InputError
from ptsr_edge.data.annotations import (
    AnnotationRow,
    Annotations,
    Clip,
    Finding,
    RowFault,
    Unfit,
    read_sheet,
    read_units,
    refuse_unfit,
    skips_unfit,
)

SHEET = Path("sheet.xlsx")
HEADING = ("Subject", "Filename", None, "Onset Frame")


def clip(name: str, label: int = 0) -> Clip:
    return Clip(
        data_set="casme2", subject="casme2/sub01", name=name, label=label, emotion="disgust",
        files=(Path("1.jpg"), Path("2.jpg")), offset=None, fps=200, cropped=True, sheet=SHEET, row=2,
    )  # fmt: skip


def annotations(**changes) -> Annotations:
    known = dict(
        name="casme2", sheet=SHEET, frames=Path(), cropped=True, rows=5, clips=(clip("a"), clip("b", 1)),
        dropped={"others": 2}, unfit=(Unfit(Finding("row", SHEET, "bad", 4), 1),),
    )  # fmt: skip
    return Annotations(**known | changes)


def test_rows_that_are_not_accounted_for_are_an_error_in_the_reader():
    with pytest.raises(AssertionError, match="casme2: 6 rows, 5 accounted for"):
        annotations(rows=6)


def test_the_account_names_every_place():
    assert annotations().account() == "5 rows = 2 used + 2 dropped (others 2) + 1 unfit"
    assert annotations(dropped={}, rows=3).account() == "3 rows = 2 used + 0 dropped + 1 unfit"


def test_faults_and_choices_keep_the_sum():
    spoiled = annotations().without({"b": clip("b").fault(RowFault("no image"))})
    assert spoiled.account() == "5 rows = 1 used + 2 dropped (others 2) + 2 unfit"
    chosen = annotations().chosen(["a"])
    assert chosen.account() == "5 rows = 1 used + 3 dropped (others 2, not asked for 1) + 1 unfit"


def test_a_finding_says_file_row_and_column():
    finding = clip("a").fault(RowFault("the apex is missing", "ApexFrame"), "apex")
    assert str(finding) == "sheet.xlsx, row 2, column ApexFrame: the apex is missing"
    assert finding.record() == {
        "kind": "apex", "file": "sheet.xlsx", "row": 2, "column": "ApexFrame", "message": "the apex is missing",
    }  # fmt: skip
    assert str(Finding("x", SHEET, "odd")) == "sheet.xlsx: odd"


def test_unfit_rows_are_refused_with_the_first_and_the_way_on():
    refuse_unfit([], 5)
    with pytest.raises(InputError, match=r"sheet.xlsx, row 4: bad \(1 of 5 rows.*--skip-bad"):
        refuse_unfit([row.finding for row in annotations().unfit], 5)


@pytest.mark.parametrize(("said", "skips"), [("", False), ("0", False), ("1", True), ("Yes", True)])
def test_the_environment_decides_where_nothing_was_asked(monkeypatch, said, skips):
    monkeypatch.setenv("PTSR_EDGE_SKIP_BAD", said)
    assert skips_unfit(None) is skips
    assert skips_unfit(not skips) is not skips


def test_a_word_that_is_neither_yes_nor_no_is_refused(monkeypatch):
    monkeypatch.setenv("PTSR_EDGE_SKIP_BAD", "maybe")
    with pytest.raises(InputError, match="must be 0 or 1, found 'maybe'"):
        skips_unfit(None)


@pytest.mark.parametrize("above", [0, 13])
def test_rows_keep_the_number_that_a_spreadsheet_shows(tmp_path, above):
    path = write_workbook(tmp_path / "a.xlsx", HEADING, [("01", "x", None, 5), ("02", "y", None, 6)], above)
    sheet = read_sheet(path, ("Subject", "onset frame"))
    assert [row.number for row in sheet.rows] == [above + 2, above + 3]
    assert [row.text("Subject") for row in sheet.rows] == ["01", "02"]
    assert sheet.columns == ("Subject", "Filename", "Onset Frame")


def test_samm_has_its_heading_in_row_14(tmp_path):
    path = write_workbook(tmp_path / "samm.xlsx", SAMM_HEADING, SAMM_ROWS, above=13)
    assert openpyxl.load_workbook(path).active["A14"].value == "Subject"
    assert read_sheet(path, ("Subject", "Apex Frame")).rows[0].number == 15


def test_blank_rows_are_no_rows_and_do_not_shift_the_others(tmp_path):
    rows = [("1", "x", None, 5), (None, None, None, None), ("2", "y", None, 6), (None, " ", None, None)]
    sheet = read_sheet(write_workbook(tmp_path / "a.xlsx", HEADING, rows), ("Subject",))
    assert [row.number for row in sheet.rows] == [2, 4]


def test_csv_says_the_same_as_the_workbook(tmp_path):
    (tmp_path / "a.csv").write_text(
        "\ufeffSubject,Filename,,Onset Frame\r\n01,x,,5\r\n,,,\r\n02,y,,6\r\n", "utf-8"
    )
    sheet = read_sheet(tmp_path / "a.csv", HEADING[:2])
    assert [(row.number, row.text("subject"), row.frame("Onset Frame")) for row in sheet.rows] == [
        (2, "01", 5), (4, "02", 6),
    ]  # fmt: skip


def test_of_two_columns_with_one_heading_the_first_counts(tmp_path):
    path = write_workbook(tmp_path / "a.xlsx", ("Subject", "Onset", "Onset"), [(1, 2, 3)])
    assert read_sheet(path, ("Subject",)).rows[0].frame("Onset") == 2


@pytest.mark.parametrize(
    ("cell", "number"),
    [(46, 46), (46.0, 46), ("46", 46), (" 46 ", 46), ("46.0", 46), ("/", None), ("", None), (None, None),
     ("N/A", None), (-1, None), (0, 0)],
)  # fmt: skip
def test_frame_numbers_in_all_the_ways_they_are_written(cell, number):
    assert AnnotationRow(7, {"apex": cell}).frame("Apex") == number


@pytest.mark.parametrize("cell", ["about 46", 46.5, "4 6"])
def test_what_is_no_frame_number_is_refused_with_its_column(cell):
    with pytest.raises(RowFault, match="a frame number is expected, found") as caught:
        AnnotationRow(7, {"apex": cell}).frame("Apex")
    assert caught.value.column == "Apex"


def test_a_missing_column_names_it_and_what_was_found(tmp_path):
    path = write_workbook(tmp_path / "a.xlsx", ("Subject", "Filename", "Onset"), [("1", "x", 2)])
    with pytest.raises(
        InputError, match=r"a\.xlsx has no column Apex.*found: Subject, Filename, Onset; expected"
    ):
        read_sheet(path, ("Subject", "Onset", "Apex"))


def test_a_heading_below_the_searched_rows_is_not_found(tmp_path):
    path = write_workbook(tmp_path / "a.xlsx", HEADING, [("1", "x", None, 2)], above=40)
    with pytest.raises(InputError, match="no column Subject in its first 40 rows"):
        read_sheet(path, ("Subject",))


def test_a_worksheet_is_taken_by_name_and_one_alone_under_any(tmp_path):
    path = write_workbook(tmp_path / "a.xlsx", ("Subject",), [("1",)], sheet="label")
    book = openpyxl.load_workbook(path)
    book.create_sheet("notes", 0).append(["Subject"])
    book.save(tmp_path / "b.xlsx")
    assert len(read_sheet(tmp_path / "b.xlsx", ("Subject",), "label").rows) == 1
    assert len(read_sheet(path, ("Subject",), "another").rows) == 1
    with pytest.raises(InputError, match="no sheet 'another'; found: notes, label"):
        read_sheet(tmp_path / "b.xlsx", ("Subject",), "another")


@pytest.mark.parametrize("content", [b"", b"no workbook", b"PK\x03\x04 cut short"])
def test_a_file_that_is_no_workbook_is_refused(tmp_path, content):
    (tmp_path / "a.xlsx").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.xlsx is no readable Excel workbook"):
        read_sheet(tmp_path / "a.xlsx", ("Subject",))


def test_files_that_cannot_be_read_are_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"Subject\r\n\xff\xfe\r\n")
    with pytest.raises(InputError, match=r"a\.csv is no readable CSV table"):
        read_sheet(tmp_path / "a.csv", ("Subject",))
    with pytest.raises(InputError, match=r"gone\.xlsx cannot be read: No such file"):
        read_sheet(tmp_path / "gone.xlsx", ("Subject",))


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("4+L12B+7?+AD19", {4, 7, 12}),
        ("R2+R1", {1, 2}),
        ("12A or 14", {12, 14}),
        ("AD1", set()),
        ("", set()),
    ],
)
def test_units_as_annotators_write_them(text: str, units: set[int]) -> None:
    assert read_units(text) == units


def test_a_workbook_with_a_number_beyond_64_bits_is_told(tmp_path: Path) -> None:
    path = write_workbook(tmp_path / "sound.xlsx", SAMM_HEADING, SAMM_ROWS)
    with zipfile.ZipFile(path) as sound, zipfile.ZipFile(tmp_path / "sheet.xlsx", "w") as damaged:
        for name in sound.namelist():
            content = sound.read(name)
            if name == "xl/styles.xml":
                content = content.replace(b'borderId="0"', b'borderId="%d"' % 2**64)
            damaged.writestr(name, content)
    with pytest.raises(InputError, match="is no readable Excel workbook"):
        read_sheet(tmp_path / "sheet.xlsx", ["Subject"])


def test_a_workbook_that_cannot_be_unpacked_is_told(tmp_path: Path) -> None:
    path = write_workbook(tmp_path / "sheet.xlsx", SAMM_HEADING, SAMM_ROWS)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            at = member.header_offset + 30 + len(member.filename)
            content[at : at + 8] = b"\xff" * 8  # what deflate never writes
    path.write_bytes(content)
    with pytest.raises(InputError, match="is no readable Excel workbook"):
        read_sheet(path, ["Subject"])
