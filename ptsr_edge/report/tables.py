"""The columns of the report's tables: a heading, where a row's value is found, and how it is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ptsr_edge.report.comparison import (
    Row,
    _per_cent,
    _three,
    budget_text,
    bytes_text,
    quantity,
    ratio_text,
    signed,
    three_digits,
)
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
    value: Callable[[Row], Value]
    write: Callable[[Any], str] | None = None
    of_baseline: str | None = None
    row_text: Callable[[Row], str] | None = None
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

    def found(row: Row) -> Ratio | None:
        ratio: Ratio | None = getattr(row.measured, name)
        return ratio

    def write(row: Row) -> str:
        ratio = found(row)
        assert ratio is not None, "only a ratio that was measured is written"
        return ratio_text(ratio.median, ratio.low, ratio.high)

    def value(row: Row) -> Value:
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


def _reached(row: Row) -> Value:
    """10^9 multiply-adds a second at the median."""
    return None if row.p50_ms is None else row.measured.macs / (row.p50_ms * 1e6)


def recall_columns(labels: Sequence[str]) -> tuple[Column, ...]:
    """A column a class: the share of its samples that were recognised."""

    def of(place: int) -> Callable[[Row], Value]:
        def recall(row: Row) -> Value:
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
