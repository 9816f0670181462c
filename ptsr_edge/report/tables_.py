"""The report's tables as text: what was not measured says so and points to the reason."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ptsr_edge.profile.schema import NOT_RUN
from ptsr_edge.report.comparison import Comparison, Row, signed
from ptsr_edge.report.tables import DROP, TABLES, Column, Value, recall_columns
from ptsr_edge.report.verdict import Verdict

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Cell:
    """What is written, the value it is sorted by (None: last), and the numbers of its footnotes."""

    text: str
    sort: Value
    is_number: bool
    notes: tuple[int, ...] = ()

    @property
    def is_missing(self) -> bool:
        """Whether the figure was not measured."""
        return self.text in (NOT_MEASURED, NOT_RUN)


@dataclass(frozen=True)
class Line:
    """A row of a table."""

    name: str
    cells: tuple[Cell, ...]
    is_picked: bool


@dataclass(frozen=True)
class Table:
    """A table: the first heading is that of the rows' names, `notes` are numbered from 1."""

    name: str
    title: str
    headings: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]


def build_tables(comparison: Comparison, verdict: Verdict) -> list[Table]:
    """All tables of the report."""
    tables = []
    for name, title, known in TABLES:
        more = recall_columns(comparison.labels) if name == "accuracy" else ()
        columns = [
            column
            for column in (*known, *more)
            if not column.is_optional or any(column.value(row) is not None for row in comparison.rows)
        ]
        notes: list[str] = []
        lines = tuple(
            Line(row.name, tuple(_cell(column, row, notes) for column in columns), row.name == verdict.name)
            for row in comparison.rows
        )
        headings = ("Variant", *(column.heading for column in columns))
        tables.append(Table(name, title, headings, lines, tuple(notes)))
    return tables


def remarks(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """What the profile noted: first what holds for every variant, then the rest by variant."""
    rows = comparison.rows
    shared = [note for note in rows[0].measured.notes if all(note in row.measured.notes for row in rows)]
    entries = [("every variant", shared)] if len(rows) > 1 else []
    for row in rows:
        own = [note for note in row.measured.notes if len(rows) == 1 or note not in shared]
        entries.append((row.name, own))
    return [(name, notes) for name, notes in entries if notes]


def _cell(column: Column, row: Row, notes: list[str]) -> Cell:
    value = column.value(row)
    number = column.write is not None or column.row_text is not None
    if row.is_baseline and column.of_baseline is not None:
        return Cell(column.of_baseline, value if value is not None else 0.0, number)
    if value is None:
        reasons = _reasons(row, column)
        notes += [reason for reason in reasons if reason not in notes]
        text = NOT_RUN if any(reason.startswith(NOT_RUN) for reason in reasons) else NOT_MEASURED
        return Cell(text, None, number, tuple(notes.index(reason) + 1 for reason in reasons))
    accuracy = row.measured.accuracy
    if column is DROP and accuracy is not None and accuracy.is_told_apart is not None:
        interval = f"[{accuracy.uar_drop_low:+.3f}, {accuracy.uar_drop_high:+.3f}]"
        told = signed(accuracy.uar_drop or 0.0) if accuracy.is_told_apart else "none"
        return Cell(f"{told} {interval}", value, number)
    if column.row_text is not None:
        return Cell(column.row_text(row), value, number)
    return Cell(column.write(value) if column.write else str(value), value, number)


def _reasons(row: Row, column: Column) -> list[str]:
    """The notes that say why a figure is missing; all of the row's where none speaks of it."""
    notes = row.measured.notes
    if notes and notes[0].startswith(NOT_RUN) and not column.is_of_file:
        return notes[:1]
    negative = [note for note in notes if re.search(r"\b(not|no|nothing)\b", note)]
    telling = [note for note in negative if any(topic in note for topic in column.topics)]
    return telling or list(notes) or ["no reason was recorded"]


def aligned(table: Table) -> list[str]:
    """A table as lines of a terminal."""
    grid = [list(table.headings)]
    grid += [[line.name, *(cell.text for cell in line.cells)] for line in table.lines]
    widths = [max(len(line[column]) for line in grid) for column in range(len(grid[0]))]
    numbers = [False, *(cell.is_number for cell in table.lines[0].cells)]
    return [
        "  ".join(
            text.rjust(width) if number else text.ljust(width)
            for text, width, number in zip(line, widths, numbers, strict=True)
        ).rstrip()
        for line in grid
    ]


def pipe_table(table: Table) -> list[str]:
    """A table as lines of Markdown; numbers behind a cell point to the notes below it."""
    numbers = [False, *(cell.is_number for cell in table.lines[0].cells)]
    written = [
        "| " + " | ".join(table.headings) + " |",
        "|" + "|".join(" ---: " if number else " --- " for number in numbers) + "|",
    ]
    for line in table.lines:
        cells = [markdown(line.name)]
        for cell in line.cells:
            numbers_of = f" ({', '.join(str(number) for number in cell.notes)})" if cell.notes else ""
            cells.append(markdown(cell.text) + numbers_of)
        written.append("| " + " | ".join(cells) + " |")
    notes = [f"{number}. {markdown(note)}" for number, note in enumerate(table.notes, start=1)]
    return [*written, *([""] if notes else []), *notes]


def markdown(text: str) -> str:
    """A text as it is, not as mark-up, in one line of Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(text.split()))
