"""The report's pictures: one function each, from the compared rows to a `Picture`.

What was not measured is not drawn: the picture then says what is missing. To add a picture, write its
function and put it into `PICTURES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ptsr_edge.report import cost_charts as costs
from ptsr_edge.report import histogram, svg, tiles, time_bars
from ptsr_edge.report.comparison import (
    Comparison,
    Row,
    pareto,
    precision_rank,
    quantity,
    three_digits,
    uar_bounds,
    undominated,
)
from ptsr_edge.report.plotting import (
    Box,
    Canvas,
    Label,
    boxes_along,
    place_labels,
    render,
    role_of,
    scale_time,
    spread,
)
from ptsr_edge.report.svg import Picture
from ptsr_edge.report.verdict import Verdict

MOST_WHISKERED_LINES = 4
"""More lines than these are drawn without their intervals, which would hide them."""

_SHAPES = {"cpu": ("o", "circle"), "openvino": ("s", "square"), "trt": ("^", "triangle")}
_OTHER_SHAPE = ("D", "diamond")


def draw_all(comparison: Comparison, verdict: Verdict) -> dict[str, Picture]:
    """Draws every picture, by name, in the order of `PICTURES`.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    pictures = [draw(comparison, verdict) for draw in PICTURES]
    return {picture.name: picture for picture in pictures}


def tradeoff(comparison: Comparison, verdict: Verdict) -> Picture:
    """Accuracy against latency: the area of a mark is its size, a line joins what nothing beats in the two, and
    what another beats in all three is pale.

    Where no accuracy was measured, the budget takes its place.
    """
    name, title = "tradeoff", "Accuracy against latency"
    rows = [row for row in comparison.comparable() if row.p50_ms is not None]
    judged = bool(rows)
    if not judged:
        title = "Budget against latency"
        rows = [row for row in comparison.rows if row.p50_ms is not None]
    if not rows:
        return Picture(name, title, note="Not drawn: latency was not measured.")
    fronts = [pareto(row for row in rows if row.source is source) for source in comparison.sources]
    fronts = [front for front in fronts if front]
    best = [row for front in fronts for row in front]
    pale = set(rows) - {
        row for s in comparison.sources for row in undominated([r for r in rows if r.source is s])
    }
    pale = pale if judged else set()
    picked = next((row for row in rows if row.name == verdict.name), None)
    subjects = [picked, comparison.reference(picked)] if picked else [row for row in rows if row.is_baseline]
    times = [row.p50_ms or 0.0 for row in rows]
    logarithmic = max(times) > 12 * min(times)

    def level(row: Row) -> float:
        return (row.uar or 0.0) if judged else 100 * row.measured.keep_rate

    def paint(canvas: Canvas) -> None:
        axes = canvas.axes(44, 10, 64, 44)
        scale_time(axes, times, logarithmic)
        _scale_level(axes, [level(row) for row in rows], 0.02 if judged else 10)
        taken: list[Box] = []
        for front in fronts:
            points = [(row.p50_ms or 0.0, level(row)) for row in front]
            axes.plot(*zip(*points, strict=True), color=svg.colour("muted"), lw=1, ls=(0, (4, 3)), zorder=1)
            taken += boxes_along([canvas.pixel(axes, *point) for point in points])
        sizes = {row: _diameter(row, rows, canvas) for row in rows}
        for row in sorted(rows, key=lambda row: -sizes[row]):
            _mark(
                canvas,
                axes,
                role_of(row, comparison),
                row,
                level(row),
                sizes[row],
                row.name == verdict.name,
                0.4 if row in pale else 1.0,
            )
        crowded = len(rows) > (8 if canvas.compact else 14)
        named = [row for row in rows if not crowded or row in best or row.is_baseline]
        named.sort(key=lambda row: (row not in subjects, row not in best, not row.is_baseline))
        _label_marks(canvas, axes, named, level, sizes, subjects, taken)
        _colour_key(canvas, comparison, rows)
        _area_key(canvas, rows)
        canvas.write(4, 54, "UAR" if judged else "Tokens kept, %", "ink")
        scale = ", log scale" if logarithmic else ""
        canvas.title_axis(44, f"Latency (p50) in ms, faster to the left{scale}")

    wide, narrow = render(name, (470, 390), paint)
    words = "; ".join(_point_words(row) for row in rows)
    optimal = ", ".join(row.name for row in best)
    words += f". Beaten by no other in both: {optimal}." if optimal else "."
    return Picture(name, title, _tradeoff_caption(comparison, rows, judged), words, wide, narrow)


def budgets(comparison: Comparison, verdict: Verdict) -> Picture:
    """UAR against the share of tokens kept, beside the baseline and the loss that is let through."""
    name, title = "budgets", "Accuracy against budget"
    rows = comparison.comparable()
    variants = [row for row in rows if not row.is_baseline]
    if not variants:
        return Picture(name, title, note="Not drawn: the variants' accuracy was not measured.")
    lines: dict[tuple[str | None, ...], list[Row]] = {}
    for row in variants:
        measured = row.measured
        line = (measured.precision, measured.target, measured.bundle, row.source.name)
        lines.setdefault(line, []).append(row)
    base = next((row for row in rows if row.is_baseline), None)
    crowded = len(lines) > MOST_WHISKERED_LINES
    bounds = {row: uar_bounds(row) for row in rows}

    def paint(canvas: Canvas) -> None:
        ends = [max(points, key=lambda row: row.measured.keep_rate) for points in lines.values()]
        labels = [_line_label(row, lines) for row in ends]
        axes = canvas.axes(44, 16 + max(svg.text_width(label) for label in labels), 34, 44)
        edges = [row.uar or 0.0 for row in rows]
        edges += [] if crowded else [edge for found in bounds.values() if found for edge in found]
        edges += [base.uar - verdict.max_uar_drop] if base and base.uar is not None else []
        _scale_level(axes, edges, 0.005)
        axes.set_xlim(0, 105)
        ticks = sorted({round(100 * row.measured.keep_rate, 1) for row in variants})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        if base is not None and base.uar is not None:
            _baseline_band(canvas, axes, base.uar, verdict.max_uar_drop)
        step = min(1.6 if canvas.compact else 1.0, 6 / len(lines))
        for place, points in enumerate(lines.values()):
            _budget_line(
                canvas,
                axes,
                role_of(points[0], comparison),
                points,
                bounds,
                not crowded,
                step * (place - (len(lines) - 1) / 2),
            )
        heights = [canvas.pixel(axes, 0, row.uar or 0.0)[1] for row in ends]
        right = canvas.pixel(axes, 105, 0)[0] + 6
        for row, label, y in zip(ends, labels, spread(heights, 16), strict=True):
            canvas.write(right, y + 4, label, role_of(row, comparison))
        canvas.write(4, 16, "UAR", "ink")
        canvas.title_axis(44, "Tokens kept in %")

    accuracy = rows[0].measured.accuracy
    assert accuracy is not None, "comparable rows have an accuracy"
    caption = f"UAR on {accuracy.data}, {accuracy.protocol}, n = {accuracy.n}."
    if base is not None:
        caption += f" Line: {base.name}; band: at most {verdict.max_uar_drop:g} below it."
    if any(bounds.values()):
        caption += " Whiskers: 95 % interval, " if not crowded else " Intervals on hover: 95 %, "
        caption += (
            "by a bootstrap over subjects."
            if rows[0].source.profile.judged is not None
            else "binomial from the confusion matrix, as if samples were independent, which those of one person are not."
        )
    words = "; ".join(f"{row.name} {row.uar:.3f}{_interval_text(bounds[row])}" for row in rows)
    wide, narrow = render(name, (360, 340), paint)
    return Picture(name, title, caption, f"UAR: {words}.", wide, narrow)


PICTURES: tuple[Callable[[Comparison, Verdict], Picture], ...] = (
    tradeoff,
    costs.latency,
    costs.macs,
    tiles.kept,
    tiles.confusion,
    budgets,
    histogram.dynamic,
    time_bars.stages,
)


def _scale_level(axes: Any, levels: Sequence[float], least: float) -> None:
    pad = max(0.1 * (max(levels) - min(levels)), least)
    axes.set_ylim(min(levels) - pad, max(levels) + pad)
    axes.yaxis.get_major_locator().set_params(nbins=6)
    axes.yaxis.grid(visible=True)


def _diameter(row: Row, rows: Sequence[Row], canvas: Canvas) -> float:
    top = max(other.measured.size_bytes for other in rows) or 1
    largest = 26.0 if canvas.compact else 34.0
    return max(5.0, largest * math.sqrt(row.measured.size_bytes / top))


def _mark(
    canvas: Canvas, axes: Any, role: str, row: Row, level: float, size: float, picked: bool, alpha: float
) -> None:
    shape = _SHAPES.get(row.measured.target, _OTHER_SHAPE)[0]
    (mark,) = axes.plot([row.p50_ms], [level], shape, ms=size, mew=1.5, clip_on=False, zorder=3, alpha=alpha)
    mark.set_markerfacecolor(svg.colour("paper" if row.is_baseline else role))
    mark.set_markeredgecolor(svg.colour(role if row.is_baseline else "paper"))
    canvas.tip(mark, _point_words(row))
    if picked:
        ring = {"ms": size + 7, "mfc": "none", "mec": svg.colour(role), "mew": 1.5}
        axes.plot([row.p50_ms], [level], shape, clip_on=False, zorder=2, **ring)


def _label_marks(
    canvas: Canvas,
    axes: Any,
    named: Sequence[Row],
    level: Callable[[Row], float],
    sizes: Mapping[Row, float],
    subjects: Sequence[Row | None],
    taken: list[Box],
) -> None:
    """Names beside the marks; those of `subjects` always, and with their values."""
    labels = []
    for row, size in sizes.items():
        x, y = canvas.pixel(axes, row.p50_ms or 0.0, level(row))
        radius = size / 2 + (5 if row is subjects[0] else 1)
        taken.append((x - radius, y - radius, x + radius, y + radius))
        if row not in named:
            continue
        needed = row in subjects
        lines = [(row.name, "ink", needed)]
        if needed:
            accuracy = f", {row.uar:.3f}" if row.uar is not None else ""
            lines.append((f"{three_digits(row.p50_ms or 0.0)} ms{accuracy}", "muted", False))
        labels.append((named.index(row), Label(x, y, radius, tuple(lines), needed)))
    labels.sort(key=lambda entry: entry[0])
    low = canvas.pixel(axes, *(edge[0] for edge in (axes.get_xlim(), axes.get_ylim())))
    high = canvas.pixel(axes, *(edge[1] for edge in (axes.get_xlim(), axes.get_ylim())))
    place_labels(canvas, [label for _, label in labels], taken, (low[0], high[1], high[0], low[1]))


def _colour_key(canvas: Canvas, comparison: Comparison, rows: Sequence[Row]) -> None:
    """The precisions, each written in its colour; a single one needs no key."""
    first: dict[str, Row] = {}
    for row in rows:
        if not row.is_baseline:
            first.setdefault(row.measured.precision, row)
    if len(first) < 2:
        return
    x = 4.0
    for precision in sorted(first, key=precision_rank):
        canvas.write(x, 16, precision, role_of(first[precision], comparison), weight="bold")
        x += svg.text_width(precision, bold=True) + 12


def _area_key(canvas: Canvas, rows: Sequence[Row]) -> None:
    """Two discs with the sizes that they stand for, at the right edge."""
    shown = sorted({row.measured.size_bytes for row in rows})
    x = canvas.width - 10.0
    entries = [shown[-1], shown[0]] if shown[0] < shown[-1] else shown
    by_size = {row.measured.size_bytes: row for row in rows}
    for count in entries:
        label = quantity(count) + "B"
        size = _diameter(by_size[count], rows, canvas)
        x -= svg.text_width(label)
        canvas.write(x, 24, label)
        x -= size / 2 + 6
        disc = canvas.figure.add_axes((x / canvas.width, 1 - 20 / canvas.height, 1e-3, 1e-3))
        disc.set_axis_off()
        disc.plot([0], [0], "o", ms=size, mfc="none", mec=svg.colour("muted"), mew=1, clip_on=False)
        x -= size / 2 + 12


def _point_words(row: Row) -> str:
    accuracy = f", UAR {row.uar:.3f}" if row.uar is not None else ""
    size = f"{quantity(row.measured.size_bytes)}B"
    return f"{row.name}: {three_digits(row.p50_ms or 0.0)} ms{accuracy}, {size}, {quantity(row.measured.macs)}MAC"


def _tradeoff_caption(comparison: Comparison, rows: Sequence[Row], judged: bool) -> str:
    caption = "Area: size on disk. Hollow: the full-token ViT."
    if judged:
        accuracy = rows[0].measured.accuracy
        assert accuracy is not None, "comparable rows have an accuracy"
        caption = f"UAR on {accuracy.data}, {accuracy.protocol}, n = {accuracy.n}. {caption}"
        caption += (
            " Dashed: what no other beats in both. Pale: what another beats in accuracy, latency and size."
        )
    else:
        caption += " Accuracy was not measured, so the budget stands in its place."
    targets = sorted({row.measured.target for row in rows})
    if len(targets) > 1:
        shapes = (f"{_SHAPES.get(target, _OTHER_SHAPE)[1]} {target}" for target in targets)
        caption += f" Shape: {', '.join(shapes)}."
    left_out = sum(row.p50_ms is not None for row in comparison.rows) - len(rows)
    if left_out:
        caption += f" Not shown, without an accuracy on this data: {left_out}."
    return caption


def _baseline_band(canvas: Canvas, axes: Any, uar: float, drop: float) -> None:
    axes.axhspan(uar - drop, uar, color=svg.colour("rule"), alpha=0.45, lw=0, zorder=0)
    line = axes.axhline(uar, color=svg.colour("ink"), lw=1.5, zorder=2)
    canvas.tip(line, f"full-token ViT: UAR {uar:.3f}")
    x, y = canvas.pixel(axes, 0, uar)
    canvas.write(x + 6, y - 6, f"full ViT {uar:.3f}", "ink", weight="bold")


def _budget_line(
    canvas: Canvas,
    axes: Any,
    role: str,
    points: Sequence[Row],
    bounds: Mapping[Row, tuple[float, float] | None],
    whiskers: bool,
    shift: float,
) -> None:
    """One precision over the budgets, moved sideways by `shift` to keep whiskers apart."""
    points = sorted(points, key=lambda row: row.measured.keep_rate)
    places = [100 * row.measured.keep_rate + shift for row in points]
    levels = [row.uar or 0.0 for row in points]
    axes.plot(places, levels, color=svg.colour(role), lw=1.5, zorder=3)
    for row, x, y in zip(points, places, levels, strict=True):
        found = bounds[row]
        if found and whiskers:
            axes.plot([x, x], found, color=svg.colour(role), lw=1, alpha=0.6)
        shape = _SHAPES.get(row.measured.target, _OTHER_SHAPE)[0]
        style = {"mfc": svg.colour(role), "mec": svg.colour("paper"), "mew": 1.2, "zorder": 4}
        (mark,) = axes.plot([x], [y], shape, ms=8.5, **style)
        uf1 = row.measured.accuracy.uf1 if row.measured.accuracy else 0.0
        canvas.tip(mark, f"{row.name}: UAR {y:.3f}{_interval_text(found)}, UF1 {uf1:.3f}")


def _interval_text(bounds: tuple[float, float] | None) -> str:
    return f" [{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else ""


def _line_label(row: Row, lines: Mapping[tuple[str | None, ...], Sequence[Row]]) -> str:
    """What tells a line from the others: its row's name without the budget."""
    if len(lines) == 1:
        return "PTSR"
    return row.name.split(" % ", 1)[-1]
