"""What a folder holds of a data set: found, missing, odd, and the counts beside the published ones."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from ptsr_edge.core.config import LABELS
from ptsr_edge.core.console import Verb, finish
from ptsr_edge.core.errors import InputError
from ptsr_edge.data import synthetic_clips as synthetic
from ptsr_edge.data.annotations import Annotations, Finding, skips_unfit
from ptsr_edge.data.catalog import COMPOSITE, RECORDED, Published
from ptsr_edge.data.datasets import DATA_NAMES, _check_name, reading_options
from ptsr_edge.data.extraction import finder_for, look_at_clips
from ptsr_edge.data.recorded import read_composite, read_fields, read_megc_flow, read_recorded

SHOWN = 3
"""How many findings of one kind a line is printed for."""


def examine(
    name: str, root: Path | None, skip_bad: bool = False, face_model: Path | None = None
) -> dict[str, Any]:
    """Reads sheets and folders of a data set, and the frames of every clip, and measures nothing.

    Args:
        name: one of `data.DATA_NAMES`.
        root: the folder that the data lies in; `synthetic` has none.
        skip_bad: unfit rows, and members of the composite that cannot be read, do no harm.
        face_model: a YuNet model, for whole frames.

    Returns:
        A record for JSON: `ok` tells whether `data.load` would take the data; `missing` what is needed and not
        there; `sets` the findings and counts of each data set.

    Raises:
        InputError: the root is no folder, or one is given to `synthetic`.
    """
    record: dict[str, Any] = {
        "schema": 1, "data": name, "root": None if root is None else str(root), "skip_bad": skip_bad,
    }  # fmt: skip
    if name == "synthetic":
        return record | {"ok": True, "missing": [], "sets": [_synthetic_record(root)]}
    if root is None or not root.is_dir():
        given = "none is given" if root is None else f"{root} is no folder"
        raise InputError(f"data {name!r} needs the folder that it lies in (--root): {given}")
    sets, missing = _read(name, root)
    if name == "megc-flow":
        sets = [_with_faults(part, read_fields(part.clips)[1]) for part in sets]
    else:
        sets, hindrance = _look(sets, face_model)
        missing += hindrance
    needed = [finding for finding in missing if not (skip_bad and finding.kind == "data set")]
    unfit = sum(len(part.unfit) for part in sets)
    used = sum(len(part.clips) for part in sets)
    parts = [_set_record(part) for part in sets]
    if name == "megc-flow":
        parts += [_absent_record(member) for member in COMPOSITE if member not in {p.name for p in sets}]
    return record | {
        "ok": bool(used) and not needed and (skip_bad or not unfit),
        "missing": [finding.record() for finding in missing],
        "sets": parts,
    }


def lines_of(record: dict[str, Any]) -> list[str]:
    """The record as text."""
    lines: list[str] = []
    for part in record["sets"]:
        lines += [*_set_lines(part), ""]
    lines += [f"MISSING  {_place(finding)}: {finding['message']}" for finding in record["missing"]]
    unfit = sum(len(part["unfit"]) for part in record["sets"])
    used = sum(part["used"] for part in record["sets"])
    if record["ok"]:
        lines.append(
            f"{record['data']}: {used} clips can be used" + (f", {unfit} rows are skipped" * bool(unfit))
        )
    elif unfit and not record["missing"]:
        lines.append(f"{record['data']}: {unfit} rows cannot be used; `--skip-bad` goes on without them")
    else:
        lines.append(f"{record['data']}: cannot be used")
    return lines


def _read(name: str, root: Path) -> tuple[list[Annotations], list[Finding]]:
    """What can be read, and what is missing."""
    try:
        if name == "megc2019":
            return read_composite(root, skip_bad=True)
        return (read_megc_flow(root) if name == "megc-flow" else [read_recorded(name, root)]), []
    except InputError as error:
        return [], [Finding("needed", root, str(error))]


def _look(sets: list[Annotations], face_model: Path | None) -> tuple[list[Annotations], list[Finding]]:
    """Reads the frames of all clips; without a face detector only those of face crops."""
    clips = [clip for part in sets for clip in part.clips]
    hindrance = []
    try:
        finder = finder_for(clips, face_model)
    except InputError as error:
        finder = None
        whole = next(part for part in sets if not part.cropped)
        hindrance = [Finding("face detector", whole.frames, str(error))]
    faults = look_at_clips(clips, finder)
    return [_with_faults(part, faults) for part in sets], hindrance


def _with_faults(part: Annotations, faults: dict[str, Finding]) -> Annotations:
    return part.without({clip.name: faults[clip.name] for clip in part.clips if clip.name in faults})


def _set_record(part: Annotations) -> dict[str, Any]:
    known = RECORDED.get(part.name)
    published = known.published if known else Published()
    used, listed = part.label_counts(len(LABELS))
    by_subject: dict[str, Counter[str]] = {}
    for clip in part.clips:
        by_subject.setdefault(clip.subject, Counter())[LABELS[clip.label]] += 1
    rules = Counter(clip.apex_rule for clip in part.clips)
    return {
        "name": part.name,
        "title": known.title if known else part.name,
        "fps": part.clips[0].fps if part.clips else None,
        "sheet": str(part.sheet),
        "frames": str(part.frames),
        "cropped": part.cropped,
        "rows": part.rows,
        "used": len(part.clips),
        "dropped": dict(part.dropped),
        "unfit": [row.finding.record() for row in part.unfit],
        "odd": [finding.record() for finding in part.odd],
        "account": part.account(),
        "apex": dict(rules),
        "classes": _class_counts(used, listed, published),
        "subjects": {"used": len(by_subject), "published": published.subjects},
        "clips_published": published.clips,
        "rows_published": published.rows,
        "by_subject": {
            subject: {label: by_subject[subject][label] for label in LABELS} for subject in sorted(by_subject)
        },
    }


def _class_counts(used: list[int], listed: list[int], published: Published) -> dict[str, Any]:
    counts = published.classes or (None, None, None)
    return {
        label: {"used": used[place], "listed": listed[place], "published": counts[place]}
        for place, label in enumerate(LABELS)
    }


def _absent_record(name: str) -> dict[str, Any]:
    """A member of the composite that the published table does not list."""
    known = RECORDED[name]
    none = [0] * len(LABELS)
    return {
        "name": name, "title": known.title, "fps": None, "sheet": None, "frames": None, "cropped": None,
        "rows": 0, "used": 0, "dropped": {}, "unfit": [], "odd": [], "account": "not in the table", "apex": {},
        "classes": _class_counts(none, none, known.published),
        "subjects": {"used": 0, "published": known.published.subjects},
        "clips_published": known.published.clips, "rows_published": None, "by_subject": {},
    }  # fmt: skip


def _synthetic_record(root: Path | None) -> dict[str, Any]:
    """Counts of what would be rendered; nothing is."""
    if root is not None:
        raise InputError(f"data 'synthetic' is rendered and lies in no folder, got {root}")
    by_subject = {
        subject: Counter(
            LABELS[synthetic.clip_label(number, clip)] for clip in range(synthetic.CLIPS_PER_SUBJECT)
        )
        for number, subject in enumerate(synthetic.subject_names())
    }
    totals = [sum(counts[label] for counts in by_subject.values()) for label in LABELS]
    rows = sum(totals)
    return {
        "name": "synthetic", "title": "rendered faces", "fps": None, "sheet": None, "frames": None,
        "cropped": True, "rows": rows, "used": rows, "dropped": {}, "unfit": [], "odd": [],
        "account": f"{rows} clips are rendered when they are asked for", "apex": {},
        "classes": _class_counts(totals, totals, Published()),
        "subjects": {"used": len(by_subject), "published": None}, "clips_published": None,
        "rows_published": None,
        "by_subject": {name: {label: counts[label] for label in LABELS} for name, counts in by_subject.items()},
    }  # fmt: skip


def _set_lines(part: dict[str, Any]) -> Iterator[str]:
    fps = f", {part['fps']} frames a second" if part["fps"] else ""
    yield f"{part['name']}: {part['title']}{fps}"
    if part["sheet"]:
        kind = "flow fields" if part["fps"] == 0 else "face crops" if part["cropped"] else "whole frames"
        yield f"  sheet   {part['sheet']}"
        yield f"  frames  {part['frames']} ({kind})"
    yield f"  {part['account']}"
    if part["rows_published"]:
        yield f"  rows of the sheet: {part['rows']}, published {part['rows_published']}"
    yield f"  {'':10}{'used':>6}{'listed':>8}{'published':>11}"
    for label, counts in part["classes"].items():
        yield _count_line(label, counts["used"], counts["listed"], counts["published"])
    listed = sum(counts["listed"] for counts in part["classes"].values())
    yield _count_line("all", part["used"], listed, part["clips_published"])
    yield _count_line("subjects", part["subjects"]["used"], None, part["subjects"]["published"])
    if part["by_subject"]:
        clips = (
            f"{name.partition('/')[2]} {sum(counts.values())}" for name, counts in part["by_subject"].items()
        )
        yield f"  clips of each subject: {', '.join(clips)}"
    if part["apex"].get("midpoint"):
        yield f"  apex: {part['apex'].get('sheet', 0)} from the sheet, {part['apex']['midpoint']} the middle frame"
    for word, findings in (("unfit", part["unfit"]), ("odd", part["odd"])):
        yield from _finding_lines(word, findings)


def _count_line(name: str, used: int, listed: int | None, published: int | None) -> str:
    note = "  differs" if published is not None and used != published else ""
    return f"  {name:10}{used:>6}{_or_dash(listed):>8}{_or_dash(published):>11}{note}"


def _or_dash(number: int | None) -> str:
    return "-" if number is None else str(number)


def _finding_lines(word: str, findings: list[dict[str, Any]]) -> Iterator[str]:
    """The first few of each kind; `--json` has all."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for finding in findings:
        kinds.setdefault(finding["kind"], []).append(finding)
    for kind, alike in kinds.items():
        shown = alike if word == "unfit" else alike[:SHOWN]
        for finding in shown:
            yield f"  {word}: {_place(finding)}: {finding['message']}"
        if len(alike) > len(shown):
            yield f"  {word}: {kind}: {len(alike) - len(shown)} more (--json lists all)"


def _place(finding: dict[str, Any]) -> str:
    row = f", row {finding['row']}" if finding["row"] is not None else ""
    column = f", column {finding['column']}" if finding["column"] is not None else ""
    return f"{Path(finding['file']).name}{row}{column}"


@click.command(cls=Verb, epilog="Example: ptsr-edge data check --data casme2 --root DIR")
@click.argument("action", type=click.Choice(["check"]))
@click.option("--data", "data_name", required=True, help=f"One of {', '.join(DATA_NAMES)}.")
@click.option("--root", type=click.Path(path_type=Path), help="Folder of the data; synthetic needs none.")
@reading_options
@click.option("--json", "as_json", is_flag=True, help="Print the record.")
def main(
    action: str,
    data_name: str,
    root: Path | None,
    skip_bad: bool | None,
    face_model: Path | None,
    as_json: bool,
) -> None:
    """Check what a folder holds of a data set: found, missing, odd, and counts beside the published ones."""
    del action  # there is one
    _check_name(data_name)
    record = examine(data_name, root, skips_unfit(skip_bad), face_model)
    finish(record, lines_of(record), as_json)
    if not record["ok"]:
        sys.exit(1)
