"""Strict records, and those that all stages share: the named models, and how their input is made.

A record is frozen, typed, and validated once at the border; an unknown name is answered with the nearest known one. A budget
is given as a keep rate in (0, 1]; `ModelConfig.tokens_at` turns it into a number of tokens.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ptsr_edge.core.errors import InputError


class Record(BaseModel):
    """Base of all configurations, manifests and results."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), ser_json_inf_nan="null")


R = TypeVar("R", bound=Record)


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns the known name that is most like `name`, for a message; `known` must not be empty."""
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]


def parse(kind: type[R], data: Any, where: str = "") -> R:
    """Validates `data` as a record of `kind`.

    Raises:
        InputError: `data` is no such record. The message has, behind `where`, the first fault: its place, the value
            found and the rule, or the nearest known key of an unknown one.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise InputError(": ".join(part for part in (where, _first_fault(kind, error)) if part)) from None


MOST_JSON_BYTES, MOST_JSON_DEPTH, MOST_JSON_INTEGER = 100_000_000, 64, 2**64 - 1
"""Far above what any record needs."""


def read_json(text: str) -> Any:
    """Reads JSON as the standard has it: NaN and infinity, and numbers that are too large to be finite, are none.

    Text with half of a surrogate pair is refused as well: no file in UTF-8 can hold it.

    Raises:
        ValueError: it is no JSON, holds such text, or passes `MOST_JSON_BYTES`, `MOST_JSON_DEPTH` or `MOST_JSON_INTEGER`.
    """
    if len(text) > MOST_JSON_BYTES:
        raise ValueError(f"it has more than {MOST_JSON_BYTES / 1e6:.0f} MB")

    def finite(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            raise ValueError(f"{digits} is no number of JSON that can be held")
        return value

    def held(digits: str) -> int:
        value = int(digits) if len(digits) < 30 else math.inf
        if not -MOST_JSON_INTEGER <= value <= MOST_JSON_INTEGER:
            raise ValueError(f"{digits[:30]}... is no whole number of 64 bits")
        return int(value)

    too_deep = f"it is nested more than {MOST_JSON_DEPTH} deep"
    try:
        found = json.loads(text, parse_float=finite, parse_constant=finite, parse_int=held)
    except RecursionError:
        raise ValueError(too_deep) from None
    level, depth = [found], 0
    while level := [one for one in level if isinstance(one, dict | list)]:
        depth += 1
        if depth > MOST_JSON_DEPTH:
            raise ValueError(too_deep)
        level = [part for one in level for part in (one.values() if isinstance(one, dict) else one)]
    if r"\u" in text and (half := re.search(r"[\ud800-\udfff]", json.dumps(found, ensure_ascii=False))):
        raise ValueError(f"it holds \\u{ord(half[0]):x}, which is half of a character")
    return found


def read_json_file(path: Path) -> Any:
    """Reads a JSON file, as `read_json` does.

    Raises:
        InputError: there is no such file, or it holds no JSON.
    """
    try:
        if path.exists() and not path.is_file():  # of a pipe or a device there is no end
            raise ValueError("it is no file")
        with path.open("rb") as stream:
            return read_json(stream.read(MOST_JSON_BYTES + 1).decode("utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable JSON file: {error}") from None


def read_record(kind: type[R], path: Path) -> R:
    """Reads a JSON file as a record of `kind`.

    Raises:
        InputError: there is no such file, or it holds no JSON or no such record.
    """
    return parse(kind, read_json_file(path), str(path))


def _first_fault(kind: type[Record], error: ValidationError) -> str:
    fault = error.errors()[0]
    place = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        near = nearest(str(fault["loc"][-1]), _known_keys(kind))
        return f"unknown key {place!r}; the nearest known key is {near!r}"
    message = fault["msg"].removeprefix("Value error, ")
    if not place:
        return message
    return f"{place}: {message} (found {fault['input']!r})"[:400]


def _known_keys(kind: type[BaseModel]) -> list[str]:
    keys: list[str] = []
    for name, field in kind.model_fields.items():
        keys.append(name)
        for part in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(part, type) and issubclass(part, BaseModel) and part is not kind:
                keys += _known_keys(part)
    return keys


LABELS = ("negative", "positive", "surprise")
"""The classes of the MEGC2019 composite, in the order of its label numbers 0, 1, 2."""


NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""Of a model: it becomes a part of names of files and folders."""

VARIANT_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
"""Of a variant: that of its model, of target, precision and budget behind it."""


DEVICES = ("auto", "cpu", "cuda")
"""Where a model may be trained; auto: on the GPU where torch sees one."""


class ModelConfig(Record):
    """Geometry of a PTSR or of its full-token ViT baseline.

    `score` names an entry of `models.ptsr.SCORES`, which is looked up where a model is built. `select_block` counts
    from 0 and is read only by scores of the attention. `mean_readout` lets a PTSR read the mean of every patch as
    well, kept or not, through a hidden layer of `mean_hidden` features or, at 0, linearly (`models.ptsr.MeanReadout`).
    """

    name: str = Field(pattern=NAME)
    kind: Literal["ptsr", "vit"]
    image_size: int = Field(gt=0, le=2048)
    patch_size: int = Field(gt=0)
    channels: int = Field(default=3, gt=0, le=64)
    dim: int = Field(gt=0, le=4096)
    depth: int = Field(ge=1, le=128)
    heads: int = Field(gt=0)
    mlp_ratio: float = Field(default=4.0, gt=0, le=16)
    classes: int = Field(default=len(LABELS), ge=2, le=10_000)
    norm_eps: float = Field(default=1e-6, ge=1e-12, le=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    layer_scale: float | None = Field(default=None, gt=0, le=1000)
    token_norm: Literal["layer", "batch"] = "layer"
    score: str = Field(default="class-attention", pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$")
    select_block: int = Field(default=0, ge=0)
    local_readout: bool = True
    mean_readout: bool = False
    mean_hidden: int = Field(default=0, ge=0, le=4096)

    @model_validator(mode="after")
    def _check_geometry(self) -> ModelConfig:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"patch_size must divide image_size, got {self.patch_size} for {self.image_size}"
            )
        if self.dim % self.heads:
            raise ValueError(f"heads must divide dim, got {self.heads} for {self.dim}")
        if self.kind == "ptsr" and self.patch_size % 2:
            raise ValueError(f"patch_size must be even for half-patch shifts, got {self.patch_size}")
        if self.mean_hidden and not self.mean_readout:
            raise ValueError(f"mean_hidden is read with mean_readout only, got {self.mean_hidden} without it")
        if self.select_block >= self.depth:
            raise ValueError(
                f"select_block must be in [0, {self.depth - 1}] for depth {self.depth}, "
                f"got {self.select_block}"
            )
        return self

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        """Patch tokens of the full model, N."""
        return self.grid**2

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, S, S) of one input."""
        return self.channels, self.image_size, self.image_size

    @property
    def mlp_dim(self) -> int:
        """Width of the hidden layer of each block's MLP."""
        return int(self.dim * self.mlp_ratio)

    def tokens_at(self, keep_rate: float) -> int:
        """Returns how many patch tokens are kept at a keep rate: ceil(rate x N).

        Raises:
            InputError: the rate is not a number in (0, 1].
        """
        return max(1, math.ceil(check_keep_rate(keep_rate) * self.patches - 1e-9))

    def check_tokens(self, tokens: int) -> int:
        """Returns `tokens`, if a static variant can keep that many.

        Raises:
            InputError: fewer than 1 or more than there are; of a ViT, any but all.
        """
        if self.kind == "vit" and tokens != self.patches:
            raise InputError(f"{self.name} keeps all of its {self.patches} tokens, got a budget of {tokens}")
        if not 1 <= tokens <= self.patches:
            raise InputError(
                f"a static variant of {self.name} keeps 1 to {self.patches} tokens, got {tokens}"
            )
        return tokens


FLAT = 1e-6
"""Spread up to which a channel of a flow sample is taken for flat, and becomes zero when it is normalised."""


FlowMethod = Literal["dis-light", "dis-medium", "published"]
"""How optical flow is measured (`vision.flow`); `published` came ready-made, by a method that only its publisher knows."""

FLOW: FlowMethod = "dis-light"
"""The method for models that are trained from now on."""


CropName = Literal["wide", "close"]


class Preprocess(Record):
    """The way from two frames to the input of a model; travels with every checkpoint and bundle.

    Attributes:
        image_size: side of the square input, in pixels.
        crop: how much of a face a sample shows: `wide`, what a detector frames, or the part of it from brow to chin and
            from temple to temple, as the recorded data sets were cropped by their publishers.
        flow: method of the optical flow from onset to apex.
        global_motion: motion of the head that is removed before the flow is measured.
        strain: formula and derivative of the third channel.
        normalise: normalisation per image and channel.
    """

    image_size: int = Field(gt=0)
    channels: tuple[str, str, str] = ("u", "v", "strain")
    crop: CropName = "wide"
    flow: FlowMethod = FLOW
    global_motion: Literal["similarity", "none"] = "similarity"
    strain: Literal["sobel3"] = "sobel3"
    normalise: Literal["median-std"] = "median-std"


def check_fit(model: ModelConfig, labels: Sequence[str], preprocess: Preprocess) -> None:
    """Makes sure that labels and samples are those of a model; for validators of records that hold all three.

    Raises:
        ValueError: labels are not one a class and different, or samples are of another size.
    """
    if len(labels) != model.classes or len(set(labels)) != len(labels):
        raise ValueError(f"labels must be {model.classes} different names, one a class, got {labels}")
    if preprocess.image_size != model.image_size:
        raise ValueError(
            f"samples are made of {preprocess.image_size} pixels, the model takes {model.image_size}"
        )


_TINY = dict(image_size=112, patch_size=8, dim=192, depth=6, heads=3)

_SMALL = dict(image_size=224, patch_size=16, dim=384, depth=12, heads=6)

_NANO = dict(
    image_size=28, patch_size=4, dim=24, depth=1, heads=2, mlp_ratio=1.0, dropout=0.5, layer_scale=0.1
)

_PTSR = dict(kind="ptsr", token_norm="batch", score="strain", mean_readout=True)
"""A LayerNorm of each patch would lose how much it moved; the read-out gives back what dropped patches leave behind."""

MODELS: dict[str, ModelConfig] = {
    config.name: config
    for config in (
        ModelConfig(name="ptsr-nano", **_PTSR, **_NANO),
        ModelConfig(name="ptsr-tiny", mean_hidden=512, **_PTSR, **_TINY),
        ModelConfig(name="ptsr-small", kind="ptsr", score="strain", **_SMALL),
        ModelConfig(
            name="ptsr-small-attention", kind="ptsr", score="class-attention", select_block=1, **_SMALL
        ),
        ModelConfig(name="vit-nano", kind="vit", **_NANO),
        ModelConfig(name="vit-tiny", kind="vit", **_TINY),
        ModelConfig(name="vit-small", kind="vit", **_SMALL),
    )
}

DEFAULT_MODEL = "ptsr-tiny"


def named_model(name: str) -> ModelConfig:
    """Returns the configuration of a named model.

    Raises:
        InputError: there is no model of that name; the message lists all and the nearest.
    """
    if name in MODELS:
        return MODELS[name]
    raise InputError(f"unknown model {name!r}; known: {', '.join(MODELS)} (nearest: {nearest(name, MODELS)})")


def baseline_of(config: ModelConfig) -> ModelConfig:
    """Returns the plain full-token ViT of the same depth, width, heads and patch; that of a named model has a name too."""
    if config.kind == "vit":
        return config
    kept = ("image_size", "patch_size", "channels", "dim", "depth", "heads", "mlp_ratio", "classes",
            "norm_eps", "dropout", "layer_scale")  # fmt: skip
    alike = {"kind": "vit", **{key: getattr(config, key) for key in kept}}
    if config == MODELS.get(config.name):
        return next(model for model in MODELS.values() if model == ModelConfig(name=model.name, **alike))
    name = config.name.replace("ptsr", "vit") if "ptsr" in config.name else f"vit-of-{config.name}"[:64]
    return ModelConfig(name=name, **alike)


def check_keep_rate(rate: float) -> float:
    """Returns the keep rate, if it is one; raises InputError outside of (0, 1]."""
    if not 0 < rate <= 1:
        raise InputError(f"a budget is a keep rate in (0, 1], got {rate:g}")
    return rate


def parse_keep_rate(text: str) -> float:
    """Reads a keep rate.

    Raises:
        ValueError: the text is no number.
        InputError: the number is outside of (0, 1].
    """
    return check_keep_rate(float(text))
