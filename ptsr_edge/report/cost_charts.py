"""Pictures of what a variant costs: how its latency is distributed, and where its multiply-adds go."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.report import svg
from ptsr_edge.report.comparison import (
    Comparison,
    Row,
    _percent,
    budget_text,
    quantity,
    raw_samples,
    three_digits,
)
from ptsr_edge.report.plotting import Canvas, render, role_of, scale_time
from ptsr_edge.report.svg import Picture
from ptsr_edge.report.verdict import Verdict

MOST_ROWS = 16
"""A picture with one line a variant shows no more than these."""

MOST_OPERATORS = 5
"""Operators that get a colour of their own; the rest is drawn as one."""


def latency(comparison: Comparison, verdict: Verdict) -> Picture:
    """The distribution of each variant's latency: outline, median, p99 and the slowest sample."""
    name, title = "latency", "How latency is distributed"
    loaded = [(row, *raw_samples(row)) for row in comparison.rows if row.p50_ms is not None]
    drawn = [(row, samples) for row, samples, _reason in loaded if samples is not None]
    missing = [f"{row.name} ({reason})" for row, samples, reason in loaded if samples is None]
    if not drawn:
        why = "; ".join(sorted({reason for _row, _samples, reason in loaded})) or "latency was not measured"
        return Picture(name, title, note=f"Not drawn: {why}.")
    left_out = len(drawn) - MOST_ROWS
    picked = next((row for row, _ in drawn if row.name == verdict.name), None)
    subjects = [picked, comparison.reference(picked)] if picked else []
    drawn.sort(key=lambda pair: (pair[0] not in subjects, pair[0].p50_ms))
    drawn = sorted(drawn[:MOST_ROWS], key=lambda pair: -(pair[0].p50_ms or 0.0))
    extremes = [float(edge) for _, samples in drawn for edge in (samples.min(), samples.max())]

    def paint(canvas: Canvas) -> None:
        margin = 12 + max(svg.text_width(row.name) for row, _ in drawn)
        margin = min(margin, 0.4 * canvas.width)
        axes = canvas.axes(margin, 12, 4, 44)
        scale_time(axes, extremes, logarithmic=True, room=0.2 if canvas.compact else 0.08)
        axes.set_ylim(len(drawn) - 0.6, -0.85)
        axes.set_yticks(
            range(len(drawn)),
            [svg.shortened(row.name, margin - 8) for row, _ in drawn],
            color=svg.colour("ink"),
        )
        axes.xaxis.grid(visible=True)
        for place, (row, samples) in enumerate(drawn):
            _distribution(canvas, axes, place, role_of(row, comparison), row, samples)
        canvas.title_axis(margin, "Latency in ms, equal steps are equal factors")

    counts = sorted({int(samples.size) for _, samples in drawn})
    span = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    caption = f"All raw samples, {span} a variant, none removed. Shape: the samples up to p95; number and "
    caption += "bar: the median; tick: p99; line: from the fastest to the slowest sample."
    caption += f" Not drawn: {'; '.join(missing)}." if missing else ""
    caption += f" {left_out} slower ones are left out for room." if left_out > 0 else ""
    words = "; ".join(_latency_words(row, samples) for row, samples in drawn)
    height = 54 + 38 * len(drawn)
    wide, narrow = render(name, (height, height), paint)
    return Picture(name, title, caption, f"{words}.", wide, narrow)


def macs(comparison: Comparison, _: Verdict) -> Picture:
    """Multiply-adds of each budget, split by operator where the split was recorded."""
    name, title = "macs", "Where the multiply-adds go"
    rows: list[Row] = []
    for row in comparison.rows:  # precision, target and machine leave the count as it is
        known = {(other.measured.tokens, other.measured.macs, other.is_baseline) for other in rows}
        if (row.measured.tokens, row.measured.macs, row.is_baseline) not in known:
            rows.append(row)
    left_out, rows = len(rows) - MOST_ROWS, rows[:MOST_ROWS]
    top = max(row.measured.macs for row in rows)
    if top <= 0:
        return Picture(name, title, note="Not drawn: no multiply-adds were counted.")
    roles = _operator_roles(rows)
    base = next((row for row in rows if row.is_baseline), None)
    names = ["full ViT" if row.is_baseline else budget_text(row.measured.keep_rate) for row in rows]

    key = 30 if roles else 0

    def paint(canvas: Canvas) -> None:
        axes = canvas.axes(76, 104, key, 4)
        axes.set_xlim(0, top)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xticks([])
        axes.set_yticks(range(len(rows)), names, color=svg.colour("ink"))
        for place, row in enumerate(rows):
            _bar(canvas, axes, place, row, names[place], roles)
            text = quantity(row.measured.macs)
            text += (
                "" if base is None or row is base else f", {_percent(row.measured.macs, base.measured.macs)}"
            )
            axes.annotate(
                text, (row.measured.macs, place), (7, -4), textcoords="offset points", va="baseline"
            )
        x = 4.0
        for operator, role in roles.items():
            canvas.write(x, 16, operator, role, weight="bold")
            x += svg.text_width(operator, bold=True) + 12

    words = "; ".join(
        f"{label} {quantity(row.measured.macs)}" for label, row in zip(names, rows, strict=True)
    )
    caption = "Multiply-adds of one inference; one multiplication with its addition counts as one."
    caption += " Percentage: of the full-token ViT." if base and len(rows) > 1 else ""
    caption += "" if roles else " The split by operator was not recorded."
    caption += f" {left_out} more are in the tables." if left_out > 0 else ""
    height = key + 4 + 36 * len(rows)
    wide, narrow = render(name, (height, height), paint)
    return Picture(name, title, caption, f"Multiply-adds: {words}.", wide, narrow)


def _distribution(
    canvas: Canvas, axes: Any, place: int, role: str, row: Row, samples: NDArray[np.float64]
) -> None:
    """A half outline over the line `place`, with its median, its p99 and its slowest sample."""
    p50, p95, p99 = np.percentile(samples, (50, 95, 99))
    bulk = samples[samples <= p95]
    bins = int(np.clip(np.sqrt(samples.size), 8, 24))
    counts, edges = np.histogram(np.log(bulk), bins=bins)
    heights = 0.62 * counts / max(counts.max(), 1)
    x, y = np.repeat(np.exp(edges), 2), np.concatenate([[0], np.repeat(heights, 2), [0]])
    axes.plot([samples.min(), samples.max()], [place, place], color=svg.colour(role), lw=1)
    (shape,) = axes.fill(x, place - y, color=svg.colour(role), alpha=0.45, lw=0)
    axes.plot([p99, p99], [place - 0.1, place + 0.1], color=svg.colour(role), lw=1.5)
    axes.plot([samples.max()], [place], "o", ms=4, color=svg.colour(role), clip_on=False)
    axes.plot([p50, p50], [place - 0.66, place + 0.1], color=svg.colour("ink"), lw=1.5)
    canvas.tip(shape, _latency_words(row, samples))
    x_left, y_left = canvas.pixel(axes, float(samples.min()), place)
    canvas.write(x_left - 7, y_left + 4, three_digits(float(p50)), "ink", ha="right")


def _latency_words(row: Row, samples: NDArray[np.float64]) -> str:
    p50, p90, p99 = np.percentile(samples, (50, 90, 99))
    return (
        f"{row.name}: p50 {three_digits(p50)} ms, p90 {three_digits(p90)} ms, p99 {three_digits(p99)} ms, "
        f"{three_digits(samples.min())} to {three_digits(samples.max())} ms"
    )


def _operator_roles(rows: list[Row]) -> dict[str, str]:
    """The operators that make up most, each with its colour; empty where no split was recorded."""
    totals: Counter[str] = Counter()
    for row in rows:
        totals.update(row.measured.macs_by_operator or {})
    named = [operator for operator, count in totals.most_common() if count]
    roles = dict(zip(named[:MOST_OPERATORS], svg.SERIES, strict=False))
    if len(named) > MOST_OPERATORS:
        roles["other"] = "muted"
    return roles


def _bar(canvas: Canvas, axes: Any, place: int, row: Row, label: str, roles: dict[str, str]) -> None:
    total = row.measured.macs
    parts = dict(row.measured.macs_by_operator or {})
    split = {operator: parts.pop(operator, 0) for operator in roles if operator != "other"}
    # What the split leaves out belongs to the variant all the same.
    split["other" if parts else "not split"] = max(0, total - sum(split.values()))
    start = 0
    for operator, count in split.items():
        if not count:
            continue
        role = roles.get(operator, "muted")
        (bar,) = axes.barh([place], [count], left=start, height=0.56, color=svg.colour(role))
        bar.set_edgecolor(svg.colour("paper"))
        canvas.tip(bar, f"{label}, {operator}: {quantity(count)}MAC, {_percent(count, total)}")
        start += count
