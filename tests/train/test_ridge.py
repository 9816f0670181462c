"""The closed form is the minimum that it is said to be, and training leaves it as it is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ptsr_edge.core.config import LABELS, ModelConfig, Preprocess
from ptsr_edge.data.datasets import FlowDataset
from ptsr_edge.models.ptsr import MeanReadout, Ptsr, build_model
from ptsr_edge.train.trainer import (
    REACH,
    STRENGTH,
    TrainConfig,
    class_weights,
    fit,
    flip_horizontally,
    solve_means,
)
from ptsr_edge.vision.flow import to_input


def clips(side: int, count: int = 30) -> FlowDataset:
    rng = np.random.default_rng(3)
    labels = np.arange(count) % len(LABELS)
    flows = rng.normal(size=(count, side, side, 3)).astype(np.float32)
    flows[np.arange(count), 8 * labels, 8 * labels] += 60.0  # a class moves a patch of its own
    subjects = np.array([f"s{number % 5}" for number in range(count)])
    names = [f"clip{number}" for number in range(count)]
    return FlowDataset(flows, labels, subjects, names, LABELS, Preprocess(image_size=side), "test")


def objective(readout: MeanReadout, data: FlowDataset, held: Tensor) -> Tensor:
    inputs, labels = torch.from_numpy(to_input(data.flows)), torch.from_numpy(data.labels)
    weights = class_weights(labels, len(LABELS))[labels]
    weights = weights / weights.mean()
    targets = REACH * (F.one_hot(labels, len(LABELS)) - 1 / len(LABELS))
    loss = torch.zeros(())
    for view in (inputs, flip_horizontally(inputs)):
        loss = loss + (weights[:, None] * (readout(view) - targets).square()).sum()
    return loss + STRENGTH * (readout.linear.weight - held).square().sum()


def test_no_direction_leads_further_down(ptsr_config: Callable[..., ModelConfig]) -> None:
    config = ptsr_config(mean_readout=True)
    data, readout = clips(config.image_size), MeanReadout(config)
    held = readout.linear.weight.detach().clone()  # not zero: random
    labels = torch.from_numpy(data.labels)
    before = objective(readout, data, held).item()
    solve_means(readout, torch.from_numpy(to_input(data.flows)), labels, class_weights(labels, len(LABELS)))
    loss = objective(readout, data, held)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() < before
    for value in (readout.linear.weight, readout.linear.bias):
        assert value.grad is not None
        assert value.grad.abs().max() < 1e-3 * loss.item()


def test_training_solves_it_on_its_own_clips_and_descends_around_it(
    ptsr_config: Callable[..., ModelConfig],
) -> None:
    config = ptsr_config(mean_readout=True, score="strain")
    data = clips(config.image_size)
    recipe = TrainConfig(epochs=2, batch_size=10, lr=1e-2)
    first = build_model(config, seed=1)
    model = fit(config, data, recipe, seed=1)
    assert isinstance(model, Ptsr)
    assert isinstance(first, Ptsr)
    assert model.means is not None
    assert first.means is not None
    assert first.means.linear.weight.abs().max() == 0
    labels = torch.from_numpy(data.labels)
    solve_means(
        first.means,
        torch.from_numpy(to_input(data.flows)),
        labels,
        class_weights(labels, len(LABELS)),
    )
    assert torch.equal(model.means.linear.weight, first.means.linear.weight)
    assert not torch.equal(model.head.global_.weight, first.head.global_.weight)


def test_a_dropped_patch_still_counts_through_its_mean(ptsr_config: Callable[..., ModelConfig]) -> None:
    config = ptsr_config(mean_readout=True, score="strain")
    model = fit(config, clips(config.image_size), TrainConfig(epochs=1, batch_size=10), seed=0)
    assert isinstance(model, Ptsr)
    flow = torch.from_numpy(to_input(clips(config.image_size, 1).flows))
    kept = model(flow, 2).kept
    dropped = next(patch for patch in range(config.patches) if patch not in kept[0].tolist())
    row, column = divmod(dropped, config.image_size // config.patch_size)
    side = config.patch_size
    moved = flow.clone()
    moved[:, 0, row * side : (row + 1) * side, column * side : (column + 1) * side] += 1.0
    with torch.no_grad():
        change = model(moved, 2, kept).logits - model(flow, 2, kept).logits
    assert model.means is not None
    assert change.abs().max() > 0.5 * model.means.linear.weight[:, dropped].abs().max()
