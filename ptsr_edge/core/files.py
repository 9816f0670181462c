"""Files and folders that are written whole or not at all."""

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
    """Returns the SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_file(path: Path) -> None:
    """Makes sure that a file can be written at a path, before any work is done for it; creates nothing.

    Raises:
        InputError: as `check_place`, or the path is a folder.
    """
    check_place(path)
    if path.is_dir():
        raise InputError(f"{path} cannot be written: it is a folder")


def require_file(path: Path, what: str) -> None:
    """Makes sure that a file that a call names is there.

    Raises:
        InputError: it is not, or is a folder.
    """
    if not path.is_file():
        raise InputError(f"there is no {what} at {path}{': it is a folder' if path.is_dir() else ''}")


def check_place(path: Path) -> None:
    """Makes sure that a file or folder can be written at a path, before any work is done for it; creates nothing.

    Raises:
        InputError: a part of the path is a file, or the nearest existing folder may not be written to.
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
    # Not of the path's suffix: whoever lists a folder by suffix never meets half a file.
    with staged_file(path, suffix=".part") as stage, stage.open("xb") as stream:
        stream.write(content.encode("utf-8") if isinstance(content, str) else content)
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def staged_file(path: Path, suffix: str | None = None) -> Iterator[Path]:
    """Yields a path beside `path`; the file that the block writes there moves to `path` only when the block ends well.

    A block that writes no file is no error: nothing appears at `path` then.

    Args:
        path: where the file appears.
        suffix: of the yielded path; by default that of `path`, which a writer of video tells its format by.

    Raises:
        JobError: the file cannot be written (no room, no permission); the old file is untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=suffix or path.suffix, dir=path.parent
        )
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


def link_file(source: Path, target: Path) -> None:
    """Gives a file a second name, which takes no room on the disk; where the file system has no links, copies it.

    Raises:
        JobError: neither can be written (no room, no permission); what stood at `target` is untouched.
    """
    with staged_file(target, suffix=".part") as stage:
        try:
            os.link(source, stage)
        except OSError:
            shutil.copyfile(source, stage)


def json_text(record: Any) -> str:
    """Returns a record as indented JSON with a line break at its end; raises ValueError for NaN and infinity."""
    return json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, record: Any) -> None:
    """Writes a record as `json_text`, whole or not at all."""
    write_whole(path, json_text(record))


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """Yields a new folder beside `target`, which moves to `target` only when the block ends well.

    A folder that stood at `target` is then replaced as a whole; when the block raises, it stays as it was.

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
    try:
        target.rename(old / "old")
        stage.rename(target)
    except BaseException:  # Ctrl-C between the two would take both folders
        if not target.exists():
            (old / "old").rename(target)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
