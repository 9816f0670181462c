"""A morphable face that nobody was recorded for, and its packed file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ptsr_edge.data.morphable_face import FILE, MorphableFace


def bump(places: np.ndarray, x: float, y: float, towards: tuple[float, float, float]) -> np.ndarray:
    near = np.exp(-((places[:, 0] - x) ** 2 + (places[:, 1] - y) ** 2) / 2)
    return (near[:, None] * towards).astype(np.float32)


def shell_face() -> MorphableFace:
    """A shell of 16 x 20 cm with eyes at y = 3, 6 cm apart, a mouth at y = -4, and bumps for movements."""
    x, y = np.meshgrid(np.linspace(-8, 8, 65), np.linspace(10, -10, 81))
    places = np.stack([x, y, 9 - (x**2 + y**2) / 20], axis=-1).reshape(-1, 3).astype(np.float32)
    corner = (np.arange(80)[:, None] * 65 + np.arange(64)).ravel()
    quads = np.stack([corner, corner + 65, corner + 66, corner + 1], axis=1).astype(np.int32)
    landmarks = np.zeros(68, dtype=np.int64)
    for marks, at in (
        ((*range(36, 42),), (-3, 3)),
        ((*range(42, 48),), (3, 3)),
        ((48,), (-2, -4)),
        ((54,), (2, -4)),
    ):
        landmarks[list(marks)] = np.hypot(places[:, 0] - at[0], places[:, 1] - at[1]).argmin()
    movements = {"mouthShrugLower": bump(places, 0, -6, (0, 1, 0))}
    towards = {
        "browInnerUp": (1, 5, (0, 1, 0)),
        "browDown": (2, 5, (0, -1, 0)),
        "mouthSmile": (2, -4, (0.5, 1, 0)),
    }
    for name in ("browInnerUp", "browOuterUp", "browDown", "eyeWide", "cheekSquint", "cheekRaiser", "eyeSquint",
                 "noseSneer", "mouthSmile", "mouthDimple", "mouthFrown", "eyeBlink"):  # fmt: skip
        at_x, at_y, to = towards.get(name, (2, 0, (0, 1, 0)))
        for side, sign in (("L", 1), ("R", -1)):
            movements[f"{name}_{side}"] = bump(places, sign * at_x, at_y, (sign * to[0], *to[1:]))
    identity = np.stack([places * 0.01])
    return MorphableFace(
        places, identity, np.stack(list(movements.values())), tuple(movements), quads, landmarks, "none"
    )


def write_packed_face(folder: Path) -> None:
    """Writes the shell's file, with the parts that `pack_facekit` writes."""
    folder.mkdir()
    face = shell_face()
    parts: dict[str, Any] = {
        "neutral": face.neutral,
        "faces": face.faces,
        "landmarks68": face.landmarks,
        "expression_names": np.array(face.names),
    }
    for name, moves in (("identity", face.identity), ("expression", face.expression)):
        scale = np.abs(moves).max(axis=(1, 2))
        parts |= {name: (moves / scale[:, None, None]).astype(np.float16), f"{name}_scale": scale}
    np.savez_compressed(folder / FILE, **parts)
