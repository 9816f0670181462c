"""A checkpoint becomes a bundle: static token-budget variants, each proven before it is written.

    python -m ptsr_edge.export --target cpu

The stages: resolve the model, draw calibration samples, choose budgets, trace one graph per budget, build
each precision of each target, prove every variant against the eager model, write the bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from ptsr_edge.bundle import MANIFEST, Bundle, Variant, baseline_place, read_bundle
from ptsr_edge.core.config import DEFAULT_MODEL, MODELS, ModelConfig, named_model, parse, parse_keep_rate
from ptsr_edge.core.console import (
    THREADS,
    Verb,
    comma_separated,
    doing,
    explained_imports,
    finish,
    if_interrupted,
    say,
)
from ptsr_edge.core.errors import InputError, JobError
from ptsr_edge.core.files import require_file
from ptsr_edge.data.cli import DataOption
from ptsr_edge.data.datasets import find_dataset
from ptsr_edge.export.config import (
    CALIBRATION_SAMPLES,
    LAYOUTS,
    ExportConfig,
    FromMachine,
    check_out,
    find_recipe,
    read_recipe,
    refuse_unservable,
)
from ptsr_edge.export.targets.base import Flag, find_offer
from ptsr_edge.runtimes.base import RUNTIMES, target_names
from ptsr_edge.sign import read_private_key, sign_bundle
from ptsr_edge.tune import tune_bundle, verdict

F = TypeVar("F", bound=Callable[..., Any])


def _parse_budgets(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Any:
    if value is None or value in get_args(FromMachine):
        return value
    if {"auto", "steps"} & set(value.split(",")):
        raise InputError(
            f"--budgets takes keep rates in (0, 1] or one of {'; '.join(get_args(FromMachine))}, not both: found {value!r}"
        )
    return comma_separated(parse_keep_rate, "--budgets")(_ctx, _param, value)


def target_flags(command: F) -> F:
    """Adds the command line options of the built-in targets' own options."""
    fields = {
        (name, flag.name): (field, flag)
        for target in RUNTIMES
        for name, field in find_offer(target).options.model_fields.items()
        for flag in field.metadata
        if isinstance(flag, Flag)
    }
    for (name, _), (field, flag) in reversed(fields.items()):
        command = click.option(flag.name, name, help=flag.help, **_click_kind(field, flag))(command)
    return command


def _click_kind(field: FieldInfo, flag: Flag) -> dict[str, Any]:
    """Returns the kind of option that click makes of a field: a switch, one of some words, or a list of words."""
    if field.annotation is bool:
        return {"is_flag": True, "default": None}
    for kind in (field.annotation, *get_args(field.annotation)):
        if get_origin(kind) is Literal:
            return {"type": click.Choice(get_args(kind))}
    return {"callback": comma_separated(str, flag.name)}


@click.command(cls=Verb, epilog="Example: python -m ptsr_edge.export --target cpu --budgets 1.0,0.5,0.25")
@click.option("--target", "targets", callback=comma_separated(str, "--target"),
              help=f"One or more of {', '.join(target_names())}; default cpu.")  # fmt: skip
@click.option(
    "--recipe",
    help="A TOML file, or the name of a recipe such as raspberry-pi-5; options come before it.",
)
@click.option("--device", help="The name of a recipe: the same as --recipe NAME.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="A .safetensors file made by `train`.")
@click.option("--model", help=f"One of {', '.join(MODELS)}: its embedded weights, or seeded random ones.")
@click.option("--budgets", callback=_parse_budgets,
              help="Keep rates in (0, 1]; auto: from the samples; steps: before the steps of this machine's latency; "
                   "auto,steps; default 1.0,0.5,0.25.")  # fmt: skip
@click.option("--precision", "precisions", callback=comma_separated(str, "--precision"),
              help="Default: all that the target has.")  # fmt: skip
@click.option(
    "--calibration", type=click.Path(path_type=Path), help="Folder of the data to calibrate and prove on."
)
@click.option("--calibration-data", cls=DataOption)
@click.option(
    "--calibration-samples", type=click.IntRange(min=1), help=f"Default {CALIBRATION_SAMPLES} for int8."
)
@click.option(
    "--max-uar-drop", type=click.FloatRange(0, 1), help="Repair or refuse int8 that loses more UAR."
)
@click.option("--cascade-loss", type=click.FloatRange(0, 1, min_open=True, max_open=True),
              help="Calibrate a cascade that loses at most this much UAR.")  # fmt: skip
@click.option("--threads", type=THREADS, help="Of one inference on the device: Session's default.")
@target_flags
@click.option("--layout", type=click.Choice(["bundle", *LAYOUTS]), default="bundle", show_default=True,
              help="Also write a model repository for this server.")  # fmt: skip
@click.option("--with-baseline", is_flag=True,
              help="Also export the full-token ViT, to OUT-baseline, where `profile` takes it from.")  # fmt: skip
@click.option("--tune", is_flag=True,
              help="Also search the runtimes' parameters for what runs here, as the verb tune does.")  # fmt: skip
@click.option("--sign", type=click.Path(path_type=Path),
              help="Sign what is exported with this private key, as the verb sign does.")  # fmt: skip
@click.option("--no-cache", is_flag=True, help="Build anew even if nothing has changed.")
@click.option("--out", type=click.Path(path_type=Path), help="The bundle; default out/MODEL-TARGET.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest.")
def main(
    targets: list[str] | None, recipe: str | None, device: str | None, checkpoint: Path | None, model: str | None,
    budgets: Any, precisions: list[str] | None, calibration: Path | None, calibration_data: str | None,
    calibration_samples: int | None, max_uar_drop: float | None, cascade_loss: float | None,
    threads: int | None, layout: str, with_baseline: bool, tune: bool, sign: Path | None, no_cache: bool, out: Path | None, as_json: bool, **flags: Any,
) -> None:  # fmt: skip
    """Turn a checkpoint into a bundle of proven, static token-budget variants."""
    if recipe and device:
        raise InputError("--recipe and --device exclude one another: both name the recipe")
    chosen = find_recipe(recipe or device or "") if recipe or device else None
    said = ExportConfig(target=("cpu",)) if chosen is None else read_recipe(chosen)
    targets = targets or list(said.target)
    options = {key: value for key, value in flags.items() if value is not None}
    if set(said.target) & set(targets):  # what a recipe says to its target is nothing to another
        threads, options = threads or said.threads, {**said.options, **options}
    name = model or (checkpoint.stem if checkpoint else DEFAULT_MODEL)
    out = out or Path("out") / f"{name}-{chosen.stem if chosen else '-'.join(targets)}"
    asked: dict[str, Any] = {
        "target": targets,
        "budgets": budgets or said.budgets,
        "precisions": precisions or said.precisions,
        "calibration_samples": calibration_samples or said.calibration_samples,
        "max_uar_drop": said.max_uar_drop if max_uar_drop is None else max_uar_drop,
        "threads": threads,
        "options": options,
    }
    # All that can be refused before torch is loaded.
    config = parse(ExportConfig, asked)
    if max_uar_drop is not None and not any("int8" in names for _, names in config.plan):
        raise InputError("--max-uar-drop judges int8, and no int8 is asked for")
    check_out(out)
    if checkpoint is not None:
        require_file(checkpoint, "checkpoint")
    elif model is not None:
        config.rates_for(named_model(model))
    if with_baseline:
        check_out(baseline_place(out))
        if checkpoint is None:
            _refuse_baseline_of(named_model(model or DEFAULT_MODEL))
    if calibration_data is not None:
        find_dataset(calibration_data)
    if layout != "bundle":
        refuse_unservable(config, layout)
    key = None if sign is None else read_private_key(sign)
    with explained_imports("export"):
        from ptsr_edge.export.exporter import export_baseline, export_bundle
        from ptsr_edge.export.serving import check_repository, write_layout
        from ptsr_edge.models.checkpoint import read_info

    if with_baseline and checkpoint is not None:
        _refuse_baseline_of(read_info(checkpoint).model)

    if layout != "bundle":
        check_repository(_repository(out, layout), layout)
    before = _variants_of(out)
    with if_interrupted(
        lambda: f"{out} is {'as it was' if before else 'not written'}; the same command starts anew"
    ):
        bundle = export_bundle(
            out=out, model=model, checkpoint=checkpoint, calibration=calibration, calibration_data=calibration_data,
            cascade_loss=cascade_loss, cache=not no_cache, **asked,
        )  # fmt: skip
    say(f"{bundle.name}: {bundle.provenance.get('card', 'trained weights')}")
    if bundle.recommended is not None:
        say(f"recommended: {bundle.recommended.variant}: {bundle.recommended.reason}")
    if gone := sorted(before - {variant.id for variant in bundle.variants}):
        say(f"{out} was replaced and no longer has {', '.join(gone)}")
    lines = [*summary(bundle), str(out)]
    if with_baseline:
        beside = baseline_place(out)
        say(f"exporting its full-token ViT to {beside}")
        with (
            if_interrupted(lambda: f"{out} is written, its baseline is not"),
            _told(f"{out} is written, its baseline is not"),
        ):
            baseline = export_baseline(
                bundle, beside, target=targets, precisions=[variant.precision for variant in bundle.variants],
                threads=threads, options=options, cache=not no_cache,
            )  # fmt: skip
        lines = [*lines[:-1], *summary(baseline), str(beside), str(out)]
    places = [out, *([baseline_place(out)] if with_baseline else [])]
    if key is not None:
        with _told(f"{out} is written, but not signed"):
            for place in places:
                sign_bundle(place, key)
                say(f"{place} is signed")
    if tune:
        lines = [*lines[:-1], *(line for place in places for line in _tuned(place)), str(out)]
        bundle = read_bundle(out)
    if layout != "bundle":
        with (
            doing(f"writing the {layout} repository"),
            if_interrupted(lambda: f"{out} is written, its {layout} repository is not"),
        ):
            write_layout(out, layout, _repository(out, layout))
        lines.append(str(_repository(out, layout)))
    finish(bundle.model_dump(mode="json", by_alias=True), lines, as_json)


def _tuned(folder: Path) -> list[str]:
    """Tunes all that runs here and returns a line for each variant; where nothing does, says why: the bundle is made."""
    say(f"searching the runtimes' parameters for {folder}")
    try:
        with if_interrupted(
            lambda: f"{folder} is written, not all of it is tuned; ptsr-edge tune {folder} goes on"
        ):
            return [f"{name:28} {verdict(record)}" for name, record in tune_bundle(folder).items()]
    except JobError as error:
        say(f"{folder} is not tuned: {error}")
        return []


def _refuse_baseline_of(model: ModelConfig) -> None:
    """Refuses `--with-baseline` for a model that is a baseline itself."""
    if model.kind == "vit":
        raise InputError(f"--with-baseline goes with a PTSR: {model.name} is a full-token ViT itself")


@contextmanager
def _told(done: str) -> Iterator[None]:
    """Adds to an error what had been made before it."""
    try:
        yield
    except (InputError, JobError) as error:
        raise JobError(f"{done}: {error}") from error


def _variants_of(folder: Path) -> set[str]:
    """The ids of the variants of a bundle that is about to be replaced; empty where there is none, or a broken one."""
    if not (folder / MANIFEST).is_file():
        return set()
    try:
        return {variant.id for variant in read_bundle(folder).variants}
    except InputError:
        return set()


def _repository(out: Path, layout: str) -> Path:
    return out.with_name(f"{out.name}-{layout}")


def summary(bundle: Bundle) -> list[str]:
    """Returns a line per variant: budget, cost and what was proven."""
    return [
        f"{v.id:28} {v.keep_rate:6.1%} {v.tokens:4d} tokens {v.macs / 1e6:9.1f} MMACs  {_proof(v)}"
        for v in bundle.variants
    ]


def _proof(variant: Variant) -> str:
    if variant.parity is None:
        return "built, not run here"
    parity = variant.parity
    proof = (
        f"max |logit difference| {parity.max_abs:.1e}, same class {parity.top1_agreement:.0%} "
        f"of {parity.samples} samples"
    )
    if parity.through == "artifact":
        return proof
    built = "for the device to build" if variant.artifact.endswith(".onnx") else "built, not run here"
    return f"{built}; its graph: {proof}"
