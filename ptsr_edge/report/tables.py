"""The columns of the report's tables: a heading, where a row's value is found, and how it is written."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ptsr_edge.profile.schema import NOT_RUN
from ptsr_edge.report.comparison import (
    ComparedVariant,
    Comparison,
    _per_cent,
    _three,
    budget_text,
    bytes_text,
    quantity,
    ratio_text,
    signed,
    three_digits,
)
from ptsr_edge.report.recommendation import Recommendation
from ptsr_edge.stats.latency import Ratio

Value = float | int | str | None


@dataclass(frozen=True)
class Column:
    """A heading, how a row's value is found, and how it is written (None: as it is).

    Attributes:
        of_baseline: what is written for baselines, which are not compared with themselves.
        row_text: how it is written where the value alone does not say it all.
        topics: words of the notes that say why this figure is missing.
        is_of_file: whether it is read from the artifact, so that it needs no run.
        is_optional: whether it is left out where no variant has it.
    """

    heading: str
    value: Callable[[ComparedVariant], Value]
    write: Callable[[Any], str] | None = None
    of_baseline: str | None = None
    row_text: Callable[[ComparedVariant], str] | None = None
    topics: tuple[str, ...] = ()
    is_of_file: bool = False
    is_optional: bool = False


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


def _ratio(heading: str, name: str, **more: Any) -> Column:
    """A ratio with its interval, sorted by its middle."""

    def found(row: ComparedVariant) -> Ratio | None:
        ratio: Ratio | None = getattr(row.measured, name)
        return ratio

    def write(row: ComparedVariant) -> str:
        ratio = found(row)
        assert ratio is not None, "only a ratio that was measured is written"
        return ratio_text(ratio.median, ratio.low, ratio.high)

    def value(row: ComparedVariant) -> Value:
        ratio = found(row)
        return None if ratio is None else ratio.median

    return Column(heading, value, row_text=write, topics=("ratio", "nothing was timed"), **more)


def _stage(heading: str, name: str) -> Column:
    return Column(
        heading,
        lambda row: getattr(row.measured.stages, name, None),
        three_digits,
        topics=("stages", "nothing was timed"),
    )


def _ceiling(heading: str, name: str, write: Callable[[Any], str]) -> Column:
    return Column(
        heading,
        lambda row: getattr(row.measured.ceiling, name, None),
        write,
        topics=("ceiling", "nothing was timed"),
    )


def _reached(row: ComparedVariant) -> Value:
    """10^9 multiply-adds a second at the median."""
    return None if row.p50_ms is None else row.measured.macs / (row.p50_ms * 1e6)


def recall_columns(labels: Sequence[str]) -> tuple[Column, ...]:
    """A column a class: the share of its samples that were recognised."""

    def of(place: int) -> Callable[[ComparedVariant], Value]:
        def recall(row: ComparedVariant) -> Value:
            matrix = row.measured.accuracy.confusion if row.measured.accuracy else None
            return None if not matrix or not sum(matrix[place]) else matrix[place][place] / sum(matrix[place])

        return recall

    topics = ("accuracy", "could not be run")
    return tuple(
        Column(f"Recall, {label}", of(place), _three, topics=topics) for place, label in enumerate(labels)
    )


_P50 = _latency("p50, ms", "p50")

_P99 = _latency("p99, ms", "p99")

UAR = _accuracy("UAR", "uar", _three)

DROP = _accuracy("UAR lost", "uar_drop", signed, of_baseline="baseline")

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
            _ratio("Times as fast", "ratio", of_baseline="baseline"),
            UAR,
            DROP,
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
            _ratio("Times as fast as the ViT alike", "ratio_same_precision", is_optional=True),
        ),
    ),
    (
        "stages",
        "Stages in full",
        (
            _stage("A face found, ms", "face_ms"),
            _stage("Flow, ms", "flow_ms"),
            _stage("Strain, ms", "strain_ms"),
            _stage("Normalise, ms", "normalise_ms"),
            _stage("Inference, ms", "inference_ms"),
            _stage("Answer, ms", "postprocess_ms"),
        ),
    ),
    (
        "work",
        "Multiply-adds, and what the machine could do",
        (
            _measured("As written", "macs_eager", quantity, "fvcore"),
            _measured("Exported", "macs", quantity),
            Column(
                "In the file",
                lambda row: row.measured.macs_graph,
                quantity,
                topics=("own graph", "by operator"),
                is_of_file=True,
            ),
            Column("10⁹ a second", _reached, three_digits, topics=("nothing was timed", "latency was not")),
            _ceiling("Ceiling", "gmacs_per_s", three_digits),
            _ceiling("Share of it", "share", _per_cent),
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
            _measured("Streams", "streams", str, "throughput"),
            _measured("Energy, mJ", "energy_mj", three_digits, "energy"),
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
            UAR,
            DROP,
        ),
    ),
)
"""Name, title and columns. A further table is one more entry."""

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


def build_tables(comparison: Comparison, verdict: Recommendation) -> list[Table]:
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


def _cell(column: Column, row: ComparedVariant, notes: list[str]) -> Cell:
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


def _reasons(row: ComparedVariant, column: Column) -> list[str]:
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


# FOLDED from report.facts: Nested records, such as an environment, as pairs of a name and a text.


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
