"""`report`: turns profiles into a page, a Markdown file, a JSON record and pictures."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import click
from pydantic import Field

from ptsr_edge import svg
from ptsr_edge.bounds import CONFIDENCE, Unit
from ptsr_edge.comparison import Comparison, compare, read_sources
from ptsr_edge.console import Verb, finish, run
from ptsr_edge.decision import Decision, Limits, check_limits, choose
from ptsr_edge.errors import InputError, JobError, require
from ptsr_edge.evidence import build_evidence
from ptsr_edge.figures import draw_all
from ptsr_edge.profile_record import Profile
from ptsr_edge.schema import Record, parse
from ptsr_edge.statistics import CV_LIMIT
from ptsr_edge.storage import write_whole
from ptsr_edge.svg import Picture
from ptsr_edge.tables import aligned, build_tables, facts, markdown, pipe_table, remarks
from ptsr_edge.verdict import Verdict, decide

SCHEMA = 1
TEMPLATES = Path(__file__).parent / "templates"

TAIL_SAMPLES = 24_576
"""Samples that MLPerf asks for before it trusts a 90th percentile at 99 % confidence."""


class Figure(Record):
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
    verdict: Verdict
    profiles: list[MergedProfile] = Field(min_length=1)
    figures: list[Figure]
    decision: Decision | None = None


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
        JobError: no variant meets the limits (the report is there and says it); or a file cannot be written, or matplotlib or jinja2 is not installed.
    """
    record, page, _, decision = _write(profiles, out, limits)
    if decision is not None and decision.picked is None:
        raise JobError(_refusal(record))
    return page


def _write(
    profiles: Sequence[Path], out: Path, limits: Limits | None
) -> tuple[dict[str, Any], Path, list[str], Decision | None]:
    """Writes the report; returns the record for `--json`, the page's path and the terminal's lines."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; the report needs a folder")
    comparison = compare(read_sources(profiles))
    verdict, decision = (decide(comparison), None) if limits is None else choose(comparison, limits)
    pictures = draw_all(comparison, verdict)
    command = "python -m ptsr_edge.report "
    command += " ".join(f"--profile {shlex.quote(folder.as_posix())}" for folder in profiles)
    command += "" if limits is None else _options(limits)
    command += f" --out {shlex.quote(out.as_posix())}"
    report = _report(comparison, verdict, pictures, command).model_copy(update={"decision": decision})
    words = _words(comparison, verdict, pictures, command)
    words |= build_evidence(comparison, decision)
    # Everything exists before the first file is written; the page, which names the others, comes last.
    files = {
        f"figures/{name}.svg": svg.standalone(picture.wide, f"{picture.title}. {picture.words}")
        for name, picture in pictures.items()
        if picture.wide
    }
    files["report.json"] = _json_text(report.model_dump(mode="json", by_alias=True))
    files["report.md"] = _render("report.md.jinja", words)
    files["report.html"] = _render("report.html.jinja", words)
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
    if decision is not None:
        record["decision"] = decision.model_dump(mode="json")
    return record, page, [*aligned(words["tables"][0]), "", _told(verdict), page.as_posix()], decision


def _told(verdict: Verdict) -> str:
    return f"{verdict.sentence} {verdict.detail}".strip()


def _refusal(record: dict[str, Any]) -> str:
    return _told(parse(Verdict, record["verdict"], "verdict"))


def _options(limits: Limits) -> str:
    """The limits as options of the command."""
    text = "" if limits.max_latency_ms is None else f" --max-latency-ms {limits.max_latency_ms:g}"
    text += f" --max-uar-drop {limits.max_uar_drop:g} --confidence {limits.confidence:g}"
    return f"{text} --unit {limits.unit}"


def _report(comparison: Comparison, verdict: Verdict, pictures: dict[str, Picture], command: str) -> Report:
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
    comparison: Comparison, verdict: Verdict, pictures: dict[str, Picture], command: str
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
        "limits": limits(comparison),
        "model_cards": sorted({source.profile.model_card for source in comparison.sources}),
        "command": command,
        "halo": svg.HALO,
        "font": svg.FONT,
        "light": svg.theme_css(0),
        "dark": svg.theme_css(1),
    }


def limits(comparison: Comparison) -> list[str]:
    """What the numbers do not say, in sentences."""
    rows = comparison.rows
    texts = [
        "The latencies are those of the machine, versions and thread count under Environment, at batch 1. "
        "Another device needs a profile of its own.",
        "What is timed is what Method says; finding the face and measuring the optical flow are not part "
        "of it unless Method names them.",
        "One multiply-add counts as one MAC. MACs bound what a budget can gain, they do not promise it.",
    ]
    counts = [row.measured.latency_ms.n for row in rows if row.measured.latency_ms]
    if counts and min(counts) < TAIL_SAMPLES:
        texts.append(
            f"The tail percentiles rest on {min(counts):,} samples and more. MLPerf asks for "
            f"{TAIL_SAMPLES:,} before it trusts a 90th percentile: read p99 as an impression."
        )
    spreads = [row.measured.latency_ms.cv for row in rows if row.measured.latency_ms]
    restless = sum(spread > CV_LIMIT for spread in spreads)
    if restless:
        texts.append(
            f"The latency of {restless} of {len(spreads)} variants varied by more than "
            f"{100 * CV_LIMIT:g} % (coefficient of variation, up to {100 * max(spreads):.0f} %): the machine "
            "was not quiet."
        )
    if len(comparison.sources) > 1:
        texts.append(
            "The profiles are separate runs. A ratio holds within its own profile, and the dashed line of "
            "the first picture joins points of one profile only."
        )
    data = sorted({row.measured.accuracy.data for row in rows if row.measured.accuracy})
    if data:
        texts.append(
            "Accuracy is that of one set of weights on one set of samples. Another training seed moves it, "
            "and a difference of a hundredth is not evidence."
        )
    if "synthetic" in data:
        texts.append(
            "Accuracy on synthetic data shows what a smaller budget or precision keeps of what the "
            "checkpoint learnt. It is no evidence about people."
        )
    texts += [
        "The weights that ship with ptsr-edge were trained on the project's own synthetic data. They are "
        "for trying the toolkit, not for judging people.",
        "PTSR is a documented reconstruction from the publication's abstract and published building "
        "blocks, not its authors' code. A class is a pattern of movement, not what somebody feels.",
    ]
    return texts


def _render(template: str, words: dict[str, Any]) -> str:
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


def _json_text(record: dict[str, Any]) -> str:
    """Indented JSON, with each innermost list of numbers on one line."""
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
    return (
        re.sub(r"\[\n\s*((?:[\d.e+-]+,\s+)*[\d.e+-]+)\n\s*\]", lambda m: f"[{' '.join(m[1].split())}]", text)
        + "\n"
    )


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
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def main(
    profiles: tuple[Path, ...], out: Path, max_latency_ms: float | None, max_uar_drop: float | None,
    confidence: float, unit: Unit, as_json: bool,
) -> None:  # fmt: skip
    """Turns profiles into a page, a Markdown file, a JSON record and pictures, and chooses a variant."""
    limits = check_limits(max_latency_ms, max_uar_drop, confidence, unit)
    record, page, lines, decision = _write(profiles, out, limits)
    if decision is not None and decision.picked is None:
        if as_json:
            finish(record, lines, as_json)
        raise JobError(f"{_refusal(record)} The report: {page.as_posix()}")
    finish(record, lines, as_json)


if __name__ == "__main__":
    run(main, "python -m ptsr_edge.report")
