"""The report as a whole: files, pages, records, errors and the command."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jinja2
import pytest
from bundle_data import write_tiny_bundle
from click.testing import CliRunner, Result
from judged_data import judged_profile
from report_data import lacking, make_profile, with_effects, write_profile

from ptsr_edge.bundle import MANIFEST, describe_file, files_digest, read_bundle, write_bundle
from ptsr_edge.camera.cli import main as camera
from ptsr_edge.core.config import read_record
from ptsr_edge.core.errors import InputError, MissingExtraError
from ptsr_edge.export.cli import main as export_main
from ptsr_edge.profile.schema import Attempt, Measured, Profile, read_profile
from ptsr_edge.report import cli as module
from ptsr_edge.report.cli import Report, json_text, main, render, unbroken, write_report
from ptsr_edge.report.history import Acknowledged, History

pytestmark = pytest.mark.slow

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Checks that elements close in order, and collects texts, ids, links and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for key, value in attrs if key == "id" and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for key, value in attrs if key == "id" and value]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    def text(self) -> str:
        return " ".join(" ".join(self.texts).replace("\u00a0", " ").replace("\u2011", "-").split())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the profile `one` and its report in `out`."""
    folder = tmp_path_factory.mktemp("made")
    profile = make_profile(folder / "one", precisions=("fp32", "int8"), samples=300)
    write_profile(folder / "one", with_effects(profile))
    assert write_report([folder / "one"], folder / "out").page == folder / "out" / "report.html"
    return folder


@pytest.fixture(scope="module")
def page(made: Path) -> Page:
    return Page((made / "out" / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def record(made: Path) -> Report:
    return read_record(Report, made / "out" / "report.json")


def test_files(made: Path) -> None:
    out = made / "out"
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    names = (
        "budgets",
        "confusion",
        "dynamic",
        "effects",
        "kept",
        "latency",
        "macs",
        "stages",
        "summary",
        "tradeoff",
    )
    assert files == [*(f"figures/{name}.svg" for name in names), "report.html", "report.json", "report.md"]


def test_the_page_needs_nothing_else(made: Path, page: Page) -> None:
    text = (made / "out" / "report.html").read_text(encoding="utf-8")
    assert set(re.findall(r"https?://[^\"'<> ]+", text)) <= {"http://www.w3.org/2000/svg"}
    for tag, attributes in page.tags:
        assert tag not in ("iframe", "object", "embed", "base")
        for key in ("src", "href", "srcset", "data"):
            value = attributes.get(key)
            assert value is None or value.startswith(("#", "data:")), (tag, value)
    assert "@import" not in text
    assert len(text) < 500_000


def test_the_recommendation_comes_first(page: Page, record: Report) -> None:
    text = page.text()
    first = "25 % of the tokens in int8 on cpu: 3.3x [3.2, 3.4] as fast as the ViT built alike"
    places = [
        text.index(part)
        for part in (first, "fp32 on cpu; its UAR", "1 thread, measured on 2026-01-15", "not for judging")
    ]
    assert places == sorted(places)
    assert places[-1] < text.index(record.recommendation.sentence)
    for later in (
        "Every variant",
        "Cost",
        "Accuracy",
        "Method",
        "Environment",
        "What these numbers do not say",
    ):
        assert places[-1] < text.rindex(later)


def test_the_page_works_without_script_and_for_everybody(page: Page) -> None:
    assert len(page.ids) == len(set(page.ids))
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert {str(link) for link in links} <= {f"#{name}" for name in page.ids}
    # Buttons are made by the script alone: without it there is nothing that does not work.
    assert not [tag for tag, _ in page.tags if tag == "button"]
    images = [attributes for tag, attributes in page.tags if attributes.get("role") == "img"]
    assert len(images) == 9
    assert all(len(str(attributes.get("aria-label"))) > 60 for attributes in images)
    assert sum(tag == "figcaption" for tag, _ in page.tags) == 9
    heads = [attributes for tag, attributes in page.tags if tag == "th"]
    assert all(attributes.get("scope") in ("col", "row") for attributes in heads)
    assert ("html", {"lang": "en"}) in page.tags


def test_both_themes_phone_and_paper_are_styled(made: Path) -> None:
    text = (made / "out" / "report.html").read_text(encoding="utf-8")
    for rule in ("prefers-color-scheme: dark", "max-width: 40rem", "@media print", "width=device-width"):
        assert rule in text


def test_limits_are_told(page: Page) -> None:
    text = page.text()
    assert "They are for trying the toolkit, not for judging people." in text
    assert "no evidence about people" in text
    assert "MLPerf asks for 24,576" in text
    assert "documented reconstruction" in text


def test_every_result_stands_in_the_page_and_the_main_ones_in_markdown(
    made: Path, page: Page, record: Report
) -> None:
    markdown = (made / "out" / "report.md").read_text(encoding="utf-8")
    text = page.text()
    for row in record.profiles[0].profile.variants:
        assert row.latency_ms is not None
        assert row.accuracy is not None
        for result in (f"{row.accuracy.uar:.3f}", f"{row.accuracy.uf1:.3f}", f"{row.latency_ms.n:,}"):
            assert result in text
        assert f"| {row.accuracy.uar:.3f} |" in markdown
    assert record.command in text
    assert record.command in markdown
    assert record.profiles[0].profile.command in text
    assert "Test CPU 3000" in text
    assert "Test CPU 3000" in markdown


def test_markdown_points_to_the_charts(made: Path) -> None:
    markdown = (made / "out" / "report.md").read_text(encoding="utf-8")
    assert re.findall(r"!\[[^]]*\]\((figures/[^)]*)\)", markdown) == [
        "figures/tradeoff.svg",
        "figures/effects.svg",
    ]
    linked = set(re.findall(r"\]\(figures/([^)]*)\)", markdown))
    assert linked | {"summary.svg"} == {path.name for path in (made / "out" / "figures").iterdir()}
    for file in (made / "out" / "figures").iterdir():
        ElementTree.parse(file)
        assert file.stat().st_size < 40_000
    assert len(markdown) < 12_000
    assert markdown.startswith("# ptsr-tiny against the full-token ViT\n")


def test_the_record_holds_the_profile_unchanged(made: Path, record: Report) -> None:
    assert record.profiles[0].profile == read_record(Profile, made / "one" / "profile.json")
    assert {chart.file for chart in record.charts} == {
        f"figures/{path.name}" for path in (made / "out" / "figures").iterdir()
    }


def test_the_same_profile_gives_the_same_bytes(made: Path) -> None:
    before = {path: path.read_bytes() for path in (made / "out").rglob("*") if path.is_file()}
    write_report([made / "one"], made / "out")
    for path, content in before.items():
        assert path.read_bytes() == content


def test_missing_results_are_called_missing(tmp_path: Path) -> None:
    profile = make_profile(tmp_path / "one", raw="none", kept=False)
    fields = {name for name, field in Measured.model_fields.items() if field.default is None}
    rows = [
        lacking(row, "failed", "this was not measured: a test", *(fields - {"bundle"}))
        for row in profile.variants
    ]
    write_profile(tmp_path / "one", profile.model_copy(update={"variants": rows}))
    out = tmp_path / "out"
    (out / "figures").mkdir(parents=True)
    (out / "figures" / "kept.svg").write_text("of an earlier report")
    (out / "figures" / "other.svg").write_text("somebody else's")
    text = Page(write_report([tmp_path / "one"], out).page.read_text(encoding="utf-8")).text()
    markdown = (out / "report.md").read_text(encoding="utf-8")
    assert "Neither latency nor accuracy was measured." in text
    for written in (text, markdown):
        assert written.count("his was not measured: a test") == 1
        assert not re.search(r"\b(None|nan|null)\b", written)
    assert sorted(path.name for path in (out / "figures").iterdir()) == ["macs.svg", "other.svg"]
    drawn = {chart.name: chart.file for chart in read_record(Report, out / "report.json").charts}
    assert drawn["kept"] is None
    assert drawn["macs"] == "figures/macs.svg"


def test_an_unstable_run_is_named_on_the_page_and_in_markdown(tmp_path: Path) -> None:
    make_profile(tmp_path / "p", samples=50, attempts=[Attempt(unstable="a neighbour")])
    page = write_report([tmp_path / "p"], tmp_path / "r").page
    for path in (page, page.with_suffix(".md")):
        assert "This profile is unstable: a neighbour. It was measured once" in path.read_text(
            encoding="utf-8"
        )


def test_no_reason_and_no_remark_stands_twice(made: Path, page: Page, record: Report) -> None:
    markdown = (made / "out" / "report.md").read_text(encoding="utf-8")
    shown = [
        text for text in page.texts if not text.startswith("not measured: ")
    ]  # of a cell, for those who hear it
    for reason in {why.reason for row in record.profiles[0].profile.variants for why in row.missing.values()}:
        assert sum(reason[1:] in text for text in shown) == 1, reason
        assert markdown.count(reason[1:].replace("_", "\\_")) == 1, reason


def test_hazards_are_listed_and_recorded(made: Path, page: Page, record: Report) -> None:
    markdown = (made / "out" / "report.md").read_text(encoding="utf-8")
    assert {hazard.kind for hazard in record.hazards} >= {"little inference"}
    for hazard in record.hazards:
        assert hazard.text in page.text()
        assert f"**{hazard.severity}**" in markdown


def test_the_contents_name_every_section(page: Page) -> None:
    sections = {
        attributes["id"] for tag, attributes in page.tags if tag == "section" and attributes.get("id")
    }
    assert {f"#{name}" for name in sections} == {
        attributes["href"] for tag, attributes in page.tags if tag == "a"
    }


def test_the_card_is_legible_by_itself_in_both_themes(made: Path) -> None:
    text = (made / "out" / "figures" / "summary.svg").read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in text
    assert "as fast as the full-token ViT built alike" in text
    assert not re.findall(r"(?:href|src)=\"(?!#)", text)


def test_a_target_that_nobody_knows_gives_a_page(tmp_path: Path) -> None:
    make_profile(tmp_path / "one", samples=50, targets=("cpu", "toy"))
    page = write_report([tmp_path / "one"], tmp_path / "out").page.read_text(encoding="utf-8")
    assert "Shape: circle cpu, diamond toy." in Page(page).text()


@pytest.mark.parametrize("name", ["amd-epyc-2-cores/ptsr-tiny", "intel-xeon-2-cores/ptsr-small"])
def test_a_committed_profile_gives_a_page(tmp_path: Path, name: str) -> None:
    """One of today, and one of schema 1."""
    folder = Path(__file__).parents[2] / "profiles" / name
    page = Page(write_report([folder], tmp_path).page.read_text(encoding="utf-8")).text()
    for row in read_record(Profile, folder / "profile.json").variants:
        for note in row.notes:
            assert note[1:].rstrip(".") in page


def test_what_a_profile_says_is_text_not_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>|x"
    profile = make_profile(
        tmp_path / "one", samples=60, model=evil, model_card=evil, environment={evil: evil}
    )
    rows = [row.model_copy(update={"bundle": f"b/{evil}{place}" if place else None, "notes": [evil]})
            for place, row in enumerate(profile.variants)]  # fmt: skip
    write_profile(tmp_path / "one", profile.model_copy(update={"variants": rows}))
    written = write_report([tmp_path / "one"], tmp_path / "out").page.read_text(encoding="utf-8")
    assert written.count("<script>") == 1
    Page(written)
    assert "<script>" not in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    for path in (tmp_path / "out" / "figures").iterdir():
        ElementTree.parse(path)


def test_two_profiles_stand_side_by_side(tmp_path: Path) -> None:
    make_profile(tmp_path / "desk", samples=60)
    make_profile(tmp_path / "board", samples=60, scale=9, kept=False)
    path = write_report([tmp_path / "desk", tmp_path / "board"], tmp_path / "out").page
    text = Page(path.read_text(encoding="utf-8")).text()
    for name in ("full ViT desk", "full ViT board", "25 % desk", "25 % board"):
        assert name in text
    assert "The profiles are separate runs." in text
    record = read_record(Report, tmp_path / "out" / "report.json")
    assert [profile.name for profile in record.profiles] == ["desk", "board"]


def test_the_command_prints_table_and_path(made: Path) -> None:
    call = ["--profile", str(made / "one"), "--out", str(made / "out")]
    result = CliRunner().invoke(main, call)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split()[:2] == ["Variant", "As"]
    assert lines[-1] == str(made / "out" / "report.html")
    as_json = CliRunner().invoke(main, [*call, "--json"])
    record = json.loads(as_json.stdout)
    assert record["report"] == str(made / "out" / "report.html")
    assert len(record["variants"]) == 8


def test_a_wrong_call_writes_nothing(made: Path, tmp_path: Path) -> None:
    make_profile(tmp_path / "other", model="ptsr-nano", samples=50)
    out = tmp_path / "out"
    one, other = str(made / "one"), str(tmp_path / "other")
    for profiles in ([], [str(tmp_path / "none")], [one, other], [one, one]):
        call = [part for folder in profiles for part in ("--profile", folder)]
        result = CliRunner().invoke(main, [*call, "--out", str(out)])
        assert result.exit_code == 2, result.output
        assert len(result.stderr.strip().splitlines()) == 1
        assert not out.exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file; the report needs a folder"):
        write_report([made / "one"], tmp_path / "file")


@pytest.mark.parametrize("module", ["matplotlib.figure", "jinja2"])
def test_a_missing_extra_names_its_line(
    made: Path, tmp_path: Path, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[report\]"):
        write_report([made / "one"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_importing_the_verb_loads_neither_matplotlib_nor_jinja() -> None:
    code = "import sys, ptsr_edge.report; print(sorted({'matplotlib', 'jinja2', 'torch'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_compare_marks_what_changed_and_fails_where_asked(tmp_path: Path) -> None:
    old = make_profile(tmp_path / "old", samples=20, kept=False)
    rows = list(old.variants)
    for folder, factor in (("old", 1.0), ("same", 1.01), ("slow", 1 / 1.1)):
        for place in (1, 2, 3):
            ratio = old.variants[place].ratio
            assert ratio is not None
            each = [ratio.median * factor * luck for luck in (0.998, 1.0, 1.001, 0.999, 1.002)]
            rows[place] = old.variants[place].model_copy(
                update={"ratio": ratio.model_copy(update={"per_process": each})}
            )
        make_profile(tmp_path / folder, samples=20, kept=False)
        write_profile(tmp_path / folder, old.model_copy(update={"variants": list(rows)}))

    def report(name: str, *more: str) -> Result:
        call = ["--profile", str(tmp_path / name), "--compare", str(tmp_path / "old"), *more]
        return CliRunner().invoke(main, [*call, "--out", str(tmp_path / f"{name}-report")])

    strict = report("slow", "--fail-on-regression")
    assert strict.exit_code == 1
    assert strict.stderr.splitlines()[-1].endswith(
        f"worse than before: {', '.join(row.id for row in rows[1:])}"
    )
    page = (tmp_path / "slow-report" / "report.html").read_text(encoding="utf-8")
    assert "slower: 1.100 times as long" in Page(page).text()
    assert "slower: 1.100 times as long" in (tmp_path / "slow-report" / "report.md").read_text(
        encoding="utf-8"
    )
    changes = read_record(Report, tmp_path / "slow-report" / "report.json").changes
    assert changes is not None
    assert [change.time for change in changes.changes] == ["not compared", *["slower"] * 3]
    # Without the flag the change is told and the command is content; 1 % is no change at all.
    assert report("slow").exit_code == 0
    same = report("same", "--fail-on-regression")
    assert same.exit_code == 0, same.stderr
    assert "nothing got worse beyond noise" in same.stdout


@pytest.mark.parametrize("strict", [(), ("--fail-on-regression",)])
def test_nothing_to_compare_has_an_exit_code_of_its_own(tmp_path: Path, strict: tuple[str, ...]) -> None:
    one = str(tmp_path / "one")  # its variants ran in one process each
    make_profile(tmp_path / "one", samples=20, kept=False)
    result = run("--profile", one, "--compare", one, *strict, "--out", tmp_path / "r")
    assert result.exit_code == 3
    (line,) = result.stderr.splitlines()
    assert "nothing could be compared: " in line
    assert "one process of each variant says nothing about the next" in line
    assert f"The report: {(tmp_path / 'r' / 'report.html').as_posix()}" in line
    assert "nothing could be compared" in (tmp_path / "r" / "report.md").read_text(encoding="utf-8")


def test_compare_refuses_what_cannot_be_compared(made: Path, tmp_path: Path) -> None:
    make_profile(tmp_path / "other", model="ptsr-small", samples=20, raw="none", kept=False)
    record = json.loads((tmp_path / "other" / "profile.json").read_text(encoding="utf-8"))
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "profile.json").write_text(json.dumps(record | {"schema": 3}), encoding="utf-8")
    one = ["--profile", str(made / "one")]
    for call, said in (
        (
            [*one, "--compare", str(tmp_path / "other")],
            "differ in their model: ptsr-small before, ptsr-tiny now",
        ),
        ([*one, "--compare", str(tmp_path / "later")], "schema: "),
        ([*one, "--compare", str(tmp_path)], "profile.json does not exist"),
        ([*one, "--fail-on-regression"], "--fail-on-regression needs --compare DIR"),
    ):
        out = tmp_path / "out"
        result = CliRunner().invoke(main, [*call, "--out", str(out)])
        assert result.exit_code == 2
        assert said in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert not out.exists()


EQUAL = {1.0: 0.0, 0.5: 0.0, 0.25: 0.0}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in arguments], prog_name="ptsr-edge report")


def test_the_command_chooses_and_says_how(tmp_path: Path) -> None:
    judged_profile(tmp_path / "p", worse=EQUAL)
    result = run(
        "--profile", tmp_path / "p", "--out", tmp_path / "r", "--max-latency-ms", 8, "--max-uar-drop", 0.05
    )
    assert result.exit_code == 0, result.output
    record = read_record(Report, tmp_path / "r" / "report.json")
    assert record.decision is not None
    assert record.decision.picked == "25 %"
    assert "--max-latency-ms 8 --max-uar-drop 0.05 --confidence 0.95 --unit subject" in record.command
    assert record.recommendation.sentence in result.stdout
    for name in ("report.html", "report.md"):
        text = (tmp_path / "r" / name).read_text().replace("\u00a0", " ")
        assert text.index("Take 25 %") < text.index("Held against the limits")


def test_none_is_exit_code_1_with_one_line_and_a_report(tmp_path: Path) -> None:
    judged_profile(tmp_path / "p", worse=EQUAL)
    result = run("--profile", tmp_path / "p", "--out", tmp_path / "r", "--max-latency-ms", 0.1)
    assert result.exit_code == 1
    (line,) = result.stderr.strip().splitlines()
    assert "No variant meets 0.1 ms" in line
    assert (tmp_path / "r" / "report.html").is_file()
    command = read_record(Report, tmp_path / "r" / "report.json").command
    assert "--max-latency-ms 0.1 --out" in command, "what was not asked for is not in the command either"


def test_a_limit_that_is_none_is_a_wrong_call(made: Path, tmp_path: Path) -> None:
    result = run("--profile", made / "one", "--out", tmp_path / "r", "--max-latency-ms", "-8")
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert "--max-latency-ms is a time above 0, got -8" in line
    assert not (tmp_path / "r").exists()


@pytest.fixture
def templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "page.html.jinja").write_text("<p>{{ words }}</p>")
    (tmp_path / "page.md.jinja").write_text("{{ words | sentence }}")
    monkeypatch.setattr(module, "TEMPLATES", tmp_path)


@pytest.mark.usefixtures("templates")
def test_only_html_is_escaped_and_an_unknown_word_is_an_error() -> None:
    assert render("page.html.jinja", {"words": "a < b"}) == "<p>a &lt; b</p>"
    assert render("page.md.jinja", {"words": "a < b."}) == "a < b."
    with pytest.raises(jinja2.UndefinedError):
        render("page.md.jinja", {})


def test_a_number_stays_with_its_unit_and_its_interval() -> None:
    text = "2.6x [2.5, 2.7] as fast as the full-token ViT at 8.1 ms, 25 % of n = 768"
    kept = "2.6x\u00a0[2.5,\u00a02.7] as fast as the full\u2011token ViT at 8.1\u00a0ms, 25\u00a0% of n\u00a0=\u00a0768"
    assert unbroken(text) == kept


def test_lists_of_numbers_stand_on_one_line() -> None:
    text = json_text({"confusion": [[1, 2], [3, 4]], "name": "x"})
    assert "[1, 2]" in text
    assert json.loads(text) == {"confusion": [[1, 2], [3, 4]], "name": "x"}


@pytest.fixture
def measured_bundle(tmp_path: Path) -> tuple[Path, Path]:
    """A profile under which 25 % is chosen, and the bundle that it is about."""
    profile = judged_profile(tmp_path / "profile", worse={1.0: 0.0, 0.5: 0.0, 0.25: 0.0})
    folder = tmp_path / "bundle"
    bundle = write_tiny_bundle(folder, (1.0, 0.5, 0.25))
    ids = {row.keep_rate: row.id for row in profile.variants if row.id != profile.baseline}
    variants = [variant.model_copy(update={"id": ids[variant.keep_rate]}) for variant in bundle.variants]
    write_bundle(folder, bundle.model_copy(update={"variants": variants}))
    digests = {variant.id: files_digest(variant) for variant in variants}
    rows = [row.model_copy(update={"files_sha256": digests.get(row.id)}) for row in profile.variants]
    rows = [row if row.files_sha256 else row.model_copy(update={"files_sha256": "0" * 64}) for row in rows]
    write_profile(tmp_path / "profile", profile.model_copy(update={"variants": rows}))
    return tmp_path / "profile", folder


LIMITS = ("--max-latency-ms", "20", "--max-uar-drop", "0.05")


def choosing(profile: Path, out: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--profile", str(profile), "--out", str(out), *arguments])


def test_the_choice_is_written_into_the_bundle(measured_bundle: tuple[Path, Path], tmp_path: Path) -> None:
    profile, folder = measured_bundle
    before = read_bundle(folder)
    answer = choosing(profile, tmp_path / "out", *LIMITS, "--write-choice", str(folder), "--json")
    assert answer.exit_code == 0, answer.output
    record = json.loads(answer.stdout)
    found = read_bundle(folder).recommended
    assert found is not None
    assert (found.variant, found.kind) == (record["verdict"]["id"], "measured")
    assert found.reason == record["verdict"]["sentence"]
    assert "0.25" in found.variant
    assert before == read_bundle(folder).model_copy(update={"recommended": None})
    assert f"{folder} recommends {found.variant} from now on" in answer.stderr


def code_blocks(markdown: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", markdown, re.DOTALL | re.MULTILINE)


def test_the_report_ends_with_lines_that_work(
    measured_bundle: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile, folder = measured_bundle
    made = read_profile(profile)
    rows = [row.model_copy(update={"bundle": row.bundle and folder.name}) for row in made.variants]
    write_profile(profile, made.model_copy(update={"variants": rows, "weights_are_named": True}))
    assert choosing(profile, tmp_path / "out", *LIMITS).exit_code == 0
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert text.rindex("## ") == text.index("## Use 25 %")
    (program,), (shell,) = code_blocks(text, "python"), code_blocks(text, "sh")
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8")).text()
    for line in (*program.split("\n"), *shell.splitlines()):
        assert " ".join(line.split()) in page
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(program, names)
    assert names["session"].variant.id == "ptsr-k0.25-fp32-cpu"
    watch, export = (shlex.split(line) for line in shell.splitlines())
    assert (watch[:2], export[:2]) == (["ptsr-edge", "camera"], ["ptsr-edge", "export"])
    seen = camera.make_context("camera", watch[2:]).params
    assert (seen["bundle"], seen["target"], seen["precision"]) == (Path("bundle"), "cpu", "fp32")
    asked = export_main.make_context("export", export[2:]).params
    assert (asked["model"], asked["budgets"], asked["precisions"]) == (made.model, [0.25], ["fp32"])
    assert (asked["checkpoint"], asked["targets"]) == (None, ["cpu"])


def test_no_lines_where_none_is_recommended_and_no_name_for_weights_of_ones_own(
    measured_bundle: tuple[Path, Path], tmp_path: Path
) -> None:
    profile, _ = measured_bundle
    assert choosing(profile, tmp_path / "none", "--max-latency-ms", "0.001").exit_code == 1
    assert "## Use" not in (tmp_path / "none" / "report.md").read_text(encoding="utf-8")
    assert choosing(profile, tmp_path / "one", *LIMITS).exit_code == 0
    (shell,) = code_blocks((tmp_path / "one" / "report.md").read_text(encoding="utf-8"), "sh")
    assert " --checkpoint CHECKPOINT " in shell
    assert "--model" not in shell


@pytest.mark.parametrize(
    ("fault", "limits", "code", "said"),
    [
        ("none", ("--max-latency-ms", "0.001"), 1, "No variant meets"),
        ("none", (), 2, "--write-choice needs limits to choose by"),
        ("no bundle", LIMITS, 2, "holds no bundle.json"),
        ("another artifact", LIMITS, 2, "its files have other hashes"),
        ("another variant's artifact", LIMITS, 2, "its files have other hashes"),
        ("a changed file", LIMITS, 2, "has changed since it was exported"),
        ("other variants", LIMITS, 2, "has no variant 'ptsr-k0.25-fp32-cpu'"),
        ("an earlier profile", LIMITS, 2, "does not say which files it measured"),
    ],
)
def test_a_bundle_that_was_not_measured_or_no_choice_leaves_it_as_it_is(
    measured_bundle: tuple[Path, Path],
    tmp_path: Path,
    fault: str,
    limits: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    profile, folder = measured_bundle
    bundle = read_bundle(folder)
    if fault == "no bundle":
        (folder / MANIFEST).unlink()
    elif fault.startswith("another"):
        place = 2 if fault == "another artifact" else 0
        path = folder / bundle.variants[place].artifact
        path.write_bytes(path.read_bytes() + b" ")
        changed = bundle.variants[place].model_copy(update={"files": [describe_file(folder, path)]})
        variants = [changed if changed.id == variant.id else variant for variant in bundle.variants]
        write_bundle(folder, bundle.model_copy(update={"variants": variants}))
    elif fault == "a changed file":
        (folder / bundle.variants[2].artifact).write_bytes(b"other")
    elif fault == "other variants":
        write_bundle(folder, bundle.model_copy(update={"variants": bundle.variants[:2]}))
    elif fault == "an earlier profile":
        made = read_profile(profile)
        rows = [row.model_copy(update={"files_sha256": None}) for row in made.variants]
        write_profile(profile, made.model_copy(update={"variants": rows}))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    answer = choosing(profile, tmp_path / "out", *limits, "--write-choice", str(folder))
    assert answer.exit_code == code
    assert len(answer.stderr.splitlines()) == 1
    assert said in answer.stderr
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert (tmp_path / "out").exists() == (code == 1), "a wrong call writes no report either"


# ---------------------------------------------------------------------------------------------
# History


NODES = {"MatMul": 20, "Transpose": 6}


@pytest.fixture
def days(tmp_path: Path) -> Path:
    """Three profiles in time of one machine; the last one runs a node more in one variant."""
    for day in (1, 2, 3):
        made = make_profile(tmp_path / "days" / f"d{day}", samples=20, raw="none", kept=False)
        rows = []
        for place, row in enumerate(made.variants):
            run = {**NODES, "Transpose": 7} if (day, place) == (3, 1) else NODES
            ratio = row.ratio and row.ratio.model_copy(
                update={
                    "per_process": [row.ratio.median * luck for luck in (0.998, 1.0, 1.001, 0.999, 1.002)]
                }
            )
            rows.append(row.model_copy(update={"operators_run": run, "ratio": ratio}))
        later = {"variants": rows, "created": f"2026-01-0{day}T10:00:00+00:00"}
        write_profile(tmp_path / "days" / f"d{day}", made.model_copy(update=later))
    return tmp_path / "days"


CHANGE = "ptsr-k1-fp32-cpu@2026-01-03T10:00:00+00:00"


def test_history_is_a_page_a_gate_and_a_file_of_what_was_accepted(days: Path, tmp_path: Path) -> None:
    out = tmp_path / "h"
    shown = run("--history", days, "--out", out)
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.splitlines()[-1] == (out / "history.html").as_posix()
    assert (
        f"  {CHANGE}  nodes run worse: 26 -> 27 (+1); transposes worse: 6 -> 7 (+1)"
        in shown.stdout.splitlines()
    )
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*")) == [
        "figures/history-accuracy-1.svg", "figures/history-speed-1.svg", "history.html", "history.json", "history.md",
    ]  # fmt: skip
    page = Page((out / "history.html").read_text(encoding="utf-8"))
    assert len(set(page.ids)) == len(page.ids)
    text = (out / "history.md").read_text(encoding="utf-8")
    for told in ("Worse at the newest step: nodes run, transposes of ptsr-k1-fp32-cpu.", "27 (+1)"):
        assert told in page.text()
        assert told in text
    assert "instructions" not in text.partition("### Counts")[2].partition("###")[0]  # nobody counted them
    record = read_record(History, out / "history.json")
    assert [found.result for found in record.failures("counts")] == ["nodes", "transposes"]
    assert shlex.split(record.command)[3:] == ["--history", days.as_posix(), "--out", out.as_posix()]

    gated = ("--history", days, "--out", out, "--fail-on-regression")
    for more in ((), ("--gate", "counts")):
        failed = run(*gated, *more)
        assert failed.exit_code == 1
        (line,) = failed.stderr.splitlines()
        assert f"worse at the newest step: {CHANGE} nodes run: 26 -> 27 (+1); {CHANGE} transposes" in line
    accepted = run(*gated, "--acknowledge", CHANGE, "--reason", "a new operator")
    assert accepted.exit_code == 0, accepted.output
    (entry,) = read_record(Acknowledged, out / "acknowledged.json").entries
    assert (entry.results, entry.reason) == (["nodes", "transposes"], "a new operator")
    again = run(*gated)
    assert again.exit_code == 0, again.output
    assert "a new operator" in Page((out / "history.html").read_text(encoding="utf-8")).text()
    # Elsewhere nothing is known of it; folders may stand one by one.
    elsewhere = (
        "--history",
        days / "d3",
        days / "d1",
        days / "d2",
        "--fail-on-regression",
        "--out",
        tmp_path / "x",
    )
    assert run(*elsewhere).exit_code == 1
    assert run(*elsewhere, "--acknowledged", out / "acknowledged.json").exit_code == 0


def test_a_gate_without_a_neighbour_has_an_exit_code_of_its_own(days: Path, tmp_path: Path) -> None:
    call = ("--history", days / "d1", "--out", tmp_path / "h")
    assert run(*call).exit_code == 0
    alone = run(*call, "--fail-on-regression")
    assert alone.exit_code == 3
    assert (
        "nothing could be compared: the newest profile is the first of Test CPU 3000, 1 thread"
        in alone.stderr
    )


def test_a_history_that_cannot_be_leaves_nothing(days: Path, tmp_path: Path) -> None:
    make_profile(tmp_path / "other", model="ptsr-small", samples=20, raw="none", kept=False)
    wrong = tmp_path / "wrong.json"
    wrong.write_text('{"schema": 1, "entrys": []}', encoding="utf-8")
    history = ["--history", str(days)]
    accept = ["--acknowledge", CHANGE]
    for call, said in (
        ([*history, "--profile", str(days / "d1")], "--profile does not go with --history"),
        ([*history, "--max-latency-ms", "3"], "--max-latency-ms does not go with --history"),
        ([*history, "--gate", "counts"], "--gate says what --fail-on-regression fails on"),
        ([*history, *accept], "--acknowledge VARIANT@CREATED and --reason TEXT go together"),
        ([*history, "--reason", "x"], "--acknowledge VARIANT@CREATED and --reason TEXT go together"),
        ([*history, *accept, "--reason", ""], "--reason is empty"),
        ([*history, "--acknowledge", "x@y", "--reason", "x"], f"nothing got worse there; what did: {CHANGE}"),
        ([*history, "--acknowledged", str(wrong)], "nearest known key is 'entries'"),
        ([*history, str(tmp_path / "other")], "one report is about one model"),
        ([*history, str(days / "d1")], "was given twice"),
        (["--history", str(tmp_path / "nowhere")], "nowhere holds no profile.json"),
        (["--profile", str(days / "d1"), "--reason", "x"], "--reason goes with --history DIR"),
        (["--profile", str(days / "d1"), str(days / "d2")], "stands without an option"),
    ):
        result = CliRunner().invoke(main, [*call, "--out", str(tmp_path / "out")])
        assert result.exit_code == 2, call
        assert said in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert not (tmp_path / "out").exists()


def test_whatever_a_profile_calls_its_classes_and_weights_is_text_in_markdown(tmp_path: Path) -> None:
    evil = r"$\frac{ | # *<b>*" + "\x1b]0;t\x07\n# heading"
    profile = make_profile(tmp_path / "one", samples=50)
    profile = profile.model_copy(
        update={"labels": [evil, "b", "c"], "model_card": evil, "command": evil, "created": evil}
    )
    write_profile(tmp_path / "one", profile)
    written = write_report([tmp_path / "one"], tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert all(sign.isprintable() or sign in "\n\u00a0" for sign in text)
    assert "\n# heading" not in text
    assert evil.partition("\x1b")[0] not in text.replace("    " + evil.partition("\x1b")[0], "")
    assert written.page.is_file()
