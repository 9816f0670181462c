"""Batches change nothing, and the model's mode is left as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ptsr_edge.core.config import ModelConfig
from ptsr_edge.core.errors import InputError
from ptsr_edge.models.checkpoint import choose_device, predict_logits
from ptsr_edge.models.ptsr import build_model, random_tokens

CONFIG = ModelConfig(
    name="toy", kind="ptsr", image_size=16, patch_size=4, dim=8, depth=2, heads=2, dropout=0.5
)


def test_batches_give_what_single_samples_give() -> None:
    model = build_model(CONFIG)
    flows = np.random.default_rng(0).normal(size=(5, 16, 16, 3)).astype(np.float32)
    logits, kept = predict_logits(model, flows, tokens=4, batch=2)
    singles = [predict_logits(model, flows[place : place + 1], tokens=4) for place in range(5)]
    # Products of other batch sizes may round differently: fp32 rounding, a few 1e-7 on logits near 1.
    np.testing.assert_allclose(logits, np.concatenate([one for one, _ in singles]), atol=1e-6)
    assert [set(row) for row in kept] == [set(one[0]) for _, one in singles]


def test_each_sample_keeps_the_patches_that_it_is_told_to() -> None:
    model = build_model(CONFIG)
    flows = np.random.default_rng(0).normal(size=(5, 16, 16, 3)).astype(np.float32)
    forced = random_tokens(5, CONFIG.patches, 4, seed=1)
    logits, kept = predict_logits(model, flows, tokens=4, batch=2, forced=forced)
    np.testing.assert_array_equal(kept, forced.numpy())
    own, _ = predict_logits(model, flows, tokens=4, batch=2)
    assert np.abs(logits - own).max() > 1e-4


def test_dropout_is_off_and_the_mode_is_put_back() -> None:
    model = build_model(CONFIG).train()
    flows = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    first, _ = predict_logits(model, flows)
    second, _ = predict_logits(model, flows)
    np.testing.assert_array_equal(first, second)
    assert model.training


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (choose_device("auto"), choose_device("cpu")) == ("cpu", "cpu")
    with pytest.raises(InputError, match="sees no GPU; accepted: auto, cpu"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [choose_device(name) for name in ("auto", "cpu", "cuda")] == ["cuda", "cpu", "cuda"]
    with pytest.raises(InputError, match="unknown device 'tpu'; accepted: auto, cpu, cuda"):
        choose_device("tpu")
