"""The recorded data sets: their sheets, folders, classes and published counts, as data; and their folders as they lie on disk.

The three classes are those of MEGC2019's composite (See et al., MEGC 2019 - The Second Facial
Micro-Expressions Grand Challenge, FG 2019): happiness is positive, surprise is surprise, anger, contempt,
disgust, fear, sadness and repression are negative; what the sheet calls others is dropped.

On the disk they are base / subject / clip / frames, with all that goes wrong there (`find_tree`). Names are matched without
their leading zeros and case: `s01_ne_01` is `s1_ne_01`, `spNO.1` is `spNo.1`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from ptsr_edge.core.errors import InputError
from ptsr_edge.data.annotations import Published, RowFault
from ptsr_edge.data.extraction import IMAGE_SUFFIXES

NEGATIVE, POSITIVE, SURPRISE = 0, 1, 2
"""Places in `config.LABELS`."""

SIGNED = (
    "whose licence, signed with its owners, allows non-commercial academic research only and no passing on"
)
"""Half a sentence on the licence of every recorded set, for the card of a model."""


@dataclass(frozen=True)
class Columns:
    """Headings of a sheet; `apex` is None where there is no such column, and a sheet may lack that of `units`."""

    subject: str
    clip: str
    onset: str
    apex: str | None
    offset: str
    emotion: str
    units: str | None = None

    @property
    def needed(self) -> tuple[str, ...]:
        """The headings that must be there."""
        named = (self.subject, self.clip, self.onset, self.apex, self.offset, self.emotion)
        return tuple(name for name in named if name is not None)


@dataclass(frozen=True)
class RecordedSet:
    """A data set that is a sheet and folders of frames: all that is needed to read it.

    Attributes:
        name: as in `datasets.load`.
        title: as its owners call it.
        fps: frames per second.
        sheets: names of its table, without suffix: the first is the owners', the others are met too; a
            pattern after `fnmatch`.
        worksheet: of the workbook; None for its first.
        columns: of the sheet.
        subject_folder: pattern of a subject's folder, whose last digits are the number.
        subject_name: how subjects are named here, the same as in the published flow fields.
        clip_globs: where below a subject its clips lie.
        inside: folder of the frames within a clip.
        passed_over: folders that are another camera's.
        classes: emotion of the sheet, lower case: class.
        dropped: emotions that are none of the three.
        left_out: (subject, clip) that the composite's published list does not have.
        published: counts to compare with.
        layout: what the folder must look like, for messages.
        by_place: whether frames may be counted from the clip's first one, where the names have other numbers.
        named_by_onset: whether a clip's name needs its onset to be unique.
    """

    name: str
    title: str
    fps: int
    sheets: tuple[str, ...]
    columns: Columns
    subject_folder: str
    subject_name: str
    clip_globs: tuple[str, ...]
    classes: dict[str, int]
    dropped: tuple[str, ...]
    published: Published
    layout: str
    worksheet: str | None = None
    inside: str = ""
    passed_over: str = r"$^"
    left_out: frozenset[tuple[int, str]] = field(default_factory=frozenset)
    by_place: bool = False
    named_by_onset: bool = False


CASME2 = RecordedSet(
    name="casme2",
    title="CASME II",
    fps=200,
    sheets=("CASME2-coding-20140508", "CASME2-coding*"),
    columns=Columns(
        "Subject", "Filename", "OnsetFrame", "ApexFrame", "OffsetFrame", "Estimated Emotion", "Action Units"
    ),
    subject_folder=r"sub\d+",
    subject_name="sub{:02d}",
    clip_globs=("*",),
    classes={"happiness": POSITIVE, "disgust": NEGATIVE, "repression": NEGATIVE, "surprise": SURPRISE},
    dropped=("others", "sadness", "fear"),
    left_out=frozenset({(4, "EP12_01f"), (24, "EP02_07")}),
    published=Published(145, (88, 32, 25), 24),
    layout="CASME2-coding-20140508.xlsx and Cropped/sub01/EP02_01f/reg_img46.jpg, or "
    "CASME2_RAW_selected/sub01/EP02_01f/img46.jpg",
)
SAMM = RecordedSet(
    name="samm",
    title="SAMM",
    fps=200,
    sheets=("SAMM_Micro_FACS_Codes_v2", "*SAMM*Micro_FACS_Codes*"),
    columns=Columns(
        "Subject", "Filename", "Onset Frame", "Apex Frame", "Offset Frame", "Estimated Emotion", "Action Units"
    ),
    subject_folder=r"\d{1,3}",
    subject_name="{:03d}",
    clip_globs=("*",),
    classes={
        "happiness": POSITIVE, "surprise": SURPRISE, "anger": NEGATIVE, "contempt": NEGATIVE,
        "disgust": NEGATIVE, "fear": NEGATIVE, "sadness": NEGATIVE,
    },
    dropped=("other", "others"),
    published=Published(133, (92, 26, 15), 28),
    layout="SAMM_Micro_FACS_Codes_v2.xlsx and 006/006_1_2/006_05562.jpg",
)  # fmt: skip
SMIC = RecordedSet(
    name="smic",
    title="SMIC-HS",
    fps=100,
    sheets=("SMIC-HS-E_annotation", "SMIC-HS-E_annotation*"),
    columns=Columns("Subject", "Filename", "OnsetF", None, "OffsetF", "Emotion"),
    subject_folder=r"s\d+",
    subject_name="s{:02d}",
    clip_globs=("micro/*/*", "*"),
    classes={"negative": NEGATIVE, "positive": POSITIVE, "surprise": SURPRISE},
    dropped=(),
    passed_over=r"(?<![a-z])(vis|nir)(?![a-z])|non_micro",
    published=Published(164, (70, 51, 43), 16),
    layout="SMIC-HS-E_annotation.xlsx and SMIC_all_cropped/HS/s1/micro/negative/s1_ne_01/*.bmp",
    by_place=True,
)
CASME3 = RecordedSet(
    name="casme3",
    title="CAS(ME)^3 part A",
    fps=30,
    sheets=("cas(me)3_part_A_ME_label_JpgIndex_v2", "cas(me)3_part_A_ME*", "casme3_part_A_annotations*"),
    worksheet="label",
    columns=Columns("Subject", "Filename", "Onset", "Apex", "Offset", "emotion", "AU"),
    subject_folder=r"spno\.\d+",
    subject_name="spNO.{:d}",
    clip_globs=("*",),
    inside="color",
    classes={
        "happy": POSITIVE, "surprise": SURPRISE, "disgust": NEGATIVE, "fear": NEGATIVE, "anger": NEGATIVE,
        "sad": NEGATIVE,
    },
    dropped=("others",),
    published=Published(rows=860),
    layout="cas(me)3_part_A_ME_label_JpgIndex_v2.xlsx and spNO.1/b/color/175.jpg",
    named_by_onset=True,
)  # fmt: skip

RECORDED = {known.name: known for known in (CASME2, SAMM, SMIC, CASME3)}
"""The data sets that are read from their frames."""

COMPOSITE = ("casme2", "smic", "samm")
"""Members of `megc2019` and of the published flow fields."""

COMPOSITE_FOLDERS = {
    "casme2": ("casme2", "casmeii"),
    "smic": ("smic", "smichs", "smicallcropped", "smicallraw"),
    "samm": ("samm",),
}
"""Names of a member's folder in the composite's root, in lower case and without what is no letter or digit."""


DEPTH = 5
"""How far below the root the folder with the subjects is searched for."""


def canonical(name: str) -> str:
    """Returns a name in lower case and without leading zeros: `S01_ne_01` and `s1_ne_1` are one."""
    return re.sub(r"\d+", lambda digits: str(int(digits[0])), name.strip().casefold())


def frame_number(path: Path) -> int | None:
    """Returns the last number in a file's name: 46 of `reg_img46.jpg`, 5562 of `006_05562.jpg`."""
    found = re.findall(r"\d+", path.stem)
    return int(found[-1]) if found else None


@dataclass(frozen=True)
class Frames:
    """The frames of one folder by number.

    Attributes:
        folder: where they lie, or the video that holds them all.
        by_number: file of each frame, in the order of the numbers.
    """

    folder: Path
    by_number: dict[int, Path]

    def describe(self) -> str:
        """Describes what is there, for a message."""
        numbers = list(self.by_number)
        return f"{len(numbers)} frames, {numbers[0]} to {numbers[-1]}" if numbers else "no frames"


@dataclass
class FrameTree:
    """The folders of all subjects of one data set.

    Attributes:
        base: the folder that holds the subjects' folders.
        cropped: whether its name says that the frames are face crops.
        clip_globs: where below a subject its clips lie; the first pattern that finds a clip counts.
        inside: a folder within each clip that holds the frames, such as "color"; may be empty.
        subjects: folders of each subject number; two where `s1` and `s01` are both there.
        stray: files that are no frames.
        not_taken: other folders of subjects below the same root.
    """

    base: Path
    cropped: bool
    clip_globs: tuple[str, ...]
    inside: str
    subjects: dict[int, list[Path]]
    stray: list[Path] = field(default_factory=list)
    not_taken: list[Path] = field(default_factory=list)
    _clips: dict[int, dict[str, list[Path]]] = field(default_factory=dict, repr=False)
    _frames: dict[Path, Frames] = field(default_factory=dict, repr=False)

    def frames(self, subject: int, clip: str, subject_column: str, clip_column: str) -> Frames:
        """Returns the frames of a clip.

        Raises:
            RowFault: there is no such subject or clip, or more than one that fits.
        """
        if subject not in self.subjects:
            raise RowFault(f"no folder of subject {subject} in {self.base}", subject_column)
        folder = self._folder(subject, clip, clip_column)
        if folder not in self._frames:
            self._frames[folder], stray = read_frames(self._home(folder))
            self.stray += stray
        return self._frames[folder]

    def _folder(self, subject: int, clip: str, column: str) -> Path:
        if subject not in self._clips:
            self._clips[subject] = self._clips_of(subject)
        clips = self._clips[subject]
        fitting = clips.get(canonical(clip), [])
        for same in (
            [folder for folder in fitting if folder.name == clip],
            [folder for folder in fitting if folder.name.casefold() == clip.casefold()],
            fitting,
        ):
            if len(same) == 1:
                return same[0]
        where = " and ".join(str(folder) for folder in self.subjects[subject])
        if fitting:
            names = ", ".join(str(folder) for folder in sorted(fitting))
            raise RowFault(f"several folders fit the clip {clip!r}: {names}", column)
        raise RowFault(f"no folder of the clip {clip!r} in {where}, which has {len(clips)} clips", column)

    def _clips_of(self, subject: int) -> dict[str, list[Path]]:
        clips: dict[str, list[Path]] = {}
        for pattern in self.clip_globs:
            for home in self.subjects[subject]:
                self.stray += sorted(path for path in home.iterdir() if path.is_file())
                for folder in sorted(home.glob(pattern)):
                    if folder.is_dir():
                        clips.setdefault(canonical(folder.name), []).append(folder)
            if clips:
                break
        return clips

    def _home(self, clip: Path) -> Path:
        """Returns the folder that holds the frames of a clip: its folder, or the one of the name `inside` within."""
        named = [path for path in clip.iterdir() if path.name.casefold() == self.inside and path.is_dir()]
        return named[0] if named else clip


def read_frames(folder: Path) -> tuple[Frames, list[Path]]:
    """Returns the frames of a folder by the last number in their names, and the files that are no frames."""
    by_number: dict[int, Path] = {}
    stray = []
    for path in sorted(folder.iterdir()):
        number = frame_number(path)
        if not path.is_file():
            continue
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith(".") or number is None:
            stray.append(path)
        elif number in by_number:
            stray.append(path)  # a second file of the same frame
        else:
            by_number[number] = path
    return Frames(folder, dict(sorted(by_number.items()))), stray


def find_tree(
    root: Path,
    subject: str,
    passed_over: str,
    clip_globs: tuple[str, ...],
    inside: str = "",
    layout: str = "",
) -> FrameTree:
    """Finds the folder that holds the subjects' folders, at or below a root, however deep it is nested.

    Where there are face crops (a folder with "crop" in its name) and whole frames, the crops are taken.

    Args:
        root: where to search.
        subject: pattern of a subject folder's name; its last group of digits is the number.
        passed_over: pattern of folder names that are not gone into, such as those of another camera.
        clip_globs: as in `FrameTree`.
        inside: as in `FrameTree`.
        layout: what is accepted, for the message.

    Raises:
        InputError: there is no such folder, or several that are alike.
    """
    found: list[tuple[bool, int, Path]] = []
    for folder, depth in _folders(root, re.compile(subject, re.I), re.compile(passed_over, re.I)):
        if any(re.fullmatch(subject, path.name, re.I) for path in _children(folder)):
            found.append((_says_cropped(root, folder), depth, folder))
    if not found:
        raise InputError(f"{root} holds no folder with subjects; accepted: {layout}")
    cropped = any(crop for crop, _, _ in found)
    alike = sorted((depth, folder) for crop, depth, folder in found if crop == cropped)
    if len(alike) > 1 and alike[0][0] == alike[1][0]:
        names = ", ".join(str(folder) for _, folder in alike)
        raise InputError(
            f"{root} holds several folders of subjects that are alike: {names}; keep one of them"
        )
    base = alike[0][1]
    subjects: dict[int, list[Path]] = {}
    stray = [path for path in sorted(base.iterdir()) if path.is_file()]
    for path in sorted(_children(base)):
        if re.fullmatch(subject, path.name, re.I):
            subjects.setdefault(int(re.findall(r"\d+", path.name)[-1]), []).append(path)
    others = [folder for _, _, folder in found if folder != base]
    return FrameTree(base, cropped, clip_globs, inside, subjects, stray, others)


def _folders(root: Path, subject: re.Pattern[str], passed_over: re.Pattern[str]) -> list[tuple[Path, int]]:
    """Lists the folders at or below the root, none within a subject's, each with its depth."""
    reached = [(root, 0)]
    for folder, depth in reached:  # grows while it is walked: breadth first
        if depth < DEPTH:
            reached += [
                (path, depth + 1)
                for path in sorted(_children(folder))
                if not subject.fullmatch(path.name) and not passed_over.search(path.name)
            ]
    return reached


def _children(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return [Path(entry.path) for entry in entries if entry.is_dir() and entry.name[0] not in "._"]
    except OSError as error:
        raise InputError(f"{folder} cannot be looked into: {error.strerror}") from None


def _says_cropped(root: Path, folder: Path) -> bool:
    """Tells whether names say that frames are face crops; the names below the root count first."""
    below = "/".join(folder.relative_to(root).parts).casefold()
    if "crop" in below or "raw" in below:
        return "crop" in below
    above = root.name + (root.parent.name if folder == root else "")  # SMIC_all_cropped/HS
    return "crop" in above.casefold()
