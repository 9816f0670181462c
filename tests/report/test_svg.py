"""Page-ready SVG: theme variables, ids, tips, contrast and the PNG writer."""

from __future__ import annotations

import base64
import io
import xml.etree.ElementTree as ElementTree

import matplotlib.image
import numpy as np
import pytest

from ptsr_edge.report import plotting as svg

TEXT_ROLES = [role for role in svg.THEME if role not in ("paper", "rule", "wash")]


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2.2."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot((0.2126, 0.7152, 0.0722), linear))


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def mixed(top: str, below: str, share: float) -> str:
    def parts(colour: str) -> list[int]:
        return [int(colour[place : place + 2], 16) for place in (1, 3, 5)]

    pairs = zip(parts(top), parts(below), strict=True)
    return "#" + "".join(f"{round(share * a + (1 - share) * b):02x}" for a, b in pairs)


def test_contrast_of_known_colours() -> None:
    # WCAG's own extremes: black on white is 21, a colour on itself 1.
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#0067ac", "#0067ac") == 1


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("role", TEXT_ROLES)
def test_every_text_colour_can_be_read(role: str, theme: int) -> None:
    # WCAG 2.2, 1.4.3: 4.5 for text of normal size.
    for ground in ("paper", "wash"):
        assert contrast(svg.THEME[role][theme], svg.THEME[ground][theme]) >= 4.5


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_numbers_can_be_read_on_the_darkest_cell_of_a_confusion_matrix(theme: int) -> None:
    cell = mixed(svg.THEME["s1"][theme], svg.THEME["paper"][theme], 0.5)
    assert contrast(svg.THEME["ink"][theme], cell) >= 4.5


def test_page_ready_takes_theme_ids_and_tips() -> None:
    raw = (
        '<?xml version="1.0"?><!DOCTYPE svg><svg xmlns:xlink="x" width="9pt" viewBox="0 0 9 9">'
        "<metadata>when</metadata><defs><style>*{stroke: red}</style></defs>"
        f'<g id="tip0"><path d="M 1.23456 2" fill="{svg.colour("s2")}"/></g>'
        '<text style="font: bold 12px \'DejaVu Sans\'; text-anchor: end" x="1">0.12345</text>'
        '<g clip-path="url(#p1)"><use xlink:href="#m1"/></g></svg>'
    )
    text = svg.page_ready(raw, "name", {"tip0": "a < b"})
    assert '<g id="name-tip0"><title>a &lt; b</title>' in text
    assert "var(--s2)" in text
    assert "url(#name-p1)" in text
    assert ' href="#name-m1"' in text
    assert "font-size: 12px; font-weight: bold; text-anchor: end" in text
    assert 'd="M 1.23 2"' in text
    assert ">0.12345<" in text  # what is written is not geometry
    for gone in ("<?xml", "DOCTYPE", "metadata", "<style", "9pt", "DejaVu", "xlink"):
        assert gone not in text


def test_standalone_brings_both_themes_and_a_margin() -> None:
    inline = svg.element("name", 100, 50, [svg.text(0, 10, "a & b")])
    root = ElementTree.fromstring(svg.standalone(inline, 'what "it" shows'))
    assert root.get("aria-label") == 'what "it" shows'
    assert root.get("viewBox") == "-16 -16 132 82"
    style = root.findtext("{http://www.w3.org/2000/svg}style") or ""
    assert svg.THEME["ink"][0] in style
    assert svg.THEME["ink"][1] in style


def test_grey_png_is_what_another_reader_reads() -> None:
    image = np.arange(6 * 5, dtype=np.uint8).reshape(6, 5) * 8
    data = base64.b64decode(svg.grey_png(image).removeprefix("data:image/png;base64,"))
    read = matplotlib.image.imread(io.BytesIO(data))  # (6, 5), 0..1
    np.testing.assert_array_equal(np.round(read * 255).astype(np.uint8), image)


@pytest.mark.parametrize(
    ("content", "width", "expected"),
    [("negative", 200, "negative"), ("negative", 30, "neg…"), ("negative", 0, "n…")],
    ids=["fits", "is cut", "keeps a letter"],
)
def test_shortened(content: str, width: float, expected: str) -> None:
    assert svg.shortened(content, width) == expected
