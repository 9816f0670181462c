"""Annotation tables as their owners give them away: a sheet of an Excel workbook, or the same as CSV.

The heading is searched for, since some tables begin with pages of text. Rows keep the number that a
spreadsheet shows beside them.
"""

from __future__ import annotations

import csv
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptsr_edge.core.errors import InputError, require
from ptsr_edge.data.annotations import RowFault

SUFFIXES = (".xlsx", ".csv")
HEADING_ROWS = 40
"""How far down the heading is searched for."""

MISSING = {"", "/", "\\", "-", "n/a", "na", "nan", "none", "?"}
"""What stands in cells where a frame is not known."""


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        number: counted from 1, as a spreadsheet does.
        cells: by heading, lower case.
    """

    number: int
    cells: dict[str, Any]

    def text(self, column: str) -> str:
        """A cell as text without blanks around it; a whole number without its fraction."""
        value = self.cells.get(key_of(column))
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        return "" if value is None else str(value).strip()

    def frame(self, column: str) -> int | None:
        """A cell as a frame number; None where it says that there is none, or is negative.

        Raises:
            RowFault: it is neither.
        """
        text = self.text(column)
        if text.casefold() in MISSING:
            return None
        if not re.fullmatch(r"[+-]?\d+(\.0*)?", text):
            raise RowFault(f"a frame number is expected, found {text!r}", column)
        number = int(float(text))
        return number if number >= 0 else None


@dataclass(frozen=True)
class Sheet:
    """A table with its heading found and its blank rows left out."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def key_of(heading: Any) -> str:
    """A heading without blanks around it, in lower case."""
    return " ".join(str(heading).split()).casefold() if heading is not None else ""


def read_sheet(path: Path, columns: Sequence[str], worksheet: str | None = None) -> Sheet:
    """Reads a table.

    Args:
        path: an .xlsx workbook or a .csv file.
        columns: headings that must be there, in any case and order.
        worksheet: of the workbook; by default its first, or its only one where none has that name.

    Raises:
        InputError: the file cannot be read, has no such worksheet, or lacks a column; the message says what
            was found.
        MissingExtraError: openpyxl is not installed, and the file is a workbook.
    """
    lines = list(_csv_lines(path) if path.suffix.lower() == ".csv" else _workbook_lines(path, worksheet))
    wanted = [key_of(column) for column in columns]
    best: list[str] = []
    for place, cells in enumerate(lines[:HEADING_ROWS]):
        heading = [key_of(cell) for cell in cells]
        if set(wanted) <= set(heading):
            found = tuple(" ".join(str(cell).split()) for cell in cells if key_of(cell))
            return Sheet(path, found, tuple(_rows(heading, lines[place + 1 :], place + 2)))
        if len(set(wanted) & set(heading)) > len(set(wanted) & set(map(key_of, best))):
            best = [" ".join(str(cell).split()) for cell in cells if key_of(cell)]
    missing = [column for column in columns if key_of(column) not in {key_of(cell) for cell in best}]
    raise InputError(
        f"{path} has no column {', '.join(missing)} in its first {HEADING_ROWS} rows; "
        f"found: {', '.join(best) or 'no heading'}; expected: {', '.join(columns)}"
    )


def _rows(heading: list[str], lines: Iterable[Sequence[Any]], first: int) -> Iterator[Row]:
    for number, cells in enumerate(lines, start=first):
        # Of two columns with one heading the first counts.
        by_heading = dict(reversed([pair for pair in zip(heading, cells, strict=False) if pair[0]]))
        row = Row(number, by_heading)
        if any(row.text(name) for name in by_heading):
            yield row


def _csv_lines(path: Path) -> Iterator[list[str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            yield from csv.reader(stream)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no readable CSV table: {error}") from None


def _workbook_lines(path: Path, worksheet: str | None) -> list[tuple[Any, ...]]:
    openpyxl = require("openpyxl", "train", "reading an annotation table")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on styles and validations that do not matter here
            book = openpyxl.load_workbook(path, read_only=True, data_only=True)
            try:
                names = book.sheetnames
                chosen = worksheet if worksheet in names else names[0]
                if worksheet is not None and worksheet not in names and len(names) > 1:
                    raise InputError(f"{path} has no sheet {worksheet!r}; found: {', '.join(names)}")
                page = book[chosen]
                page.reset_dimensions()  # some tools write a wrong extent
                return list(page.iter_rows(values_only=True))
            finally:
                book.close()
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except (
        zipfile.BadZipFile,
        KeyError,
        ValueError,
        TypeError,
        IndexError,
        AttributeError,
        SyntaxError,
    ) as error:
        raise InputError(f"{path} is no readable Excel workbook: {error}") from None
