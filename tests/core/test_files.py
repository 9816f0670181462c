"""Files and folders appear whole or not at all, whatever goes wrong in between."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from ptsr_edge.core.errors import InputError, JobError
from ptsr_edge.core.files import (
    check_file,
    check_place,
    link_file,
    require_file,
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
        if to == target and self.name != "old":
            no_room()
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", refuse_the_stage)

    def block() -> None:
        with staged_folder(target) as stage:
            (stage / "fresh").write_bytes(b"new")

    with pytest.raises(JobError, match=r"cannot write .*No space left"):
        block()
    assert names(tmp_path) == ["bundle"]
    assert (target / "stale").read_bytes() == b"old"


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
    assert path.stat().st_mode & 0o777 == 0o644
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
