"""Nested records, such as an environment, as pairs of a name and a text."""

from __future__ import annotations

import re
from typing import Any

from ptsr_edge.report.comparison import bytes_text


def facts(record: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A nested record as pairs of a name and a text: `cpu, model` and what it is."""
    if not isinstance(record, dict):
        return [(prefix, _fact(prefix, record))]
    if prefix and record and all(_is_version(value) for value in record.values()):
        return [(prefix, ", ".join(f"{key} {value}" for key, value in record.items()))]
    pairs: list[tuple[str, str]] = []
    for key, value in record.items():
        name = re.sub(r"_(n?s|ms|px)$", r", \1", str(key).removesuffix("_bytes")).replace("_", " ")
        name = f"{prefix}, {name}" if prefix else name
        if isinstance(value, dict) and value:
            pairs += facts(value, name)
        elif isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
            for place, entry in enumerate(value, start=1):
                pairs += facts(entry, f"{name} {place}")
        else:
            pairs.append((name, _fact(str(key), value)))
    return pairs


def _fact(key: str, value: Any) -> str:
    if value is None:
        return "not known"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key.endswith("_bytes") and isinstance(value, int | float):
        return bytes_text(value)
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(_fact("", entry) for entry in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {entry}" for name, entry in value.items()) or "none"
    return str(value)


def _is_version(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\d+(\.[\w+-]+)+", value) is not None
