"""Strict records: frozen, typed, validated once at the border. An unknown name is answered with the nearest known one."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ptsr_edge.core.errors import InputError


class Record(BaseModel):
    """Base of all configurations, manifests and results."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), ser_json_inf_nan="null")


R = TypeVar("R", bound=Record)


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns the known name that is most like `name`, for a message; `known` must not be empty."""
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]


def parse(kind: type[R], data: Any, where: str = "") -> R:
    """Validates `data` as a record of `kind`.

    Raises:
        InputError: `data` is no such record. The message has, behind `where`, the first fault: its place, the value
            found and the rule, or the nearest known key of an unknown one.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise InputError(": ".join(part for part in (where, _first_fault(kind, error)) if part)) from None


def read_record(kind: type[R], path: Path) -> R:
    """Reads a JSON file as a record of `kind`.

    Raises:
        InputError: there is no such file, or it holds no JSON or no such record.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a readable JSON file: {error}") from None
    return parse(kind, data, str(path))


def _first_fault(kind: type[Record], error: ValidationError) -> str:
    fault = error.errors()[0]
    place = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        near = nearest(str(fault["loc"][-1]), _known_keys(kind))
        return f"unknown key {place!r}; the nearest known key is {near!r}"
    message = fault["msg"].removeprefix("Value error, ")
    if not place:
        return message
    return f"{place}: {message} (found {fault['input']!r})"[:400]


def _known_keys(kind: type[BaseModel]) -> list[str]:
    keys: list[str] = []
    for name, field in kind.model_fields.items():
        keys.append(name)
        for part in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(part, type) and issubclass(part, BaseModel) and part is not kind:
                keys += _known_keys(part)
    return keys
