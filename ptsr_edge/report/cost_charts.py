"""Pictures of what a variant costs: how its latency is distributed, and where its multiply-adds go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.profile.schema import Stages
from ptsr_edge.report import plotting as svg
from ptsr_edge.report.comparison import (
    ComparedVariant,
    Comparison,
    _percent,
    budget_text,
    quantity,
    raw_samples,
    three_digits,
)
from ptsr_edge.report.plotting import Canvas, Picture, render, role_of, scale_time
from ptsr_edge.report.recommendation import Recommendation

MOST_ROWS = 16
"""A picture with one line a variant shows no more than these."""

MOST_OPERATORS = 5
"""Operators that get a colour of their own; the rest is drawn as one."""


def latency(comparison: Comparison, verdict: Recommendation) -> Picture:
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


def macs(comparison: Comparison, _: Recommendation) -> Picture:
    """Multiply-adds of each budget, split by operator where the split was recorded."""
    name, title = "macs", "Where the multiply-adds go"
    rows: list[ComparedVariant] = []
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
    canvas: Canvas, axes: Any, place: int, role: str, row: ComparedVariant, samples: NDArray[np.float64]
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


def _latency_words(row: ComparedVariant, samples: NDArray[np.float64]) -> str:
    p50, p90, p99 = np.percentile(samples, (50, 90, 99))
    return (
        f"{row.name}: p50 {three_digits(p50)} ms, p90 {three_digits(p90)} ms, p99 {three_digits(p99)} ms, "
        f"{three_digits(samples.min())} to {three_digits(samples.max())} ms"
    )


def _operator_roles(rows: list[ComparedVariant]) -> dict[str, str]:
    """The operators that make up most, each with its colour; empty where no split was recorded."""
    totals: Counter[str] = Counter()
    for row in rows:
        totals.update(row.measured.macs_by_operator or {})
    named = [operator for operator, count in totals.most_common() if count]
    roles = dict(zip(named[:MOST_OPERATORS], svg.SERIES, strict=False))
    if len(named) > MOST_OPERATORS:
        roles["other"] = "muted"
    return roles


def _bar(
    canvas: Canvas, axes: Any, place: int, row: ComparedVariant, label: str, roles: dict[str, str]
) -> None:
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


TIME_BARS_MOST_ROWS = 12

MOST_CLASSES = 3
"""Classes of operators that get a colour of their own; the rest is drawn as one."""

FLOW, AROUND, OTHER = "flow and strain", "before and after", "other operators"


def stages(comparison: Comparison, verdict: Recommendation) -> Picture:
    """A bar a variant, in milliseconds: pre-processing, inference by class of operator, post-processing."""
    name, title = "stages", "Where the time goes"
    timed = [(row, row.measured.stages) for row in comparison.rows if row.measured.stages is not None]
    if not timed:
        return Picture(name, title, note="Not drawn: stages were not timed.")
    order = {row.name: place for place, row in enumerate(comparison.rows)}
    picked = {verdict.name, *(row.name for row, _ in timed if row.is_baseline)}
    shown = sorted(timed, key=lambda pair: (pair[0].name not in picked, order[pair[0].name]))[
        :TIME_BARS_MOST_ROWS
    ]
    shown.sort(key=lambda pair: order[pair[0].name])
    rows = [(row, stages_ms(record)) for row, record in shown if record is not None]
    roles = _roles([parts for _, parts in rows])
    top = max(sum(parts.values()) for _, parts in rows)

    def paint(canvas: Canvas) -> None:
        lines = _key_lines(canvas, roles)
        margin = min(12 + max(svg.text_width(row.name) for row, _ in rows), 0.4 * canvas.width)
        axes = canvas.axes(margin, 64, 14 + 18 * len(lines), 4)
        axes.set_xlim(0, top)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xticks([])
        names = [svg.shortened(row.name, margin - 8) for row, _ in rows]
        axes.set_yticks(range(len(rows)), names, color=svg.colour("ink"))
        for place, (row, parts) in enumerate(rows):
            _time_bars_bar(canvas, axes, place, row, parts, roles)
        for number, line in enumerate(lines):
            x = 4.0
            for part in line:
                canvas.write(x, 16 + 18 * number, part, roles[part], weight="bold")
                x += svg.text_width(part, bold=True) + 12

    caption = (
        "Milliseconds of one sample, medians. The inference is split by the shares that the runtime's own "
    )
    caption += "profiler gives, which slows small operators more than large ones. Finding the face is not part of it: that is done twice a second, whatever is asked."
    untold = sum(record is not None and record.operators is None for _, record in shown)
    caption += f" {untold} of these could not be split." if untold else ""
    left_out = len(timed) - len(shown)
    caption += f" {left_out} more {'is' if left_out == 1 else 'are'} in the tables." if left_out > 0 else ""
    words = "; ".join(f"{row.name}: {_words(parts)}" for row, parts in rows)
    heights = [
        14 + 18 * len(_key_lines(Canvas(width, 10), roles)) + 4 + 34 * len(rows)
        for width in (svg.WIDE, svg.NARROW)
    ]
    wide, narrow = render(name, (heights[0], heights[1]), paint)
    return Picture(name, title, caption, f"{words}.", wide, narrow)


def stages_ms(record: Stages) -> dict[str, float]:
    """Milliseconds by part, in the order of time: before the network, its classes of operators, after it."""
    parts = {FLOW: (record.flow_ms or 0.0) + (record.strain_ms or 0.0)}
    shares = record.operators or {}
    for kind, share in sorted(shares.items(), key=lambda entry: -entry[1]):
        parts[kind] = share * record.inference_ms
    if not shares:
        parts["inference"] = record.inference_ms
    parts[AROUND] = record.normalise_ms + record.postprocess_ms
    return {part: time for part, time in parts.items() if time > 0}


def _roles(rows: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """Colours by part; small classes of operators share one."""
    totals: dict[str, float] = {}
    for parts in rows:
        for part, time in parts.items():
            totals[part] = totals.get(part, 0.0) + time
    kinds = sorted(totals.keys() - {FLOW, AROUND}, key=lambda part: -totals[part])
    roles = {FLOW: svg.SERIES[0]} if FLOW in totals else {}
    roles |= dict(zip(kinds[:MOST_CLASSES], svg.SERIES[1:], strict=False))
    roles |= {OTHER: svg.SERIES[MOST_CLASSES + 1]} if len(kinds) > MOST_CLASSES else {}
    return roles | {AROUND: "muted"}


def _key_lines(canvas: Canvas, roles: Mapping[str, str]) -> list[list[str]]:
    """The names of the parts, in as many lines as the drawing needs."""
    lines: list[list[str]] = [[]]
    x = 4.0
    for part in roles:
        width = svg.text_width(part, bold=True) + 12
        if lines[-1] and x + width > canvas.width:
            lines.append([])
            x = 4.0
        lines[-1].append(part)
        x += width
    return lines


def _time_bars_bar(
    canvas: Canvas,
    axes: Any,
    place: int,
    row: ComparedVariant,
    parts: Mapping[str, float],
    roles: Mapping[str, str],
) -> None:
    start, total = 0.0, sum(parts.values())
    drawn = dict.fromkeys(roles, 0.0)
    for part, time in parts.items():
        drawn[part if part in roles else OTHER] += time
    for part in roles:
        if not drawn[part]:
            continue
        (bar,) = axes.barh([place], [drawn[part]], left=start, height=0.56, color=svg.colour(roles[part]))
        bar.set_edgecolor(svg.colour("paper"))
        share = 100 * drawn[part] / total
        canvas.tip(bar, f"{row.name}, {part}: {three_digits(drawn[part])} ms, {share:.0f} %")
        start += drawn[part]
    axes.annotate(
        f"{three_digits(total)} ms", (total, place), (7, -4), textcoords="offset points", va="baseline"
    )


def _words(parts: Mapping[str, float]) -> str:
    return ", ".join(f"{part} {three_digits(time)} ms" for part, time in parts.items())


# FOLDED from report.histogram: The picture of DTSM's dynamic mode: how many tokens samples would keep, beside the static budgets.

MOST_BARS = 40


def dynamic(comparison: Comparison, _: Recommendation) -> Picture:
    """Histogram of the dynamic mode's counts; lines at the static budgets with the share they truncate."""
    name, title = "dynamic", "What the dynamic mode would keep"
    record = next((s.profile.dynamic_counts for s in comparison.sources if s.profile.dynamic_counts), None)
    if record is None:
        return Picture(name, title, note="Not drawn: the dynamic mode's counts were not recorded.")
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
                (bar,) = axes.bar([left], [height], width * 0.92, align="edge", color=svg.colour("s1"))
                last = int(left + width - 0.5)
                span = f"{int(left + 0.5)} to {last}" if width > 1 else f"{last}"
                canvas.tip(bar, f"{span} tokens: {height} samples")
        # From the fewest tokens on, each lower than the one before: no label is crossed by a line.
        for place, tokens in enumerate(shown):
            words = "" if canvas.compact else f" ({tokens} tokens)"
            label = f"{budget_text(budgets[tokens])}{words} truncates {100 * record.truncated(tokens):.0f} %"
            x, y = canvas.pixel(axes, tokens, 0)[0], 34 + 18 * place
            on_left = x + 6 + svg.text_width(label) > canvas.width
            canvas.write(x - 6 if on_left else x + 6, y, label, "s2", ha="right" if on_left else "left")
            top = axes.transData.inverted().transform((x, canvas.height - (y - 10)))[1]
            (line,) = axes.plot([tokens, tokens], [0, top], color=svg.colour("s2"), lw=1.2, clip_on=False)
            canvas.tip(line, label)
        canvas.write(4, 16, "Samples", "ink")
        canvas.title_axis(44, "Tokens that hold the score's mass")

    whose = "calibration" if record.on == "calibration" else "judged"
    caption = f"{record.samples:,} {whose} samples of {record.data}: tokens in the smallest set that holds "
    caption += f"{record.mass:.0%} of the score. Lines: the static budgets below 100 %; a sample to the right of one is truncated."
    shares = "; ".join(
        f"{budget_text(budgets[tokens])} truncates {100 * record.truncated(tokens):.0f} %"
        for tokens in sorted(budgets)
    )
    words = f"Between {counts.min()} and {counts.max()} tokens, median {int(np.median(counts))}. {shares}."
    height = 240 + 18 * len(shown)
    wide, narrow = render(name, (height, height), paint)
    return Picture(name, title, caption, words, wide, narrow)
