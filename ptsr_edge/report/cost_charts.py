"""Charts of cost: what makes a variant faster, how latency is distributed, where multiply-adds and time go, what DTSM's
dynamic mode would keep; and the card that shows the result in one picture.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
    ratio_text,
    raw_samples,
    steps_of,
    three_digits,
    times_text,
    uar_bounds,
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
    precision_roles,
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
# What makes it faster

EFFECT_ROLES = {"runtime": "s3", "precision": "s2", "runtime and precision": "s2", "selection": "s1"}


@dataclass(frozen=True)
class Bar:
    """A bar of the waterfall: a factor with its interval, and where it begins."""

    name: str
    role: str
    times: float
    low: float | None
    high: float | None
    start: float = 1.0

    @property
    def end(self) -> float:
        """Where the next one begins."""
        return self.start * self.times

    @property
    def reach(self) -> float:
        """The right end of what is drawn."""
        return max(self.start, self.end, self.start * (self.high or 0.0))

    @property
    def value(self) -> str:
        """The factor in words."""
        return times_text(self.times, self.low, self.high)


def effects(comparison: Comparison, recommendation: Recommendation) -> Drawing | NotDrawn:
    """Draws the effects of runtime, precision and selection on the recommended variant's speed as a waterfall."""
    row = next((row for row in comparison.rows if row.name == recommendation.name), None)
    if row is None:
        return NotDrawn("no variant is recommended")
    steps, total, base = steps_of(row, comparison), row.measured.ratio, comparison.reference(row)
    if steps is None or total is None or base is None:
        built = f"{row.measured.precision} on {row.measured.target}"
        return NotDrawn(f"the full-token ViT was not timed in {built}, or a ratio with it was not measured")
    if len(steps) == 1:
        return NotDrawn(f"the selection of tokens alone sets {row.name} apart from its baseline")
    bars = [
        Bar(f"{step.kind}: {step.what}", EFFECT_ROLES[step.kind], step.times, step.low, step.high)
        for step in steps
    ]
    for place, bar in enumerate(bars[1:]):
        bars[place + 1] = replace(bar, start=bars[place].end)
    bars.append(Bar("together", "ink", total.median, total.low, total.high))

    def paint(canvas: Canvas) -> None:
        above, pitch = (22.0, 58) if canvas.compact else (0.0, 40)  # a phone has the names above the bars
        left = 4.0 if canvas.compact else 12 + max(text_width(bar.name) for bar in bars)
        axes = canvas.axes(left, 16 + max(text_width(bar.value, bold=True) for bar in bars), 4, 42)
        axes.set_ylim(len(bars) - 0.5, -0.5)
        axes.set_yticks([])
        # An interval that is much wider than the bars ends at the edge.
        first = min(min(bar.start, bar.end) for bar in bars) / 1.15
        last = min(max(bar.reach for bar in bars), 1.6 * max(bar.end for bar in bars)) * 1.02
        axes.set_xscale("log")
        axes.set_xlim(first, last)
        ticks = [tick for tick in (0.5, 1, 2, 3, 5, 10, 20, 50) if first <= tick <= last]
        axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.xaxis.grid(visible=True)
        for place, bar in enumerate(bars):
            centre = place + above / 2 / pitch
            (shape,) = axes.barh(
                [centre], [bar.end - bar.start], left=bar.start, height=20 / pitch, color=colour(bar.role)
            )
            canvas.tip(shape, f"{bar.name}: {bar.value}")
            if bar.low is not None and bar.high is not None:
                for role, width in (("paper", 4), ("ink", 1.5)):  # seen on the bar and beside it
                    reach = [bar.start * bar.low, bar.start * bar.high]
                    axes.plot(reach, [centre, centre], color=colour(role), lw=width, solid_capstyle="butt")
            if place < len(steps) - 1:
                axes.plot([bar.end, bar.end], [centre, centre + 1], color=colour("muted"), lw=1, zorder=0)
            x, y = canvas.pixel(axes, min(last, bar.reach), centre)
            canvas.write(x + 8, y + 4, bar.value, "ink", weight="bold" if place == len(steps) else "normal")
            name_at, align = ((4.0, y - 15), "left") if canvas.compact else ((left - 10, y + 4), "right")
            canvas.write(*name_at, bar.name, "ink", ha=align)
        canvas.title_axis(left, "Times as fast, equal steps are equal factors")

    full = f"{base.measured.precision} on {base.measured.target}"
    caption = f"From the full-token ViT in {full} to {row.name}: each bar begins where the one before ends. Line in a bar: 95 % "
    caption += "interval. Runtime and precision are ratios of the ViT itself, the selection is the ratio within them; in "
    caption += "another order the factors would differ a little, together they would not."
    words = "; ".join(f"{bar.name} {bar.value}" for bar in bars)
    return Drawing(paint, (46 + 40 * len(bars), 46 + 58 * len(bars)), caption, f"Times as fast: {words}.")


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
        axes = canvas.axes(margin, 12, 26, 44)
        scale_time(axes, extremes, logarithmic=True, room=0.04)
        axes.set_ylim(len(drawn) - 0.6, -0.85)
        names = [shortened(row.name, margin - 8) for row, _ in drawn]
        axes.set_yticks(range(len(drawn)), names, color=colour("ink"))
        axes.xaxis.grid(visible=True)
        for place, (row, samples) in enumerate(drawn):
            _distribution(canvas, axes, place, role_of(row, comparison), row, samples)
        canvas.key(roles)
        canvas.title_axis(margin, "Latency in ms, equal steps are equal factors")

    roles = precision_roles([row for row, _ in drawn], comparison)

    counts = sorted({int(samples.size) for _, samples in drawn})
    span = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    caption = f"All raw samples, {span} a variant, none removed. Shape: the samples up to p95; number and "
    caption += "long tick: the median; short tick: p99; line: from the fastest to the slowest sample."
    caption += f" Not drawn: {'; '.join(missing)}." if missing else ""
    caption += (
        f" {left_out} slower {'one is' if left_out == 1 else 'ones are'} left out for room."
        if left_out > 0
        else ""
    )
    words = "; ".join(_latency_words(row, samples) for row, samples in drawn)
    height = 76 + 38 * len(drawn)
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
    x_top, y_top = canvas.pixel(axes, float(p50), place - 0.66)
    canvas.write(x_top + 5, y_top + 8, three_digits(float(p50)), "ink")


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
    rows = [(row.name, stages_ms(record, row.p50_ms)) for row, record in shown]
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

    caption = "Milliseconds of one sample, medians; the inference is the p50 of the tables, split by the shares that the runtime's own "
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


def stages_ms(record: Stages, p50_ms: float | None = None) -> dict[str, float]:
    """Returns milliseconds by part, in the order of time: before the network, its classes of operators, after it.

    The inference takes `p50_ms`, where that is known: the latency that every other chart shows for the same work.
    """
    inference = record.inference_ms if p50_ms is None else p50_ms
    parts = {FLOW: (record.flow_ms or 0.0) + (record.strain_ms or 0.0)}
    shares = record.operators or {}
    for kind, share in sorted(shares.items(), key=lambda entry: -entry[1]):
        parts[kind] = share * inference
    if not shares:
        parts["inference"] = inference
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


# ---------------------------------------------------------------------------------------------
# The result in one picture

CARD_HEIGHT = 250


def summary(comparison: Comparison, recommendation: Recommendation) -> Drawing | NotDrawn:
    """Draws a card to be pasted elsewhere: what is recommended, how much faster it is, its accuracy, where and when."""
    row = next((row for row in comparison.rows if row.name == recommendation.name), None)
    if row is None or row.p50_ms is None or recommendation.status == "none-meets-the-limits":
        return NotDrawn("no variant with a latency is recommended")
    measured, profile = row.measured, row.source.profile
    base = comparison.reference(row)
    built = f"{measured.precision} on {measured.target}"
    head = f"{comparison.model}: {budget_text(measured.keep_rate)} of the tokens, {built}"
    entries = [
        (ratio, what)
        for ratio, what in (
            (measured.ratio_same_precision, "as fast as the full-token ViT built alike"),
            (measured.ratio_sample, "as a whole sample, flow included"),
            (measured.ratio, f"as fast as the ViT in {_built(base)}"),
        )
        if ratio is not None
    ]
    if len(entries) > 1 and entries[0][0] == entries[-1][0]:
        entries.pop()  # the baseline is built alike
    figures = [
        (ratio_text(ratio) + (" by CPU" if ratio.clock == "cpu" else ""), what) for ratio, what in entries
    ]
    figures = figures or [(f"{three_digits(row.p50_ms)} ms", "at the median; no ratio was measured")]
    if row.uar is not None:
        bounds = uar_bounds(row)
        interval = f" [{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else ""
        full = "" if base is None or base.uar is None else f"; the full-token ViT: {base.uar:.3f}"
        figures.append((f"{row.uar:.3f}{interval}", f"UAR{full}"))
    cpu = profile.environment.get("cpu") or {}
    count = profile.method.get("threads")
    foot = [
        str(cpu.get("board") or cpu.get("model") or "unknown processor"),
        f"{count} thread{'' if count == 1 else 's'}",
    ]
    foot = [*foot[: 1 if count is None else 2], profile.created[:10]]
    shown = [other for other in comparison.rows if other.source is row.source and other.p50_ms is not None]
    judged = [other for other in shown if other.uar is not None]

    beside = 14 + max(text_width(value, 17, bold=True) for value, _ in figures)
    weights = textwrap.wrap(f"Weights: {profile.model_card}", 125, max_lines=2, placeholder="…")

    def paint(canvas: Canvas) -> None:
        canvas.write(4, 22, shortened(head, canvas.width, 18), "ink", size=18, weight="bold")
        for place, (value, what) in enumerate(figures):
            y = 60 + 38 * place
            canvas.write(4, y, value, "ink" if place else "s1", size=17, weight="bold")
            canvas.write(beside, y - 1, what, "muted", size=13)
        for number, text in enumerate([", ".join(foot), *weights]):
            canvas.write(4, CARD_HEIGHT - 40 + 16 * number, text, "muted")
        if len(judged) < 2:
            return
        axes = canvas.axes(560, 16, 44, 78)
        axes.set_xscale("log")
        axes.set_xticks([])
        axes.set_xticks([], minor=True)
        axes.set_yticks([])
        for other in judged:
            x, y_value, subject = other.p50_ms, other.uar, other is row or other is base
            role = role_of(other, comparison)
            limits = uar_bounds(other)
            if subject and limits:
                axes.vlines(x, *limits, color=colour(role), lw=1.25)
            face = "paper" if other.is_baseline else role
            style = {"color": colour(role), "mfc": colour(face), "alpha": 1.0 if subject else 0.35}
            (mark,) = axes.plot([x], [y_value], "o", ms=11 if subject else 7, zorder=3, **style)
            canvas.tip(mark, f"{other.name}: {three_digits(x or 0.0)} ms, UAR {y_value:.3f}")
        axes.margins(0.1, 0.15)
        axes.spines[["left", "bottom"]].set_visible(True)
        canvas.write(560, 38, "UAR; filled: this variant, hollow: the ViT", "muted", size=11)
        canvas.write(560, CARD_HEIGHT - 62, "latency, faster to the left", "muted", size=11)

    words = "; ".join(f"{value} {what}" for value, what in figures)
    return Drawing(
        paint, (CARD_HEIGHT, 0), "", f"{head}. {words}. {', '.join(foot)}. Weights: {profile.model_card}."
    )


def _built(row: ComparedVariant | None) -> str:
    return "its own runtime" if row is None else f"{row.measured.precision} on {row.measured.target}"
