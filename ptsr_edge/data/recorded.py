"""Recorded data sets as their owners give them away become clips, row by row.

Most of them are a sheet and folders of frames (`read_recorded`; several of them in one root: `read_composite`).
Onset and apex are the sheet's. Where it has no apex (SMIC has none at all, in CASME II it may be `/`), the apex
is the middle frame between onset and offset, rounded down; where the offset is unknown too, or does not come
after the onset, the clip's last frame stands for it. An apex that is the onset or comes before it shows no
motion: such a row is unfit.

The flow fields that were published beside HTNet for MEGC2019's composite are a table and one image for each clip
(`read_megc_flow`).
"""

from __future__ import annotations

import fnmatch
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.core.config import LABELS
from ptsr_edge.core.console import progress
from ptsr_edge.core.errors import InputError
from ptsr_edge.data.annotations import (
    TABLE_SUFFIXES,
    AnnotationRow,
    Annotations,
    Clip,
    Finding,
    RowFault,
    Sheet,
    Unfit,
    read_sheet,
    read_units,
)
from ptsr_edge.data.catalog import (
    COMPOSITE,
    COMPOSITE_FOLDERS,
    RECORDED,
    Columns,
    Frames,
    FrameTree,
    RecordedSet,
    canonical,
    find_tree,
)
from ptsr_edge.data.extraction import decode_image, read_file

SHEET_DEPTH = 3
"""How far below the root a sheet is searched for."""

MEGC_TABLE = "combined_3_class2_for_optical_flow.csv"
MEGC_FOLDER = "STSNet_whole_norm_u_v_os"
MEGC_COLUMNS = ("dataset", "sub", "filename_o", "label")
MEGC_LAYOUT = f"accepted: a folder with {MEGC_TABLE} and {MEGC_FOLDER}/<sub>_<filename> .png"


def read_recorded(name: str, root: Path | None) -> Annotations:
    """Reads the clips of a recorded data set.

    Args:
        name: one of `RECORDED`.
        root: the folder with its sheet and its frames.

    Raises:
        InputError: there is no root, no sheet, no column or no folder of frames. Unfit rows raise nothing:
            they are listed in what is returned.
    """
    known = RECORDED[name]
    if root is None:
        raise InputError(f"data {name!r} needs a root; accepted: a folder with {known.layout}")
    if not root.is_dir():
        raise InputError(f"{root} is no folder; accepted: a folder with {known.layout}")
    path = find_sheet(root, known)
    sheet = read_sheet(path, known.columns.needed, known.worksheet)
    tree = find_tree(
        root, known.subject_folder, known.passed_over, known.clip_globs, known.inside, known.layout
    )
    return _Reader(known.name, known.columns, sheet, known, tree).read()


def read_composite(root: Path | None, skip_bad: bool = False) -> tuple[list[Annotations], list[Finding]]:
    """Reads the clips of MEGC2019's composite: CASME II, SMIC and SAMM, each in a folder of its name below the root.

    Args:
        root: holds `CASME2` (or `CASME II`), `SMIC` and `SAMM`, in any case.
        skip_bad: go on without a member that cannot be read.

    Returns:
        The annotations of each member, and what is missing.

    Raises:
        InputError: as `read_recorded`, for any member; or none of them can be read.
    """
    if root is None or not root.is_dir():
        given = "needs a root" if root is None else f"{root} is no folder"
        raise InputError(f"data 'megc2019': {given}; accepted: a folder with CASME2, SMIC and SAMM")
    sets, missing = [], []
    for name in COMPOSITE:
        try:
            sets.append(read_recorded(name, _member_folder(root, name)))
        except InputError as error:
            if not skip_bad:
                raise
            missing.append(Finding("data set", root, f"{name} is left out: {error}"))
    if not sets:
        raise InputError(f"none of {', '.join(COMPOSITE)} can be read: {missing[0].message}")
    return sets, missing


def find_sheet(root: Path, known: RecordedSet) -> Path:
    """Finds the sheet of a data set: in its root, up to three folders below, or beside the root.

    Raises:
        InputError: there is none, or there are several and none has the owners' name.
    """
    reached = [root]
    for _ in range(SHEET_DEPTH + 1):
        files = [path for folder in reached for path in sorted(folder.iterdir()) if path.is_file()]
        if chosen := _choose_sheet(files, known):
            return chosen
        reached = [path for folder in reached for path in sorted(folder.iterdir()) if _may_hold(path, known)]
    beside = [path for path in sorted(root.resolve().parent.iterdir()) if path.is_file()]
    if chosen := _choose_sheet(beside, known):
        return chosen
    raise InputError(
        f"{root} has no sheet {known.sheets[0]}.xlsx (or .csv) of {known.name}; accepted: {known.layout}"
    )


def _may_hold(path: Path, known: RecordedSet) -> bool:
    return path.is_dir() and not re.fullmatch(known.subject_folder, path.name, re.I)


def _choose_sheet(files: Iterable[Path], known: RecordedSet) -> Path | None:
    tables = [path for path in files if path.suffix.lower() in TABLE_SUFFIXES and path.name[0] not in ".~"]
    for pattern in known.sheets:
        fitting = [path for path in tables if fnmatch.fnmatchcase(path.stem.casefold(), pattern.casefold())]
        fitting.sort(key=lambda path: TABLE_SUFFIXES.index(path.suffix.lower()))
        if len({path.stem for path in fitting}) > 1:
            names = ", ".join(path.name for path in fitting)
            raise InputError(f"{fitting[0].parent} has several sheets of {known.name}: {names}; keep one")
        if fitting:
            return fitting[0]
    return None


def _member_folder(root: Path, name: str) -> Path:
    accepted = COMPOSITE_FOLDERS[name]
    fitting = [
        path
        for path in sorted(root.iterdir())
        if path.is_dir() and re.sub(r"[^a-z0-9]", "", path.name.casefold()) in accepted
    ]
    if len(fitting) == 1:
        return fitting[0]
    found = ", ".join(path.name for path in fitting or sorted(root.iterdir())) or "nothing"
    raise InputError(
        f"{root} must hold one folder of {RECORDED[name].title}, named {' or '.join(accepted)} (case, blanks "
        f"and signs do not matter); found: {found}"
    )


@dataclass
class RowReader(ABC):
    """Goes through a sheet, row by row, and collects what it reads; what a row means is said by its subclasses."""

    name: str
    columns: Columns
    sheet: Sheet
    clips: list[Clip] = field(default_factory=list, init=False)
    dropped: Counter[str] = field(default_factory=Counter, init=False)
    unfit: list[Unfit] = field(default_factory=list, init=False)
    odd: list[Finding] = field(default_factory=list, init=False)
    _seen: dict[str, int] = field(default_factory=dict, init=False)

    @abstractmethod
    def reason_to_drop(self, row: AnnotationRow) -> str:
        """Returns why the rules leave a row out, empty where they do not."""

    @abstractmethod
    def label(self, row: AnnotationRow) -> int:
        """Returns the class of a row."""

    @abstractmethod
    def clip(self, row: AnnotationRow, label: int) -> Clip:
        """Returns the clip of a row."""

    def read_rows(self) -> None:
        """Puts every row into `clips`, `dropped` or `unfit`."""
        for row in self.sheet.rows:
            label = None
            try:
                reason = self.reason_to_drop(row)
                if reason:
                    self.dropped[reason] += 1
                    continue
                label = self.label(row)
                self.clips.append(self.clip(row, label))
            except RowFault as fault:
                self.unfit.append(Unfit(self.finding("row", row, fault.message, fault.column), label))

    def once(self, name: str, row: AnnotationRow) -> None:
        """Refuses a name that an earlier row has."""
        if name in self._seen:
            raise RowFault(f"the same clip as in row {self._seen[name]}", self.columns.clip)
        self._seen[name] = row.number

    def frame_numbers(
        self, row: AnnotationRow, number_of: Callable[[str], int | None]
    ) -> tuple[int, int | None, int | None]:
        """Returns onset, apex and offset, the latter two None where the sheet has none that can be used.

        `number_of` reads the cell of a column.
        """
        columns = self.columns
        onset = number_of(columns.onset)
        if onset is None:
            raise RowFault(f"an onset is needed, found {row.text(columns.onset)!r}", columns.onset)
        apex = number_of(columns.apex) if columns.apex else None
        offset = number_of(columns.offset)
        if columns.apex and apex is not None and apex <= onset:
            where = "is the onset" if apex == onset else f"comes before the onset {onset}"
            raise RowFault(f"the apex {apex} {where}: there is no motion to measure", columns.apex)
        if offset is not None and offset <= onset:
            self.note(
                "offset", row, f"the offset {offset} does not come after the onset {onset}", columns.offset
            )
            offset = None
        elif offset is not None and apex is not None and offset < apex:
            self.note("offset", row, f"the offset {offset} comes before the apex {apex}", columns.offset)
        return onset, apex, offset

    def middle(self, row: AnnotationRow, frames: Frames, onset: int, offset: int | None) -> int:
        """Returns the frame that stands for an apex that the sheet does not have."""
        columns = self.columns
        last = offset if offset is not None else max(frames.by_number)
        middle = (onset + last) // 2
        after = [number for number in frames.by_number if onset < number <= last]
        if not after:
            raise RowFault(
                f"no frame lies between the onset {onset} and the offset {last} in {frames.folder} "
                f"({frames.describe()})", columns.offset,
            )  # fmt: skip
        apex = min(after, key=lambda number: (abs(number - middle), number))
        if columns.apex:
            found = row.text(columns.apex) or "nothing"
            self.note("apex", row, f"found {found}: the middle frame {apex} is taken", columns.apex)
        return apex

    def file(self, frames: Frames, number: int, column: str) -> Path:
        """Returns the file that holds a frame."""
        if number not in frames.by_number:
            raise RowFault(f"frame {number} is not in {frames.folder} ({frames.describe()})", column)
        return frames.by_number[number]

    def finding(self, kind: str, row: AnnotationRow, message: str, column: str | None) -> Finding:
        """Returns a finding about a row."""
        return Finding(kind, self.sheet.path, message, row.number, column)

    def note(self, kind: str, row: AnnotationRow, message: str, column: str) -> None:
        """Adds something odd about a row."""
        self.odd.append(self.finding(kind, row, message, column))


@dataclass
class _Reader(RowReader):
    """Reads the rows of a recorded set."""

    known: RecordedSet
    tree: FrameTree

    def read(self) -> Annotations:
        self.read_rows()
        others = self.tree.not_taken
        self.odd += [Finding("folder", path, f"is not read: {self.tree.base} is") for path in others]
        self.odd += [Finding("stray file", path, "is no frame and was passed over") for path in self._stray()]
        return Annotations(
            name=self.known.name,
            sheet=self.sheet.path,
            frames=self.tree.base,
            cropped=self.tree.cropped,
            rows=len(self.sheet.rows),
            clips=tuple(self.clips),
            dropped=dict(self.dropped),
            unfit=tuple(self.unfit),
            odd=tuple(self.odd),
        )

    def reason_to_drop(self, row: AnnotationRow) -> str:
        columns = self.known.columns
        if not row.text(columns.subject) and not row.text(columns.clip):
            return "rows without a clip"
        emotion = row.text(columns.emotion).casefold()
        if emotion in self.known.dropped:
            return emotion
        left_out = {(subject, canonical(clip)) for subject, clip in self.known.left_out}
        if left_out and (self._subject(row), canonical(row.text(columns.clip))) in left_out:
            return "not in MEGC2019's list"
        return ""

    def label(self, row: AnnotationRow) -> int:
        column = self.known.columns.emotion
        emotion = row.text(column).casefold()
        if emotion not in self.known.classes:
            accepted = ", ".join([*self.known.classes, *self.known.dropped])
            raise RowFault(f"unknown emotion {row.text(column)!r}; known: {accepted}", column)
        return self.known.classes[emotion]

    def _subject(self, row: AnnotationRow) -> int:
        column = self.known.columns.subject
        digits = re.findall(r"\d+", row.text(column))
        if not digits:
            raise RowFault(f"a subject's number is expected, found {row.text(column)!r}", column)
        return int(digits[-1])

    def clip(self, row: AnnotationRow, label: int) -> Clip:
        columns = self.known.columns
        number, name = self._subject(row), row.text(columns.clip)
        if not name:
            raise RowFault("the clip's name is empty", columns.clip)
        onset, apex, offset = self.frame_numbers(row, row.frame)
        frames = self.tree.frames(number, name, columns.subject, columns.clip)
        if not frames.by_number:
            raise RowFault(f"{frames.folder} holds no frames", columns.clip)
        frames = self._counted_by_place(row, frames, onset, offset)
        rule = "sheet"
        if apex is None:
            apex, rule = self.middle(row, frames, onset, offset), "midpoint"
        files = (self.file(frames, onset, columns.onset),
                 self.file(frames, apex, columns.apex or columns.offset))  # fmt: skip
        subject = f"{self.known.name}/{self.known.subject_name.format(number)}"
        full = f"{subject}/{name}" + (f"/{onset}" if self.known.named_by_onset else "")
        self.once(full, row)
        return Clip(
            data_set=self.known.name, subject=subject, name=full, label=label,
            emotion=row.text(columns.emotion), files=files,
            offset=None if offset is None else frames.by_number.get(offset),
            fps=self.known.fps, cropped=self.tree.cropped, sheet=self.sheet.path, row=row.number,
            apex_rule=rule, units=read_units(row.text(columns.units)) if columns.units else frozenset(),
        )  # fmt: skip

    def _counted_by_place(self, row: AnnotationRow, frames: Frames, onset: int, offset: int | None) -> Frames:
        """Returns the frames under the sheet's numbers where their own names count from elsewhere."""
        if not self.known.by_place or offset is None or onset in frames.by_number:
            return frames
        if len(frames.by_number) != offset - onset + 1:
            return frames
        message = f"the onset {onset} is no frame of {frames.folder} ({frames.describe()}): counted by place"
        self.note("frames", row, message, self.known.columns.onset)
        return Frames(frames.folder, dict(enumerate(frames.by_number.values(), start=onset)))

    def _stray(self) -> list[Path]:
        """Returns the files below the base that are neither a frame nor the sheet."""
        return [path for path in dict.fromkeys(self.tree.stray) if path != self.sheet.path]


def read_megc_flow(root: Path | None) -> list[Annotations]:
    """Reads the published flow fields: the clips of each data set in the table.

    A data set none of whose images is there counts as dropped: it was not handed out. Where a part is there,
    each missing image is an unfit row.

    Raises:
        InputError: no root, no table, no folder, no column, or no image at all.
    """
    if root is None:
        raise InputError(f"data 'megc-flow' needs a root; {MEGC_LAYOUT}")
    missing = [part for part in (MEGC_TABLE, MEGC_FOLDER) if not (root / part).exists()]
    if missing:
        found = "no such folder" if not root.is_dir() else f"no {' and no '.join(missing)}"
        raise InputError(f"{root} is no megc-flow: {found}; {MEGC_LAYOUT}")
    sheet = read_sheet(root / MEGC_TABLE, MEGC_COLUMNS)
    by_set: dict[str, list[AnnotationRow]] = {}
    for row in sheet.rows:
        by_set.setdefault(row.text("dataset"), []).append(row)
    sets = [_read_set(root, sheet, name, rows) for name, rows in by_set.items()]
    if not any(part.clips for part in sets) and not any(part.unfit for part in sets):
        raise InputError(
            f"{root} holds none of the {len(sheet.rows)} images that its table lists; {MEGC_LAYOUT}"
        )
    return sets


def read_fields(clips: Sequence[Clip]) -> tuple[list[NDArray[np.float32]], dict[str, Finding]]:
    """Reads the images of published flow fields.

    Returns:
        (H, W, 3) float32 in [0, 1] of each clip whose image could be read, in their order: u, v, strain; and
        what is wrong with the others, by name.
    """
    fields: list[NDArray[np.float32]] = []
    faults: dict[str, Finding] = {}
    for clip in progress(clips, "reading images", len(clips)):
        (path,) = clip.files
        try:
            strain_v_u = decode_image(read_file(path), path, "PNG image").astype(np.float32) / np.float32(255)
            fields.append(np.ascontiguousarray(strain_v_u[..., ::-1], dtype=np.float32))
        except RowFault as fault:
            faults[clip.name] = clip.fault(fault)
    return fields, faults


def _read_set(root: Path, sheet: Sheet, name: str, rows: list[AnnotationRow]) -> Annotations:
    clips: list[Clip] = []
    unfit: list[Unfit] = []
    absent: list[Clip] = []
    for row in rows:
        try:
            clip = _parse(root, sheet, row)
            (clips if clip.files[0].is_file() else absent).append(clip)
        except RowFault as fault:
            unfit.append(Unfit(Finding("row", sheet.path, fault.message, row.number, fault.column), None))
    dropped: Counter[str] = Counter()
    if absent and not clips:
        dropped[f"{name} is not here"] = len(absent)
    else:
        unfit += [Unfit(clip.fault(_missing(clip, len(absent), len(rows))), clip.label) for clip in absent]
    return Annotations(
        name=name, sheet=sheet.path, frames=root / MEGC_FOLDER, cropped=True, rows=len(rows),
        clips=tuple(clips), dropped=dict(dropped), unfit=tuple(unfit),
    )  # fmt: skip


def _missing(clip: Clip, absent: int, rows: int) -> RowFault:
    return RowFault(
        f"{clip.files[0]} is missing ({absent} of the {rows} clips of {clip.data_set} are); a data set must be "
        "complete or wholly absent"
    )


def _parse(root: Path, sheet: Sheet, row: AnnotationRow) -> Clip:
    data_set, subject, name, label = (row.text(column) for column in MEGC_COLUMNS)
    for column, value in zip(MEGC_COLUMNS, (data_set, subject, name), strict=False):
        if not value:
            raise RowFault(f"{', '.join(MEGC_COLUMNS[:3])} must not be empty", column)
    if label not in {str(number) for number in range(len(LABELS))}:
        raise RowFault(
            f"label must be 0 to {len(LABELS) - 1} ({', '.join(LABELS)}), found {label!r}", "label"
        )
    # The blank before the dot is the publisher's.
    image = root / MEGC_FOLDER / f"{subject}_{name} .png"
    return Clip(
        data_set=data_set, subject=f"{data_set}/{subject}", name=f"{data_set}/{subject}/{name}",
        label=int(label), emotion=LABELS[int(label)], files=(image,), offset=None, fps=0, cropped=True,
        sheet=sheet.path, row=row.number,
    )  # fmt: skip
