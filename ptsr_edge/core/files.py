"""Files and folders that are written whole or not at all, and one cache on disk for whatever is made again and again.

The cache keeps entries under a digest of all that they depend on. An entry is one file, `KEY[:2]/KEY.entry`: the SHA-256
of its content, then the content, which is checked before anybody reads it. What was not used for longest goes when there
is too much; what a dead process left half written goes with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import dis
import glob
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import struct
import sys
import tempfile
import time
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from ptsr_edge.core.errors import InputError, JobError

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger("ptsr_edge")

T = TypeVar("T")

FOLDER_VARIABLE = "PTSR_EDGE_CACHE"

LIMIT_BYTES = 4_000_000_000
"""What the entries of one kind may take, unless a cache is told otherwise."""

ABANDONED_S = 24 * 3600
"""What is unfinished and was not written to for so long was left by a process that is gone, wherever that ran."""

ENTRY_SUFFIX = ".entry"

OLD_SUFFIX = ".old"
"""Of a folder that another is about to replace, where the system cannot exchange the two in one step."""

DIGEST_BYTES = hashlib.sha256().digest_size


ALONE = {"protocol_whitelist": "none"}
"""Options of FFmpeg for a file or pipe that it is handed open: it opens nothing else, whatever a playlist names."""

DAMAGED_ARRAYS = (
    OSError, ValueError, TypeError, KeyError, EOFError, MemoryError, OverflowError, RuntimeError,
    SyntaxError, tokenize.TokenError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What NumPy raises, by where the damage is, when it reads arrays from a damaged .npy or .npz file."""


MOST_UNPACKED = 2_000_000_000
"""Bytes of the arrays of one archive: a small file that unpacks to more was made to take the memory."""


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Reads all arrays of a .npz file, or the one of a .npy file under an empty name.

    Raises:
        DAMAGED_ARRAYS: one of these, where it cannot be read or unpacks to more than `MOST_UNPACKED` bytes.
    """
    import numpy as np

    # Opened here: of a broken archive `np.load` leaves its file open.
    with path.open("rb") as stream:
        stored = np.load(stream, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            return {"": stored}
        unpacked = sum(member.file_size for member in stored.zip.infolist())
        if unpacked > MOST_UNPACKED:
            raise ValueError(f"it unpacks to {unpacked:,} bytes, at most {MOST_UNPACKED:,} are read")
        return {name: np.asarray(stored[name]) for name in stored.files}  # what is no array comes as bytes


def digest_arrays(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Returns the SHA-256 over the names, types, shapes and values of arrays."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}\0".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


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
    except OSError as error:
        raise JobError(f"cannot write {path}: {error.strerror}") from error
    _remove_leftovers(path)
    # A name alone: a signal between making a file and the block below would leave it.
    stage = _stage_of(path, suffix or path.suffix)
    try:
        yield stage
        if stage.exists():
            stage.replace(path)
    except OSError as error:
        raise JobError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # a read-only file system says so of a file that is not there
            stage.unlink(missing_ok=True)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yields a new folder among the temporary files, the user's alone, which goes when the block ends; those that killed
    processes left go now. An OSError for want of room is the caller's.
    """
    places = Path(tempfile.gettempdir()) / "ptsr-edge"
    _remove_leftovers(places)
    place = _stage_of(places)
    try:
        place.mkdir(mode=0o700)
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


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
        _remove_leftovers(target)
        # Not made by `tempfile`, whose folders are for their owner alone, whatever the user's mask says.
        stage = _stage_of(target)
        stage.mkdir()
    except OSError as error:
        raise JobError(f"cannot write {target}: {error.strerror}") from error
    try:
        yield stage
        _swap(stage, target)
    except OSError as error:
        raise JobError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            _remove(stage)


def _swap(stage: Path, target: Path) -> None:
    """Puts a folder in the place of another, which lies in `stage` afterwards; nobody finds neither of them there."""
    if not target.exists():
        stage.rename(target)
    elif not _exchange(stage, target):
        old = target.with_name(f"{stage.name}{OLD_SUFFIX}")
        target.rename(old)
        try:
            stage.rename(target)
        except BaseException:  # Ctrl-C between the two would take both folders
            if not target.exists():
                old.rename(target)
            raise
        finally:
            shutil.rmtree(old, ignore_errors=True)


_STAGE = re.compile(
    r"\.(?P<name>.+)\.(?P<home>[0-9a-f]{8})-(?P<process>\d{1,10})-[0-9a-f]{16}(?P<suffix>[^/]*)"
)


def _stage_of(path: Path, suffix: str = "") -> Path:
    """Returns a new name beside `path`, which says whose it is."""
    return path.with_name(f".{path.name}.{_home()}-{os.getpid()}-{secrets.token_hex(8)}{suffix}")


@cache
def _home() -> str:
    """What numbers of processes are told apart by: this boot of this machine, and the container; zeros where unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        return hashlib.sha256(f"{boot}{Path('/proc/self/ns/pid').readlink()}".encode()).hexdigest()[:8]
    except OSError:
        return "0" * 8


def _is_abandoned(stage: Path, owner: re.Match[str] | None) -> bool:
    """Tells whether nobody writes to a stage any more; raises OSError where it cannot be looked at."""
    if owner is not None and owner["home"] == _home() != "0" * 8:
        try:
            os.kill(int(owner["process"]), 0)
        except ProcessLookupError:
            return True
        except (OverflowError, PermissionError):  # no process of any system; somebody else's
            pass
        return False
    newest = max(path.lstat().st_mtime for path in (stage, *stage.rglob("*")))
    return time.time() - newest > ABANDONED_S


def _remove_leftovers(path: Path) -> None:
    """Removes what killed processes left of their attempts to write `path`; a folder that was its content returns."""
    for stage in path.parent.glob(f".{glob.escape(path.name)}.*"):
        owner = _STAGE.fullmatch(stage.name)
        with contextlib.suppress(OSError):  # another process was at it
            if owner is None or owner["name"] != path.name or not _is_abandoned(stage, owner):
                continue
            if owner["suffix"] == OLD_SUFFIX and not os.path.lexists(path):
                stage.rename(path)
            else:
                _remove(stage)


def _remove(stage: Path) -> None:
    if stage.is_dir() and not stage.is_symlink():
        shutil.rmtree(stage, ignore_errors=True)
    else:
        stage.unlink(missing_ok=True)


_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def _exchange(first: Path, second: Path) -> bool:
    """Exchanges two names in one step; False where the system or the file system has no such call (Linux has)."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if call is None:
        return False
    names = os.fsencode(first), os.fsencode(second)
    return bool(call(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)


class SpoiledEntryError(Exception):
    """An entry is not what was stored. Raised by a reader to have it removed; never leaves `DiskCache`."""


class DiskCache:
    """The entries of one kind. Processes and threads may share them; a fault of the cache never fails a job."""

    def __init__(self, kind: str, folder: Path | None = None, limit_bytes: int = LIMIT_BYTES) -> None:
        """Makes nothing on disk before the first `store`.

        Args:
            kind: what is kept: names the subfolder, and is named in the log.
            folder: by default `kind` in `default_folder()`.
            limit_bytes: what `shrink` leaves, and the most that one entry may take.
        """
        home = default_folder()
        self.kind = kind
        self.folder = folder if folder is not None else home / kind if home is not None else None
        self.limit_bytes = limit_bytes
        self.is_off = False
        if self.folder is None:
            self._turn_off("there is no home directory")

    def fetch(self, key: str, read: Callable[[BinaryIO], T]) -> T | None:
        """Returns what `read` makes of an entry's content, or None where there is no sound entry.

        An entry whose content has changed, or that `read` refuses by `SpoiledEntryError`, is removed and told of.
        Other errors of `read` are the caller's.
        """
        if self.folder is None:
            return None
        path = self._path(key)
        try:
            stream = path.open("rb")
        except OSError:
            return None
        with stream:
            try:
                digest = stream.read(DIGEST_BYTES)
                # An entry is only ever replaced by a rename: what is hashed here is what is read then.
                if _sha256(stream) != digest:
                    raise SpoiledEntryError("its content has changed")
                stream.seek(DIGEST_BYTES)
                found = read(stream)
            except SpoiledEntryError as error:
                log.warning("cache: %s is not what was stored (%s); it is made anew", path, error)
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
                return None
        with contextlib.suppress(OSError):  # a cache that may only be read, or another process made room
            os.utime(path)
        return found

    def store(self, key: str, write: Callable[[BinaryIO], None]) -> None:
        """Keeps what `write` writes under a key; an entry that is there already stays."""
        if self.folder is None or self.is_off or self._path(key).exists():
            return
        try:
            with staged_file(self._path(key)) as stage:
                with stage.open("w+b") as stream:
                    stream.write(bytes(DIGEST_BYTES))
                    write(stream)
                    stream.seek(DIGEST_BYTES)
                    digest = _sha256(stream)
                    stream.seek(0)
                    stream.write(digest)
                if stage.stat().st_size > self.limit_bytes:
                    log.info("cache: %s of %s is larger than the cache may be: not kept", key, self.kind)
                    stage.unlink()
        except JobError as error:
            self._turn_off(str(error))

    def shrink(self) -> None:
        """Removes what was used longest ago until the rest fits; and what dead processes left."""
        if self.folder is None:
            return
        entries = []
        for path in self.folder.glob(f"*/*{ENTRY_SUFFIX}"):
            with contextlib.suppress(OSError):  # another process was at it
                facts = path.stat()
                if not path.name.startswith("."):
                    entries.append((facts.st_mtime_ns, facts.st_size, path))
                elif _is_abandoned(path, _STAGE.fullmatch(path.name)):
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
        return self.folder / key[:2] / f"{key}{ENTRY_SUFFIX}"

    def _turn_off(self, reason: str) -> None:
        log.info("cache: off, %s not kept: %s", self.kind, reason)
        self.is_off = True


def _sha256(stream: BinaryIO) -> bytes:
    """The digest of what is left of a stream; of what cannot be read, that of nothing."""
    digest = hashlib.sha256()
    with contextlib.suppress(OSError):
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.digest()


def default_folder() -> Path | None:
    """Returns $PTSR_EDGE_CACHE, else ptsr-edge in $XDG_CACHE_HOME or ~/.cache; None where there is no home."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    if chosen:
        return Path(chosen)
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if base.is_absolute():  # others are to be ignored: XDG Base Directory Specification 0.8
        return base / "ptsr-edge"
    try:
        return Path.home() / ".cache" / "ptsr-edge"
    except RuntimeError:
        return None


def cache_key(parts: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of all that an entry depends on, as 64 hexadecimal digits; the order of keys says nothing.

    Args:
        parts: what JSON can hold. Numbers must be finite.

    Raises:
        TypeError: a part that JSON cannot hold.
        ValueError: a number that is NaN or infinite.
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def code_digest(package: Path = Path(__file__).parents[1]) -> str:
    """Returns the SHA-256 over a package's Python source files, their names included."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _imports(code: CodeType) -> Iterator[str]:
    """Yields the modules that a piece of code imports, and what it takes out of them, by their full names.

    Of the bytecode, since Python 3.11 at times fails to make a syntax tree ("AST constructor recursion depth mismatch").
    """
    module = ""
    for instruction in dis.get_instructions(code):
        if instruction.opname == "IMPORT_NAME":
            module = str(instruction.argval)
            yield module
        elif instruction.opname == "IMPORT_FROM":
            yield f"{module}.{instruction.argval}"
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _imports(constant)


def closure_digest(module: str) -> str:
    """Returns the SHA-256 over the source of a module of this package and of all of the package that it imports.

    `module` is its full name. Imports inside functions count, so nothing that decides a result has to be listed by hand.
    """
    package = Path(__file__).parents[1]
    found: dict[str, bytes] = {}
    waiting = {module}
    while waiting:
        name = waiting.pop()
        path = package.parent.joinpath(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name in found or not path.is_file():  # a name that an import takes out of a module
            continue
        found[name] = path.read_bytes()
        imported = _imports(compile(found[name], str(path), "exec", dont_inherit=True))
        waiting.update(one for one in imported if one.partition(".")[0] == package.name)
    digest = hashlib.sha256()
    for name, content in sorted(found.items()):
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()
