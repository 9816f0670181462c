"""The report's tables: columns, cells with the footnotes of what is missing, and tables as plain text."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ptsr_edge.profile.schema import NOT_RUN, Accuracy
from ptsr_edge.report.comparison import (
    ComparedVariant,
    Comparison,
    budget_text,
    bytes_text,
    difference_text,
    percent,
    quantity,
    ratio_text,
    signed,
    three_digits,
)
from ptsr_edge.report.recommendation import Recommendation
from ptsr_edge.stats.latency import Ratio

Value = float | int | str | None

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Column:
    """A heading, the field that it shows, and how that is written.

    Attributes:
        field: of `Measured`, such as `latency_ms.p50`; where it is null, its reason is the footnote.
        write: makes the text of what was found; None: that is a text itself.
        find: what is shown of a variant where that is not the field itself; None is missing.
        sort: the number or text that a cell is sorted by, of what was found.
        of_baseline: what is written for baselines, which are not compared with themselves.
        is_optional: whether it is left out where no variant has it.
    """

    heading: str
    field: str
    write: Callable[[Any], str] | None = None
    find: Callable[[ComparedVariant], Any] | None = None
    sort: Callable[[Any], Value] = lambda found: found
    of_baseline: str | None = None
    is_optional: bool = False

    def found(self, row: ComparedVariant) -> Any:
        """Returns what is shown of a variant, None where it was not measured."""
        found: Any = row.measured
        for name in () if self.find else self.field.split("."):
            found = getattr(found, name, None)
        return self.find(row) if self.find else found


def _ratio(heading: str, field: str, **more: Any) -> Column:
    def middle(ratio: Ratio) -> float:
        return ratio.median

    return Column(heading, field, ratio_text, sort=middle, **more)


def _gmacs_per_s(row: ComparedVariant) -> float | None:
    """Returns 10^9 multiply-adds a second at the median."""
    return None if row.p50_ms is None else row.measured.macs / (row.p50_ms * 1e6)


def _share_of_ceiling(row: ComparedVariant) -> float | None:
    return row.measured.ceiling.share if row.measured.ceiling else None


def _judged_against_baseline(row: ComparedVariant) -> Accuracy | None:
    return None if row.uar_drop is None else row.measured.accuracy


def _drop_text(accuracy: Accuracy) -> str:
    drop, low, high = accuracy.uar_drop or 0.0, accuracy.uar_drop_low, accuracy.uar_drop_high
    return signed(drop) if low is None or high is None else difference_text(drop, low, high)


def _recall(label: str, place: int) -> Column:
    """Returns the column of a class: the share of its samples that were recognised."""

    def recall(row: ComparedVariant) -> float | None:
        matrix = row.measured.accuracy.confusion if row.measured.accuracy else None
        return matrix[place][place] / sum(matrix[place]) if matrix and sum(matrix[place]) else None

    return Column(f"Recall, {label}", "accuracy.confusion", "{:.3f}".format, recall)


_P50 = Column("p50, ms", "latency_ms.p50", three_digits)

_UAR = Column("UAR", "accuracy.uar", "{:.3f}".format)

_UAR_LOST = Column(
    "UAR lost",
    "accuracy.uar_drop",
    _drop_text,
    _judged_against_baseline,
    lambda found: found.uar_drop,
    "baseline",
)

_TOKENS = Column("Tokens", "tokens", str)

_MACS = Column("MACs", "macs", quantity)

_SIZE = Column("Size", "size_bytes", bytes_text)

TABLES: tuple[tuple[str, str, tuple[Column, ...]], ...] = (
    (
        "summary",
        "Every variant",
        (
            _TOKENS,
            _P50,
            _ratio("Times as fast", "ratio", of_baseline="baseline"),
            _UAR,
            _UAR_LOST,
            _MACS,
            _SIZE,
        ),
    ),
    (
        "timing",
        "Latency in full",
        (
            _P50,
            Column("p90, ms", "latency_ms.p90", three_digits),
            Column("p95, ms", "latency_ms.p95", three_digits),
            Column("p99, ms", "latency_ms.p99", three_digits),
            Column("min, ms", "latency_ms.min", three_digits),
            Column("mean, ms", "latency_ms.mean", three_digits),
            Column("CV", "latency_ms.cv", lambda cv: percent(cv, 1)),
            Column("Samples", "latency_ms.n", "{:,}".format),
            Column("Load, ms", "load_ms", three_digits),
            Column("First, ms", "first_ms", three_digits),
            _ratio("Times as fast as the ViT alike", "ratio_same_precision", is_optional=True),
        ),
    ),
    (
        "stages",
        "Stages in full",
        (
            Column("A face found, ms", "stages.face_ms", three_digits),
            Column("Flow, ms", "stages.flow_ms", three_digits),
            Column("Strain, ms", "stages.strain_ms", three_digits),
            Column("Normalise, ms", "stages.normalise_ms", three_digits),
            Column("Inference, ms", "stages.inference_ms", three_digits),
            Column("Answer, ms", "stages.postprocess_ms", three_digits),
        ),
    ),
    (
        "work",
        "Multiply-adds, and what the machine could do",
        (
            Column("As written", "macs_eager", quantity),
            Column("Exported", "macs", quantity),
            Column("In the file", "macs_graph", quantity),
            Column("10⁹ a second", "latency_ms", three_digits, _gmacs_per_s),
            Column("Ceiling", "ceiling.gmacs_per_s", three_digits),
            Column("Share of it", "ceiling.gmacs_per_s", lambda share: percent(share, 1), _share_of_ceiling),
        ),
    ),
    (
        "cost",
        "Cost in full",
        (
            Column("Target", "target"),
            Column("Precision", "precision"),
            Column("Budget", "keep_rate", budget_text),
            _TOKENS,
            _MACS,
            Column("Parameters", "parameters", quantity),
            _SIZE,
            Column("Peak memory", "peak_rss_bytes", bytes_text),
            Column("Per second", "throughput_per_s", three_digits),
            Column("Streams", "throughput_per_s", str, lambda row: row.measured.streams),
            Column("Energy, mJ", "energy_mj", three_digits),
        ),
    ),
    (
        "accuracy",
        "Accuracy in full",
        (
            Column("Data", "accuracy.data"),
            Column("Protocol", "accuracy.protocol"),
            Column("n", "accuracy.n", "{:,}".format),
            Column("UF1", "accuracy.uf1", "{:.3f}".format),
            _UAR,
            _UAR_LOST,
        ),
    ),
)
"""Name, title and columns. A further table is one more entry; to the last, each class adds its recall."""


@dataclass(frozen=True)
class Cell:
    """What is written, the value it is sorted by (None: last), and the numbers of its footnotes."""

    text: str
    sort: Value
    is_number: bool
    notes: tuple[int, ...] = ()
    is_missing: bool = False


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
    notes: tuple[str, ...] = ()


def build_tables(comparison: Comparison, recommendation: Recommendation) -> list[Table]:
    """Builds all tables that have a line per variant."""
    tables = []
    for name, title, known in TABLES:
        recalls = [_recall(label, place) for place, label in enumerate(comparison.labels)]
        columns = [
            column
            for column in (*known, *(recalls if name == "accuracy" else ()))
            if not column.is_optional or any(column.found(row) is not None for row in comparison.rows)
        ]
        notes: list[str] = []
        lines = tuple(
            Line(
                row.name,
                tuple(_cell(column, row, notes) for column in columns),
                row.name == recommendation.name,
            )
            for row in comparison.rows
        )
        headings = ("Variant", *(column.heading for column in columns))
        tables.append(Table(name, title, headings, lines, tuple(notes)))
    return tables


def _cell(column: Column, row: ComparedVariant, notes: list[str]) -> Cell:
    found = column.found(row)
    is_number = column.write is not None
    if row.is_baseline and column.of_baseline is not None:
        return Cell(column.of_baseline, 0.0 if found is None else column.sort(found), is_number)
    if found is not None:
        return Cell(column.write(found) if column.write else found, column.sort(found), is_number)
    missing = row.why_missing(column.field)
    reason = "no reason was recorded" if missing is None else missing.reason
    if reason not in notes:
        notes.append(reason)
    unrun = missing is not None and missing.kind == "no_device"
    text = NOT_RUN if unrun else NOT_MEASURED
    return Cell(text, None, is_number, (notes.index(reason) + 1,), is_missing=True)


def remarks(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """Returns the profiles' notes and reasons: first those of every variant, then the others by variant.

    The reasons in a profile of schema 1 point to its notes, so these stand alone.
    """
    told = {}
    for row in comparison.rows:
        reasons = [entry.reason for entry in row.measured.missing.values()]
        reasons = reasons if row.source.profile.schema_ > 1 else []
        told[row.name] = list(dict.fromkeys([*row.measured.notes, *reasons]))
    entries = list(told.items())
    if len(entries) > 1:
        shared = [note for note in entries[0][1] if all(note in notes for notes in told.values())]
        own = [(name, [note for note in notes if note not in shared]) for name, notes in entries]
        entries = [("every variant", shared), *own]
    return [(name, notes) for name, notes in entries if notes]


# ---------------------------------------------------------------------------------------------
# As plain text


def aligned(table: Table) -> list[str]:
    """Returns a table as lines of a terminal."""
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
    """Returns a table as lines of Markdown; numbers behind a cell point to the notes below it."""
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
    """Escapes a text for Markdown, where it stays in one line."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(text.split()))


def flatten_record(record: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Returns a nested record, such as an environment, as pairs of a name and a text: `cpu, model` and its value."""
    if not isinstance(record, dict):
        return [(prefix, _value_text(prefix, record))]
    if prefix and record and all(_is_version(value) for value in record.values()):
        return [(prefix, ", ".join(f"{key} {value}" for key, value in record.items()))]
    pairs: list[tuple[str, str]] = []
    for key, value in record.items():
        name = re.sub(r"_(n?s|ms|px)$", r", \1", str(key).removesuffix("_bytes")).replace("_", " ")
        name = f"{prefix}, {name}" if prefix else name
        if isinstance(value, dict) and value:
            pairs += flatten_record(value, name)
        elif isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
            for place, entry in enumerate(value, start=1):
                pairs += flatten_record(entry, f"{name} {place}")
        else:
            pairs.append((name, _value_text(str(key), value)))
    return pairs


def _value_text(key: str, value: Any) -> str:
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
        return ", ".join(_value_text("", entry) for entry in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {entry}" for name, entry in value.items()) or "none"
    return str(value)


def _is_version(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\d+(\.[\w+-]+)+", value) is not None
