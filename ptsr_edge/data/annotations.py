"""Annotations of a recorded data set: tables as their owners give them away, and what became of each row.

A table is a sheet of an Excel workbook, or the same as CSV (`read_sheet`). Every row of it ends up in exactly one place
(`Annotations`): used as a clip, dropped by the rules, or unfit.
"""

from __future__ import annotations

import csv
import dataclasses
import os
import re
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ptsr_edge.core.config import LABELS
from ptsr_edge.core.errors import InputError, require

SKIP_BAD_VARIABLE = "PTSR_EDGE_SKIP_BAD"


@dataclass(frozen=True)
class Published:
    """Counts to hold against what is found; None where none is published.

    Attributes:
        clips: of the three classes.
        classes: clips that are negative, positive, surprise.
        subjects: people in these clips.
        rows: of the sheet.
    """

    clips: int | None = None
    classes: tuple[int, int, int] | None = None
    subjects: int | None = None
    rows: int | None = None


class RowFault(Exception):  # noqa: N818
    """Something in a row, or in the files that it names, that cannot be used.

    Attributes:
        message: what was found and what is accepted.
        column: of the sheet, or None where no single column is at fault.
    """

    def __init__(self, message: str, column: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.column = column


@dataclass(frozen=True)
class Finding:
    """Something missing or odd, and where.

    Attributes:
        kind: a word or two that findings are counted by.
        file: the sheet or file that it is about.
        message: what was found and what is accepted.
        row: of the sheet, counted from 1 as a spreadsheet does.
        column: heading of the sheet.
    """

    kind: str
    file: Path
    message: str
    row: int | None = None
    column: str | None = None

    def __str__(self) -> str:
        place = str(self.file)
        if self.row is not None:
            place += f", row {self.row}"
        if self.column is not None:
            place += f", column {self.column}"
        return f"{place}: {self.message}"

    def record(self) -> dict[str, Any]:
        """Returns the same, ready for JSON."""
        return dataclasses.asdict(self) | {"file": str(self.file)}


@dataclass(frozen=True)
class Clip:
    """One micro-expression.

    Attributes:
        data_set: its name, such as "casme2".
        subject: unique over data sets, such as "casme2/sub01".
        name: unique over data sets, such as "casme2/sub01/EP02_01f".
        label: an index into the classes of its `Annotations`.
        emotion: what the sheet says.
        files: the onset and the apex frame, or twice the video that holds both; or the one image of a published flow
            field.
        offset: the offset frame, None where it is not among the files.
        fps: frames a second of the recording, None where it is not known; 0 for a published flow field.
        cropped: whether the frames are face crops already.
        sheet: the table that lists the clip.
        row: its row there, counted from 1.
        apex_rule: "sheet", or "midpoint" where the sheet has no apex.
        places: of onset and apex in their video, counted from 0; empty where frames are files of their own.
        units: action units that were annotated, by their FACS numbers; empty where none were.
    """

    data_set: str
    subject: str
    name: str
    label: int
    emotion: str
    files: tuple[Path, ...]
    offset: Path | None
    fps: float | None
    cropped: bool
    sheet: Path
    row: int
    apex_rule: str = "sheet"
    places: tuple[int, ...] = ()
    units: frozenset[int] = frozenset()

    def fault(self, fault: RowFault, kind: str = "image") -> Finding:
        """Returns a finding about this clip's row."""
        return Finding(kind, self.sheet, fault.message, self.row, fault.column)


@dataclass(frozen=True)
class Unfit:
    """A row that cannot be used though its class is one of those that are asked for.

    Attributes:
        finding: what is wrong, and where.
        label: its class, None where that itself cannot be read.
    """

    finding: Finding
    label: int | None


@dataclass(frozen=True)
class Annotations:
    """One data set as its sheet lists it and its folders hold it.

    Attributes:
        name: of the data set.
        sheet: the table.
        frames: the folder with the subjects' folders, or with the flow images.
        cropped: whether frames are face crops.
        rows: how many the sheet has, blank ones not counted.
        clips: what can be used.
        dropped: rows that the rules leave out, by reason.
        unfit: rows with a fault.
        odd: what was noticed and does no harm.
        label_names: the classes in the order of their numbers.
    """

    name: str
    sheet: Path
    frames: Path
    cropped: bool
    rows: int
    clips: tuple[Clip, ...]
    dropped: Mapping[str, int]
    unfit: tuple[Unfit, ...] = ()
    odd: tuple[Finding, ...] = ()
    label_names: tuple[str, ...] = LABELS

    def __post_init__(self) -> None:
        accounted = len(self.clips) + sum(self.dropped.values()) + len(self.unfit)
        if accounted != self.rows:
            raise AssertionError(f"{self.name}: {self.rows} rows, {accounted} accounted for")

    def without(self, faults: Mapping[str, Finding]) -> Annotations:
        """Returns the same after the pixels were looked at: clips with a fault, by name, are unfit rows now."""
        spoiled = tuple(Unfit(faults[clip.name], clip.label) for clip in self.clips if clip.name in faults)
        clips = tuple(clip for clip in self.clips if clip.name not in faults)
        return dataclasses.replace(self, clips=clips, unfit=self.unfit + spoiled)

    def chosen(self, names: Iterable[str]) -> Annotations:
        """Returns the same with the clips of these names only; the others are dropped as not asked for."""
        wanted = set(names)
        clips = tuple(clip for clip in self.clips if clip.name in wanted)
        left = len(self.clips) - len(clips)
        dropped = dict(self.dropped) | ({"not asked for": left} if left else {})
        return dataclasses.replace(self, clips=clips, dropped=dropped)

    def account(self) -> str:
        """Returns one line on all rows: `255 rows = 145 used + 108 dropped (others 99, ...) + 2 unfit`."""
        reasons = sorted(self.dropped.items(), key=lambda item: (-item[1], item[0]))
        listed = ", ".join(f"{reason} {count}" for reason, count in reasons if count)
        dropped = f"{sum(self.dropped.values())} dropped" + (f" ({listed})" if listed else "")
        return f"{self.rows} rows = {len(self.clips)} used + {dropped} + {len(self.unfit)} unfit"

    def summary(self, title: str, published: Published) -> SetSummary:
        """Returns the same for `data check`, beside the counts that were published."""
        return SetSummary(
            name=self.name,
            title=title,
            account=self.account(),
            clips=[(clip.subject, clip.label) for clip in self.clips],
            rows=self.rows,
            dropped=self.dropped,
            unfit=self.unfit,
            odd=self.odd,
            published=published,
            label_names=self.label_names,
            fps=self.clips[0].fps if self.clips else None,
            sheet=self.sheet,
            frames=self.frames,
            cropped=self.cropped,
            apex_rules=Counter(clip.apex_rule for clip in self.clips),
        )


@dataclass(frozen=True)
class SetSummary:
    """The content of one data set, as `data check` reports it.

    Attributes:
        name: of the data set.
        title: as its owners call it.
        account: one line on all its rows.
        clips: subject and class number of each clip that can be used.
        rows: how many there are, those that cannot be used included.
        dropped: rows that the rules leave out, by reason.
        unfit: rows with a fault.
        odd: what was noticed and does no harm.
        published: counts to hold against these.
        label_names: the classes in the order of their numbers.
        fps: frames a second; 0 for published flow fields, None where it is not known.
        sheet: the table that lists the clips.
        frames: the folder that they lie in.
        cropped: whether frames are face crops.
        apex_rules: clips by where their apex comes from.
    """

    name: str
    title: str
    account: str
    clips: Sequence[tuple[str, int]] = ()
    rows: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    unfit: Sequence[Unfit] = ()
    odd: Sequence[Finding] = ()
    published: Published = field(default_factory=Published)
    label_names: Sequence[str] = LABELS
    fps: float | None = None
    sheet: Path | None = None
    frames: Path | None = None
    cropped: bool | None = None
    apex_rules: Mapping[str, int] = field(default_factory=dict)


def skips_unfit(asked: bool | None) -> bool:
    """Tells whether to go on without unfit rows: as asked, else as $PTSR_EDGE_SKIP_BAD says, else not.

    Raises:
        InputError: the variable says neither yes nor no.
    """
    if asked is not None:
        return asked
    said = os.environ.get(SKIP_BAD_VARIABLE, "").strip().casefold()
    if said not in {"", "0", "1", "no", "yes", "false", "true"}:
        raise InputError(f"${SKIP_BAD_VARIABLE} must be 0 or 1, found {said!r}")
    return said in {"1", "yes", "true"}


def refuse_unfit(findings: Sequence[Finding], rows: int) -> None:
    """Refuses a data set with unfit rows.

    Raises:
        InputError: there is a finding; the message has the first, and says how to go on without them.
    """
    if findings:
        raise InputError(
            f"{findings[0]} ({len(findings)} of {rows} rows cannot be used; `--skip-bad` goes on without "
            "them and lists them)"
        )


TABLE_SUFFIXES = (".xlsx", ".csv")

HEADING_ROWS = 40
"""How far down the heading is searched for."""

MISSING = {"", "/", "\\", "-", "n/a", "na", "nan", "none", "?"}
"""What stands in cells where a frame is not known."""


@dataclass(frozen=True)
class AnnotationRow:
    """A row of a table.

    Attributes:
        number: counted from 1, as a spreadsheet does.
        cells: by heading, lower case.
    """

    number: int
    cells: dict[str, Any]

    def text(self, column: str) -> str:
        """Returns a cell as text without blanks around it, a whole number without its fraction."""
        value = self.cells.get(_key_of(column))
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        return "" if value is None else str(value).strip()

    def frame(self, column: str) -> int | None:
        """Returns a cell as a frame number; None where it says that there is none, or is negative.

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


def read_units(text: str) -> frozenset[int]:
    """Returns the action units that an annotator wrote: {4, 7, 12} of `4+L12B+7?+AD19`.

    Side and intensity are left out, and so are action descriptors (AD), which are no units.
    """
    return frozenset(int(number) for number in re.findall(r"(?:^|[^D\d])(\d+)", text))


@dataclass(frozen=True)
class Sheet:
    """A table with its heading found and its blank rows left out."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[AnnotationRow, ...]


def _key_of(heading: Any) -> str:
    """Returns a heading in lower case, without superfluous blanks."""
    return " ".join(str(heading).split()).casefold() if heading is not None else ""


def read_sheet(path: Path, columns: Sequence[str], worksheet: str | None = None) -> Sheet:
    """Reads a table, whose heading is searched for, since some tables begin with pages of text.

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
    wanted = [_key_of(column) for column in columns]
    best: list[str] = []
    for place, cells in enumerate(lines[:HEADING_ROWS]):
        heading = [_key_of(cell) for cell in cells]
        if set(wanted) <= set(heading):
            found = tuple(" ".join(str(cell).split()) for cell in cells if _key_of(cell))
            return Sheet(path, found, tuple(_rows(heading, lines[place + 1 :], place + 2)))
        if len(set(wanted) & set(heading)) > len(set(wanted) & set(map(_key_of, best))):
            best = [" ".join(str(cell).split()) for cell in cells if _key_of(cell)]
    missing = [column for column in columns if _key_of(column) not in {_key_of(cell) for cell in best}]
    raise InputError(
        f"{path} has no column {', '.join(missing)} in its first {HEADING_ROWS} rows; "
        f"found: {', '.join(best) or 'no heading'}; expected: {', '.join(columns)}"
    )


def _rows(heading: list[str], lines: Iterable[Sequence[Any]], first: int) -> Iterator[AnnotationRow]:
    for number, cells in enumerate(lines, start=first):
        # Of two columns with one heading the first counts.
        by_heading = dict(reversed([pair for pair in zip(heading, cells, strict=False) if pair[0]]))
        row = AnnotationRow(number, by_heading)
        if any(row.text(name) for name in by_heading):
            yield row


def _csv_lines(path: Path) -> Iterator[list[str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            first = stream.readline()
            stream.seek(0)
            # Spreadsheets write semicolons where the comma is the decimal sign.
            yield from csv.reader(stream, delimiter=";" if first.count(";") > first.count(",") else ",")
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
        EOFError,
        OverflowError,
        RuntimeError,
        zlib.error,
    ) as error:
        raise InputError(f"{path} is no readable Excel workbook: {error}") from None
