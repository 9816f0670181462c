"""Layout that charts share."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from ptsr_edge.report.plotting import (
    Box,
    Canvas,
    Label,
    boxes_along,
    place_labels,
    render,
    scale_time,
    spread,
)


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


def test_render_gives_the_same_bytes_again() -> None:
    def paint(canvas: Canvas) -> None:
        axes = canvas.axes(40, 10, 10, 40)
        axes.plot(np.arange(5), np.arange(5) ** 2, "o")
        axes.set_title("a $ sign and 微 are text")

    first = render("name", (200, 200), paint)
    assert first == render("name", (200, 200), paint)
    assert "a $ sign and 微 are text" in first[0]
