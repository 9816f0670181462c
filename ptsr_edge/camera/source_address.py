"""Where frames come from, as a person writes it: `door=rtsp://10.0.0.7/live`, `hall.mp4`, `0`, `-`.

A source is a file, the address of a network stream, the index of a capture device, or `-` for standard input.
Each has a name; several sources are told apart by it, in events, in logs and in what is counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

from ptsr_edge.core.errors import InputError

Kind = Literal["file", "network", "device", "stdin"]

NETWORK_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "srt", "udp", "rtp", "http", "https")
"""Schemes of addresses that are opened; FFmpeg would also take some that read local files or run filters."""

_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]*)=(.+)", re.DOTALL)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


@dataclass(frozen=True)
class SourceAddress:
    """One source: what it is called, what kind it is, and where it is.

    Attributes:
        name: tells it apart from the others.
        kind: what reads it.
        address: the path, address or index; `-` for standard input. May hold a password.
    """

    name: str
    kind: Kind
    address: str

    @property
    def shown(self) -> str:
        """The address for logs and errors, without user, password and query."""
        if self.kind != "network":
            return "standard input" if self.kind == "stdin" else self.address
        parts = urlsplit(self.address)
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit((parts.scheme, host, parts.path, "", ""))


def parse_sources(texts: Sequence[str]) -> list[SourceAddress]:
    """Reads all sources of a call.

    Raises:
        InputError: there is none, two are called alike, standard input is named twice, or one cannot be read.
    """
    if not texts:
        raise InputError(
            "no source: give a video file, an address such as rtsp://..., a device index or - for stdin"
        )
    sources = [parse_source(text) for text in texts]
    for what, values in (("name", [s.name for s in sources]), ("source", [s.address for s in sources])):
        again = [value for value, times in Counter(values).items() if times > 1]
        if again and (what == "name" or again == ["-"]):
            raise InputError(f"the {what} {again[0]!r} is given twice: write NAME=SOURCE, each NAME once")
    return sources


def parse_source(text: str) -> SourceAddress:
    """Reads `NAME=SOURCE` or `SOURCE`; a path that holds `=` is written with a folder, as `./a=b.mp4`.

    Raises:
        InputError: it is empty, a scheme that is not opened, or a file that is not there or may not be read.
    """
    named = _NAMED.fullmatch(text)
    name, address = named.groups() if named else ("", text)
    if not address.strip():
        raise InputError(f"the source {text!r} is empty")
    if address == "-":
        return SourceAddress(name or "stdin", "stdin", address)
    if re.fullmatch(r"\d{1,3}", address):
        return SourceAddress(name or f"camera{address}", "device", address)
    if scheme := _SCHEME.match(address):
        return _network(name, scheme[1].lower(), address)
    return _file(name, address)


def _network(name: str, scheme: str, address: str) -> SourceAddress:
    if scheme not in NETWORK_SCHEMES:
        raise InputError(
            f"sources of scheme {scheme!r} are not opened; accepted: {', '.join(NETWORK_SCHEMES)}, or a path"
        )
    try:
        parts = urlsplit(address)
        host = parts.hostname
        _ = parts.port  # raises where it is no number
    except ValueError as error:
        raise InputError(f"the address of scheme {scheme!r} cannot be read: {error}") from error
    if not host:
        raise InputError(f"the address {scheme}://... names no host")
    return SourceAddress(name or host, "network", address)


def _file(name: str, address: str) -> SourceAddress:
    path = Path(address)
    if not path.exists():
        raise InputError(
            f"no source {address!r}: there is no such file, and it is no address (rtsp://...), device index or -"
        )
    if path.is_char_device() and re.fullmatch(r"video\d+", path.name):
        return SourceAddress(name or path.name, "device", path.name.removeprefix("video"))
    if path.is_dir():
        raise InputError(f"the source {address} is a folder; give a video file")
    try:
        path.open("rb").close()
    except OSError as error:
        raise InputError(f"the source {address} cannot be read: {error.strerror}") from error
    return SourceAddress(name or path.stem, "file", address)
