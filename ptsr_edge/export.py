"""A checkpoint becomes a bundle: static token-budget variants, each proven before it is written.

python -m ptsr_edge.export --target cpu
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto

from ptsr_edge.calibration import calibration_side, draw
from ptsr_edge.checkpoint import CheckpointInfo, resolve
from ptsr_edge.config import DEFAULT_MODEL, MODELS
from ptsr_edge.console import Verb, comma_separated, finish, progress, run, say
from ptsr_edge.data import DATA_NAMES
from ptsr_edge.errors import InputError
from ptsr_edge.flops import count_macs
from ptsr_edge.flow import to_input
from ptsr_edge.manifest import MANIFEST, Bundle, Variant, describe_file, write_bundle
from ptsr_edge.model import Model, count_parameters
from ptsr_edge.onnx_graph import add_metadata, trace, write_sharing_weights
from ptsr_edge.parity import eager_reference, measure_parity, require_parity
from ptsr_edge.static import to_static
from ptsr_edge.storage import staged_folder
from ptsr_edge.target import BuildRequest, Target, variant_id
from ptsr_edge.target_cpu import CpuTarget

BUDGETS = (1.0, 0.5, 0.25)
TARGETS: dict[str, Target] = {target.name: target for target in (CpuTarget(),)}
CALIBRATION_SAMPLES = 32


@dataclass(frozen=True)
class Job:
    """A call of `export`, checked: what is exported, into what, and on which samples it is proven."""

    model: Model
    info: CheckpointInfo
    rates: Sequence[float]
    target: Target
    flows: NDArray[np.float32]


def export_bundle(
    *,
    out: Path,
    model: str | None = None,
    checkpoint: Path | None = None,
    target: str = "cpu",
    budgets: Sequence[float] | None = None,
    precisions: Sequence[str] | None = None,
    calibration: Path | None = None,
    calibration_data: str | None = None,
) -> Bundle:
    """Exports one model for one target, proves every variant and writes the bundle.

    Args:
        out: the bundle's folder; one that stands there is replaced only when all variants are proven.
        model: a named model; with `checkpoint`, the name that it must have.
        checkpoint: by default the embedded weights, or seeded random ones where none are embedded.
        target: one of `TARGETS`.
        budgets: keep rates in (0, 1]; by default 1, .5 and .25 for PTSR and 1 for a baseline.
        precisions: by default all that the target has.
        calibration: folder of the data to prove on; `synthetic` needs none.
        calibration_data: name of the data to prove on; by default what the model was trained on where
            that needs no folder or one is given, else `synthetic`.

    Raises:
        InputError: something in the call is not acceptable; nothing was started.
        ParityError: a variant misses its limit; nothing was written.
        JobError: anything else failed; nothing was written.
    """
    _check_out(out)
    builder, chosen = check_target(target, precisions)
    loaded, info, digest = resolve(checkpoint, model or (None if checkpoint else DEFAULT_MODEL))
    rates = check_budgets(info, budgets)
    side = calibration_side(info, calibration, calibration_data, CALIBRATION_SAMPLES)
    samples, record = draw(side, CALIBRATION_SAMPLES)
    job = Job(loaded, info, rates, builder, samples.flows)
    with staged_folder(out) as stage, TemporaryDirectory(prefix="ptsr-edge-") as scratch:
        graphs, macs = trace_budgets(job, Path(scratch))
        variants = [
            variant
            for precision in chosen
            for variant in build_and_prove(job, precision, graphs, macs, stage)
        ]
        bundle = Bundle(
            name=info.model.name,
            target=builder.name,
            model=info.model,
            labels=info.labels,
            preprocess=info.preprocess,
            provenance={"checkpoint_sha256": digest, **info.provenance, "calibration": record.model_dump()},
            variants=variants,
        )
        write_bundle(stage, bundle)
    return bundle


def trace_budgets(job: Job, folder: Path) -> tuple[dict[int, Path], dict[int, int]]:
    """Writes one fp32 graph a token count, with shared weights; their paths and their MACs."""
    config = job.info.model
    models: dict[Path, ModelProto] = {}
    graphs, macs = {}, {}
    for rate in progress(job.rates, "tracing graphs"):
        tokens = config.tokens_at(rate)
        static = to_static(job.model, tokens)
        graphs[tokens] = folder / f"{config.name}-k{tokens}.onnx"
        models[graphs[tokens]] = trace(static, config)
        add_metadata(models[graphs[tokens]], job.info.labels, job.info.preprocess)
        macs[tokens] = count_macs(static, (torch.zeros(1, *config.input_shape),)).total
    write_sharing_weights(models, folder / "weights.bin")
    return graphs, macs


def build_and_prove(
    job: Job, precision: str, graphs: Mapping[int, Path], macs: Mapping[int, int], stage: Path
) -> list[Variant]:
    """Builds all budgets in one precision and compares each with the eager model.

    Raises:
        ParityError: a variant misses its limit.
        JobError: the target's tools refuse a graph.
    """
    info, target = job.info, job.target
    request = BuildRequest(
        info.model.name, graphs, precision, stage, info.labels, info.preprocess, to_input(job.flows)
    )
    artifacts = target.build(request)
    variants = []
    for rate in progress(job.rates, f"proving {target.name} {precision}"):
        tokens = info.model.tokens_at(rate)
        artifact = artifacts[tokens]
        name = variant_id(info.model.name, target.name, precision, tokens)
        runner = target.runner(artifact, threads=1)
        parity = None
        if runner is not None:
            parity = measure_parity(eager_reference(job.model, tokens, job.flows), runner.run, precision)
            require_parity(parity, name)
        variants.append(
            Variant(
                id=name,
                target=target.name,
                keep_rate=rate,
                tokens=tokens,
                precision=precision,
                artifact=artifact.path.relative_to(stage).as_posix(),
                files=[describe_file(stage, path) for path in artifact.files],
                macs=macs[tokens],
                parameters=count_parameters(job.model),
                parity=parity,
                built_with={"torch": version("torch"), **artifact.built_with},
                runs_on=artifact.runs_on,
            )
        )
    return variants


def _check_out(out: Path) -> None:
    """Only a bundle, or an empty folder, may be replaced: `--out .` must not remove somebody's work.

    Raises:
        InputError: something else stands there.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file()):
        found = "a file" if out.is_file() else "a folder that is no bundle"
        raise InputError(f"{out} is {found}; accepted: a new folder, an empty one, or a bundle to replace")


def check_target(target: str, precisions: Sequence[str] | None) -> tuple[Target, list[str]]:
    """The target's builder and the precisions to build, all it has by default.

    Raises:
        InputError: an unknown target, or a precision that it lacks.
    """
    if target not in TARGETS:
        raise InputError(f"unknown target {target!r}; accepted: {', '.join(TARGETS)}")
    have = TARGETS[target].precisions
    for precision in precisions or ():
        if precision not in have:
            raise InputError(f"target {target} has no precision {precision!r}; it has: {', '.join(have)}")
    return TARGETS[target], list(dict.fromkeys(precisions or have))


def check_budgets(info: CheckpointInfo, budgets: Sequence[float] | None) -> list[float]:
    """Keep rates from the largest down, each token count once.

    Raises:
        InputError: an empty list, a rate outside (0, 1], or any but 1 for the full-token baseline.
    """
    config = info.model
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


def parse_budget(text: str) -> float:
    """Reads a keep rate; raises InputError outside of (0, 1]."""
    rate = float(text)
    if not 0 < rate <= 1:
        raise InputError(f"a budget is a keep rate in (0, 1], got {text}")
    return rate


@click.command(cls=Verb, epilog="Example: python -m ptsr_edge.export --target cpu --budgets 1.0,0.5,0.25")
@click.option("--target", default="cpu", show_default=True, help=f"One of {', '.join(TARGETS)}.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="A .safetensors file made by `train`.")
@click.option("--model", help=f"One of {', '.join(MODELS)}: its embedded weights, or seeded random ones.")
@click.option("--budgets", callback=comma_separated(parse_budget, "--budgets"),
              help="Keep rates in (0, 1]; default 1.0,0.5,0.25.")  # fmt: skip
@click.option("--precision", "precisions", callback=comma_separated(str, "--precision"),
              help="Default: all that the target has.")  # fmt: skip
@click.option("--calibration", type=click.Path(path_type=Path), help="Folder of the data to prove on.")
@click.option("--calibration-data", help=f"One of {', '.join(DATA_NAMES)}.")
@click.option("--out", type=click.Path(path_type=Path), help="The bundle; default out/MODEL-TARGET.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest.")
def main(
    target: str, checkpoint: Path | None, model: str | None, budgets: list[float] | None,
    precisions: list[str] | None, calibration: Path | None, calibration_data: str | None, out: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Turn a checkpoint into a bundle of proven, static token-budget variants."""
    name = model or (checkpoint.stem if checkpoint else DEFAULT_MODEL)
    out = out or Path("out") / f"{name}-{target}"
    bundle = export_bundle(
        out=out, model=model, checkpoint=checkpoint, target=target, budgets=budgets, precisions=precisions,
        calibration=calibration, calibration_data=calibration_data,
    )  # fmt: skip
    say(f"{bundle.name}: {bundle.provenance.get('card', 'trained weights')}")
    finish(bundle.model_dump(mode="json", by_alias=True), [*summary(bundle), str(out)], as_json)


def summary(bundle: Bundle) -> list[str]:
    """A line a variant: budget, cost, size and what was proven."""
    return [
        f"{v.id:28} {v.keep_rate:6.1%} {v.tokens:4d} tokens {v.macs / 1e6:9.1f} MMACs  {_proof(v)}"
        for v in bundle.variants
    ]


def _proof(variant: Variant) -> str:
    if variant.parity is None:
        return "built, not run here"
    return f"max |logit difference| {variant.parity.max_abs:.1e} on {variant.parity.samples} samples"


if __name__ == "__main__":
    run(main, "python -m ptsr_edge.export")
