"""The training loop: it learns, it can be killed, and its small parts are what they say."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from ptsr_edge.core.config import LABELS, ModelConfig, Preprocess, named_model
from ptsr_edge.core.errors import InputError
from ptsr_edge.data.datasets import FlowDataset
from ptsr_edge.models.checkpoint import embedded_checkpoint, load_checkpoint, predict_logits
from ptsr_edge.models.ptsr import MeanReadout, Model, Output, Ptsr, build_model
from ptsr_edge.train.trainer import (
    REACH,
    RECORDED,
    STRENGTH,
    TRAIN_CONFIGS,
    Augmentation,
    Epoch,
    KernelTeacher,
    Teaching,
    TrainConfig,
    add_affine_flow,
    augment,
    class_weights,
    digest_weights,
    first_weights,
    fit,
    flip_horizontally,
    for_classes,
    mixed,
    rotate_scale_shift,
    schedule,
    solve_means,
    train_config_for,
    with_noise,
)
from ptsr_edge.vision.flow import to_input

STILL = Augmentation(flip=0, shift=0, degrees=0, scale=0, gain=0)


def toy(count: int = 12, side: int = 28, classes: int = 3) -> FlowDataset:
    """Separable: each class moves its own third of the picture, with noise of a tenth."""
    flows = np.random.default_rng(0).normal(0, 0.1, (count, side, side, 3)).astype(np.float32)
    labels = np.arange(count) % classes
    for flow, label in zip(flows, labels, strict=True):
        flow[9 * label : 9 * label + 9, :, 1] += 1.0
        flow[9 * label : 9 * label + 9, :, 2] += 1.0
    return FlowDataset(
        flows=flows,
        labels=labels.astype(np.int64),
        subjects=np.array([f"toy/{index}" for index in range(count)]),
        names=[str(index) for index in range(count)],
        label_names=LABELS,
        preprocess=Preprocess(image_size=side),
        source="toy",
    )


def loss_of(model: Model, data: FlowDataset, rate: float = 1.0) -> float:
    logits, _ = predict_logits(model, data.flows, model.config.tokens_at(rate))
    return float(F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(data.labels)))


def weights_of(model: Model) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(first: Model, second: Model) -> None:
    expected = second.state_dict()
    different = [name for name, value in first.state_dict().items() if not torch.equal(value, expected[name])]
    assert different == []


@pytest.mark.parametrize("name", ["ptsr-nano", "vit-nano"])
def test_the_loss_goes_down_on_separable_data(name: str) -> None:
    config, data = named_model(name), toy()
    # A known beginning would be log 3 = 1.10, but for the read-out's random weights: halved is learned.
    before = loss_of(build_model(config), data)
    recipe = TrainConfig(epochs=40, batch_size=12, lr=5e-3, ema=0.9, label_smoothing=0, budgets=(1.0, 0.5))
    model = fit(config, data, recipe, seed=0)
    assert loss_of(model, data) < before / 2
    assert not model.training
    if name == "ptsr-nano":
        assert loss_of(model, data, rate=0.5) < before / 2


class KilledError(Exception):
    """Stands for whatever ends a process."""


@pytest.mark.parametrize(
    "config",
    [
        named_model("ptsr-nano"),
        named_model("vit-nano"),
        named_model("ptsr-nano").model_copy(update={"score": "random", "token_norm": "layer"}),
    ],
    ids=["ptsr", "vit", "random selection"],
)
@pytest.mark.parametrize("killed_at", [3, 5])
def test_a_killed_and_resumed_run_ends_bitwise_like_one_that_was_not(
    config: ModelConfig, killed_at: int, tmp_path: Path
) -> None:
    # 12 clips in batches of 6: 2 steps an epoch, so the state kept is that of step 2 and 4.
    data, recipe, state = toy(), TrainConfig(epochs=4, batch_size=6), tmp_path / "run.state"
    whole = fit(config, data, recipe, seed=1)

    def kill(done: int, total: int) -> None:
        assert total == 8
        if done == killed_at:
            raise KilledError

    with pytest.raises(KilledError):
        fit(config, data, recipe, seed=1, state_file=state, on_step=kill)
    assert state.is_file()
    steps: list[int] = []
    torch.manual_seed(99)  # what happened before in the process must not show
    resumed = fit(
        config,
        data,
        recipe,
        seed=1,
        state_file=state,
        resume=True,
        on_step=lambda done, _: steps.append(done),
    )
    assert steps == list(range(killed_at // 2 * 2 + 1, 9))
    assert_same(resumed, whole)
    assert_same(
        fit(config, data, recipe, seed=1, state_file=state, resume=True), whole
    )  # nothing is left to do


def test_without_resume_a_state_is_not_used(tmp_path: Path) -> None:
    data, recipe, state = toy(), TrainConfig(epochs=1, batch_size=6), tmp_path / "run.state"
    state.write_bytes(b"left over")
    config = named_model("vit-nano")
    assert_same(fit(config, data, recipe, 0, state_file=state), fit(config, data, recipe, 0))


@pytest.mark.parametrize("change", ["seed", "recipe", "model", "data", "initial weights"])
def test_the_state_of_another_run_is_refused(tmp_path: Path, change: str) -> None:
    config, data, recipe, state = (
        named_model("vit-nano"),
        toy(),
        TrainConfig(epochs=3, batch_size=6),
        tmp_path / "s",
    )

    def kill(done: int, _: int) -> None:
        if done == 3:
            raise KilledError

    with pytest.raises(KilledError):
        fit(config, data, recipe, seed=0, state_file=state, on_step=kill)
    content = state.read_bytes()
    other: dict[str, Any] = dict(config=config, data=data, train_config=recipe, seed=0)
    other |= {
        "seed": {"seed": 1},
        "recipe": {"train_config": recipe.model_copy(update={"lr": 1e-4})},
        "model": {"config": named_model("ptsr-nano")},
        "data": {"data": data.subset(np.arange(len(data)) != 5)},
        "initial weights": {"initial": build_model(config, seed=5)},
    }[change]
    with pytest.raises(InputError, match=r"is the state of another run .*: remove it to start anew"):
        fit(**other, state_file=state, resume=True)
    assert state.read_bytes() == content


def _lose(tensors: dict[str, Tensor], _: dict[str, str]) -> None:
    del tensors[min(tensors)]


def _fold(tensors: dict[str, Tensor], _: dict[str, str]) -> None:
    tensors[min(tensors)] = tensors[min(tensors)].reshape([1] * 64 + [-1])


def _retype(tensors: dict[str, Tensor], _: dict[str, str]) -> None:
    tensors[min(tensors)] = tensors[min(tensors)].to(torch.bfloat16)


def _skip(_: dict[str, Tensor], metadata: dict[str, str]) -> None:
    metadata["step"] = "1"


@pytest.mark.parametrize("damage", [_lose, _fold, _retype, _skip])
def test_a_state_that_is_not_what_was_kept_is_refused(
    tmp_path: Path, damage: Callable[[dict[str, Tensor], dict[str, str]], None]
) -> None:
    state, recipe = tmp_path / "run.state", TrainConfig(epochs=2, batch_size=6)

    def kill(done: int, _: int) -> None:
        if done == 3:
            raise KilledError

    with pytest.raises(KilledError):
        fit(named_model("vit-nano"), toy(), recipe, seed=0, state_file=state, on_step=kill)
    with safe_open(state, framework="pt") as stream:
        metadata = stream.metadata()
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    damage(tensors, metadata)
    state.write_bytes(save(tensors, metadata))
    with pytest.raises(InputError, match="is damaged"):
        fit(named_model("vit-nano"), toy(), recipe, seed=0, state_file=state, resume=True)


@pytest.mark.parametrize("content", [b"", b"no safetensors file"])
def test_a_state_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes) -> None:
    state = tmp_path / "run.state"
    state.write_bytes(content)
    with pytest.raises(InputError, match="is not a readable training state"):
        fit(named_model("vit-nano"), toy(), TrainConfig(epochs=1), 0, state_file=state, resume=True)


def test_a_class_without_a_sample_is_refused() -> None:
    with pytest.raises(
        InputError, match="every class needs a clip .* found negative 6, positive 6, surprise 0"
    ):
        fit(named_model("vit-nano"), toy(classes=2), TrainConfig(epochs=1), 0)


def test_data_with_other_classes_than_the_model_are_refused() -> None:
    config = named_model("vit-nano").model_copy(update={"classes": 4})
    with pytest.raises(InputError, match="answers 4 classes, the data have negative, positive, surprise"):
        fit(config, toy(), TrainConfig(epochs=1), 0)


def test_starting_weights_serve_their_own_classes_alone() -> None:
    config, recipe = named_model("ptsr-nano"), RECORDED["nano"]
    assert for_classes(config, recipe, LABELS) == (config, recipe, "")
    other, fresh, why = for_classes(config, recipe, ("frown", "smile"))
    assert (other.classes, fresh) == (2, recipe.model_copy(update={"start": "random"}))
    assert why.endswith("are left out: the data have frown, smile")
    assert first_weights(other, fresh, seed=0).config.classes == 2
    # The same names in another order are other answers.
    assert for_classes(config, recipe, LABELS[::-1])[1].start == "random"
    assert for_classes(config, TRAIN_CONFIGS["nano"], ("a", "b"))[2] == ""


def test_no_data_is_refused() -> None:
    with pytest.raises(InputError, match="nothing to train on"):
        fit(named_model("vit-nano"), toy().subset(np.zeros(12, bool)), TrainConfig(epochs=1), 0)


def test_class_weights_by_hand() -> None:
    # 1, 4 and 16 samples: 1, 1/2 and 1/4, over their mean 7/12. 1e-6: three float32 roundings.
    labels = torch.tensor([0] + [1] * 4 + [2] * 16)
    assert class_weights(labels, 3).tolist() == pytest.approx([12 / 7, 6 / 7, 3 / 7], rel=1e-6)


@pytest.mark.parametrize(
    ("step", "total", "warmup", "share"),
    # Rising by 1 / 10 a step to 1 at the tenth, then (1 + cos(pi x)) / 2 over the other 90.
    [(0, 100, 0.1, 0.1), (4, 100, 0.1, 0.5), (9, 100, 0.1, 1.0), (10, 100, 0.1, 1.0), (40, 100, 0.1, 0.75),
     (55, 100, 0.1, 0.5), (70, 100, 0.1, 0.25), (100, 100, 0.1, 0.0), (0, 8, 0.0, 1.0), (4, 8, 0.0, 0.5),
     (0, 1, 0.1, 1.0)],
)  # fmt: skip
def test_the_schedule_by_hand(step: int, total: int, warmup: float, share: float) -> None:
    assert schedule(step, total, warmup) == pytest.approx(share, abs=1e-12)


def test_the_moving_average_by_hand() -> None:
    # mean <- mean + (1 - decay) (weights - mean), the decay rising as (1 + step) / (10 + step) up to its
    # limit of .15: .1, 2/11 -> .15, 3/12 -> .15. 1e-6: one float32 rounding a step of values below 1.
    config, data = named_model("vit-nano"), toy()
    initial = build_model(config, seed=3)
    mean, seen = weights_of(initial), []

    def watch(done: int, _: int) -> None:
        decay = min(0.15, done / (9 + done))
        seen.append(decay)
        for name, value in initial.state_dict().items():
            mean[name] += (1 - decay) * (value - mean[name])

    averaged = fit(
        config, data, TrainConfig(epochs=3, batch_size=12, ema=0.15), 0, initial=initial, on_step=watch
    )
    assert seen == [0.1, 0.15, 0.15]
    for name, value in averaged.state_dict().items():
        assert (value - mean[name]).abs().max() < 1e-6, name
        assert value.dtype == mean[name].dtype
    assert not torch.equal(averaged.state_dict()["head.weight"], initial.state_dict()["head.weight"])


def test_statistics_are_those_of_the_last_step_and_not_averaged() -> None:
    config = named_model("ptsr-nano")
    initial = build_model(config)
    averaged = fit(config, toy(), TrainConfig(epochs=3, batch_size=6), 0, initial=initial)
    for name, value in initial.state_dict().items():
        if "running" in name or "num_batches" in name:
            assert torch.equal(averaged.state_dict()[name], value), name


def test_equal_seeds_train_equal_models_and_others_do_not() -> None:
    config, data, recipe = named_model("ptsr-nano"), toy(), TrainConfig(epochs=2, batch_size=6)
    first = fit(config, data, recipe, seed=0)
    assert_same(first, fit(config, data, recipe, seed=0))
    other = fit(config, data, recipe, seed=1)
    assert not torch.equal(first.state_dict()["head.local"], other.state_dict()["head.local"])


def test_the_local_readout_has_a_step_size_of_its_own() -> None:
    config = named_model("ptsr-nano")
    start = weights_of(build_model(config, 0))

    def steps(factor: float) -> dict[str, Tensor]:
        recipe = TrainConfig(epochs=1, batch_size=12, local_lr=factor, weight_decay=0.0)
        after = weights_of(fit(config, toy(), recipe, 0, initial=build_model(config, 0)))
        return {name: after[name] - start[name] for name in ("head.local", "head.global_.weight")}

    whole, hundredth = steps(1.0), steps(0.01)
    assert whole["head.local"].abs().max() > 0
    torch.testing.assert_close(hundredth["head.local"], 0.01 * whole["head.local"])
    torch.testing.assert_close(hundredth["head.global_.weight"], whole["head.global_.weight"])


def test_each_batch_draws_its_own_budget_and_augmentation() -> None:
    config = named_model("ptsr-nano")
    initial, counts, inputs = build_model(config), [], []

    def watch(_: torch.nn.Module, given: tuple[Tensor, ...], answer: Output) -> None:
        inputs.append(given[0])
        counts.append(answer.kept.shape[1])

    initial.register_forward_hook(watch)
    fit(config, toy(), TrainConfig(epochs=12, batch_size=12, budgets=(1.0, 0.5, 0.25)), 0, initial=initial)
    # 49 patches: 49, 25 or 13 tokens. That 12 draws leave one out has odds of 3 (2/3)^12 = 2 %; the
    # draws are seeded.
    assert set(counts) == {49, 25, 13}
    # Batches hold all 12 clips each: their spread over the clips would be equal were it not for the gain.
    assert len({float(batch.std()) for batch in inputs}) == 12


def test_bfloat16_trains_and_leaves_float32_weights() -> None:
    config = named_model("vit-nano")
    model = fit(config, toy(), TrainConfig(epochs=1, batch_size=12, bfloat16=True), 0)
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


@pytest.mark.parametrize(
    ("name", "recipe"),
    [("ptsr-nano", "nano"), ("vit-nano", "nano"), ("vit-small", "small"), ("ptsr-tiny", "tiny")],
)
def test_ptsr_and_its_baseline_share_a_recipe(name: str, recipe: str) -> None:
    assert train_config_for(named_model(name), "synthetic") is TRAIN_CONFIGS[recipe]


def test_recorded_data_start_from_synthetic_weights_and_synthetic_data_do_not() -> None:
    for name in ("ptsr-nano", "vit-nano"):
        recorded = train_config_for(named_model(name), "casme2")
        assert recorded is RECORDED["nano"]
        assert recorded.start == "synthetic"
        path = embedded_checkpoint(name)
        assert path is not None
        first = first_weights(named_model(name), recorded, seed=5)
        assert digest_weights(first) == digest_weights(load_checkpoint(path)[0])
        assert train_config_for(named_model(name), "synthetic").start == "random"
    assert train_config_for(named_model("ptsr-small"), "casme2") is TRAIN_CONFIGS["small"]


def test_starting_weights_that_are_not_there_or_of_another_geometry_are_refused() -> None:
    recipe = TrainConfig(epochs=1, start="synthetic")
    with pytest.raises(InputError, match="no starting weights of ptsr-small"):
        first_weights(named_model("ptsr-small"), recipe, seed=0)
    other = named_model("ptsr-nano").model_copy(update={"score": "random"})
    with pytest.raises(InputError, match="another geometry"):
        first_weights(other, recipe, seed=0)


def test_an_average_serves_as_first_weights() -> None:
    # It comes back without gradients.
    config, recipe = named_model("ptsr-nano"), TrainConfig(epochs=1, batch_size=6)
    fitted = fit(config, toy(), recipe, 0)
    before = digest_weights(fitted)
    assert digest_weights(fit(config, toy(), recipe, 0, initial=fitted)) != before


def test_each_epoch_shows_the_average_and_changes_nothing() -> None:
    config, data, recipe = named_model("ptsr-nano"), toy(), TrainConfig(epochs=3, batch_size=6)
    shown: list[dict[str, Tensor]] = []

    losses: list[float] = []

    def look(epoch: Epoch) -> None:
        predict_logits(epoch.model, data.flows, 12)
        shown.append(weights_of(epoch.model))
        losses.append(epoch.loss)
        assert (epoch.number, epoch.total) == (len(shown), 3)

    watched = fit(config, data, recipe, seed=0, on_epoch=look)
    assert len(shown) == 3
    assert losses[0] > losses[2] > 0
    assert all(torch.equal(value, shown[-1][name]) for name, value in watched.state_dict().items())
    assert not torch.equal(shown[0]["head.local"], shown[1]["head.local"])
    assert_same(watched, fit(config, data, recipe, seed=0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")
def test_a_gpu_trains_the_same_batches() -> None:
    config, data, recipe = named_model("vit-nano"), toy(), TrainConfig(epochs=2, batch_size=6)
    there = fit(config, data, recipe, seed=0, device="cuda")
    here = fit(config, data, recipe, seed=0)
    assert {value.device.type for value in there.parameters()} == {"cpu"}
    # Four steps of AdamW at 1e-3 from equal batches; without dropout, only the order of sums differs.
    for first, second in zip(there.parameters(), here.parameters(), strict=True):
        torch.testing.assert_close(first, second, atol=1e-3, rtol=0)


def marked_clips(side: int, count: int = 30) -> FlowDataset:
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
    data, readout = marked_clips(config.image_size), MeanReadout(config)
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
    data = marked_clips(config.image_size)
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


def test_features_of_the_means_are_learnt(ptsr_config: Callable[..., ModelConfig]) -> None:
    config = ptsr_config(mean_readout=True, mean_hidden=8, score="strain")
    first = build_model(config, seed=1)
    model = fit(config, marked_clips(config.image_size), TrainConfig(epochs=2, batch_size=10), seed=1)
    assert isinstance(model, Ptsr)
    assert isinstance(first, Ptsr)
    assert model.means is not None
    assert first.means is not None
    assert model.means.hidden is not None
    assert first.means.hidden is not None
    assert first.means.linear.weight.abs().max() == 0
    assert first.means.hidden.weight.abs().max() > 0
    assert not torch.equal(model.means.hidden.weight, first.means.hidden.weight)
    assert model.means.linear.weight.abs().max() > 0


def test_a_dropped_patch_still_counts_through_its_mean(ptsr_config: Callable[..., ModelConfig]) -> None:
    config = ptsr_config(mean_readout=True, score="strain")
    model = fit(config, marked_clips(config.image_size), TrainConfig(epochs=1, batch_size=10), seed=0)
    assert isinstance(model, Ptsr)
    flow = torch.from_numpy(to_input(marked_clips(config.image_size, 1).flows))
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


def noise(side: int = 8) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def moved(
    flows: Tensor, degrees: float = 0.0, scale: float = 1.0, shift: tuple[float, float] = (0, 0)
) -> Tensor:
    count = len(flows)
    return rotate_scale_shift(
        flows,
        torch.full((count,), math.radians(degrees)),
        torch.full((count,), scale),
        torch.tensor(shift, dtype=torch.float32).expand(count, 2),
    )


def test_a_flip_mirrors_the_picture_and_negates_u() -> None:
    field = torch.zeros(1, 3, 2, 3)
    field[0, :, 1, 0] = torch.tensor([2.0, 3.0, 5.0])  # lower left: right 2, down 3, strain 5
    flipped = flip_horizontally(field)
    assert flipped[0, :, 1, 2].tolist() == [-2.0, 3.0, 5.0]
    assert flipped[0, :, 1, :2].abs().sum() == 0
    assert flipped[0, :, 0].abs().sum() == 0


def test_flipping_twice_changes_nothing() -> None:
    assert torch.equal(flip_horizontally(flip_horizontally(noise())), noise())


def test_a_quarter_turn_takes_the_vectors_along() -> None:
    # Clockwise as seen: the middle of the right side goes to the middle of the bottom, and what pointed
    # right points down: (u, v) -> (-v, u). 1e-5: the cosine of a float32 right angle is 4e-8, times a
    # side of 8 and values of 3.
    turned = moved(noise(), degrees=90)
    u, v, strain = torch.rot90(noise(), k=-1, dims=(-2, -1)).unbind(1)
    assert (turned - torch.stack([-v, u, strain], 1)).abs().max() < 1e-5


def test_a_quarter_turn_on_a_field_by_hand() -> None:
    field = torch.zeros(1, 3, 4, 4)
    field[0, :, 0, 3] = torch.tensor([1.0, 0.0, 7.0])  # upper right corner, pointing right
    turned = moved(field, degrees=90)
    assert turned[0, :, 3, 3].tolist() == pytest.approx([0.0, 1.0, 7.0], abs=1e-5)
    assert turned.abs().sum() == pytest.approx(8.0, abs=1e-4)


def test_a_turn_keeps_the_length_of_vectors() -> None:
    turned = moved(torch.ones(1, 3, 9, 9), degrees=30)
    # The centre of a constant field: (1, 1) turned by 30 degrees, sqrt(2) long at 45 + 30 degrees.
    expected = [math.sqrt(2) * math.cos(math.radians(75)), math.sqrt(2) * math.sin(math.radians(75)), 1.0]
    assert turned[0, :, 4, 4].tolist() == pytest.approx(expected, abs=1e-5)


def test_a_shift_moves_the_content_and_leaves_zero() -> None:
    # A quarter of 8 pixels: 2 to the right; an eighth down: 1. 1e-5: bilinear weights of float32 places.
    shifted = moved(noise(), shift=(0.25, 0.125))
    assert (shifted[..., 1:, 2:] - noise()[..., :-1, :-2]).abs().max() < 1e-5
    assert (shifted[..., :2] == 0).all()
    assert (shifted[..., :1, :] == 0).all()


def test_a_larger_scale_grows_the_scene() -> None:
    # By 2 around the centre: a plateau of the middle 4 x 4 pixels comes to fill 8 x 8 but for the edge,
    # where bilinear reading mixes in the neighbours.
    field = torch.zeros(1, 3, 8, 8)
    field[..., 2:6, 2:6] = 1.0
    grown = moved(field, scale=2)
    assert torch.allclose(grown[..., 1:7, 1:7], torch.ones(1, 3, 6, 6), atol=1e-5)
    assert moved(field, scale=0.5)[..., 0].abs().max() == 0


def test_what_comes_in_from_outside_is_no_motion() -> None:
    shrunk = moved(torch.ones(1, 3, 8, 8), scale=0.5)
    assert (shrunk[..., :1, :] == 0).all()
    assert torch.allclose(shrunk[..., 3:5, 3:5], torch.ones(1, 3, 2, 2), atol=1e-5)


def test_nothing_asked_for_is_nothing_done() -> None:
    same = augment(noise(), STILL, torch.Generator().manual_seed(0))
    assert (same - noise()).abs().max() < 1e-5  # bilinear weights of float32 places


def test_every_image_is_flipped_where_that_is_certain() -> None:
    flipped = augment(noise(), STILL.model_copy(update={"flip": 1.0}), torch.Generator().manual_seed(0))
    assert (flipped - flip_horizontally(noise())).abs().max() < 1e-5


def test_gain_is_one_positive_factor_an_image() -> None:
    louder = augment(noise(), STILL.model_copy(update={"gain": 0.5}), torch.Generator().manual_seed(0))
    factors = (louder / noise()).flatten(1)
    assert (factors.std(1) < 1e-3).all()
    assert (factors > 0).all()
    assert abs(float(factors[0, 0] - factors[1, 0])) > 0.01


def test_the_draws_come_from_the_generator_alone() -> None:
    how = Augmentation()
    torch.manual_seed(1)
    first = augment(noise(), how, torch.Generator().manual_seed(3))
    torch.manual_seed(2)
    assert torch.equal(first, augment(noise(), how, torch.Generator().manual_seed(3)))
    assert not torch.equal(first, augment(noise(), how, torch.Generator().manual_seed(4)))


def test_an_affine_flow_is_added_to_u_and_v_and_not_to_the_strain() -> None:
    # u + 1 + 2 x - y and v - 1 with x and y from -1 at the first to 1 at the last pixel.
    coefficients = torch.tensor([[[1.0, 2.0, -1.0], [-1.0, 0.0, 0.0]]])
    drifted = add_affine_flow(torch.zeros(1, 3, 5, 9), coefficients)
    assert torch.allclose(drifted[0, 0, 0, 0], torch.tensor(1.0 - 2.0 + 1.0))
    assert torch.allclose(drifted[0, 0, 4, 8], torch.tensor(1.0 + 2.0 - 1.0))
    assert torch.allclose(drifted[0, 0, 2, 4], torch.tensor(1.0))
    assert torch.allclose(drifted[0, 1], torch.full((5, 9), -1.0))
    assert (drifted[0, 2] == 0).all()


def test_head_motion_is_drawn_as_wide_as_it_is_asked_for() -> None:
    # The mean of u over a picture is its constant: of 4000 draws of width .5 the spread is .5 within 4 %.
    how = STILL.model_copy(update={"head_motion": 0.5})
    moved_by = augment(torch.zeros(4000, 3, 4, 4), how, torch.Generator().manual_seed(0))
    assert abs(float(moved_by[:, 0].mean(dim=(1, 2)).std()) - 0.5) < 0.02
    assert (moved_by[:, 2] == 0).all()


def test_a_teacher_knows_its_clips_and_answers_in_probabilities() -> None:
    data = toy()
    inputs, labels = torch.from_numpy(to_input(data.flows)), torch.from_numpy(data.labels)
    teacher = KernelTeacher(inputs, labels, class_weights(labels, 3), Teaching(centres=64), seed=0)
    answers = teacher.answers(inputs)
    assert torch.equal(answers.argmax(1), labels)
    torch.testing.assert_close(answers.sum(1), torch.ones(len(labels)))
    sharper = KernelTeacher(
        inputs, labels, class_weights(labels, 3), Teaching(centres=64, temperature=9), seed=0
    )
    assert (sharper.answers(inputs).max(1).values > answers.max(1).values).all()


def test_a_taught_model_learns_the_teachers_answers_with_its_means() -> None:
    data, config = toy(), named_model("ptsr-nano")
    recipe = TrainConfig(epochs=40, batch_size=6, lr=3e-3, ema=0.9, dropout=0.0, teacher=Teaching(centres=64))
    model = fit(config, data, recipe, 0)
    assert isinstance(model, Ptsr)
    assert model.means is not None
    assert model.means.linear.weight.any()  # zero at first
    assert model.dropout.p == config.dropout > 0  # for whoever trains it on
    logits, _ = predict_logits(model, data.flows)
    assert (logits.argmax(1) == data.labels).mean() > 0.8


def test_a_clip_that_is_wrong_in_one_part_is_known_by_the_others() -> None:
    data = toy()
    inputs, labels = torch.from_numpy(to_input(data.flows)), torch.from_numpy(data.labels)
    teacher = KernelTeacher(inputs, labels, class_weights(labels, 3), Teaching(centres=64), seed=0)
    # As a whole such a clip is like no other.
    inputs[:, :, 24:, :4] += 20
    assert torch.equal(teacher.answers(inputs).argmax(1), labels)


def test_a_clip_is_compared_whole_where_that_is_asked_for() -> None:
    data = toy()
    inputs, labels = torch.from_numpy(to_input(data.flows)), torch.from_numpy(data.labels)
    spoilt = inputs.clone()
    spoilt[:, :, 24:, :4] += 20  # as a whole such a clip is like no other: every class is as likely
    for part, known in ((8, True), (14, False)):
        teacher = KernelTeacher(
            inputs, labels, class_weights(labels, 3), Teaching(centres=64, part=part), seed=0
        )
        assert torch.equal(teacher.answers(inputs).argmax(1), labels)
        assert (teacher.answers(spoilt).std(dim=1).min() > 0.1) == known


@pytest.mark.parametrize(("share", "heeded"), [(0.2, False), (0.8, True)])
def test_labels_count_as_much_as_is_said_beside_a_teacher(
    share: float, heeded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A teacher who says of every clip that it is of the first class, and labels that say otherwise of most.
    told = torch.tensor([1.0, 0.0, 0.0])
    monkeypatch.setattr(KernelTeacher, "answers", lambda _self, batch: told.expand(len(batch), 3))
    data, how = toy(), Teaching(centres=64, noise=0.0, mixed=False, labels=share)
    recipe = TrainConfig(
        epochs=120, batch_size=6, lr=3e-3, ema=0.9, dropout=0.0, augmentation=STILL, teacher=how
    )
    logits, _ = predict_logits(fit(named_model("ptsr-nano"), data, recipe, 0), data.flows)
    answers = logits.argmax(1)
    assert (answers == data.labels).all() if heeded else (answers == 0).all()


def test_mixtures_have_no_labels_to_learn() -> None:
    with pytest.raises(ValidationError, match="mixtures of clips have no label"):
        Teaching(labels=0.5)


def test_mixtures_are_normalised_sums_of_clips() -> None:
    inputs = torch.from_numpy(to_input(toy().flows))
    mixtures = mixed(inputs, torch.Generator().manual_seed(1))
    assert mixtures.shape == inputs.shape
    assert not torch.equal(mixtures, inputs)
    motion = mixtures[:, :2].flatten(1)
    torch.testing.assert_close(motion.std(dim=1, correction=0), torch.ones(len(inputs)), atol=0.2, rtol=0)
    again = mixed(inputs, torch.Generator().manual_seed(1))
    assert torch.equal(mixtures, again)


def test_noise_is_as_strong_as_asked_for_and_strain_stays_a_strain() -> None:
    flows = np.repeat(toy().flows[:1], 400, axis=0)
    flows[..., 2] = np.abs(flows[..., 2])  # strain never is negative
    inputs = torch.from_numpy(to_input(flows))
    noisy = with_noise(inputs, 1.0, torch.Generator().manual_seed(2))
    assert torch.isfinite(noisy).all()
    assert noisy[:, 2].min() >= 0
    # A level drawn from U(0, 1) leaves a correlation of 1 / sqrt(1 + level^2): .877 in the mean.
    likeness = torch.nn.functional.cosine_similarity(noisy[:, :2].flatten(1), inputs[:, :2].flatten(1))
    assert likeness.mean() == pytest.approx(0.88, abs=0.03)
    assert torch.allclose(with_noise(inputs, 0.0, torch.Generator().manual_seed(2)), inputs, atol=1e-5)
