"""Models out of files, and their answers.

A checkpoint is a safetensors file with configuration, preprocessing, labels and provenance inside; the full-token ViT
also takes weights of others. Nothing that can execute is ever loaded: pickled files are refused. `predict_logits` gives
a model's eager answers over many samples, with which every exported artifact is compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ptsr_edge.core.config import DEVICES as DEVICES
from ptsr_edge.core.config import (
    LABELS,
    ModelConfig,
    Preprocess,
    Record,
    check_fit,
    named_model,
    parse,
    read_json,
)
from ptsr_edge.core.errors import InputError, JobError
from ptsr_edge.core.files import sha256_of, write_whole
from ptsr_edge.models.ptsr import Model, Ptsr, Vit, build_model, model_of
from ptsr_edge.vision.flow import to_input

METADATA_KEY = "ptsr_edge"

EMBEDDED = Path(__file__).parents[1] / "weights"


class CheckpointInfo(Record):
    """The record inside of a checkpoint.

    `provenance` holds at least `kind` ("trained" or "random") and, where trained, the data's name and
    hash, the subjects seen, the recipe, the seed, the command and the versions of the tools.
    """

    schema_: Literal[1] = Field(default=1, alias="schema")
    model: ModelConfig
    preprocess: Preprocess
    labels: list[str]
    provenance: dict[str, Any]

    @model_validator(mode="after")
    def _fits_together(self) -> CheckpointInfo:
        check_fit(self.model, self.labels, self.preprocess)
        return self


def save_checkpoint(path: Path, model: Model, info: CheckpointInfo, half: bool = False) -> None:
    """Writes a checkpoint, whole or not at all; `half` stores the weights as float16.

    Raises:
        JobError: a weight is not finite (training diverged, or float16 cannot hold it), or the file
            cannot be written.
    """
    tensors = {
        name: (value.half() if half and value.is_floating_point() else value).contiguous()
        for name, value in model.state_dict().items()
    }
    broken = [name for name, value in tensors.items() if not torch.isfinite(value).all()]
    if broken:
        kind = "float16" if half else "float32"
        raise JobError(f"{path} was not written: as {kind}, {broken[0]} holds NaN or infinite values")
    metadata = {METADATA_KEY: info.model_dump_json(by_alias=True)}
    write_whole(path, save(tensors, metadata))


def load_checkpoint(path: Path) -> tuple[Model, CheckpointInfo]:
    """Reads a checkpoint into a float32 model in evaluation mode.

    Raises:
        InputError: the file is missing, is no safetensors file, was not written by this toolkit, or its
            weights are not those of its configuration.
    """
    info = read_info(path)
    with _opened(path) as stream:
        found = {name: tuple(stream.get_slice(name).get_shape()) for name in stream.keys()}  # noqa: SIM118
    try:
        # A file of a few bytes may name any geometry: nothing is made of that size before the weights are there.
        with torch.device("meta"):
            wanted = model_of(info.model).state_dict()
        _check_shapes(_shapes_of(wanted), found, info.model.name, str(path))
        model = build_model(info.model)
    except InputError as error:
        text = str(error)
        raise InputError(text if text.startswith(str(path)) else f"{path}: {text}") from None
    _fill(model, _read(path), str(path))
    return model, info


def read_info(path: Path) -> CheckpointInfo:
    """Reads the record of a checkpoint; its weights are not looked at.

    Raises:
        InputError: the file is missing, is no safetensors file, or was not written by this toolkit.
    """
    with _opened(path) as stream:
        metadata = stream.metadata() or {}
    if METADATA_KEY not in metadata:
        raise InputError(
            f"{path} holds weights but no ptsr-edge configuration; weights of other projects' ViTs are "
            "taken by `train --init`"
        )
    try:
        data = read_json(metadata[METADATA_KEY])
    except ValueError as error:
        raise InputError(f"{path}: its {METADATA_KEY} metadata is not JSON: {error}") from None
    return parse(CheckpointInfo, data, str(path))


def embedded_checkpoint(name: str) -> Path | None:
    """The checkpoint of a named model that ships in the package, or None."""
    path = EMBEDDED / f"{name}.safetensors"
    return path if path.is_file() else None


def resolve(checkpoint: Path | None, name: str | None) -> tuple[Model, CheckpointInfo, str]:
    """Returns the model to work on, its record, and the hash of its weights.

    A checkpoint, else the embedded weights of the named model, else seeded random ones, whose
    provenance says so. With both arguments the checkpoint must be of the named model.

    Raises:
        InputError: unknown model, unreadable checkpoint, or a checkpoint of another model.
    """
    path = checkpoint if checkpoint is not None else embedded_checkpoint(named_model(name or "").name)
    if path is not None:
        model, info = load_checkpoint(path)
        if name is not None and info.model.name != name:
            raise InputError(f"{path} is a checkpoint of {info.model.name}, not of {name}")
        return model, info, sha256_of(path)
    config = named_model(name or "")
    return build_model(config, seed=0), random_info(config, LABELS), f"random-{config.name}-seed0"


def random_info(config: ModelConfig, labels: Sequence[str]) -> CheckpointInfo:
    """Returns the record of a model with seeded random weights (`build_model` with seed 0)."""
    return CheckpointInfo(
        model=config,
        preprocess=Preprocess(image_size=config.image_size),
        labels=list(labels),
        provenance={
            "kind": "random",
            "seed": 0,
            "card": "seeded random weights: for speed and size studies only, its answers mean nothing",
        },
    )


def load_vit(model: Vit, path: Path) -> None:
    """Fills the baseline from a safetensors file in timm's, DeiT's or Hugging Face's layout.

    Raises:
        InputError: unreadable file, another layout, or shapes that do not fit the geometry.
    """
    load_vit_state(model, _read(path), str(path))


def load_vit_state(model: Vit, tensors: Mapping[str, Tensor], where: str) -> None:
    """Fills the baseline from a state dict in timm's, DeiT's or Hugging Face's layout.

    Raises:
        InputError: another layout, or shapes that do not fit the geometry.
    """
    state = {name.removeprefix("model."): value for name, value in tensors.items()}
    if any(name.startswith("vit.") for name in state):
        try:
            state = _from_transformers(state, model.config.depth)
        except KeyError as error:
            raise InputError(
                f"{where} lacks {error}: not the layout of a ViTForImageClassification of depth "
                f"{model.config.depth}"
            ) from None
    distilled = [name for name in ("dist_token", "head_dist.weight") if name in state]
    if distilled:
        raise InputError(
            f"{where} is a distilled DeiT (it has {distilled[0]}); accepted are the plain layouts of timm, "
            "DeiT and Hugging Face's ViTForImageClassification"
        )
    _fill(model, state, where)


def _read(path: Path) -> dict[str, Tensor]:
    with _opened(path) as stream:
        return {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file to read from.

    Raises:
        InputError: it is missing, or something else.
    """
    if not path.is_file():
        raise InputError(f"there is no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt") as stream:
            yield stream
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is not a safetensors file ({error}); nothing else is read: pickled files can execute"
        ) from None


def _fill(model: Model, tensors: Mapping[str, Tensor], where: str) -> None:
    wanted = model.state_dict()
    _check_shapes(_shapes_of(wanted), _shapes_of(tensors), model.config.name, where)
    model.load_state_dict({key: tensors[key].to(value.dtype) for key, value in wanted.items()})
    broken = [key for key, value in model.state_dict().items() if not torch.isfinite(value).all()]
    if broken:
        raise InputError(f"{where}: {broken[0]} holds NaN or infinite values")


def _shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def _check_shapes(
    wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], name: str, where: str
) -> None:
    """Makes sure that tensors are those of a model, by their names and shapes.

    Raises:
        InputError: they are not.
    """
    for kind, names in (("lacks", wanted.keys() - found.keys()), ("has", found.keys() - wanted.keys())):
        if names:
            first = f"{where} does not fit {name}: it {kind} {min(names)!r}"
            raise InputError(f"{first} and {len(names) - 1} more" if len(names) > 1 else first)
    for key, shape in wanted.items():
        if found[key] != shape:
            raise InputError(f"{where} does not fit {name}: {key} is {found[key]}, wanted {shape}")


_TRANSFORMERS_BLOCK = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.o_proj": "attn.proj",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def _from_transformers(state: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Hugging Face's names (of both transformers 4 and 5) to timm's; query, key, value fused."""
    renamed = {
        "cls_token": state["vit.embeddings.cls_token"],
        "pos_embed": state["vit.embeddings.position_embeddings"],
    }
    outer = {
        "vit.embeddings.patch_embeddings.projection": "patch_embed.proj",
        "vit.layernorm": "norm",
        "classifier": "head",
    }
    for theirs, ours in outer.items():
        for part in ("weight", "bias"):
            renamed[f"{ours}.{part}"] = state[f"{theirs}.{part}"]
    stem = "vit.layers" if "vit.layers.0.layernorm_before.weight" in state else "vit.encoder.layer"
    for index in range(depth):
        block = f"{stem}.{index}."
        for theirs, ours in _TRANSFORMERS_BLOCK.items():
            for part in ("weight", "bias"):
                if f"{block}{theirs}.{part}" in state:
                    renamed[f"blocks.{index}.{ours}.{part}"] = state[f"{block}{theirs}.{part}"]
        for part in ("weight", "bias"):
            parts = [_first_of(state, block, letter, part) for letter in ("query", "key", "value")]
            renamed[f"blocks.{index}.attn.qkv.{part}"] = torch.cat(parts)
    # Weights of a further block keep their names, for `_fill` to refuse them.
    return renamed | {name: state[name] for name in state if name.startswith(f"{stem}.{depth}.")}


def _first_of(state: Mapping[str, Tensor], block: str, letter: str, part: str) -> Tensor:
    for name in (f"attention.attention.{letter}", f"attention.{letter[0]}_proj"):
        if f"{block}{name}.{part}" in state:
            return state[f"{block}{name}.{part}"]
    raise KeyError(f"{block}attention.{letter}.{part}")


def choose_device(name: str) -> str:
    """`cpu` or `cuda`; for `auto` the GPU where torch sees one.

    Raises:
        InputError: another name, or `cuda` where torch sees no GPU.
    """
    if name not in DEVICES:
        raise InputError(f"unknown device {name!r}; accepted: {', '.join(DEVICES)}")
    sees_gpu = torch.cuda.is_available()
    if name == "cuda" and not sees_gpu:
        raise InputError(
            f"device cuda was asked for, but torch {torch.__version__} sees no GPU; accepted: auto, cpu"
        )
    return "cuda" if name != "cpu" and sees_gpu else "cpu"


def predict_logits(
    model: Model,
    flows: NDArray[np.float32],
    tokens: int | None = None,
    batch: int = 64,
    forced: Tensor | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Logits (n, k) and kept patches (n, K) of flow samples (n, H, W, 3), before normalisation.

    The model is put into evaluation mode and left in the mode it was in; it answers where it is.

    Args:
        model: a PTSR or a ViT.
        flows: samples, before normalisation.
        tokens: how many patches are kept; None: all.
        batch: how many samples at once.
        forced: (n, K) patches that each sample keeps, instead of DTSM's choice; for a PTSR only.
    """
    training = model.training
    device = next(model.parameters()).device
    model.eval()
    logits, kept = [], []
    with torch.no_grad():
        for start in range(0, len(flows), batch):
            part = slice(start, start + batch)
            inputs = torch.from_numpy(to_input(flows[part])).to(device)
            if forced is not None and isinstance(model, Ptsr):
                output = model(inputs, tokens, forced[part].to(device))
            else:
                output = model(inputs, tokens)
            logits.append(output.logits.float().cpu().numpy())
            kept.append(output.kept.cpu().numpy())
    model.train(training)
    return np.concatenate(logits), np.concatenate(kept)
