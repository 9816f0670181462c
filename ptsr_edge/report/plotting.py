"""Charts as SVG that fits into the page: a canvas measured in pixels, the theme's colours, scales, keys and labels.

A chart is painted twice, for a desktop and for a phone, because text that shrinks with its drawing cannot be read
there. While it is painted, each role of `THEME` has a colour that stands in for it; on the page that is a CSS
variable, so that one drawing serves the light and the dark theme. Matplotlib is imported when a chart is painted,
not before.
"""

from __future__ import annotations

import io
import itertools
import math
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ptsr_edge.core.console import printable
from ptsr_edge.core.errors import require
from ptsr_edge.report.comparison import ComparedVariant, Comparison, precision_rank

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

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

SVG_CSS = (
    "svg text { pointer-events: none; } "
    ".halo text { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; }"
)
"""Lets the pointer through to the shape that a text lies on, and keeps labels readable where they cross a line."""

_STAND_INS = {role: f"#0d0e{place:02x}" for place, role in enumerate(THEME)}

_SVG = "http://www.w3.org/2000/svg"
_HREF = "{http://www.w3.org/1999/xlink}href"
ElementTree.register_namespace("", _SVG)


def colour(role: str) -> str:
    """Returns the colour that stands in for a role of `THEME` while a chart is painted."""
    return _STAND_INS[role]


def theme_css(theme: int) -> str:
    """Returns the CSS declarations of all roles: theme 0 is light, 1 is dark."""
    return " ".join(f"--{role}: {values[theme]};" for role, values in THEME.items())


def precision_roles(rows: Iterable[ComparedVariant], comparison: Comparison) -> dict[str, str]:
    """Returns a key of the colours of these rows: each precision, from wide to narrow, and the full-token ViT."""
    rows = list(rows)
    roles = {row.measured.precision: role_of(row, comparison) for row in rows if not row.is_baseline}
    key = {name: roles[name] for name in sorted(roles, key=precision_rank)}
    return key | ({"full ViT": "ink"} if any(row.is_baseline for row in rows) else {})


def role_of(row: ComparedVariant, comparison: Comparison) -> str:
    """Returns the colour of a variant, the same in every chart: that of its precision; baselines are ink."""
    if row.is_baseline:
        return "ink"
    precisions = sorted({other.measured.precision for other in comparison.rows}, key=precision_rank)
    return SERIES[precisions.index(row.measured.precision) % len(SERIES)]


# ---------------------------------------------------------------------------------------------
# From a chart's function to SVG


@dataclass(frozen=True)
class Drawing:
    """What a chart's function returns: how it is painted, and its words.

    Attributes:
        paint: draws on the canvas that it is given, once for a desktop and once for a phone.
        heights: of the wide and of the narrow drawing, in pixels.
        caption: how to read it.
        words: what can be seen in it, for those who cannot see it.
        title: replaces the chart's own where it shows something else than usual.
    """

    paint: Callable[[Canvas], None]
    heights: tuple[float, float]
    caption: str
    words: str
    title: str | None = None


@dataclass(frozen=True)
class NotDrawn:
    """What a chart's function returns where there is nothing to show: what is missing, in a clause."""

    reason: str


def render(name: str, drawing: Drawing, widths: Sequence[int] = (WIDE, NARROW)) -> list[str]:
    """Paints a chart for a desktop and for a phone, as inline SVG; the same input gives the same bytes.

    Args:
        name: of the chart; makes the ids unique on the page.
        drawing: what is painted.
        widths: in pixels, one for each drawing that is wanted.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    matplotlib = require("matplotlib", "report", "drawing a chart")
    painted = []
    for width, height in zip(widths, drawing.heights, strict=False):
        with matplotlib.rc_context(_style(name)), warnings.catch_warnings():
            # A glyph that the layout font lacks is drawn with the page's font all the same.
            warnings.filterwarnings("ignore", message="Glyph .* missing")
            canvas = Canvas(width, round(height))
            drawing.paint(canvas)
            stream = io.StringIO()
            canvas.figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
        painted.append(page_ready(stream.getvalue(), f"{name}-{width}", canvas.tips))
    return painted


def page_ready(raw: str, name: str, tips: Mapping[str, str]) -> str:
    """Turns a drawing into an inline SVG element: themed, without fonts and sizes, with ids of its own.

    Args:
        raw: an SVG document with stand-in colours.
        name: put before every id, so that several drawings fit into one page.
        tips: id of an element -> the text that is shown while the pointer rests on it.
    """
    root = ElementTree.fromstring(printable(raw))  # XML has no control characters
    for key in ("width", "height", "version"):  # the page decides how large a drawing is
        root.attrib.pop(key, None)
    for parent in list(root.iter()):
        for child in list(parent):
            # A style sheet in an inline drawing would hold for the whole page.
            if child.tag == f"{{{_SVG}}}metadata" or child.find(f"{{{_SVG}}}style") is not None:
                parent.remove(child)
    for node in list(root.iter()):
        key = node.get("id", "")
        if key in tips:
            tip = ElementTree.Element(f"{{{_SVG}}}title")
            tip.text = printable(tips[key])
            node.insert(0, tip)
        attributes = {entry: _page_value(entry, value, name) for entry, value in node.attrib.items()}
        node.attrib.clear()
        node.attrib |= {entry.replace(_HREF, "href"): value for entry, value in attributes.items() if value}
        if key.startswith("halo"):
            del node.attrib["id"]
            node.set("class", "halo")
        if not (node.text or "").strip():
            node.text = None
        node.tail = "\n"
    # What the style sheet that was dropped said of joints.
    root.attrib |= {"stroke-linejoin": "round", "stroke-linecap": "butt"}
    return ElementTree.tostring(root, encoding="unicode").strip()


def _page_value(key: str, value: str, name: str) -> str:
    """Returns an attribute's value as it stands on the page; an empty one is left out."""
    if key == "id":
        return f"{name}-{value}"
    if key == _HREF:
        return f"#{name}-{value[1:]}" if value.startswith("#") else "".join(value.split())
    if key in ("d", "x", "y"):  # a hundredth of a pixel is more than anybody sees
        return re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", " ".join(value.split()))
    if key == "transform" and value.startswith("rotate(-0 "):
        return ""
    if key == "style":
        value = "; ".join(entry for part in value.split(";") if (entry := _page_style(part.strip())))
    for role, stand_in in _STAND_INS.items():
        value = value.replace(stand_in, f"var(--{role})")
    return value.replace("url(#", f"url(#{name}-")


def _page_style(declaration: str) -> str:
    """Returns a CSS declaration without the layout's font: the page has its own; images are drawn smoothly."""
    key, _, value = declaration.partition(":")
    if key == "font":  # older matplotlibs write weight, size and family in one
        weight, size = re.fullmatch(r"\s*((?:bold|[1-9]00)\b)?.*?([\d.]+px).*", value).groups()  # type: ignore[union-attr]
        return f"font-size: {size}" + (f"; font-weight: {weight}" if weight else "")
    return "" if key in ("font-family", "image-rendering") else declaration


def standalone(inline: str, label: str) -> str:
    """Returns a file that is shown by itself, light or dark as its viewer prefers, on paper of its own."""
    root = ElementTree.fromstring(inline)
    margin = 16  # on the page the text around it keeps the distance
    left, top, width, height = (float(part) for part in root.attrib["viewBox"].split())
    width, height = width + 2 * margin, height + 2 * margin
    root.attrib |= {
        "viewBox": f"{left - margin:g} {top - margin:g} {width:g} {height:g}",
        "width": f"{width:g}",
        "height": f"{height:g}",
        "role": "img",
        "aria-label": label,
    }
    style = ElementTree.Element(f"{{{_SVG}}}style")
    style.text = (
        f"svg {{ {theme_css(0)} background: var(--paper); font-family: {FONT}; }} {SVG_CSS} "
        f"@media (prefers-color-scheme: dark) {{ svg {{ {theme_css(1)} }} }}"
    )
    style.tail = "\n"
    root.insert(0, style)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


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


# ---------------------------------------------------------------------------------------------
# What charts are painted on

Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge in pixels from the top left corner of the canvas."""


class Canvas:
    """A matplotlib figure measured in pixels, with the texts that pop up over its parts."""

    def __init__(self, width: int, height: int) -> None:
        figure = require("matplotlib.figure", "report", "drawing a chart").Figure
        self.width, self.height = width, height
        self.compact = width < WIDE
        self.figure = figure(figsize=(width / 72, height / 72), dpi=72)
        self.figure.patch.set_visible(False)
        self.tips: dict[str, str] = {}

    def axes(self, left: float, right: float, top: float, bottom: float) -> Any:
        """Adds axes that leave these margins, in pixels."""
        across, down = self.width - left - right, self.height - top - bottom
        box = (left / self.width, bottom / self.height, across / self.width, down / self.height)
        axes = self.figure.add_axes(box)
        axes.patch.set_visible(False)
        return axes

    def bar_axes(self, names: Sequence[str], right: float, top: float) -> Any:
        """Adds axes for one horizontal bar per name, from 0 on, the names at the left."""
        left = min(12 + max(map(text_width, names)), 0.4 * self.width)
        axes = self.axes(left, right, top, 4)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xticks([])
        axes.set_yticks(range(len(names)), [shortened(name, left - 8) for name in names], color=colour("ink"))
        return axes

    def write(self, x: float, y: float, content: str, role: str = "muted", **style: Any) -> None:
        """Writes a text whose baseline starts at (x, y), in pixels from the top left corner."""
        place = (x / self.width, 1 - y / self.height)
        text = self.figure.text(*place, content, color=colour(role), va="baseline", **style)
        text.set_gid("halo")

    def title_axis(self, left: float, content: str) -> None:
        """Says under the left end of the horizontal axis what it shows."""
        self.write(min(left, self.width - text_width(content)), self.height - 8, content)

    def tip(self, artist: Any, content: str) -> None:
        """Shows `content` while the pointer rests on `artist`."""
        key = f"tip{len(self.tips)}"
        artist.set_gid(key)
        self.tips[key] = content

    def pixel(self, axes: Any, x: float, y: float) -> tuple[float, float]:
        """Returns a point of the axes in pixels from the top left corner."""
        across, up = axes.transData.transform((x, y))
        return float(across), self.height - float(up)

    def stacked_bar(self, axes: Any, place: int, parts: Iterable[tuple[float, str, str]], total: str) -> None:
        """Draws a bar of parts, each with its length, role and tip, and writes the total behind it."""
        start = 0.0
        for length, role, content in parts:
            (bar,) = axes.barh([place], [length], left=start, height=0.56, color=colour(role))
            bar.set_edgecolor(colour("paper"))
            self.tip(bar, content)
            start += length
        axes.annotate(total, (start, place), (7, -4), textcoords="offset points", va="baseline")

    def key(self, roles: Mapping[str, str]) -> None:
        """Writes each name in the colour of its role, at the top, in as many lines as that takes."""
        for number, line in enumerate(key_lines(roles, self.width)):
            x = 4.0
            for name in line:
                self.write(x, 16 + KEY_LINE * number, name, roles[name], weight="bold")
                x += text_width(name, bold=True) + 12


KEY_LINE = 18.0
"""Height of a line of a key in pixels."""


def key_lines(names: Iterable[str], width: float) -> list[list[str]]:
    """Returns the names of a key, line by line, for a drawing of `width` pixels."""
    lines: list[list[str]] = []
    x = math.inf
    for name in names:
        needed = text_width(name, bold=True) + 12
        if x + needed > width:
            lines.append([])
            x = 4.0
        lines[-1].append(name)
        x += needed
    return lines


_NARROW_LETTERS = "fijlrtI.,:;|!()[] "

_NARROW_EM, _EM = 0.36, 0.62


def text_width(content: str, size: float = 12, bold: bool = False) -> float:
    """Returns about how wide a text is, in pixels: generous, since the page chooses the font."""
    ems = sum(_NARROW_EM if letter in _NARROW_LETTERS else _EM for letter in content)
    return (1.1 if bold else 1.0) * size * (ems + 0.35 * sum(letter in "mwMW%" for letter in content))


def shortened(content: str, width: float, size: float = 12) -> str:
    """Cuts a text to what fits into `width` pixels, one letter at least."""
    if text_width(content, size) <= width:
        return content
    most = len(content)
    while most > 1 and text_width(content[:most] + "…", size) > width:
        most -= 1
    return content[:most] + "…"


def scale_time(axes: Any, values_ms: Sequence[float], logarithmic: bool, room: float = 0.06) -> None:
    """Scales a time axis: from 0, so that distances are ratios, or by factors with `room` (a share) at its left."""
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
    """A label beside a mark: `lines` of (text, role, bold) around a disc at (x, y), in pixels.

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
    """Returns small boxes along a line through these pixels, for labels to keep off."""
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
