"""A matplotlib figure measured in pixels, and what its charts share: scales, grid, marks, labels, keys.

A chart is drawn twice, for a desktop and for a phone, because text that shrinks with its drawing cannot
be read there. Matplotlib is imported when a chart is drawn, not before.
"""

from __future__ import annotations

import io
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ptsr_edge.core.errors import require
from ptsr_edge.report import svg
from ptsr_edge.report.comparison import Comparison, Row, precision_rank

Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge in pixels from the figure's top left corner."""


class Canvas:
    """A matplotlib figure, with the texts that pop up over its parts."""

    def __init__(self, width: int, height: int) -> None:
        figure = require("matplotlib.figure", "report", "drawing a figure").Figure
        self.width, self.height = width, height
        self.compact = width < svg.WIDE
        self.figure = figure(figsize=(width / 72, height / 72), dpi=72)
        self.figure.patch.set_visible(False)
        self.tips: dict[str, str] = {}

    def axes(self, left: float, right: float, top: float, bottom: float) -> Any:
        """Axes that leave these margins, in pixels."""
        across, down = self.width - left - right, self.height - top - bottom
        box = (left / self.width, bottom / self.height, across / self.width, down / self.height)
        axes = self.figure.add_axes(box)
        axes.patch.set_visible(False)
        return axes

    def write(self, x: float, y: float, content: str, role: str = "muted", **style: Any) -> None:
        """Text whose baseline starts at (x, y), in pixels from the top left corner."""
        place = (x / self.width, 1 - y / self.height)
        text = self.figure.text(*place, content, color=svg.colour(role), va="baseline", **style)
        text.set_gid("halo")

    def title_axis(self, left: float, content: str) -> None:
        """What the horizontal axis shows, under its left end."""
        self.write(min(left, self.width - svg.text_width(content)), self.height - 8, content)

    def tip(self, artist: Any, content: str) -> None:
        """Shows `content` while the pointer rests on `artist`."""
        key = f"tip{len(self.tips)}"
        artist.set_gid(key)
        self.tips[key] = content

    def pixel(self, axes: Any, x: float, y: float) -> tuple[float, float]:
        """A point of the axes in pixels from the top left corner."""
        across, up = axes.transData.transform((x, y))
        return float(across), self.height - float(up)


def render(name: str, heights: tuple[float, float], paint: Callable[[Canvas], None]) -> tuple[str, str]:
    """Paints a chart for a desktop and for a phone; the same input gives the same bytes.

    Args:
        name: of the picture; makes the ids unique on the page.
        heights: of the wide and of the narrow drawing, in pixels.
        paint: draws on the canvas that it is given.
    """
    matplotlib = require("matplotlib", "report", "drawing a figure")
    drawings = []
    for width, height in zip((svg.WIDE, svg.NARROW), heights, strict=True):
        with matplotlib.rc_context(_style(name)), warnings.catch_warnings():
            # A glyph that the layout font lacks is drawn with the page's font all the same.
            warnings.filterwarnings("ignore", message="Glyph .* missing")
            canvas = Canvas(width, round(height))
            paint(canvas)
            stream = io.StringIO()
            canvas.figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
        drawings.append(svg.page_ready(stream.getvalue(), f"{name}-{width}", canvas.tips))
    return drawings[0], drawings[1]


def _style(name: str) -> dict[str, Any]:
    ink, muted, rule = svg.colour("ink"), svg.colour("muted"), svg.colour("rule")
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "text.parse_math": False,
        "axes.unicode_minus": False,
        "font.family": ["DejaVu Sans"],
        "font.size": 12,
        "text.color": ink,
        "axes.labelcolor": muted,
        "axes.labelpad": 8,
        "axes.edgecolor": rule,
        "axes.linewidth": 1,
        "axes.spines.left": False,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.spines.bottom": False,
        "axes.axisbelow": True,
        "grid.color": rule,
        "grid.linewidth": 1,
        "xtick.color": muted,
        "ytick.color": muted,
        "ytick.major.pad": 8,
        "xtick.labelsize": 12,
        "ytick.labelsize": 12,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "xtick.minor.size": 0,
        "lines.solid_capstyle": "round",
    }


def role_of(row: Row, comparison: Comparison) -> str:
    """The colour of a row, the same in every picture: that of its precision; baselines are ink."""
    if row.is_baseline:
        return "ink"
    precisions = sorted({other.measured.precision for other in comparison.rows}, key=precision_rank)
    return svg.SERIES[precisions.index(row.measured.precision) % len(svg.SERIES)]


def scale_time(axes: Any, values_ms: Sequence[float], logarithmic: bool, room: float = 0.06) -> None:
    """A time axis: from 0, so that distances are ratios, or by factors with `room` (a share) at its left."""
    low, high = min(values_ms), max(values_ms)
    if not logarithmic:
        axes.set_xlim(0, 1.12 * high)
        axes.xaxis.get_major_locator().set_params(nbins=6)
        return
    axes.set_xscale("log")
    factor = high / low * 1.2
    axes.set_xlim(low / factor ** (room / (0.95 - room)), high * factor**0.06)
    first, last = axes.get_xlim()
    steps: tuple[float, ...] = (1,)
    for most, finer in ((300, (1, 2, 5)), (30, (1, 2, 3, 5)), (5, (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8))):
        steps = finer if last / first < most else steps
    powers = range(math.floor(math.log10(first)), math.ceil(math.log10(last)) + 1)
    ticks = [step * 10.0**power for power in powers for step in steps]
    ticks = [tick for tick in ticks if first <= tick <= last]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)


@dataclass(frozen=True)
class Label:
    """What stands beside a mark: `lines` of (text, role, bold) around a disc at (x, y), in pixels.

    One that is not needed is left out where it would cover another.
    """

    x: float
    y: float
    radius: float
    lines: tuple[tuple[str, str, bool], ...]
    is_needed: bool = False


def place_labels(canvas: Canvas, labels: Sequence[Label], taken: Iterable[Box], area: Box) -> None:
    """Writes each label where it covers least of what is there already, the first ones choosing first.

    Args:
        canvas: what is written on.
        labels: in the order in which they choose.
        taken: boxes of the marks that labels should leave free.
        area: a label stays inside this box.
    """
    marks, texts = list(taken), list[Box]()
    for label in labels:
        width = max(svg.text_width(line[0], bold=line[2]) for line in label.lines)
        height = 15.0 * len(label.lines)
        gap = label.radius + 5
        slant = 0.71 * label.radius + 3
        spots = [
            (gap, -height / 2),
            (slant, -slant - height + 4),
            (slant, slant - 4),
            (-gap - width, -height / 2),
            (-slant - width, -slant - height + 4),
            (-slant - width, slant - 4),
            (-width / 2, -gap - height),
            (-width / 2, gap),
        ]
        options = [
            (left, top, left + width, top + height)
            for left, top in ((label.x + dx, label.y + dy) for dx, dy in spots)
        ]
        costs = [
            sum(_overlap(option, box) for box in marks)
            + 4 * sum(_overlap(option, box) for box in texts)
            + 20 * _outside(option, area)
            for option in options
        ]
        best = min(range(len(options)), key=lambda place: (round(costs[place], 3), place))
        box = options[best]
        if not label.is_needed and costs[best] > 0.08 * width * height:
            continue
        texts.append(box)
        align = "left" if best < 3 else "right" if best < 6 else "center"
        x = {"left": box[0], "right": box[2], "center": (box[0] + box[2]) / 2}[align]
        for place, (content, role, bold) in enumerate(label.lines):
            weight = "bold" if bold else "normal"
            canvas.write(x, box[1] + 12 + 15 * place, content, role, ha=align, weight=weight)


def boxes_along(points: Sequence[tuple[float, float]]) -> list[Box]:
    """Small boxes along a line through these pixels, for labels to keep off."""
    boxes = []
    for (x, y), (to_x, to_y) in itertools.pairwise(points):
        count = max(1, round(math.hypot(to_x - x, to_y - y) / 6))
        for step in range(count + 1):
            across, down = x + (to_x - x) * step / count, y + (to_y - y) * step / count
            boxes.append((across - 2, down - 2, across + 2, down + 2))
    return boxes


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Moves positions apart until neighbours differ by `gap`, each as little as possible."""
    order = sorted(range(len(positions)), key=lambda place: positions[place])
    groups: list[tuple[float, int]] = []  # (centre, how many)
    for place in order:
        groups.append((positions[place], 1))
        while len(groups) > 1 and (groups[-1][0] - groups[-2][0] < gap * (groups[-1][1] + groups[-2][1]) / 2):
            (high, many), (low, few) = groups.pop(), groups.pop()
            groups.append(((high * many + low * few) / (many + few), many + few))
    placed = [centre + gap * (step - (many - 1) / 2) for centre, many in groups for step in range(many)]
    result = [0.0] * len(positions)
    for place, position in zip(order, placed, strict=True):
        result[place] = position
    return result


def _overlap(one: Box, other: Box) -> float:
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    return max(across, 0.0) * max(down, 0.0)


def _outside(box: Box, area: Box) -> float:
    whole = (box[2] - box[0]) * (box[3] - box[1])
    return whole - _overlap(box, area)
