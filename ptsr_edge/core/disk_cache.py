"""A cache on disk: files or folders under a digest of all that they depend on."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FOLDER_VARIABLE = "PTSR_EDGE_CACHE"

ABANDONED_S = 24 * 3600
"""An unfinished entry of that age was left by a process that is gone."""


class _Spoiled(Exception):  # noqa: N818
    """An entry that cannot be read, or is not what was stored."""


def cache_key(parts: Mapping[str, Any]) -> str:
    """SHA-256 of all that an export depends on, as 64 hexadecimal digits; the order of keys says nothing.

    Args:
        parts: what JSON can hold. Numbers must be finite.

    Raises:
        TypeError: a part that JSON cannot hold.
        ValueError: a number that is NaN or infinite.
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def code_digest(package: Path = Path(__file__).parents[1]) -> str:
    """SHA-256 over a package's Python source files, their names included."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def closure_digest(module: str) -> str:
    """SHA-256 over the source of a module of this package, named in full, and of all of the package that it imports.

    Imports inside functions count, so nothing that decides a result has to be listed by hand.
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
        for node in ast.walk(ast.parse(found[name])):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            waiting.update(one for one in names if one.partition(".")[0] == package.name)
    digest = hashlib.sha256()
    for name, content in sorted(found.items()):
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def default_folder() -> Path | None:
    """$PTSR_EDGE_CACHE, else ptsr-edge in $XDG_CACHE_HOME or ~/.cache; None where there is no home."""
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


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _rename_new(stage: Path, entry: Path) -> None:
    """Puts an entry in its place; another process may have been first, with the same content."""
    try:
        stage.rename(entry)
    except OSError:
        if not entry.is_dir():
            raise


def _copy(source: Path, target: Path) -> str:
    """Copies a file; the SHA-256 of the bytes that were written."""
    digest = hashlib.sha256()
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as stream:
        for block in _blocks(source):
            digest.update(block)
            stream.write(block)
    target.chmod(_mode(source))
    return digest.hexdigest()


def _mode(path: Path) -> int:
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise _Spoiled(f"{path.name} cannot be read: {error.strerror}") from None


def _blocks(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                yield block
    except OSError as error:
        raise _Spoiled(f"{path.name} cannot be read: {error.strerror}") from None
