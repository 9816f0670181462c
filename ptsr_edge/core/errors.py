"""Everything that ptsr-edge raises on purpose::

    PtsrError
    ├── InputError      the call, or something handed in, is not acceptable (exit code 2)
    └── JobError        the request was fine, doing it failed               (exit code 1)
        ├── ParityError        an artifact departs from its reference
        ├── ComparisonError    nothing could be compared                    (exit code 3)
        └── MissingExtraError  a package that the job needs is not installed

A message is one line for the person who reads it: the fault, the value found, the values accepted.
"""

from __future__ import annotations

import importlib
import json
import shlex
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname


class PtsrError(Exception):
    """The base of all errors that ptsr-edge raises on purpose."""

    exit_code = 1


class InputError(PtsrError, ValueError):
    """An argument, file or array that is not acceptable; nothing was started."""

    exit_code = 2


class JobError(PtsrError, RuntimeError):
    """A job that was started in good order and could not be finished."""


class ParityError(JobError):
    """An exported artifact departs from its reference by more than its limit."""


class ComparisonError(JobError):
    """Two measurements of which no part could be held against the other: neither better nor worse can be said."""

    exit_code = 3


class MissingExtraError(JobError, ImportError):
    """A package that the job needs is not installed."""


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Imports and returns `module`; where it is missing, the error says which extra brings it.

    Raises:
        MissingExtraError: the module is not installed; the message holds the line that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{purpose} needs the package {module.partition('.')[0]!r}, which is not installed "
            f"({error}): {install_line(extra)}"
        ) from error


def install_line(extra: str) -> str:
    """Returns the shell line that adds an extra to this installation, from where it came: ready to be pasted."""
    return line_for(extra, _clone(), _direct_url())


def line_for(extra: str, clone: Path | None, origin: Mapping[str, Any] | None) -> str:
    """Returns the shell line that installs ptsr-edge with an extra from its origin.

    Args:
        extra: such as `train`.
        clone: the folder with `pyproject.toml` that the package runs from; None where it is installed.
        origin: what pip wrote down of where it took the package from: `direct_url.json`, as "Recording the Direct
            URL Origin of installed distributions" (PyPA specifications) defines it. None where it was found by its
            name, and can be found so again.
    """
    if clone is not None:
        place = "." if clone == Path.cwd() else str(clone)
        return f"pip install -e {shlex.quote(f'{place}[{extra}]')}"
    if origin is None:
        return f"pip install {shlex.quote(f'ptsr-edge[{extra}]')}"
    address = str(origin["url"])
    if address.startswith("file:") and "vcs_info" not in origin:  # a folder or a wheel file
        place = url2pathname(urlsplit(address).path)
        return f"pip install {shlex.quote(f'{place}[{extra}]')}"
    if source := origin.get("vcs_info"):
        address = f"{source['vcs']}+{address}@{source['commit_id']}"
    if folder := origin.get("subdirectory"):
        address += f"#subdirectory={folder}"
    return f"pip install {shlex.quote(f'ptsr-edge[{extra}] @ {address}')}"


def _clone() -> Path | None:
    folder = Path(__file__).parents[2]
    return folder if (folder / "pyproject.toml").is_file() else None


def _direct_url() -> dict[str, Any] | None:
    try:
        text = metadata.distribution("ptsr-edge").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    found: dict[str, Any] | None = json.loads(text) if text else None
    return found
