"""`report`: turns profiles into a page, a Markdown file, a JSON record and pictures."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click
from pydantic import Field

from ptsr_edge.core.console import Verb, finish
from ptsr_edge.core.errors import InputError, JobError, require
from ptsr_edge.core.files import write_whole
from ptsr_edge.core.records import Record, parse
from ptsr_edge.profile.schema import Profile, read_profile
from ptsr_edge.report import plotting as svg
from ptsr_edge.report.accuracy_charts import draw_all
from ptsr_edge.report.comparison import Comparison, compare, read_sources
from ptsr_edge.report.plotting import Picture
from ptsr_edge.report.recommendation import Decision, Limits, Recommendation, check_limits, choose, decide
from ptsr_edge.report.regression import Regression, changes_words, compare_profiles, summary
from ptsr_edge.report.sections import build_evidence, caveats, instability
from ptsr_edge.report.tables import aligned, build_tables, facts, markdown, pipe_table, remarks
from ptsr_edge.stats.risk_bounds import CONFIDENCE, Unit

# FOLDED from report.render: A report's words as text: HTML and Markdown from templates, and JSON.

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, words: dict[str, Any]) -> str:
    """A template filled in; in HTML all that is filled in is escaped.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    jinja2 = require("jinja2", "report", "writing a report")
    page = template.endswith(".html.jinja")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=page,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "markdown": markdown,
        "unbroken": _unbroken,
        "sentence": _sentence,
        "exact": _exact,
    }
    environment.globals["table_lines"] = pipe_table
    return str(environment.get_template(template).render(words))


def _sentence(text: str) -> str:
    first = text[:1].upper() if text[1:2].islower() else text[:1]
    return f"{first}{text[1:].removesuffix('.')}."


def _exact(number: float) -> str:
    """The number behind a cell, as it is recorded."""
    return f"{number:,}" if isinstance(number, int) else f"{number:.6g}"


def _unbroken(text: str) -> str:
    """Keeps numbers with their units and intervals on one line."""
    text = re.sub(r"(?<=\d) (?=(ms|%)(\W|$))", "\u00a0", text)
    text = re.sub(r"(?<=x) (?=\[)|(?<=\[\d\.\d,) ", "\u00a0", text)
    text = re.sub(r"(?<=n) = (?=\d)", "\u00a0=\u00a0", text)
    return text.replace("full-token", "full\u2011token")


def json_text(record: dict[str, Any]) -> str:
    """Indented JSON, with each innermost list of numbers on one line."""
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
    return (
        re.sub(r"\[\n\s*((?:[\d.e+-]+,\s+)*[\d.e+-]+)\n\s*\]", lambda m: f"[{' '.join(m[1].split())}]", text)
        + "\n"
    )


SCHEMA = 1


class WrittenChart(Record):
    """A picture of the report: its file relative to the report, or a note on what is missing."""

    name: str
    title: str
    file: str | None
    note: str


class MergedProfile(Record):
    """A profile as it was read, under the name that it has in the report."""

    name: str
    profile: Profile


class Report(Record):
    """`report.json`: the profiles merged, the verdict and the pictures; `command` reproduces it."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    command: str
    model: str
    verdict: Recommendation
    profiles: list[MergedProfile] = Field(min_length=1)
    figures: list[WrittenChart]
    decision: Decision | None = None
    changes: Regression | None = None


@dataclass(frozen=True)
class Written:
    """What was written: the record for `--json`, the page's path, the terminal's lines, and what they rest on."""

    record: dict[str, Any]
    page: Path
    lines: list[str]
    verdict: Recommendation
    decision: Decision | None
    regression: Regression | None


def write_report(profiles: Sequence[Path], out: Path, limits: Limits | None = None) -> Path:
    """Writes the report of one or more profiles of one model.

    Args:
        profiles: folders with a `profile.json`.
        out: folder for `report.html`, `report.md`, `report.json` and `figures/`; may hold other files.
        limits: what the variant to be chosen must meet; None: the verdict says what was measured.

    Returns:
        The path of `report.html`, which is written last.

    Raises:
        InputError: no profile, one that cannot be read, or profiles that do not belong together;
            nothing was written.
        JobError: no variant meets the limits (the report is there and says it); a file cannot be written; or
            matplotlib or jinja2 is not installed.
    """
    done = _write(profiles, out, limits)
    if done.decision is not None and done.decision.picked is None:
        raise JobError(_told(done.verdict))
    return done.page


def compared_with(old: Path, comparison: Comparison) -> Regression:
    """What changed since the profile in a folder.

    Raises:
        InputError: it is none, of another schema or model, or there are several new ones.
    """
    if len(comparison.sources) > 1:
        raise InputError("--compare tells what changed in one profile: give --profile once")
    return compare_profiles(read_profile(old), comparison.sources[0].profile)


def _write(profiles: Sequence[Path], out: Path, limits: Limits | None, old: Path | None = None) -> Written:
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; the report needs a folder")
    comparison = compare(read_sources(profiles))
    regression = None if old is None else compared_with(old, comparison)
    verdict, decision = (decide(comparison), None) if limits is None else choose(comparison, limits)
    pictures = draw_all(comparison, verdict)
    command = "python -m ptsr_edge.report "
    command += " ".join(f"--profile {shlex.quote(folder.as_posix())}" for folder in profiles)
    command += "" if limits is None else _options(limits)
    command += f" --out {shlex.quote(out.as_posix())}"
    command += "" if old is None else f" --compare {shlex.quote(old.as_posix())}"
    report = _report(comparison, verdict, pictures, command).model_copy(
        update={"decision": decision, "changes": regression}
    )
    words = _words(comparison, verdict, pictures, command)
    words |= build_evidence(comparison, decision)
    words["changes"] = None if regression is None else changes_words(regression)
    # Everything exists before the first file is written; the page, which names the others, comes last.
    files = {
        f"figures/{name}.svg": svg.standalone(picture.wide, f"{picture.title}. {picture.words}")
        for name, picture in pictures.items()
        if picture.wide
    }
    files["report.json"] = json_text(report.model_dump(mode="json", by_alias=True))
    files["report.md"] = render("report.md.jinja", words)
    files["report.html"] = render("report.html.jinja", words)
    for name, content in files.items():
        write_whole(out / name, content)
    for name, picture in pictures.items():
        if not picture.wide:
            (out / f"figures/{name}.svg").unlink(missing_ok=True)
    page = out / "report.html"
    record = {
        "report": page.as_posix(),
        "verdict": verdict.model_dump(mode="json"),
        "variants": [
            {"name": row.name, "profile": row.source.name, **row.measured.model_dump(mode="json")}
            for row in comparison.rows
        ],
    }
    lines = [*aligned(words["tables"][0]), "", *words["unstable"], _told(verdict)]
    if decision is not None:
        record["decision"] = decision.model_dump(mode="json")
    if regression is not None:
        record["changes"] = regression.model_dump(mode="json", by_alias=True)
        lines += ["", *summary(regression)]
    return Written(record, page, [*lines, page.as_posix()], verdict, decision, regression)


def _told(verdict: Recommendation) -> str:
    return f"{verdict.sentence} {verdict.detail}".strip()


def _options(limits: Limits) -> str:
    """The limits as options of the command."""
    text = "" if limits.max_latency_ms is None else f" --max-latency-ms {limits.max_latency_ms:g}"
    text += f" --max-uar-drop {limits.max_uar_drop:g} --confidence {limits.confidence:g}"
    return f"{text} --unit {limits.unit}"


def _report(
    comparison: Comparison, verdict: Recommendation, pictures: dict[str, Picture], command: str
) -> Report:
    record = {
        "schema": SCHEMA,
        "command": command,
        "model": comparison.model,
        "verdict": verdict.model_dump(mode="json"),
        "profiles": [
            {"name": source.name, "profile": source.profile.model_dump(mode="json", by_alias=True)}
            for source in comparison.sources
        ],
        "figures": [
            {
                "name": name,
                "title": picture.title,
                "file": f"figures/{name}.svg" if picture.wide else None,
                "note": picture.note,
            }
            for name, picture in pictures.items()
        ],
    }
    return parse(Report, record, "report.json")


def _words(
    comparison: Comparison, verdict: Recommendation, pictures: dict[str, Picture], command: str
) -> dict[str, Any]:
    """Everything that the templates write."""
    return {
        "model": comparison.model,
        "verdict": verdict,
        "pictures": pictures,
        "tables": build_tables(comparison, verdict),
        "remarks": remarks(comparison),
        "sources": [
            {
                "name": source.name,
                "created": source.profile.created,
                "command": source.profile.command,
                "method": facts(source.profile.method),
                "environment": facts(source.profile.environment),
            }
            for source in comparison.sources
        ],
        "limits": caveats(comparison),
        "unstable": instability(comparison),
        "model_cards": sorted({source.profile.model_card for source in comparison.sources}),
        "command": command,
        "halo": svg.HALO,
        "font": svg.FONT,
        "light": svg.theme_css(0),
        "dark": svg.theme_css(1),
    }


@click.command(cls=Verb, epilog="Example: python -m ptsr_edge.report --profile out/profile --out out/report")
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Folder with a profile.json; give it again for further profiles of the same model.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder for report.html, report.md, report.json and figures/.",
)
@click.option("--max-latency-ms", type=float, help="Choose a variant whose p95 latency is at most this.")
@click.option("--max-uar-drop", type=float,
              help="Choose one that surely loses no more UAR than this against fp32 at full budget.")  # fmt: skip
@click.option("--confidence", type=float, default=CONFIDENCE, show_default=True, help="How sure is sure.")
@click.option("--unit", type=click.Choice(["subject", "sample"]), default="subject", show_default=True,
              help="What is independent: people, or every sample.")  # fmt: skip
@click.option("--compare", "old", type=click.Path(path_type=Path),
              help="Folder of an earlier profile: say what changed beyond noise since then.")  # fmt: skip
@click.option("--fail-on-regression", "strict", is_flag=True,
              help="With --compare: exit code 1 if anything got worse.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def main(
    profiles: tuple[Path, ...], out: Path, max_latency_ms: float | None, max_uar_drop: float | None,
    confidence: float, unit: Unit, old: Path | None, strict: bool, as_json: bool,
) -> None:  # fmt: skip
    """Turns profiles into a page, a Markdown file, a JSON record and pictures, and chooses a variant."""
    if strict and old is None:
        raise InputError("--fail-on-regression needs --compare DIR, the profile to compare with")
    limits = check_limits(max_latency_ms, max_uar_drop, confidence, unit)
    done = _write(profiles, out, limits, old)
    refused = done.decision is not None and done.decision.picked is None
    worse = done.regression.regressions if strict and done.regression is not None else []
    if as_json or not refused:
        finish(done.record, done.lines, as_json)
    if refused:
        raise JobError(f"{_told(done.verdict)} The report: {done.page.as_posix()}")
    if worse:
        raise JobError(f"worse than before: {', '.join(worse)}")
