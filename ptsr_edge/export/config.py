"""Deployment recipes: one TOML file a target or device, data only."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ptsr_edge.bundle import MANIFEST
from ptsr_edge.core.config import ModelConfig
from ptsr_edge.core.errors import InputError
from ptsr_edge.core.files import check_place
from ptsr_edge.core.records import Record, parse
from ptsr_edge.export.targets.base import Target
from ptsr_edge.models.checkpoint import CheckpointInfo
from ptsr_edge.runtimes.tensorrt import TensorRtVersion, choose_capabilities

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class DeploymentRecipe(Record):
    """How a model is exported for a target or a device; what a call of `export` says comes before it.

    Attributes:
        description: for whom this is, in one line.
        target: one of the targets of `export`.
        budgets: keep rates in (0, 1], or "auto": from the counts of DTSM's dynamic mode.
        precisions: some that the target has.
        threads: that the device gives to one inference, `Session`'s default; None leaves it to the runtime.
            Not for `trt`, whose engines run on a GPU.
        calibration_samples: how many samples to calibrate and to prove on.
        int8_scheme: how int8 is made where a target has a choice; "auto" measures and takes the better.
            None leaves it to the target.
        max_uar_drop: the largest loss of UAR against fp32 that int8 may have on the calibration side.
        compute_capabilities: of NVIDIA GPUs, such as 86 for 8.6.
        flavour: of TensorRT; None takes the first that can build.
        onnx_only: for a device that must build its own engine.
    """

    description: str
    target: Literal["cpu", "openvino", "trt"]
    budgets: tuple[float, ...] | Literal["auto"] = (1.0, 0.5, 0.25)
    precisions: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    threads: int | None = Field(default=None, ge=1)
    calibration_samples: int = Field(default=64, ge=1)
    int8_scheme: Literal["auto", "static", "dynamic"] | None = None
    max_uar_drop: float | None = Field(default=None, ge=0, le=1)
    compute_capabilities: tuple[int, ...] | None = None
    flavour: Literal["tensorrt", "tensorrt-rtx"] | None = None
    onnx_only: bool = False

    @field_validator("budgets", mode="before")
    @classmethod
    def _list_or_auto(cls, value: Any) -> Any:
        if value != "auto" and not (isinstance(value, list | tuple) and value):
            raise ValueError('must be "auto" or a list of keep rates in (0, 1]')
        return value

    @field_validator("budgets")
    @classmethod
    def _in_range(cls, value: tuple[float, ...] | str) -> tuple[float, ...] | str:
        for rate in value if isinstance(value, tuple) else ():
            if not 0 < rate <= 1:
                raise ValueError(f"a budget is a keep rate in (0, 1], got {rate:g}")
        return value

    @model_validator(mode="after")
    def _read_by_its_target(self) -> DeploymentRecipe:
        """What the target does not read would be said in vain."""
        elsewhere = {
            "cpu": ("compute_capabilities", "flavour", "onnx_only"),
            "openvino": ("int8_scheme", "compute_capabilities", "flavour", "onnx_only"),
            "trt": ("int8_scheme", "threads"),
        }
        for key in elsewhere[self.target]:
            if getattr(self, key):
                raise ValueError(f"target {self.target} has no use for {key}")
        return self

    def target_options(self) -> dict[str, Any]:
        """What the recipe says to the target alone; what it leaves open is not in it."""
        said = {
            "int8_scheme": self.int8_scheme,
            "compute_capabilities": self.compute_capabilities,
            "flavour": self.flavour,
            "onnx_only": self.onnx_only or None,
        }
        return {key: value for key, value in said.items() if value is not None}


def read_recipe(path: Path) -> DeploymentRecipe:
    """Reads a recipe.

    Raises:
        InputError: no such file, no TOML, an unknown key (the nearest known one is named) or a value out
            of range.
    """
    try:
        data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"there is no recipe at {path}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path} is not a readable TOML file: {error}") from None
    return parse(DeploymentRecipe, data, str(path))


# FOLDED from export.plan: A call of `export`, checked before anything is started.

BUDGETS = (1.0, 0.5, 0.25)

Rates = list[float] | Literal["auto"]
"""Keep rates from the largest down, or "auto": from calibration samples."""


def check_targets(
    names: Sequence[str], precisions: Sequence[str] | None, known: Mapping[str, Target]
) -> list[tuple[Target, list[str]]]:
    """Each target's builder and the precisions to build for it, by default all that it has.

    Raises:
        InputError: an unknown target, or a precision that none of the targets, or the only one, has.
    """
    for name in names:
        if name not in known:
            raise InputError(f"unknown target {name!r}; accepted: {', '.join(known)}")
    chosen = [known[name] for name in dict.fromkeys(names)]
    if not chosen:
        raise InputError(f"no target given; accepted: {', '.join(known)}")
    have = "; ".join(f"target {target.name} has {', '.join(target.precisions)}" for target in chosen)
    for precision in precisions or ():
        if not any(precision in target.precisions for target in chosen):
            raise InputError(f"no such precision: {precision!r}; {have}")
    plan = []
    for target in chosen:
        wanted = [p for p in dict.fromkeys(precisions or target.precisions) if p in target.precisions]
        if not wanted:
            raise InputError(
                f"no precision for target {target.name} among {', '.join(precisions or ())}; {have}"
            )
        plan.append((target, wanted))
    return plan


def check_options(options: Mapping[str, Any], plan: Sequence[tuple[Target, list[str]]]) -> None:
    """Makes sure that each option is understood by one of the targets, and that GPUs can be built for.

    Raises:
        InputError: one is not; or an unknown compute capability, or one that a precision is not to be had on.
    """
    for key in options:
        if not any(key in target.options for target, _ in plan):
            names = ", ".join(target.name for target, _ in plan)
            known = ", ".join(sorted({option for target, _ in plan for option in target.options}))
            raise InputError(f"target {names} has no option {key!r}; it has: {known}")
    asked = options.get("compute_capabilities")
    if asked is None:
        return
    name = options.get("flavour") or "tensorrt-rtx"
    flavour = TensorRtVersion(name, None, "", cross=name == "tensorrt-rtx")
    for _, precisions in (entry for entry in plan if "compute_capabilities" in entry[0].options):
        for precision in precisions:
            choose_capabilities(flavour, precision, [str(entry) for entry in asked])


def check_budgets(info: CheckpointInfo, budgets: Sequence[float] | Literal["auto"] | None) -> Rates:
    """Keep rates from the largest down, each token count once.

    Raises:
        InputError: an empty list, a rate outside (0, 1], or any but 1 for the full-token baseline.
    """
    config = info.model
    if budgets == "auto":
        if config.kind == "vit":
            raise InputError(f"{config.name} keeps all tokens: `--budgets auto` needs a PTSR")
        return "auto"
    if budgets is None:
        budgets = BUDGETS if config.kind == "ptsr" else (1.0,)
    if not budgets:
        raise InputError("no budget given; a budget is a keep rate in (0, 1]")
    rates = {config.tokens_at(rate): rate for rate in sorted(budgets)}
    if config.kind == "vit" and set(rates) != {config.patches}:
        raise InputError(
            f"{config.name} is the full-token baseline: its only budget is 1, got {list(budgets)}"
        )
    return [rates[tokens] for tokens in sorted(rates, reverse=True)]


def rates_of(config: ModelConfig, tokens: Sequence[int]) -> list[float]:
    """Keep rates that stand for token counts, from the largest down."""
    return [count / config.patches for count in sorted(set(tokens), reverse=True)]


def check_out(out: Path) -> None:
    """Only a bundle, or an empty folder, may be replaced: `--out .` must not remove somebody's work.

    Raises:
        InputError: something else stands there, it is the folder of this process or one around it, or it
            cannot be written.
    """
    here = Path.cwd()
    if out.resolve() in (here, *here.parents):
        raise InputError(f"{out} is the folder that you are in, or around it; accepted: a folder of its own")
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file()):
        found = "a file" if out.is_file() else "a folder that is no bundle"
        raise InputError(f"{out} is {found}; accepted: a new folder, an empty one, or a bundle to replace")
    check_place(out)
