"""Twelve clips of four rendered people who smile and frown, as somebody with a camera would have them."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from video_files import write_video

from ptsr_edge.data.catalog import NEGATIVE, POSITIVE
from ptsr_edge.data.synthetic_clips import Happening, draw_expression, draw_script, film, person

PEOPLE = ("anna", "ben", "cleo", "dan")
FPS, FIRST, ONSET, APEX, OFFSET = 25, 5, 8, 13, 18
"""Frames are numbered from `FIRST` on; in the video from 0."""

SIDE = 112
VIDEO = "dan/frown_3.mp4"


def clips() -> Iterator[tuple[str, str, str]]:
    """Subject, clip and label of the twelve."""
    for subject in PEOPLE:
        for number in range(1, 4):
            label = "smile" if (PEOPLE.index(subject) + number) % 2 else "frown"
            yield subject, f"{label}_{number}", label


@cache
def frames(subject: str, clip: str, label: str) -> tuple[NDArray[np.uint8], ...]:
    """(S, S) uint8 gray images: neutral, from `ONSET` to `APEX` ever more of the expression, and back."""
    number = PEOPLE.index(subject)
    script = draw_script(number, duration_s=0.8, expressive=False, moving=False)
    rng = np.random.default_rng([number, int(clip[-1])])
    expression = draw_expression(person(number), POSITIVE if label == "smile" else NEGATIVE, rng)
    onset, apex, offset = ((frame - FIRST) / FPS for frame in (ONSET, APEX, OFFSET))
    happening = Happening("micro", onset, apex, apex, offset, 2 * expression.moves)
    return tuple(image for _, image in film(dataclasses.replace(script, happenings=(happening,)), FPS, SIDE))


def write_frames(root: Path) -> Path:
    """Writes the twelve: eleven folders of PNG files, and one video."""
    for subject, clip, label in clips():
        images = frames(subject, clip, label)
        place = root / subject / clip
        if place == (root / VIDEO).with_suffix(""):
            place.parent.mkdir(parents=True, exist_ok=True)
            times_ms = [round(1000 * number / FPS) for number in range(len(images))]
            write_video(root / VIDEO, times_ms, (np.dstack([image] * 3) for image in images), (SIDE, SIDE))
            continue
        place.mkdir(parents=True)
        for number, image in enumerate(images, start=FIRST):
            cv2.imwrite(str(place / f"img_{number:03d}.png"), image)
    return root


def fill_in(table: Path) -> None:
    """Fills in what a template leaves to its owner: onset, apex and label."""
    with table.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        shift = FIRST if row["clip"].endswith(".mp4") else 0
        row |= {
            "onset": str(ONSET - shift),
            "apex": str(APEX - shift),
            "label": row["clip"].partition("_")[0],
        }
    with table.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
