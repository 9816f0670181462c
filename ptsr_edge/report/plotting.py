"""A matplotlib figure measured in pixels, and what its charts share: scales, grid, marks, labels, keys.

A chart is drawn twice, for a desktop and for a phone, because text that shrinks with its drawing cannot
be read there. Matplotlib is imported when a chart is drawn, not before.
"""

from __future__ import annotations

import base64
import io
import itertools
import math
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.core.errors import require
from ptsr_edge.report.comparison import ComparedVariant, Comparison, precision_rank

# FOLDED from report.svg: Drawings as SVG text that fits into a page: colours follow the page's theme, ids do not collide. A drawing uses one fixed stand-in colour for each role; `page_ready` replaces it by the CSS variable of that role, so that one drawing serves the light and the dark theme. `standalone` adds the values of the variables, for a file that is shown by itself.

WIDE, NARROW = 880, 350
"""Widths in CSS pixels; text is drawn at the size it will be read in."""

# name: (light, dark). The series are tints of the Okabe-Ito hues, dark or light enough to be read as
# text (contrast of 4.5 and more on the paper of their theme).
THEME: dict[str, tuple[str, str]] = {
    "paper": ("#ffffff", "#14171b"),
    "ink": ("#1b1f24", "#e7eaee"),
    "muted": ("#5c6670", "#9aa5b1"),
    "rule": ("#d5dade", "#333a42"),
    "wash": ("#f2f5f7", "#1d2228"),
    "s1": ("#0067ac", "#62b5f5"),
    "s2": ("#b34d00", "#f0a05a"),
    "s3": ("#007a5e", "#45c9a5"),
    "s4": ("#99427f", "#e394cb"),
    "s5": ("#7d6400", "#dcc04e"),
    "s6": ("#5560b5", "#a3aef5"),
}

SERIES = ("s1", "s2", "s3", "s4", "s5", "s6")

_STAND_INS = {role: f"#0d0e{place:02x}" for place, role in enumerate(THEME)}

_NARROW_LETTERS = "fijlrtI.,:;|!()[] "

_NARROW_EM, _EM = 0.36, 0.62

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

HALO = ".halo text { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; }"
"""Keeps labels readable where they cross a line of the drawing."""


@dataclass(frozen=True)
class Picture:
    """A picture and its words; one that could not be drawn says in `note` what is missing.

    Attributes:
        name: also the stem of the file it is saved as.
        caption: how to read it.
        words: what can be seen in it, for those who cannot see it.
        wide: inline SVG element for a desktop.
        narrow: the same for a phone.
    """

    name: str
    title: str
    caption: str = ""
    words: str = ""
    wide: str | None = None
    narrow: str | None = None
    note: str = ""


def colour(role: str) -> str:
    """The stand-in colour of a role of `THEME`."""
    return _STAND_INS[role]


def theme_css(theme: int) -> str:
    """The CSS declarations of all roles: theme 0 is light, 1 is dark."""
    return " ".join(f"--{role}: {values[theme]};" for role, values in THEME.items())


def page_ready(raw: str, name: str, tips: dict[str, str]) -> str:
    """Turns a drawing into an inline SVG element.

    Args:
        raw: an SVG document with stand-in colours.
        name: put before every id, so that several drawings fit into one page.
        tips: id of an element -> the text that is shown while the pointer rests on it.
    """
    result = re.sub(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>", "", raw, flags=re.S)
    # A style sheet in an inline drawing would hold for the whole page.
    result = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", result, flags=re.S)
    result = _strip_size(result)
    for key, tip in tips.items():
        result = result.replace(f'<g id="{key}">', f'<g id="{key}"><title>{escape(tip)}</title>')
    result = re.sub(r'<g id="halo\d*">', '<g class="halo">', result)
    for role, stand_in in _STAND_INS.items():
        result = result.replace(stand_in, f"var(--{role})")
    # The page's font, not the one of the layout; `font:` is the form of older matplotlibs.
    result = re.sub(r"font-family: [^;\"]*;? ?", "", result)
    result = re.sub(r"font: ((?:bold|[1-9]00) )?([\d.]+px) [^;\"]*", _font_without_family, result)
    result = re.sub(r' transform="rotate\(-0 [^)]*\)"', "", result)
    result = re.sub(r'\bid="', f'id="{name}-', result)
    result = re.sub(r"url\(#", f"url(#{name}-", result)
    result = re.sub(r'href="#', f'href="#{name}-', result)
    result = re.sub(r'(?<= )(?:d|x|y)="[^"]*"', _rounded, result)
    return re.sub(r"\s*\n\s*", "\n", result).strip()


def element(
    name: str, width: float, height: float, body: list[str], tips: dict[str, str] | None = None
) -> str:
    """An inline SVG element from elements that were written by hand."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}">'
    return page_ready("\n".join([head, *body, "</svg>"]), name, tips or {})


def text(x: float, y: float, content: str, role: str = "ink", **style: str) -> str:
    """A line of text; `style` are attributes such as `anchor="middle"`, `size="12"`, `weight="600"`."""
    return (
        f'<text x="{x:g}" y="{y:g}" fill="{colour(role)}" font-size="{style.get("size", "12")}" '
        f'text-anchor="{style.get("anchor", "start")}" font-weight="{style.get("weight", "400")}">'
        f"{escape(content)}</text>"
    )


def text_width(content: str, size: float = 12, bold: bool = False) -> float:
    """About how wide a text is, in pixels: generous, since the page chooses the font."""
    ems = sum(_NARROW_EM if letter in _NARROW_LETTERS else _EM for letter in content)
    return (1.1 if bold else 1.0) * size * (ems + 0.35 * sum(letter in "mwMW%" for letter in content))


def shortened(content: str, width: float, size: float = 12) -> str:
    """A text cut to what fits into `width` pixels."""
    if text_width(content, size) <= width:
        return content
    most = len(content)
    while most > 1 and text_width(content[:most] + "…", size) > width:
        most -= 1
    return content[:most] + "…"


def standalone(inline: str, label: str) -> str:
    """A file that is shown by itself, light or dark as its viewer prefers, on paper of its own."""
    style = (
        f"<style>svg {{ {theme_css(0)} background: var(--paper); font-family: {FONT}; }} {HALO} "
        f"@media (prefers-color-scheme: dark) {{ svg {{ {theme_css(1)} }} }}</style>"
    )
    left, top, width, height = (float(part) for part in _view_box(inline).split())
    margin = 16  # on the page the text around it keeps the distance
    width, height = width + 2 * margin, height + 2 * margin
    inline = inline.replace(
        f'viewBox="{_view_box(inline)}"',
        f'viewBox="{left - margin:g} {top - margin:g} {width:g} {height:g}"',
        1,
    )
    head = f'<svg width="{width:g}" height="{height:g}" role="img" aria-label="{escape(label)}" '
    body = inline.replace("<svg ", head, 1)
    end = body.index(">") + 1
    return f"{body[:end]}\n{style}{body[end:]}\n"


def grey_png(image: NDArray[np.uint8]) -> str:
    """An image (H, W) of grey values as a data address holding a PNG."""
    height, width = image.shape
    lines = b"".join(b"\0" + row.tobytes() for row in np.ascontiguousarray(image))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    png += chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _view_box(inline: str) -> str:
    found = re.search(r'viewBox="([^"]*)"', inline)
    assert found is not None, "every drawing has a viewBox"
    return found.group(1)


def _strip_size(svg: str) -> str:
    """The page decides how large a drawing is; joints were set by the dropped style sheet."""
    end = svg.index(">", svg.index("<svg"))
    head = re.sub(r'\s(width|height|version|xmlns:xlink)="[^"]*"', "", svg[:end])
    head += ' stroke-linejoin="round" stroke-linecap="butt"'
    return (head + svg[end:]).replace("xlink:href", "href")


def _rounded(attribute: re.Match[str]) -> str:
    """A hundredth of a pixel is more than anybody sees."""
    return re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", attribute[0])


def _font_without_family(found: re.Match[str]) -> str:
    weight = f"; font-weight: {found.group(1).strip()}" if found.group(1) else ""
    return f"font-size: {found.group(2)}{weight}"


Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge in pixels from the figure's top left corner."""


class Canvas:
    """A matplotlib figure, with the texts that pop up over its parts."""

    def __init__(self, width: int, height: int) -> None:
        figure = require("matplotlib.figure", "report", "drawing a figure").Figure
        self.width, self.height = width, height
        self.compact = width < WIDE
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
        text = self.figure.text(*place, content, color=colour(role), va="baseline", **style)
        text.set_gid("halo")

    def title_axis(self, left: float, content: str) -> None:
        """What the horizontal axis shows, under its left end."""
        self.write(min(left, self.width - text_width(content)), self.height - 8, content)

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
    for width, height in zip((WIDE, NARROW), heights, strict=True):
        with matplotlib.rc_context(_style(name)), warnings.catch_warnings():
            # A glyph that the layout font lacks is drawn with the page's font all the same.
            warnings.filterwarnings("ignore", message="Glyph .* missing")
            canvas = Canvas(width, round(height))
            paint(canvas)
            stream = io.StringIO()
            canvas.figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
        drawings.append(page_ready(stream.getvalue(), f"{name}-{width}", canvas.tips))
    return drawings[0], drawings[1]


def _style(name: str) -> dict[str, Any]:
    ink, muted, rule = colour("ink"), colour("muted"), colour("rule")
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


def role_of(row: ComparedVariant, comparison: Comparison) -> str:
    """The colour of a row, the same in every picture: that of its precision; baselines are ink."""
    if row.is_baseline:
        return "ink"
    precisions = sorted({other.measured.precision for other in comparison.rows}, key=precision_rank)
    return SERIES[precisions.index(row.measured.precision) % len(SERIES)]


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
        width = max(text_width(line[0], bold=line[2]) for line in label.lines)
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
