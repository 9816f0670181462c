"""Finished bundles, kept under a hash of all that an export depends on: the same export again is a copy.

An artifact is stale when anything that shaped it has changed, so everything goes into the key: the weights,
the call, the data, the versions of the tools, this package's own source and the processor. What is handed
out has just been hashed, file by file; an entry that is not what was stored is a miss, and is removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ptsr_edge.bundle import Bundle, read_bundle
from ptsr_edge.core.disk_cache import (
    ABANDONED_S,
    _copy,
    _names,
    _rename_new,
    _size_of,
    _Spoiled,
    code_digest,
    default_folder,
)
from ptsr_edge.core.errors import InputError, JobError
from ptsr_edge.core.files import staged_folder, write_json
from ptsr_edge.core.system import describe_cpu, describe_gpus, installed

log = logging.getLogger("ptsr_edge")

LIMIT_BYTES = 2_000_000_000

TOOLS = (
    "torch",
    "onnx",
    "onnxscript",
    "onnx-ir",
    "onnxruntime",
    "openvino",
    "nncf",
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "tensorrt-rtx",
    "tensorrt-rtx-cu12",
    "tensorrt-rtx-cu13",
    "numpy",
    "opencv-python-headless",
)
"""Distributions whose version can change an artifact, its proof or the samples that it is calibrated on."""

CONTENT = "bundle"

RECORD = "entry.json"

UNFINISHED = ".new-"


def surroundings() -> dict[str, Any]:
    """The parts of a key that no call names: tools, source, machine."""
    return {"tools": tool_versions(), "code": code_digest(), "hardware": hardware()}


def tool_versions() -> dict[str, str]:
    """Versions of those of `TOOLS` that are installed; nothing is imported."""
    return installed(TOOLS)


def hardware() -> dict[str, Any]:
    """What decides which kernels are picked: processor, instruction sets, and each GPU with its driver."""
    cpu = describe_cpu()
    return {
        "cpu": {key: cpu[key] for key in ("model", "architecture", "flags")},
        "gpus": [
            {key: gpu.get(key) for key in ("name", "compute_cap", "driver_version")}
            for gpu in describe_gpus()
        ],
    }


def data_fingerprint(name: str, root: Path | None) -> str:
    """What tells one state of a data set from another, without reading the files.

    Data in files: SHA-256 over names, sizes and times of change below `root`, of the content and of the file's
    own record, which no tool can set back. Data without (`synthetic`) are made by this package's source, which
    `code_digest` stands for.

    Raises:
        JobError: a file below `root` cannot be looked at.
    """
    digest = hashlib.sha256(name.encode())
    if root is None or name == "synthetic":
        return digest.hexdigest()
    try:
        for path in sorted(root.rglob("*")):
            if path.is_file():
                facts = path.stat()
                place = path.relative_to(root).as_posix()
                times = f"{facts.st_mtime_ns}\0{facts.st_ctime_ns}"
                digest.update(f"\0{place}\0{facts.st_size}\0{times}".encode())
    except OSError as error:
        raise JobError(f"cannot look at the data below {root}: {error}") from error
    return digest.hexdigest()


class BundleCache:
    """A folder of finished bundles. Processes may share it; a fault of the cache never fails an export."""

    def __init__(self, folder: Path | None = None, limit_bytes: int = LIMIT_BYTES) -> None:
        """`folder` by default `default_folder()`; nothing is written before the first `store`."""
        self.folder = folder if folder is not None else default_folder()
        self.limit_bytes = limit_bytes
        self._told = False
        if self.folder is None:
            self._tell("there is no home directory")

    def fetch(self, key: str, out: Path) -> Bundle | None:
        """Copies a stored bundle to `out`, or returns None.

        Every byte that is copied is hashed on its way. Where a hash is not the one of the entry or of its
        manifest, where a file is missing or there is one too many, the entry is removed; `out` is untouched.

        Raises:
            JobError: `out` cannot be written.
        """
        if self.folder is None or not (self.folder / key).is_dir():
            return None
        entry = self.folder / key
        try:
            digests = _read_record(entry)
            with staged_folder(out) as stage:
                for name, digest in digests.items():
                    if _copy(entry / CONTENT / name, stage / name) != digest:
                        raise _Spoiled(f"{name} has changed")
                bundle = _checked(stage, digests)
        except _Spoiled as error:
            if entry.is_dir():  # else another process made room just now
                log.warning("cache: %s: %s; it is made anew", entry, error)
                self._remove(entry)
            return None
        with contextlib.suppress(OSError):  # a cache that may only be read
            os.utime(entry)
        return bundle

    def store(self, key: str, bundle_folder: Path) -> None:
        """Keeps a copy of a bundle under a key; one that is there already stays.

        The entry appears whole or not at all. What was not used for longest goes when the cache grows over
        its bound; a bundle larger than that is not kept.
        """
        if self.folder is None or self._told:
            return
        stage = None
        try:
            if _size_of(bundle_folder) > self.limit_bytes:
                log.info("cache: %s is larger than the cache may be: not kept", bundle_folder)
                return
            self.folder.mkdir(parents=True, exist_ok=True)
            stage = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=self.folder))
            digests = {
                name: _copy(bundle_folder / name, stage / CONTENT / name) for name in _names(bundle_folder)
            }
            _checked(stage / CONTENT, digests)
            write_json(stage / RECORD, {"files": digests})
            if not (self.folder / key).exists():
                _rename_new(stage, self.folder / key)
            self._shrink()
        except _Spoiled as error:
            log.warning("cache: %s is not kept: %s", bundle_folder, error)
        except (OSError, JobError) as error:
            self._tell(str(error))
        finally:
            if stage is not None:
                shutil.rmtree(stage, ignore_errors=True)

    def _shrink(self) -> None:
        """Removes what was used longest ago until the rest fits; and what dead processes left."""
        assert self.folder is not None
        now = time.time()
        entries = []
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process was at it
                if path.name.startswith(UNFINISHED):
                    if now - path.stat().st_mtime > ABANDONED_S:
                        shutil.rmtree(path, ignore_errors=True)
                elif (path / RECORD).is_file():
                    entries.append((path.stat().st_mtime_ns, path, _size_of(path)))
        total = sum(size for _, _, size in entries)
        for _, path, size in sorted(entries):
            if total <= self.limit_bytes:
                break
            self._remove(path)
            total -= size

    def _remove(self, entry: Path) -> None:
        """Takes an entry away in one step, so that nobody meets half of it."""
        assert self.folder is not None
        try:
            trash = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=self.folder))
            try:
                entry.rename(trash / "old")
            finally:
                shutil.rmtree(trash, ignore_errors=True)
        except FileNotFoundError:
            log.debug("cache: %s was removed by another process", entry)
        except OSError as error:
            self._tell(str(error))

    def _tell(self, reason: str) -> None:
        if not self._told:
            log.info("cache: off, exports are not kept: %s", reason)
        self._told = True


def _read_record(entry: Path) -> dict[str, str]:
    """Names and hashes of an entry's files, which must be exactly those that are there."""
    try:
        record = json.loads((entry / RECORD).read_text(encoding="utf-8"))
        digests: dict[str, str] = record["files"]
        found = _names(entry / CONTENT)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _Spoiled(f"{RECORD} cannot be read: {error}") from None
    if not isinstance(digests, dict) or sorted(digests) != found:
        raise _Spoiled("its files are not those that were stored")
    return digests


def _checked(folder: Path, digests: Mapping[str, str]) -> Bundle:
    """The manifest of a copied bundle, if it lists the hashes that the copied files have."""
    try:
        bundle = read_bundle(folder)
    except InputError as error:
        raise _Spoiled(str(error)) from None
    for variant in bundle.variants:
        for file in variant.files:
            if digests.get(file.path) != file.sha256:
                raise _Spoiled(f"{file.path} is not what the manifest says")
    return bundle
