"""Damage: bytes, numbers in text, JSON, and members of archives. All is drawn from one generator, so that a case can be had again."""

from __future__ import annotations

import copy
import io
import json
import math
import re
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

Draw = np.random.Generator

EXTREMES = (0, 1, -1, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)

NUMBERS = (
    b"0",
    b"-1",
    b"1e309",
    b"-1e309",
    b"NaN",
    b"Infinity",
    b"99999999999999999999",
    b"0.0001",
    b"1e-320",
    b"x",
    b"",
)

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63, 10**30, 1e308, -0.0, 1e-320, math.nan, math.inf, -math.inf, "", "x",
    "../../x", "/etc/passwd", "\x00", "\ud800", "a" * 5000, "1", [], {}, [[]], [1] * 300, {"x": {"x": {"x": 1}}},
)  # fmt: skip
"""What stands in the place of a value of JSON."""

DEEP = 3000
"""Lists in lists: more than a recursive reader can follow."""


def damage(content: bytes, kind: str, draw: Draw) -> bytes:
    """Returns the content damaged.

    Args:
        content: of a sound file.
        kind: `bytes`, `json`, `safetensors` or `zip`: of the last three mostly their insides are damaged, so that a reader
            comes further than its first check.
        draw: of all choices.
    """
    inside = {"json": _damage_json, "safetensors": _damage_safetensors, "zip": _damage_zip}.get(kind)
    if inside is not None and draw.random() < 0.8:
        return inside(content, draw)
    for _ in range(int(draw.integers(1, 4))):
        content = BYTE_DAMAGES[int(draw.integers(len(BYTE_DAMAGES)))](content, draw)
    return content


def _place(content: bytes, draw: Draw) -> int:
    # Headers stand at the beginning: every other place is near it.
    near = min(len(content), 512) if draw.random() < 0.5 else len(content)
    return int(draw.integers(near)) if near else 0


def _flip(content: bytes, draw: Draw) -> bytes:
    changed = bytearray(content)
    for _ in range(int(draw.integers(1, 9))):
        if changed:
            changed[_place(content, draw)] ^= 1 << int(draw.integers(8))
    return bytes(changed)


def _cut(content: bytes, draw: Draw) -> bytes:
    return content[: _place(content, draw)]


def _insert(content: bytes, draw: Draw) -> bytes:
    at = _place(content, draw)
    return content[:at] + draw.bytes(int(draw.integers(1, 65))) + content[at:]


def _remove(content: bytes, draw: Draw) -> bytes:
    at = _place(content, draw)
    return content[:at] + content[at + int(draw.integers(1, 65)) :]


def _repeat(content: bytes, draw: Draw) -> bytes:
    at, length = _place(content, draw), int(draw.integers(1, 257))
    return (
        content[: at + length] + content[at : at + length] * int(draw.integers(1, 5)) + content[at + length :]
    )


def _number(content: bytes, draw: Draw) -> bytes:
    """Writes an extreme number of 4 or 8 bytes over what is there."""
    width, at = (4, 8)[int(draw.integers(2))], _place(content, draw)
    value: int = EXTREMES[int(draw.integers(len(EXTREMES)))] % 2 ** (8 * width)
    written = value.to_bytes(width, ("little", "big")[int(draw.integers(2))])
    return content[:at] + written + content[at + width :]


def _digits(content: bytes, draw: Draw) -> bytes:
    """Replaces a number that is written out."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?", content[:200_000]))
    if not found:
        return _flip(content, draw)
    one = found[int(draw.integers(len(found)))]
    return content[: one.start()] + NUMBERS[int(draw.integers(len(NUMBERS)))] + content[one.end() :]


BYTE_DAMAGES: tuple[Callable[[bytes, Draw], bytes], ...] = (
    _flip,
    _cut,
    _insert,
    _remove,
    _repeat,
    _number,
    _digits,
)


def _damage_json(content: bytes, draw: Draw) -> bytes:
    record = json.loads(content)
    for _ in range(int(draw.integers(1, 3))):
        record = damaged_record(record, draw)
    return json.dumps(record).encode("utf-8", "surrogatepass")


def damaged_record(record: Any, draw: Draw) -> Any:
    """Returns a record of JSON with one value replaced, removed, doubled or buried in lists."""
    record = copy.deepcopy(record)
    places = list(_places(record))
    if not places:
        return VALUES[int(draw.integers(len(VALUES)))]
    holder, key = places[int(draw.integers(len(places)))]
    how = draw.random()
    if how < 0.7:
        holder[key] = VALUES[int(draw.integers(len(VALUES)))]
    elif how < 0.85:
        del holder[key]
    elif how < 0.95 and isinstance(holder, list):
        holder.append(holder[key])
    elif how < 0.97:
        for _ in range(DEEP // 10):
            holder[key] = [holder[key]]
    else:
        other, source = places[int(draw.integers(len(places)))]
        holder[key] = copy.deepcopy(other[source])
    return record


def _places(record: Any) -> Any:
    items = (
        record.items() if isinstance(record, dict) else enumerate(record) if isinstance(record, list) else ()
    )
    for key, value in items:
        yield record, key
        yield from _places(value)


def _damage_safetensors(content: bytes, draw: Draw) -> bytes:
    """Damages the header, whose length is made right; or the record inside of its metadata, or the weights."""
    (length,) = struct.unpack("<Q", content[:8])
    header, weights = json.loads(content[8 : 8 + length]), content[8 + length :]
    metadata = header.get("__metadata__", {})
    record = next((key for key in metadata if metadata[key].startswith("{")), None)
    how = draw.random()
    if how < 0.6 and record is not None:
        metadata[record] = _damage_json(metadata[record].encode(), draw).decode("utf-8", "replace")
    elif how < 0.9:
        header = damaged_record(header, draw)
    else:
        weights = damage(weights, "bytes", draw)
    packed = json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(packed)) + packed + weights


def _damage_zip(content: bytes, draw: Draw) -> bytes:
    """Damages one member of an archive, whose checksums are made right; or leaves one out."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    chosen = sorted(members)[int(draw.integers(len(members)))]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, member in members.items():
            if name != chosen:
                archive.writestr(name, member)
            elif draw.random() < 0.9:
                archive.writestr(name, damage(member, "bytes", draw))
    return packed.getvalue()
