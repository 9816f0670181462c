"""From two face frames to the input of a network: the one preprocessing of training, calibration, evaluation and
the camera.

    frames (H, W) uint8  --flow_sample-->  (S, S, 3) float32: u, v, strain  --to_input-->  (B, 3, S, S)

u and v are in pixels of the frames that were measured, +x to the right and +y down.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.core.config import FLAT
from ptsr_edge.core.errors import InputError, require

if TYPE_CHECKING:
    from ptsr_edge.core.config import CropName, Preprocess

Float = NDArray[np.float32]
Frame = NDArray[np.uint8]

MIN_FRAME = 16
"""Side in pixels below which DIS has no pyramid level to work on."""

_MOVING = ((0.08, 0.15, 0.92, 0.45), (0.20, 0.62, 0.80, 0.95))
"""Boxes (x0, y0, x1, y1) in fractions of an aligned face crop that expressions move: brows and eyes, mouth and chin.
The head's own motion is read outside of them."""

_GRID = 16
_INLIER_PX_PER_SIDE = 0.25 / 112


def opencv() -> Any:
    """Imports OpenCV when it is first needed: a session without a camera runs where it is not installed."""
    return require("cv2", "camera", "working on images")


def optical_flow(onset: Frame, apex: Frame, preprocess: Preprocess) -> Float:
    """Measures the motion from `onset` to `apex` by dense inverse search.

    With `global_motion` "similarity", translation, rotation and scale of the head are estimated by
    RANSAC on quick flows over the parts of the face that expressions move least, the apex is warped
    back, and the flow is measured. Equal inputs give equal bits.

    Args:
        onset: (H, W) uint8, gray.
        apex: (H, W) uint8, gray.
        preprocess: the method of the flow, and the global motion to remove.

    Returns:
        (H, W, 2) float32: u and v in pixels.

    Raises:
        InputError: the frames are no two gray uint8 images of one size, or `preprocess.flow` is
            "published": such fields were measured by a method that only their publisher knows.
        MissingExtraError: OpenCV is not installed.

    Source: Kroeger et al., Fast Optical Flow using Dense Inverse Search, ECCV 2016 (OpenCV's
    implementation; see `SEARCHES`).
    """
    if preprocess.flow == "published":
        raise InputError(
            f"flow from frames is measured with {' or '.join(map(repr, SEARCHES))}; this preprocessing says "
            "'published', flow fields that came ready-made"
        )
    _check_frames(onset, apex)
    if preprocess.global_motion == "similarity":
        apex = steadied(onset, apex)
    return dense_flow(onset, apex, SEARCHES[preprocess.flow])


class Search(NamedTuple):
    """One of OpenCV's presets of DIS, and what is set otherwise: None leaves it to the preset."""

    preset: str
    descents: int | None = None
    refinements: int | None = None


SEARCHES = {
    "dis-medium": Search("MEDIUM"),
    "dis-light": Search("MEDIUM", descents=6, refinements=3),
}
"""By the name of the method. The light one takes three quarters of the time of the medium one, with 6 descents in place of 25 and 3
refinements in place of 5. Patches at a larger distance would save more, and their lattice would show in the strain."""

_QUICK = Search("ULTRAFAST")

HEAD_PASSES = 2
"""How often the motion of the head is fitted, each time to what the last fit left of it. Two quick flows find it as well
as one by the medium preset, in a sixth of the time."""


def steadied(onset: Frame, apex: Frame) -> Frame:
    """Returns the apex (H, W) with the head where it is in the onset, as far as `head_motion` can tell."""
    cv2 = opencv()
    total, moved = np.eye(3), apex
    for turn in range(HEAD_PASSES):
        motion = head_motion(dense_flow(onset, moved, _QUICK))
        if motion is None:
            break
        total = total @ np.vstack([motion, [0, 0, 1]])
        moved = cv2.warpAffine(
            apex,
            total[:2],
            apex.shape[::-1],
            # What is only measured once more, and quickly, need not be exact.
            flags=(cv2.INTER_CUBIC if turn == HEAD_PASSES - 1 else cv2.INTER_LINEAR) | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
    return moved


def head_motion(flow: Float) -> NDArray[np.float64] | None:
    """Fits, by RANSAC, a similarity to the motion of the parts of a face that expressions move least.

    Args:
        flow: (H, W, 2) float32 of an aligned face crop, in pixels.

    Returns:
        (2, 3) float64, which takes (x, y, 1) of the first frame to the second; None where those parts agree on none.
    """
    cv2 = opencv()
    height, width = flow.shape[:2]
    points = _stable_points(height, width)
    columns, rows = points[:, 0].astype(np.intp), points[:, 1].astype(np.intp)
    moved = points + flow[rows, columns]
    # OpenCV's RANSAC draws from a generator of the process: without a seed, history would show.
    cv2.setRNGSeed(0)
    motion, _ = cv2.estimateAffinePartial2D(
        points,
        moved,
        method=cv2.RANSAC,
        ransacReprojThreshold=_INLIER_PX_PER_SIDE * max(height, width),
        maxIters=500,
        confidence=0.99,
    )
    if motion is None or not np.isfinite(motion).all():
        return None
    similarity: NDArray[np.float64] = np.asarray(motion, dtype=np.float64)
    return similarity


def optical_strain(flow: Float) -> Float:
    """Returns the magnitude of the strain tensor: sqrt(ux^2 + vy^2 + (uy + vx)^2 / 2).

    Derivatives are Sobel 3x3 over 8 with a replicated border, so a field that is linear in x and y has
    its exact derivatives everywhere but at the border.

    Args:
        flow: (H, W, 2) float32: u, v in pixels.

    Returns:
        (H, W) float32, dimensionless, never negative.

    Raises:
        MissingExtraError: OpenCV is not installed.

    Source: Shreve et al., Macro- and micro-expression spotting in long videos using spatio-temporal
    strain, FG 2011.
    """
    cv2 = opencv()
    planes = [np.ascontiguousarray(flow[..., axis], dtype=np.float32) for axis in (0, 1)]
    (ux, uy), (vx, vy) = (
        [
            cv2.Sobel(plane, cv2.CV_32F, *order, scale=1 / 8, borderType=cv2.BORDER_REPLICATE)
            for order in ((1, 0), (0, 1))
        ]
        for plane in planes
    )
    shear = np.add(uy, vx, out=uy)
    total = np.square(ux, out=ux)
    total += np.square(vy, out=vy)
    total += np.square(shear, out=shear) / 2
    strain: Float = np.sqrt(total, out=total)
    return strain


def flow_sample(onset: Frame, apex: Frame, preprocess: Preprocess) -> Float:
    """Measures flow and strain at the frames' own size and brings them to the model's size.

    Args:
        onset: (H, W) uint8, gray, an aligned face crop.
        apex: (H, W) uint8, gray, cropped alike.
        preprocess: the model's preprocessing; `image_size` is S.

    Returns:
        (S, S, 3) float32: u, v in pixels of the frames (or, cropped closely, of the crop enlarged to their size), and
        strain.

    Raises:
        InputError, MissingExtraError: as `optical_flow`.
    """
    flow = optical_flow(onset, apex, preprocess)
    sample = np.dstack([flow, optical_strain(flow)])
    return resize(close_up(sample) if preprocess.crop == "close" else sample, preprocess.image_size)


CLOSE = (17 / 112, 14 / 112, 92 / 112, 106 / 112)
"""x0, y0, x1, y1 of the crop `close`, as shares of the crop `wide`. Set by eye: the mean strain of synthetic clips then lies
where that of CASME II and SMIC lies."""


def close_up(sample: Float) -> Float:
    """Cuts the part `CLOSE` out of a flow sample, (H, W, 3) float32: u, v and strain.

    The part is to be stretched to the shape of the whole, and u and v are stretched along: as the whole's sides are to
    the part's.
    """
    part = _close(sample)
    stretch = sample.shape[1] / part.shape[1], sample.shape[0] / part.shape[0], 1.0
    stretched: Float = part * np.array(stretch, dtype=np.float32)
    return stretched


def shown(picture: Frame, crop: CropName) -> Frame:
    """Returns what a sample shows of a face's picture, (S, S) uint8, stretched to (S, S) as the sample is.

    What is drawn over a picture by the places of patches is drawn over this.
    """
    if crop == "wide":
        return picture
    stretched: Frame = opencv().resize(_close(picture), picture.shape[::-1])
    return stretched


def _close(picture: NDArray[Any]) -> NDArray[Any]:
    height, width = picture.shape[:2]
    x0, x1 = round(CLOSE[0] * width), round(CLOSE[2] * width)
    y0, y1 = round(CLOSE[1] * height), round(CLOSE[3] * height)
    return picture[y0:y1, x0:x1]


def resize(fields: Float, size: int) -> Float:
    """Resamples (H, W, C) float32 to (size, size, C): area average to shrink, bilinear to enlarge."""
    height, width = fields.shape[:2]
    if (height, width) == (size, size):
        return fields
    cv2 = opencv()
    method = cv2.INTER_AREA if min(height, width) >= size else cv2.INTER_LINEAR
    resized: Float = cv2.resize(np.ascontiguousarray(fields), (size, size), interpolation=method)
    return resized


def normalise(flow: Float) -> Float:
    """Takes location and scale out of each image.

    u and v lose their own median and are divided by their common standard deviation, the root of the
    mean of both variances, so that directions stay true. Strain is divided by its own standard
    deviation and not centred: it stays non-negative, which the selection by strain relies on. A flat
    channel becomes zero.

    Args:
        flow: (..., H, W, 3) float32: u, v, strain.

    Returns:
        (..., H, W, 3) float32. Each image comes out the same alone and in a batch.
    """
    height, width, channels = flow.shape[-3:]
    planes = _normalised(flow.reshape(-1, height, width, channels))
    return np.ascontiguousarray(np.moveaxis(planes, 1, -1).reshape(flow.shape))


def _normalised(batch: Float) -> Float:
    """(B, H, W, 3) -> (B, 3, H, W) float32, normalised; all but the search for the medians is done in float64."""
    count, height, width, channels = batch.shape
    planes = np.array(np.moveaxis(batch, -1, 1), dtype=np.float32, order="C").reshape(count, channels, -1)
    pixels = planes.shape[-1]
    middle = [(pixels - 1) // 2, pixels // 2]
    middles = np.partition(planes[:, :2], middle, axis=-1)[..., middle]  # (B, 2, 2)
    exact = planes.astype(np.float64)
    exact[:, :2] -= middles.astype(np.float64).mean(axis=-1, keepdims=True)
    means = exact.mean(axis=-1)
    # No dot product: of so many pixels BLAS wakes threads for it, which spin until long after.
    variances = np.square(exact).mean(axis=-1) - means * means  # (B, 3)
    variances[:, :2] = variances[:, :2].mean(axis=1, keepdims=True)
    spread = np.sqrt(np.maximum(variances, 0))
    exact *= np.where(spread > FLAT, 1 / np.maximum(spread, FLAT), 0.0)[..., None]
    return exact.astype(np.float32).reshape(count, channels, height, width)


def to_input(flow: Float) -> Float:
    """Normalises flow samples and puts channels first, as the network takes them.

    Args:
        flow: (H, W, 3) or (B, H, W, 3) float32: u, v, strain.

    Returns:
        (B, 3, H, W) float32, normalised, contiguous; B is 1 for a single sample.
    """
    return _normalised(flow[None] if flow.ndim == 3 else flow)


def check_flow(flow: Any, image_size: int) -> None:
    """Makes sure that `flow` is a flow sample of a model.

    Raises:
        InputError: it is not (image_size, image_size, 3) float32 or holds NaN or infinity.
    """
    accepted = f"a flow sample must be ({image_size}, {image_size}, 3) float32: u, v, strain"
    if not isinstance(flow, np.ndarray):
        raise InputError(f"{accepted}; found {type(flow).__name__}")
    if flow.shape != (image_size, image_size, 3) or flow.dtype != np.float32:
        raise InputError(f"{accepted}; found {flow.shape} {flow.dtype}")
    bad = int(flow.size - np.isfinite(flow).sum())
    if bad:
        raise InputError(f"{accepted}, all finite; found {bad} values that are NaN or infinite")


def check_frame(frame: Any) -> NDArray[np.uint8]:
    """Returns a frame that can be processed; (H, W, 1) comes back as (H, W).

    Raises:
        InputError: it is neither an (H, W, 3) uint8 BGR nor an (H, W) uint8 gray image of at least 16 pixels a side.
    """
    if isinstance(frame, np.ndarray) and frame.dtype == np.uint8:
        if frame.ndim == 3 and frame.shape[2] == 1:
            frame = frame[..., 0]
        coloured = frame.ndim == 3 and frame.shape[2] == 3
        if (coloured or frame.ndim == 2) and min(frame.shape[:2]) >= MIN_FRAME:
            taken: NDArray[np.uint8] = frame
            return taken
    found = f"{frame.shape} {frame.dtype}" if isinstance(frame, np.ndarray) else type(frame).__name__
    raise InputError(
        f"a frame must be (H, W, 3) uint8 BGR or (H, W) uint8 gray, at least {MIN_FRAME} pixels a side; found {found}"
    )


def _check_frames(onset: Frame, apex: Frame) -> None:
    for name, frame in (("onset", onset), ("apex", apex)):
        if not isinstance(frame, np.ndarray) or frame.ndim != 2 or frame.dtype != np.uint8:
            found = f"{frame.shape} {frame.dtype}" if isinstance(frame, np.ndarray) else type(frame).__name__
            raise InputError(f"the {name} frame must be (H, W) uint8, gray; found {found}")
    if onset.shape != apex.shape:
        raise InputError(f"onset and apex must be of one size; found {onset.shape} and {apex.shape}")
    if min(onset.shape) < MIN_FRAME:
        raise InputError(f"frames must be at least {MIN_FRAME} pixels a side; found {onset.shape}")


def dense_flow(onset: Frame, apex: Frame, search: Search) -> Float:
    """Returns (H, W, 2) float32, u and v in pixels; no head motion is taken out."""
    cv2 = opencv()
    method = cv2.DISOpticalFlow_create(getattr(cv2, f"DISOPTICAL_FLOW_PRESET_{search.preset}"))
    if search.descents is not None:
        method.setGradientDescentIterations(search.descents)
    if search.refinements is not None:
        method.setVariationalRefinementIterations(search.refinements)
    flow: Float = method.calc(np.ascontiguousarray(onset), np.ascontiguousarray(apex), None)
    return flow


@cache
def _stable_points(height: int, width: int) -> Float:
    """Returns (n, 2) float32: x, y of the grid points outside of `_MOVING`."""
    centres = (np.arange(_GRID) + 0.5) / _GRID
    x, y = (part.ravel() for part in np.meshgrid(centres, centres))
    stable = np.ones(x.shape, dtype=bool)
    for x0, y0, x1, y1 in _MOVING:
        stable &= ~((x > x0) & (x < x1) & (y > y0) & (y < y1))
    points = np.stack([np.floor(x[stable] * width), np.floor(y[stable] * height)], axis=1)
    return points.astype(np.float32)
