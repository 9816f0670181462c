"""Training: one readable loop for PTSR and for its baseline (`fit`), its settings, and its state on disk.

Every random draw of a step comes from (seed, step) alone, so a run that was killed and resumed ends with
the weights of one that was not.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from ptsr_edge.core.config import LABELS, ModelConfig, Record
from ptsr_edge.core.errors import InputError
from ptsr_edge.core.files import digest_arrays, write_whole
from ptsr_edge.data.datasets import FlowDataset, find_dataset
from ptsr_edge.models.checkpoint import embedded_checkpoint, load_checkpoint
from ptsr_edge.models.ptsr import MeanReadout, Model, Ptsr, build_model, patch_means
from ptsr_edge.vision.flow import to_input


class Augmentation(Record):
    """Limits of the random motion of a batch of flow samples; moving the picture also turns its vectors.

    Attributes:
        flip: probability of a horizontal flip.
        shift: largest shift, as a share of the side.
        degrees: largest rotation.
        scale: largest change of size, as a share.
        gain: standard deviation of the logarithm of the intensity.
        head_motion: standard deviation of each coefficient of an affine flow that is added to u and v, in
            units of their own spread: what is left of the head's motion after any removal of it.
    """

    flip: float = 0.5
    shift: float = 0.07
    degrees: float = 10.0
    scale: float = 0.1
    gain: float = 0.2
    head_motion: float = 0.0


class Teaching(Record):
    """How a model is taught by a kernel ridge regression that was fitted to the same clips.

    The regression is smooth where a small transformer seizes on details of rendered motion that no recorded face shows.
    Taught on noisy mixtures of clips, of which there is no end, the transformer learns the function and not the clips,
    also where recorded clips lie and drawn ones do not. It sees more noise than the teacher.

    Attributes:
        centres: number of clips that the kernel is spanned by.
        temperature: factor of the teacher's scores, which lie between 0 and 1, in the softmax.
        noise: largest deviation of the noise that both see, and of that which the model sees besides, in deviations of
            the motion.
        mixed: they see mixtures of clips; otherwise the clips.
        labels: what the clips' own labels count in what the model learns; none with mixtures, which have none.
        part: side of the square parts by which clips are compared, on a field of 14 x 14; 14 compares them whole.
        vertical: what differences of motion up and down count, those of motion to the side counting 1.
        ridge: strength of the regression's ridge.
    """

    centres: int = Field(default=1024, ge=1)
    temperature: float = Field(default=4.5, gt=0)
    noise: float = Field(default=0.7, ge=0)
    mixed: bool = True
    labels: float = Field(default=0.0, ge=0, lt=1)
    part: int = Field(default=8, ge=1, le=14)
    vertical: float = Field(default=2.0, gt=0)
    ridge: float = Field(default=0.1, gt=0)

    @model_validator(mode="after")
    def _mixtures_have_no_label(self) -> Teaching:
        if self.mixed and self.labels:
            raise ValueError(
                f"labels {self.labels:g} with mixed: mixtures of clips have no label of their own"
            )
        return self


class TrainConfig(Record):
    """The recipe of a training run; the same for PTSR and its baseline.

    `budgets` are keep rates: PTSR draws one for each batch, which is why one set of weights serves all. `dropout` takes the
    place of the model's. `local_lr` is a factor of `lr` for the local read-out: it sums over all features of all tokens, so that
    a step of Adam moves its answers that many times further than another layer's. With a `teacher` the model learns the
    answers of a kernel ridge regression instead of the labels, and a read-out of the means learns with the rest instead of
    being solved.
    `start` says where the weights come from that training begins with: seeded random ones, or those that were
    trained on synthetic faces and ship in the package.
    """

    epochs: int = Field(ge=1)
    batch_size: int = Field(default=32, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    warmup: float = Field(default=0.1, ge=0, lt=1)
    ema: float = Field(default=0.99, ge=0, lt=1)
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    budgets: tuple[float, ...] = (1.0, 0.5, 0.25, 0.12)
    bfloat16: bool = False
    start: Literal["random", "synthetic"] = "random"
    augmentation: Augmentation = Augmentation()
    local_lr: float = Field(default=1.0, gt=0)
    dropout: float | None = Field(default=None, ge=0, lt=1)
    teacher: Teaching | None = None


_HEAD_MOVES = Augmentation(head_motion=0.3)

TRAIN_CONFIGS = {
    "nano": TrainConfig(epochs=60, batch_size=48, lr=3e-3, ema=0.98, budgets=(1.0, 0.5, 0.5, 0.25)),
    "tiny": TrainConfig(
        epochs=24,
        batch_size=32,
        lr=4e-4,
        budgets=(1.0, 0.5, 0.25, 0.25),
        local_lr=0.02,
        augmentation=Augmentation(shift=0.03, degrees=4.0, scale=0.05),
        teacher=Teaching(centres=4096, noise=0.0, mixed=False, labels=0.5, part=14, vertical=1.0, ridge=0.01),
    ),
    "small": TrainConfig(epochs=10, batch_size=32, lr=3e-4),
}

PRETRAINING = {
    "nano": TrainConfig(
        epochs=24, batch_size=48, lr=2e-3, ema=0.995, budgets=(1.0, 0.5, 0.5, 0.25), augmentation=_HEAD_MOVES,
        dropout=0.0, teacher=Teaching(),
    )
}  # fmt: skip
"""The recipe for weights that know no recorded face: on synthetic ones that are cropped as closely as recorded ones."""

RECORDED = {
    "nano": TrainConfig(
        epochs=50, batch_size=48, lr=3e-4, ema=0.98, budgets=(0.5, 0.25, 0.25), start="synthetic",
        augmentation=_HEAD_MOVES,
    ),
    "tiny": TrainConfig(epochs=30, batch_size=32, lr=4e-4),
}  # fmt: skip
"""For the few clips of recorded data: a small step size from the starting weights, where there are such, and labels alone.
Why is in benchmarks/ACCURACY.md."""


def train_config_for(config: ModelConfig, data: str) -> TrainConfig:
    """Returns the recipe for a named model's size on a data set; that of `tiny` for models of another size.

    Raises:
        InputError: unknown data.
    """
    size = config.name.rpartition("-")[2]
    recorded = None if find_dataset(data).synthetic else RECORDED.get(size)
    return recorded or TRAIN_CONFIGS.get(size, TRAIN_CONFIGS["tiny"])


def for_classes(
    config: ModelConfig, train_config: TrainConfig, labels: Sequence[str]
) -> tuple[ModelConfig, TrainConfig, str]:
    """Returns a named model and its recipe for the classes of data, and why its starting weights are left out.

    Starting weights answer `LABELS`: for other classes the same recipe begins from random weights. The sentence is
    empty where nothing is left out. What that costs is in benchmarks/ACCURACY.md.
    """
    config = config.model_copy(update={"classes": len(labels)})
    if train_config.start == "random" or tuple(labels) == LABELS:
        return config, train_config, ""
    why = (
        f"the starting weights answer {', '.join(LABELS)} and are left out: the data have {', '.join(labels)}"
    )
    return config, train_config.model_copy(update={"start": "random"}), why


def starting_config_for(config: ModelConfig) -> TrainConfig:
    """Returns the recipe for the starting weights of a named model's size.

    Raises:
        InputError: there is none for this size.
    """
    size = config.name.rpartition("-")[2]
    if size not in PRETRAINING:
        raise InputError(
            f"there is no recipe for starting weights of {config.name}; sizes: {', '.join(PRETRAINING)}"
        )
    return PRETRAINING[size]


def first_weights(config: ModelConfig, train_config: TrainConfig, seed: int) -> Model:
    """Returns the weights that training begins with where none are given.

    Raises:
        InputError: the recipe asks for starting weights that the package does not have for this model.
    """
    if train_config.start == "random":
        return build_model(config, seed)
    path = embedded_checkpoint(config.name)
    if path is None:
        raise InputError(f"there are no starting weights of {config.name}; a recipe's start must be random")
    model, info = load_checkpoint(path)
    if info.model != config:
        raise InputError(f"the starting weights of {config.name} are of another geometry than was asked for")
    return model


@dataclass
class State:
    """All that a run needs to go on: weights, their moving average, the optimiser, and the next step."""

    model: Model
    average: Model
    optimizer: torch.optim.AdamW
    step: int = 0


@dataclass(frozen=True)
class Epoch:
    """The end of an epoch.

    Attributes:
        number, total: which one, from 1, of how many.
        loss: mean over the epoch's steps of what is minimised.
        model: the moving average of the weights as it stands, not to be changed.
    """

    number: int
    total: int
    loss: float
    model: Model


def fit(
    config: ModelConfig,
    data: FlowDataset,
    train_config: TrainConfig,
    seed: int,
    *,
    initial: Model | None = None,
    state_file: Path | None = None,
    resume: bool = False,
    on_step: Callable[[int, int], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    device: str = "cpu",
) -> Model:
    """Trains on all samples of `data` and returns the moving average of the weights.

    Args:
        config: of the model.
        data: the training side only: nothing held out may be in it.
        train_config: the recipe.
        seed: of the weights and of every draw.
        initial: weights to start from; by default what the recipe says. It is trained in place.
        state_file: where the state is kept after each epoch, the last one too: whoever has kept what this returns
            removes it. None keeps none.
        resume: go on from `state_file` where there is one.
        on_step: called with the number of steps done and of all steps.
        on_epoch: called after each epoch.
        device: where it trains, as `choose_device` gives it; the model that is returned is on the CPU.

    Raises:
        InputError: no data, a class without a sample, or a state file of another run.
    """
    if len(data) == 0:
        raise InputError("there is nothing to train on: the data are empty")
    if len(data.label_names) != config.classes:
        raise InputError(
            f"{config.name} answers {config.classes} classes, the data have {', '.join(data.label_names)}"
        )
    inputs, labels = torch.from_numpy(to_input(data.flows)), torch.from_numpy(data.labels)
    per_epoch = max(1, len(data) // train_config.batch_size)
    total = train_config.epochs * per_epoch
    check_every_class(data)
    weights = class_weights(labels, config.classes)
    start = initial or first_weights(config, train_config, seed)
    teacher = None
    if train_config.teacher is not None:
        teacher = KernelTeacher(inputs, labels, weights, train_config.teacher, seed)
    elif (solved := solved_readout(start, train_config)) is not None:
        solve_means(solved, inputs, labels, weights)
    run = [config.model_dump(), train_config.model_dump(), seed, data.digest(), digest_weights(start)]
    identity = json.dumps(run, sort_keys=True)
    state = _start(start.to(device), train_config)
    if resume and state_file is not None and state_file.is_file():
        _restore(state, state_file, identity)
    losses: list[Tensor] = []
    while state.step < total:
        epoch, within = divmod(state.step, per_epoch)
        order = torch.randperm(len(data), generator=_generator(seed, 0, epoch))
        batch = order[within * train_config.batch_size : (within + 1) * train_config.batch_size]
        for group in state.optimizer.param_groups:
            group["lr"] = group["peak"] * schedule(state.step, total, train_config.warmup)
        losses.append(_train_step(state, inputs[batch], labels[batch], weights, train_config, seed, teacher))
        state.step += 1
        if on_step is not None:
            on_step(state.step, total)
        if on_epoch is not None and state.step % per_epoch == 0:
            on_epoch(Epoch(epoch + 1, train_config.epochs, float(torch.stack(losses).mean()), state.average))
            losses.clear()
        if state_file is not None and state.step % per_epoch == 0:
            _keep(state, state_file, identity)
    if train_config.dropout is not None:
        _set_dropout(state.average, config.dropout)
    return state.average.eval().to("cpu")


def _train_step(
    state: State, inputs: Tensor, labels: Tensor, weights: Tensor, train_config: TrainConfig, seed: int,
    teacher: KernelTeacher | None,
) -> Tensor:  # fmt: skip
    """Takes a step and returns the loss before it, a scalar."""
    generator = _generator(seed, 1, state.step)
    torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))  # dropout, random selection
    device = next(state.model.parameters()).device
    # Drawn on the CPU, wherever the model is: the same batch everywhere.
    batch = augment(inputs, train_config.augmentation, generator)
    answers = None
    if teacher is not None:
        if teacher.how.mixed:
            batch = mixed(batch, generator)
        batch = with_noise(batch, teacher.how.noise, generator)
        answers = teacher.answers(batch).to(device)
        batch = with_noise(batch, teacher.how.noise, generator)
    batch, labels, weights = batch.to(device), labels.to(device), weights.to(device)
    tokens = None
    if isinstance(state.model, Ptsr):
        drawn = int(torch.randint(len(train_config.budgets), (1,), generator=generator))
        tokens = state.model.config.tokens_at(train_config.budgets[drawn])
    with torch.autocast(device.type, torch.bfloat16, enabled=train_config.bfloat16):
        logits = state.model(batch, tokens).logits
    share = 1.0 if teacher is None else teacher.how.labels
    loss = torch.zeros(())
    if share:
        own = F.cross_entropy(logits.float(), labels, weights, label_smoothing=train_config.label_smoothing)
        loss = loss + share * own
    if answers is not None:
        loss = loss + (1 - share) * F.cross_entropy(logits.float(), answers)
    state.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
    state.optimizer.step()
    _average(state, min(train_config.ema, (1 + state.step) / (10 + state.step)))
    return loss.detach()


def schedule(step: int, total: int, warmup: float) -> float:
    """Returns the share of the peak learning rate at a step: linear warm-up, then cosine to 0."""
    rising = warmup * total
    if step < rising:
        return (step + 1) / max(1.0, rising)
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1.0, total - rising)))


def check_every_class(data: FlowDataset) -> None:
    """Makes sure that there is a clip of every class.

    Raises:
        InputError: there is not; the message counts them all.
    """
    counts = np.bincount(data.labels, minlength=len(data.label_names))
    if not counts.all():
        found = ", ".join(f"{name} {count}" for name, count in zip(data.label_names, counts, strict=True))
        raise InputError(
            f"every class needs a clip to train on, found {found}: add clips, or hold out fewer people"
        )


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """Returns weights (classes,) that fall with the square root of a class's frequency, mean 1; none may be absent."""
    counts = torch.bincount(labels, minlength=classes).float()
    weights = counts.rsqrt()
    return weights / weights.mean()


def _generator(*key: int) -> torch.Generator:
    mixed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator().manual_seed(mixed)


def digest_weights(model: Model) -> str:
    """Returns the SHA-256 over a model's weights and buffers."""
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def solved_readout(model: Model, train_config: TrainConfig) -> MeanReadout | None:
    """Returns the linear read-out of means, which labels solve in closed form; with a teacher it learns with the rest."""
    readout = model.means if isinstance(model, Ptsr) and train_config.teacher is None else None
    return readout if readout is not None and readout.hidden is None else None


LOCAL = "head.local"
"""The local read-out among a model's parameters."""


def _start(model: Model, train_config: TrainConfig) -> State:
    model.requires_grad_(True)
    if train_config.dropout is not None:
        _set_dropout(model, train_config.dropout)
    if (solved := solved_readout(model, train_config)) is not None:
        solved.requires_grad_(False)  # the rest learns what it leaves
    learnt = {name: p for name, p in model.named_parameters() if p.requires_grad}
    local = [learnt.pop(LOCAL)] if LOCAL in learnt else []
    decayed = [p for name, p in learnt.items() if p.ndim >= 2 and "embed" not in name]
    others = [p for name, p in learnt.items() if p.ndim < 2 or "embed" in name]
    decay, lr = train_config.weight_decay, train_config.lr
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": decay, "peak": lr},
            {"params": others, "weight_decay": 0.0, "peak": lr},
            {"params": local, "weight_decay": decay, "peak": lr * train_config.local_lr},
        ]
    )
    return State(model.train(), copy.deepcopy(model).requires_grad_(False), optimizer)


def _set_dropout(model: nn.Module, share: float) -> None:
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = share


@torch.no_grad()
def _average(state: State, decay: float) -> None:
    for mean, value in zip(state.average.parameters(), state.model.parameters(), strict=True):
        mean.lerp_(value, 1 - decay)
    for kept, current in zip(state.average.buffers(), state.model.buffers(), strict=True):
        kept.copy_(current)


def _keep(state: State, path: Path, identity: str) -> None:
    tensors: dict[str, Tensor] = {}
    for part, model in (("model", state.model), ("average", state.average)):
        tensors |= {f"{part}.{name}": value.contiguous() for name, value in model.state_dict().items()}
    for index, slots in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{slot}": value for slot, value in slots.items()}
    step = str(state.step)
    record = {"step": step, "identity": identity, "digest": _digest(tensors, step)}
    write_whole(path, save(tensors, record))


def _digest(tensors: dict[str, Tensor], step: str) -> str:
    arrays = {name: value.cpu().numpy() for name, value in tensors.items()}
    return digest_arrays(arrays | {"step": np.array(step)})


def _restore(state: State, path: Path, identity: str) -> None:
    try:
        with safe_open(path, framework="pt") as stream:
            metadata = stream.metadata() or {}
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is not a readable training state ({error}): remove it to start anew"
        ) from None
    if metadata.get("identity") != identity:
        raise InputError(
            f"{path} is the state of another run (model, first weights, recipe, seed or data differ): "
            "remove it to start anew"
        )
    try:
        is_whole = metadata.get("digest") == _digest(tensors, metadata.get("step", ""))
    except (TypeError, ValueError):  # of a type, or of more dimensions, than NumPy has
        is_whole = False
    if not is_whole:
        raise InputError(f"{path} is damaged: what it holds is not what was kept; remove it to start anew")
    for part, model in (("model", state.model), ("average", state.average)):
        model.load_state_dict(
            {name.removeprefix(f"{part}."): v for name, v in tensors.items() if name.startswith(f"{part}.")}
        )
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, slot = name.split(".")
            slots.setdefault(int(index), {})[slot] = value
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": slots, "param_groups": groups})
    state.step = int(metadata["step"])


REACH = 2.0
"""The distance between the logits of the right class and of the others that the read-out is to reach."""

STRENGTH = 100.0
"""Of the ridge, for means of inputs whose channels have deviation 1. Both are chosen in benchmarks/ACCURACY.md."""


@torch.no_grad()
def solve_means(readout: MeanReadout, inputs: Tensor, labels: Tensor, weights: Tensor) -> None:
    """Sets the read-out of the patches' means in closed form, in place: a ridge regression towards what it holds.

    A few hundred weights on a few hundred clips are nothing to descend to: descent needs a step size and overfits.
    The minimum of

        sum over clips and their mirror images of  w |logits - REACH (one-hot - 1 / k)|^2  +  STRENGTH |W - W0|^2

    is one linear system. W0 is what the read-out held: zero at first, the solution on synthetic faces where training
    goes on from starting weights. The intercept is not held back.

    Args:
        readout: on the CPU; what it holds is what the ridge pulls to.
        inputs: (n, 3, H, W), normalised.
        labels: (n,) class indices.
        weights: (k,) of a clip of each class; their scale does not matter.
    """
    features = patch_means(torch.cat([inputs, flip_horizontally(inputs)]), readout.patch).double()
    labels = torch.cat([labels, labels])
    weight = weights.double()[labels]
    weight = weight / weight.mean()
    classes = readout.linear.out_features
    targets = REACH * (F.one_hot(labels, classes).double() - 1 / classes)
    held = readout.linear.weight.double().T  # (f, k)
    change, middle, level = solve_ridge(features, targets - features @ held, weight, STRENGTH)
    solved = held + change
    readout.linear.weight.copy_(solved.T)
    readout.linear.bias.copy_(level - middle @ change)


def solve_ridge(
    features: Tensor, targets: Tensor, weight: Tensor, strength: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Solves a weighted ridge regression whose intercept is not held back.

    Args:
        features: (n, f) float64.
        targets: (n, k).
        weight: (n,).
        strength: of the ridge.

    Returns:
        (f, k) the solution W, (f,) the features' mean m and (k,) the targets' mean l: the answer is (features - m) W + l.
    """
    middle = (weight[:, None] * features).sum(0) / weight.sum()
    level = (weight[:, None] * targets).sum(0) / weight.sum()
    centred = features - middle
    weighted = centred.T * weight  # (f, n)
    ridge = strength * torch.eye(features.shape[1], dtype=features.dtype)
    return torch.linalg.solve(weighted @ centred + ridge, weighted @ (targets - level)), middle, level


def augment(batch: Tensor, how: Augmentation, generator: torch.Generator) -> Tensor:
    """Returns a randomly moved copy of a batch (B, 3, H, W): u, v, strain, normalised.

    A horizontal flip mirrors the picture and negates u; a rotation turns picture and vectors by the same angle;
    strain is a magnitude and only moves.
    """
    count = len(batch)

    def between(limit: float, *shape: int) -> Tensor:
        return (2 * torch.rand(count, *shape, generator=generator) - 1) * limit

    flipped = torch.rand(count, generator=generator) < how.flip
    batch = torch.where(flipped.view(-1, 1, 1, 1), flip_horizontally(batch), batch)
    batch = rotate_scale_shift(
        batch,
        radians=between(math.radians(how.degrees)),
        scale=1 + between(how.scale),
        shift=between(how.shift, 2),
    )
    gain = torch.exp(torch.randn(count, generator=generator) * how.gain)
    batch = batch * gain.view(-1, 1, 1, 1)
    if how.head_motion:
        batch = add_affine_flow(batch, how.head_motion * torch.randn(count, 2, 3, generator=generator))
    return batch


def flip_horizontally(batch: Tensor) -> Tensor:
    """Mirrors the scene: (B, 3, H, W) -> (B, 3, H, W), u negated."""
    signs = torch.tensor([-1.0, 1.0, 1.0], device=batch.device).view(1, 3, 1, 1)
    return batch.flip(-1) * signs


def rotate_scale_shift(batch: Tensor, radians: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Turns (clockwise as seen, y down), scales and moves the scene; vectors turn along.

    Args:
        batch: (B, 3, H, W).
        radians: (B,) angle.
        scale: (B,) factor; above 1 the scene grows.
        shift: (B, 2) x and y, as a share of the side.

    Returns:
        (B, 3, H, W); what comes in from outside is 0: no motion.
    """
    cos, sin = torch.cos(radians), torch.sin(radians)
    # grid_sample asks where each output pixel reads: the inverse motion.
    inverse = torch.stack([cos, sin, -sin, cos], dim=1).view(-1, 2, 2) / scale.view(-1, 1, 1)
    offset = -(inverse @ (2 * shift).unsqueeze(-1))  # (B, 2, 1), in grid units
    grid = F.affine_grid(torch.cat([inverse, offset], dim=2), list(batch.shape), align_corners=False)
    moved = F.grid_sample(batch, grid, align_corners=False)
    u, v, strain = moved.unbind(dim=1)  # each (B, H, W)
    cos, sin = cos.view(-1, 1, 1), sin.view(-1, 1, 1)
    return torch.stack([cos * u - sin * v, sin * u + cos * v, strain], dim=1)


def add_affine_flow(batch: Tensor, coefficients: Tensor) -> Tensor:
    """Adds an affine flow to u and v; the strain stays that of the face.

    Args:
        batch: (B, 3, H, W).
        coefficients: (B, 2, 3): of u and of v, the constant and the change along x and y from the centre to
            the rim.

    Returns:
        (B, 3, H, W).
    """
    height, width = batch.shape[-2:]
    y = torch.linspace(-1, 1, height, device=batch.device).view(1, 1, height, 1)
    x = torch.linspace(-1, 1, width, device=batch.device).view(1, 1, 1, width)
    constant, along_x, along_y = coefficients.to(batch.device)[..., None, None].unbind(dim=2)  # (B, 2, 1, 1)
    return torch.cat([batch[:, :2] + constant + along_x * x + along_y * y, batch[:, 2:]], dim=1)


class KernelTeacher:
    """A ridge regression with Gaussian kernels on parts of small fields, of clips and their mirror images.

    Clips are alike as their parts are, in the mean: what one part shows wrongly leaves the others' word. How large the parts
    are and what motion up and down counts is the recipe's; why is in benchmarks/ACCURACY.md.
    """

    SIDE, STEP = 14, 2
    """Side of the fields, and the way from one part to the next."""

    def __init__(self, inputs: Tensor, labels: Tensor, weights: Tensor, how: Teaching, seed: int) -> None:
        """Fits it.

        Args:
            inputs: (n, 3, H, W), normalised.
            labels: (n,) class indices.
            weights: (k,) of a clip of each class; their scale does not matter.
            how: its size, and what answers are made of its scores.
            seed: of the choice of the centres.
        """
        self.how = how
        some = torch.split(inputs, 1000)
        mirrored = (flip_horizontally(each) for each in some)
        parts = torch.cat([self._parts(each) for each in (*some, *mirrored)], dim=1)
        # Two clips' parts lie about 2 / sharpness apart in the mean, squared: a kernel that sees neither all as one nor
        # each alone.
        self._sharpness = 1 / (parts.shape[2] * parts.var(dim=(1, 2)))
        self._centres = parts[:, torch.randperm(parts.shape[1], generator=_generator(seed, 2))[: how.centres]]
        classes = len(weights)
        labels = torch.cat([labels, labels])
        targets = F.one_hot(labels, classes).double() - 1 / classes
        weight = weights.double()[labels]
        kernel = torch.cat([self._kernel(each) for each in torch.split(parts, 1000, dim=1)])
        self._solution, self._middle, self._level = solve_ridge(
            kernel, targets, weight / weight.mean(), how.ridge
        )

    def answers(self, batch: Tensor) -> Tensor:
        """Returns probabilities (B, k) float32 for (B, 3, H, W)."""
        scores = (self._kernel(self._parts(batch)) - self._middle) @ self._solution + self._level
        return (self.how.temperature * scores).softmax(dim=1).float()

    def _parts(self, inputs: Tensor) -> Tensor:
        """Returns (p, B, f), of p parts."""
        count = torch.tensor([1.0, self.how.vertical, 1.0]).view(1, 3, 1, 1)
        small = F.adaptive_avg_pool2d(inputs, self.SIDE) * count
        return F.unfold(small, self.how.part, stride=self.STEP).permute(2, 0, 1)

    def _kernel(self, parts: Tensor) -> Tensor:
        """Returns (B, c) float64 for (p, B, f); a mean over parts of exp(-sharpness |part - centre|^2)."""
        lengths = (each.square().sum(dim=2) for each in (parts, self._centres))
        own, theirs = (length * -self._sharpness[:, None] for length in lengths)
        scaled = 2 * self._sharpness[:, None, None] * parts
        alike = torch.baddbmm(theirs[:, None], scaled, self._centres.mT).add_(own[..., None])
        return alike.exp_().mean(dim=0).double()


def mixed(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Returns sums of the batch's clips (B, 3, H, W) with others of it; normalised.

    Their shares are drawn uniformly, and so is how much they differ from place to place.
    """
    count, _, height, width = batch.shape
    share = torch.rand(count, 1, 1, 1, generator=generator)
    uneven = 2 * torch.rand(count, 1, 1, 1, generator=generator)
    uneven = uneven * _smooth_noise((count, 1, height, width), 7, generator)
    share = torch.sigmoid(share.logit(eps=0.01) + uneven)
    other = batch[torch.randperm(count, generator=generator)]
    return _normalised(share * batch + (1 - share) * other)


NOISE_GRAINS = (1, 2, 5, 12)
"""In pixels at 28, of the noise that the model is to see through: from that of single pixels to that of half a face."""


def with_noise(batch: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Returns a batch (B, 3, H, W) with noise of several grains in u, v and strain, each clip with its own; normalised.

    It is stronger in some parts than in others, as the errors of flow are. Its strain is added as that of a field that is
    independent of the motion: in squares.

    Args:
        batch: u, v, strain, normalised.
        most: the deviation of a clip's noise is drawn up to this, in deviations of its motion.
        generator: of all draws.
    """
    if not most:
        return batch
    count, _, height, width = batch.shape
    # Exponential draws, which no sum normalises yet, are in the shares of a flat Dirichlet distribution.
    shares = torch.empty(len(NOISE_GRAINS), count, 1, 1, 1).exponential_(generator=generator)
    noise = sum(
        share * _smooth_noise((count, 2, height, width), grain, generator)
        for share, grain in zip(shares, NOISE_GRAINS, strict=True)
    )
    noise = noise * torch.exp(0.7 * _smooth_noise((count, 1, height, width), 5, generator))
    noise = noise / noise.std(dim=(1, 2, 3), keepdim=True)
    motion = batch[:, :2]
    level = (
        most
        * torch.rand(count, 1, 1, 1, generator=generator)
        * motion.square().mean((1, 2, 3), keepdim=True).sqrt()
    )
    own, added = _strain(motion), _strain(noise)
    # The strain channel has a scale of its own.
    scale = (
        batch[:, 2:].square().mean((1, 2, 3), keepdim=True)
        / own.square().mean((1, 2, 3), keepdim=True).clamp_min(1e-12)
    ).sqrt()
    strain = torch.sqrt(batch[:, 2:].square() + (level * scale * added).square())
    return _normalised(torch.cat([motion + level * noise, strain], dim=1))


def _smooth_noise(shape: tuple[int, int, int, int], grain: float, generator: torch.Generator) -> Tensor:
    """Returns Gaussian noise of deviation 1 with grains of so many pixels at 28."""
    few = [max(2, round(28 / grain)) for _ in range(2)]
    noise = F.interpolate(torch.randn(*shape[:2], *few, generator=generator), shape[2:], mode="bicubic")
    return noise / noise.std(dim=(1, 2, 3), keepdim=True)


def _strain(field: Tensor) -> Tensor:
    """Returns the magnitude of the strain tensor of (B, 2, H, W), by central differences: (B, 1, H, W)."""
    along_y, along_x = torch.gradient(field, dim=(2, 3))
    shear = along_y[:, :1] + along_x[:, 1:]
    return torch.sqrt(along_x[:, :1].square() + along_y[:, 1:].square() + shear.square() / 2)


def _normalised(batch: Tensor) -> Tensor:
    return torch.from_numpy(to_input(np.ascontiguousarray(batch.permute(0, 2, 3, 1).numpy())))
