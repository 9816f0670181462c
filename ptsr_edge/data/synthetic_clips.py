"""Synthetic micro-expressions: seeded mixtures of action units on synthetic faces, as frames.

They exercise the whole chain (frames, flow, training, export, camera) where no licensed data may go, and
are a benchmark for regressions. They are no evidence about people.

A class is no single action unit. Each is a choice of recipes after EMFACS, which share units: raised
brows are surprise, but with AU4 a negative expression; a pulled mouth corner is positive, but alone and on
one side it may be AU14. Weaker units of other classes, blinks, asymmetry, each subject's own way to move,
the head's motion, light and noise come on top.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.core.config import LABELS, Preprocess
from ptsr_edge.core.console import progress
from ptsr_edge.core.errors import InputError
from ptsr_edge.core.files import DiskCache, SpoiledEntryError, cache_key, closure_digest, sha256_of
from ptsr_edge.core.system import installed
from ptsr_edge.data.synthetic_faces import (
    LANDMARKS,
    REFERENCE_SIZE,
    CameraPose,
    Subject,
    make_subject,
    render,
    turn_moves,
)
from ptsr_edge.vision.flow import flow_sample

SUBJECTS = 160
CLIPS_PER_SUBJECT = 24
NEW_SEED = 3
"""Of people who are rendered to be judged by a profile and for nothing else: models are trained and int8 is calibrated
on those of seed 0, cascades are calibrated on those of 1, and an export judges its budgets on those of 2."""

CLASS_SHARES = (0.45, 0.275, 0.275)
"""Negative, positive, surprise: as uneven as in recorded data."""

PEAK_PX = (0.4, 1.8)
"""Range of the largest displacement of the expression, in pixels at 112."""

DISTRACTOR_SHARES = (0.25, 0.45, 0.3)
"""Shares of the clips with no, one and two units of other classes mixed in."""

DISTRACTOR_REACH = (0.15, 0.4)
"""Range of their strength, as a share of the expression's peak."""

BLINK_SHARE = 0.4

TURN = 0.012
"""Standard deviation of the head's yaw and pitch between onset and apex, in radians."""

Moves = Mapping[str, tuple[float, float]]

ACTION_UNITS: dict[int, Moves] = {
    # Where each unit takes the landmarks of the image-left side; x is mirrored for the right side.
    # Directions and reach after the FACS manual's description of the appearance changes.
    1: {"brow_inner": (0, -1), "brow_mid": (0, -0.45), "forehead": (0, -0.5), "glabella": (0, -0.5)},
    2: {"brow_outer": (0, -1), "brow_mid": (0, -0.7), "forehead": (0, -0.4), "lid_crease": (0, -0.2)},
    4: {"brow_inner": (0.6, 0.8), "brow_mid": (0.35, 0.6), "brow_outer": (0.1, 0.2), "glabella": (0, 0.7),
        "lid_crease": (0.05, 0.35), "nose_root": (0, 0.3), "forehead": (0.1, 0.3)},
    5: {"eye_top": (0, -1), "lid_crease": (0, -0.5)},
    6: {"cheek": (0.1, -1), "cheek_outer": (0.35, -0.7), "eye_bottom": (0, -0.5), "eye_outer": (0.2, 0.1),
        "nasolabial": (-0.05, -0.4)},
    7: {"eye_bottom": (0, -0.9), "eye_top": (0, 0.25), "eye_outer": (0.2, 0), "cheek": (0, -0.2)},
    9: {"nose_wing": (-0.05, -0.9), "nose_side": (0, -0.7), "nose_root": (0, 0.3), "glabella": (0, 0.5),
        "brow_inner": (0.3, 0.5), "nasolabial": (0.1, -0.45), "upper_lip_side": (0, -0.45)},
    12: {"mouth_corner": (-0.7, -0.7), "nasolabial": (-0.35, -0.5), "cheek": (-0.1, -0.4),
         "upper_lip_side": (-0.35, -0.25), "lower_lip_side": (-0.35, -0.25), "jaw": (-0.1, -0.15)},
    14: {"mouth_corner": (-0.8, 0), "nasolabial": (-0.1, 0.15), "upper_lip_side": (-0.3, 0.05),
         "lower_lip_side": (-0.3, -0.05), "chin_side": (-0.1, 0)},
    15: {"mouth_corner": (-0.2, 0.95), "lower_lip_side": (-0.1, 0.4), "nasolabial": (-0.05, 0.3),
         "chin_side": (0, 0.25)},
    17: {"chin_boss": (0, -1), "lower_lip": (0, -0.7), "lower_lip_side": (0, -0.5), "chin": (0, -0.4),
         "mouth_corner": (0, 0.15), "upper_lip": (0, -0.2), "chin_side": (0, -0.5)},
    20: {"mouth_corner": (-0.95, 0.2), "lower_lip_side": (-0.5, 0.2), "upper_lip_side": (-0.4, 0),
         "jaw": (-0.3, 0.1), "nasolabial": (-0.3, 0.05)},
    25: {"upper_lip": (0, -0.35), "lower_lip": (0, 0.8), "lower_lip_side": (0, 0.5), "chin_boss": (0, 0.25)},
    26: {"lower_lip": (0, 0.9), "lower_lip_side": (0, 0.7), "chin_boss": (0, 1), "chin": (0, 0.8),
         "chin_side": (0, 0.8), "mouth_corner": (0.1, 0.35), "jaw": (0, 0.4)},
    45: {"eye_top": (0, 1), "lid_crease": (0, 0.45), "eye_bottom": (0, -0.15)},
}  # fmt: skip

BLINK = 45

_SIDES = [name.partition(".")[2] for name in LANDMARKS]


@dataclass(frozen=True)
class ExpressionRecipe:
    """Units that make an expression: `core` always, each of `options` with a probability of a third.

    `one_sided` says that one side alone shows it: a smile of one mouth corner is contempt.
    """

    core: tuple[int, ...]
    options: tuple[int, ...] = ()
    one_sided: bool = False


RECIPES: tuple[tuple[ExpressionRecipe, ...], ...] = (
    (
        ExpressionRecipe((4,), (7, 17)),
        ExpressionRecipe((4, 7), (5, 17)),
        ExpressionRecipe((9,), (4, 7, 17)),
        ExpressionRecipe((1, 4), (15, 17)),
        ExpressionRecipe((1, 2, 4), (5, 20, 25)),
        ExpressionRecipe((15,), (4, 17)),
        ExpressionRecipe((12,), (14,), one_sided=True),
        ExpressionRecipe((14,), (12,), one_sided=True),
        ExpressionRecipe((2,), (4, 7), one_sided=True),
        ExpressionRecipe((20,), (1, 25)),
        ExpressionRecipe((17,), (7, 15)),
        ExpressionRecipe((12, 15), (4, 17)),
        ExpressionRecipe((12, 17), (4, 14)),
    ),
    (
        ExpressionRecipe((6, 12), (25, 7)),
        ExpressionRecipe((12,), (6, 25)),
        ExpressionRecipe((6, 12), (2, 26)),
        ExpressionRecipe((12, 14), (6,)),
        ExpressionRecipe((1, 2, 12), (6, 25)),
        ExpressionRecipe((12, 26), (1, 2)),
    ),
    (
        ExpressionRecipe((1, 2), (5, 25)),
        ExpressionRecipe((1, 2, 5), (26,)),
        ExpressionRecipe((2,), (1, 5)),
        ExpressionRecipe((5, 26), (1, 2)),
        ExpressionRecipe((1, 2, 26), (5,)),
        ExpressionRecipe((25, 26), (5,)),
    ),
)
"""Per class of LABELS."""


@dataclass(frozen=True)
class Person:
    """A subject and its own way to move.

    Attributes:
        face: what is rendered.
        habits: per action unit (n, 2): displacement of each landmark at intensity 1.
        sensor: read noise and shot noise of the camera that records this person.
    """

    face: Subject
    habits: dict[int, NDArray[np.float64]]
    sensor: tuple[float, float]


@dataclass(frozen=True)
class Expression:
    """The expression of a face at its apex.

    Attributes:
        label: class number, an index into LABELS.
        moves: (n, 2) displacement of the landmarks in pixels at 112.
        units: action units of the expression itself, without blink and distractors.
        peak_px: largest displacement of a landmark by these units, at 112.
        blink: whether the lids close between onset and apex.
    """

    label: int
    moves: NDArray[np.float64]
    units: tuple[int, ...]
    peak_px: float
    blink: bool


def subject_names(count: int = SUBJECTS) -> list[str]:
    """Returns the names of the subjects, in order: "synthetic/000" and so on."""
    return [f"synthetic/{number:03d}" for number in range(count)]


def new_subject_names(count: int) -> list[str]:
    """Returns the names of people of `NEW_SEED`, which no other people have: who was seen in training is known by name."""
    return [f"synthetic/new-{number:04d}" for number in range(count)]


@lru_cache(maxsize=4)
def person(subject: int, seed: int = 0) -> Person:
    """Draws a subject; the same for equal numbers, whatever else was drawn before.

    Raises:
        InputError: a number is negative.
    """
    rng = _generator(seed, subject)
    face = make_subject(rng)
    habits = {unit: _habit(rng, moves) for unit, moves in ACTION_UNITS.items()}
    return Person(face, habits, (rng.uniform(1.0, 3.0), rng.uniform(0.005, 0.03)))


def draw_expression(who: Person, label: int, rng: np.random.Generator) -> Expression:
    """Draws what a person does when showing a class."""
    recipe = RECIPES[label][rng.integers(len(RECIPES[label]))]
    units = recipe.core + tuple(unit for unit in recipe.options if rng.random() < 1 / 3)
    weak_side = int(rng.integers(2)) if recipe.one_sided else None
    moves = np.zeros((len(LANDMARKS), 2))
    for unit in units:
        moves += rng.uniform(0.7, 1.0) * _lopsided(rng, who.habits[unit], weak_side)
    peak_px = float(np.exp(rng.uniform(*np.log(PEAK_PX))))
    moves *= peak_px / np.hypot(moves[:, 0], moves[:, 1]).max()
    for _ in range(rng.choice(3, p=DISTRACTOR_SHARES)):
        unit = int(rng.choice(_distractors(label)))
        moves += peak_px * rng.uniform(*DISTRACTOR_REACH) * _lopsided(rng, who.habits[unit])
    blink = bool(rng.random() < BLINK_SHARE)
    if blink:
        moves += rng.uniform(0.5, 3.0) * who.habits[BLINK]
    return Expression(label, moves, units, peak_px, blink)


def draw_views(who: Person, rng: np.random.Generator) -> tuple[CameraPose, CameraPose]:
    """Draws how onset and apex are taken: the crop's error, then what head and light do in between."""
    read_noise, shot_noise = who.sensor
    angle, scale, gain = rng.normal(0, 0.05), np.exp(rng.normal(0, 0.04)), rng.uniform(0.8, 1.15)
    shift, gradient = rng.normal(0, 3.0, 2), rng.normal(0, 0.1, 2)
    onset = CameraPose(_pair(shift), angle, scale, gain, _pair(gradient), read_noise, shot_noise)
    apex = CameraPose(
        shift=_pair(shift + rng.normal(0, 0.8, 2)),
        angle=angle + rng.normal(0, 0.008),
        scale=scale * np.exp(rng.normal(0, 0.006)),
        gain=gain * np.exp(rng.normal(0, 0.02)),
        gradient=_pair(gradient + rng.normal(0, 0.02, 2)),
        read_noise=read_noise,
        shot_noise=shot_noise,
    )
    return onset, apex


def clip_label(subject: int, clip: int, seed: int = 0) -> int:
    """Returns the class of a clip, an index into LABELS, without rendering it."""
    return draw_label(_generator(seed, subject, clip))


def render_clip(
    subject: int, clip: int, size: int, seed: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], int]:
    """Renders onset and apex of one clip; the same alone and among others, bit for bit.

    Args:
        subject: number from 0.
        clip: number from 0.
        size: S, side of the frames in pixels.
        seed: of the data set.

    Returns:
        (onset, apex, label): two (S, S) uint8, and an index into LABELS.

    Raises:
        InputError: a number is negative.
    """
    who = person(subject, seed)
    rng = _generator(seed, subject, clip)
    label = draw_label(rng)
    expression = draw_expression(who, label, rng)
    before, after = draw_views(who, rng)
    turn = turn_moves(*rng.normal(0, TURN, 2))
    field = who.face.displacement(expression.moves + turn, size)
    onset = render(who.face, np.zeros_like(field), before, rng)
    apex = render(who.face, field, after, rng)
    return onset, apex, label


def render_subject(
    subject: int, clips: int, preprocess: Preprocess, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Renders a subject's clips and measures their flow.

    Frames are never smaller than 112 pixels: a face of 28 pixels has no flow of half a pixel at 112. A
    smaller model gets the flow of 112-pixel frames, averaged down.

    Args:
        subject: number from 0.
        clips: how many, from clip 0 on.
        preprocess: how flow is measured; its `image_size` is S.
        seed: of the data set.

    Returns:
        (clips, S, S, 3) float32: u, v, strain; and (clips,) int64 labels.
    """
    size = max(preprocess.image_size, REFERENCE_SIZE)
    rendered = [render_clip(subject, clip, size, seed) for clip in range(clips)]
    flows = [flow_sample(onset, apex, preprocess) for onset, apex, _ in rendered]
    return np.stack(flows), np.array([label for _, _, label in rendered], dtype=np.int64)


RENDERED_BYTES = 2_000_000_000
"""What rendered subjects may take on disk; all of them at 112 pixels take 0.6 GB."""


def render_subjects(
    numbers: Sequence[int], clips: int, preprocess: Preprocess, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Renders several subjects as `render_subject` does, or takes them from the cache, with a progress bar.

    Returns:
        (n, clips, S, S, 3) float32 and (n, clips) int64.
    """
    kept = DiskCache("rendered", limit_bytes=RENDERED_BYTES)

    def subject(number: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        call = {
            "subject": number,
            "clips": clips,
            "preprocess": preprocess.model_dump(mode="json"),
            "seed": seed,
        }
        key = cache_key(call | _surroundings())

        def read(stream: BinaryIO) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
            flows, labels = np.load(stream, allow_pickle=False), np.load(stream, allow_pickle=False)
            if flows.shape[:2] != (clips, side) or len(labels) != clips:
                raise SpoiledEntryError(f"it holds {flows.shape} and {labels.shape}")
            return flows, labels

        if (found := kept.fetch(key, read)) is not None:
            return found
        parts = render_subject(number, clips, preprocess, seed)

        def write(stream: BinaryIO) -> None:
            for part in parts:
                np.save(stream, part, allow_pickle=False)

        kept.store(key, write)
        return parts

    side = preprocess.image_size
    flows = np.empty((len(numbers), clips, side, side, 3), dtype=np.float32)
    labels = np.empty((len(numbers), clips), dtype=np.int64)
    # Threads, not processes: NumPy and OpenCV release the interpreter where the time goes, and a
    # caller's script needs no guard around its main part.
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        rendered = pool.map(subject, numbers)
        for place, parts in enumerate(progress(rendered, "rendering faces", len(numbers))):
            flows[place], labels[place] = parts
    kept.shrink()
    return flows, labels


@cache
def _surroundings() -> dict[str, Any]:
    """Returns the tools and the source that a rendered subject depends on."""
    return {
        "tools": installed(("opencv-python-headless", "numpy")),
        "source": closure_digest(__name__),
        "face": sha256_of(Path(__file__).parents[1] / "assets" / "face.png"),
    }


def _generator(seed: int, *numbers: int) -> np.random.Generator:
    if min(seed, *numbers) < 0:
        raise InputError(f"seed, subject and clip must not be negative, got {(seed, *numbers)}")
    # The count keeps (seed, subject) and (seed, subject, clip 0) apart: trailing zeros seed alike.
    return np.random.default_rng([len(numbers), seed, *numbers])


def draw_label(rng: np.random.Generator) -> int:
    """Draws a class, an index into LABELS, in the shares of CLASS_SHARES."""
    return int(rng.choice(len(LABELS), p=CLASS_SHARES))


def _habit(rng: np.random.Generator, moves: Moves) -> NDArray[np.float64]:
    """Draws how one person shows a unit, (n, 2): turned, and stronger here than there."""
    habit = np.zeros((len(LANDMARKS), 2))
    turn = rng.normal(0, 0.3)
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    for place, name in enumerate(LANDMARKS):
        part, _, side = name.partition(".")
        if part in moves:
            move = turned @ np.array(moves[part]) * np.exp(rng.normal(0, 0.25))
            habit[place] = move * (-1 if side == "right" else 1, 1) if side else (0, move[1])
    return habit


def _lopsided(
    rng: np.random.Generator, habit: NDArray[np.float64], weak_side: int | None = None
) -> NDArray[np.float64]:
    """Makes the sides of a unit unequally strong; the weak side (0: left, 1: right) hardly moves."""
    gains = np.exp(rng.normal(0, 0.25, 2))
    if weak_side is not None:
        gains[weak_side] *= 0.1
    left, right = gains
    sides = {"left": left, "right": right, "": (left + right) / 2}
    lopsided: NDArray[np.float64] = habit * np.array([[sides[side]] for side in _SIDES])
    return lopsided


def _distractors(label: int) -> list[int]:
    """Returns the units that other classes are made of and this one never shows."""
    own = {unit for recipe in RECIPES[label] for unit in recipe.core + recipe.options}
    others = {unit for recipes in RECIPES for recipe in recipes for unit in recipe.core}
    return sorted(others - own)


def _pair(values: NDArray[np.floating]) -> tuple[float, float]:
    return float(values[0]), float(values[1])
