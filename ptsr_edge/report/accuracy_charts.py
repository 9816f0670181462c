"""The report's pictures: one function each, from the compared rows to a `Picture`.

What was not measured is not drawn: the picture then says what is missing. To add a picture, write its
function and put it into `PICTURES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.profile.schema import KeptPatches
from ptsr_edge.report import cost_charts as costs
from ptsr_edge.report import cost_charts as histogram
from ptsr_edge.report import cost_charts as time_bars
from ptsr_edge.report import plotting as svg
from ptsr_edge.report.comparison import (
    ComparedVariant,
    Comparison,
    budget_text,
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
    Picture,
    boxes_along,
    place_labels,
    render,
    role_of,
    scale_time,
    spread,
)
from ptsr_edge.report.recommendation import Recommendation

# FOLDED from report.tiles: Pictures made of tiles, in plain SVG: which patches a budget keeps, and confusion matrices.

MOST_SAMPLES = 4

MOST_BUDGETS = 4

MOST_MATRICES = 6

IMAGE_SIDE = 56  # pixels of an embedded image: strain is smooth, and the page stays small

Point = tuple[float, float]

Columns = list[tuple[str, list[list[int]]]]


def kept(comparison: Comparison, _: Recommendation) -> Picture:
    """Real samples: the strain image, and which patches each budget keeps of it."""
    name, title = "kept", "What the model looks at"
    found = [source.profile.kept_patches for source in comparison.sources]
    patches = next((entry for entry in found if entry and entry.strain and entry.kept), None)
    if patches is None:
        return Picture(name, title, note="Not drawn: no samples with their kept patches were recorded.")
    columns = _budget_columns(patches, comparison)
    shown = _one_of_each(patches.labels)
    if not columns:
        return Picture(name, title, note="Not drawn: every budget that was recorded keeps all patches.")

    def draw(width: int) -> str:
        wide = width == svg.WIDE
        gap, left, top, heading_row = (12, 150, 24, 0) if wide else (6, 0, 20, 20)
        side = min(176.0, (width - left - gap * len(columns)) / (len(columns) + 1))
        body = []
        for place, heading in enumerate(["all patches", *(column[0] for column in columns)]):
            body.append(svg.text(left + place * (side + gap), 12, heading, "muted"))
        for line, place in enumerate(shown):
            y = top + line * (side + gap + heading_row)
            corner = (left, y + heading_row)
            about = [patches.names[place], patches.labels[place]]
            if wide:
                body.append(svg.text(0, y + 12, svg.shortened(about[0], left)))
                body.append(svg.text(0, y + 30, svg.shortened(about[1], left), "muted"))
            else:
                body.append(svg.text(0, y + 13, svg.shortened(", ".join(about), svg.NARROW)))
            body += _sample_row(patches, place, columns, corner, side, gap)
        across = left + (len(columns) + 1) * (side + gap) - gap
        down = top + len(shown) * (side + gap + heading_row) - gap + 2
        return svg.element(f"{name}-{width}", max(width, across), down, body)

    caption = f"Samples of {patches.data}: optical strain, brighter where the face stretches more. Patches "
    caption += "inside the line are kept; the faded ones are dropped."
    caption += f" {layers_text(patches, columns)}"
    if patches.data != "synthetic":
        caption += f" These pictures are derived from {patches.data}: its licence says who may see them."
    budgets = ", ".join(heading for heading, _ in columns)
    words = f"{len(shown)} samples of {patches.data}, with the patches kept at {budgets} outlined: "
    words += "; ".join(_share_words(patches, place, columns) for place in shown) + "."
    return Picture(name, title, caption, words, draw(svg.WIDE), draw(svg.NARROW))


def confusion(comparison: Comparison, verdict: Recommendation) -> Picture:
    """Confusion matrices: of the baseline, of the variant that the verdict is about, and of others."""
    name, title = "confusion", "What is taken for what"
    rows = [row for row in comparison.rows if row.measured.accuracy and row.measured.accuracy.confusion]
    if not rows:
        return Picture(name, title, note="Not drawn: no confusion matrix was recorded.")
    shown = _most_telling(rows, comparison, verdict)[:MOST_MATRICES]
    labels = comparison.labels

    def draw(width: int) -> str:
        across = min(len(shown), 4 if len(shown) == 4 else 3) if width == svg.WIDE else 1
        left = 12 + max(svg.text_width(label) for label in labels)
        column = (width - left) / across
        cell = min(60.0, (column - 20) / len(labels))
        tall = 68 + cell * len(labels)
        body: list[str] = []
        tips: dict[str, str] = {}
        for place, row in enumerate(shown):
            x, y = left + place % across * column, place // across * tall + 24
            body += _matrix(row, labels, (x, y), cell, tips)
            if place % across == 0:
                for true, label in enumerate(labels):
                    middle = y + (true + 0.5) * cell + 4
                    body.append(svg.text(x - 10, middle, label, "muted", anchor="end"))
        down = tall * -(-len(shown) // across) - 20
        return svg.element(f"{name}-{width}", width, down, body, tips)

    caption = "Rows: the true class. Columns: the answer. Numbers: samples. Shade: share of the row."
    left_out = len(rows) - len(shown)
    caption += f" {left_out} more are in report.json." if left_out else ""
    words = "; ".join(_recall_words(row, labels) for row in shown)
    return Picture(
        name, title, caption, f"Share of each class recognised: {words}.", draw(svg.WIDE), draw(svg.NARROW)
    )


def layers_text(patches: KeptPatches, columns: Columns) -> str:
    """How many tokens each layer has: a model that selects once has one number before and one after."""
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


def _budget_columns(patches: KeptPatches, comparison: Comparison) -> Columns:
    """Heading and kept patches of at most `MOST_BUDGETS` budgets, from many tokens to few."""
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
    """The first sample of each class, then further ones up to three samples in all."""
    first = [place for place, label in enumerate(labels) if label not in labels[:place]]
    rest = [place for place in range(len(labels)) if place not in first]
    return sorted(first[:MOST_SAMPLES] + rest[: max(0, 3 - len(first))])


def _sample_row(
    patches: KeptPatches, place: int, columns: Columns, corner: Point, side: float, gap: float
) -> list[str]:
    x, y = corner
    address = svg.grey_png(_shrunk(np.asarray(patches.strain[place])))
    image = f"strain{place}"
    size = f'width="{side:g}" height="{side:g}"'
    body = [f'<image id="{image}" x="{x:g}" y="{y:g}" {size} href="{address}"/>']
    for step, (_, kept_patches) in enumerate(columns, start=1):
        shift = step * (side + gap)
        inside = np.zeros((patches.grid, patches.grid), dtype=bool)
        inside.flat[[index for index in kept_patches[place] if 0 <= index < inside.size]] = True
        scale = f"translate({x + shift:g} {y:g}) scale({side / patches.grid:.6g})"
        body += [
            f'<use href="#{image}" x="{shift:g}"/>',
            f'<g transform="{scale}"><path d="{_area(~inside)}" fill="{svg.colour("paper")}" '
            f'fill-opacity="0.72"/><path d="{_outline(inside)}" fill="none" '
            f'stroke="{svg.colour("s2")}" stroke-width="{1.6 * patches.grid / side:.4g}" '
            'stroke-linecap="square"/></g>',
        ]
    return body


def _shrunk(strain: NDArray[np.int_]) -> NDArray[np.uint8]:
    """(H, W) grey values 0..255 -> at most `IMAGE_SIDE` a side, in 32 grey levels, block means."""
    step = -(-max(strain.shape) // IMAGE_SIDE)
    high, wide = (size // step for size in strain.shape)
    blocks = strain[: high * step, : wide * step].reshape(high, step, wide, step)
    means = blocks.mean(axis=(1, 3))  # (high, wide)
    grey: NDArray[np.uint8] = np.clip(means // 8 * 8, 0, 255).astype(np.uint8)
    return grey


def _area(cells: NDArray[np.bool_]) -> str:
    """A path that covers the cells that are set, one run of a row at a time."""
    parts = []
    for y, line in enumerate(cells):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], line.astype(int), [0]])))
        parts += [f"M{start} {y}H{end}V{y + 1}H{start}z" for start, end in edges.reshape(-1, 2)]
    return "".join(parts)


def _outline(cells: NDArray[np.bool_]) -> str:
    """A path along the border between cells that are set and cells that are not."""
    padded = np.pad(cells, 1)
    parts = []
    upright = padded[1:-1, 1:] != padded[1:-1, :-1]  # (grid, grid + 1): a border left of the cell
    for x in range(upright.shape[1]):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], upright[:, x].astype(int), [0]])))
        parts += [f"M{x} {start}V{end}" for start, end in edges.reshape(-1, 2)]
    level = padded[1:, 1:-1] != padded[:-1, 1:-1]  # (grid + 1, grid): a border above the cell
    for y in range(level.shape[0]):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], level[y].astype(int), [0]])))
        parts += [f"M{start} {y}H{end}" for start, end in edges.reshape(-1, 2)]
    return "".join(parts)


def _share_words(patches: KeptPatches, place: int, columns: Columns) -> str:
    """How much of a sample's strain lies in the kept patches: what the picture shows, as numbers."""
    strain = np.asarray(patches.strain[place], dtype=np.float64)
    step = strain.shape[0] // patches.grid
    side = patches.grid * step
    per_patch = strain[:side, :side].reshape(patches.grid, step, patches.grid, step).sum(axis=(1, 3)).ravel()
    total = per_patch.sum() or 1.0
    shares = [f"{100 * per_patch[kept_patches[place]].sum() / total:.0f} %" for _, kept_patches in columns]
    return f"{patches.names[place]} ({patches.labels[place]}) keeps {', '.join(shares)} of its strain"


def _most_telling(
    rows: list[ComparedVariant], comparison: Comparison, verdict: Recommendation
) -> list[ComparedVariant]:
    """The verdict's variant behind its baseline, then what was built like it, then the rest."""
    picked = next((row for row in rows if row.name == verdict.name), rows[-1])
    base = comparison.reference(picked)

    def rank(row: ComparedVariant) -> int:
        alike = row.measured.precision == picked.measured.precision
        alike = alike and row.measured.target == picked.measured.target and row.source is picked.source
        return [row is base, row is picked, alike and not row.is_baseline, True].index(True)

    return sorted(rows, key=rank)


def _matrix(
    row: ComparedVariant, labels: Sequence[str], corner: Point, cell: float, tips: dict[str, str]
) -> list[str]:
    assert row.measured.accuracy is not None, "only rows with an accuracy are drawn"
    counts = np.asarray(row.measured.accuracy.confusion)  # (classes, classes): true, answered
    totals = counts.sum(axis=1)
    x, y = corner
    body = [svg.text(x, y - 10, svg.shortened(row.name, cell * len(labels)), weight="600")]
    for true, label in enumerate(labels):
        below = svg.shortened(label, cell - 2, 11)
        middle = x + (true + 0.5) * cell - 1
        body.append(svg.text(middle, y + cell * len(labels) + 14, below, "muted", anchor="middle", size="11"))
        for answer, other in enumerate(labels):
            share = counts[true, answer] / totals[true] if totals[true] else 0.0
            left, top = x + answer * cell, y + true * cell
            key = f"tip{len(tips)}"
            tips[key] = (
                f"{row.name}: {counts[true, answer]} of {totals[true]} {label} samples answered {other}"
            )
            # At a share of .5 and less the ink keeps its contrast in both themes.
            shade = f'fill="{svg.colour("s1")}" fill-opacity="{0.04 + 0.46 * share:.3f}"'
            size = f'width="{cell - 2:g}" height="{cell - 2:g}" rx="3"'
            number = svg.text(
                left + cell / 2 - 1,
                top + cell / 2 + 3,
                str(counts[true, answer]),
                anchor="middle",
                weight="600" if true == answer else "400",
            )
            body.append(f'<g id="{key}"><rect x="{left:g}" y="{top:g}" {size} {shade}/>{number}</g>')
    return body


def _recall_words(row: ComparedVariant, labels: Sequence[str]) -> str:
    assert row.measured.accuracy is not None, "only rows with an accuracy are described"
    counts = np.asarray(row.measured.accuracy.confusion)
    shares = [
        f"{label} {100 * counts[place, place] / counts[place].sum():.0f} %"
        for place, label in enumerate(labels)
        if counts[place].sum()
    ]
    return f"{row.name}: {', '.join(shares)}"


MOST_WHISKERED_LINES = 4
"""More lines than these are drawn without their intervals, which would hide them."""

_SHAPES = {"cpu": ("o", "circle"), "openvino": ("s", "square"), "trt": ("^", "triangle")}

_OTHER_SHAPE = ("D", "diamond")


def draw_all(comparison: Comparison, verdict: Recommendation) -> dict[str, Picture]:
    """Draws every picture, by name, in the order of `PICTURES`.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    pictures = [draw(comparison, verdict) for draw in PICTURES]
    return {picture.name: picture for picture in pictures}


def tradeoff(comparison: Comparison, verdict: Recommendation) -> Picture:
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

    def level(row: ComparedVariant) -> float:
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


def budgets(comparison: Comparison, verdict: Recommendation) -> Picture:
    """UAR against the share of tokens kept, beside the baseline and the loss that is let through."""
    name, title = "budgets", "Accuracy against budget"
    rows = comparison.comparable()
    variants = [row for row in rows if not row.is_baseline]
    if not variants:
        return Picture(name, title, note="Not drawn: the variants' accuracy was not measured.")
    lines: dict[tuple[str | None, ...], list[ComparedVariant]] = {}
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


PICTURES: tuple[Callable[[Comparison, Recommendation], Picture], ...] = (
    tradeoff,
    costs.latency,
    costs.macs,
    kept,
    confusion,
    budgets,
    histogram.dynamic,
    time_bars.stages,
)


def _scale_level(axes: Any, levels: Sequence[float], least: float) -> None:
    pad = max(0.1 * (max(levels) - min(levels)), least)
    axes.set_ylim(min(levels) - pad, max(levels) + pad)
    axes.yaxis.get_major_locator().set_params(nbins=6)
    axes.yaxis.grid(visible=True)


def _diameter(row: ComparedVariant, rows: Sequence[ComparedVariant], canvas: Canvas) -> float:
    top = max(other.measured.size_bytes for other in rows) or 1
    largest = 26.0 if canvas.compact else 34.0
    return max(5.0, largest * math.sqrt(row.measured.size_bytes / top))


def _mark(
    canvas: Canvas,
    axes: Any,
    role: str,
    row: ComparedVariant,
    level: float,
    size: float,
    picked: bool,
    alpha: float,
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
    named: Sequence[ComparedVariant],
    level: Callable[[ComparedVariant], float],
    sizes: Mapping[ComparedVariant, float],
    subjects: Sequence[ComparedVariant | None],
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


def _colour_key(canvas: Canvas, comparison: Comparison, rows: Sequence[ComparedVariant]) -> None:
    """The precisions, each written in its colour; a single one needs no key."""
    first: dict[str, ComparedVariant] = {}
    for row in rows:
        if not row.is_baseline:
            first.setdefault(row.measured.precision, row)
    if len(first) < 2:
        return
    x = 4.0
    for precision in sorted(first, key=precision_rank):
        canvas.write(x, 16, precision, role_of(first[precision], comparison), weight="bold")
        x += svg.text_width(precision, bold=True) + 12


def _area_key(canvas: Canvas, rows: Sequence[ComparedVariant]) -> None:
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


def _point_words(row: ComparedVariant) -> str:
    accuracy = f", UAR {row.uar:.3f}" if row.uar is not None else ""
    size = f"{quantity(row.measured.size_bytes)}B"
    return f"{row.name}: {three_digits(row.p50_ms or 0.0)} ms{accuracy}, {size}, {quantity(row.measured.macs)}MAC"


def _tradeoff_caption(comparison: Comparison, rows: Sequence[ComparedVariant], judged: bool) -> str:
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
    points: Sequence[ComparedVariant],
    bounds: Mapping[ComparedVariant, tuple[float, float] | None],
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


def _line_label(
    row: ComparedVariant, lines: Mapping[tuple[str | None, ...], Sequence[ComparedVariant]]
) -> str:
    """What tells a line from the others: its row's name without the budget."""
    if len(lines) == 1:
        return "PTSR"
    return row.name.split(" % ", 1)[-1]
