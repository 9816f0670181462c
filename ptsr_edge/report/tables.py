"""The report's tables: columns, cells, why the empty ones are empty, and tables as plain text."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ptsr_edge.core.console import printable
from ptsr_edge.profile.schema import ITSELF, Accuracy, MissingKind, null_results
from ptsr_edge.report.comparison import (
    ComparedVariant,
    Comparison,
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

NONE = "-"
"""What stands in a cell without a result; its reason is shown on hover and in the table of reasons."""

MARKS: dict[MissingKind, str] = {"no_device": "not run", "failed": "failed", "disturbed": "disturbed"}
"""The kinds of a missing result that a cell names in a word."""

RESULTS = {
    "latency_ms": "latency", "ratio": "times as fast as the baseline", "ratio_same_precision": "times as fast as the ViT alike",
    "ratio_cpu_time": "ratio by CPU time", "ratio_sample": "ratio of a whole sample", "sample_ms": "time of a whole sample",
    "predict_ms": "time of a predict call", "load_ms": "time to load", "first_ms": "first inference", "cpu_share": "share of a core",
    "peak_rss_bytes": "peak memory", "base_rss_bytes": "memory of the runtime", "throughput_per_s": "throughput",
    "energy_mj": "energy", "stages": "time by stage", "stages.face_ms": "time to find a face", "stages.flow_ms": "time of the flow",
    "stages.strain_ms": "time of the strain", "stages.operators": "time by operator", "ceiling": "ceiling of the machine",
    "ceiling.gmacs_per_s": "ceiling of the machine", "ceiling.share": "share of the ceiling", "accuracy.uar_drop": "UAR lost",
    "accuracy.uar_drop_low": "interval of the UAR lost", "accuracy.uar_drop_high": "interval of the UAR lost",
    "accuracy.confusion": "confusion matrix", "accuracy.predicted": "answers by sample", "macs_by_operator": "MACs by operator",
    "macs_eager": "MACs as written", "macs_graph": "MACs in the file",
}  # fmt: skip
"""Results in words, by the names of `missing`; one that is not here is its own name."""


@dataclass(frozen=True)
class Column:
    """A heading, the field that it shows, and how that is written.

    Attributes:
        field: of `Measured`, such as `latency_ms.p50`; where it is null, its reason is that of the cell.
        write: makes the text of what was found; None: that is a text itself.
        find: what is shown of a variant where that is not the field itself; None is missing.
        sort: the number or text that a cell is sorted by, of what was found.
        of_baseline: what is written for a baseline without it, which is not compared with itself.
        explained: how to read it, said below the table.
        is_folded: whether it is said below the table where it is the same for all.
    """

    heading: str
    field: str
    write: Callable[[Any], str] | None = None
    find: Callable[[ComparedVariant], Any] | None = None
    sort: Callable[[Any], Value] = lambda found: found
    of_baseline: str | None = None
    explained: str = ""
    is_folded: bool = False

    def found(self, row: ComparedVariant) -> Any:
        """Returns what is shown of a variant, None where it was not measured."""
        found: Any = row.measured
        for name in () if self.find else self.field.split("."):
            found = getattr(found, name, None)
        return self.find(row) if self.find else found


def _ratio(heading: str, field: str, explained: str) -> Column:
    def middle(ratio: Ratio) -> float:
        return ratio.median

    return Column(heading, field, _timed_text, sort=middle, of_baseline="baseline", explained=explained)


def _timed_text(ratio: Ratio) -> str:
    return ratio_text(ratio) + (" by CPU" if ratio.clock == "cpu" else "")


def _total_ms(row: ComparedVariant) -> float | None:
    """Returns the time of a whole sample by its stages, with the inference as it is in every other table."""
    stages = row.measured.stages
    if stages is None or stages.flow_ms is None or stages.strain_ms is None:
        return None
    inference = stages.inference_ms if row.p50_ms is None else row.p50_ms
    return stages.flow_ms + stages.strain_ms + stages.normalise_ms + inference + stages.postprocess_ms


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
    "UAR lost: of the full-token ViT, with the 95 % interval; above zero is worse, below zero better, and it is called "
    "none where the interval holds zero.",
)

_TOKENS = Column("Tokens", "tokens", str)

_SIZE = Column("Size", "size_bytes", bytes_text)

TABLES: tuple[tuple[str, str, tuple[Column, ...]], ...] = (
    (
        "summary",
        "Every variant",
        (
            _ratio(
                "As the ViT alike",
                "ratio_same_precision",
                "Columns of x: how many times as fast, with the 95 % interval. As the ViT alike: as the full-token ViT in the "
                "same runtime and precision, so that tokens alone differ.",
            ),
            _ratio(
                "Whole sample",
                "ratio_sample",
                "Whole sample: from two face crops to the answer, flow and strain included, against the same of the baseline.",
            ),
            _ratio(
                "As the baseline",
                "ratio",
                "As the baseline: against the ViT of the row called baseline; runtime, precision and tokens differ together.",
            ),
            _P50,
            _UAR,
            _UAR_LOST,
            _TOKENS,
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
            Column(
                "Inference, ms",
                "latency_ms.p50",
                three_digits,
                explained="Inference: p50 of the latency, as in every table and chart; the other stages were timed apart from it.",
            ),
            Column("Answer, ms", "stages.postprocess_ms", three_digits),
            Column("Sum, ms", "stages", three_digits, _total_ms, explained="Sum: without finding the face."),
            Column("Whole sample, ms", "sample_ms", three_digits),
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
            _TOKENS,
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
            Column("Data", "accuracy.data", is_folded=True),
            Column("Protocol", "accuracy.protocol", is_folded=True),
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
    """What is written, the value it is sorted by (None: last), and why there is no result where there is none."""

    text: str
    sort: Value
    is_number: bool
    reason: str = ""


@dataclass(frozen=True)
class Line:
    """A row of a table."""

    name: str
    cells: tuple[Cell, ...]
    is_picked: bool


@dataclass(frozen=True)
class Table:
    """A table: the first heading is that of the rows' names, `notes` explain columns and marks below it."""

    name: str
    title: str
    headings: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()

    @property
    def has_gaps(self) -> bool:
        """Whether a cell has no result."""
        return any(cell.reason for line in self.lines for cell in line.cells)


def build_tables(comparison: Comparison, recommendation: Recommendation) -> list[Table]:
    """Builds all tables that have a line per variant, without the columns and tables for which nothing was measured."""
    tables = []
    for name, title, known in TABLES:
        recalls = [_recall(label, place) for place, label in enumerate(comparison.labels)]
        columns = [
            column
            for column in (*known, *(recalls if name == "accuracy" else ()))
            if any(column.found(row) is not None for row in comparison.rows)
        ]
        if not columns:
            continue
        folded = {column.heading: shared for column in columns if (shared := _shared(column, comparison))}
        columns = [column for column in columns if column.heading not in folded]
        lines = tuple(
            Line(row.name, tuple(_cell(column, row) for column in columns), row.name == recommendation.name)
            for row in comparison.rows
        )
        notes = [f"{heading}: {shared}." for heading, shared in folded.items()]
        notes += [column.explained for column in columns if column.explained]
        if any(cell.text.endswith("by CPU") for line in lines for cell in line.cells):
            notes.append("By CPU: of the time that the processes had a core, since others used it too.")
        headings = ("Variant", *(column.heading for column in columns))
        tables.append(Table(name, title, headings, lines, tuple(notes)))
    return tables


def _shared(column: Column, comparison: Comparison) -> str | None:
    """Returns what a column that may be folded has for every variant that has it, None where that differs."""
    found = {column.found(row) for row in comparison.rows} - {None} if column.is_folded else set()
    return found.pop() if len(found) == 1 else None


def _cell(column: Column, row: ComparedVariant) -> Cell:
    found = column.found(row)
    is_number = column.write is not None
    if found is not None:
        text = column.write(found) if column.write else found
        its_own = column.of_baseline if row.measured.id == row.source.profile.baseline else None
        return Cell(its_own or text, column.sort(found), is_number)
    missing = row.why_missing(column.field)
    if row.is_baseline and column.of_baseline and (missing is None or missing.kind == "not_applicable"):
        return Cell(column.of_baseline, 0.0, is_number)
    if missing is None:
        return Cell(NONE, None, is_number, "no reason was recorded")
    return Cell(MARKS.get(missing.kind, NONE), None, is_number, missing.reason)


# ---------------------------------------------------------------------------------------------
# Reasons and remarks, each once


def reasons(comparison: Comparison) -> list[tuple[str, str]]:
    """Returns why results are missing: each reason once, with the results and variants that it concerns."""
    found: dict[str, dict[str, list[str]]] = {}
    for row in comparison.rows:
        of_row: dict[str, list[str]] = {}
        for field in null_results(row.measured):
            missing = row.why_missing(field)
            if missing is None or missing.reason == ITSELF:
                continue
            word = RESULTS.get(field, field.replace("_", " "))
            words = of_row.setdefault(missing.reason, [])
            words += [] if word in words else [word]
        for reason, words in of_row.items():
            found.setdefault(reason, {}).setdefault(", ".join(words), []).append(row.name)
    return [
        (reason, "; ".join(f"{words}: {_whose(names, comparison)}" for words, names in groups.items()))
        for reason, groups in found.items()
    ]


def gaps(table: Table) -> list[tuple[str, str]]:
    """Returns why cells of a table have no result: each reason once, with the lines that it concerns."""
    found: dict[str, list[str]] = {}
    for line in table.lines:
        for reason in dict.fromkeys(cell.reason for cell in line.cells if cell.reason):
            found.setdefault(reason, []).append(line.name)
    return [(reason, f"{table.title}: {', '.join(names)}") for reason, names in found.items()]


def remarks(comparison: Comparison) -> list[tuple[str, str]]:
    """Returns the profiles' notes beside results that are there: each once, with the variants that it concerns."""
    found: dict[str, list[str]] = {}
    for row in comparison.rows:
        why = {entry.reason for entry in row.measured.missing.values()}
        for note in dict.fromkeys(row.measured.notes):
            if note not in why:
                found.setdefault(note, []).append(row.name)
    return [(note, _whose(names, comparison)) for note, names in found.items()]


def _whose(names: list[str], comparison: Comparison) -> str:
    """Writes which variants something concerns, in as few words as will do."""
    every = [row.name for row in comparison.rows]
    if len(names) == len(every) > 1:
        return "every variant"
    if len(names) > 1 and names == [row.name for row in comparison.rows if not row.is_baseline]:
        return "every variant but the ViT"
    return ", ".join(names)


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
    """Returns a table as lines of Markdown."""
    numbers = [False, *(cell.is_number for cell in table.lines[0].cells)]
    written = [
        f"| {' | '.join(map(markdown, table.headings))} |",
        "|" + "|".join(" ---: " if number else " --- " for number in numbers) + "|",
    ]
    for line in table.lines:
        name = f"**{markdown(line.name)}**" if line.is_picked else markdown(line.name)
        written.append(f"| {' | '.join([name, *(markdown(cell.text) for cell in line.cells)])} |")
    return written


def markdown(text: str) -> str:
    """Escapes a text for Markdown, where it stays in one line."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", printable(" ".join(text.split())))


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
