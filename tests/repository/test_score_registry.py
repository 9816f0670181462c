"""A score that is registered from outside of the package is a score like any other: one entry is all that it takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ptsr_edge.bundle import Bundle, read_bundle
from ptsr_edge.core.config import LABELS, ModelConfig, Preprocess
from ptsr_edge.data.datasets import FlowDataset
from ptsr_edge.export.exporter import export_bundle
from ptsr_edge.models.checkpoint import CheckpointInfo, save_checkpoint
from ptsr_edge.models.macs import SCORE, count_macs, eager_macs, exported_macs, onnx_macs
from ptsr_edge.models.ptsr import (
    SCORES,
    AttentionScore,
    InputScore,
    Ptsr,
    Scoring,
    build_model,
    class_scores,
)
from ptsr_edge.profile.accuracy import compare_selections
from ptsr_edge.session import Session
from ptsr_edge.train.trainer import TrainConfig, fit

pytestmark = pytest.mark.slow


def centre_scores(model: Scoring, flow: torch.Tensor) -> torch.Tensor:
    """Nearness of each patch to the middle, weighed by its mean motion: a product of (C) with (C, N)."""
    grid, side = model.config.grid, model.config.patch_size
    place = torch.arange(grid) - (grid - 1) / 2
    near = 1 / (1 + place[:, None] ** 2 + place[None] ** 2).flatten()  # (N,)
    means = torch.nn.functional.avg_pool2d(flow.abs(), side).flatten(2)  # (B, C, N)
    return (torch.ones(len(flow), 1, flow.shape[1]) @ means)[:, 0] * near


def last_head(weights: Any) -> torch.Tensor:
    """The class token's attention in the last head alone."""
    return class_scores(weights[-1][:, -1:])


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        SCORES, "centre", InputScore(centre_scores, lambda config: config.channels * config.patches)
    )
    last = AttentionScore(last_head, static=lambda class_row, _: class_row[:, -1, 0])
    monkeypatch.setitem(SCORES, "last-head", last)


def clips(flows: NDArray[np.float32]) -> FlowDataset:
    count = len(flows)
    return FlowDataset(
        flows=flows,
        labels=np.arange(count, dtype=np.int64) % 3,
        subjects=np.array([f"s{place // 3}" for place in range(count)]),
        names=[f"clip{place}" for place in range(count)],
        label_names=LABELS,
        preprocess=Preprocess(image_size=32),
        source="toy",
    )


def exported(model: Ptsr, megc_folder: Path, folder: Path) -> Bundle:
    info = CheckpointInfo(
        schema=1,
        model=model.config,
        preprocess=Preprocess(image_size=32, flow="published", global_motion="none"),
        labels=list(LABELS),
        provenance={"kind": "trained", "data": "megc-flow", "card": "made by a test", "train_subjects": []},
    )
    save_checkpoint(folder / "toy.safetensors", model, info)
    export_bundle(out=folder / "bundle", checkpoint=folder / "toy.safetensors", target="cpu", budgets=(0.25,),
                  precisions=("fp32",), calibration=megc_folder)  # fmt: skip
    return read_bundle(folder / "bundle")


@pytest.mark.parametrize("score", ["centre", "last-head"])
def test_a_toy_score_trains_exports_counts_and_is_compared(
    score: str,
    ptsr_config: Callable[..., ModelConfig],
    random_flows: Callable[..., NDArray[np.float32]],
    megc_folder: Path,
    tmp_path: Path,
) -> None:
    config = ptsr_config(score=score, select_block=1)
    data = clips(random_flows(6))
    recipe = TrainConfig(epochs=1, batch_size=6, budgets=(1.0, 0.25))
    model = fit(config, data, recipe, seed=0)
    assert isinstance(model, Ptsr)
    inputs = torch.from_numpy(random_flows(1)).permute(0, 3, 1, 2)
    with torch.no_grad():
        kept = model(inputs, 4).kept[0].tolist()
        assert sorted(kept) == sorted(model.scores(inputs)[0].topk(4).indices.tolist())

    bundle = exported(model, megc_folder, tmp_path)
    (variant,) = bundle.variants
    assert variant.parity is not None
    assert variant.parity.max_abs <= variant.parity.limit
    assert variant.parity.top1_agreement == 1.0
    assert len(Session.open(tmp_path / "bundle").predict(data.flows[0]).kept_tokens) == 4

    # The closed form is fvcore's count and the graph's, and holds the entry's own cost.
    written, static = eager_macs(config, 4), exported_macs(config, 4)
    by_fvcore = count_macs(build_model(config), (torch.zeros(1, *config.input_shape), 4))
    by_graph = onnx_macs(tmp_path / "bundle" / variant.artifact)
    assert sum(written.values()) == by_fvcore.total
    assert sum(static.values()) == by_graph.total == variant.macs
    assert by_fvcore.uncounted == by_graph.uncounted == {}
    assert written.get(SCORE, 0) == (3 * 16 if score == "centre" else 0)

    found = compare_selections(model, data, [4], seeds=1)
    assert [entry.selection for entry in found] == ["DTSM", "random", "strain"]
