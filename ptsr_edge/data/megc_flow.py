"""Flow fields published beside HTNet for MEGC2019's composite, as clips of one image each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.core.config import LABELS
from ptsr_edge.core.console import progress
from ptsr_edge.core.errors import InputError
from ptsr_edge.data.annotations import Annotations, Clip, Finding, Row, RowFault, Sheet, Unfit, read_sheet
from ptsr_edge.data.extraction import decode_image, read_file

TABLE = "combined_3_class2_for_optical_flow.csv"
FOLDER = "STSNet_whole_norm_u_v_os"
LAYOUT = f"accepted: a folder with {TABLE} and {FOLDER}/<sub>_<filename> .png"
COLUMNS = ("dataset", "sub", "filename_o", "label")


def read_megc_flow(root: Path | None) -> list[Annotations]:
    """The clips of each data set in the table.

    A data set none of whose images is there counts as dropped: it was not handed out. Where a part is there,
    each missing image is an unfit row.

    Raises:
        InputError: no root, no table, no folder, no column, or no image at all.
    """
    if root is None:
        raise InputError(f"data 'megc-flow' needs a root; {LAYOUT}")
    missing = [part for part in (TABLE, FOLDER) if not (root / part).exists()]
    if missing:
        found = "no such folder" if not root.is_dir() else f"no {' and no '.join(missing)}"
        raise InputError(f"{root} is no megc-flow: {found}; {LAYOUT}")
    sheet = read_sheet(root / TABLE, COLUMNS)
    by_set: dict[str, list[Row]] = {}
    for row in sheet.rows:
        by_set.setdefault(row.text("dataset"), []).append(row)
    sets = [_read_set(root, sheet, name, rows) for name, rows in by_set.items()]
    if not any(part.clips for part in sets) and not any(part.unfit for part in sets):
        raise InputError(f"{root} holds none of the {len(sheet.rows)} images that its table lists; {LAYOUT}")
    return sets


def read_fields(clips: Sequence[Clip]) -> tuple[list[NDArray[np.float32]], dict[str, Finding]]:
    """The flow fields of clips.

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


def _read_set(root: Path, sheet: Sheet, name: str, rows: list[Row]) -> Annotations:
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
        name=name, sheet=sheet.path, frames=root / FOLDER, cropped=True, rows=len(rows),
        clips=tuple(clips), dropped=dict(dropped), unfit=tuple(unfit),
    )  # fmt: skip


def _missing(clip: Clip, absent: int, rows: int) -> RowFault:
    return RowFault(
        f"{clip.files[0]} is missing ({absent} of the {rows} clips of {clip.data_set} are); a data set must be "
        "complete or wholly absent"
    )


def _parse(root: Path, sheet: Sheet, row: Row) -> Clip:
    data_set, subject, name, label = (row.text(column) for column in COLUMNS)
    for column, value in zip(COLUMNS, (data_set, subject, name), strict=False):
        if not value:
            raise RowFault(f"{', '.join(COLUMNS[:3])} must not be empty", column)
    if label not in {str(number) for number in range(len(LABELS))}:
        raise RowFault(
            f"label must be 0 to {len(LABELS) - 1} ({', '.join(LABELS)}), found {label!r}", "label"
        )
    # The blank before the dot is the publisher's.
    image = root / FOLDER / f"{subject}_{name} .png"
    return Clip(
        data_set=data_set, subject=f"{data_set}/{subject}", name=f"{data_set}/{subject}/{name}",
        label=int(label), emotion=LABELS[int(label)], files=(image,), offset=None, fps=0, cropped=True,
        sheet=sheet.path, row=row.number,
    )  # fmt: skip
