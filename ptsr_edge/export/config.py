"""Deployment recipes: one TOML file a target or device, data only."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ptsr_edge.core.errors import InputError
from ptsr_edge.core.records import Record, parse

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
