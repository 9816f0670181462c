"""The cache of finished bundles: the same export is a copy, and nothing stale is ever handed out."""

from __future__ import annotations

import errno
import inspect
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundle_data import write_tiny_bundle

from ptsr_edge.bundle import MANIFEST, read_bundle
from ptsr_edge.core.disk_cache import cache_key, code_digest, default_folder
from ptsr_edge.core.errors import JobError
from ptsr_edge.export import exporter as cache_module
from ptsr_edge.export.exporter import (
    BundleCache,
    data_fingerprint,
    export_bundle,
    hardware,
    surroundings,
    tool_versions,
)
from ptsr_edge.runtimes.base import RUNTIMES

KEY = "a" * 64
PARTS: dict[str, Any] = {
    "checkpoint_sha256": "12",
    "call": {"target": "cpu", "budgets": [1.0, 0.5], "precisions": ["fp32"], "seed": 0, "recipe": None},
    "data": "34",
    "tools": {"torch": "2.13.0", "onnxruntime": "1.32.0"},
    "code": "56",
    "hardware": {"cpu": {"model": "one", "flags": ["avx2"]}, "gpus": []},
}


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A bundle with two variants and a script that can be executed, which no manifest lists."""
    folder = tmp_path / "made"
    write_tiny_bundle(folder)
    (folder / "tools").mkdir()
    script = folder / "tools" / "build_on_device.sh"
    script.write_text("#!/bin/sh\n", encoding="utf-8")
    script.chmod(0o755)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> BundleCache:
    return BundleCache(tmp_path / "cache")


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def entries(folder: Path) -> list[str]:
    """Everything in the cache's folder, hidden leftovers included."""
    return sorted(path.name for path in folder.iterdir())


def test_a_stored_bundle_comes_back_byte_for_byte(tmp_path: Path, made: Path, store: BundleCache) -> None:
    store.store(KEY, made)
    assert store.fetch(KEY, tmp_path / "out") == read_bundle(made)
    assert content(tmp_path / "out") == content(made)
    assert os.access(tmp_path / "out" / "tools" / "build_on_device.sh", os.X_OK)
    assert entries(tmp_path / "cache") == [KEY]


def test_what_was_never_stored_is_a_miss(tmp_path: Path, made: Path, store: BundleCache) -> None:
    assert store.fetch(KEY, tmp_path / "out") is None
    store.store(KEY, made)
    assert store.fetch("b" * 64, tmp_path / "out") is None
    assert not (tmp_path / "out").exists()


def test_the_order_of_the_parts_says_nothing() -> None:
    assert cache_key(dict(reversed(PARTS.items()))) == cache_key(PARTS)
    assert cache_key(PARTS) == cache_key(json.loads(json.dumps(PARTS)))
    assert len(cache_key(PARTS)) == 64


def with_change(*place: str, value: Any) -> dict[str, Any]:
    changed: dict[str, Any] = json.loads(json.dumps(PARTS))
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return changed


@pytest.mark.parametrize(
    "changed",
    [
        with_change("checkpoint_sha256", value="13"),
        with_change("call", "target", value="openvino"),
        with_change("call", "budgets", value=[1.0, 0.25]),
        with_change("call", "budgets", value=[0.5, 1.0]),
        with_change("call", "precisions", value=["fp32", "int8"]),
        with_change("call", "seed", value=1),
        with_change("call", "recipe", value={"int8_scheme": "static"}),
        with_change("data", value="35"),
        with_change("tools", "onnxruntime", value="1.32.1"),
        with_change("tools", "openvino", value="2026.4.1"),
        with_change("code", value="57"),
        with_change("hardware", "cpu", "flags", value=["avx2", "avx512_vnni"]),
        with_change("hardware", "gpus", value=[{"name": "x", "compute_cap": "8.6", "driver_version": "1"}]),
    ],
)
def test_any_part_that_changes_is_another_key(
    tmp_path: Path, made: Path, store: BundleCache, changed: dict[str, Any]
) -> None:
    store.store(cache_key(PARTS), made)
    assert store.fetch(cache_key(changed), tmp_path / "out") is None
    assert store.fetch(cache_key(PARTS), tmp_path / "out") is not None


def test_a_part_that_json_cannot_hold_is_no_key() -> None:
    with pytest.raises(TypeError):
        cache_key({"path": Path("x")})
    with pytest.raises(ValueError, match="JSON"):
        cache_key({"rate": float("nan")})


def test_the_surroundings_are_the_tools_the_source_and_the_machine() -> None:
    parts = surroundings()
    assert set(parts) == {"tools", "code", "hardware"}
    assert {"torch", "onnx", "numpy"} <= set(tool_versions())
    assert set(hardware()["cpu"]) == {"model", "architecture", "flags"}
    # The same within one run: load, clocks and free memory are no part of it.
    assert cache_key(parts) == cache_key(surroundings())


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
    assert code_digest() == code_digest(Path(cache_module.__file__).parent)


@pytest.mark.parametrize("change", ["content", "content alone", "time", "name", "more", "less"])
def test_the_data_fingerprint_sees_every_change_of_a_folder(tmp_path: Path, change: str) -> None:
    (tmp_path / "s01").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "s01" / name).write_bytes(b"12")
    before = data_fingerprint("megc-flow", tmp_path)
    assert data_fingerprint("megc-flow", tmp_path) == before
    path = tmp_path / "s01" / "b.png"
    if change == "content":
        path.write_bytes(b"123")
    elif change == "content alone":  # as a tool does that copies times, too
        modified_ns = path.stat().st_mtime_ns
        path.write_bytes(b"21")
        os.utime(path, ns=(modified_ns, modified_ns))
    elif change == "time":
        os.utime(path, ns=(1, 1))
    elif change == "name":
        path.rename(tmp_path / "b.png")
    elif change == "more":
        (tmp_path / "c.png").write_bytes(b"")
    else:
        path.unlink()
    assert data_fingerprint("megc-flow", tmp_path) != before


def test_data_that_are_made_here_have_no_files_to_look_at(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    assert data_fingerprint("synthetic", tmp_path) == data_fingerprint("synthetic", None)
    assert data_fingerprint("synthetic", None) != data_fingerprint("megc-flow", None)


def changed_graph(entry: Path) -> None:
    path = next((entry / "bundle").glob("*.onnx"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def changed_graph_and_record(entry: Path) -> None:
    """As if somebody had repaired the entry's own hashes: the manifest's still differ."""
    changed_graph(entry)
    record = json.loads((entry / "entry.json").read_text(encoding="utf-8"))
    name = next(path.name for path in (entry / "bundle").glob("*.onnx"))
    record["files"][name] = cache_module.hashlib.sha256((entry / "bundle" / name).read_bytes()).hexdigest()
    (entry / "entry.json").write_text(json.dumps(record), encoding="utf-8")


def changed_manifest(entry: Path) -> None:
    path = entry / "bundle" / MANIFEST
    path.write_text(
        path.read_text(encoding="utf-8").replace('"max_abs": 0.0', '"max_abs": 0.5'), encoding="utf-8"
    )


def changed_script(entry: Path) -> None:
    (entry / "bundle" / "tools" / "build_on_device.sh").write_text("#!/bin/sh\nrm -r /\n", encoding="utf-8")


SPOILED: list[Callable[[Path], None]] = [
    changed_graph,
    changed_graph_and_record,
    changed_manifest,
    changed_script,
    lambda entry: next((entry / "bundle").glob("*.onnx")).unlink(),
    lambda entry: next((entry / "bundle").glob("*.onnx")).write_bytes(b""),
    lambda entry: (entry / "bundle" / MANIFEST).unlink(),
    lambda entry: (entry / "bundle" / "more.bin").write_bytes(b"x"),
    lambda entry: (entry / "entry.json").unlink(),
    lambda entry: (entry / "entry.json").write_text("{", encoding="utf-8"),
    lambda entry: (entry / "entry.json").write_text("[]", encoding="utf-8"),
    lambda entry: (entry / "entry.json").write_text('{"files": 3}', encoding="utf-8"),
    lambda entry: shutil.rmtree(entry / "bundle"),
]
NAMES = [
    "graph changed", "graph and record changed", "manifest changed", "script changed", "graph missing",
    "graph empty", "manifest missing", "a file too many", "record missing", "record broken", "record a list",
    "record without files", "content missing",
]  # fmt: skip


@pytest.mark.parametrize("spoil", SPOILED, ids=NAMES)
def test_an_entry_that_is_not_what_was_stored_is_removed_and_not_handed_out(
    tmp_path: Path,
    made: Path,
    store: BundleCache,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[Path], None],
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "earlier").write_bytes(b"work")
    store.store(KEY, made)
    spoil(tmp_path / "cache" / KEY)
    assert store.fetch(KEY, out) is None
    assert "it is made anew" in caplog.text
    assert content(out) == {"earlier": b"work"}
    assert entries(tmp_path / "cache") == []
    store.store(KEY, made)
    assert store.fetch(KEY, out) == read_bundle(made)


def test_a_bundle_that_is_not_what_its_manifest_says_is_not_kept(
    tmp_path: Path, made: Path, store: BundleCache, caplog: pytest.LogCaptureFixture
) -> None:
    next(made.glob("*.onnx")).write_bytes(b"other")
    store.store(KEY, made)
    assert "is not kept" in caplog.text
    assert entries(tmp_path / "cache") == []


def test_no_room_for_the_copy_leaves_what_stood_there(
    tmp_path: Path, made: Path, store: BundleCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.store(KEY, made)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "earlier").write_bytes(b"work")

    def no_room(path: Path, _: int) -> None:
        if path.is_file():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "chmod", no_room)
    with pytest.raises(JobError, match=r"cannot write .*out: No space left"):
        store.fetch(KEY, tmp_path / "out")
    assert content(tmp_path / "out") == {"earlier": b"work"}
    monkeypatch.undo()
    # Nothing is wrong with the entry.
    assert store.fetch(KEY, tmp_path / "out") is not None


def test_no_room_in_the_cache_keeps_nothing_and_fails_nothing(
    tmp_path: Path,
    made: Path,
    store: BundleCache,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_room)
    with caplog.at_level(logging.INFO, logger="ptsr_edge"):
        store.store(KEY, made)
        store.store("b" * 64, made)
    assert [record.getMessage() for record in caplog.records] == [
        f"cache: off, exports are not kept: cannot write {caplog.records[0].getMessage().split('write ')[1]}"
    ]
    assert "No space left" in caplog.text
    assert entries(tmp_path / "cache") == []


def test_a_folder_that_cannot_be_written_turns_the_cache_off_once(
    tmp_path: Path, made: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Below a file: no permission helps here, not even root's.
    (tmp_path / "file").write_bytes(b"")
    store = BundleCache(tmp_path / "file" / "cache")
    with caplog.at_level(logging.INFO, logger="ptsr_edge"):
        for _ in range(2):
            assert store.fetch(KEY, tmp_path / "out") is None
            store.store(KEY, made)
    assert len(caplog.records) == 1
    assert "cache: off" in caplog.text


def test_without_a_home_directory_the_cache_is_off(
    tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def nowhere() -> Path:
        # What pathlib documents for a user that has none.
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("PTSR_EDGE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    assert default_folder() is None
    with caplog.at_level(logging.INFO, logger="ptsr_edge"):
        store = BundleCache()
        store.store(KEY, made)
        assert store.fetch(KEY, tmp_path / "out") is None
    assert [record.getMessage() for record in caplog.records] == [
        "cache: off, exports are not kept: there is no home directory"
    ]


def test_the_folder_is_the_one_asked_for_then_xdg_then_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("PTSR_EDGE_CACHE", str(tmp_path / "own"))
    assert default_folder() == tmp_path / "own"
    monkeypatch.setenv("PTSR_EDGE_CACHE", "")
    assert default_folder() == tmp_path / "xdg" / "ptsr-edge"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_folder() == tmp_path / "home" / ".cache" / "ptsr-edge"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == tmp_path / "home" / ".cache" / "ptsr-edge"
    assert BundleCache().folder == default_folder()
    assert not (tmp_path / "home").exists()


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path, made: Path) -> None:
    folder = tmp_path / "cache"
    unbounded = BundleCache(folder)
    for number, key in enumerate("abc"):
        unbounded.store(key, made)
        os.utime(folder / key, ns=(number, number))
    one = sum(path.stat().st_size for path in (folder / "a").rglob("*") if path.is_file())
    assert unbounded.fetch("a", tmp_path / "out") is not None  # used just now: no longer the oldest
    BundleCache(folder, limit_bytes=3 * one).store("d", made)
    assert entries(folder) == ["a", "c", "d"]
    BundleCache(folder, limit_bytes=one).store("e", made)
    assert entries(folder) == ["e"]


def test_a_bundle_larger_than_the_cache_is_not_kept(tmp_path: Path, made: Path) -> None:
    store = BundleCache(tmp_path / "cache", limit_bytes=10_000)
    assert sum(map(len, content(made).values())) > 10_000
    store.store(KEY, made)
    assert store.fetch(KEY, tmp_path / "out") is None
    assert not (tmp_path / "cache").exists()


def test_what_a_dead_process_left_is_swept_and_what_a_live_one_writes_is_not(
    tmp_path: Path, made: Path, store: BundleCache
) -> None:
    for name in (".new-dead", ".new-alive"):
        (tmp_path / "cache" / name).mkdir(parents=True)
    days_ago = time.time() - 3 * 24 * 3600
    os.utime(tmp_path / "cache" / ".new-dead", (days_ago, days_ago))
    store.store(KEY, made)
    assert entries(tmp_path / "cache") == [".new-alive", KEY]


WORKER = """
import sys
from pathlib import Path
from ptsr_edge.cache import BundleCache

folder, made, out = (Path(name) for name in sys.argv[1:4])
expected = {path.relative_to(made): path.read_bytes() for path in made.rglob("*") if path.is_file()}
# Room for one of the two bundles that are stored in turns.
store = BundleCache(folder, limit_bytes=5_000 + sum(map(len, expected.values())))
for turn in range(12):
    key = "ab"[turn % 2] * 64
    store.store(key, made)
    if store.fetch(key, out) is not None:
        found = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
        assert found == expected
assert not store._told, "the cache turned itself off"
"""


def test_processes_that_store_the_same_key_at_once_do_not_harm_each_other(tmp_path: Path, made: Path) -> None:
    calls = [
        [sys.executable, "-c", WORKER, str(tmp_path / "cache"), str(made), str(tmp_path / f"out{number}")]
        for number in range(3)
    ]
    workers = [subprocess.Popen(call, stderr=subprocess.PIPE, text=True) for call in calls]
    # One may find that another has just removed what it reads, which is a miss; it never fails.
    said = [worker.communicate(timeout=300)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0], said
    left = entries(tmp_path / "cache")
    assert left
    assert set(left) <= {"a" * 64, "b" * 64}


def test_the_same_export_again_is_served(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("PTSR_EDGE_CACHE", str(tmp_path / "cache"))

    def export(name: str) -> bool:
        """Whether a bundle was served."""
        export_bundle(
            out=tmp_path / name, checkpoint=tiny_checkpoint, budgets=[0.25], precisions=["fp32"],
            calibration_samples=6, cache=True,
        )  # fmt: skip
        return "served from the cache" in capsys.readouterr().err

    assert not export("first")
    assert export("second")
    assert content(tmp_path / "first") == content(tmp_path / "second")
    assert len(entries(tmp_path / "cache")) == 1


class _Asked(Exception):  # noqa: N818
    """Raised in place of the export, with what its key is made of."""


@pytest.fixture
def key_of(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[str, ...]]:
    """The key of an export; nothing is built."""

    def asked(parts: dict[str, Any]) -> str:
        raise _Asked(cache_key(parts))

    monkeypatch.setattr("ptsr_edge.export.exporter.cache_key", asked)

    def key(**call: Any) -> tuple[str, ...]:
        with pytest.raises(_Asked) as caught:
            export_bundle(
                **{"out": tmp_path / "out", "checkpoint": tiny_checkpoint, "budgets": [0.25]} | call,
                cache=True,
            )
        return caught.value.args

    return key


@pytest.mark.parametrize(
    "change",
    [
        {"checkpoint": None, "model": "ptsr-nano"},
        {"budgets": [0.5]},
        {"budgets": "auto"},
        {"precisions": ["fp32"]},
        {"calibration": Path(__file__).parent},
        {"calibration_data": "megc-flow"},
        {"calibration_samples": 7},
        {"max_uar_drop": 0.01},
        {"cascade_loss": 0.05},
        {"threads": 2},
        {"options": {"int8_scheme": "static"}},
    ],
    ids=str,
)
def test_every_argument_of_an_export_is_in_its_key(
    key_of: Callable[..., tuple[str, ...]], change: dict[str, Any]
) -> None:
    assert key_of(**change) != key_of()


def test_where_the_bundle_goes_is_not_in_the_key_and_every_other_argument_was_tried(
    tmp_path: Path, key_of: Callable[..., tuple[str, ...]]
) -> None:
    assert key_of(out=tmp_path / "elsewhere") == key_of()
    tried = {"model", "checkpoint", "budgets", "precisions", "calibration", "calibration_data",
             "calibration_samples", "max_uar_drop", "cascade_loss", "threads", "options"}  # fmt: skip
    assert set(inspect.signature(export_bundle).parameters) - tried == {"out", "cache", "target"}
    keys = [key_of(target=name, precisions=["fp32"]) for name in RUNTIMES]
    assert len(set(keys)) == len(RUNTIMES)


@pytest.mark.parametrize("part", ["tool_versions", "code_digest", "hardware"])
def test_the_surroundings_are_in_the_key_of_an_export(
    key_of: Callable[..., tuple[str, ...]], monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    before = key_of()
    monkeypatch.setattr(cache_module, part, lambda: "another")
    assert key_of() != before
