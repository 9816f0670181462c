"""Synthetic faces: many subjects from one public-domain photograph, and gray frames of them.

Action units move landmarks of the base face; `LANDMARKS` names them, `PLACES` and `DEPTHS` say where they are and how far
from the axis that the head turns about. A subject is a warp of the base face, a skin and a tone, all drawn from a seed. What its face does is a
displacement field, made apart from the frame (`Subject.displacement`), so that one expression can be
rendered once, or over a whole clip with an intensity that rises and falls.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.core.errors import InputError, require

_PAIRED = {
    # Image-left landmark: (its place, the place of its image-right partner), in fractions of the side.
    "brow_inner": ((0.400, 0.252), (0.605, 0.247)),
    "brow_mid": ((0.280, 0.222), (0.730, 0.230)),
    "brow_outer": ((0.200, 0.245), (0.810, 0.255)),
    "forehead": ((0.330, 0.150), (0.670, 0.150)),
    "lid_crease": ((0.305, 0.268), (0.685, 0.268)),
    "eye_top": ((0.305, 0.295), (0.685, 0.295)),
    "eye_bottom": ((0.310, 0.365), (0.690, 0.365)),
    "eye_inner": ((0.400, 0.335), (0.595, 0.335)),
    "eye_outer": ((0.210, 0.330), (0.800, 0.330)),
    "nose_side": ((0.440, 0.440), (0.565, 0.440)),
    "nose_wing": ((0.400, 0.575), (0.600, 0.570)),
    "cheek": ((0.275, 0.470), (0.740, 0.470)),
    "cheek_outer": ((0.165, 0.430), (0.860, 0.430)),
    "nasolabial": ((0.310, 0.575), (0.695, 0.570)),
    "mouth_corner": ((0.325, 0.655), (0.695, 0.648)),
    "upper_lip_side": ((0.410, 0.655), (0.600, 0.650)),
    "lower_lip_side": ((0.405, 0.740), (0.585, 0.735)),
    "chin_side": ((0.360, 0.850), (0.610, 0.850)),
    "jaw": ((0.220, 0.820), (0.790, 0.820)),
}

_CENTRAL = {
    "glabella": (0.500, 0.245),
    "nose_root": (0.500, 0.330),
    "nose_tip": (0.505, 0.540),
    "upper_lip": (0.500, 0.655),
    "lower_lip": (0.490, 0.760),
    "chin_boss": (0.485, 0.860),
    "chin": (0.480, 0.945),
}

_RIM = [(x, y) for x in (0.0, 0.33, 0.67, 1.0) for y in (0.0, 0.33, 0.67, 1.0) if x in (0, 1) or y in (0, 1)]

_DEPTH = {
    "nose_tip": 0.30, "nose_wing": 0.23, "nose_side": 0.22, "nose_root": 0.19, "glabella": 0.20,
    "upper_lip": 0.22, "upper_lip_side": 0.20, "lower_lip": 0.21, "lower_lip_side": 0.19,
    "chin_boss": 0.20, "chin": 0.17, "chin_side": 0.16, "mouth_corner": 0.15, "nasolabial": 0.15,
    "cheek": 0.15, "brow_inner": 0.19, "brow_mid": 0.16, "brow_outer": 0.11, "forehead": 0.17,
    "lid_crease": 0.15, "eye_top": 0.15, "eye_bottom": 0.14, "eye_inner": 0.15, "eye_outer": 0.11,
    "cheek_outer": 0.05, "jaw": 0.05,
}  # fmt: skip

LANDMARKS: tuple[str, ...] = (
    *(f"{name}.left" for name in _PAIRED),
    *(f"{name}.right" for name in _PAIRED),
    *_CENTRAL,
)
"""Names in the order of a subject's landmarks; left and right are the image's."""

PLACES = np.array(
    [pair[0] for pair in _PAIRED.values()] + [pair[1] for pair in _PAIRED.values()] + list(_CENTRAL.values())
)

"""(n, 2): where the landmarks are on the base face, in fractions of the side."""

RIM_PLACES = np.array(_RIM)
"""(r, 2): places around the rim, which no expression moves."""

DEPTHS = np.array([_DEPTH[name.partition(".")[0]] for name in LANDMARKS])
"""(n,): how far each landmark stands before the ears, in fractions of the side."""

PAIRS = len(_PAIRED)
"""How many landmarks have a partner on the other side; those of the image-left side come first."""

Float = NDArray[np.float32]

Field = NDArray[np.float32]
"""(S, S, 2): displacement in pixels, +x right, +y down."""

TEXTURE_SIZE = 256

REFERENCE_SIZE = 112
"""The frame size that displacements are stated for; they grow with the frame."""


@dataclass(frozen=True)
class CameraPose:
    """The view of a frame: the place of the head, and what the camera does to the light.

    Attributes:
        shift: of the head, (x, y) in pixels at the reference size.
        angle: of the head in radians, clockwise in the image.
        scale: of the head.
        gain: of the light.
        gradient: change of the light over the whole side, (along x, along y), as a share.
        read_noise: standard deviation in gray levels.
        shot_noise: variance per gray level.
    """

    shift: tuple[float, float] = (0.0, 0.0)
    angle: float = 0.0
    scale: float = 1.0
    gain: float = 1.0
    gradient: tuple[float, float] = (0.0, 0.0)
    read_noise: float = 0.0
    shot_noise: float = 0.0


@dataclass(frozen=True)
class Subject:
    """One synthetic person.

    Attributes:
        texture: (256, 256) float32 in 0..255: the neutral face.
        landmarks: (n, 2) float64: places in fractions of the side, in the order of `LANDMARKS`.
    """

    texture: Float
    landmarks: NDArray[np.float64]
    _cache: dict[tuple[str, int], Float] = field(default_factory=dict, repr=False, compare=False)

    def displacement(self, moves: NDArray[np.floating], size: int) -> Field:
        """Interpolates the moves of the landmarks to a smooth field, by thin plates.

        Args:
            moves: (n, 2): displacement of each landmark in pixels at the reference size, 112.
            size: S, side of the frame.

        Returns:
            (S, S, 2) float32 in pixels of a frame of that size; zero around the rim.

        Source: Bookstein, Principal warps, PAMI 1989.
        """
        basis = self._once("basis", size, self._make_basis)  # (S S, n)
        scaled = np.asarray(moves, dtype=np.float32) * np.float32(size / REFERENCE_SIZE)
        field: Field = (basis @ scaled).reshape(size, size, 2)
        return field

    def texture_for(self, size: int) -> Float:
        """Returns the texture, smoothed against aliasing at a frame size."""
        return self._once("texture", size, self._make_texture)

    def _once(self, kind: str, size: int, make: Callable[[int], Float]) -> Float:
        if (kind, size) not in self._cache:
            self._cache[kind, size] = make(size)
        return self._cache[kind, size]

    def _make_basis(self, size: int) -> Float:
        basis = thin_plate_basis(np.concatenate([self.landmarks, RIM_PLACES]), pixel_centres(size))
        return np.ascontiguousarray(basis[:, : len(self.landmarks)])

    def _make_texture(self, size: int) -> Float:
        sigma = 0.4 * TEXTURE_SIZE / size
        return _blur(self.texture, sigma) if size < TEXTURE_SIZE / 1.25 else self.texture


def make_subject(rng: np.random.Generator) -> Subject:
    """Draws a person: the face's shape, its skin, its tone, and whether it is mirrored."""
    image, places = base_face(), PLACES.copy()
    if rng.random() < 0.5:
        image, places = _mirrored(image, places)
    shaped = places + _draw_shape(rng, places)
    texture = _warp_to(image, places, shaped)
    return Subject(texture=_draw_skin(rng, texture), landmarks=shaped)


def turn_moves(yaw: float, pitch: float) -> NDArray[np.float64]:
    """Returns how turning the head moves the landmarks, which a similarity cannot undo.

    Args:
        yaw: in radians, towards the image's right.
        pitch: in radians, downwards.

    Returns:
        (n, 2): displacement of each landmark in pixels at the reference size.
    """
    moves: NDArray[np.float64] = np.outer(REFERENCE_SIZE * DEPTHS, (math.sin(yaw), math.sin(pitch)))
    return moves


def render(
    subject: Subject, displacement: Field, view: CameraPose, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Takes a frame of a face that is displaced.

    Args:
        subject: who.
        displacement: (S, S, 2) float32 in pixels of the frame, in the face's own coordinates.
        view: pose of the head, light and noise.
        rng: of the noise.

    Returns:
        (S, S) uint8.

    Raises:
        InputError: the displacement is not square.
    """
    if displacement.ndim != 3 or displacement.shape[0] != displacement.shape[1] or displacement.shape[2] != 2:
        raise InputError(f"a displacement must be (S, S, 2); found {displacement.shape}")
    cv2, size = _cv2(), displacement.shape[0]
    places = _head_coordinates(view, size)  # (S, S, 2): where in the face each pixel looks
    # The field says where the face's points go; a frame asks where its pixels come from. One step of
    # the fixed point x - d(x - d(x)) leaves less than .01 px for motions of 2 px.
    first = places - _sample(displacement, places)
    sources = places - _sample(displacement, first)
    maps = ((sources + 0.5) * (TEXTURE_SIZE / size) - 0.5).astype(np.float32)
    frame = cv2.remap(
        subject.texture_for(size),
        maps,
        None,
        interpolation=cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    ramp = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    frame *= view.gain * (1 + view.gradient[0] * ramp + view.gradient[1] * ramp[:, None])
    if view.read_noise or view.shot_noise:
        spread = np.sqrt(view.read_noise**2 + view.shot_noise * np.clip(frame, 0, 255))
        frame += spread * rng.standard_normal(frame.shape, dtype=np.float32)
    taken: NDArray[np.uint8] = np.clip(np.rint(frame), 0, 255).astype(np.uint8)
    return taken


@cache
def base_face() -> Float:
    """Reads the aligned face that all subjects are drawn from: (256, 256) float32 in 0..255."""
    content = resources.files("ptsr_edge").joinpath("assets").joinpath("face.png").read_bytes()
    cv2 = _cv2()
    image = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), cv2.IMREAD_GRAYSCALE)
    return np.asarray(image, dtype=np.float32)


def pixel_centres(size: int) -> NDArray[np.float64]:
    """Returns the pixel centres, (size * size, 2): x, y in fractions of the side, row by row."""
    centres = (np.arange(size) + 0.5) / size
    return np.stack([np.tile(centres, size), np.repeat(centres, size)], axis=1)


def thin_plate_basis(controls: NDArray[np.float64], points: NDArray[np.float64]) -> Float:
    """Builds the matrix that interpolates values at controls: a field through the values is `basis @ values`.

    Args:
        controls: (n, 2) distinct places, not all on a line.
        points: (m, 2).

    Returns:
        (m, n) float32.

    Source: Bookstein, Principal warps, PAMI 1989: kernel r^2 log r with an affine part.
    """
    n = len(controls)
    system = np.zeros((n + 3, n + 3))
    system[:n, :n] = _kernel(controls, controls)
    system[:n, n:] = np.column_stack([np.ones(n), controls])
    system[n:, :n] = system[:n, n:].T
    solved = np.linalg.inv(system)[:, :n].astype(np.float32)  # (n + 3, n)
    terms = np.column_stack([_kernel(points, controls), np.ones(len(points)), points])
    basis: Float = terms.astype(np.float32) @ solved
    return basis


def _kernel(points: NDArray[np.float64], controls: NDArray[np.float64]) -> NDArray[np.float64]:
    across = points[:, :1] - controls[:, 0]  # (m, n)
    down = points[:, 1:] - controls[:, 1]
    squared: NDArray[np.float64] = across * across + down * down
    squared *= np.log(np.maximum(squared, 1e-12)) / 2
    return squared


def _draw_shape(rng: np.random.Generator, places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Draws how a face departs from the base face: (n, 2), in fractions of the side."""
    moves = rng.normal(0, 0.004, places.shape)
    x, y = places[:, 0] - 0.5, places[:, 1]
    moves[:, 0] += x * rng.normal(0, 0.05)
    moves[:, 1] += (y - 0.33) * rng.normal(0, 0.05)
    moves += rng.normal(0, 0.008, 2)

    def shift(parts: tuple[str, ...], outward: float, down: float) -> None:
        for place, name in enumerate(LANDMARKS):
            if name.partition(".")[0] in parts:
                moves[place] += (np.sign(x[place]) * outward if "." in name else 0.0, down)

    shift(("brow_inner", "brow_mid", "brow_outer", "glabella"), rng.normal(0, 0.008), rng.normal(0, 0.010))
    shift(("eye_top", "lid_crease"), 0.0, rng.normal(0, 0.005))
    shift(("nose_tip", "nose_wing"), rng.normal(0, 0.006), rng.normal(0, 0.012))
    shift(("mouth_corner",), rng.normal(-0.01, 0.014), rng.normal(0.018, 0.012))
    shift(_MOUTH, 0.0, rng.normal(0, 0.012))
    shift(("lower_lip", "lower_lip_side"), 0.0, rng.normal(-0.016, 0.012))
    shift(("jaw", "chin_side", "cheek_outer"), rng.normal(0, 0.014), rng.normal(0, 0.008))
    return moves


_MOUTH = ("mouth_corner", "upper_lip", "upper_lip_side", "lower_lip", "lower_lip_side", "chin_boss")


def _warp_to(image: Float, places: NDArray[np.float64], shaped: NDArray[np.float64]) -> Float:
    """Warps the image so that its landmarks move from `places` to `shaped`."""
    cv2, coarse = _cv2(), 64
    basis = thin_plate_basis(np.concatenate([shaped, RIM_PLACES]), pixel_centres(coarse))
    # The way from each place to its source is smooth: worked out coarsely and enlarged.
    lacks = basis @ np.concatenate([places - shaped, np.zeros_like(RIM_PLACES)]).astype(np.float32)
    lacks = lacks.reshape(coarse, coarse, 2)
    lacks = cv2.resize(lacks, (TEXTURE_SIZE, TEXTURE_SIZE), interpolation=cv2.INTER_CUBIC)
    grid = pixel_centres(TEXTURE_SIZE).reshape(TEXTURE_SIZE, TEXTURE_SIZE, 2)
    maps = ((grid + lacks) * TEXTURE_SIZE - 0.5).astype(np.float32)
    warped: Float = cv2.remap(image, maps, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    return warped


def _mirrored(image: Float, places: NDArray[np.float64]) -> tuple[Float, NDArray[np.float64]]:
    pairs = PAIRS
    order = np.concatenate([np.arange(pairs, 2 * pairs), np.arange(pairs), np.arange(2 * pairs, len(places))])
    swapped = places[order].copy()
    swapped[:, 0] = 1 - swapped[:, 0]
    return np.ascontiguousarray(image[:, ::-1]), swapped


def _draw_skin(rng: np.random.Generator, texture: Float) -> Float:
    """Draws tone, band-limited noise, freckles and the light of the place."""
    tone = texture / 255
    tone = np.clip(tone, 0, 1) ** math.exp(rng.normal(0, 0.25))
    tone = 0.5 + (tone - 0.5) * rng.uniform(0.7, 1.05) + rng.uniform(-0.08, 0.06)
    for sigma in (1.2, 3.0, 8.0):
        tone = tone + rng.uniform(0.004, 0.016) * _band_noise(rng, sigma)
    tone = tone - _freckles(rng)
    tone = tone * (1 + 0.12 * _band_noise(rng, 48.0))
    return _blur(np.clip(tone, 0, 1).astype(np.float32) * 255, rng.uniform(0.3, 1.0))


def _band_noise(rng: np.random.Generator, sigma: float) -> Float:
    """Draws (256, 256) noise of unit variance whose grain is about sigma pixels."""
    # Coarse grain is drawn coarse and enlarged: a blur that wide would cost more than all the rest.
    step = max(1, int(sigma / 2))
    side = TEXTURE_SIZE // step
    noise = _blur(rng.standard_normal((side, side), dtype=np.float32), sigma / step)
    noise = (noise - noise.mean()) / noise.std()
    enlarged: Float = _cv2().resize(noise, (TEXTURE_SIZE, TEXTURE_SIZE), interpolation=_cv2().INTER_CUBIC)
    return enlarged


def _freckles(rng: np.random.Generator) -> Float:
    """Draws (256, 256): the darkening of cheeks and nose by freckles and moles."""
    marks = np.zeros((TEXTURE_SIZE, TEXTURE_SIZE), dtype=np.float32)
    count = int(rng.integers(0, 45))
    x = np.clip(rng.normal(0.5, 0.2, count), 0.12, 0.88) * TEXTURE_SIZE
    y = np.clip(rng.normal(0.52, 0.16, count), 0.12, 0.92) * TEXTURE_SIZE
    marks[y.astype(int), x.astype(int)] = rng.uniform(0.2, 1.2, count)
    return _blur(marks, rng.uniform(0.9, 1.5))


def _head_coordinates(view: CameraPose, size: int) -> Field:
    """Returns (S, S, 2): the face's coordinates, in pixels, that each pixel of the frame shows."""
    centre = (size - 1) / 2
    shift = np.array(view.shift) * size / REFERENCE_SIZE
    cosine, sine = math.cos(view.angle) / view.scale, math.sin(view.angle) / view.scale
    x = np.arange(size, dtype=np.float64) - centre - shift[0]
    y = (np.arange(size, dtype=np.float64) - centre - shift[1])[:, None]
    places = np.stack([cosine * x + sine * y + centre, -sine * x + cosine * y + centre], axis=-1)
    return places.astype(np.float32)


def _sample(displacement: Field, places: Field) -> Field:
    cv2 = _cv2()
    sampled: Field = cv2.remap(
        displacement, places, None, interpolation=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return sampled


def _blur(image: Float, sigma: float) -> Float:
    blurred: Float = _cv2().GaussianBlur(image, (0, 0), sigma, borderType=_cv2().BORDER_REFLECT_101)
    return blurred


def _cv2() -> Any:
    return require("cv2", "train", "rendering synthetic faces")
