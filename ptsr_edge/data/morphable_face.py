"""People of a morphable face model: their micro-expressions as exact motion, projected as a camera sees it.

The model is ICT-FaceKit's (Li et al., Learning Formation of Physically-Based Face Attributes, CVPR 2020, arXiv
2004.03458; MIT licence): a neutral mesh, principal modes of identity, and one shape for each facial movement and side,
all made from scans of people. The package has none of it: `ptsr-edge data facekit` packs the face region of the public
folder into one file, and what is trained on its faces names it and its licence.

No picture is rendered and no flow is measured: `render_people` projects the moved vertices, so that a clip takes
milliseconds at any size. What flow estimation does to motion is put in afterwards: it finds some parts of a face better
than others, and is noisy. Why each step is there, and what was left out, is in benchmarks/ACCURACY.md.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.core.config import CropName
from ptsr_edge.core.console import progress
from ptsr_edge.core.errors import InputError, require
from ptsr_edge.core.files import DAMAGED_ARRAYS, read_arrays, sha256_of, write_whole
from ptsr_edge.vision.flow import CLOSE, opencv, optical_strain, resize

Float = NDArray[np.float32]

CARD = (
    "faces of ICT-FaceKit (Copyright (c) 2020 USC Institute for Creative Technologies, MIT licence), which never were "
    "recorded"
)

VERTICES, POLYGONS = 9409, 9230
"""The face region in ICT-FaceKit's meshes, which comes first in them."""

IDENTITIES = 100

NOT_MOVEMENTS = ("generic_neutral_mesh", "identity", "PupilDilate")
"""Beginnings of the names of meshes that are no movement of the face's skin."""

LANDMARKS = (
    1225, 1888, 1052, 367, 1719, 1722, 2199, 1447, 966, 3661, 4390, 3927, 3924, 2608, 3272, 4088, 3443, 268, 493, 1914,
    2044, 1401, 3615, 4240, 4114, 2734, 2509, 978, 4527, 4942, 4857, 1140, 2075, 1147, 4269, 3360, 1507, 1542, 1537,
    1528, 1518, 1511, 3742, 3751, 3756, 3721, 3725, 3732, 5708, 5695, 2081, 0, 4275, 6200, 6213, 6346, 6461, 5518, 5957,
    5841, 5702, 5711, 5533, 6216, 6207, 6470, 5517, 5966,
)  # fmt: skip
"""Vertices of the 68 landmarks of Multi-PIE, as the model's authors list them."""

NEUTRAL = "generic_neutral_mesh"

FILE = "ict_face.npz"
"""Name of the packed file."""

MOST_CM = 1000.0
"""Of a place or a displacement: far above those of any face."""

LAYOUT = "accepted: the folder of ICT-FaceKit, or its FaceXModel, with generic_neutral_mesh.obj"


@dataclass(frozen=True)
class MorphableFace:
    """The model. Lengths are in centimetres: +x to the subject's left, +y up, +z to the front.

    Attributes:
        neutral: (V, 3) float32: the mean face.
        identity: (m, V, 3) float32: displacements, to be weighted by draws from N(0, 1).
        expression: (e, V, 3) float32: displacement of each facial movement at its full strength.
        names: of the e movements, such as `browDown_L`.
        faces: (q, 4) int32: the quadrangles.
        landmarks: (68,) int64: vertices.
        digest: SHA-256 of the file.
    """

    neutral: Float
    identity: Float
    expression: Float
    names: tuple[str, ...]
    faces: NDArray[np.int32]
    landmarks: NDArray[np.int64]
    digest: str


@np.errstate(all="ignore")  # what is too large is told by `check_shapes`
def read_morphable_face(folder: Path | None) -> MorphableFace:
    """Reads the model out of a folder with `ict_face.npz`.

    Raises:
        InputError: there is no such file, or it is not one that `pack_facekit` wrote.
    """
    if folder is None:
        raise InputError(f"data ict-face needs the folder that {FILE} lies in (--root): none is given")
    path = folder / FILE
    if not path.is_file():
        raise InputError(
            f"{folder} holds no {FILE}: `ptsr-edge data facekit --root ICT-FaceKit` writes it there"
        )
    try:
        parts = read_arrays(path)
        scaled = {
            name: parts[name].astype(np.float32) * parts[f"{name}_scale"].astype(np.float32)[:, None, None]
            for name in ("identity", "expression")
        }
        face = MorphableFace(
            neutral=parts["neutral"].astype(np.float32),
            identity=scaled["identity"],
            expression=scaled["expression"],
            names=tuple(str(name) for name in parts["expression_names"]),
            faces=parts["faces"].astype(np.int32),
            landmarks=parts["landmarks68"].astype(np.int64),
            digest=sha256_of(path),
        )
    except (*DAMAGED_ARRAYS, IndexError) as error:
        raise InputError(f"{path} is no packed face model ({error}): pack it again") from None
    check_shapes(face, path)
    return face


def check_shapes(face: MorphableFace, path: Path) -> None:
    """Makes sure that the parts of a model go together.

    Raises:
        InputError: they do not; the message says which.
    """
    count = face.neutral.size // 3
    whole = {
        "neutral": face.neutral.shape == (count, 3) and count > 0,
        "identity": face.identity.shape[1:] == (count, 3) and len(face.identity) > 0,
        "expression": face.expression.shape[1:] == (count, 3) and len(face.expression) == len(face.names),
        "faces": face.faces.ndim == 2 and face.faces.shape[1] == 4 and _within(face.faces, count),
        "landmarks68": face.landmarks.shape == (len(LANDMARKS),) and _within(face.landmarks, count),
    }
    parts = (face.neutral, face.identity, face.expression)
    held = all(np.abs(part).max(initial=0) <= MOST_CM for part in parts)  # NaN is not, either
    wrong = [name for name, is_right in whole.items() if not is_right] + ([] if held else ["a number"])
    if wrong:
        raise InputError(f"{path} is no packed face model: {', '.join(wrong)} cannot be: pack it again")


def _within(places: NDArray[np.integer], count: int) -> bool:
    return bool(places.size and places.min() >= 0 and places.max() < count)


def pack_facekit(root: Path) -> Path:
    """Packs the face region of ICT-FaceKit into `ict_face.npz` in that folder, some 6 MB of 500; returns its path.

    Displacements are kept as float16 of each shape's largest, whose steps are below a thousandth of a millimetre.

    Raises:
        InputError: the folder is not that of ICT-FaceKit, or a mesh is not as it should be.
        JobError: the file cannot be written.
    """
    meshes = root / "FaceXModel" if (root / "FaceXModel").is_dir() else root
    if not (meshes / f"{NEUTRAL}.obj").is_file():
        raise InputError(f"{root} holds no {NEUTRAL}.obj; {LAYOUT}")
    neutral, faces = read_mesh(meshes / f"{NEUTRAL}.obj")
    identities = [meshes / f"identity{number:03d}.obj" for number in range(IDENTITIES)]
    movements = sorted(
        (path for path in meshes.glob("*.obj") if not path.stem.startswith(NOT_MOVEMENTS)),
        key=lambda path: path.stem,
    )
    missing = [path.name for path in identities if not path.is_file()] or (
        [] if movements else ["browDown_L.obj"]
    )
    if missing:
        raise InputError(f"{meshes} holds no {missing[0]} and {len(missing) - 1} more; {LAYOUT}")
    parts = {"neutral": neutral, "faces": faces, "landmarks68": np.array(LANDMARKS)}
    for name, paths in (("identity", identities), ("expression", movements)):
        moves = np.stack(
            [read_mesh(path)[0] - neutral for path in progress(paths, f"reading {name}", len(paths))]
        )
        scale = np.abs(moves).max(axis=(1, 2))
        parts |= {name: (moves / scale[:, None, None]).astype(np.float16), f"{name}_scale": scale}
    parts["expression_names"] = np.array([path.stem for path in movements])
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **parts)
    write_whole(root / FILE, content.getvalue())
    return root / FILE


def read_mesh(path: Path) -> tuple[Float, NDArray[np.int32]]:
    """Reads the face region of a Wavefront OBJ file: vertices (V, 3) and quadrangles (q, 4).

    Raises:
        InputError: the file cannot be read, or its face region is not that of ICT-FaceKit.
    """
    try:
        with path.open(encoding="ascii") as lines:
            vertices, faces = _face_region(lines)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no mesh of ICT-FaceKit ({error})") from None
    if len(vertices) != VERTICES or len(faces) != POLYGONS or not np.isfinite(vertices).all():
        raise InputError(
            f"{path} is no mesh of ICT-FaceKit: {len(vertices)} vertices and {len(faces)} quadrangles of a face, wanted "
            f"{VERTICES} and {POLYGONS}"
        )
    return np.array(vertices, dtype=np.float32), np.array(faces, dtype=np.int32)


def _face_region(lines: Iterator[str]) -> tuple[list[list[float]], list[list[int]]]:
    vertices: list[list[float]] = []
    faces: list[list[int]] = []
    for line in lines:
        kind, _, rest = line.partition(" ")
        if kind == "v" and len(vertices) < VERTICES:
            x, y, z = rest.split()
            vertices.append([float(x), float(y), float(z)])
        elif kind == "f":
            # Counted from 1; behind a slash stand texture and normal.
            corners = [int(corner.partition("/")[0]) - 1 for corner in rest.split()]
            if len(corners) != 4 or not 0 <= min(corners) <= max(corners) < VERTICES:
                raise ValueError(f"the quadrangle {rest.strip()!r} is no part of the face")
            faces.append(corners)
            if len(faces) == POLYGONS:
                break
    return vertices, faces


SUBJECTS = 500
CLIPS_PER_SUBJECT = 40

ACTION_UNITS: dict[int, tuple[str, ...]] = {
    1: ("browInnerUp",),
    2: ("browOuterUp",),
    4: ("browDown",),
    5: ("eyeWide",),
    6: ("cheekSquint", "cheekRaiser"),
    7: ("eyeSquint",),
    9: ("noseSneer",),
    12: ("mouthSmile",),
    14: ("mouthDimple",),
    15: ("mouthFrown",),
    17: ("mouthShrugLower",),
    45: ("eyeBlink",),
}
"""Movements that make a unit of FACS: one for each side, or, where the model knows no sides, of the middle."""

BLINK = 45

UNITS = tuple(ACTION_UNITS)


class Recipe(NamedTuple):
    """Units that are shown together, and how often among the clips of a class."""

    share: float
    units: tuple[int, ...]
    one_sided: bool = False


RECIPES = (
    (
        Recipe(0.42, (4,)),
        Recipe(0.2, (4, 7)),
        Recipe(0.08, (4, 9)),
        Recipe(0.04, (9,)),
        Recipe(0.04, (7,)),
        Recipe(0.06, (14,)),
        Recipe(0.05, (14,), one_sided=True),
        Recipe(0.04, (15,)),
        Recipe(0.04, (17,)),
        Recipe(0.03, (12,), one_sided=True),
    ),
    (Recipe(0.6, (12,)), Recipe(0.3, (6, 12)), Recipe(0.1, (12,), one_sided=True)),
    (
        Recipe(0.7, (1, 2)),
        Recipe(0.1, (2,)),
        Recipe(0.05, (1,)),
        Recipe(0.1, (1, 2), one_sided=True),
        Recipe(0.05, (5,)),
    ),
)
"""Per class of LABELS, after EMFACS. Few units each: annotated micro-expressions mostly show one or two."""

CLASS_SHARES = (0.45, 0.275, 0.275)
"""Negative, positive, surprise: as uneven as in recorded data."""

PEAK = (0.4 / 112, 1.8 / 112)
"""Range of the largest displacement of an expression, in sides of the picture."""

IDENTITY_SD = 0.8
"""Of the weights of the modes of identity; 1 gives more odd faces than there are."""

POSE_SD = (0.12, 0.10)
"""Of yaw and pitch of the head to the camera, in radians."""

DISTANCE_CM = (50.0, 120.0)
"""From the camera to the middle of the head."""

EYES_Y, MOUTH_Y, HALF_EYES_X = 0.26, 0.69, 0.275
"""Where the crop `close` has the line of the eyes and that of the mouth's corners, and half the distance between the eyes, in
its sides: as the publishers of recorded sets crop, found on the mean strain of their flow fields."""

CROP_SD = 0.02

GAIN_SD = 0.4
"""Of the log of how much more a person's unit moves across than up and down, and than another person's."""

HABIT_SD, SIDE_SD, CLIP_SIDE_SD = 0.5, 0.25, 0.5
"""Of the log of the strength of a person's unit, of its sides, and of its sides in one clip."""

BLINK_SHARE, BLINK_REACH = 0.3, (0.1, 1.0)
"""Clips in which lids move, and how far, as a share of the expression's peak."""

FOUND_SIZE, FOUND_SLOPE = 6 / 28, 1.4
"""Flow is found better here and worse there: size of such parts in sides, and how sharply they differ."""

HEAD_SD = 0.25
"""Of the root mean square of the head's motion between onset and apex, as a share of the expression's peak."""

HEAD_MOVES = (1 / 6, 1 / 6, 1 / 6, 1.0, 1.0, 2.0)
"""Relative strength of the turns about x, y, z (per radian and cm) and of the shifts along them."""

NOISE, NOISE_SD = 0.03, 0.5
"""Median of the noise's deviation as a share of the expression's peak, and deviation of its log."""

NOISE_SIZES = (1.5 / 28, 4 / 28, 9 / 28)


@dataclass(frozen=True)
class FaceMotion:
    """What the camera sees of each movement of one person's face, in a picture of G pixels a side.

    Attributes:
        units: (u, 2, G, G, 2) float32: of each unit, of the person's right side and the left: u and v in pixels, both
            sides together 1 cm where they move most.
        head: (6, G, G, 2) float32: of turns about x, y and z by a radian, and of shifts along them by 1 cm.
    """

    units: Float
    head: Float


def subject_names(count: int = SUBJECTS) -> list[str]:
    """Returns the names of the first people."""
    return [f"ict-face/{number:03d}" for number in range(count)]


def render_people(
    face: MorphableFace, numbers: Sequence[int], clips: int, image_size: int, crop: CropName, seed: int = 0
) -> tuple[Float, NDArray[np.int64], list[frozenset[int]]]:
    """Renders the first clips of people; each comes out the same alone and among others.

    Args:
        face: the model.
        numbers: p people, by their numbers from 0.
        clips: c of each.
        image_size: S.
        crop: how much of a face the samples show.
        seed: of the people.

    Returns:
        (p c, S, S, 3) float32: u and v in pixels of a crop of 2 S pixels a side, and strain; (p c,) int64: labels; and the
        units of each.

    Raises:
        InputError: the model lacks a movement that a unit is made of, or shows no face where its landmarks are.
        MissingExtraError: OpenCV or SciPy is not installed.
    """
    moves = unit_moves(face)
    flows = np.empty((len(numbers) * clips, image_size, image_size, 3), dtype=np.float32)
    labels = np.empty(len(numbers) * clips, dtype=np.int64)
    units = []
    for place, number in enumerate(progress(numbers, "rendering faces", len(numbers))):
        rng = np.random.default_rng([seed, number])
        motion = draw_motion(face, moves, 2 * image_size, crop, rng)
        habit = np.exp(rng.normal(0, HABIT_SD, (len(UNITS), 1)) + rng.normal(0, SIDE_SD, (len(UNITS), 2)))
        for clip in range(clips):
            own = np.random.default_rng([seed, number, clip])
            flow, label, shown = draw_clip(motion, habit, own)
            flows[place * clips + clip] = resize(np.dstack([flow, optical_strain(flow)]), image_size)
            labels[place * clips + clip] = label
            units.append(shown)
    return flows, labels, units


def unit_moves(face: MorphableFace) -> Float:
    """Returns (u, 2, V, 3): the displacement of each unit's right side and left, together 1 cm where they move most.

    Raises:
        InputError: the model lacks a movement that a unit is made of, or it moves nothing.
    """
    found = []
    for names in ACTION_UNITS.values():
        sides = np.stack([sum(_movement(face, name, side) for name in names) for side in ("R", "L")])
        reach_cm = np.linalg.norm(sides.sum(axis=0), axis=1).max()
        if reach_cm == 0:
            raise InputError(f"the face model's {' and '.join(names)} moves nothing: pack it again")
        found.append(sides / reach_cm)
    return np.stack(found)


def _movement(face: MorphableFace, name: str, side: str) -> Float:
    if name in face.names:
        return np.asarray(face.expression[face.names.index(name)] / 2)
    if f"{name}_{side}" in face.names:
        return np.asarray(face.expression[face.names.index(f"{name}_{side}")])
    raise InputError(f"the face model has no movement {name}_{side}; it has {', '.join(face.names)}")


def draw_motion(
    face: MorphableFace, moves: Float, size: int, crop: CropName, rng: np.random.Generator
) -> FaceMotion:
    """Draws a person before a camera.

    Args:
        face: the model.
        moves: (u, 2, V, 3), as `unit_moves` gives them.
        size: G.
        crop: how much of the face the picture shows.
        rng: of person, pose, camera and crop.
    """
    drawn = rng.normal(0, IDENTITY_SD, len(face.identity)).astype(np.float32)
    shape = face.neutral + np.tensordot(drawn, face.identity, 1)
    middle = np.array([0, 0, 2], dtype=np.float32)
    turn = _turn(*rng.normal(0, POSE_SD))
    seen = (shape - middle) @ turn.T  # (V, 3)
    distance = rng.uniform(*DISTANCE_CM)
    nearness = distance / (distance - seen[:, 2])
    places = seen[:, :2] * (1, -1) * nearness[:, None]
    corner, scale = _draw_crop(places[face.landmarks], crop, rng)
    turns = np.stack([np.cross(axis, shape - middle) for axis in np.eye(3)])
    shifts = np.broadcast_to(np.eye(3)[:, None], turns.shape)
    moved = np.concatenate([moves.reshape(-1, *shape.shape), turns, shifts]) @ turn.T  # (2 u + 6, V, 3)
    nearing = nearness / (distance - seen[:, 2]) * moved[..., 2]
    flat = moved[..., :2] * (1, -1) * nearness[:, None] + seen[:, :2] * (1, -1) * nearing[..., None]
    fields = _spread((places - corner) * scale * size, flat * scale * size, face.faces, size)
    count = 2 * len(moves)
    # Across and along by themselves, as skin differs from person to person; the same on both sides.
    gains = np.exp(rng.normal(0, GAIN_SD, (len(moves), 1, 1, 1, 2))).astype(np.float32)
    return FaceMotion(fields[:count].reshape(len(moves), 2, size, size, 2) * gains, fields[count:])


def _turn(yaw: float, pitch: float) -> Float:
    about_y = [[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]]
    about_x = [[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]]
    return (np.array(about_y) @ np.array(about_x)).astype(np.float32)


def _draw_crop(
    landmarks: NDArray[np.float64], crop: CropName, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the picture's upper left corner and its sides to a centimetre, from landmarks (68, 2) in cm."""
    right, left, mouth = landmarks[36:42].mean(0), landmarks[42:48].mean(0), landmarks[[48, 54]].mean(0)
    eyes = (right + left) / 2
    x0, y0, x1, y1 = (0.0, 0.0, 1.0, 1.0) if crop == "close" else CLOSE
    off = rng.normal(0, CROP_SD, 4) * (1, 1, 0.7, 0.7)
    eyes_y, mouth_y = y0 + (y1 - y0) * (EYES_Y + off[0]), y0 + (y1 - y0) * (MOUTH_Y + off[1])
    wide = np.linalg.norm(left - right) / (2 * (x1 - x0) * (HALF_EYES_X + off[2]))
    high = (mouth[1] - eyes[1]) / (mouth_y - eyes_y)
    corner = eyes - (wide * ((x0 + x1) / 2 + (x1 - x0) * off[3]), high * eyes_y)
    return corner, np.array([1 / wide, 1 / high])


def _spread(
    places: NDArray[np.float64], moved: NDArray[np.float64], faces: NDArray[np.int32], size: int
) -> Float:
    """Interpolates displacements (k, V, 2) of vertices at (V, 2), in pixels, linearly to (k, size, size, 2).

    Vertices of quadrangles that are turned away are left out; outside of all others nothing moves.

    Raises:
        InputError: none is left.
    """
    require("scipy", "train", "rendering faces")
    from scipy.spatial import Delaunay, QhullError

    a, b, c = (places[faces[:, corner]] for corner in range(3))
    area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    chosen = np.zeros(len(places), dtype=bool)
    chosen[faces[area * np.sign(np.median(area)) > 0]] = True
    chosen &= (np.abs(places / size - 0.5) < 0.8).all(axis=1)
    try:
        mesh = Delaunay(places[chosen])
    except (ValueError, QhullError):  # no vertex in the picture, or all on a line
        raise InputError("the face model shows no face where its landmarks are: pack it again") from None
    y, x = np.mgrid[:size, :size] + 0.5
    pixels = np.stack([x, y], axis=-1).reshape(-1, 2)
    found = mesh.find_simplex(pixels)
    transform = mesh.transform[found]  # (n, 3, 2): of a point to its first two weights, and the third corner
    two = np.einsum("nij,nj->ni", transform[:, :2], pixels - transform[:, 2])
    weights = np.concatenate([two, 1 - two.sum(axis=1, keepdims=True)], axis=1) * (found >= 0)[:, None]
    corners = np.flatnonzero(chosen)[mesh.simplices[found]]  # (n, 3)
    spread = sum(weights[:, k, None].astype(np.float32) * moved[:, corners[:, k]] for k in range(3))
    return np.asarray(spread, dtype=np.float32).reshape(len(moved), size, size, 2)


def draw_clip(
    motion: FaceMotion, habit: NDArray[np.float64], rng: np.random.Generator
) -> tuple[Float, int, frozenset[int]]:
    """Draws a clip of a person: its flow (G, G, 2) in pixels, its label, and the units that are shown.

    Args:
        motion: of the person, before the camera.
        habit: (u, 2): how strongly the person shows each unit, on the right and on the left.
        rng: of the clip.
    """
    size = motion.units.shape[2]
    label = int(rng.choice(len(CLASS_SHARES), p=CLASS_SHARES))
    recipe = RECIPES[label][rng.choice(len(RECIPES[label]), p=[one.share for one in RECIPES[label]])]
    strength = np.zeros_like(habit)
    for unit in recipe.units:
        place = UNITS.index(unit)
        strength[place] = rng.uniform(0.5, 1) * habit[place] * np.exp(rng.normal(0, CLIP_SIDE_SD, 2))
    if recipe.one_sided:
        strength[:, rng.integers(2)] *= 0.1
    flow = _to_peak(np.tensordot(strength, motion.units, 2))
    if rng.random() < BLINK_SHARE:
        flow += (
            rng.choice((-1, 1))
            * rng.uniform(*BLINK_REACH)
            * _to_peak(motion.units[UNITS.index(BLINK)].sum(0))
        )
    flow = _to_peak(flow / (1 + np.exp(-FOUND_SLOPE * smooth_noise(rng, size, FOUND_SIZE, 1))))
    head = np.tensordot(rng.normal(0, 1, len(HEAD_MOVES)) * HEAD_MOVES, motion.head, 1)
    flow += abs(rng.normal(0, HEAD_SD)) * head / np.sqrt(np.square(head).mean())
    level = NOISE * np.exp(rng.normal(0, NOISE_SD))
    for share, grain in zip(rng.dirichlet(np.ones(len(NOISE_SIZES))), NOISE_SIZES, strict=True):
        flow += level * share * smooth_noise(rng, size, grain, 2)
    return (rng.uniform(*PEAK) * size * flow).astype(np.float32), label, frozenset(recipe.units)


def _to_peak(flow: NDArray[np.floating]) -> NDArray[np.floating]:
    """Returns a field whose largest displacement is 1; one that does not move stays as it is."""
    largest = np.sqrt(np.square(flow).sum(axis=-1)).max()
    return flow / largest if largest > 0 else flow


def smooth_noise(rng: np.random.Generator, size: int, grain: float, channels: int) -> Float:
    """Returns (size, size, channels) of Gaussian noise of deviation 1 whose parts are as large as `grain`, in sides."""
    step = max(1, int(grain * size / 2))
    few = -(-size // step) + 2
    noise = rng.standard_normal((few, few, channels), dtype=np.float32)
    noise = opencv().GaussianBlur(noise, (0, 0), grain * size / step).reshape(noise.shape)
    enlarged = opencv().resize(
        noise / noise.std(), (few * step, few * step), interpolation=opencv().INTER_CUBIC
    )
    smooth: Float = enlarged.reshape(few * step, few * step, channels)[:size, :size]
    return smooth
