"""Long synthetic clips: a face that blinks, moves its head and now and then shows a micro-expression.

All that happens in a clip is a script in seconds (`draw_script`), drawn once and filmed at any frame rate
(`film`), so that 25 and 200 fps show the same events and the truth is exact. It exercises spotting and the
camera where no licensed data may go, and is no evidence about people.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.core.errors import InputError
from ptsr_edge.data.synthetic_clips import BLINK, Person, draw_expression, draw_label, person
from ptsr_edge.data.synthetic_faces import LANDMARKS, REFERENCE_SIZE, CameraPose, render, turn_moves

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
        subject: number from 0, as in `synthetic_clips.person`.
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
