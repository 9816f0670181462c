"""Strict records: one line about the first thing that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from ptsr_edge.core.errors import InputError
from ptsr_edge.core.records import Record, nearest, parse, read_record


class Inner(Record):
    width_px: int = Field(gt=0)


class Outer(Record):
    name: str
    inner: Inner
    many: tuple[Inner, ...] = ()


def test_the_nearest_name_is_found_however_far_it_is() -> None:
    assert nearest("exprot", ["train", "export", "report"]) == "export"
    assert nearest("123", ["train"]) == "train"


def test_a_record_reads_back_what_it_wrote(tmp_path: Path) -> None:
    record = Outer(name="a", inner=Inner(width_px=3), many=(Inner(width_px=4),))
    path = tmp_path / "record.json"
    path.write_text(record.model_dump_json(), encoding="utf-8")
    assert read_record(Outer, path) == record


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"nam": "a", "inner": {"width_px": 1}}, "where: name: Field required"),
        (
            {"name": "a", "inner": {"width_px": 0}},
            "where: inner.width_px: Input should be greater than 0 (found 0)",
        ),
        (
            {"name": "a", "inner": {"width_px": 1, "width_pxs": 1}},
            "where: unknown key 'inner.width_pxs'; the nearest known key is 'width_px'",
        ),
        (
            {"name": "a", "inner": {"width_px": 1}, "many": [{"width_px": 1}, {"width_px": 1, "widht": 2}]},
            "where: unknown key 'many.1.widht'; the nearest known key is 'width_px'",
        ),
        (
            {"name": "a", "inner": {"width_px": 1}, "mny": []},
            "unknown key 'mny'; the nearest known key is 'many'",
        ),
        ([1, 2], "where: Input should be a valid dictionary"),
        (None, "where: Input should be a valid dictionary"),
    ],
)
def test_the_first_fault_is_named(data: object, says: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(Outer, data, "where")
    assert says in str(caught.value)
    assert len(str(caught.value)) < 450


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000])
def test_what_is_no_json_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"record\.json is not a readable JSON file"):
        read_record(Outer, path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json does not exist"):
        read_record(Outer, tmp_path / "none.json")


def test_a_folder_is_no_record(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a readable JSON file"):
        read_record(Outer, tmp_path)
