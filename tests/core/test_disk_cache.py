"""Entries come back as they were stored or not at all, and a fault of the cache fails nothing."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest

import ptsr_edge
from ptsr_edge.core import disk_cache
from ptsr_edge.core.disk_cache import DiskCache, SpoiledEntryError, cache_key, code_digest, default_folder

KEY = "ab" + "0" * 62
OTHER = "cd" + "0" * 62
CONTENT = bytes(range(256)) * 40


def keep(store: DiskCache, key: str = KEY, content: bytes = CONTENT) -> None:
    store.store(key, lambda stream: stream.write(content) and None)


def read(stream: BinaryIO) -> bytes:
    return stream.read()


def entries(folder: Path) -> list[Path]:
    """Every file below a folder, hidden leftovers included."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def store(tmp_path: Path) -> DiskCache:
    return DiskCache("things", tmp_path / "cache")


def test_what_was_stored_comes_back_and_what_was_not_is_a_miss(tmp_path: Path, store: DiskCache) -> None:
    assert store.fetch(KEY, read) is None
    assert not (tmp_path / "cache").exists()
    keep(store)
    keep(store, content=b"an entry that is there stays")
    assert store.fetch(KEY, read) == CONTENT
    assert store.fetch(OTHER, read) is None


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda content: content[: len(content) // 2], id="cut short"),
        pytest.param(lambda _: b"", id="empty"),
        pytest.param(lambda content: content + b"\0", id="longer"),
        pytest.param(lambda content: content[:-1] + bytes([content[-1] ^ 1]), id="a bit turned"),
        pytest.param(lambda content: bytes(32) + content[32:], id="another hash"),
    ],
)
def test_a_spoiled_entry_is_told_of_and_removed_and_never_read(
    tmp_path: Path, store: DiskCache, spoil: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    keep(store)
    (path,) = entries(tmp_path)
    path.write_bytes(spoil(path.read_bytes()))
    seen: list[bytes] = []
    assert store.fetch(KEY, lambda stream: seen.append(stream.read())) is None
    assert not seen
    assert "is not what was stored (its content has changed); it is made anew" in caplog.text
    assert entries(tmp_path) == []
    keep(store)
    assert store.fetch(KEY, read) == CONTENT


def test_a_reader_may_refuse_an_entry_and_its_own_faults_are_its_own(
    tmp_path: Path, store: DiskCache
) -> None:
    def fails(_: BinaryIO) -> None:
        raise OSError(errno.ENOSPC, "no room where it is copied to")

    def refuses(_: BinaryIO) -> None:
        raise SpoiledEntryError("of another shape")

    keep(store)
    with pytest.raises(OSError, match="no room"):
        store.fetch(KEY, fails)
    assert len(entries(tmp_path)) == 1
    assert store.fetch(KEY, refuses) is None
    assert entries(tmp_path) == []


def test_no_room_keeps_nothing_fails_nothing_and_is_told_once(
    tmp_path: Path, store: DiskCache, caplog: pytest.LogCaptureFixture
) -> None:
    def full(stream: BinaryIO) -> None:
        stream.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with caplog.at_level(logging.INFO, logger="ptsr_edge"):
        store.store(KEY, full)
        keep(store, OTHER)
    (record,) = caplog.records
    assert record.getMessage().startswith("cache: off, things not kept: cannot write ")
    assert record.getMessage().endswith("No space left on device")
    assert entries(tmp_path) == []


def test_a_folder_that_cannot_be_written_turns_the_cache_off_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Below a file: no permission helps here, not even root's.
    (tmp_path / "file").write_bytes(b"")
    store = DiskCache("things", tmp_path / "file" / "cache")
    with caplog.at_level(logging.INFO, logger="ptsr_edge"):
        for _ in range(2):
            assert store.fetch(KEY, read) is None
            keep(store)
    assert len(caplog.records) == 1
    assert "cache: off" in caplog.text


def test_without_a_home_directory_the_cache_is_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def nowhere() -> Path:
        # What pathlib documents for a user that has none.
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("PTSR_EDGE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    assert default_folder() is None
    with caplog.at_level(logging.INFO, logger="ptsr_edge"):
        store = DiskCache("things")
        keep(store)
        assert store.fetch(KEY, read) is None
        store.shrink()
    assert [record.getMessage() for record in caplog.records] == [
        "cache: off, things not kept: there is no home directory"
    ]


def test_the_folder_is_the_one_asked_for_then_xdg_then_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("PTSR_EDGE_CACHE", str(tmp_path / "own"))
    assert DiskCache("things").folder == tmp_path / "own" / "things"
    monkeypatch.setenv("PTSR_EDGE_CACHE", "")
    assert default_folder() == tmp_path / "xdg" / "ptsr-edge"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_folder() == tmp_path / "home" / ".cache" / "ptsr-edge"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == tmp_path / "home" / ".cache" / "ptsr-edge"
    assert not (tmp_path / "home").exists()


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path, store: DiskCache) -> None:
    keys = [f"{number:02x}" + "0" * 62 for number in range(4)]
    for age, key in enumerate(keys):
        keep(store, key)
        os.utime(next(tmp_path.rglob(f"{key}*")), (1000 + age, 1000 + age))
    assert store.fetch(keys[0], read) is not None  # used just now: no longer the oldest
    size = entries(tmp_path)[0].stat().st_size
    DiskCache("things", tmp_path / "cache", limit_bytes=2 * size).shrink()
    assert [path.stem for path in entries(tmp_path)] == [keys[0], keys[3]]


def test_an_entry_larger_than_the_cache_is_not_kept(tmp_path: Path) -> None:
    store = DiskCache("things", tmp_path / "cache", limit_bytes=len(CONTENT))
    keep(store)
    assert entries(tmp_path) == []
    keep(store, content=CONTENT[:-32])  # its hash counts, too
    assert store.fetch(KEY, read) == CONTENT[:-32]


def test_what_a_dead_process_left_goes_after_a_day(tmp_path: Path, store: DiskCache) -> None:
    keep(store)
    (kept,) = entries(tmp_path)
    old, new = (kept.with_name(f".{KEY}.{name}.entry") for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    days_ago = time.time() - 3 * 24 * 3600
    os.utime(old, (days_ago, days_ago))
    store.shrink()
    assert entries(tmp_path) == sorted([kept, new])


WORKER = """
import sys
from pathlib import Path
from ptsr_edge.core.disk_cache import DiskCache

content = bytes(range(256)) * 4000
# Room for one of the two entries that are stored in turns.
store = DiskCache("things", Path(sys.argv[1]), limit_bytes=len(content) + 500)
for turn in range(60):
    key = "ab"[turn % 2] * 64
    store.store(key, lambda stream: stream.write(content) and None)
    store.shrink()
    assert store.fetch(key, lambda stream: stream.read()) in (content, None)
assert not store.is_off, "the cache turned itself off"
"""


def test_processes_that_store_the_same_key_at_once_do_not_harm_each_other(tmp_path: Path) -> None:
    calls = [[sys.executable, "-c", WORKER, str(tmp_path / "cache")]] * 3
    workers = [subprocess.Popen(call, stderr=subprocess.PIPE, text=True) for call in calls]
    # One may find that another has just removed what it reads, which is a miss; it never fails.
    said = [worker.communicate(timeout=300)[1] for worker in workers]
    assert said == ["", "", ""]
    assert {path.stem for path in entries(tmp_path)} <= {"a" * 64, "b" * 64}
    assert entries(tmp_path)


PARTS: dict[str, Any] = {"call": {"target": "cpu", "budgets": [1.0, 0.5], "recipe": None}, "code": "56"}


def test_a_key_follows_every_part_and_not_their_order() -> None:
    key = cache_key(PARTS)
    assert len(key) == 64
    assert key == cache_key(dict(reversed(PARTS.items()))) == cache_key(json.loads(json.dumps(PARTS)))
    for changed in (
        PARTS | {"code": "57"},
        PARTS | {"call": PARTS["call"] | {"budgets": [0.5, 1.0]}},
        PARTS | {"call": PARTS["call"] | {"recipe": {}}},
        PARTS | {"more": None},
    ):
        assert cache_key(changed) != key
    with pytest.raises(TypeError):
        cache_key({"path": Path("x")})
    with pytest.raises(ValueError, match="JSON"):
        cache_key({"rate": float("nan")})


def test_the_code_digest_sees_content_and_names(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("one", encoding="utf-8")
    (tmp_path / "b.py").write_text("two", encoding="utf-8")
    seen = {code_digest(tmp_path)}
    (tmp_path / "notes.txt").write_text("no source", encoding="utf-8")
    assert code_digest(tmp_path) in seen
    (tmp_path / "b.py").write_text("tvo", encoding="utf-8")
    seen.add(code_digest(tmp_path))
    (tmp_path / "b.py").rename(tmp_path / "c.py")
    seen.add(code_digest(tmp_path))
    # The same bytes, parted elsewhere.
    (tmp_path / "a.py").write_text("onet", encoding="utf-8")
    (tmp_path / "c.py").write_text("vo", encoding="utf-8")
    seen.add(code_digest(tmp_path))
    assert len(seen) == 4
    assert code_digest() == code_digest(Path(ptsr_edge.__file__).parent)


def test_a_digest_of_a_module_sees_what_it_imports_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a copy of the package: `data.extraction` imports `vision.flow` and, inside of functions, no torch code."""
    package = tmp_path / "ptsr_edge"
    shutil.copytree(
        Path(ptsr_edge.__file__).parent, package, ignore=shutil.ignore_patterns("weights", "*.pyc")
    )
    monkeypatch.setattr(disk_cache, "__file__", str(package / "core" / "disk_cache.py"))
    module = "ptsr_edge.data.extraction"
    before = disk_cache.closure_digest(module)

    def changed(name: str) -> bool:
        path = package / name
        content = path.read_bytes()
        path.write_bytes(content + b"\n# another line\n")
        after = disk_cache.closure_digest(module)
        path.write_bytes(content)
        return after != before

    assert changed("data/extraction.py")
    assert changed("vision/flow.py")
    assert changed("vision/face_tracking.py")
    assert not changed("models/ptsr.py")
    assert not changed("report/cli.py")
    assert disk_cache.closure_digest(module) == before
