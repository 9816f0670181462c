"""The report's tables and facts as text: what was not measured says so and points to the reason."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ptsr_edge.comparison import Comparison, Row, budget_text
from ptsr_edge.costs import quantity, three_digits
from ptsr_edge.verdict import Verdict, ratio_text

NOT_MEASURED = "not measured"

Value = float | int | str | None


@dataclass(frozen=True)
class Column:
    """A heading, how a row's value is found, and how it is written (None: as it is).

    Attributes:
        of_baseline: what is written for baselines, which are not compared with themselves.
        topics: words of the notes that say why this figure is missing.
    """

    heading: str
    value: Callable[[Row], Value]
    write: Callable[[Any], str] | None = None
    of_baseline: str | None = None
    topics: tuple[str, ...] = ()


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
        return self.text == NOT_MEASURED


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


def bytes_text(count: float) -> str:
    """A size with three digits: `10.9 MB`."""
    return f"{quantity(count)}B" if count >= 999.5 else f"{count:g} B"


def _latency(heading: str, name: str, write: Callable[[Any], str] = three_digits) -> Column:
    return Column(
        heading,
        lambda row: getattr(row.measured.latency_ms, name, None),
        write,
        topics=("nothing was timed", "latency was not"),
    )


def _accuracy(
    heading: str, name: str, write: Callable[[Any], str] | None, of_baseline: str | None = None
) -> Column:
    return Column(
        heading,
        lambda row: getattr(row.measured.accuracy, name, None),
        write,
        of_baseline,
        topics=("accuracy", "UAR", "could not be run"),
    )


def _measured(heading: str, name: str, write: Callable[[Any], str] | None, *topics: str) -> Column:
    return Column(
        heading, lambda row: getattr(row.measured, name), write, topics=(*topics, "nothing was timed")
    )


def _ratio(row: Row) -> Value:
    return row.measured.ratio.median if row.measured.ratio else None


def _three(value: float) -> str:
    return f"{value:.3f}"


def _signed(value: float) -> str:
    return f"{value:+.3f}" if round(value, 3) else "0.000"


def _per_cent(value: float) -> str:
    return f"{100 * value:.1f} %"


_P50 = _latency("p50, ms", "p50")
_P99 = _latency("p99, ms", "p99")
_UAR = _accuracy("UAR", "uar", _three)
_DROP = _accuracy("UAR lost", "uar_drop", _signed, of_baseline="baseline")
_TOKENS = _measured("Tokens", "tokens", str)
_MACS = _measured("MACs", "macs", quantity)
_SIZE = _measured("Size", "size_bytes", bytes_text)

TABLES: tuple[tuple[str, str, tuple[Column, ...]], ...] = (
    (
        "summary",
        "Every variant",
        (
            _TOKENS,
            _P50,
            Column(
                "Times as fast", _ratio, _three, of_baseline="baseline", topics=("ratio", "nothing was timed")
            ),
            _UAR,
            _DROP,
            _MACS,
            _SIZE,
        ),
    ),
    (
        "timing",
        "Latency in full",
        (
            _P50,
            _latency("p90, ms", "p90"),
            _latency("p95, ms", "p95"),
            _P99,
            _latency("min, ms", "min"),
            _latency("mean, ms", "mean"),
            _latency("CV", "cv", _per_cent),
            _latency("Samples", "n", "{:,}".format),
            _measured("Load, ms", "load_ms", three_digits),
            _measured("First, ms", "first_ms", three_digits),
        ),
    ),
    (
        "cost",
        "Cost in full",
        (
            _measured("Target", "target", None),
            _measured("Precision", "precision", None),
            Column("Budget", lambda row: row.measured.keep_rate, budget_text),
            _TOKENS,
            _MACS,
            _measured("Parameters", "parameters", quantity),
            _SIZE,
            _measured("Peak memory", "peak_rss_bytes", bytes_text, "memory"),
            _measured("Per second", "throughput_per_s", three_digits, "throughput"),
        ),
    ),
    (
        "accuracy",
        "Accuracy in full",
        (
            _accuracy("Data", "data", None),
            _accuracy("Protocol", "protocol", None),
            _accuracy("n", "n", "{:,}".format),
            _accuracy("UF1", "uf1", _three),
            _UAR,
            _DROP,
        ),
    ),
)
"""Name, title and columns. A further table is one more entry."""


def build_tables(comparison: Comparison, verdict: Verdict) -> list[Table]:
    """All tables of the report."""
    tables = []
    for name, title, columns in TABLES:
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
    number = column.write is not None
    if row.is_baseline and column.of_baseline is not None:
        return Cell(column.of_baseline, value if value is not None else 0.0, number)
    if value is None:
        reasons = _reasons(row, column.topics)
        notes += [reason for reason in reasons if reason not in notes]
        return Cell(NOT_MEASURED, None, number, tuple(notes.index(reason) + 1 for reason in reasons))
    accuracy = row.measured.accuracy
    if column is _DROP and accuracy is not None and accuracy.is_told_apart is not None:
        interval = f"[{accuracy.uar_drop_low:+.3f}, {accuracy.uar_drop_high:+.3f}]"
        told = _signed(accuracy.uar_drop or 0.0) if accuracy.is_told_apart else "none"
        return Cell(f"{told} {interval}", value, number)
    ratio = row.measured.ratio
    if column.value is _ratio and ratio is not None:
        return Cell(ratio_text(ratio.median, ratio.low, ratio.high), value, number)
    return Cell(column.write(value) if column.write else str(value), value, number)


def _reasons(row: Row, topics: tuple[str, ...]) -> list[str]:
    """The notes that say why a figure is missing; all of the row's where none speaks of it."""
    notes = row.measured.notes
    negative = [note for note in notes if re.search(r"\b(not|no|nothing)\b", note)]
    telling = [note for note in negative if any(topic in note for topic in topics)]
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


def facts(record: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A nested record as pairs of a name and a text: `cpu, model` and what it is."""
    if not isinstance(record, dict):
        return [(prefix, _fact(prefix, record))]
    if prefix and record and all(_is_version(value) for value in record.values()):
        return [(prefix, ", ".join(f"{key} {value}" for key, value in record.items()))]
    pairs: list[tuple[str, str]] = []
    for key, value in record.items():
        name = re.sub(r"_(n?s|ms|px)$", r", \1", str(key).removesuffix("_bytes")).replace("_", " ")
        name = f"{prefix}, {name}" if prefix else name
        if isinstance(value, dict) and value:
            pairs += facts(value, name)
        elif isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
            for place, entry in enumerate(value, start=1):
                pairs += facts(entry, f"{name} {place}")
        else:
            pairs.append((name, _fact(str(key), value)))
    return pairs


def _fact(key: str, value: Any) -> str:
    if value is None:
        return "not known"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key.endswith("_bytes") and isinstance(value, int | float):
        return bytes_text(value)
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(_fact("", entry) for entry in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {entry}" for name, entry in value.items()) or "none"
    return str(value)


def _is_version(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\d+(\.[\w+-]+)+", value) is not None


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
