from __future__ import annotations

import os
from pathlib import Path

import pytest

from ptsr_edge.camera.sources import SourceAddress, parse_source, parse_sources
from ptsr_edge.core.errors import InputError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-", ("stdin", "stdin", "-")),
        ("in=-", ("in", "stdin", "-")),
        ("0", ("camera0", "device", "0")),
        ("door=2", ("door", "device", "2")),
        ("rtsp://10.0.0.7:554/live", ("10.0.0.7", "network", "rtsp://10.0.0.7:554/live")),
        ("door=RTSP://cam/live?channel=1", ("door", "network", "RTSP://cam/live?channel=1")),
        ("rtsp://cam/live?channel=1", ("cam", "network", "rtsp://cam/live?channel=1")),
    ],
)
def test_a_source_is_what_it_looks_like(text: str, expected: tuple[str, str, str]) -> None:
    found = parse_source(text)
    assert (found.name, found.kind, found.address) == expected


def test_a_file_is_called_after_its_stem_or_as_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hall=1.mp4").touch()
    monkeypatch.chdir(tmp_path)
    assert parse_source("./hall=1.mp4") == SourceAddress("hall=1", "file", "./hall=1.mp4")
    assert parse_source(f"x={tmp_path}/hall=1.mp4").name == "x"


def test_credentials_are_never_shown() -> None:
    source = parse_source("door=rtsp://admin:se%40cret@10.0.0.7:554/live?token=abc")
    assert source.shown == "rtsp://10.0.0.7:554/live"
    assert parse_source("-").shown == "standard input"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("door=", "no source 'door='"),
        ("nowhere.mp4", "no source 'nowhere.mp4'"),
        ("concat://a|b", "scheme 'concat'"),
        ("file:///etc/passwd", "accepted: rtsp"),
        ("rtsp:///live", "names no host"),
        ("rtsp://cam:port/live", "cannot be read"),
        ("/", "is a folder"),
    ],
)
def test_what_is_no_source_is_told_in_one_line(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        parse_source(text)
    assert "\n" not in str(caught.value)


def test_an_error_about_an_address_does_not_show_its_password() -> None:
    with pytest.raises(InputError) as caught:
        parse_source("rtsp://admin:secret@cam:port/live")
    assert "secret" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "closed.mp4"
    path.touch(mode=0)
    with pytest.raises(InputError, match="Permission denied"):
        parse_source(str(path))


def test_several_sources_have_different_names() -> None:
    sources = parse_sources(["door=rtsp://cam/1", "hall=rtsp://cam/2"])
    assert [source.name for source in sources] == ["door", "hall"]
    with pytest.raises(InputError, match="name 'cam' is given twice: write NAME=SOURCE"):
        parse_sources(["rtsp://cam/1", "rtsp://cam/2"])
    with pytest.raises(InputError, match="source '-' is given twice"):
        parse_sources(["a=-", "b=-"])
    with pytest.raises(InputError, match="no source"):
        parse_sources([])
