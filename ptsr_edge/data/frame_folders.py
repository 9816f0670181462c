"""Folders of frames as they lie on disk: base / subject / clip / frames, with all that goes wrong there.

Names are matched without their leading zeros and case: `s01_ne_01` is `s1_ne_01`, `spNO.1` is `spNo.1`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from ptsr_edge.core.errors import InputError
from ptsr_edge.data.annotations import RowFault
from ptsr_edge.data.extraction import IMAGE_SUFFIXES

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
