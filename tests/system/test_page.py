"""The page in a real browser: it works from a file, asks for nothing, sorts, fits desk and phone, and is accessible."""

from __future__ import annotations

import functools
import importlib.resources
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, chromium
from judged_data import judged_profile
from report_data import lacking, make_profile, with_effects, write_profile

from ptsr_edge.profile.schema import Profile
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

CLIPPED = """
[...document.querySelectorAll('.scroll')].filter(box =>
  (box.scrollWidth > box.clientWidth + 1) === box.nextElementSibling.hidden).map(box => box.getAttribute('aria-label'))
"""
"""Tables that go on to the right without a word of it, or fit and say they do not; those that are folded have no width."""

EMPTY = """
[...document.querySelectorAll('main h2, main h3')].filter(head => {
  const next = head.nextElementSibling;
  return !next || (/^H[1-3]$/.test(next.tagName) && next.tagName <= head.tagName) || !next.textContent.trim();
}).concat([...document.querySelectorAll('main ul, main dl, main tbody, main details')].filter(part =>
  !part.textContent.trim())).map(part => part.outerHTML.slice(0, 80))
"""
"""Headings and lists with nothing below them."""

UNEXPLAINED = """
[...document.querySelectorAll('td')].filter(cell => /^(-|not run|failed|disturbed)?$/.test(
  [...cell.childNodes].filter(part => !part.classList?.contains('unseen')).map(part => part.textContent).join('').trim()
) && !(cell.title && cell.querySelector('.unseen')?.textContent.includes(cell.title) &&
  cell.closest('section')?.querySelector('a[href="#missing"]') && document.getElementById('missing'))
).map(cell => cell.outerHTML.slice(0, 120))
"""
"""Cells without a result that do not say why, or whose table does not point to the reasons."""

VIOLATIONS = """
axe.run().then(found => found.violations.map(v => `${v.id}: ${v.nodes.map(node => node.target).join(', ')}`))
"""

COLUMN = """
[...document.querySelector('#variants table.sortable').tBodies[0].rows].map(row => row.cells[COLUMN].dataset.sort)
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    worse = {1.0: 0.0, 0.5: 0.0, 0.25: 0.1}
    profile = with_effects(judged_profile(folder / "p", worse=worse, precisions=("fp32", "int8")))
    first, *others = profile.variants
    rows = [lacking(first, "failed", "the process was killed", "peak_rss_bytes"), *others]
    write_profile(folder / "p", profile.model_copy(update={"variants": rows}))
    return write_report([folder / "p"], folder / "r", Limits(max_latency_ms=8, max_uar_drop=0.05)).page


@functools.cache
def axe_source() -> str:
    """The rules of accessibility, as a script."""
    return importlib.resources.files("axe_core_python").joinpath("axe.min.js").read_text("utf-8") + "; 0"


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
    assert browser.run(CLIPPED) == []
    assert browser.run(EMPTY) == []
    assert browser.run(UNEXPLAINED) == []
    browser.run(axe_source())
    assert browser.run(VIOLATIONS) == []
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


def test_planted_faults_are_found(browser: Browser, page: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    planted = """<h2>Nothing</h2><h2>Next</h2><p style="color: #aaa; background: #fff">faint</p><img src="data:,">
    <section><table><tr><th>A</th></tr><tr><td class="missing">-</td></tr></table></section>
    <div class="scroll" aria-label="long"><div style="width: 200rem">long</div></div><p hidden></p></main>"""
    bad.write_text(page.read_text(encoding="utf-8").replace("</main>", planted), encoding="utf-8")
    browser.open(bad, 1280)
    browser.run("document.querySelector('main > p[hidden], main > p:last-child').hidden = true")
    assert browser.run(EMPTY) == ["<h2>Nothing</h2>"]
    assert len(browser.run(UNEXPLAINED)) == 1
    assert browser.run(CLIPPED) == ["long"]
    browser.run(axe_source())
    found = " ".join(browser.run(VIOLATIONS))
    assert "color-contrast" in found
    assert "image-alt" in found


def with_bundles(profile: Profile, count: int) -> Profile:
    """The profile with its variants once for each of `count` bundles."""
    vits = [row for row in profile.variants if row.bundle is None]
    own = [row for row in profile.variants if row.bundle is not None]
    copies = [
        row.model_copy(update={"id": f"b{place}/{row.id}", "bundle": f"out/b{place}"})
        for place in range(count)
        for row in own
    ]
    return profile.model_copy(update={"variants": [*vits, *copies]})


@pytest.mark.parametrize(
    ("schema", "bundles", "judged"), [(1, 1, True), (2, 5, True), (2, 1, False), (1, 5, False)]
)
def test_any_profile_gives_a_page_without_gaps(
    browser: Browser, tmp_path: Path, schema: int, bundles: int, judged: bool
) -> None:
    profile = make_profile(tmp_path / "p", rates=(1.0, 0.25), samples=50, raw="none", kept=False)
    if not judged:
        rows = [lacking(row, "not_asked", "no --data was given", "accuracy") for row in profile.variants]
        profile = profile.model_copy(update={"variants": rows})
    if schema == 1:
        rows = [row.model_copy(update={"missing": {}, "notes": ["p99 is weak"]}) for row in profile.variants]
        profile = profile.model_copy(update={"variants": rows, "schema_": 1, "data_is_rendered": None})
    write_profile(tmp_path / "p", with_bundles(profile, bundles))
    page = write_report([tmp_path / "p"], tmp_path / "r").page
    for width in WIDTHS:
        browser.open(page, width)
        assert browser.complaints() == []
        for faults in (EMPTY, UNEXPLAINED, CLIPPED, OVERFLOWING):
            assert browser.run(faults) == []


def test_the_first_screen_answers_without_scrolling(browser: Browser, page: Path) -> None:
    browser.open(page, 1280)
    bottoms = {
        part: browser.run(f"document.querySelector('{part}').getBoundingClientRect().bottom")
        for part in (".verdict", ".cost", ".circumstances", "header figure svg", "header figcaption")
    }
    assert list(bottoms.values()) == sorted(bottoms.values())
    assert bottoms["header figcaption"] < 800
    text = browser.run("document.querySelector('header').innerText").replace("\u00a0", " ")
    for said in ("50 % of the tokens in int8 on cpu", "as fast as the ViT built alike", "as a whole sample", "fp32 on cpu",
                 "in UAR there is no difference", "Test CPU 3000", "1 thread", "2026-01-15", "not for judging people"):  # fmt: skip
        assert said in text
    browser.open(page, 390)
    assert browser.run("document.querySelector('header figure').getBoundingClientRect().top") < 800


def test_the_table_sorts_by_click_and_by_key(browser: Browser, page: Path) -> None:
    browser.open(page, 1280)
    values = COLUMN.replace("COLUMN", "4")
    button = (
        "document.querySelector('#variants table.sortable').tHead.rows[0].cells[4].querySelector('button')"
    )
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
