"""Pictures made of tiles, in plain SVG: which patches a budget keeps, and confusion matrices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.profile.schema import KeptPatches
from ptsr_edge.report import svg
from ptsr_edge.report.comparison import Comparison, Row, budget_text
from ptsr_edge.report.svg import Picture
from ptsr_edge.report.verdict import Verdict

MOST_SAMPLES = 4
MOST_BUDGETS = 4
MOST_MATRICES = 6
IMAGE_SIDE = 56  # pixels of an embedded image: strain is smooth, and the page stays small

Point = tuple[float, float]
Columns = list[tuple[str, list[list[int]]]]


def kept(comparison: Comparison, _: Verdict) -> Picture:
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


def confusion(comparison: Comparison, verdict: Verdict) -> Picture:
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


def _most_telling(rows: list[Row], comparison: Comparison, verdict: Verdict) -> list[Row]:
    """The verdict's variant behind its baseline, then what was built like it, then the rest."""
    picked = next((row for row in rows if row.name == verdict.name), rows[-1])
    base = comparison.reference(picked)

    def rank(row: Row) -> int:
        alike = row.measured.precision == picked.measured.precision
        alike = alike and row.measured.target == picked.measured.target and row.source is picked.source
        return [row is base, row is picked, alike and not row.is_baseline, True].index(True)

    return sorted(rows, key=rank)


def _matrix(row: Row, labels: Sequence[str], corner: Point, cell: float, tips: dict[str, str]) -> list[str]:
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


def _recall_words(row: Row, labels: Sequence[str]) -> str:
    assert row.measured.accuracy is not None, "only rows with an accuracy are described"
    counts = np.asarray(row.measured.accuracy.confusion)
    shares = [
        f"{label} {100 * counts[place, place] / counts[place].sum():.0f} %"
        for place, label in enumerate(labels)
        if counts[place].sum()
    ]
    return f"{row.name}: {', '.join(shares)}"
