"""Files, folders and entries of the cache appear whole or not at all, and a fault of the cache fails nothing."""

from __future__ import annotations

import errno
import itertools
import json
import logging
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

import numpy as np
import pytest

import ptsr_edge
from ptsr_edge.core import files
from ptsr_edge.core.errors import InputError, JobError
from ptsr_edge.core.files import (
    DiskCache,
    SpoiledEntryError,
    cache_key,
    check_file,
    check_place,
    code_digest,
    default_folder,
    link_file,
    read_arrays,
    require_file,
    scratch_folder,
    sha256_of,
    staged_file,
    staged_folder,
    write_json,
    write_whole,
)


def names(folder: Path) -> list[str]:
    """Everything in a folder, hidden leftovers included."""
    return sorted(path.name for path in folder.iterdir())


def no_room(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_sha256_of_a_file(tmp_path: Path) -> None:
    # FIPS 180-2, appendix B.1: the digest of "abc".
    (tmp_path / "abc").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of(tmp_path / "abc") == expected


def test_a_file_and_its_folders_are_made(tmp_path: Path) -> None:
    write_whole(tmp_path / "a" / "b" / "c.txt", "größer")
    assert (tmp_path / "a" / "b" / "c.txt").read_bytes() == "größer".encode()
    assert names(tmp_path / "a" / "b") == ["c.txt"]


def test_an_older_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "c.bin"
    write_whole(path, b"old and longer")
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["c.bin"]


def test_a_second_name_is_the_same_file_however_often_it_is_given(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"old")
    for _ in range(2):
        link_file(tmp_path / "a", tmp_path / "b")
        assert (tmp_path / "b").samefile(tmp_path / "a")
        assert names(tmp_path) == ["a", "b"]


def test_a_second_name_is_a_copy_where_there_are_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"a")
    monkeypatch.setattr("os.link", no_room)
    link_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"a"
    assert not (tmp_path / "b").samefile(tmp_path / "a")
    (tmp_path / "c").write_bytes(b"old")
    monkeypatch.setattr("shutil.copyfile", no_room)
    with pytest.raises(JobError, match=r"cannot write .*/c: No space left on device"):
        link_file(tmp_path / "a", tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == b"old"
    assert names(tmp_path) == ["a", "b", "c"]


@pytest.mark.parametrize(("place", "broken"), [(os, "fsync"), (Path, "open")])
def test_no_room_on_the_disk_is_one_line_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: object, broken: str
) -> None:
    path = tmp_path / "c.bin"
    path.write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(place, broken, no_room)
        with pytest.raises(JobError, match=r"^cannot write .*c\.bin: No space left on device$"):
            write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["c.bin"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.bin"
    path.write_bytes(b"old")

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["c.bin"]


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # a stream that `with` did not close
def test_wherever_a_signal_comes_a_write_leaves_no_part(tmp_path: Path) -> None:
    """An interrupt at each line in turn that writing a file takes, here and in the library that names temporary files."""
    places = {files.__file__, tempfile.__file__}
    for line in itertools.count():
        left = line

        def interrupt(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal left
            if frame.f_code.co_filename not in places:
                return None
            left -= event == "line"
            if left < 0:
                raise KeyboardInterrupt
            return interrupt

        before = sys.gettrace()
        sys.settrace(interrupt)
        try:
            write_whole(tmp_path / "file", "text")
        except KeyboardInterrupt:
            assert {path.name for path in tmp_path.iterdir()} <= {"file"}
        else:
            break
        finally:
            sys.settrace(before)
    assert line > 10


def test_a_path_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(JobError, match=r"cannot write .*Not a directory|cannot write .*File exists"):
        write_whole(tmp_path / "file" / "c.bin", b"new")


def test_a_folder_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.bin").mkdir()
    with pytest.raises(JobError, match=r"cannot write .*Is a directory"):
        write_whole(tmp_path / "c.bin", b"new")
    assert names(tmp_path) == ["c.bin"]


def test_json_is_whole_or_not_written(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    write_json(path, {"é": [1, None]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"é": [1, None]}
    # NaN is no JSON (RFC 8259, section 6): other languages' readers would refuse the file.
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"latency_ms": float("nan")})
    assert json.loads(path.read_text(encoding="utf-8")) == {"é": [1, None]}
    assert names(tmp_path) == ["c.json"]


@pytest.mark.parametrize("older", [False, True])
def test_a_staged_folder_takes_its_place_at_the_end(tmp_path: Path, older: bool) -> None:
    target = tmp_path / "bundle"
    if older:
        target.mkdir()
        (target / "stale").write_bytes(b"old")
    with staged_folder(target) as stage:
        (stage / "fresh").write_bytes(b"new")
        assert target.exists() == older
    assert names(target) == ["fresh"]
    assert names(tmp_path) == ["bundle"]


@pytest.mark.parametrize(("raised", "older"), [(RuntimeError("midway"), True), (KeyboardInterrupt(), False)])
def test_a_block_that_raises_leaves_everything_as_it_was(
    tmp_path: Path, raised: BaseException, older: bool
) -> None:
    target = tmp_path / "bundle"
    if older:
        target.mkdir()
        (target / "stale").write_bytes(b"old")

    def block() -> None:
        with staged_folder(target) as stage:
            (stage / "half").write_bytes(b"new")
            raise raised

    with pytest.raises(type(raised)):
        block()
    assert names(tmp_path) == (["bundle"] if older else [])
    assert not older or (target / "stale").read_bytes() == b"old"


def test_no_room_in_a_staged_folder_is_one_line_and_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "stale").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", no_room)

    def block() -> None:
        with staged_folder(target) as stage:
            write_whole(stage / "weights.bin", b"new")

    with pytest.raises(JobError, match=r"cannot write .*weights\.bin: No space left on device"):
        block()
    assert names(tmp_path) == ["bundle"]
    assert (target / "stale").read_bytes() == b"old"


def test_a_swap_that_fails_brings_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "stale").write_bytes(b"old")
    rename = Path.rename

    def refuse_the_stage(self: Path, to: Path) -> Path:
        if to == target and not self.name.endswith(".old"):
            no_room()
        return rename(self, to)

    monkeypatch.setattr(files, "_exchange", lambda *_: False)  # as on a file system without that call
    monkeypatch.setattr(Path, "rename", refuse_the_stage)

    def block() -> None:
        with staged_folder(target) as stage:
            (stage / "fresh").write_bytes(b"new")

    with pytest.raises(JobError, match=r"cannot write .*No space left"):
        block()
    assert names(tmp_path) == ["bundle"]
    assert (target / "stale").read_bytes() == b"old"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux exchanges two names in one step")
def test_a_folder_is_there_at_every_moment_of_its_replacement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "bundle"
    with staged_folder(target) as stage:
        (stage / "old").write_bytes(b"")
    monkeypatch.setattr(Path, "rename", lambda *_: pytest.fail("between two renames there is no folder"))
    with staged_folder(target) as stage:
        (stage / "new").write_bytes(b"")
    assert names(tmp_path) == ["bundle"]
    assert names(target) == ["new"]


KILLED = """
import os, signal, sys
from pathlib import Path
from ptsr_edge.core import files

target = Path(sys.argv[1])
if sys.argv[2] == "between two renames":
    files._exchange = lambda *_: False  # as on a file system without that call
    Path.rename = lambda *_, rename=Path.rename: (rename(*_), os.kill(os.getpid(), signal.SIGKILL))
with files.staged_file(target / "file") if sys.argv[2] == "file" else files.staged_folder(target) as stage:
    (stage if sys.argv[2] == "file" else stage / "new").write_text("half")
    if sys.argv[2] in ("file", "folder"):
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere processes are not told apart: a day has to pass"
)
@pytest.mark.parametrize("moment", ["file", "folder", "between two renames"])
def test_what_a_killed_process_left_goes_with_the_next_write_and_nothing_of_a_live_one(
    tmp_path: Path, moment: str
) -> None:
    target = tmp_path / "out"
    write_whole(target / "file", "old")
    subprocess.run([sys.executable, "-c", KILLED, str(target), moment], check=False, timeout=60)
    left = names(target if moment == "file" else tmp_path)
    assert any(name.startswith((".file.", ".out.")) for name in left), "the death left nothing to be removed"
    with staged_folder(target) as mine:
        # A second writer of the same process, at the same place, and one whose place only begins alike.
        write_whole(tmp_path / "out.1", "other")
        with staged_folder(target) as second:
            assert names(tmp_path) == sorted([mine.name, second.name, "out", "out.1"])
            assert moment == "file" or (target / "file").read_text(encoding="utf-8") == "old"
            write_whole(target / "file", "newer")
            assert names(target) == ["file"]
    assert names(tmp_path) == ["out", "out.1"]


def test_a_stage_of_another_machine_or_container_goes_after_a_day_without_a_write(tmp_path: Path) -> None:
    others = tmp_path / f".out.{'e' * 8}-1-{'0' * 16}"
    (others / "deep").mkdir(parents=True)
    days_ago = time.time() - 3 * 24 * 3600
    for path in (others, others / "deep"):
        os.utime(path, (days_ago, days_ago))
    (others / "deep" / "half").write_text("half", encoding="utf-8")
    os.utime(others / "deep", (days_ago, days_ago))
    write_whole(tmp_path / "out", "")
    assert names(tmp_path) == sorted([others.name, "out"])
    os.utime(others / "deep" / "half", (days_ago, days_ago))
    write_whole(tmp_path / "out", "")
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize(("mask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_who_may_read_is_for_the_user_to_say(tmp_path: Path, mask: int, file: int, folder: int) -> None:
    before = os.umask(mask)
    try:
        write_whole(tmp_path / "events.json", b"{}")
        with staged_file(tmp_path / "clip.mp4") as stage:
            stage.write_bytes(b"video")
        with staged_folder(tmp_path / "bundle") as stage:
            write_whole(stage / "bundle.json", b"{}")
        DiskCache("faces", tmp_path / "cache").store("ab" * 32, lambda stream: stream.write(b"flow") and None)
    finally:
        os.umask(before)
    modes = {path: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert {mode for path, mode in modes.items() if path.is_file()} == {file}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {folder}
    assert len(modes) == 7


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    def block() -> None:
        with staged_folder(tmp_path / "file" / "bundle"):
            pytest.fail("the block must not start")

    with pytest.raises(JobError, match="cannot write"):
        block()


def test_a_place_is_checked_before_it_is_worked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    check_place(tmp_path / "new")
    check_place(tmp_path / "deep" / "deeper" / "new")
    check_file(tmp_path / "file")
    assert names(tmp_path) == ["file", "link"], "a check makes nothing"
    for parent in ("file", "link"):
        for inside in ("new", "deep/new"):
            with pytest.raises(InputError, match=rf"new cannot be written: .*{parent} is no folder"):
                check_place(tmp_path / parent / inside)
    with pytest.raises(InputError, match="cannot be written: it is a folder"):
        check_file(tmp_path)
    monkeypatch.chdir(tmp_path)
    check_place(Path("new"))
    with pytest.raises(InputError, match=r"file/new cannot be written: .*file is no folder"):
        check_place(Path("file/new"))


def test_a_folder_that_may_not_be_written_to_is_found_before_the_work(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o500)
    # Root may write everywhere but into what the kernel keeps for itself.
    folder = closed if not os.access(closed, os.W_OK) else Path("/proc/sys/kernel")
    if os.access(folder, os.W_OK):
        pytest.skip(f"{folder} may be written to: no folder is closed to this user")
    with pytest.raises(InputError, match=rf"cannot be written: no permission to write into {folder}"):
        check_place(folder / "new")


def test_a_staged_file_appears_at_the_end_with_its_suffix(tmp_path: Path) -> None:
    path = tmp_path / "new" / "clip.mp4"
    with staged_file(path) as stage:
        assert stage.suffix == ".mp4"
        assert stage.parent == path.parent
        assert not stage.exists()
        stage.write_bytes(b"video")
        assert not path.exists()
    assert path.read_bytes() == b"video"
    assert names(path.parent) == ["clip.mp4"]


def test_a_staged_file_of_a_failed_job_leaves_the_older_one(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"older")

    def fail() -> None:
        with staged_file(path) as stage:
            stage.write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_bytes() == b"older"
    assert names(tmp_path) == ["clip.mp4"]


def test_a_staged_file_that_nobody_wrote_leaves_nothing(tmp_path: Path) -> None:
    with staged_file(tmp_path / "clip.mp4"):
        pass
    assert names(tmp_path) == []


def test_a_staged_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(JobError, match="cannot write"), staged_file(tmp_path / "file" / "clip.mp4"):
        pass
    with pytest.raises(JobError, match="No space left"), staged_file(tmp_path / "clip.mp4"):
        no_room()


def test_a_file_that_a_call_names_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"there is no checkpoint at {tmp_path}: it is a folder"):
        require_file(tmp_path, "checkpoint")
    with pytest.raises(InputError, match="there is no checkpoint at .*none$"):
        require_file(tmp_path / "none", "checkpoint")
    (tmp_path / "here").touch()
    require_file(tmp_path / "here", "checkpoint")


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
from ptsr_edge.core.files import DiskCache

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
    monkeypatch.setattr(files, "__file__", str(package / "core" / "files.py"))
    module = "ptsr_edge.data.extraction"
    before = files.closure_digest(module)

    def changed(name: str) -> bool:
        path = package / name
        content = path.read_bytes()
        path.write_bytes(content + b"\n# another line\n")
        after = files.closure_digest(module)
        path.write_bytes(content)
        return after != before

    assert changed("data/extraction.py")
    assert changed("vision/flow.py")
    assert changed("vision/face_tracking.py")
    assert not changed("models/ptsr.py")
    assert not changed("report/cli.py")
    assert files.closure_digest(module) == before


def test_a_scratch_folder_is_the_users_alone_and_what_killed_processes_left_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    program = (
        "import os, signal\nfrom ptsr_edge.core.files import scratch_folder\n"
        "with scratch_folder() as place:\n    (place / 'copy').write_text('x')\n    os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program], env=os.environ | {"TMPDIR": str(tmp_path)}, check=False)
    (left,) = names(tmp_path)
    with scratch_folder() as own:
        assert stat.S_IMODE(own.stat().st_mode) == 0o700
        assert left not in names(tmp_path)
        with scratch_folder() as other:  # one that is in use stays
            assert names(tmp_path) == sorted([own.name, other.name])
    assert names(tmp_path) == []


def test_a_read_only_file_system_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux says of a file that is not there, when it is to be removed, that the file system is read-only."""

    def refuses(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "unlink", refuses)
    monkeypatch.setattr(Path, "open", refuses)
    with pytest.raises(JobError, match=r"cannot write .*x: Read-only file system$"):
        write_whole(tmp_path / "x", "new")


def test_arrays_come_as_they_were_kept_and_an_archive_that_takes_the_memory_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "one.npy", np.arange(3))
    np.savez_compressed(tmp_path / "some.npz", a=np.zeros(1000), b=np.arange(2))
    assert read_arrays(tmp_path / "one.npy")[""].tolist() == [0, 1, 2]
    assert {name: len(array) for name, array in read_arrays(tmp_path / "some.npz").items()} == {
        "a": 1000,
        "b": 2,
    }
    monkeypatch.setattr(files, "MOST_UNPACKED", 8000)
    assert (tmp_path / "some.npz").stat().st_size < 1000
    with pytest.raises(ValueError, match="it unpacks to 8,272 bytes, at most 8,000 are read"):
        read_arrays(tmp_path / "some.npz")
