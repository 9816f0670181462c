"""Charts of cost: how latency is distributed, where multiply-adds and time go, what DTSM's dynamic mode would keep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.profile.schema import Stages
from ptsr_edge.report.comparison import (
    ComparedVariant,
    Comparison,
    budget_text,
    percent,
    quantity,
    raw_samples,
    three_digits,
)
from ptsr_edge.report.plotting import (
    KEY_LINE,
    NARROW,
    SERIES,
    WIDE,
    Canvas,
    Drawing,
    NotDrawn,
    colour,
    key_lines,
    role_of,
    scale_time,
    shortened,
    text_width,
)
from ptsr_edge.report.recommendation import Recommendation

MOST_DISTRIBUTIONS = 16

MOST_TIME_BARS = 12

MOST_MACS_BARS = 16


# ---------------------------------------------------------------------------------------------
# Latency


def latency(comparison: Comparison, recommendation: Recommendation) -> Drawing | NotDrawn:
    """Draws the distribution of each variant's latency: outline, median, p99 and the slowest sample."""
    loaded = [(row, *raw_samples(row)) for row in comparison.rows if row.p50_ms is not None]
    drawn = [(row, samples) for row, samples, _reason in loaded if samples is not None]
    missing = [f"{row.name} ({reason})" for row, samples, reason in loaded if samples is None]
    if not drawn:
        return NotDrawn("; ".join(sorted({reason for *_, reason in loaded})) or "latency was not measured")
    left_out = len(drawn) - MOST_DISTRIBUTIONS
    picked = next((row for row, _ in drawn if row.name == recommendation.name), None)
    subjects = [picked, comparison.reference(picked)] if picked else []
    drawn.sort(key=lambda pair: (pair[0] not in subjects, pair[0].p50_ms))
    drawn = sorted(drawn[:MOST_DISTRIBUTIONS], key=lambda pair: -(pair[0].p50_ms or 0.0))
    extremes = [float(edge) for _, samples in drawn for edge in (samples.min(), samples.max())]

    def paint(canvas: Canvas) -> None:
        margin = min(12 + max(text_width(row.name) for row, _ in drawn), 0.4 * canvas.width)
        axes = canvas.axes(margin, 12, 4, 44)
        scale_time(axes, extremes, logarithmic=True, room=0.2 if canvas.compact else 0.08)
        axes.set_ylim(len(drawn) - 0.6, -0.85)
        names = [shortened(row.name, margin - 8) for row, _ in drawn]
        axes.set_yticks(range(len(drawn)), names, color=colour("ink"))
        axes.xaxis.grid(visible=True)
        for place, (row, samples) in enumerate(drawn):
            _distribution(canvas, axes, place, role_of(row, comparison), row, samples)
        canvas.title_axis(margin, "Latency in ms, equal steps are equal factors")

    counts = sorted({int(samples.size) for _, samples in drawn})
    span = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    caption = f"All raw samples, {span} a variant, none removed. Shape: the samples up to p95; number and "
    caption += "bar: the median; tick: p99; line: from the fastest to the slowest sample."
    caption += f" Not drawn: {'; '.join(missing)}." if missing else ""
    caption += (
        f" {left_out} slower {'one is' if left_out == 1 else 'ones are'} left out for room."
        if left_out > 0
        else ""
    )
    words = "; ".join(_latency_words(row, samples) for row, samples in drawn)
    height = 54 + 38 * len(drawn)
    return Drawing(paint, (height, height), caption, f"{words}.")


def _distribution(
    canvas: Canvas, axes: Any, place: int, role: str, row: ComparedVariant, samples: NDArray[np.float64]
) -> None:
    """Draws a half outline over the line `place`, with its median, its p99 and its slowest sample."""
    p50, p95, p99 = np.percentile(samples, (50, 95, 99))
    bulk = samples[samples <= p95]
    bins = int(np.clip(np.sqrt(samples.size), 8, 24))
    counts, edges = np.histogram(np.log(bulk), bins=bins)
    heights = 0.62 * counts / max(counts.max(), 1)
    x, y = np.repeat(np.exp(edges), 2), np.concatenate([[0], np.repeat(heights, 2), [0]])
    axes.plot([samples.min(), samples.max()], [place, place], color=colour(role), lw=1)
    (shape,) = axes.fill(x, place - y, color=colour(role), alpha=0.45, lw=0)
    axes.plot([p99, p99], [place - 0.1, place + 0.1], color=colour(role), lw=1.5)
    axes.plot([samples.max()], [place], "o", ms=4, color=colour(role), clip_on=False)
    axes.plot([p50, p50], [place - 0.66, place + 0.1], color=colour("ink"), lw=1.5)
    canvas.tip(shape, _latency_words(row, samples))
    x_left, y_left = canvas.pixel(axes, float(samples.min()), place)
    canvas.write(x_left - 7, y_left + 4, three_digits(float(p50)), "ink", ha="right")


def _latency_words(row: ComparedVariant, samples: NDArray[np.float64]) -> str:
    p50, p90, p99 = np.percentile(samples, (50, 90, 99))
    return (
        f"{row.name}: p50 {three_digits(p50)} ms, p90 {three_digits(p90)} ms, p99 {three_digits(p99)} ms, "
        f"{three_digits(samples.min())} to {three_digits(samples.max())} ms"
    )


# ---------------------------------------------------------------------------------------------
# Multiply-adds

MOST_OPERATORS = 5
"""Operators that get a colour of their own; the rest is drawn as one."""


def macs(comparison: Comparison, _: Recommendation) -> Drawing | NotDrawn:
    """Draws the multiply-adds of each budget, split by operator where the split was recorded."""
    different: dict[tuple[int, int, bool], ComparedVariant] = {}
    for row in comparison.rows:  # precision, target and machine leave the count as it is
        different.setdefault((row.measured.tokens, row.measured.macs, row.is_baseline), row)
    rows = list(different.values())[:MOST_MACS_BARS]
    left_out = len(different) - len(rows)
    top = max(row.measured.macs for row in rows)
    if top <= 0:
        return NotDrawn("no multiply-adds were counted")
    roles = _operator_roles(rows)
    base = next((row for row in rows if row.is_baseline), None)
    names = ["full ViT" if row.is_baseline else budget_text(row.measured.keep_rate) for row in rows]
    key = 30 if roles else 0

    def paint(canvas: Canvas) -> None:
        axes = canvas.bar_axes(names, 104, key)
        axes.set_xlim(0, top)
        for place, (row, name) in enumerate(zip(rows, names, strict=True)):
            total = row.measured.macs
            parts = [
                (
                    count,
                    roles.get(part, "muted"),
                    f"{name}, {part}: {quantity(count)}MAC, {percent(count / total)}",
                )
                for part, count in _split(row, roles).items()
            ]
            text = quantity(total)
            text += "" if base is None or row is base else f", {percent(total / base.measured.macs)}"
            canvas.stacked_bar(axes, place, parts, text)
        canvas.key(roles)

    words = "; ".join(f"{name} {quantity(row.measured.macs)}" for name, row in zip(names, rows, strict=True))
    caption = "Multiply-adds of one inference; one multiplication with its addition counts as one."
    caption += " Percentage: of the full-token ViT." if base and len(rows) > 1 else ""
    caption += "" if roles else " The split by operator was not recorded."
    caption += f" {left_out} more are in the tables." if left_out > 0 else ""
    height = key + 4 + 36 * len(rows)
    return Drawing(paint, (height, height), caption, f"Multiply-adds: {words}.")


def _operator_roles(rows: list[ComparedVariant]) -> dict[str, str]:
    """Returns the operators that make up most, each with its colour; empty where no split was recorded."""
    totals: Counter[str] = Counter()
    for row in rows:
        totals.update(row.measured.macs_by_operator or {})
    named = [operator for operator, count in totals.most_common() if count]
    roles = dict(zip(named[:MOST_OPERATORS], SERIES, strict=False))
    if len(named) > MOST_OPERATORS:
        roles["other"] = "muted"
    return roles


def _split(row: ComparedVariant, roles: Mapping[str, str]) -> dict[str, int]:
    """Returns a variant's multiply-adds by operator with a colour; what that leaves out belongs to it all the same."""
    counts = row.measured.macs_by_operator or {}
    split = {operator: counts.get(operator, 0) for operator in roles if operator != "other"}
    split["other" if counts.keys() - split.keys() else "not split"] = max(
        0, row.measured.macs - sum(split.values())
    )
    return {operator: count for operator, count in split.items() if count}


# ---------------------------------------------------------------------------------------------
# Time

MOST_CLASSES = 3
"""Classes of operators that get a colour of their own; the rest is drawn as one."""

FLOW, AROUND, OTHER = "flow and strain", "before and after", "other operators"


def stages(comparison: Comparison, recommendation: Recommendation) -> Drawing | NotDrawn:
    """Draws a bar per variant, in milliseconds: pre-processing, inference by class of operator, post-processing."""
    timed = [(row, row.measured.stages) for row in comparison.rows if row.measured.stages is not None]
    if not timed:
        return NotDrawn("stages were not timed")
    first = sorted(timed, key=lambda pair: not pair[0].is_baseline and pair[0].name != recommendation.name)
    shown = [pair for pair in timed if pair in first[:MOST_TIME_BARS]]
    rows = [(row.name, stages_ms(record)) for row, record in shown]
    roles = _part_roles([parts for _, parts in rows])

    def key(width: int) -> float:
        return 14 + KEY_LINE * len(key_lines(roles, width))

    def paint(canvas: Canvas) -> None:
        axes = canvas.bar_axes([name for name, _ in rows], 64, key(canvas.width))
        axes.set_xlim(0, max(sum(parts.values()) for _, parts in rows))
        for place, (name, parts) in enumerate(rows):
            total = sum(parts.values())
            drawn = dict.fromkeys(roles, 0.0)
            for part, time in parts.items():
                drawn[part if part in roles else OTHER] += time
            entries = [
                (time, roles[part], f"{name}, {part}: {three_digits(time)} ms, {percent(time / total)}")
                for part, time in drawn.items()
                if time
            ]
            canvas.stacked_bar(axes, place, entries, f"{three_digits(total)} ms")
        canvas.key(roles)

    caption = (
        "Milliseconds of one sample, medians. The inference is split by the shares that the runtime's own "
    )
    caption += (
        "profiler gives, which slows small operators more than large ones. Finding the face is not part of "
    )
    caption += "it: that is done twice a second, whatever is asked."
    untold = sum(record.operators is None for _, record in shown)
    caption += f" {untold} of these could not be split." if untold else ""
    left_out = len(timed) - len(shown)
    caption += f" {left_out} more {'is' if left_out == 1 else 'are'} in the tables." if left_out > 0 else ""
    words = "; ".join(
        f"{name}: {', '.join(f'{part} {three_digits(time)} ms' for part, time in parts.items())}"
        for name, parts in rows
    )
    heights = tuple(key(width) + 4 + 34 * len(rows) for width in (WIDE, NARROW))
    return Drawing(paint, (heights[0], heights[1]), caption, f"{words}.")


def stages_ms(record: Stages) -> dict[str, float]:
    """Returns milliseconds by part, in the order of time: before the network, its classes of operators, after it."""
    parts = {FLOW: (record.flow_ms or 0.0) + (record.strain_ms or 0.0)}
    shares = record.operators or {}
    for kind, share in sorted(shares.items(), key=lambda entry: -entry[1]):
        parts[kind] = share * record.inference_ms
    if not shares:
        parts["inference"] = record.inference_ms
    parts[AROUND] = record.normalise_ms + record.postprocess_ms
    return {part: time for part, time in parts.items() if time > 0}


def _part_roles(rows: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """Returns colours by part; small classes of operators share one."""
    totals: dict[str, float] = {}
    for parts in rows:
        for part, time in parts.items():
            totals[part] = totals.get(part, 0.0) + time
    kinds = sorted(totals.keys() - {FLOW, AROUND}, key=lambda part: -totals[part])
    roles = {FLOW: SERIES[0]} if FLOW in totals else {}
    roles |= dict(zip(kinds[:MOST_CLASSES], SERIES[1:], strict=False))
    roles |= {OTHER: SERIES[MOST_CLASSES + 1]} if len(kinds) > MOST_CLASSES else {}
    return roles | {AROUND: "muted"}


# ---------------------------------------------------------------------------------------------
# Tokens of the dynamic mode

MOST_BARS = 40


def dynamic(comparison: Comparison, _: Recommendation) -> Drawing | NotDrawn:
    """Draws a histogram of the dynamic mode's counts, with the static budgets and the share that they truncate."""
    record = next((s.profile.dynamic_counts for s in comparison.sources if s.profile.dynamic_counts), None)
    if record is None:
        return NotDrawn("the dynamic mode's counts were not recorded")
    counts = np.repeat([int(count) for count in record.counts], list(record.counts.values()))
    budgets = {row.measured.tokens: row.measured.keep_rate for row in comparison.rows if not row.is_baseline}
    most = max(int(counts.max()), *budgets, 1)
    # The line of the whole image would stand at the edge and says nothing: no sample has more tokens.
    shown = sorted(tokens for tokens, rate in budgets.items() if rate < 1)
    width = -(-most // MOST_BARS)
    edges = np.arange(0.5, most + width + 0.5, width)
    heights, _edges = np.histogram(counts, edges)

    def paint(canvas: Canvas) -> None:
        axes = canvas.axes(44, 16, 24 + 18 * len(shown), 44)
        axes.set_xlim(0, 1.04 * most)
        axes.set_ylim(0, 1.1 * heights.max())
        axes.yaxis.grid(visible=True)
        axes.yaxis.get_major_locator().set_params(nbins=4, integer=True)
        for left, height in zip(edges, heights, strict=False):
            if height:
                (bar,) = axes.bar([left], [height], width * 0.92, align="edge", color=colour("s1"))
                last = int(left + width - 0.5)
                span = f"{int(left + 0.5)} to {last}" if width > 1 else f"{last}"
                canvas.tip(bar, f"{span} tokens: {height} samples")
        # From the fewest tokens on, each lower than the one before: no label is crossed by a line.
        for place, tokens in enumerate(shown):
            words = "" if canvas.compact else f" ({tokens} tokens)"
            label = f"{budget_text(budgets[tokens])}{words} truncates {percent(record.truncated(tokens))}"
            x, y = canvas.pixel(axes, tokens, 0)[0], 34 + 18 * place
            on_left = x + 6 + text_width(label) > canvas.width
            canvas.write(x - 6 if on_left else x + 6, y, label, "s2", ha="right" if on_left else "left")
            top = axes.transData.inverted().transform((x, canvas.height - (y - 10)))[1]
            (line,) = axes.plot([tokens, tokens], [0, top], color=colour("s2"), lw=1.2, clip_on=False)
            canvas.tip(line, label)
        canvas.write(4, 16, "Samples", "ink")
        canvas.title_axis(44, "Tokens that hold the score's mass")

    whose = "calibration" if record.on == "calibration" else "judged"
    caption = f"{record.samples:,} {whose} samples of {record.data}: tokens in the smallest set that holds "
    caption += f"{record.mass:.0%} of the score. Lines: the static budgets below 100 %; a sample to the right of one "
    caption += "is truncated."
    shares = "; ".join(
        f"{budget_text(budgets[tokens])} truncates {percent(record.truncated(tokens))}"
        for tokens in sorted(budgets)
    )
    words = f"Between {counts.min()} and {counts.max()} tokens, median {int(np.median(counts))}. {shares}."
    height = 240 + 18 * len(shown)
    return Drawing(paint, (height, height), caption, words)
