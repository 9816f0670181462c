"""`report`: turns profiles into a page, a Markdown file, a JSON record and charts."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click
from pydantic import Field

from ptsr_edge.bundle import (
    Bundle,
    RecommendedVariant,
    check_files,
    files_digest,
    find_variant,
    write_recommended,
)
from ptsr_edge.core.config import Record, parse, read_record
from ptsr_edge.core.console import Verb, finish, is_given, printable, say
from ptsr_edge.core.errors import ComparisonError, InputError, JobError, require
from ptsr_edge.core.files import check_file, write_json, write_whole
from ptsr_edge.profile.schema import Profile, read_fleet, read_profile
from ptsr_edge.report.changes import COUNTS, Regression, changes_words, compare_profiles, outcome, summary
from ptsr_edge.report.comparison import Comparison, compare, read_sources, sentence
from ptsr_edge.report.fleet import fleet_lines, fleet_words, without_budget
from ptsr_edge.report.hazards import Hazard, hazards, instability, limitations
from ptsr_edge.report.history import (
    ACKNOWLEDGED,
    NOT_COUNTED,
    Acknowledged,
    Gate,
    History,
    Timeline,
    accuracy_chart,
    acknowledge,
    changed_variants,
    count_rows,
    headline,
    history_lines,
    history_of,
    profile_folders,
    result_text,
    run_text,
    speed_chart,
    timelines,
)
from ptsr_edge.report.plotting import FONT, SVG_CSS, NotDrawn, standalone, theme_css
from ptsr_edge.report.plotting import render as draw_svg
from ptsr_edge.report.recommendation import Decision, Limits, Recommendation, check_limits, recommend
from ptsr_edge.report.sections import (
    LEAD,
    Picture,
    build_sections,
    circumstances,
    clock_warning,
    decision_evidence,
    draw,
    draw_card,
    effects_sentence,
    lines_to_paste,
    verdict,
)
from ptsr_edge.report.tables import (
    aligned,
    build_tables,
    flatten_record,
    gaps,
    markdown,
    pipe_table,
    reasons,
    remarks,
)
from ptsr_edge.sign import read_verified
from ptsr_edge.stats.classification import CONFIDENCE, Unit

TEMPLATES = Path(__file__).parent / "templates"


class WrittenChart(Record):
    """A chart of the report: its file relative to the report, or a note on what is missing."""

    name: str
    title: str
    file: str | None
    note: str


class MergedProfile(Record):
    """A profile as it was read, under the name that it has in the report."""

    name: str
    profile: Profile


class Report(Record):
    """`report.json`: the profiles merged, the recommendation and the charts; `command` reproduces it."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    command: str
    model: str
    recommendation: Recommendation = Field(alias="verdict")
    profiles: list[MergedProfile] = Field(min_length=1)
    charts: list[WrittenChart] = Field(alias="figures")
    hazards: list[Hazard] = Field(default_factory=list)
    decision: Decision | None = None
    changes: Regression | None = None


@dataclass(frozen=True)
class Written:
    """What was written: the page, the content of `report.json`, the record for `--json`, and the terminal's lines."""

    page: Path
    report: Report
    record: dict[str, Any]
    lines: list[str]


def write_report(
    profiles: Sequence[Path],
    out: Path,
    limits: Limits | None = None,
    old: Path | None = None,
    bundles: Sequence[Path] = (),
) -> Written:
    """Writes the report of one or more profiles of one model.

    Args:
        profiles: folders with a `profile.json`.
        out: folder for `report.html`, `report.md`, `report.json` and `figures/`; may hold other files.
        limits: what the variant to be chosen must meet; where none does, the report says it. None: the
            recommendation says what was measured.
        old: folder of an earlier profile; the report then says what changed since.
        bundles: that shall recommend the variant that is chosen under the limits; where none is, they stay as they are.

    Raises:
        InputError: no profile, one that cannot be read, or profiles that do not belong together; or a bundle that does
            not hold what was measured; nothing was written.
        JobError: a file cannot be written, or matplotlib or jinja2 is not installed.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; the report needs a folder")
    known = {folder: read_verified(folder) for folder in bundles}
    comparison = compare(read_sources(profiles))
    changes = None if old is None else compared_with(old, comparison)
    recommendation, decision = recommend(comparison, limits)
    choice = choice_for(known, comparison, recommendation)
    lead = draw(LEAD, comparison, recommendation)
    sections = build_sections(comparison, recommendation)
    pictures = [lead, *(picture for section in sections for picture in section.pictures)]
    pictures.append(draw_card(comparison, recommendation))
    command = _command(profiles, out, limits, old)
    found = hazards(comparison, recommendation)
    report = _report(comparison, recommendation, decision, changes, pictures, found, command)
    tables = build_tables(comparison, recommendation)
    held = None if decision is None else decision_evidence(decision)
    why = [*reasons(comparison), *(entry for section in sections for entry in section.empty)]
    why += [] if held is None or held.table is None else gaps(held.table)
    words = {
        "model": comparison.model,
        "recommendation": recommendation,
        "verdict": verdict(comparison, recommendation),
        "effects": effects_sentence(comparison, recommendation),
        "circumstances": circumstances(comparison),
        "warnings": [*instability(comparison), *clock_warning(comparison)],
        "hazards": found,
        "lead": lead,
        "tables": tables,
        "decision": held,
        "sections": [section for section in sections if section.blocks],
        "reasons": why,
        "remarks": remarks(comparison),
        "changes": None if changes is None else changes_words(changes),
        "sources": [
            {
                "name": source.name,
                "created": source.profile.created,
                "command": source.profile.command,
                "method": flatten_record(source.profile.method),
                "environment": flatten_record(source.profile.environment),
            }
            for source in comparison.sources
        ],
        "model_cards": sorted({source.profile.model_card for source in comparison.sources}),
        "limitations": list(limitations(comparison)),
        "command": command,
        "paste": lines_to_paste(comparison, recommendation),
        **_theme_words(),
    }
    # Everything exists before the first file is written; the page, which names the others, comes last.
    files = {
        f"figures/{picture.name}.svg": standalone(picture.wide, f"{picture.title}. {picture.words}")
        for picture in pictures
        if picture.wide
    }
    files["report.json"] = json_text(report.model_dump(mode="json", by_alias=True))
    files["report.md"] = render("report.md.jinja", words)
    files["report.html"] = render("report.html.jinja", words)
    for name, content in files.items():
        write_whole(out / name, content)
    for picture in pictures:
        if not picture.wide:
            (out / f"figures/{picture.name}.svg").unlink(missing_ok=True)
    if choice is not None:
        for folder in bundles:
            write_recommended(folder, choice)
            say(f"{folder} recommends {choice.variant} from now on")
    page = out / "report.html"
    record = {
        "report": page.as_posix(),
        "verdict": recommendation.model_dump(mode="json"),
        "variants": [
            {"name": row.name, "profile": row.source.name, **row.measured.model_dump(mode="json")}
            for row in comparison.rows
        ],
    }
    warnings = [*instability(comparison), *clock_warning(comparison)]
    lines = [*aligned(tables[0]), "", *warnings, _told(recommendation)]
    if decision is not None:
        record["decision"] = decision.model_dump(mode="json")
    if changes is not None:
        record["changes"] = changes.model_dump(mode="json", by_alias=True)
        lines += ["", *summary(changes)]
    return Written(page, report, record, [*lines, page.as_posix()])


def finish_fleet(folder: Path, out: Path, limit_ms: float | None, as_json: bool) -> None:
    """Writes the page over the devices of a fleet as `fleet.html` and `fleet.md`, and prints it in short.

    Raises:
        InputError: there is no fleet's record, or the limit is no limit.
        JobError: a device can hold no budget within the limit; the page is written.
    """
    found = read_fleet(folder)
    words = fleet_words(found, folder, limit_ms)
    page = out / "fleet.html"
    pages = {path: render(f"{path.name}.jinja", words) for path in (page.with_suffix(".md"), page)}
    for path, content in pages.items():
        write_whole(path, content)
    if limit_ms is not None and without_budget(found, limit_ms):
        raise JobError(f"{words['sentence']} The page: {page.as_posix()}")
    record = {
        "report": page.as_posix(),
        "verdict": words["sentence"],
        "fleet": found.model_dump(mode="json", by_alias=True),
    }
    finish(record, [*fleet_lines(words), page.as_posix()], as_json)


def choice_for(
    bundles: Mapping[Path, Bundle], comparison: Comparison, recommendation: Recommendation
) -> RecommendedVariant | None:
    """Returns what bundles are to recommend: the variant that was chosen under limits; None where none was.

    Raises:
        InputError: a bundle does not hold that variant, its variants are others than those that were measured, or a file
            has changed.
    """
    if recommendation.status != "chosen" or not bundles:
        return None
    rows = [row.measured for row in comparison.rows if row.source.name == recommendation.profile]
    (chosen,) = (row for row in rows if row.id == recommendation.id)
    digests: dict[str, set[str]] = {}
    for row in rows:
        if row.files_sha256 is None:
            raise InputError(
                f"the profile {recommendation.profile} does not say which files it measured, as those of earlier "
                "versions: profile again"
            )
        digests.setdefault(_own_id(row.id), set()).add(row.files_sha256)
    name = _own_id(chosen.id)
    for folder, bundle in bundles.items():
        taken = find_variant(bundle, name)
        for variant in bundle.variants:
            wanted = {chosen.files_sha256} if variant is taken else digests.get(variant.id)
            if wanted is not None and files_digest(variant) not in wanted:
                raise InputError(
                    f"{variant.id} of {folder} is not what the profile {recommendation.profile} measured (its files "
                    "have other hashes): profile this bundle"
                )
        check_files(folder, taken)
    return RecommendedVariant(variant=name, kind="measured", reason=recommendation.sentence)


def _own_id(measured: str) -> str:
    """Returns a variant's id in its bundle; a profile of several bundles puts the folder's name before it."""
    return measured.rpartition("/")[2]


def compared_with(old: Path, comparison: Comparison) -> Regression:
    """Returns what changed since the profile in a folder.

    Raises:
        InputError: it is none, of another schema or model, or there are several new ones.
    """
    if len(comparison.sources) > 1:
        raise InputError("--compare tells what changed in one profile: give --profile once")
    return compare_profiles(read_profile(old), comparison.sources[0].profile)


def _told(recommendation: Recommendation) -> str:
    return f"{recommendation.sentence} {recommendation.detail}".strip()


def _command(profiles: Sequence[Path], out: Path, limits: Limits | None, old: Path | None) -> str:
    words = ["python", "-m", "ptsr_edge.report"]
    words += [word for folder in profiles for word in ("--profile", folder.as_posix())]
    if limits is not None:
        latency, loss = limits.max_latency_ms, limits.max_uar_drop
        words += [] if latency is None else ["--max-latency-ms", f"{latency:g}"]
        words += [] if loss is None else [
            "--max-uar-drop", f"{loss:g}", "--confidence", f"{limits.confidence:g}", "--unit", limits.unit,
        ]  # fmt: skip
    words += ["--out", out.as_posix()]
    return shlex.join([*words, *([] if old is None else ["--compare", old.as_posix()])])


def _report(
    comparison: Comparison,
    recommendation: Recommendation,
    decision: Decision | None,
    changes: Regression | None,
    pictures: Sequence[Picture],
    found: Sequence[Hazard],
    command: str,
) -> Report:
    record = {
        "command": command,
        "model": comparison.model,
        "verdict": recommendation,
        "profiles": [{"name": source.name, "profile": source.profile} for source in comparison.sources],
        "figures": [
            {
                "name": picture.name,
                "title": picture.title,
                "file": f"figures/{picture.name}.svg" if picture.wide else None,
                "note": picture.note,
            }
            for picture in pictures
        ],
        "hazards": list(found),
        "decision": decision,
        "changes": changes,
    }
    return parse(Report, record, "report.json")


@dataclass(frozen=True)
class WrittenHistory:
    """What was written: the page, the record, and the terminal's lines."""

    page: Path
    history: History
    lines: list[str]


def write_history(
    places: Sequence[Path],
    out: Path,
    acknowledged: Path | None = None,
    named: Sequence[str] = (),
    reason: str | None = None,
) -> WrittenHistory:
    """Writes the history of one model over profiles in time.

    Args:
        places: folders of profiles, or folders that hold such folders.
        out: folder for `history.html`, `history.md`, `history.json` and `figures/`; may hold other files.
        acknowledged: file with the changes that were accepted; by default `acknowledged.json` in `out`.
        named: changes to be accepted now, `VARIANT@CREATED`, for this `reason`.
        reason: why they are acceptable.

    Raises:
        InputError: no profile, one that cannot be read, profiles that do not belong together, or a change that is none;
            nothing was written.
        JobError: a file cannot be written, or matplotlib or jinja2 is not installed.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; the report needs a folder")
    kept = out / ACKNOWLEDGED if acknowledged is None else acknowledged
    check_file(kept)
    lines = timelines(read_sources(profile_folders(places)))
    accepted = read_record(Acknowledged, kept) if kept.exists() else Acknowledged()
    words = ["python", "-m", "ptsr_edge.report"]
    words += [word for place in places for word in ("--history", place.as_posix())]
    words += ["--out", out.as_posix()]
    words += [] if acknowledged is None else ["--acknowledged", acknowledged.as_posix()]
    command = shlex.join(words)
    history = history_of(lines, accepted, command)
    if named:
        accepted = acknowledge(history, accepted, named, reason or "")
        history = history_of(lines, accepted, command)
    pictures = {line.name: _history_pictures(history, line, n) for n, line in enumerate(lines, start=1)}
    page_words = {
        "model": history.model,
        "headline": headline(history),
        "machines": [_machine_words(history, line, pictures[line.name]) for line in lines],
        "command": command,
        **_theme_words(),
    }
    files = {
        f"figures/{picture.name}.svg": standalone(picture.wide, f"{picture.title}. {picture.words}")
        for some in pictures.values()
        for picture in some
        if picture.wide
    }
    files["history.json"] = json_text(history.model_dump(mode="json", by_alias=True))
    files["history.md"] = render("history.md.jinja", page_words)
    files["history.html"] = render("history.html.jinja", page_words)
    if named:
        write_json(kept, accepted.model_dump(mode="json", by_alias=True))
        say(f"{kept} has {len(accepted.entries)} acknowledged changes")
    for file, content in files.items():
        write_whole(out / file, content)
    page = out / "history.html"
    return WrittenHistory(page, history, [*history_lines(history), page.as_posix()])


def _history_pictures(history: History, line: Timeline, number: int) -> list[Picture]:
    found = [finding for finding in history.findings if finding.machine == line.name]
    pictures = []
    for name, title, drawn in (
        (f"history-speed-{number}", "Times as fast as the baseline", speed_chart(line, found)),
        (f"history-accuracy-{number}", "UAR", accuracy_chart(line, found)),
    ):
        if isinstance(drawn, NotDrawn):
            pictures.append(Picture(name, title, note=f"Not drawn: {drawn.reason}."))
        else:
            wide, narrow = draw_svg(name, drawn)
            pictures.append(Picture(name, title, drawn.caption, drawn.words, wide, narrow))
    return pictures


def _machine_words(history: History, line: Timeline, pictures: Sequence[Picture]) -> dict[str, Any]:
    """Returns what the templates write of a machine, the newest first; of its steps, what else was not the same."""
    (machine,) = (machine for machine in history.machines if machine.name == line.name)
    steps = [
        (
            step.new_created,
            [
                *step.conditions,
                *(f"{variant} is gone" for variant in step.only_old),
                *(f"{variant} is new" for variant in step.only_new),
            ],
        )
        for step in reversed(machine.steps)
    ]
    rows = count_rows(line)
    told = [any(row.cells[place][0] != NOT_COUNTED for row in rows) for place in range(len(COUNTS))]
    return {
        "name": line.name,
        "pictures": pictures,
        "changes": changed_variants(history, line.name),
        "left_open": machine.steps[-1].left_open if machine.steps else [],
        "counts": {
            "headings": [
                heading for (heading, _), is_told in zip(COUNTS.values(), told, strict=True) if is_told
            ],
            "rows": [
                (row, [cell for cell, is_told in zip(row.cells, told, strict=True) if is_told])
                for row in rows
            ],
        },
        "runs": [
            (source.profile.created, source.folder.as_posix(), run_text(source.profile))
            for source in reversed(line.sources)
        ],
        "steps": [(created, texts) for created, texts in steps if texts],
    }


def _theme_words() -> dict[str, str]:
    return {"svg_css": SVG_CSS, "font": FONT, "light": theme_css(0), "dark": theme_css(1)}


# ---------------------------------------------------------------------------------------------
# Words to HTML, Markdown and JSON


def render(template: str, words: dict[str, Any]) -> str:
    """Fills in a template; in HTML all that is filled in is escaped.

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
        "printable": printable,
        "unbroken": unbroken,
        "sentence": sentence,
        "exact": _exact,
        "minute": lambda created: created[:16].replace("T", " "),
    }
    environment.globals["table_lines"] = pipe_table
    return str(environment.get_template(template).render(words))


def _exact(number: float) -> str:
    """Writes the number behind a cell as it is recorded."""
    return f"{number:,}" if isinstance(number, int) else f"{number:.6g}"


def unbroken(text: str) -> str:
    """Keeps numbers with their units and intervals on one line."""
    text = re.sub(r"(?<=\d) (?=(ms|%)(\W|$))", "\u00a0", text)
    text = re.sub(r"(?<=x) (?=\[)|(?<=\d,) (?=[-+\d.]+\])", "\u00a0", text)
    text = re.sub(r"(?<=n) = (?=\d)", "\u00a0=\u00a0", text)
    return text.replace("full-token", "full\u2011token")


def json_text(record: dict[str, Any]) -> str:
    """Returns a record as indented JSON, with each innermost list of numbers on one line."""
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
    type=click.Path(path_type=Path),
    help="Folder for report.html, report.md, report.json and figures/.",
)
@click.option("--fleet", type=click.Path(path_type=Path),
              help="Instead: folder with a fleet.json; writes fleet.html and fleet.md into it, or into --out.")  # fmt: skip
@click.option("--max-latency-ms", type=float, help="Choose a variant whose p95 latency is at most this.")
@click.option("--max-uar-drop", type=float,
              help="Choose one that surely loses no more UAR than this against fp32 at full budget.")  # fmt: skip
@click.option("--confidence", type=float, default=CONFIDENCE, show_default=True, help="How sure is sure.")
@click.option("--unit", type=click.Choice(["subject", "sample"]), default="subject", show_default=True,
              help="What is independent: people, or every sample.")  # fmt: skip
@click.option("--compare", "old", type=click.Path(path_type=Path),
              help="Folder of an earlier profile: say what changed beyond noise since then.")  # fmt: skip
@click.option("--history", "places", multiple=True, type=click.Path(path_type=Path),
              help="Folder of a profile, or of several: draw ratios, accuracy and counts over time, machine by machine; "
              "may be repeated.")  # fmt: skip
@click.argument("further", metavar="[DIR]...", nargs=-1, type=click.Path(path_type=Path))
@click.option("--fail-on-regression", "strict", is_flag=True,
              help="With --compare or --history (its newest step): exit code 1 if anything got worse (3: nothing could be "
              "compared).")  # fmt: skip
@click.option("--gate", type=click.Choice(["counts", "all"]), default="all", show_default=True,
              help="With --history: what fails; counts do not depend on load.")  # fmt: skip
@click.option("--acknowledge", "named", multiple=True, metavar="VARIANT@CREATED",
              help="With --history: accept what got worse there, for a --reason; may be repeated.")  # fmt: skip
@click.option("--reason", help="Why it is acceptable.")
@click.option("--acknowledged", type=click.Path(path_type=Path),
              help="File that keeps what was acknowledged; default: acknowledged.json in --out.")  # fmt: skip
@click.option("--write-choice", "bundles", multiple=True, type=click.Path(path_type=Path),
              help="Bundle that shall recommend the chosen variant; may be repeated.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def main(
    profiles: tuple[Path, ...], out: Path | None, fleet: Path | None, max_latency_ms: float | None,
    max_uar_drop: float | None, confidence: float, unit: Unit, old: Path | None, places: tuple[Path, ...],
    further: tuple[Path, ...], strict: bool, gate: Gate, named: tuple[str, ...], reason: str | None,
    acknowledged: Path | None, bundles: tuple[Path, ...], as_json: bool,
) -> None:  # fmt: skip
    """Turn profiles into a page, a Markdown file, a JSON record and charts, and choose a variant.

    The fastest that meets all limits that are given is chosen, and no other limit is set. DIR: further folders of
    --history.
    """
    if fleet is not None:
        if profiles or old or strict or bundles or max_uar_drop is not None:
            raise InputError(
                "--fleet takes --max-latency-ms, --out and --json only: the other options are about profiles"
            )
        finish_fleet(fleet, out or fleet, max_latency_ms, as_json)
        return
    if out is None:
        raise InputError("name the folder for the report: --out DIR")
    if strict and old is None and not places:
        raise InputError(
            "--fail-on-regression needs --compare DIR, the profile to compare with, or --history DIR, profiles in time"
        )
    _check_companions(places, further, named, reason, strict=strict)
    if places:
        written_history = write_history([*places, *further], out, acknowledged, named, reason)
        _tell_history(written_history, gate if strict else None, as_json)
        return
    limits = check_limits(max_latency_ms, max_uar_drop, confidence, unit)
    if bundles and limits is None:
        raise InputError(
            "--write-choice needs limits to choose by: --max-latency-ms, --max-uar-drop, or both"
        )
    written = write_report(profiles, out, limits, old, bundles)
    report = written.report
    refused = report.decision is not None and report.decision.picked is None
    if as_json or not refused:
        finish(written.record, written.lines, as_json)
    if refused:
        raise JobError(f"{_told(report.recommendation)} The report: {written.page.as_posix()}")
    if report.changes is None:
        return
    if strict and report.changes.regressions:
        raise JobError(outcome(report.changes))
    if report.changes.nothing_compared:
        raise ComparisonError(f"{outcome(report.changes)}. The report: {written.page.as_posix()}")


HISTORY_ONLY = {
    "gate": "--gate", "named": "--acknowledge", "reason": "--reason", "acknowledged": "--acknowledged",
}  # fmt: skip
NOT_WITH_HISTORY = {
    "profiles": "--profile", "max_latency_ms": "--max-latency-ms", "max_uar_drop": "--max-uar-drop",
    "confidence": "--confidence", "unit": "--unit", "old": "--compare", "bundles": "--write-choice",
}  # fmt: skip


def _check_companions(
    places: Sequence[Path], further: Sequence[Path], named: Sequence[str], reason: str | None, *, strict: bool
) -> None:
    """Refuses options that go with `--history` alone, or not with it.

    Raises:
        InputError: there is one.
    """
    if further and not places:
        raise InputError(f"{further[0]} stands without an option: --profile DIR, or --history DIR...")
    for name, option in (NOT_WITH_HISTORY if places else HISTORY_ONLY).items():
        if is_given(name):
            raise InputError(
                f"{option} does not go with --history, which makes a page of its own"
                if places
                else f"{option} goes with --history DIR, profiles in time"
            )
    if is_given("gate") and not strict:
        raise InputError("--gate says what --fail-on-regression fails on: give both")
    if bool(named) != (reason is not None):
        raise InputError("--acknowledge VARIANT@CREATED and --reason TEXT go together")


def _tell_history(written: WrittenHistory, gate: Gate | None, as_json: bool) -> None:
    """Prints a history; then fails where a gate is given and does not pass."""
    history = written.history
    finish(history.model_dump(mode="json", by_alias=True), written.lines, as_json)
    if gate is None:
        return
    page = written.page.as_posix()
    if failures := history.failures(gate):
        told = "; ".join(
            f"{found.variant}@{found.created} {result_text(found.result)}: {found.text}"
            for found in failures[:3]
        )
        more = f" and {len(failures) - 3} more" if len(failures) > 3 else ""
        raise JobError(
            f"worse at the newest step: {told}{more}; undo it, or --acknowledge it with a --reason. The page: {page}"
        )
    if why := history.nothing_compared(gate):
        raise ComparisonError(f"nothing could be compared: {why}. The page: {page}")
