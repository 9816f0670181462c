"""Own clips with own labels: a folder with a table `clips.csv` (or `.xlsx`) and frames as images or videos.

    clips.csv       subject, clip, onset, apex, offset, label: a line a clip
    dataset.toml    name, frame rate, classes, licence (`FolderSettings`); may be missing
    anna/smile_1/   frames as image files, told apart by the last number in their names
    anna/smile_2.mp4

Classes are the labels of the table, sorted, or what `dataset.toml` says. Onset and apex follow the rules of recorded
data (`data.recorded`).
"""

from __future__ import annotations

import csv
import difflib
import io
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from ptsr_edge.core.config import Record, nearest, parse
from ptsr_edge.core.errors import InputError
from ptsr_edge.core.files import check_place, write_whole
from ptsr_edge.data.annotations import (
    TABLE_SUFFIXES,
    AnnotationRow,
    Annotations,
    Clip,
    Finding,
    RowFault,
    read_sheet,
)
from ptsr_edge.data.catalog import Columns, Frames, canonical, read_frames
from ptsr_edge.data.extraction import VIDEO_SUFFIXES, video_times
from ptsr_edge.data.recorded import RowReader

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

OWN = "folder"
"""The name of the data set."""

TABLE = "clips"
SETTINGS = "dataset.toml"
COLUMNS = ("subject", "clip", "onset", "apex", "offset", "label")
NEEDED = ("subject", "clip", "onset", "label")
LAYOUT = (
    f"a folder with {TABLE}.csv (or .xlsx; `ptsr-edge data init --root DIR` writes one) and the clips' frames"
)

DROP = "drop"
"""The class of labels that are left out."""

TIME = re.compile(r"(\d+\.?\d*|\.\d+) ?s", re.I)

NAME = r"^\w([\w .+-]{0,38}[\w.+-])?$"
"""A word or a few of letters, digits, blanks and . + - _: it stands in manifests, charts and label files."""

ClassName = Annotated[str, StringConstraints(pattern=NAME)]


class FolderSettings(Record):
    """What `dataset.toml` says of a folder of clips.

    Attributes:
        name: of the data; subjects of folders with other names are other people.
        fps: frames a second of image files, for times in seconds.
        frames: "crops" are used whole; in "whole" frames the face is searched for.
        classes: all classes, in the order of their numbers; None: the labels of the table, sorted.
        labels: the class of a label, or "drop"; a label that is not here is a class itself.
        licence: what the owner of the clips allows, for the card of a model.
    """

    name: ClassName | None = None
    fps: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    frames: Literal["crops", "whole"] = "whole"
    classes: tuple[ClassName, ...] | None = None
    labels: dict[str, ClassName] = Field(default_factory=dict)
    licence: str = ""

    @model_validator(mode="after")
    def _classes_are_known(self) -> FolderSettings:
        if self.classes is None:
            return self
        if len(self.classes) < 2 or len({name.casefold() for name in self.classes}) < len(self.classes):
            raise ValueError(f"classes must be two or more different names, found {list(self.classes)}")
        if DROP in self.classes:
            raise ValueError(f"classes: {DROP!r} is no class: labels are mapped to it to leave them out")
        for label, name in self.labels.items():
            if name not in (*self.classes, DROP):
                near = nearest(name, self.classes)
                raise ValueError(
                    f"labels.{label}: {name!r} is none of the classes {', '.join(self.classes)} (nearest: {near}), "
                    f"nor {DROP!r}"
                )
        return self

    @property
    def data_set(self) -> str:
        """The name that subjects and clips begin with."""
        return f"{OWN}:{self.name}" if self.name else OWN


def read_settings(root: Path) -> FolderSettings:
    """Reads `dataset.toml`, or returns what holds without it.

    Raises:
        InputError: it cannot be read, has an unknown key (the nearest known one is named), or a value out of range.
    """
    path = root / SETTINGS
    try:
        data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return FolderSettings()
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path} is not a readable TOML file: {error}") from None
    return parse(FolderSettings, data, str(path))


def folder_card(root: Path | None) -> str:
    """Returns the card of a model that was trained on a folder: what its owner says, and no more."""
    settings = read_settings(root) if root is not None else FolderSettings()
    named = f", which their owner calls {settings.name!r}" if settings.name else ""
    licence = " ".join(settings.licence.split()).rstrip(".")
    said = f"licence, as their owner gives it: {licence}" if licence else "no licence text given"
    return f"trained on own clips{named}; {said}"


def read_folder(root: Path | None) -> Annotations:
    """Reads the clips of a folder.

    Raises:
        InputError: there is no root, no table or no column, `dataset.toml` is at fault, or there are fewer than two
            classes. Unfit rows raise nothing: they are listed in what is returned.
    """
    if root is None or not root.is_dir():
        given = "needs a root" if root is None else f"{root} is no folder"
        raise InputError(f"data {OWN!r}: {given}; accepted: {LAYOUT}")
    settings = read_settings(root)
    tables = [path for path in (root / f"{TABLE}{suffix}" for suffix in TABLE_SUFFIXES) if path.is_file()]
    if len(tables) != 1:
        found = " and ".join(path.name for path in tables)
        raise InputError(
            f"{root} holds {found}: keep one"
            if tables
            else f"{root} holds no {TABLE}.csv; accepted: {LAYOUT}"
        )
    sheet = read_sheet(tables[0], NEEDED)
    headings = [heading.casefold() for heading in sheet.columns]
    others = [heading for heading in headings if heading not in COLUMNS]
    absent = [column for column in COLUMNS if column not in headings]
    for heading in others:
        meant = [name for name in absent if heading.startswith(name)]
        if meant := meant or difflib.get_close_matches(heading, absent, n=1, cutoff=0.75):
            raise InputError(
                f"{sheet.path} has a column {heading!r}: is {meant[0]!r} meant? Accepted: {', '.join(COLUMNS)}"
            )
    columns = Columns("subject", "clip", "onset", "apex" if "apex" in headings else None, "offset", "label")
    reader = _FolderReader(OWN, columns, sheet, root, settings)
    reader.odd += [Finding("column", sheet.path, f"the column {heading!r} is not read") for heading in others]
    return reader.read()


@dataclass
class _FolderReader(RowReader):
    """Reads the rows of `clips.csv`."""

    root: Path
    settings: FolderSettings
    _classes: tuple[str, ...] = field(default=(), init=False)
    _people: dict[str, str] = field(default_factory=dict, init=False)
    _read: dict[Path, tuple[Frames, list[float]]] = field(default_factory=dict, init=False)

    def read(self) -> Annotations:
        self._classes = self.settings.classes or tuple(sorted(self._labels_found()))
        if len(self._classes) < 2:
            found = ", ".join(self._classes) or "none"
            raise InputError(
                f"{self.sheet.path} has fewer than two classes in its column label: found {found}"
            )
        self.read_rows()
        self._note_unused()
        return Annotations(
            name=self.settings.data_set,
            sheet=self.sheet.path,
            frames=self.root,
            cropped=self.settings.frames == "crops",
            rows=len(self.sheet.rows),
            clips=tuple(self.clips),
            dropped=dict(self.dropped),
            unfit=tuple(self.unfit),
            odd=tuple(self.odd),
            label_names=self._classes,
        )

    def reason_to_drop(self, row: AnnotationRow) -> str:
        label = row.text("label")
        return label if self._class_of(label) == DROP else ""

    def label(self, row: AnnotationRow) -> int:
        label = row.text("label")
        if not label:
            raise RowFault("the label is empty", "label")
        name = self._class_of(label)
        if not re.fullmatch(NAME, name):
            raise RowFault(f"a label is 1 to 40 letters, digits, blanks and . + - _; found {name!r}", "label")
        if name not in self._classes:
            known = [*self._classes, *self.settings.labels]
            raise RowFault(
                f"unknown label {label!r}; known: {', '.join(known)} (nearest: {nearest(label, known)})",
                "label",
            )
        return self._classes.index(name)

    def clip(self, row: AnnotationRow, label: int) -> Clip:
        subject, name = row.text("subject"), row.text("clip")
        for column, value in (("subject", subject), ("clip", name)):
            if not value:
                raise RowFault(f"the {column} is empty", column)
        if "/" in subject or subject in (".", ".."):
            raise RowFault(f"a subject's name is no path, found {subject!r}", "subject")
        person = self._people.setdefault(canonical(subject), subject)
        if person != subject:
            self.note("subject", row, f"{subject!r} is taken for {person!r}", "subject")
        place = self._place(subject, name)
        frames, times = self._frames(place)
        onset, apex, offset = self.frame_numbers(row, lambda column: self._number(row, column, frames, times))
        rule = "sheet"
        if apex is None:
            apex, rule = self.middle(row, frames, onset, offset), "midpoint"
        files = (self.file(frames, onset, "onset"), self.file(frames, apex, self.columns.apex or "offset"))
        self.once(f"{place.resolve()}/{onset}", row)
        data_set = self.settings.data_set
        return Clip(
            data_set=data_set, subject=f"{data_set}/{person}", name=f"{data_set}/{person}/{name}/{onset}",
            label=label, emotion=row.text("label"), files=files,
            offset=None if times or offset is None else frames.by_number.get(offset),
            fps=self.settings.fps, cropped=self.settings.frames == "crops", sheet=self.sheet.path, row=row.number,
            apex_rule=rule, places=(onset, apex) if times else (),
        )  # fmt: skip

    @cached_property
    def _there(self) -> list[Path]:
        return find_clips(self.root)

    def _labels_found(self) -> set[str]:
        """Returns the classes of all rows; of spellings that differ in case only, the first."""
        names = [self._class_of(row.text("label")) for row in self.sheet.rows]
        spelled = {name.casefold(): name for name in reversed(names) if re.fullmatch(NAME, name)}
        return set(spelled.values()) - {DROP}

    def _class_of(self, label: str) -> str:
        return self.settings.labels.get(label, label)

    def _place(self, subject: str, clip: str) -> Path:
        """Returns the folder or video of a clip, which stands below the root or below its subject's folder."""
        parts = PurePath(clip).parts
        if not parts or PurePath(clip).is_absolute() or ".." in parts:
            raise RowFault(f"a clip lies below {self.root}, found {clip!r}", "clip")
        found = {
            place.resolve(): place
            for home in (_find(self.root, (subject,)), self.root)
            if home is not None and (place := _find(home, parts)) is not None
        }
        if len(found) > 1:
            places = " and ".join(str(place) for place in found.values())
            raise RowFault(f"the clip {clip!r} is twice there: {places}", "clip")
        if not found:
            there = [place.relative_to(self.root).as_posix() for place in self._there]
            near = f"; the nearest there is {nearest(f'{subject}/{clip}', there)}" if there else ""
            raise RowFault(
                f"no folder or video {clip!r} in {self.root} or {self.root / subject}{near}", "clip"
            )
        (place,) = found.values()
        if place.is_file() and place.suffix.lower() not in VIDEO_SUFFIXES:
            raise RowFault(
                f"{place} is neither a folder of frames nor a video ({', '.join(VIDEO_SUFFIXES)})", "clip"
            )
        return place

    def _frames(self, place: Path) -> tuple[Frames, list[float]]:
        """Returns the frames of a folder, or those of a video with their times in seconds."""
        if place not in self._read:
            try:
                self._read[place] = self._frames_of(place)
            except RowFault as fault:
                raise RowFault(fault.message, "clip") from None
        return self._read[place]

    def _frames_of(self, place: Path) -> tuple[Frames, list[float]]:
        if place.is_file():
            times = video_times(place)
            return Frames(place, dict.fromkeys(range(len(times)), place)), times
        frames, stray = read_frames(place)
        self.odd += [Finding("stray file", path, "is no frame and was passed over") for path in stray]
        if not frames.by_number:
            raise RowFault(f"{place} holds no frames: image files with a number in their names")
        return frames, []

    def _number(self, row: AnnotationRow, column: str, frames: Frames, times: Sequence[float]) -> int | None:
        """Returns a cell as a frame number: `12` is one, `0.48s` is the frame of that time."""
        text = row.text(column)
        time = TIME.fullmatch(text)
        if time is None:
            try:
                return row.frame(column)
            except RowFault:
                message = f"a frame's number (12) or a time in seconds (0.48s) is expected, found {text!r}"
                raise RowFault(message, column) from None
        seconds = float(time[1])
        first, last = min(frames.by_number), max(frames.by_number)
        if times:
            end = times[-1]
            number = min(range(len(times)), key=lambda place: abs(times[place] - seconds))
        elif self.settings.fps is not None:
            end = (last - first) / self.settings.fps
            number = first + round(seconds * self.settings.fps)
        else:
            raise RowFault(f"{text} is a time: {SETTINGS} must say the fps of image files", column)
        if seconds > end + 0.5 * end / max(1, last - first):
            raise RowFault(f"{text} lies behind the last frame of {frames.folder}, at {end:.3f}s", column)
        return number

    def _note_unused(self) -> None:
        """Notes clips that no row names, and labels of `dataset.toml` that no row has."""
        named = {place.resolve() for place in self._read}
        for place in self._there:
            if place.resolve() not in named:
                self.odd.append(
                    Finding("clip", place, f"is in no row of {self.sheet.path.name} that can be read")
                )
        said = {row.text("label") for row in self.sheet.rows}
        for label in self.settings.labels:
            if label not in said:
                message = f"labels.{label}: no row has this label (nearest: {nearest(label, said)})"
                self.odd.append(Finding("label", self.root / SETTINGS, message))


def _find(home: Path, parts: Iterable[str]) -> Path | None:
    """Returns what lies at a relative path, by its name, else in another case or with other leading zeros."""
    for part in parts:
        exact = home / part
        if not exact.exists():
            if not home.is_dir():
                return None
            alike = [path for path in sorted(home.iterdir()) if canonical(path.name) == canonical(part)]
            if len(alike) != 1:
                return None
            (exact,) = alike
        home = exact
    return home


def find_clips(root: Path) -> list[Path]:
    """Lists the folders below the root that hold two frames or more, and the videos."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name[0] != "."]
        place = Path(folder)
        found += [
            place / name for name in names if Path(name).suffix.lower() in VIDEO_SUFFIXES and name[0] != "."
        ]
        if place != root and len(read_frames(place)[0].by_number) > 1:
            found.append(place)
    return sorted(found)


def write_template(root: Path) -> list[Path]:
    """Writes `clips.csv`, with a line for each clip that is there, and `dataset.toml`, with every key explained.

    What only a person can know, apex and label, is left empty.

    Returns:
        The two files.

    Raises:
        InputError: the root is no folder, or one of the files is there already.
        JobError: a file cannot be written.
    """
    if not root.is_dir():
        raise InputError(f"{root} is no folder; accepted: the folder that holds the clips")
    table, settings = root / f"{TABLE}.csv", root / SETTINGS
    for path in (*(root / f"{TABLE}{suffix}" for suffix in TABLE_SUFFIXES), settings):
        if path.exists():
            raise InputError(f"{path} is there already and is not replaced")
        check_place(path)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_template_rows(root))
    write_whole(table, text.getvalue())
    try:
        write_whole(settings, TEMPLATE)
    except BaseException:
        table.unlink()
        raise
    return [table, settings]


def _template_rows(root: Path) -> Iterator[tuple[Any, ...]]:
    for place in find_clips(root):
        above, *below = place.relative_to(root).parts
        subject, clip = (above, "/".join(below)) if below else ("", above)
        if place.is_file():
            try:
                first, last = 0, len(video_times(place)) - 1
            except RowFault as fault:
                raise InputError(fault.message) from None
        else:
            numbers = read_frames(place)[0].by_number
            first, last = min(numbers), max(numbers)
        yield subject, clip, first, "", last, ""


TEMPLATE = f"""\
# How the clips of {TABLE}.csv are to be read. Every key may be missing.

# Calls the data by a name. People of folders with other names are other people.
# name = "my clips"

# "whole": the face is searched for in the onset frame. "crops": frames show the face and nothing else.
frames = "whole"

# Frames a second of image files, needed where onset, apex or offset are times, such as 0.48s. Videos know theirs.
# fps = 200

# All classes, in this order. Without it the classes are the labels of {TABLE}.csv, sorted.
# classes = ["smile", "frown"]

# What others may do with the clips, and with what is made from them: it stands on the card of every model.
# licence = ""

# The class of a label, where that is not the label itself; "{DROP}" leaves its clips out.
# [labels]
# happy = "smile"
# blink = "{DROP}"
"""
