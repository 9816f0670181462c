"""Small trees in the layouts of the recorded data sets, with their names, columns and quirks, and rendered faces.

Nothing of the recorded sets is in them: rows, frame numbers and faces are made up.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openpyxl

from ptsr_edge.data import synthetic_clips as synthetic

CASME2_HEADING = ("Subject", "Filename", None, "OnsetFrame", "ApexFrame", "OffsetFrame", None, "Action Units",
                  "Estimated Emotion")  # fmt: skip
CASME2_ROWS: list[tuple[Any, ...]] = [
    # row 2 on; the subject is text
    ("01", "EP02_01f", None, 46, 59, 86, None, "12", "happiness"),
    ("01", "EP19_05f", None, 51, "/", 61, None, "4+7", "disgust"),  # no apex: the middle, 56
    ("01", "EP01_2", None, "30", 35, 41, None, "4", "repression"),  # text in a numeric cell
    ("02", "EP09_10", None, 10, 15, 21, None, "4", "others"),
    ("02", "EP03_02f", None, 1, 4, 9, None, "1+2", "surprise"),
    ("02", "EP08_04", None, 5, 8, 12, None, "1+4", "fear"),
    ("04", "EP12_01f", None, 7, 9, 12, None, "4", "disgust"),  # not in the composite's list
    ("17", "EP06_08", None, 200, 210, 195, None, "4", "disgust"),  # offset before apex: odd, but usable
]
SAMM_HEADING = ("Subject", "Filename", "Inducement Code", "Onset Frame", "Apex Frame", "Offset Frame", "Duration",
                "Micro", "Action Units", "Estimated Emotion", "Objective Classes", "Notes")  # fmt: skip
SAMM_ROWS: list[tuple[Any, ...]] = [
    # row 15 on
    (6, "006_1_2", 1, 5562, 5569, 5584, 23, "1/2", "R12", "Happiness", 5, None),
    ("006", "006_1_3", 1, 100, 104, 110, 11, "1", "4", "Anger", 1, None),
    ("011", "011_2_1", 2, 20, -1, 31, 12, "1", "14", "Contempt", 4, None),  # no apex: the middle, 25
    ("011", "011_2_2", 2, 40, 44, 50, 11, "1", "1+2", "Surprise", 2, None),
    ("011", "011_2_3", 2, 60, 64, 70, 11, "1", "AD1", "Other", 7, None),
]
SMIC_HEADING = ("Subject", "Filename", "OnsetF", "OffsetF", "Emotion")
SMIC_ROWS = [
    (1, "s01_ne_01", 22803, 22811, "negative"),  # folder s1_ne_01; frames under other numbers
    (1, "s1_po_01", "100", 106, "positive"),
    (13, "s13_sur_02", 7, 13, "surprise"),
    (None, None, None, None, None),
    (None, None, " ", None, None),
]
CASME3_HEADING = ("Subject", "Filename", "Onset", "Apex", "Offset", "AU", "Objective class", "emotion")
CASME3_ROWS = [
    ("spNO.1", "b", 166, 175, 179, "4", "III", "disgust"),
    ("spNO.1", "b", 300, 305, 309, "L14+B4", "VII", "happy"),  # the same letter again
    ("spNO.10", "d", 11, 11, 83, "4", "III", "fear"),  # apex is onset
    ("spNO.10", "d", 112, 83, 358, "4", "III", "sad"),  # wrong order
    ("spNO.10", "m", 1, 5, 9, "1+2", "II", "surprise"),
    ("spNO.10", "m", 20, 24, 29, "5", "VII", "others"),
    ("spNO.10", "m", 40, 44, 49, "4", "III", "anger"),
]


@lru_cache
def faces(number: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Onset and apex of a rendered person."""
    onset, apex, _ = synthetic.render_clip(number, 0, size)
    return onset, apex


def in_a_room(face: np.ndarray) -> np.ndarray:
    """A frame of 200 x 150 with the face right of its middle."""
    frame = np.full((150, 200), 90, np.uint8)
    frame[30 : 30 + len(face), 90 : 90 + len(face)] = face
    return frame


def write_frames(
    folder: Path,
    pattern: str,
    numbers: Sequence[int],
    apex: int,
    person: int,
    size: int = 64,
    raw: bool = False,
) -> None:
    """Frames of a clip: the neutral face, and from the apex on the one with the expression."""
    folder.mkdir(parents=True, exist_ok=True)
    onset_face, apex_face = faces(person, size)
    for number in numbers:
        face = apex_face if number >= apex else onset_face
        path = folder / pattern.format(number)
        written, content = cv2.imencode(path.suffix, in_a_room(face) if raw else face)
        assert written
        path.write_bytes(content.tobytes())


def write_workbook(
    path: Path, heading: Sequence[Any], rows: Sequence[Sequence[Any]], above: int = 0, sheet: str = "Sheet1"
) -> Path:
    """A workbook with `above` rows of text over its heading."""
    book = openpyxl.Workbook()
    page = book.active
    page.title = sheet
    for line in range(above):
        page.append([f"The licence, line {line}"] if line % 3 else [])
        if not line % 3:
            page.cell(row=line + 1, column=2, value=f"Contents {line}")
    page.append(list(heading))
    for row in rows:
        page.append(list(row))
    path.parent.mkdir(parents=True, exist_ok=True)
    book.save(path)
    return path


def casme2(root: Path) -> Path:
    """CASME II with its crops and, nested twice, a part of its whole frames; stray links between the folders."""
    write_workbook(root / "CASME2-coding-20140508.xlsx", CASME2_HEADING, CASME2_ROWS)
    for person, row in enumerate(CASME2_ROWS):
        onset, apex, offset = int(row[3]), row[4] if isinstance(row[4], int) else 56, row[5]
        numbers = range(onset, max(offset, apex) + 1)
        folder = root / "Cropped" / f"sub{row[0]}" / row[1]
        write_frames(folder, "reg_img{}.jpg", numbers, apex, person)
    (root / "Cropped" / "sub01" / "EP02_01f.lnk").write_bytes(b"L\0\0\0")
    (root / "Cropped" / "sub01" / "EP02_01f" / "Thumbs.db").write_bytes(b"x")
    twice = root / "CASME2_RAW_selected" / "CASME2_RAW_selected" / "sub01" / "EP02_01f"
    write_frames(twice, "img{}.jpg", range(46, 60), 59, 0, raw=True)
    return root


def casme2_raw(root: Path) -> Path:
    """CASME II as whole frames only, nested twice."""
    write_workbook(root / "CASME2-coding-20140508.xlsx", CASME2_HEADING, CASME2_ROWS[:1])
    twice = root / "CASME2_RAW_selected" / "CASME2_RAW_selected" / "sub01" / "EP02_01f"
    write_frames(twice, "img{}.jpg", range(46, 60), 59, 0, raw=True)
    return root


def samm(root: Path) -> Path:
    """SAMM: whole frames, folders with leading zeros, the heading in row 14."""
    write_workbook(root / "SAMM_Micro_FACS_Codes_v2.xlsx", SAMM_HEADING, SAMM_ROWS, above=13)
    for person, row in enumerate(SAMM_ROWS):
        onset, apex, offset = row[3], row[4] if row[4] > 0 else 25, row[5]
        subject = f"{int(row[0]):03d}"
        folder = root / subject / row[1]
        write_frames(folder, subject + "_{:05d}.jpg", range(onset, offset + 1), apex, person, raw=True)
    return root


def smic(root: Path) -> Path:
    """SMIC-HS: crops as .bmp, another camera's folder beside it, clips without an expression, trailing rows."""
    write_workbook(root / "SMIC-HS-E_annotation.xlsx", SMIC_HEADING, SMIC_ROWS)
    high_speed = root / "SMIC_all_cropped" / "HS"
    write_frames(high_speed / "s1/micro/negative/s1_ne_01", "reg_image{:06d}.bmp", range(1, 10), 5, 0)
    write_frames(high_speed / "s1/micro/positive/s1_po_01", "reg_image{:06d}.bmp", range(100, 107), 103, 1)
    write_frames(high_speed / "s13/micro/surprise/s13_sur_02", "reg_image{:06d}.bmp", range(7, 14), 10, 2)
    write_frames(high_speed / "s1/non_micro/s1_non_01", "reg_image{:06d}.bmp", range(1, 4), 2, 0)
    write_frames(root / "SMIC_all_cropped/VIS/s1/micro/negative/s1_ne_01", "{}.bmp", range(1, 4), 2, 0)
    return root


def casme3(root: Path) -> Path:
    """CAS(ME)^3 part A: the sheet says spNO, folders spNo; colour and depth."""
    write_workbook(
        root / "annotation" / "cas(me)3_part_A_ME_label_JpgIndex_v2.xlsx",
        CASME3_HEADING,
        CASME3_ROWS,
        sheet="label",
    )
    for person, row in enumerate(CASME3_ROWS):
        folder = root / "part_A" / row[0].replace("NO", "No") / row[1]
        numbers = {row[2], row[3], row[4]}
        write_frames(folder / "color", "{}.jpg", sorted(numbers), row[3], person, raw=True)
        write_frames(folder / "depth", "{}.png", sorted(numbers), row[3], person)
    return root


def megc2019(root: Path) -> Path:
    """The composite's root, its members' folders as people name them."""
    casme2(root / "CASME II")
    smic(root / "SMIC")
    samm(root / "samm")
    return root
