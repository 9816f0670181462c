"""A checkpoint becomes a bundle: static token-budget variants, each proven before it is written.

    python -m ptsr_edge.export --target cpu

The stages: resolve the model, draw calibration samples, choose budgets, trace one graph a budget, build
each precision of each target, prove every variant against the eager model, write the bundle.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ptsr_edge.bundle import Bundle, Variant
from ptsr_edge.core.config import DEFAULT_MODEL, MODELS, parse_budget
from ptsr_edge.core.console import Verb, comma_separated, finish, say
from ptsr_edge.data.datasets import DATA_NAMES
from ptsr_edge.export.config import check_out, read_recipe
from ptsr_edge.export.exporter import CALIBRATION_SAMPLES, TARGETS, export_bundle
from ptsr_edge.export.serving import LAYOUTS, check_repository, write_layout


def _parse_budgets(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Any:
    if value is None or value == "auto":
        return value
    return comma_separated(parse_budget, "--budgets")(_ctx, _param, value)


@click.command(cls=Verb, epilog="Example: python -m ptsr_edge.export --target cpu --budgets 1.0,0.5,0.25")
@click.option("--target", "targets", callback=comma_separated(str, "--target"),
              help=f"One or more of {', '.join(TARGETS)}; default cpu.")  # fmt: skip
@click.option(
    "--recipe",
    type=click.Path(path_type=Path),
    help="A TOML file such as export/cpu.toml; options come before it.",
)
@click.option("--checkpoint", type=click.Path(path_type=Path), help="A .safetensors file made by `train`.")
@click.option("--model", help=f"One of {', '.join(MODELS)}: its embedded weights, or seeded random ones.")
@click.option("--budgets", callback=_parse_budgets,
              help="Keep rates in (0, 1], or auto: from the samples; default 1.0,0.5,0.25.")  # fmt: skip
@click.option("--precision", "precisions", callback=comma_separated(str, "--precision"),
              help="Default: all that the target has.")  # fmt: skip
@click.option(
    "--calibration", type=click.Path(path_type=Path), help="Folder of the data to calibrate and prove on."
)
@click.option("--calibration-data", help=f"One of {', '.join(DATA_NAMES)}.")
@click.option(
    "--calibration-samples", type=click.IntRange(min=1), help=f"Default {CALIBRATION_SAMPLES} for int8."
)
@click.option(
    "--max-uar-drop", type=click.FloatRange(0, 1), help="Repair or refuse int8 that loses more UAR."
)
@click.option("--cascade-loss", type=click.FloatRange(0, 1, min_open=True, max_open=True),
              help="Calibrate a cascade that loses at most this much UAR.")  # fmt: skip
@click.option(
    "--threads", type=click.IntRange(min=1), help="Of one inference on the device: Session's default."
)
@click.option("--int8-scheme", type=click.Choice(["auto", "static", "dynamic"]), help="Of target cpu.")
@click.option(
    "--flavour",
    type=click.Choice(["tensorrt", "tensorrt-rtx"]),
    help="Of target trt; default: the first that can build.",
)
@click.option("--compute-capability", "capabilities", callback=comma_separated(str, "--compute-capability"),
              help="Of target trt, such as 8.6,8.9; default: all that the precision allows.")  # fmt: skip
@click.option(
    "--onnx-only", is_flag=True, help="Of target trt: graphs for the device to build from, no engine."
)
@click.option("--layout", type=click.Choice(["bundle", *LAYOUTS]), default="bundle", show_default=True,
              help="Also write a model repository for this server.")  # fmt: skip
@click.option("--no-cache", is_flag=True, help="Build anew even if nothing has changed.")
@click.option("--out", type=click.Path(path_type=Path), help="The bundle; default out/MODEL-TARGET.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest.")
def main(
    targets: list[str] | None, recipe: Path | None, checkpoint: Path | None, model: str | None,
    budgets: Any, precisions: list[str] | None, calibration: Path | None, calibration_data: str | None,
    calibration_samples: int | None, max_uar_drop: float | None, cascade_loss: float | None,
    threads: int | None, int8_scheme: str | None, flavour: str | None, capabilities: list[str] | None, onnx_only: bool, layout: str,
    no_cache: bool, out: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Turn a checkpoint into a bundle of proven, static token-budget variants."""
    options: dict[str, Any] = {}
    if recipe is not None:
        said = read_recipe(recipe)
        targets = targets or [said.target]
        budgets = budgets or said.budgets
        precisions = precisions or said.precisions  # type: ignore[assignment]
        calibration_samples = calibration_samples or said.calibration_samples
        max_uar_drop = said.max_uar_drop if max_uar_drop is None else max_uar_drop
        threads = threads or said.threads
        options = said.target_options() if said.target in targets else {}
    given = {
        "int8_scheme": int8_scheme,
        "flavour": flavour,
        "compute_capabilities": capabilities,
        "onnx_only": onnx_only or None,
    }
    options |= {key: value for key, value in given.items() if value is not None}
    targets = targets or ["cpu"]
    name = model or (checkpoint.stem if checkpoint else DEFAULT_MODEL)
    out = out or Path("out") / f"{name}-{recipe.stem if recipe else '-'.join(targets)}"
    if layout != "bundle":
        check_out(out)
        check_repository(_repository(out, layout), layout)
    bundle = export_bundle(
        out=out, model=model, checkpoint=checkpoint, target=targets, budgets=budgets, precisions=precisions,
        calibration=calibration, calibration_data=calibration_data, calibration_samples=calibration_samples,
        max_uar_drop=max_uar_drop, cascade_loss=cascade_loss, threads=threads, options=options, cache=not no_cache,
    )  # fmt: skip
    say(f"{bundle.name}: {bundle.provenance.get('card', 'trained weights')}")
    lines = [*summary(bundle), str(out)]
    if layout != "bundle":
        write_layout(out, layout, _repository(out, layout))
        lines.append(str(_repository(out, layout)))
    finish(bundle.model_dump(mode="json", by_alias=True), lines, as_json)


def _repository(out: Path, layout: str) -> Path:
    return out.with_name(f"{out.name}-{layout}")


def summary(bundle: Bundle) -> list[str]:
    """A line a variant: budget, cost, size and what was proven."""
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
