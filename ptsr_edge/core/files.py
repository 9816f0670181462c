"""Files that are written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ptsr_edge.core.errors import InputError, JobError


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_file(path: Path) -> None:
    """As `check_place`, of a file, which may replace one.

    Raises:
        InputError: as `check_place`, or a folder stands there.
    """
    check_place(path)
    if path.is_dir():
        raise InputError(f"{path} cannot be written: it is a folder")


def check_place(path: Path) -> None:
    """Makes sure that something can be written at a path, before it is worked for; makes nothing.

    Raises:
        InputError: a part of the path is a file, or the nearest folder that is there may not be written to.
    """
    parent = path.absolute().parent
    while not os.path.lexists(parent):
        parent = parent.parent
    if not parent.is_dir():
        raise InputError(f"{path} cannot be written: {parent} is no folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"{path} cannot be written: no permission to write into {parent}")


def write_whole(path: Path, content: bytes | str) -> None:
    """Writes a file through a temporary file beside it and a rename.

    Raises:
        JobError: the file cannot be written (no room, no permission); the old file is untouched.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise JobError(f"cannot write {path}: {error.strerror}") from error
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise JobError(f"cannot write {path}: {error.strerror}") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """A place beside `path`, of the same suffix, for a file that takes its place only when the block ends well.

    For what is written bit by bit by others, such as a video. A file that was not written there is no error:
    nothing appears at `path` then.

    Raises:
        JobError: the file cannot be written (no room, no permission); the old file is untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise JobError(f"cannot write {path}: {error.strerror}") from error
    os.close(handle)
    stage = Path(name)
    stage.unlink()
    try:
        yield stage
        if stage.exists():
            stage.chmod(0o644)
            stage.replace(path)
    except OSError as error:
        raise JobError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        stage.unlink(missing_ok=True)


def write_json(path: Path, record: Any) -> None:
    """Writes a record as indented JSON, whole or not at all."""
    write_whole(path, json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its place only when the block ends well.

    A folder that stood at `target` before is replaced as a whole, or left as it was when the block
    raises.

    Raises:
        JobError: the folder cannot be written (no room, no permission).
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise JobError(f"cannot write {target}: {error.strerror}") from error
    try:
        stage.chmod(0o755)
        yield stage
        _swap(stage, target)
    except OSError as error:
        raise JobError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _swap(stage: Path, target: Path) -> None:
    if not target.exists():
        stage.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    target.rename(old / "old")
    try:
        stage.rename(target)
    except OSError:
        (old / "old").rename(target)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
