"""Drawings as SVG text that fits into a page: colours follow the page's theme, ids do not collide.

A drawing uses one fixed stand-in colour for each role; `page_ready` replaces it by the CSS variable of
that role, so that one drawing serves the light and the dark theme. `standalone` adds the values of the
variables, for a file that is shown by itself.
"""

from __future__ import annotations

import base64
import re
import struct
import zlib
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

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
