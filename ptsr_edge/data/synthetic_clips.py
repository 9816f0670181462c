"""Synthetic micro-expressions: seeded mixtures of action units on synthetic faces, as pairs of frames and as long clips.

They exercise the whole chain (frames, flow, training, export, camera) where no licensed data may go, and
are a benchmark for regressions. They are no evidence about people.

A class is no single action unit. Each is a choice of recipes after EMFACS, which share units: raised
brows are surprise, but with AU4 a negative expression; a pulled mouth corner is positive, but alone and on
one side it may be AU14. Weaker units of other classes, blinks, asymmetry, each subject's own way to move,
the head's motion, light and noise come on top.

All that happens in a long clip is a script in seconds (`draw_script`), drawn once and filmed at any frame rate (`film`), so
that 25 and 200 fps show the same events and the truth is exact.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Literal

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


MICRO_S = (1 / 25, 1 / 2)
"""Shortest and longest micro-expression, onset to offset; durations are uniform in between."""

APEX_SHARE = (0.3, 0.6)
"""Range of the place of the apex in a micro-expression, as a share of its duration."""

GAP_S = (2.5, 8.0)
"""Rest between two expressions."""

MACRO_SHARE = 0.2
"""Share of the expressions that are ordinary ones: of seconds, and stronger. None of them is to be spotted."""

MACRO_S = (1.2, 4.0)
MACRO_GAIN = (1.5, 3.0)
BLINK_GAP_S = 3.0
"""Mean rest between two blinks, on top of half a second."""

BLINK_S = (0.15, 0.4)
BLINK_PX = (3.0, 7.0)
"""Range of the way that the upper lids come down, in pixels at 112."""

JERK_GAP_S = 6.0
"""Mean rest between two jerks of the head, on top of one second."""

Kind = Literal["micro", "macro", "blink"]


@dataclass(frozen=True)
class Happening:
    """Something the face does.

    Attributes:
        kind: "micro" (to be spotted), "macro" or "blink".
        onset_s: when it starts.
        apex_s: when it is strongest; a macro-expression stays so until `hold_s`.
        hold_s: when it starts to fade.
        offset_s: when it is gone.
        moves: (n, 2) displacement of the landmarks at the apex, in pixels at 112.
        label: class of a micro-expression, an index into LABELS; -1 for the rest.
    """

    kind: Kind
    onset_s: float
    apex_s: float
    hold_s: float
    offset_s: float
    moves: NDArray[np.float64]
    label: int = -1

    def intensity(self, time_s: float) -> float:
        """Returns the intensity at a time, from 0 at the onset to 1 at the apex and back, by half cosines."""
        if not self.onset_s < time_s < self.offset_s:
            return 0.0
        if time_s < self.apex_s:
            return 0.5 - 0.5 * math.cos(math.pi * (time_s - self.onset_s) / (self.apex_s - self.onset_s))
        if time_s <= self.hold_s:
            return 1.0
        return 0.5 + 0.5 * math.cos(math.pi * (time_s - self.hold_s) / (self.offset_s - self.hold_s))


@dataclass(frozen=True)
class Sway:
    """Smooth functions of time: drift of slow sines, plus jerks.

    Attributes:
        amplitudes: (waves, channels).
        rates: (waves, channels) in radians per second.
        phases: (waves, channels).
        jerks: (jerks, channels): what each adds when it is over.
        starts_s: (jerks,) when each starts.
        lasts_s: (jerks,) how long each takes.
    """

    amplitudes: NDArray[np.float64]
    rates: NDArray[np.float64]
    phases: NDArray[np.float64]
    jerks: NDArray[np.float64]
    starts_s: NDArray[np.float64]
    lasts_s: NDArray[np.float64]

    def at(self, time_s: float) -> NDArray[np.float64]:
        """Returns the values of all channels at a time: (channels,)."""
        drift = (self.amplitudes * np.sin(self.rates * time_s + self.phases)).sum(axis=0)
        done = np.clip((time_s - self.starts_s) / self.lasts_s, 0, 1)
        jerked: NDArray[np.float64] = drift + (0.5 - 0.5 * np.cos(np.pi * done)) @ self.jerks
        return jerked


@dataclass(frozen=True)
class Script:
    """All that happens in a clip.

    Attributes:
        who: the person.
        duration_s: length of the clip.
        happenings: in the order of their onsets.
        head: sway of x, y (pixels at 112), angle, log of the scale, yaw, pitch (radians).
        light: sway of the log of the gain and of the gradient along x and y.
        seed: of the sensor's noise.
    """

    who: Person
    duration_s: float
    happenings: tuple[Happening, ...]
    head: Sway
    light: Sway
    seed: int

    @property
    def micro(self) -> list[Happening]:
        """The micro-expressions: all that is to be spotted."""
        return [happening for happening in self.happenings if happening.kind == "micro"]

    def moves(self, time_s: float) -> NDArray[np.float64]:
        """Returns the displacement of the landmarks at a time, head turn included: (n, 2) in pixels at 112."""
        moves = turn_moves(*self.head.at(time_s)[4:6])
        for happening in self.happenings:
            if happening.onset_s < time_s < happening.offset_s:
                moves = moves + happening.intensity(time_s) * happening.moves
        return moves


def draw_script(
    subject: int, duration_s: float, seed: int = 0, *, expressive: bool = True, moving: bool = True
) -> Script:
    """Draws what happens in a clip; the same for equal arguments.

    Args:
        subject: number from 0, as in `person`.
        duration_s: length of the clip.
        seed: of the data set.
        expressive: whether there are micro- and macro-expressions; else the face is neutral and blinks.
        moving: whether the head and the light move.

    Raises:
        InputError: a number is negative, or the duration is no positive number.
    """
    if not (math.isfinite(duration_s) and duration_s > 0):
        raise InputError(f"a clip must last more than 0 s; found {duration_s}")
    who = person(subject, seed)
    rng = np.random.default_rng([4, seed, subject, round(1000 * duration_s)])
    blinks = _draw_blinks(rng, who, duration_s)
    expressions = _draw_expressions(rng, who, duration_s) if expressive else []
    happenings = sorted(blinks + expressions, key=lambda happening: happening.onset_s)
    strength = 1.0 if moving else 0.0
    head = _draw_head(rng, duration_s, strength)
    light = _draw_light(rng, duration_s, strength)
    return Script(who, duration_s, tuple(happenings), head, light, int(rng.integers(2**31)))


def film(script: Script, fps: float, size: int = REFERENCE_SIZE) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Films a script.

    Args:
        script: what happens.
        fps: frames per second.
        size: S, side of the frames in pixels.

    Yields:
        pts in nanoseconds from 0, and the frame, (S, S) uint8.

    Raises:
        InputError: the frame rate is no positive number.
    """
    if not (math.isfinite(fps) and fps > 0):
        raise InputError(f"fps must be above 0; found {fps}")
    rng = np.random.default_rng([script.seed, round(1000 * fps)])
    for number in range(math.ceil(script.duration_s * fps)):
        time_s = number / fps
        displacement = script.who.face.displacement(script.moves(time_s), size)
        yield round(1e9 * time_s), render(script.who.face, displacement, _view(script, time_s), rng)


def _view(script: Script, time_s: float) -> CameraPose:
    x, y, angle, log_scale, _, _ = script.head.at(time_s)
    log_gain, along_x, along_y = script.light.at(time_s)
    read_noise, shot_noise = script.who.sensor
    return CameraPose(
        shift=(float(x), float(y)),
        angle=float(angle),
        scale=math.exp(log_scale),
        gain=math.exp(log_gain),
        gradient=(float(along_x), float(along_y)),
        read_noise=read_noise,
        shot_noise=shot_noise,
    )


def _draw_expressions(rng: np.random.Generator, who: Person, duration_s: float) -> list[Happening]:
    drawn: list[Happening] = []
    onset = 1.0 + rng.uniform(*GAP_S)
    while True:
        is_macro = rng.random() < MACRO_SHARE
        lasts = rng.uniform(*(MACRO_S if is_macro else MICRO_S))
        if onset + lasts > duration_s - 1.0:
            return drawn
        label = draw_label(rng)
        expression = draw_expression(who, label, rng)
        while expression.blink:  # blinks are drawn apart, so that their time is known
            expression = draw_expression(who, label, rng)
        if is_macro:
            rise, fall = rng.uniform(0.3, 0.8, 2) * lasts / 2
            moves = rng.uniform(*MACRO_GAIN) * expression.moves
            drawn.append(Happening("macro", onset, onset + rise, onset + lasts - fall, onset + lasts, moves))
        else:
            apex = onset + lasts * rng.uniform(*APEX_SHARE)
            drawn.append(Happening("micro", onset, apex, apex, onset + lasts, expression.moves, label))
        onset += lasts + rng.uniform(*GAP_S)


def _draw_blinks(rng: np.random.Generator, who: Person, duration_s: float) -> list[Happening]:
    drawn: list[Happening] = []
    lids = np.array([name.partition(".")[0] == "eye_top" for name in LANDMARKS])
    habit = who.habits[BLINK]
    habit = habit / np.hypot(*habit[lids].T).max()
    onset = 0.5 + rng.exponential(BLINK_GAP_S)
    while onset + BLINK_S[1] < duration_s:
        lasts = rng.uniform(*BLINK_S)
        closed, opens = onset + 0.3 * lasts, onset + 0.45 * lasts
        moves = rng.uniform(*BLINK_PX) * habit
        drawn.append(Happening("blink", onset, closed, opens, onset + lasts, moves))
        onset += lasts + 0.5 + rng.exponential(BLINK_GAP_S)
    return drawn


def _draw_head(rng: np.random.Generator, duration_s: float, strength: float) -> Sway:
    """Draws the drift of a pixel or two in seconds; jerks within a fifth of a second, of which half swing back."""
    # x, y in pixels at 112, angle, log scale, yaw, pitch in radians
    drift = np.array([1.2, 1.0, 0.015, 0.012, 0.03, 0.025])
    jerk = np.array([1.5, 1.5, 0.015, 0.008, 0.03, 0.03])
    amplitudes = strength * drift * rng.uniform(0.3, 1.0, (3, 6)) / math.sqrt(3)
    rates = 2 * np.pi * rng.uniform(0.03, 0.4, (3, 6))
    starts, lasts, jumps = [], [], []
    start = 1.0 + rng.exponential(JERK_GAP_S)
    while start < duration_s:
        last, jump = rng.uniform(0.12, 0.5), strength * jerk * rng.normal(0, 0.6, 6)
        starts.append(start)
        lasts.append(last)
        jumps.append(jump)
        # Without a way back the head would leave the frame in a long clip.
        back = (
            start + last * (1 + rng.exponential(0.3)) if rng.random() < 0.5 else start + rng.uniform(1.0, 4.0)
        )
        starts.append(back)
        lasts.append(rng.uniform(0.12, 0.5))
        jumps.append(-jump)
        start = back + 1.0 + rng.exponential(JERK_GAP_S)
    phases = rng.uniform(0, 2 * np.pi, (3, 6))
    return Sway(amplitudes, rates, phases, np.array(jumps).reshape(-1, 6), np.array(starts), np.array(lasts))


def _draw_light(rng: np.random.Generator, duration_s: float, strength: float) -> Sway:
    """Draws slow changes of gain and direction, and now and then a quick one: a cloud, a screen, the camera's own gain."""
    amplitudes = strength * np.array([0.02, 0.02, 0.02]) * rng.uniform(0.3, 1.0, (3, 3))
    rates = 2 * np.pi * rng.uniform(0.02, 0.3, (3, 3))
    count = rng.poisson(duration_s / 12)
    jumps = strength * rng.normal(0, 1, (count, 3)) * np.array([0.05, 0.03, 0.03])
    starts, lasts = rng.uniform(0, duration_s, count), rng.uniform(0.1, 0.4, count)
    return Sway(amplitudes, rates, rng.uniform(0, 2 * np.pi, (3, 3)), jumps, starts, lasts)
