"""How a model is exported: the settings of a call and of a recipe (TOML), checked once, before anything is started."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from ptsr_edge.bundle import MANIFEST
from ptsr_edge.core.config import ModelConfig, Record, nearest, parse
from ptsr_edge.core.errors import InputError, JobError
from ptsr_edge.core.files import check_place
from ptsr_edge.core.system import MOST_THREADS
from ptsr_edge.export.targets.base import Flag, Offer, TargetOptions, find_offer
from ptsr_edge.runtimes.base import find_runtime, target_names
from ptsr_edge.runtimes.tensorrt import choose_capabilities, choose_version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BUDGETS = (1.0, 0.5, 0.25)

CALIBRATION_SAMPLES = 64
"""Drawn by default where int8 is made; without it those of the proof are enough."""

FromMachine = Literal["auto", "steps", "auto,steps"]
"""Where budgets come from that are not named: the samples, the steps of this machine's latency, or the samples and moved to steps."""

STEPPED = ("cpu", "openvino")
"""Targets whose steps of latency can be measured: the first target's are."""

Rates = list[float] | FromMachine
"""Keep rates from the largest down, or "auto": from calibration samples."""


Method = Literal["minmax", "percentile", "entropy"]
"""How the range of an activation is taken from calibration samples."""

LAYOUTS = ("triton", "ovms")
"""Servers whose model repositories `export.serving` writes."""


class CpuOptions(TargetOptions):
    """Options of target `cpu`.

    Attributes:
        int8_scheme: "static": U8 activations x S8 weights from calibration samples; "dynamic": ranges taken at run
            time; "auto": both are built and measured at the smallest budget, for a machine that exports for itself.
            The default measures nothing: what is built for a device must not hang on who else used the machine
            that exported it.
    """

    int8_scheme: Annotated[
        Literal["auto", "static", "dynamic"],
        Flag("--int8-scheme", "Of target cpu; auto measures both on this machine."),
    ] = "static"


class OpenVinoOptions(TargetOptions):
    """Options of target `openvino`.

    Attributes:
        smooth_quant: NNCF's SmoothQuant alpha in int8; -1: none. With trained weights .5 and .95 moved the logits'
            error by a quarter either way and no decision, and scale the weights by each budget's activations:
            nothing could be shared.
    """

    smooth_quant: float = -1.0


class TrtOptions(TargetOptions):
    """Options of target `trt`.

    Attributes:
        flavour: by default the first that can build here.
        compute_capabilities: such as `8.6` or 86; by default all that the precision allows. For tensorrt-rtx.
        onnx_only: stop at the typed graphs and the script, for a device that must build its own engine.
        tf32: let fp32 products round their inputs to 10 bits of mantissa.
        method: how activation ranges are taken from the calibration samples.
    """

    flavour: Annotated[
        Literal["tensorrt", "tensorrt-rtx"] | None,
        Flag("--flavour", "Of target trt; default: the first that can build."),
    ] = None
    compute_capabilities: Annotated[
        tuple[str, ...] | None,
        Flag(
            "--compute-capability", "Of target trt, such as 8.6,8.9; default: all that the precision allows."
        ),
    ] = None
    onnx_only: Annotated[
        bool, Flag("--onnx-only", "Of target trt: graphs for the device to build from, no engine.")
    ] = False
    tf32: bool = False
    method: Method = "minmax"

    @field_validator("compute_capabilities", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return [str(entry) for entry in value] if isinstance(value, (list, tuple)) else value

    def check(self, precisions: Sequence[str]) -> None:
        """Refuses compute capabilities that are unknown or that a precision is not to be had on."""
        if self.compute_capabilities is not None:
            for precision in precisions:
                choose_capabilities(self.flavour or "tensorrt-rtx", precision, self.compute_capabilities)


class ExportConfig(Record):
    """How a model is exported for one or more targets.

    Attributes:
        description: for whom this is, in one line; a recipe has one.
        target: names of targets, each once; one name may stand alone.
        budgets: keep rates in (0, 1], or "auto": from the counts of DTSM's dynamic mode. None: 1, .5 and .25, and
            1 for a full-token baseline.
        precisions: some that the targets have; None takes all of each.
        threads: that the device gives to one inference, `Session`'s default; None leaves it to the runtime.
            For targets that run on processor threads.
        calibration_samples: how many samples to calibrate and to prove on.
        max_uar_drop: the largest loss of UAR against fp32 that int8 may have on the calibration side.
        options: fields of the targets' own options (`Target.options`); a recipe writes them beside the others.
    """

    description: str = ""
    target: tuple[str, ...]
    budgets: tuple[float, ...] | FromMachine | None = None
    precisions: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    threads: int | None = Field(default=None, ge=1, le=MOST_THREADS)
    calibration_samples: int | None = Field(default=None, ge=1)
    max_uar_drop: float | None = Field(default=None, ge=0, le=1)
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _gather_options(cls, data: Any) -> Any:
        """Takes what is no field of this record for an option of a target."""
        others = {key: value for key, value in data.items() if key not in cls.model_fields}
        named = {key: value for key, value in data.items() if key in cls.model_fields}
        return {**named, "options": {**named.get("options", {}), **others}}

    @field_validator("target", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else tuple(dict.fromkeys(value))

    @field_validator("budgets", mode="before")
    @classmethod
    def _list_or_auto(cls, value: Any) -> Any:
        if value not in (None, *get_args(FromMachine)) and not (isinstance(value, list | tuple) and value):
            words = ", ".join(f'"{word}"' for word in get_args(FromMachine))
            raise ValueError(f"must be {words} or a list of keep rates in (0, 1]")
        return value

    @field_validator("budgets")
    @classmethod
    def _in_range(cls, value: tuple[float, ...] | str | None) -> tuple[float, ...] | str | None:
        for rate in value if isinstance(value, tuple) else ():
            if not 0 < rate <= 1:
                raise ValueError(f"a budget is a keep rate in (0, 1], got {rate:g}")
        if isinstance(value, tuple) and len(set(value)) < len(value):
            raise ValueError(f"a budget is there twice: {', '.join(f'{rate:g}' for rate in value)}")
        return value

    @model_validator(mode="after")
    def _to_be_had(self) -> ExportConfig:
        """Refuses targets and precisions that there are not, and what no target reads: it would be said in vain."""
        if not self.target:
            raise ValueError(f"no target given; accepted: {', '.join(target_names())}")
        targets = ", ".join(self.target)
        if self.threads and not any(find_runtime(name).is_threaded for name in self.target):
            raise ValueError(f"target {targets} has no use for threads")
        plan = self.plan
        if self.budgets in ("steps", "auto,steps"):
            first, precisions = plan[0]
            if first.name not in STEPPED or not {"fp32", "int8"} & set(precisions):
                raise ValueError(
                    f"steps of latency are measured for fp32 and int8 of {' and '.join(STEPPED)}, not for "
                    f"{', '.join(precisions)} of {first.name}"
                )
        known = sorted({name for target, _ in plan for name in target.options.model_fields})
        for key in self.options:
            if key not in known:
                near = difflib.get_close_matches(key, [*known, *type(self).model_fields], n=1)
                nearest = f"the nearest known is {near[0]!r}; " if near else ""
                raise ValueError(
                    f"target {targets} has no option {key!r}; {nearest}it has: {', '.join(known)}"
                )
        for target, precisions in plan:
            parse(target.options, own_options(target, self.options)).check(precisions)
        return self

    @property
    def plan(self) -> list[tuple[Offer, list[str]]]:
        """What each target has, and the precisions to build for it.

        Raises:
            InputError: an unknown target, or a precision that none of the targets, or the only one, has.
            JobError: a target's code cannot be loaded.
        """
        targets = [find_offer(name) for name in self.target]
        have = "; ".join(f"target {target.name} has {', '.join(target.precisions)}" for target in targets)
        for precision in self.precisions or ():
            if not any(precision in target.precisions for target in targets):
                raise InputError(f"no such precision: {precision!r}; {have}")
        plan = []
        for target in targets:
            asked = dict.fromkeys(self.precisions or target.precisions)
            wanted = [precision for precision in asked if precision in target.precisions]
            if not wanted:
                raise InputError(f"no precision for target {target.name} among {', '.join(asked)}; {have}")
            plan.append((target, wanted))
        return plan

    def rates_for(self, model: ModelConfig) -> Rates:
        """Returns the keep rates for a model from the largest down, each token count once.

        Raises:
            InputError: any but 1 for the full-token baseline.
        """
        if isinstance(self.budgets, str):
            if model.kind == "vit":
                raise InputError(f"{model.name} keeps all tokens: `--budgets {self.budgets}` needs a PTSR")
            return self.budgets
        budgets = self.budgets or (BUDGETS if model.kind == "ptsr" else (1.0,))
        rates = {model.tokens_at(rate): rate for rate in sorted(budgets)}
        if model.kind == "vit" and set(rates) != {model.patches}:
            raise InputError(
                f"{model.name} is the full-token baseline: its only budget is 1, got {list(budgets)}"
            )
        return [rates[tokens] for tokens in sorted(rates, reverse=True)]


def own_options(target: Offer, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those of some options that a target understands."""
    return {key: value for key, value in options.items() if key in target.options.model_fields}


def recipe_folder() -> Path:
    """Returns the folder of the recipes that have names: inside the installed package, or `export` of a clone."""
    package = Path(__file__).parents[1]
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "export"


def find_recipe(name: str) -> Path:
    """Returns the file of a recipe that is called by its path (`.toml`) or by its name.

    Raises:
        InputError: there is none of that name; the message lists those that there are.
    """
    if name.endswith(".toml") or Path(name).is_file():
        return Path(name)
    known = sorted(path.stem for path in recipe_folder().glob("*.toml"))
    if name not in known:
        near = f" (nearest: {nearest(name, known)})" if known else ""
        raise InputError(
            f"there is no recipe {name!r}; give a .toml file, or one of {', '.join(known)}{near}"
        )
    return recipe_folder() / f"{name}.toml"


def refuse_unservable(config: ExportConfig, layout: str) -> None:
    """Makes sure that a layout can serve one of the targets, as far as that is known before anything is built.

    Raises:
        InputError: its server takes none of them.
        JobError: no engine that it takes can be built here.
    """
    if not all(find_runtime(name).needs_gpu for name in config.target):
        return
    if layout == "ovms":
        raise InputError(
            f"layout ovms cannot serve target {', '.join(config.target)}: OpenVINO Model Server takes IR and ONNX"
        )
    if "trt" in config.target:
        options = parse(TrtOptions, {k: v for k, v in config.options.items() if k in TrtOptions.model_fields})
        if options.onnx_only:
            raise InputError("layout triton serves engines, and --onnx-only builds none")
        if options.flavour == "tensorrt-rtx":
            raise InputError("layout triton serves engines of TensorRT, not of TensorRT-RTX")
        try:
            choose_version("tensorrt")
        except JobError as error:
            raise JobError(f"layout triton needs an engine of TensorRT: {error}") from error


def read_recipe(path: Path) -> ExportConfig:
    """Reads a recipe.

    Raises:
        InputError: no such file, no TOML, an unknown key (the nearest known one is named), a value out
            of range, or no description.
    """
    try:
        data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"there is no recipe at {path}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path} is not a readable TOML file: {error}") from None
    if not isinstance(data.get("description"), str):
        raise InputError(f"{path}: description: Field required, one line that says for whom the recipe is")
    return parse(ExportConfig, data, str(path))


def rates_of(config: ModelConfig, tokens: Sequence[int]) -> list[float]:
    """Returns keep rates that stand for token counts, from the largest down."""
    return [count / config.patches for count in sorted(set(tokens), reverse=True)]


def check_out(out: Path) -> None:
    """Makes sure that only a bundle, or an empty folder, is replaced: `--out .` must not remove somebody's work.

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
