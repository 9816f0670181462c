"""The page in a real browser: it works from a file, asks for nothing, sorts, and fits desk and phone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, chromium
from judged_data import judged_profile
from report_data import write_profile

from ptsr_edge.report.cli import write_history, write_report
from ptsr_edge.report.recommendation import Limits
from ptsr_edge.report.sections import CHARTS, Chart

FOUND = chromium()
pytestmark = pytest.mark.skipif(FOUND is None, reason="no chromium here: apt-get install chromium")

WIDTHS = (1280, 390)

HIDDEN = """
[...document.querySelectorAll('[role=img]')].filter(image => {
  const drawn = [...image.querySelectorAll('svg')].filter(svg => svg.getBoundingClientRect().height > 40);
  return drawn.length !== 1 || drawn[0].getBoundingClientRect().width < 200;
}).map(image => image.getAttribute('aria-label'))
"""
"""Charts of which not exactly one drawing, the wide or the narrow one, can be seen."""

OVERFLOWING = """
[...document.querySelectorAll('main *')].filter(part => !part.closest('.scroll') && !part.closest('svg') &&
  part.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map(part => part.outerHTML.slice(0, 80))
"""

COLUMN = """
[...document.querySelector('table.sortable').tBodies[0].rows].map(row => row.cells[COLUMN].dataset.sort)
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    worse = {1.0: 0.0, 0.5: 0.0, 0.25: 0.1}
    judged_profile(folder / "p", worse=worse, precisions=("fp32", "int8"))
    return write_report([folder / "p"], folder / "r", Limits(max_latency_ms=8, max_uar_drop=0.05)).page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert FOUND is not None, "the module is skipped without one"
    with Browser(FOUND) as opened:
        yield opened


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_opens_without_complaint_and_fits(browser: Browser, page: Path, width: int, dark: bool) -> None:
    browser.open(page, width, dark=dark)
    assert browser.complaints() == []
    assert browser.requested() == [page.resolve().as_uri()]
    assert browser.run("document.querySelectorAll('[role=img]').length") == 1 + sum(
        isinstance(entry, Chart) for _, entries in CHARTS for entry in entries
    )
    assert browser.run(HIDDEN) == []
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    assert browser.run(OVERFLOWING) == []
    paper = browser.run("getComputedStyle(document.body).backgroundColor")
    lightness = sum(map(int, re.findall(r"\d+", paper)[:3])) / 3
    assert lightness < 60 if dark else lightness > 240


def test_complaints_and_requests_would_be_seen(browser: Browser, page: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    text = page.read_text(encoding="utf-8").replace(
        "</main>", '<img src="https://example.org/x.png"><script>console.error("no")</script></main>'
    )
    bad.write_text(text, encoding="utf-8")
    browser.open(bad, 1280)
    told = " ".join(browser.complaints())
    assert '"no"' in told
    assert "Content Security Policy" in told


def test_the_recommendation_is_seen_first_with_its_chart(browser: Browser, page: Path) -> None:
    for width in WIDTHS:
        browser.open(page, width)
        place = "document.querySelector('.recommendation').getBoundingClientRect().top"
        chart = "document.querySelector('figure').getBoundingClientRect().top"
        assert 0 < browser.run(place) < browser.run(chart) < 900


def test_the_table_sorts_by_click_and_by_key(browser: Browser, page: Path) -> None:
    browser.open(page, 1280)
    values = COLUMN.replace("COLUMN", "2")
    button = "document.querySelector('table.sortable').tHead.rows[0].cells[2].querySelector('button')"
    before = [float(value) for value in browser.run(values)]
    browser.run(f"{button}.click()")
    rising = [float(value) for value in browser.run(values)]
    assert before != rising == sorted(before)
    assert browser.run(f"{button}.closest('th').getAttribute('aria-sort')") == "ascending"
    browser.run(f"{button}.focus()")
    browser.press("Enter", 13, "\r")
    assert [float(value) for value in browser.run(values)] == sorted(before, reverse=True)
    assert browser.run(f"{button}.closest('th').getAttribute('aria-sort')") == "descending"


def test_values_are_shown_on_hover(browser: Browser, page: Path) -> None:
    browser.open(page, 1280)
    assert browser.run("document.querySelectorAll('svg title').length") > 50
    titles = browser.run("[...document.querySelectorAll('td[title]')].map(cell => cell.title)")
    assert any(re.fullmatch(r"25 % int8, p50, ms: \d\.\d+", title) for title in titles)


def test_every_chart_has_words(browser: Browser, page: Path) -> None:
    browser.open(page, 1280)
    labels = browser.run(
        "[...document.querySelectorAll('[role=img]')].map(i => i.getAttribute('aria-label'))"
    )
    assert all(len(label) > 60 for label in labels)


def test_it_prints_light_and_whole(browser: Browser, page: Path) -> None:
    browser.open(page, 794, dark=True, media="print")  # A4 at 96 pixels an inch
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_history_opens_without_complaint_and_fits(
    browser: Browser, tmp_path: Path, width: int, dark: bool
) -> None:
    for day, loss in ((1, 0.0), (2, 0.1), (3, 0.1)):
        made = judged_profile(
            tmp_path / f"{day}", worse={1.0: 0.0, 0.5: 0.0, 0.25: loss}, precisions=("fp32", "int8")
        )
        write_profile(
            tmp_path / f"{day}", made.model_copy(update={"created": f"2026-01-0{day}T10:00:00+00:00"})
        )
    page = write_history([tmp_path], tmp_path / "h").page
    browser.open(page, width, dark=dark)
    assert browser.complaints() == []
    assert browser.requested() == [page.resolve().as_uri()]
    assert browser.run("document.querySelectorAll('[role=img]').length") == 2
    assert browser.run(HIDDEN) == []
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    assert browser.run(OVERFLOWING) == []
    # A tip for each value of a variant, and one for each of the two losses of UAR that are marked.
    tips = browser.run("[...document.querySelectorAll('.wide svg title')].map(tip => tip.textContent)")
    assert sum(": worse, " in tip for tip in tips) == 2
