"""Everything that ptsr-edge raises on purpose::

    PtsrError
    ├── InputError      the call, or something handed in, is not acceptable (exit code 2)
    └── JobError        the request was fine, doing it failed               (exit code 1)
        ├── ParityError        an artifact departs from its reference
        └── MissingExtraError  a package that the job needs is not installed

A message is one line for the person who reads it: the fault, the value found, the values accepted.
"""

from __future__ import annotations

import importlib
from types import ModuleType


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


class MissingExtraError(JobError, ImportError):
    """A package that the job needs is not installed."""


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Imports and returns `module`; where it is missing, the error says which extra brings it.

    Raises:
        MissingExtraError: the module is not installed; the message holds the `pip install` line.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{purpose} needs the package {module.partition('.')[0]!r}, which is not installed "
            f"({error}): pip install 'ptsr-edge[{extra}]'"
        ) from error
