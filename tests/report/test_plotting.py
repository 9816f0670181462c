"""Drawings for the page: theme variables, ids, tips and contrast; and the layout that charts share."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import numpy as np
import pytest

from ptsr_edge.report.plotting import (
    THEME,
    Box,
    Canvas,
    Drawing,
    Label,
    boxes_along,
    colour,
    key_lines,
    page_ready,
    place_labels,
    render,
    scale_time,
    shortened,
    spread,
    standalone,
)

TEXT_ROLES = [role for role in THEME if role not in ("paper", "rule", "wash")]


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
        assert contrast(THEME[role][theme], THEME[ground][theme]) >= 4.5


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_numbers_can_be_read_on_the_darkest_cell_of_a_confusion_matrix(theme: int) -> None:
    cell = mixed(THEME["s1"][theme], THEME["paper"][theme], 0.5)
    assert contrast(THEME["ink"][theme], cell) >= 4.5


def test_page_ready_takes_theme_ids_and_tips() -> None:
    raw = (
        '<?xml version="1.0"?><!DOCTYPE svg><svg xmlns="http://www.w3.org/2000/svg" width="9pt" viewBox="0 0 9 9" '
        'xmlns:xlink="http://www.w3.org/1999/xlink">'
        "<metadata>when</metadata><defs><style>*{stroke: red}</style></defs>"
        f'<g id="tip0"><path d="M 1.23456 2\nL 3 4" fill="{colour("s2")}"/></g>'
        '<text style="font: bold 12px \'DejaVu Sans\'; text-anchor: end" x="1" transform="rotate(-0 1 0)">0.12345</text>'
        '<g id="halo1"><text style="font-size: 12px; font-family: \'DejaVu Sans\'">b</text></g>'
        '<image xlink:href="data:image/png;base64,\nAAA" style="image-rendering: pixelated"/>'
        '<g clip-path="url(#p1)"><use xlink:href="#m1"/></g></svg>'
    )
    text = page_ready(raw, "name", {"tip0": "a < b"})
    assert re.search(r'<g id="name-tip0">\s*<title>a &lt; b</title>', text)
    assert "var(--s2)" in text
    assert "url(#name-p1)" in text
    assert ' href="#name-m1"' in text
    assert ' href="data:image/png;base64,AAA"' in text
    assert 'style="font-size: 12px; font-weight: bold; text-anchor: end"' in text
    assert re.search(r'<g class="halo">\s*<text style="font-size: 12px">b</text>', text)
    assert 'd="M 1.23 2 L 3 4"' in text
    assert ">0.12345<" in text  # what is written is not geometry
    for gone in ("<?xml", "DOCTYPE", "metadata", "<style", "9pt", "DejaVu", "xlink", "rotate", "pixelated"):
        assert gone not in text


def test_standalone_brings_both_themes_and_a_margin() -> None:
    inline = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 50"><text>a &amp; b</text></svg>'
    root = ElementTree.fromstring(standalone(inline, 'what "it" shows'))
    assert root.get("aria-label") == 'what "it" shows'
    assert root.get("viewBox") == "-16 -16 132 82"
    style = root.findtext("{http://www.w3.org/2000/svg}style") or ""
    assert THEME["ink"][0] in style
    assert THEME["ink"][1] in style


@pytest.mark.parametrize(
    ("content", "width", "expected"),
    [("negative", 200, "negative"), ("negative", 30, "neg…"), ("negative", 0, "n…")],
    ids=["fits", "is cut", "keeps a letter"],
)
def test_shortened(content: str, width: float, expected: str) -> None:
    assert shortened(content, width) == expected


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        ([10, 50, 90], [10, 50, 90]),
        # Two that are too close part evenly around their middle.
        ([10, 14], [4, 20]),
        # The third joins the pair: the middle of 10, 14 and 20 is 14.67.
        ([10, 14, 20], [-4 / 3, 44 / 3, 92 / 3]),
        ([14, 10], [20, 4]),
    ],
    ids=["far apart", "pair", "chain", "order is kept"],
)
def test_spread_moves_as_little_as_possible(positions: list[float], expected: list[float]) -> None:
    assert spread(positions, 16) == pytest.approx(expected)


def test_boxes_along_cover_the_line() -> None:
    boxes = boxes_along([(0, 0), (30, 0)])
    assert boxes[0] == (-2, -2, 2, 2)
    assert boxes[-1] == (28, -2, 32, 2)
    assert all(right[0] - left[0] <= 6 for left, right in pairwise(boxes))


def written(labels: list[Label], taken: list[Box]) -> list[tuple[str, float, float]]:
    canvas = Canvas(400, 300)
    place_labels(canvas, labels, taken, (0, 0, 400, 300))
    return [(text.get_text(), *text.get_position()) for text in canvas.figure.texts]


def test_labels_keep_off_marks() -> None:
    mark = Label(100, 100, 5, (("name", "ink", False),))
    ((_, x, _),) = written([mark], [])
    assert x * 400 == pytest.approx(110)  # the first choice is the right side
    ((_, x, _),) = written([mark], [(105, 80, 200, 120)])
    assert x * 400 < 100


def test_a_label_without_room_is_left_out_unless_it_is_needed() -> None:
    everywhere = [(0.0, 0.0, 400.0, 300.0)]
    lines = (("name", "ink", False),)
    assert written([Label(100, 100, 5, lines)], everywhere) == []
    assert len(written([Label(100, 100, 5, lines, is_needed=True)], everywhere)) == 1


@pytest.mark.parametrize("values", [(2.5, 8.3), (0.05, 240.0), (7.9, 8.4), (3.0, 3.0)])
def test_logarithmic_scale_holds_all_values_and_has_ticks(values: tuple[float, float]) -> None:
    axes = Canvas(350, 300).axes(40, 10, 10, 40)
    scale_time(axes, values, logarithmic=True)
    first, last = axes.get_xlim()
    assert first < values[0] <= values[1] < last
    assert len([tick for tick in axes.get_xticks() if first <= tick <= last]) >= 1


def test_linear_scale_starts_at_zero() -> None:
    axes = Canvas(350, 300).axes(40, 10, 10, 40)
    scale_time(axes, (2.5, 8.3), logarithmic=False)
    assert axes.get_xlim()[0] == 0


def test_a_key_takes_as_many_lines_as_it_needs() -> None:
    names = ["flow and strain", "matrix products", "selection"]
    assert key_lines(names, 880) == [names]
    assert key_lines(names, 200) == [names[:1], names[1:]]
    assert key_lines([], 880) == []


def test_render_gives_the_same_bytes_again() -> None:
    def paint(canvas: Canvas) -> None:
        axes = canvas.axes(40, 10, 10, 40)
        axes.plot(np.arange(5), np.arange(5) ** 2, "o")
        axes.set_title("a $ sign and 微 are text")

    drawing = Drawing(paint, (200, 200), "", "")
    first = render("name", drawing)
    assert first == render("name", drawing)
    assert "a $ sign and 微 are text" in first[0]
