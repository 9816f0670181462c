"""Data sets by name, as labelled flow samples.

load("synthetic", image_size=112)                    rendered here, no files needed
load("megc-flow", root, image_size=28)               flow fields published for MEGC2019's composite
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptsr_edge import flow as flow_module
from ptsr_edge import synthetic
from ptsr_edge.config import LABELS, Preprocess
from ptsr_edge.console import progress
from ptsr_edge.errors import InputError, require
from ptsr_edge.png import png_fault

log = logging.getLogger("ptsr_edge")

MEGC_TABLE = "combined_3_class2_for_optical_flow.csv"
MEGC_FOLDER = "STSNet_whole_norm_u_v_os"
_MEGC_LAYOUT = f"accepted: a folder with {MEGC_TABLE} and {MEGC_FOLDER}/<sub>_<filename> .png"
_MEGC_COLUMNS = ("dataset", "sub", "filename_o", "label")


@dataclass(frozen=True)
class FlowData:
    """Labelled flow samples before normalisation.

    Attributes:
        flows: (n, S, S, 3) float32: u, v, strain.
        labels: (n,) int64, an index into `label_names`.
        subjects: (n,) str: who is seen; unique over data sets, such as "casme2/sub01".
        names: the n clips' names, each unique.
        label_names: the classes in the order of their numbers.
        preprocess: how the samples were made.
        source: the data set's name.
    """

    flows: NDArray[np.float32]
    labels: NDArray[np.int64]
    subjects: NDArray[np.str_]
    names: list[str]
    label_names: tuple[str, ...]
    preprocess: Preprocess
    source: str

    def __len__(self) -> int:
        return len(self.names)

    @property
    def subject_names(self) -> list[str]:
        """Each subject once, sorted."""
        return sorted({str(subject) for subject in self.subjects})

    def subset(self, mask: NDArray[np.bool_] | NDArray[np.integer]) -> FlowData:
        """The samples where a boolean mask (n,) is true, or at integer places, in that order."""
        places = np.arange(len(self))[mask]
        return dataclasses.replace(
            self,
            flows=self.flows[places],
            labels=self.labels[places],
            subjects=self.subjects[places],
            names=[self.names[place] for place in places],
        )

    def of_subjects(self, subjects: Sequence[str]) -> FlowData:
        """The samples of some subjects, in the order they have here."""
        return self.subset(np.isin(self.subjects, list(subjects)))

    def digest(self) -> str:
        """SHA-256 over flows, labels and subjects: which data exactly a model has seen."""
        digest = hashlib.sha256(f"{self.flows.shape}".encode())
        digest.update(np.ascontiguousarray(self.flows, dtype="<f4").data)
        digest.update(np.ascontiguousarray(self.labels, dtype="<i8").data)
        digest.update("\n".join(str(subject) for subject in self.subjects).encode())
        return digest.hexdigest()


def load(
    name: str,
    root: Path | str | None = None,
    *,
    image_size: int,
    subjects: Sequence[str] | None = None,
    seed: int = 0,
    limit: int | None = None,
) -> FlowData:
    """Loads a data set by name.

    Args:
        name: one of `DATA_NAMES`.
        root: the folder that the data lies in; `synthetic` has none.
        image_size: side of the samples in pixels.
        subjects: only these; by default all.
        seed: of what is rendered (`synthetic`); data from files does not depend on it.
        limit: at most that many clips of each subject, the first ones.

    Raises:
        InputError: the name, the root, a subject or a size is not acceptable, or a file is missing or
            cannot be read; the message says what was found and what is accepted.
        MissingExtraError: OpenCV is not installed.
    """
    if name not in _LOADERS:
        near = difflib.get_close_matches(name, DATA_NAMES, n=1, cutoff=0.0)[0]
        raise InputError(f"unknown data {name!r}; known: {', '.join(DATA_NAMES)} (nearest: {near})")
    if image_size < flow_module.MIN_FRAME:
        raise InputError(f"image_size must be at least {flow_module.MIN_FRAME}, got {image_size}")
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1 clip a subject, got {limit}")
    return _LOADERS[name](Path(root) if root is not None else None, image_size, subjects, seed, limit)


def split_subjects(
    subjects: Sequence[str] | NDArray[np.str_], held_out_fraction: float, seed: int
) -> tuple[list[str], list[str]]:
    """Draws the subjects that training will not see.

    Args:
        subjects: names; a name may come more than once, as in `FlowData.subjects`.
        held_out_fraction: share of the subjects to hold out, in (0, 1).
        seed: of the draw.

    Returns:
        (train, held out): two sorted lists without a common name, neither empty.

    Raises:
        InputError: the fraction is out of range or there are fewer than two subjects.
    """
    if not 0 < held_out_fraction < 1:
        raise InputError(f"held_out_fraction must be in (0, 1), got {held_out_fraction:g}")
    names = sorted({str(subject) for subject in subjects})
    if len(names) < 2:
        raise InputError(f"a split by subject needs at least 2 subjects, found {len(names)}")
    count = min(max(1, round(held_out_fraction * len(names))), len(names) - 1)
    order = np.random.default_rng(seed).permutation(len(names))
    held = {names[place] for place in order[:count]}
    return [name for name in names if name not in held], sorted(held)


def _load_synthetic(
    root: Path | None, image_size: int, subjects: Sequence[str] | None, seed: int, limit: int | None
) -> FlowData:
    """Rendered frames, their flow measured as a camera's is."""
    if root is not None:
        in_files = ", ".join(name for name in DATA_NAMES if name != "synthetic")
        raise InputError(
            f"data 'synthetic' is rendered and lies in no folder, got {root}; data in files: {in_files}"
        )
    known = synthetic.subject_names()
    numbers = [known.index(name) for name in check_subjects(subjects, known)]
    clips = min(limit or synthetic.CLIPS_PER_SUBJECT, synthetic.CLIPS_PER_SUBJECT)
    preprocess = Preprocess(image_size=image_size)
    flows = np.empty((len(numbers), clips, image_size, image_size, 3), dtype=np.float32)
    labels = np.empty((len(numbers), clips), dtype=np.int64)
    # Threads, not processes: NumPy and OpenCV release the interpreter where the time goes, and a
    # caller's script needs no guard around its main part.
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        rendered = pool.map(lambda number: synthetic.render_subject(number, clips, preprocess, seed), numbers)
        for place, parts in enumerate(progress(rendered, "rendering faces", len(numbers))):
            flows[place], labels[place] = parts
    return FlowData(
        flows=flows.reshape(-1, image_size, image_size, 3),
        labels=labels.reshape(-1),
        subjects=np.repeat([known[number] for number in numbers], clips),
        names=[f"{known[number]}/{clip:02d}" for number in numbers for clip in range(clips)],
        label_names=LABELS,
        preprocess=preprocess,
        source="synthetic",
    )


def _load_megc_flow(
    root: Path | None, image_size: int, subjects: Sequence[str] | None, _seed: int, limit: int | None
) -> FlowData:
    """Flow fields published beside HTNet: 28 x 28 PNGs, u, v and strain min-max scaled per image."""
    if root is None:
        raise InputError(f"data 'megc-flow' needs a root; {_MEGC_LAYOUT}")
    rows = _chosen(_present_rows(root, _read_table(root)), subjects, limit)
    flows = np.stack([flow_module.resize(_read_png(row), image_size) for row in rows])
    return FlowData(
        flows=flows,
        labels=np.array([row.label for row in rows], dtype=np.int64),
        subjects=np.array([row.subject for row in rows]),
        names=[row.name for row in rows],
        label_names=LABELS,
        preprocess=Preprocess(image_size=image_size, flow="published", global_motion="none"),
        source="megc-flow",
    )


@dataclass(frozen=True)
class _Row:
    """A line of the table; `line` counts from 1 with the heading."""

    line: int
    data_set: str
    subject: str
    name: str
    label: int
    image: Path


def _read_table(root: Path) -> list[_Row]:
    table = root / MEGC_TABLE
    missing = [part for part in (MEGC_TABLE, MEGC_FOLDER) if not (root / part).exists()]
    if missing:
        found = "no such folder" if not root.is_dir() else f"no {' and no '.join(missing)}"
        raise InputError(f"{root} is no megc-flow: {found}; {_MEGC_LAYOUT}")
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            columns = reader.fieldnames or []
            absent = [column for column in _MEGC_COLUMNS if column not in columns]
            if absent:
                raise InputError(
                    f"{table} has no column {', '.join(absent)}; found: {', '.join(columns) or 'nothing'}"
                )
            return [_parse_row(table, line, cells) for line, cells in enumerate(reader, start=2)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table} is no readable CSV table: {error}") from None


def _parse_row(table: Path, line: int, cells: dict[str, str | None]) -> _Row:
    data_set, subject, clip, label = ((cells[column] or "").strip() for column in _MEGC_COLUMNS)
    if not (data_set and subject and clip):
        raise InputError(f"{table}, line {line}: {', '.join(_MEGC_COLUMNS[:3])} must not be empty")
    if label not in {str(number) for number in range(len(LABELS))}:
        raise InputError(
            f"{table}, line {line}: label must be 0 to {len(LABELS) - 1} ({', '.join(LABELS)}), "
            f"found {label!r}"
        )
    # The blank before the dot is the publisher's.
    image = table.parent / MEGC_FOLDER / f"{subject}_{clip} .png"
    return _Row(line, data_set, f"{data_set}/{subject}", f"{data_set}/{subject}/{clip}", int(label), image)


def _present_rows(root: Path, rows: list[_Row]) -> list[_Row]:
    """The rows of the data sets that are here; one of which only a part is here is an error."""
    present: list[_Row] = []
    for data_set in dict.fromkeys(row.data_set for row in rows):
        of_set = [row for row in rows if row.data_set == data_set]
        missing = [row for row in of_set if not row.image.is_file()]
        if len(missing) == len(of_set):
            log.info("megc-flow: %s is not in %s: its %d clips are left out", data_set, root, len(of_set))
        elif missing:
            row = missing[0]
            raise InputError(
                f"{root / MEGC_TABLE}, line {row.line}: {row.image} is missing ({len(missing)} of the "
                f"{len(of_set)} clips of {data_set} are); a data set must be complete or wholly absent"
            )
        else:
            present += of_set
    if not present:
        raise InputError(f"{root} holds none of the {len(rows)} images that its table lists; {_MEGC_LAYOUT}")
    return present


def _chosen(rows: list[_Row], subjects: Sequence[str] | None, limit: int | None) -> list[_Row]:
    known = sorted({row.subject for row in rows})
    wanted = set(check_subjects(subjects, known))
    taken = dict.fromkeys(known, 0)
    chosen = []
    for row in rows:
        if row.subject in wanted and (limit is None or taken[row.subject] < limit):
            taken[row.subject] += 1
            chosen.append(row)
    return chosen


def check_subjects(subjects: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """The subjects to load, in the order of `known`; all where none are named.

    Raises:
        InputError: an unknown one; the message names the nearest. An empty list.
    """
    if subjects is None:
        return list(known)
    for subject in subjects:
        if subject not in known:
            near = difflib.get_close_matches(str(subject), known, n=1, cutoff=0.0)[0]
            raise InputError(f"unknown subject {subject!r}; there are {len(known)} (nearest: {near})")
    if not len(subjects):
        raise InputError("the list of subjects is empty")
    return [subject for subject in known if subject in set(subjects)]


def _read_png(row: _Row) -> NDArray[np.float32]:
    """(H, W, 3) float32 in [0, 1]: u, v, strain."""
    cv2 = require("cv2", "train", "reading megc-flow")
    where = f"{row.image} (line {row.line} of {MEGC_TABLE})"
    try:
        # Through a buffer: OpenCV's own file reading prints warnings and knows no Unicode paths on Windows.
        content = row.image.read_bytes()
    except OSError as error:
        raise InputError(f"{where} cannot be read: {error.strerror}") from None
    fault = png_fault(content)
    if fault:
        raise InputError(f"{where} is no readable PNG image: {fault}")
    try:
        image = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise InputError(f"{where} is no readable PNG image: {error.err}") from None
    if image is None:
        raise InputError(f"{where} is no readable PNG image: OpenCV {cv2.__version__} refuses its pixels")
    strain_v_u = image.astype(np.float32) / 255
    return np.ascontiguousarray(strain_v_u[..., ::-1])


_Loader = Callable[[Path | None, int, Sequence[str] | None, int, int | None], FlowData]
_LOADERS: dict[str, _Loader] = {"synthetic": _load_synthetic, "megc-flow": _load_megc_flow}

DATA_NAMES = tuple(_LOADERS)
"""The data sets that `load` knows."""
