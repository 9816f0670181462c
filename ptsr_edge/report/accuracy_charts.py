"""Charts of accuracy: against latency and budget, what is taken for what, and what the model looks at.

What was not measured is not drawn: the page then says what is missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.core.errors import require
from ptsr_edge.profile.schema import KeptPatches
from ptsr_edge.report.comparison import (
    ComparedVariant,
    Comparison,
    budget_text,
    bytes_text,
    pareto,
    percent,
    quantity,
    three_digits,
    uar_bounds,
    undominated,
)
from ptsr_edge.report.plotting import (
    KEY_LINE,
    NARROW,
    WIDE,
    Box,
    Canvas,
    Drawing,
    Label,
    NotDrawn,
    boxes_along,
    colour,
    key_lines,
    place_labels,
    precision_roles,
    role_of,
    scale_time,
    shortened,
    spread,
    text_width,
)
from ptsr_edge.report.recommendation import Recommendation, Status
from ptsr_edge.runtimes.base import find_runtime, target_names

OTHER_MARKER = "D"
"""The mark of targets that no installed package knows."""


def marker_of(target: str) -> str:
    """Returns the mark of a target in charts, in matplotlib's letters."""
    return find_runtime(target).marker if target in target_names() else OTHER_MARKER


# ---------------------------------------------------------------------------------------------
# Accuracy against latency


MOST_WHISKERED = 8
"""More marks than these are drawn without their intervals, but for those that the choice is between."""


RINGED: dict[Status, str] = {
    "beyond": "the closest",
    "none-meets-the-limits": "nearest to the limits",
    "chance": "the fastest",
    "accuracy-not-measured": "the fastest",
}
"""What the variant with a ring is, where it is not recommended."""


def tradeoff(comparison: Comparison, recommendation: Recommendation) -> Drawing | NotDrawn:
    """Draws accuracy against latency: the area of a mark is its size, a line joins what nothing beats in the two, and
    what another beats in all three is pale.

    Where no accuracy was measured, the budget takes its place.
    """
    rows = [row for row in comparison.comparable() if row.p50_ms is not None]
    judged = bool(rows)
    rows = rows or [row for row in comparison.rows if row.p50_ms is not None]
    if not rows:
        return NotDrawn("latency was not measured")
    best, pale = [], set[ComparedVariant]()
    fronts = []
    for source in comparison.sources:
        own = [row for row in rows if row.source is source]
        fronts.append(pareto(own))
        best += fronts[-1]
        pale |= set(own) - set(undominated(own)) if judged else set()
    picked = next((row for row in rows if row.name == recommendation.name), None)
    subjects = [picked, comparison.reference(picked)] if picked else [row for row in rows if row.is_baseline]
    times = [row.p50_ms or 0.0 for row in rows]
    logarithmic = max(times) > 12 * min(times)
    # Of many, those that the choice is between.
    telling = [row for row in rows if len(rows) <= MOST_WHISKERED or row in best or row in subjects]
    bounds = {row: found for row in telling if judged and (found := uar_bounds(row)) is not None}

    def point(row: ComparedVariant) -> tuple[float, float]:
        return row.p50_ms or 0.0, (row.uar or 0.0) if judged else 100 * row.measured.keep_rate

    signs = ["hollow: full ViT"] if any(row.is_baseline for row in rows) else []
    signs += [f"ring: {RINGED.get(recommendation.status, 'recommended')}"] if picked else []
    signs += ["dashed: beaten by no other in both"] if any(len(front) > 1 for front in fronts) else []
    signs += ["pale: beaten in accuracy, latency and size"] if pale else []
    signs += ["upright line: 95 % interval"] if bounds else []

    def paint(canvas: Canvas) -> None:
        explained = key_lines(signs, canvas.width - (0 if canvas.compact else 230))  # beside the key of sizes
        top = 46 if canvas.compact else 38
        above = top + KEY_LINE * len(explained) - 4
        axes = canvas.axes(44, 10, above + 22, 44)
        scale_time(axes, times, logarithmic)
        edges = [edge for found in bounds.values() for edge in found]
        _scale_level(axes, [*(point(row)[1] for row in rows), *edges], 0.02 if judged else 10)
        taken: list[Box] = []
        for row, (low, high) in bounds.items():
            x = point(row)[0]
            axes.vlines(x, low, high, color=colour(role_of(row, comparison)), lw=1.25, zorder=2)
            taken += boxes_along([canvas.pixel(axes, x, low), canvas.pixel(axes, x, high)])
        for front in filter(None, fronts):
            points = [point(row) for row in front]
            axes.plot(*zip(*points, strict=True), color=colour("muted"), lw=1, ls=(0, (4, 3)), zorder=1)
            taken += boxes_along([canvas.pixel(axes, *place) for place in points])
        sizes = {row: _diameter(row, rows, canvas) for row in rows}
        for row in sorted(rows, key=lambda row: -sizes[row]):
            role = role_of(row, comparison)
            style = {"marker": marker_of(row.measured.target), "ls": "", "mew": 1.5, "clip_on": False}
            x, y = point(row)
            (mark,) = axes.plot([x], [y], ms=sizes[row], zorder=3, alpha=0.4 if row in pale else 1.0, **style)
            mark.set_markerfacecolor(colour("paper" if row.is_baseline else role))
            mark.set_markeredgecolor(colour(role if row.is_baseline else "paper"))
            canvas.tip(mark, _point_words(row))
            if row is picked:
                axes.plot([x], [y], ms=sizes[row] + 7, mfc="none", mec=colour(role), zorder=2, **style)
        crowded = len(rows) > (8 if canvas.compact else 14)
        named = [row for row in rows if not crowded or row in best or row in subjects]
        named.sort(key=lambda row: (row not in subjects, row not in best, not row.is_baseline))
        _label_marks(canvas, axes, named, point, sizes, subjects, taken)
        canvas.key(precision_roles(rows, comparison))
        for number, line in enumerate(explained):
            canvas.write(4, top + KEY_LINE * number, "; ".join(line))
        _area_key(canvas, rows)
        canvas.write(4, above + 10, "UAR" if judged else "Tokens kept, %", "ink")
        scale = ", log scale" if logarithmic else ""
        canvas.title_axis(44, f"Latency (p50) in ms, faster to the left{scale}")

    words = "; ".join(_point_words(row) + _bounds_text(bounds.get(row)) for row in rows)
    optimal = ", ".join(row.name for row in best)
    words += f". Beaten by no other in both: {optimal}." if optimal else "."
    title = None if judged else "Budget against latency"
    caption = _tradeoff_caption(comparison, rows, judged)
    if bounds:
        caption += f" Intervals: {_interval_method(rows)}"
        caption += (
            "."
            if len(bounds) == len(rows)
            else "; of the variant that is recommended, of its baseline and of what is joined by the dashed line."
        )
    return Drawing(paint, (400, 420), caption, words, title)


def _diameter(row: ComparedVariant, rows: Sequence[ComparedVariant], canvas: Canvas) -> float:
    top = max(other.measured.size_bytes for other in rows) or 1
    largest = 26.0 if canvas.compact else 34.0
    return max(5.0, largest * math.sqrt(row.measured.size_bytes / top))


def _label_marks(
    canvas: Canvas,
    axes: Any,
    named: Sequence[ComparedVariant],
    point: Callable[[ComparedVariant], tuple[float, float]],
    sizes: Mapping[ComparedVariant, float],
    subjects: Sequence[ComparedVariant | None],
    taken: list[Box],
) -> None:
    """Writes names beside the marks; those of `subjects` always, and with their values."""
    places = {row: canvas.pixel(axes, *point(row)) for row in sizes}
    radii = {row: size / 2 + (5 if row is subjects[0] else 1) for row, size in sizes.items()}
    taken += [
        (x - radii[row], y - radii[row], x + radii[row], y + radii[row]) for row, (x, y) in places.items()
    ]
    labels = []
    for row in named:
        lines = [(row.name, "ink", row in subjects)]
        if row in subjects:
            accuracy = f", {row.uar:.3f}" if row.uar is not None else ""
            lines.append((f"{three_digits(row.p50_ms or 0.0)} ms{accuracy}", "muted", False))
        labels.append(Label(*places[row], radii[row], tuple(lines), row in subjects))
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    area = (*canvas.pixel(axes, left, top), *canvas.pixel(axes, right, bottom))
    place_labels(canvas, labels, taken, area)


def _area_key(canvas: Canvas, rows: Sequence[ComparedVariant]) -> None:
    """Draws two discs with the sizes that they stand for, at the right edge."""
    by_size = {row.measured.size_bytes: row for row in rows}
    x = canvas.width - 10.0
    for count in dict.fromkeys((max(by_size), min(by_size))):
        label = bytes_text(count)
        size = _diameter(by_size[count], rows, canvas)
        x -= text_width(label)
        canvas.write(x, 24, label)
        x -= size / 2 + 6
        disc = canvas.figure.add_axes((x / canvas.width, 1 - 20 / canvas.height, 1e-3, 1e-3))
        disc.set_axis_off()
        disc.plot([0], [0], "o", ms=size, mfc="none", mec=colour("muted"), mew=1, clip_on=False)
        x -= size / 2 + 12


def _point_words(row: ComparedVariant) -> str:
    accuracy = f", UAR {row.uar:.3f}" if row.uar is not None else ""
    costs = f"{bytes_text(row.measured.size_bytes)}, {quantity(row.measured.macs)}MAC"
    return f"{row.name}: {three_digits(row.p50_ms or 0.0)} ms{accuracy}, {costs}"


def _tradeoff_caption(comparison: Comparison, rows: Sequence[ComparedVariant], judged: bool) -> str:
    caption = "Area: size on disk."
    if judged:
        caption = f"{_judged_on(rows)} {caption}"
    else:
        caption += " Accuracy was not measured, so the budget stands in its place."
    targets = sorted({row.measured.target for row in rows})
    if len(targets) > 1:
        names = require("matplotlib.markers", "report", "drawing a chart").MarkerStyle.markers
        shapes = (f"{names[marker_of(target)].replace('_', ' ')} {target}" for target in targets)
        caption += f" Shape: {', '.join(shapes)}."
    left_out = sum(row.p50_ms is not None for row in comparison.rows) - len(rows)
    if left_out:
        caption += f" Not shown, without an accuracy on this data: {left_out}."
    return caption


def _judged_on(rows: Sequence[ComparedVariant]) -> str:
    accuracy = rows[0].measured.accuracy
    assert accuracy is not None, "comparable rows have an accuracy"
    return f"UAR on {accuracy.data}, {accuracy.protocol}, n = {accuracy.n}."


def _interval_method(rows: Sequence[ComparedVariant]) -> str:
    if rows[0].source.profile.judged is not None:
        return "by a bootstrap over subjects"
    return "binomial from the confusion matrix, as if samples were independent, which those of one person are not"


def _scale_level(axes: Any, levels: Sequence[float], least: float) -> None:
    pad = max(0.1 * (max(levels) - min(levels)), least)
    axes.set_ylim(min(levels) - pad, max(levels) + pad)
    axes.yaxis.get_major_locator().set_params(nbins=6)
    axes.yaxis.grid(visible=True)


# ---------------------------------------------------------------------------------------------
# Accuracy against budget

MOST_WHISKERED_LINES = 4
"""More lines than these are drawn without their intervals, which would hide them."""


def budgets(comparison: Comparison, recommendation: Recommendation) -> Drawing | NotDrawn:
    """Draws UAR against the share of tokens kept, beside the baseline and the loss that is let through."""
    rows = comparison.comparable()
    variants = [row for row in rows if not row.is_baseline]
    if not variants:
        return NotDrawn("the variants' accuracy was not measured")
    lines: dict[tuple[str | None, ...], list[ComparedVariant]] = {}
    for row in sorted(variants, key=lambda row: row.measured.keep_rate):
        measured = row.measured
        line = (measured.precision, measured.target, measured.bundle, row.source.name)
        lines.setdefault(line, []).append(row)
    base = next((row for row in rows if row.is_baseline), None)
    full = None if base is None else base.uar
    allowed = recommendation.max_uar_drop or 0.0
    crowded = len(lines) > MOST_WHISKERED_LINES
    bounds = {row: uar_bounds(row) for row in rows}
    ends = [points[-1] for points in lines.values()]
    # What tells a line from the others is its name without the budget.
    labels = ["PTSR"] if len(lines) == 1 else [row.name.split(" % ", 1)[-1] for row in ends]

    def paint(canvas: Canvas) -> None:
        axes = canvas.axes(44, 16 + max(map(text_width, labels)), 34, 44)
        edges = [row.uar or 0.0 for row in rows]
        edges += [] if crowded else [edge for found in bounds.values() if found for edge in found]
        edges += [] if full is None else [full - allowed]
        _scale_level(axes, edges, 0.005)
        axes.set_xlim(0, 105)
        ticks = sorted({round(100 * row.measured.keep_rate, 1) for row in variants})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        if full is not None:
            if allowed:
                axes.axhspan(full - allowed, full, color=colour("rule"), alpha=0.45, lw=0, zorder=0)
            canvas.tip(
                axes.axhline(full, color=colour("ink"), lw=1.5, zorder=2), f"full-token ViT: UAR {full:.3f}"
            )
            x, y = canvas.pixel(axes, 0, full)
            canvas.write(x + 6, y - 6, f"full ViT {full:.3f}", "ink", weight="bold")
        # Lines are moved sideways a little, to keep their whiskers apart.
        step = min(1.6 if canvas.compact else 1.0, 6 / len(lines))
        for place, points in enumerate(lines.values()):
            shift = step * (place - (len(lines) - 1) / 2)
            _budget_line(canvas, axes, role_of(points[0], comparison), points, bounds, not crowded, shift)
        heights = [canvas.pixel(axes, 0, row.uar or 0.0)[1] for row in ends]
        right = canvas.pixel(axes, 105, 0)[0] + 6
        for row, label, y in zip(ends, labels, spread(heights, 16), strict=True):
            canvas.write(right, y + 4, label, role_of(row, comparison))
        canvas.write(4, 16, "UAR", "ink")
        canvas.title_axis(44, "Tokens kept in %")

    caption = _judged_on(rows)
    if base is not None:
        caption += f" Line: {base.name}" + (f"; band: at most {allowed:g} below it." if allowed else ".")
    if any(bounds.values()):
        caption += " Whiskers: 95 % interval, " if not crowded else " Intervals on hover: 95 %, "
        caption += f"{_interval_method(rows)}."
    words = "; ".join(f"{row.name} {row.uar:.3f}{_bounds_text(bounds[row])}" for row in rows)
    return Drawing(paint, (360, 340), caption, f"UAR: {words}.")


def _budget_line(
    canvas: Canvas,
    axes: Any,
    role: str,
    points: Sequence[ComparedVariant],
    bounds: Mapping[ComparedVariant, tuple[float, float] | None],
    whiskers: bool,
    shift: float,
) -> None:
    """Draws what was built alike over the budgets, moved sideways by `shift` per cent."""
    places = [100 * row.measured.keep_rate + shift for row in points]
    levels = [row.uar or 0.0 for row in points]
    axes.plot(places, levels, color=colour(role), lw=1.5, zorder=3)
    for row, x, y in zip(points, places, levels, strict=True):
        found = bounds[row]
        if found and whiskers:
            axes.plot([x, x], found, color=colour(role), lw=1, alpha=0.6)
        style = {"mfc": colour(role), "mec": colour("paper"), "mew": 1.2, "zorder": 4}
        (mark,) = axes.plot([x], [y], marker_of(row.measured.target), ms=8.5, **style)
        uf1 = row.measured.accuracy.uf1 if row.measured.accuracy else 0.0
        canvas.tip(mark, f"{row.name}: UAR {y:.3f}{_bounds_text(found)}, UF1 {uf1:.3f}")


def _bounds_text(bounds: tuple[float, float] | None) -> str:
    return f" [{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else ""


# ---------------------------------------------------------------------------------------------
# What is taken for what

MOST_MATRICES = 6


def confusion(comparison: Comparison, recommendation: Recommendation) -> Drawing | NotDrawn:
    """Draws confusion matrices: of the baseline, of the recommended variant, and of others."""
    rows = [row for row in comparison.rows if row.measured.accuracy and row.measured.accuracy.confusion]
    if not rows:
        return NotDrawn("no confusion matrix was recorded")
    shown = _most_telling(rows, comparison, recommendation)[:MOST_MATRICES]
    labels = comparison.labels
    margin = 12 + max(map(text_width, labels))
    below = 44.0  # the names of the classes under a matrix, and a gap

    def grid(width: int) -> tuple[int, float, float]:
        """Returns the matrices in a line, the pixels from one to the next, and the side of a cell."""
        across = 1 if width == NARROW else 4 if len(shown) == 4 else min(len(shown), 3)
        column = (width - margin) / across
        return across, column, min(60.0, (column - 20) / len(labels))

    def height(width: int) -> float:
        across, _, cell = grid(width)
        return -(-len(shown) // across) * (24 + cell * len(labels) + below) - 20

    def paint(canvas: Canvas) -> None:
        across, column, cell = grid(canvas.width)
        side = cell * len(labels)
        for place, row in enumerate(shown):
            left = margin + place % across * column
            top = 24 + place // across * (24 + side + below)
            axes = canvas.axes(left, canvas.width - left - side, top, canvas.height - top - side)
            _matrix(canvas, axes, row, labels, cell)
            if place % across == 0:
                axes.set_yticks(np.arange(len(labels)) + 0.5, labels)
            canvas.write(left, top - 10, shortened(row.name, side), "ink", weight="bold")

    caption = "Rows: the true class. Columns: the answer. Numbers: samples. Shade: share of the row."
    left_out = len(rows) - len(shown)
    caption += f" {left_out} more are in report.json." if left_out else ""
    words = "; ".join(_recall_words(row, labels) for row in shown)
    return Drawing(
        paint, (height(WIDE), height(NARROW)), caption, f"Share of each class recognised: {words}."
    )


def _most_telling(
    rows: list[ComparedVariant], comparison: Comparison, recommendation: Recommendation
) -> list[ComparedVariant]:
    """Sorts by what is looked at first: the baseline, the recommended variant, what was built like it, the rest."""
    picked = next((row for row in rows if row.name == recommendation.name), rows[-1])
    base = comparison.reference(picked)

    def rank(row: ComparedVariant) -> int:
        alike = row.measured.precision == picked.measured.precision
        alike = alike and row.measured.target == picked.measured.target and row.source is picked.source
        return [row is base, row is picked, alike and not row.is_baseline, True].index(True)

    return sorted(rows, key=rank)


def _counts(row: ComparedVariant) -> NDArray[np.int_]:
    """Returns the confusion matrix (classes, classes): true, answered."""
    assert row.measured.accuracy is not None, "only rows with an accuracy are drawn"
    return np.asarray(row.measured.accuracy.confusion)


def _matrix(canvas: Canvas, axes: Any, row: ComparedVariant, labels: Sequence[str], cell: float) -> None:
    counts = _counts(row)
    totals = counts.sum(axis=1)
    axes.set_xlim(0, len(labels))
    axes.set_ylim(len(labels), 0)
    axes.set_yticks([])
    names = [shortened(label, cell - 2, 11) for label in labels]
    axes.set_xticks(np.arange(len(labels)) + 0.5, names, size=11)
    axes.tick_params(pad=5)
    for true, answer in np.ndindex(counts.shape):
        count, total = counts[true, answer], totals[true]
        # At a share of .5 and less the ink keeps its contrast in both themes.
        alpha = 0.04 + 0.46 * (count / total if total else 0.0)
        gap = 1 / cell  # a pixel on each side
        (bar,) = axes.bar(
            [answer + gap], [1 - 2 * gap], 1 - 2 * gap, true + gap, align="edge", fc=colour("s1"), alpha=alpha
        )
        canvas.tip(bar, f"{row.name}: {count} of {total} {labels[true]} samples answered {labels[answer]}")
        weight = "bold" if true == answer else "normal"
        axes.text(answer + 0.5, true + 0.5 + 4 / cell, str(count), ha="center", va="baseline", weight=weight)


def _recall_words(row: ComparedVariant, labels: Sequence[str]) -> str:
    counts = _counts(row)
    shares = [
        f"{label} {percent(counts[place, place] / counts[place].sum())}"
        for place, label in enumerate(labels)
        if counts[place].sum()
    ]
    return f"{row.name}: {', '.join(shares)}"


# ---------------------------------------------------------------------------------------------
# What the model looks at

MOST_SAMPLES = 4

MOST_BUDGETS = 4

IMAGE_SIDE = 56  # pixels of an embedded image: strain is smooth, and the page stays small

FADED = 0.28
"""How much of a dropped patch is seen on the paper below it."""

Columns = list[tuple[str, list[list[int]]]]
"""Per budget its heading and, per sample, the kept patches."""


def kept(comparison: Comparison, _: Recommendation) -> Drawing | NotDrawn:
    """Draws real samples: the strain image, and which patches each budget keeps of it."""
    found = next(
        (
            (source.profile, patches)
            for source in comparison.sources
            if (patches := source.profile.kept_patches) and patches.strain and patches.kept
        ),
        None,
    )
    if found is None:
        return NotDrawn("no samples with their kept patches were recorded")
    profile, patches = found
    columns = _budget_columns(patches, comparison)
    shown = _one_of_each(patches.labels)
    if not columns:
        return NotDrawn("every budget that was recorded keeps all patches")
    gap = 1 / 14  # between two tiles, of the side of one
    tiles = 1 + len(columns)

    def grid(width: int) -> tuple[float, float, float]:
        """Returns the pixels left of the tiles, above each line of them, and the side of a tile."""
        left, above = (150.0, 12.0) if width == WIDE else (0.0, 26.0)
        return left, above, min(176.0, (width - left) / (tiles + gap * (tiles - 1)))

    def height(width: int) -> float:
        _, above, side = grid(width)
        return 12 + len(shown) * (above + side) + 2

    def paint(canvas: Canvas) -> None:
        left, above, side = grid(canvas.width)
        across = side * (tiles + gap * (tiles - 1))
        for place, heading in enumerate(["all patches", *(column[0] for column in columns)]):
            canvas.write(left + place * (1 + gap) * side, 12, heading)
        for line, place in enumerate(shown):
            top = 12 + above + line * (above + side)
            axes = canvas.axes(left, canvas.width - left - across, top, canvas.height - top - side)
            _tiles(axes, patches, place, columns, gap)
            about = (patches.names[place], patches.labels[place])
            if canvas.compact:
                canvas.write(0, top - 7, shortened(", ".join(about), NARROW), "ink")
            else:
                canvas.write(0, top + 12, shortened(about[0], left), "ink")
                canvas.write(0, top + 30, shortened(about[1], left))

    caption = f"Samples of {patches.data}: optical strain, brighter where the face stretches more. Patches "
    caption += "inside the line are kept; the faded ones are dropped."
    caption += f" {layers_text(patches, columns)}"
    if not profile.is_of_rendered_data:
        caption += f" These pictures are derived from {patches.data}: its licence says who may see them."
    headings = ", ".join(heading for heading, _ in columns)
    words = f"{len(shown)} samples of {patches.data}, with the patches kept at {headings} outlined: "
    words += "; ".join(_share_words(patches, place, columns) for place in shown) + "."
    return Drawing(paint, (height(WIDE), height(NARROW)), caption, words)


def _budget_columns(patches: KeptPatches, comparison: Comparison) -> Columns:
    """Returns at most `MOST_BUDGETS` budgets, from many tokens to few."""
    by_id = {row.measured.id: row for row in comparison.rows}
    columns: dict[int, tuple[str, list[list[int]]]] = {}
    for key, kept_patches in patches.kept.items():
        counts = {len(indices) for indices in kept_patches}
        most = max(counts, default=0)
        if min(counts, default=0) >= patches.grid**2 or most in columns:
            continue
        rate = by_id[key].measured.keep_rate if key in by_id else most / patches.grid**2
        columns[most] = (budget_text(rate), kept_patches)
    ordered = [columns[count] for count in sorted(columns, reverse=True)]
    if len(ordered) <= MOST_BUDGETS:
        return ordered
    picks = np.linspace(0, len(ordered) - 1, MOST_BUDGETS).round().astype(int)
    return [ordered[pick] for pick in picks]


def _one_of_each(labels: Sequence[str]) -> list[int]:
    """Returns the first sample of each class, then further ones up to three samples in all."""
    first = [place for place, label in enumerate(labels) if label not in labels[:place]]
    rest = [place for place in range(len(labels)) if place not in first]
    return sorted(first[:MOST_SAMPLES] + rest[: max(0, 3 - len(first))])


def _tiles(axes: Any, patches: KeptPatches, place: int, columns: Columns, gap: float) -> None:
    """Draws a sample once per budget, dropped patches faded, as one image: equal tiles make a small PNG."""
    grey = shrunk(np.asarray(patches.strain[place]))  # (H, H)
    side, grid = grey.shape[0], patches.grid
    space = round(gap * side)
    patch_of = np.arange(side) * grid // side
    picture = np.zeros((side, side * (1 + len(columns)) + space * len(columns), 4), dtype=np.uint8)
    axes.set_axis_off()
    for column, kept_patches in enumerate([None, *(found[place] for _, found in columns)]):
        inside = np.isin(np.arange(grid**2), np.arange(grid**2) if kept_patches is None else kept_patches)
        inside = inside.reshape(grid, grid)
        left = column * (side + space)
        tile = picture[:, left : left + side]
        tile[..., :3] = grey[..., None]
        tile[..., 3] = np.where(inside[np.ix_(patch_of, patch_of)], 255, round(255 * FADED))
        if kept_patches is not None:
            _outline(axes, border(inside) * side / grid + (left, 0))
    extent = (0, picture.shape[1], side, 0)
    axes.imshow(picture, interpolation="none", aspect="auto", extent=extent)


def _outline(axes: Any, segments: NDArray[np.float64]) -> None:
    """Draws segments (n, 2, 2) as one path."""
    path = require("matplotlib.path", "report", "drawing a chart").Path
    patch = require("matplotlib.patches", "report", "drawing a chart").PathPatch
    codes = np.tile([path.MOVETO, path.LINETO], len(segments))
    line = patch(path(segments.reshape(-1, 2), codes), fill=False, ec=colour("s2"), lw=1.6, clip_on=False)
    line.set_capstyle("projecting")
    axes.add_patch(line)


def border(cells: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Returns the border between cells (grid, grid) that are set and cells that are not, as runs (n, 2, 2) of (x, y)."""
    runs = []
    for turned in (False, True):
        padded = np.pad(cells.T if turned else cells, 1)
        upright = padded[1:-1, 1:] != padded[1:-1, :-1]  # (grid, grid + 1): a border left of the cell
        for x in range(upright.shape[1]):
            edges = np.flatnonzero(np.diff(np.concatenate([[0], upright[:, x].astype(int), [0]])))
            for start, end in edges.reshape(-1, 2):
                ends = ((x, start), (x, end))
                runs.append([(y, x) for x, y in ends] if turned else ends)
    return np.asarray(runs, dtype=np.float64).reshape(-1, 2, 2)


def shrunk(strain: NDArray[np.int_]) -> NDArray[np.uint8]:
    """Shrinks grey values 0..255 (H, W) to at most `IMAGE_SIDE` a side, in 32 grey levels, by block means."""
    step = -(-max(strain.shape) // IMAGE_SIDE)
    high, wide = (size // step for size in strain.shape)
    blocks = strain[: high * step, : wide * step].reshape(high, step, wide, step)
    means = blocks.mean(axis=(1, 3))  # (high, wide)
    grey: NDArray[np.uint8] = np.clip(means // 8 * 8, 0, 255).astype(np.uint8)
    return grey


def layers_text(patches: KeptPatches, columns: Columns) -> str:
    """Says how many tokens each layer has: a model that selects once has one number before and one after."""
    if patches.depth is None or patches.select_block is None:
        return ""
    total, after = patches.grid**2, ", ".join(f"{len(kept_of[0])}" for _, kept_of in columns)
    rates = " / ".join(heading for heading, _ in columns)
    if patches.select_block < 0:
        return (
            f"Layer by layer: the selection scores all {total} patches before the embedding; the embedding and all "
            f"{patches.depth} blocks have {after} tokens (at {rates}) and the class token."
        )
    later = patches.depth - 1 - patches.select_block
    return (
        f"Layer by layer: the embedding and the blocks 0 to {patches.select_block} have all {total} patches; the "
        f"{later} blocks after block {patches.select_block} have {after} tokens (at {rates}) and the class token."
    )


def _share_words(patches: KeptPatches, place: int, columns: Columns) -> str:
    """Says how much of a sample's strain lies in the kept patches: what the chart shows, as numbers."""
    strain = np.asarray(patches.strain[place], dtype=np.float64)
    step = strain.shape[0] // patches.grid
    side = patches.grid * step
    per_patch = strain[:side, :side].reshape(patches.grid, step, patches.grid, step).sum(axis=(1, 3)).ravel()
    total = per_patch.sum() or 1.0
    shares = [percent(per_patch[kept_patches[place]].sum() / total) for _, kept_patches in columns]
    return f"{patches.names[place]} ({patches.labels[place]}) keeps {', '.join(shares)} of its strain"
