"""Every row of a sheet ends up in exactly one place."""

from __future__ import annotations

from pathlib import Path

import pytest

from ptsr_edge.core.errors import InputError
from ptsr_edge.data.annotations import Annotations, Clip, Finding, RowFault, Unfit, refuse_unfit, skips_unfit

SHEET = Path("sheet.xlsx")


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
