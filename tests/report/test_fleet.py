"""The page over the devices of a fleet: what it says, in which order, and that it opens as it should."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import Browser, chromium
from click.testing import CliRunner, Result
from fleet_data import LOST, device, fleet

from ptsr_edge.core.files import write_json
from ptsr_edge.profile.schema import (
    Fleet,
    FleetDevice,
    slowest_first,
)
from ptsr_edge.report.cli import main
from ptsr_edge.report.fleet import fleet_words, held, verdict, without_budget

BROWSER = chromium()


PI4, PI5, ORIN = device("pi4", 6.0), device("pi5-kitchen", 2.5, without="int8"), device("orin", 0.4)
ALL = fleet(ORIN, LOST, PI5, PI4)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in arguments], prog_name="ptsr-edge report")


def written(folder: Path, record: Fleet) -> Path:
    folder.mkdir(parents=True)
    write_json(folder / "fleet.json", record.model_dump(mode="json", by_alias=True))
    return folder


def test_the_slowest_device_is_first_and_a_lost_one_last() -> None:
    # p95 of the fastest variants, by hand: pi4 60 x .25 x .5 = 7.5; pi5 25 x .25 = 6.25; orin 4 x .25 x .5 = .5.
    assert [one.name for one in slowest_first(ALL.devices)] == ["pi4", "pi5-kitchen", "orin", "attic"]


@pytest.mark.parametrize(
    ("one", "limit", "expected"),
    [
        (PI4, 16.0, "ptsr-int8-0.5"),  # 15 ms, as 25 % fp32 is: the larger budget
        (PI4, 30.0, "ptsr-int8-1"),
        (ORIN, 4.0, "ptsr-int8-1"),  # fp32 at 100 % is within it too, but slower
        (PI4, 7.4, None),
    ],
)
def test_a_device_holds_the_largest_budget_within_a_limit(
    one: FleetDevice, limit: float, expected: str | None
) -> None:
    found = held(one, limit)
    assert (found.id if found else None) == expected


@pytest.mark.parametrize(
    ("record", "limit", "expected"),
    [
        (ALL, None, "pi4 is the slowest, at its fastest 25 % int8, 7.5 ms at p95; orin is the fastest: 25 % int8, 0.5 ms at "
         "p95. 1 of 4 devices has no results."),
        (ALL, 14.0, "Within 14 ms at p95, every device that answered can hold at least 25 % of the tokens. 1 of 4 devices has "
         "no results."),
        (fleet(ORIN, PI4), 5.0, "Within 5 ms at p95, pi4 can hold no budget; the other holds all tokens."),
        (fleet(PI4), 15.0, "Within 15 ms at p95, pi4 can hold at least 50 % of the tokens."),
        (fleet(PI4), 1.0, "No device holds any budget within 1 ms at p95."),
        (fleet(PI4), None, "pi4 takes 25 % int8, 7.5 ms at p95, at its fastest."),
        (fleet(LOST), None, "No device has a result."),
    ],
    ids=["no limit", "all hold one", "one holds none", "one device", "none holds one", "one, no limit", "all lost"],
)  # fmt: skip
def test_the_verdict_says_what_the_fleet_can_do(record: Fleet, limit: float | None, expected: str) -> None:
    assert verdict(record, limit) == expected


def test_the_page_names_what_was_lost_and_what_was_not_measured(tmp_path: Path) -> None:
    words = fleet_words(ALL, tmp_path, 14.0)
    assert words["gone"] == [("attic", "lost", "The worker at tcp://10.0.0.9:4000 was lost.")]
    (places, reason), *others = words["reasons"]
    assert others == []
    assert places == "pi5-kitchen: 100 % int8, 50 % int8, 25 % int8"
    assert reason == "Could not be run here: openvino is not installed."
    assert [row[0].text for row in words["devices"]] == ["pi4", "pi5-kitchen", "orin"]
    assert without_budget(ALL, 14.0) == []


class Nesting(HTMLParser):
    """What is open; fails where an element is closed that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, _attrs: list[tuple[str, str | None]]) -> None:
        self.open += [] if tag in ("meta", "link") else [tag]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_command_writes_page_and_markdown_beside_the_record(tmp_path: Path) -> None:
    place = written(tmp_path / "f", ALL)
    result = run("--fleet", place, "--max-latency-ms", 14)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["Device", "pi4", "pi5-kitchen", "orin"]
    assert lines[-1] == (place / "fleet.html").as_posix()
    page = (place / "fleet.html").read_text(encoding="utf-8")
    assert "Board &lt;pi4&gt;" in page
    nesting = Nesting()
    nesting.feed(page)
    assert nesting.open == []
    text = (place / "fleet.md").read_text(encoding="utf-8")
    assert "| 25 % int8 | pi4 | 7.50 | 2.0x \\[1.9, 2.1\\] | yes |" in text
    assert "> **attic: lost.** The worker" in text


@pytest.mark.parametrize("record", [fleet(LOST), fleet(PI4)], ids=["all lost", "one device"])
def test_a_page_has_no_empty_part(record: Fleet, tmp_path: Path) -> None:
    place = written(tmp_path / "f", record)
    assert run("--fleet", place, "--json").exit_code == 0
    page = (place / "fleet.html").read_text(encoding="utf-8")
    assert "<tbody>\n</tbody>" not in page
    assert '<dl class="facts">\n</dl>' not in page
    assert page.count("<figure>") == sum(one.missing is None for one in record.devices)


def test_json_is_the_record_with_the_verdict(tmp_path: Path) -> None:
    found = json.loads(run("--fleet", written(tmp_path / "f", ALL), "--json").stdout)
    assert Fleet.model_validate(found["fleet"]) == ALL
    assert found["verdict"] == verdict(ALL, None)


def test_a_device_that_holds_no_budget_is_exit_code_1_with_the_page(tmp_path: Path) -> None:
    place = written(tmp_path / "f", ALL)
    result = run("--fleet", place, "--max-latency-ms", 5)
    assert result.exit_code == 1
    assert "pi4, pi5-kitchen can hold no budget" in result.stderr
    assert (place / "fleet.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-uar-drop", 0.1], "--fleet takes --max-latency-ms, --out and --json only"),
        (["--max-latency-ms", 0], "--max-latency-ms must be a positive number"),
    ],
)
def test_a_wrong_call_writes_nothing(arguments: list[object], message: str, tmp_path: Path) -> None:
    place = written(tmp_path / "f", ALL)
    result = run("--fleet", place, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert [path.name for path in place.iterdir()] == ["fleet.json"]


def test_a_folder_that_is_no_fleet_is_refused(tmp_path: Path) -> None:
    result = run("--fleet", tmp_path)
    assert result.exit_code == 2
    assert "fleet.json does not exist" in result.stderr


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if BROWSER is None:
        pytest.skip("no chromium here: apt-get install chromium")
    with Browser(BROWSER) as opened:
        yield opened


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_opens_without_complaint_and_fits(
    browser: Browser, width: int, dark: bool, tmp_path: Path
) -> None:
    place = written(tmp_path / "f", ALL)
    run("--fleet", place, "--max-latency-ms", 14)
    browser.open(place / "fleet.html", width, dark=dark)
    assert browser.complaints() == []
    assert browser.requested() == [(place / "fleet.html").resolve().as_uri()]
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    drawn = "[...document.querySelectorAll('svg')].filter(s => s.getBoundingClientRect().height > 40).length"
    assert browser.run(drawn) == 1
    outside = (
        "[...document.querySelectorAll('main *')].filter(p => !p.closest('.scroll') && !p.closest('svg') && "
        "p.getBoundingClientRect().right > document.documentElement.clientWidth + 1).length"
    )
    assert browser.run(outside) == 0
