"""The verb `data`: found, missing and odd in a folder of data, counts beside the published ones; a table for own clips.

Also the options about data that other verbs share: `DataOption` and `reading_options`.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from ptsr_edge.core.console import Verb, finish
from ptsr_edge.core.errors import InputError
from ptsr_edge.data.annotations import Finding, SetSummary, skips_unfit
from ptsr_edge.data.datasets import (
    LoadRequest,
    data_names,
    examine_by_loading,
    find_dataset,
    refuse_root_of_rendered,
)
from ptsr_edge.data.morphable_face import pack_facekit
from ptsr_edge.data.own_clips import OWN, find_clips, write_template
from ptsr_edge.vision.flow import MIN_FRAME

SHOWN = 3
"""At most so many findings of one kind are printed."""


class DataOption(click.Option):
    """An option that takes the name of a data set; its help lists them all, those of other packages too."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        self.help = f"One of {', '.join(data_names())}."
        return super().get_help_record(ctx)


def reading_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options of verbs that load recorded data, as the arguments `skip_bad` and `face_model`."""
    command = click.option("--face-model", type=click.Path(path_type=Path),
                           help="YuNet model to find faces with, where frames are no face crops.")(command)  # fmt: skip
    return click.option("--skip-bad", is_flag=True, default=None,
                        help="List rows of the data that cannot be used, and go on without them.")(command)  # fmt: skip


def examine(
    name: str, root: Path | None, skip_bad: bool = False, face_model: Path | None = None
) -> dict[str, Any]:
    """Reads sheets and folders of a data set, and the frames of every clip, and measures nothing.

    Args:
        name: one of `datasets.data_names()`.
        root: the folder that the data lie in; rendered data have none.
        skip_bad: unfit rows, and members of the composite that cannot be read, do no harm.
        face_model: a YuNet model, for whole frames.

    Returns:
        A record for JSON: `ok` tells whether `datasets.load` would take the data; `missing` what is needed and not
        there; `sets` the findings and counts of each data set.

    Raises:
        InputError: unknown data, the root is no folder, or one is given to rendered data.
    """
    entry = find_dataset(name)
    refuse_root_of_rendered(name, entry, root)
    if not entry.is_rendered and (root is None or not root.is_dir()):
        given = "none is given" if root is None else f"{root} is no folder"
        raise InputError(f"data {name!r} needs the folder that it lies in (--root): {given}")
    request = LoadRequest(name, root, MIN_FRAME, None, 0, None, skip_bad, face_model)
    try:
        sets, missing = (entry.examine or examine_by_loading)(request)
    except InputError as error:
        sets, missing = [], [Finding("needed", root or Path(), str(error))]
    needed = [finding for finding in missing if not (skip_bad and finding.kind == "data set")]
    used = sum(len(part.clips) for part in sets)
    unfit = sum(len(part.unfit) for part in sets)
    return {
        "schema": 1,
        "data": name,
        "root": None if root is None else str(root),
        "skip_bad": skip_bad,
        "ok": bool(used) and not needed and (skip_bad or not unfit),
        "missing": [finding.record() for finding in missing],
        "sets": [_set_record(part) for part in sets],
    }


def _set_record(part: SetSummary) -> dict[str, Any]:
    used = Counter(label for _, label in part.clips)
    unfit = Counter(row.label for row in part.unfit)
    published = part.published.classes or (None,) * len(part.label_names)
    by_subject: dict[str, Counter[int]] = {}
    for subject, label in part.clips:
        by_subject.setdefault(subject, Counter())[label] += 1
    return {
        "name": part.name,
        "title": part.title,
        "fps": part.fps,
        "sheet": None if part.sheet is None else str(part.sheet),
        "frames": None if part.frames is None else str(part.frames),
        "cropped": part.cropped,
        "rows": part.rows,
        "used": len(part.clips),
        "dropped": dict(part.dropped),
        "unfit": [row.finding.record() for row in part.unfit],
        "odd": [finding.record() for finding in part.odd],
        "account": part.account,
        "apex": dict(part.apex_rules),
        "classes": {
            name: {"used": used[label], "listed": used[label] + unfit[label], "published": published[label]}
            for label, name in enumerate(part.label_names)
        },
        "subjects": {"used": len(by_subject), "published": part.published.subjects},
        "clips_published": part.published.clips,
        "rows_published": part.published.rows,
        "by_subject": {
            subject: {name: by_subject[subject][label] for label, name in enumerate(part.label_names)}
            for subject in sorted(by_subject)
        },
    }


def lines_of(record: dict[str, Any]) -> list[str]:
    """Returns the record as lines of text."""
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
    """Yields the first few of each kind; `--json` has all."""
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
@click.argument("action", type=click.Choice(["check", "init", "facekit"]))
@click.option("--data", "data_name", cls=DataOption)
@click.option("--root", type=click.Path(path_type=Path), help="Folder of the data; synthetic needs none.")
@reading_options
@click.option("--json", "as_json", is_flag=True, help="Print the record.")
def main(
    action: str,
    data_name: str | None,
    root: Path | None,
    skip_bad: bool | None,
    face_model: Path | None,
    as_json: bool,
) -> None:
    """Check what a folder holds of a data set: found, missing, odd, and counts beside the published ones.

    `data init` writes the table of own clips (clips.csv) and dataset.toml into a folder, to be filled in. `data facekit`
    packs the face model in the folder of ICT-FaceKit into one file there (ict_face.npz), for data ict-face.
    """
    if action == "init":
        _init(data_name or OWN, root, skip_bad is not None or face_model is not None, as_json)
        return
    if action == "facekit":
        _pack(data_name, root, skip_bad is not None or face_model is not None, as_json)
        return
    if data_name is None:
        raise InputError(f"`data check` needs --data NAME, one of {', '.join(data_names())}")
    record = examine(data_name, root, skips_unfit(skip_bad), face_model)
    finish(record, lines_of(record), as_json)
    if not record["ok"]:
        sys.exit(1)


def _init(data_name: str, root: Path | None, reads: bool, as_json: bool) -> None:
    """Writes the templates of own clips and says what is to be filled in."""
    if data_name != OWN:
        raise InputError(f"`data init` writes the table of data {OWN!r}; data {data_name!r} bring theirs")
    if root is None:
        raise InputError("`data init` needs the folder that holds the clips (--root): none is given")
    if reads:
        raise InputError(
            "--skip-bad and --face-model go with `data check`: `data init` reads no row and no face"
        )
    written = write_template(root)
    count = len(find_clips(root))
    hint = "fill in apex and label, and see whether subject, onset and offset are right"
    line = f"{count} clips found: {hint}" if count else f"no clip found below {root}: add a line for each"
    finish(
        {"clips": count, "written": [str(path) for path in written]},
        [line, *map(str, reversed(written))],
        as_json,
    )


def _pack(data_name: str | None, root: Path | None, reads: bool, as_json: bool) -> None:
    """Packs the public folder of the face model."""
    if data_name is not None or reads:
        raise InputError("`data facekit` takes the folder of ICT-FaceKit (--root) and nothing else")
    if root is None:
        raise InputError("`data facekit` needs the folder of ICT-FaceKit (--root): none is given")
    path = pack_facekit(root)
    finish({"written": [str(path)]}, [str(path)], as_json)
