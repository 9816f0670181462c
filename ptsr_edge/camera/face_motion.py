"""Motion of the parts of a face against a reference frame, with the head's own motion taken out first.

A micro-expression moves a brow or a mouth corner by about a pixel. Such a motion is read directly from
the gray levels, by least squares over all pixels of a part, which is several times finer than averaging a
dense flow, and cheaper: the reference's gradients are prepared once.

    reference, frame  --rigid: 6 numbers-->  steadied frame  --each region: (dx, dy)-->  RegionMotion
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.vision.flow import SEARCHES, dense_flow, opencv, resize

Float = NDArray[np.float32]
Frame = NDArray[np.uint8]

SIDE = 112
"""Motions are measured and stated in pixels of a crop of this side."""

_LEFT = {
    # Boxes (x0, y0, x1, y1) in fractions of an aligned face crop; the right side is mirrored.
    "brow_outer": (0.11, 0.13, 0.26, 0.275),
    "brow_inner": (0.26, 0.13, 0.42, 0.275),
    "cheek": (0.16, 0.42, 0.36, 0.56),
    "mouth_corner": (0.20, 0.58, 0.38, 0.74),
    "jaw": (0.24, 0.76, 0.40, 0.94),
}
_MIDDLE = {
    "glabella": (0.42, 0.15, 0.58, 0.30),
    "upper_lip": (0.38, 0.585, 0.62, 0.68),
    "lower_lip": (0.38, 0.68, 0.62, 0.78),
    "chin": (0.40, 0.78, 0.60, 0.95),
}
_EYE = (0.15, 0.275, 0.44, 0.40)
_STABLE = ((0.25, 0.03, 0.75, 0.15), (0.12, 0.42, 0.88, 0.60))
"""Boxes that expressions move least; the head's motion is read there."""


def _mirrored(box: tuple[float, ...]) -> tuple[float, ...]:
    return (1 - box[2], box[1], 1 - box[0], box[3])


_BOXES = {
    **{f"{name}.left": box for name, box in _LEFT.items()},
    **{f"{name}.right": _mirrored(box) for name, box in _LEFT.items()},
    **_MIDDLE,
    "eye.left": _EYE,
    "eye.right": _mirrored(_EYE),
}
REGIONS: tuple[str, ...] = tuple(_BOXES)
"""The parts that are measured; the eyes, which a blink moves most, come last."""

EYES = 2
MIN_SIDE = 16
"""Crops of fewer pixels are refused; below 56 or so there is little left to see."""

_ITERATIONS = 2
_BLUR = 1.0
_NOISE_VARIANCE = 9.0
_STRAY_PX = 4.0
_DEFORMED_PX = 1.5

_AROUND = 15
"""Side of a pixel's neighbourhood, in pixels."""

_CONTRAST = 6.0
"""Least standard deviation of gray levels in a neighbourhood that has something to see."""

_UNLIKE = 0.6
"""sqrt(1 - r^2), r the correlation of gray levels, above which two neighbourhoods do not show the same."""


@dataclass(frozen=True)
class RegionMotion:
    """Displacement of the parts of a face since the first frame.

    Attributes:
        regions: (R, 2) dx, dy of each of REGIONS in pixels at 112, without the head's motion.
        rigid: (R, 2) dx, dy of each by the head's motion alone.
        residual_share: the part of the picture that the head's motion leaves unexplained where expressions move
            the face least, as a share of the contrast there: 0 for the same picture, 1 for an unrelated one.
    """

    regions: NDArray[np.float64]
    rigid: NDArray[np.float64]
    residual_share: float


class MotionMeter:
    """Measures face crops against a reference, which it replaces when the face has moved away from it.

    Not thread-safe: it belongs to one stream.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets the reference."""
        self._reference: _Reference | None = None
        self._pose = np.zeros(6, dtype=np.float32)
        self._regions_before = np.zeros((len(REGIONS), 2))
        self._rigid_before = np.zeros((len(REGIONS), 2))

    def measure(self, crop: Frame | Float) -> RegionMotion:
        """Measures a crop, (S, S) gray; the first one after a reset is the reference, with zero motion."""
        frame = _prepared(crop)
        if self._reference is None:
            self._reference = _Reference(frame)
            return RegionMotion(self._regions_before.copy(), self._rigid_before.copy(), 0.0)
        self._pose, residual = self._reference.pose(frame, self._pose)
        regions = self._reference.regions(frame, self._pose)
        rigid = _layout().centres @ self._pose  # (R, 2)
        motion = RegionMotion(self._regions_before + regions, self._rigid_before + rigid, residual)
        if np.abs(rigid).max() > _STRAY_PX or np.abs(regions[:-EYES]).max() > _DEFORMED_PX:
            self._reference, self._pose = _Reference(frame), np.zeros(6, dtype=np.float32)
            self._regions_before, self._rigid_before = motion.regions, motion.rigid
        return motion


def changed_share(one: Frame, other: Frame) -> float:
    """Returns the share of a face that shows something else: what no motion between the two crops explains.

    The other crop is brought back along the flow. Where it still does not look like the first one there was no motion
    but a change: of a hand that came or left, for instance. Pixels count where the neighbourhood has contrast and the
    gray levels of both do not correlate, whatever their brightness. Eyes do not count, which a blink changes, nor does
    the rim, where hair and background show.

    Args:
        one, other: (S, S) uint8, gray, face crops of one place.
    """
    cv2 = opencv()
    first, second = (np.rint(_scaled(crop)).astype(np.uint8) for crop in (one, other))
    places = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), axis=-1) + dense_flow(
        first, second, SEARCHES["dis-medium"]
    )
    returned = _seen(second.astype(np.float32), places.reshape(-1, 2).astype(np.float32)).reshape(SIDE, SIDE)
    a, b = (cv2.GaussianBlur(each.astype(np.float32), (0, 0), _BLUR) for each in (first, returned))

    def mean(levels: Float) -> Float:
        around: Float = cv2.blur(levels, (_AROUND, _AROUND))
        return around

    variance_a, variance_b = mean(a * a) - mean(a) ** 2, mean(b * b) - mean(b) ** 2
    covariance = np.maximum(mean(a * b) - mean(a) * mean(b), 0)
    alike = covariance**2 / np.maximum(variance_a * variance_b, 1e-3)
    textured = np.maximum(variance_a, variance_b) > _CONTRAST**2
    return float(((alike < 1 - _UNLIKE**2) & textured)[_inner()].mean())


@cache
def _inner() -> NDArray[np.bool_]:
    """Returns (SIDE, SIDE) bool: the face without its rim and its eyes."""
    x, y = (np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE))) + 0.5) / SIDE
    inside: NDArray[np.bool_] = (np.abs(x - 0.5) < 0.4) & (np.abs(y - 0.5) < 0.4)
    for x0, y0, x1, y1 in (_EYE, _mirrored(_EYE)):
        inside &= ~((x >= x0) & (x < x1) & (y >= y0) & (y < y1))
    return inside


def expressive_mask() -> NDArray[np.bool_]:
    """Returns (SIDE, SIDE) bool: the pixels of all regions but the eyes."""
    layout = _layout()
    mask = np.zeros(SIDE * SIDE, dtype=bool)
    mask[layout.parts[: layout.slices[-EYES].start]] = True
    return mask.reshape(SIDE, SIDE)


class _Reference:
    """A frame with its least-squares solvers, prepared once."""

    def __init__(self, frame: Float) -> None:
        cv2, layout = opencv(), _layout()
        self._frame = frame
        across = cv2.Sobel(frame, cv2.CV_32F, 1, 0, scale=1 / 8)
        down = cv2.Sobel(frame, cv2.CV_32F, 0, 1, scale=1 / 8)
        stable = layout.stable
        gradient = np.stack([across.ravel(), down.ravel()], axis=1)  # (n, 2)
        levels = frame.ravel()
        steepest = np.einsum("nd,ndp->np", gradient[stable], layout.stable_basis)
        light = np.column_stack([levels[stable], np.ones(len(stable)), *layout.ramps[:, stable]])
        self._rigid = _solver(np.concatenate([steepest, -light], axis=1), 6)  # (6, n)
        self._parts = []
        for part in layout.slices:
            pixels = layout.parts[part]
            terms = np.column_stack([gradient[pixels], -levels[pixels], -np.ones(len(pixels))])
            self._parts.append(_solver(terms, 2))  # (2, n)

    def pose(self, frame: Float, start: Float) -> tuple[Float, float]:
        """Returns the rigid motion (6,) from the reference to a frame, and the share that it leaves unexplained."""
        layout, pose = _layout(), start
        reference = self._frame.ravel()[layout.stable]
        for _ in range(_ITERATIONS):
            seen = _seen(frame, layout.stable_places + _displaced(layout.stable_basis, pose))
            pose = pose - self._rigid @ (seen - reference)
        return pose, _unexplained(seen, reference)

    def regions(self, frame: Float, pose: Float) -> Float:
        """Returns the motion (R, 2) of each region from the reference to a frame, beyond the rigid motion."""
        layout = _layout()
        places = layout.part_places + _displaced(layout.part_basis, pose)  # (m, 2)
        reference = self._frame.ravel()[layout.parts]
        motion = np.zeros((len(REGIONS), 2), dtype=np.float32)
        for _ in range(2):
            error = _seen(frame, places) - reference
            for place, (part, solver) in enumerate(zip(layout.slices, self._parts, strict=True)):
                step = -(solver @ error[part])
                motion[place] += step
                places[part] += step
        return motion


@dataclass(frozen=True)
class _Layout:
    """The pixels of the parts in a crop of SIDE, and their displacement by a turn of the head.

    A basis (n, 2, 6) is the displacement of n pixels per unit of x, y, rotation, scale, yaw and pitch.
    """

    stable: NDArray[np.intp]
    stable_places: Float
    stable_basis: Float
    parts: NDArray[np.intp]
    part_places: Float
    part_basis: Float
    slices: tuple[slice, ...]
    centres: Float
    ramps: Float


@cache
def _layout() -> _Layout:
    places = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), axis=-1).reshape(-1, 2)
    x, y = (places.T + 0.5) / SIDE

    def inside(*boxes: tuple[float, ...]) -> NDArray[np.intp]:
        hits = [(x >= x0) & (x < x1) & (y >= y0) & (y < y1) for x0, y0, x1, y1 in boxes]
        return np.flatnonzero(np.any(hits, axis=0))

    across, down, depth = x - 0.5, y - 0.5, _depth(x, y)
    one, none = np.ones_like(x), np.zeros_like(x)
    horizontal = np.stack([one, none, -SIDE * down, SIDE * across, SIDE * depth, none], axis=1)
    vertical = np.stack([none, one, SIDE * across, SIDE * down, none, SIDE * depth], axis=1)
    basis = np.stack([horizontal, vertical], axis=1).astype(np.float32)
    stable, pixels = inside(*_STABLE), [inside(box) for box in _BOXES.values()]
    parts, ends = np.concatenate(pixels), np.cumsum([len(part) for part in pixels])
    return _Layout(
        stable=stable,
        stable_places=places[stable].astype(np.float32),
        stable_basis=basis[stable],
        parts=parts,
        part_places=places[parts].astype(np.float32),
        part_basis=basis[parts],
        slices=tuple(slice(end - len(part), end) for end, part in zip(ends, pixels, strict=True)),
        centres=np.stack([basis[part].mean(axis=0) for part in pixels]),
        ramps=np.stack([across, down]).astype(np.float32),
    )


def _depth(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns how far each pixel of a head stands before the turning axis, in sides: an ellipsoid with a nose."""
    bulge = np.sqrt(np.maximum(0, 1 - ((x - 0.5) / 0.5) ** 2 - ((y - 0.5) / 0.8) ** 2))
    nose = np.exp(-(((x - 0.5) / 0.07) ** 2 + ((y - 0.5) / 0.12) ** 2) / 2)
    depth: NDArray[np.float64] = 0.2 * bulge + 0.1 * nose
    return depth


def _solver(terms: NDArray[np.floating], wanted: int) -> Float:
    """Returns the rows of the least-squares solution that give the first `wanted` unknowns.

    These are motions; they are drawn to zero where there is no texture to see them by.
    """
    normal = (terms.T @ terms).astype(np.float64)
    normal[np.arange(wanted), np.arange(wanted)] += _NOISE_VARIANCE
    # Scaled to ones on the diagonal, and a millionth more, so that a flat picture has a solution: none.
    root = np.sqrt(np.maximum(np.diag(normal), 1.0))
    scale = np.outer(root, root)
    solved = np.linalg.inv(normal / scale + 1e-6 * np.eye(len(normal))) / scale
    rows: Float = np.ascontiguousarray((solved[:wanted] @ terms.T).astype(np.float32))
    return rows


def _prepared(crop: Frame | Float) -> Float:
    blurred: Float = opencv().GaussianBlur(
        _scaled(crop), (0, 0), _BLUR, borderType=opencv().BORDER_REFLECT_101
    )
    return blurred


def _scaled(crop: Frame | Float) -> Float:
    return resize(crop.astype(np.float32), SIDE)


def _unexplained(seen: Float, reference: Float) -> float:
    """Returns sqrt(1 - r^2), r the correlation of gray levels; 1 where they run against each other or one is flat."""
    one, other = seen - seen.mean(), reference - reference.mean()
    size = float(np.linalg.norm(one) * np.linalg.norm(other))
    if size < len(seen):  # less than a gray level of contrast
        return 1.0
    correlation = min(max(float(one @ other) / size, 0.0), 1.0)
    return math.sqrt(1 - correlation**2)


def _displaced(basis: Float, pose: Float) -> Float:
    """Multiplies (n, 2, 6) by (6,) to (n, 2), as one product of matrices instead of n small ones."""
    displaced: Float = (basis.reshape(-1, 6) @ pose).reshape(-1, 2)
    return displaced


def _seen(frame: Float, places: Float) -> Float:
    """Returns the gray levels (n,) of a frame at places (n, 2) x, y."""
    cv2 = opencv()
    row = cv2.remap(frame, places[None], None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    levels: Float = row.reshape(-1)
    return levels
