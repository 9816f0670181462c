"""A checkpoint becomes a bundle: static token-budget variants, each proven before it is written.

    python -m ptsr_edge.export --target cpu
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from ptsr_edge.backend_ort import OrtRunner
from ptsr_edge.checkpoint import CheckpointInfo, embedded_checkpoint, resolve
from ptsr_edge.config import DEFAULT_MODEL, MODELS
from ptsr_edge.console import Verb, comma_separated, finish, progress, run, say
from ptsr_edge.data import DATA_NAMES, load
from ptsr_edge.errors import InputError
from ptsr_edge.flops import count_macs
from ptsr_edge.manifest import Bundle, Variant, describe_file, write_bundle
from ptsr_edge.model import Model, count_parameters
from ptsr_edge.onnx_graph import OPSET, add_metadata, trace, write_sharing_weights
from ptsr_edge.parity import eager_reference, measure_parity, require_parity
from ptsr_edge.static import to_static
from ptsr_edge.storage import staged_folder

BUDGETS = (1.0, 0.5, 0.25)
PRECISIONS = {"cpu": ("fp32",)}
CALIBRATION_CLIPS = 32
WEIGHTS = "weights.bin"


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
        target: see `PRECISIONS`.
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
    chosen = _check_target(target, precisions)
    loaded, info, digest = resolve(checkpoint, model or (None if checkpoint else DEFAULT_MODEL))
    rates = _check_budgets(info, budgets)
    flows, clips = calibration_flows(info, calibration, calibration_data)
    with staged_folder(out) as stage:
        variants = _write_variants(stage, loaded, info, rates, chosen, flows)
        bundle = Bundle(
            schema=1, name=info.model.name, target="cpu", model=info.model, labels=info.labels,
            preprocess=info.preprocess, provenance=_provenance(info, digest, clips), variants=variants,
        )  # fmt: skip
        write_bundle(stage, bundle)
    return bundle


def _write_variants(
    stage: Path, model: Model, info: CheckpointInfo, rates: Sequence[float], precisions: Sequence[str],
    flows: NDArray[np.float32],
) -> list[Variant]:  # fmt: skip
    config = info.model
    graphs, macs = {}, {}
    for rate in progress(rates, "exporting graphs"):
        static = to_static(model, config.tokens_at(rate))
        path = stage / f"{variant_id(config.name, 'cpu', 'fp32', config.tokens_at(rate))}.onnx"
        graphs[path] = trace(static, config)
        add_metadata(graphs[path], info.labels, info.preprocess)
        example = torch.zeros(1, config.channels, config.image_size, config.image_size)
        macs[path] = count_macs(static, (example,)).total
    write_sharing_weights(graphs, stage / WEIGHTS)
    weights = describe_file(stage, stage / WEIGHTS)
    variants = []
    for rate, path in progress(list(zip(rates, graphs, strict=True)), "proving variants"):
        reference = eager_reference(model, config.tokens_at(rate), flows)
        parity = measure_parity(reference, OrtRunner(path, threads=1).run, "fp32")
        require_parity(parity, path.stem)
        variants.append(
            Variant(
                id=path.stem, target="cpu", keep_rate=rate, tokens=config.tokens_at(rate), precision="fp32",
                artifact=path.name, files=[describe_file(stage, path), weights], macs=macs[path],
                parameters=count_parameters(model), parity=parity,
                built_with={"opset": OPSET} | {p: version(p) for p in ("torch", "onnx", "onnxruntime")},
                runs_on={"runtime": "onnxruntime", "device": "any CPU"},
            )
        )  # fmt: skip
    return variants


def variant_id(model: str, target: str, precision: str, tokens: int) -> str:
    """The name of a variant, unique within a bundle and telling outside of it."""
    return f"{model}-{target}-{precision}-k{tokens}"


def calibration_flows(
    info: CheckpointInfo, root: Path | None, name: str | None
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Samples (n, S, S, 3) to prove on, from subjects of the training side, and what they are.

    Raises:
        InputError: unknown data, or a folder that does not hold them.
    """
    trained_on = info.provenance.get("data")
    if name is None:
        usable = trained_on in DATA_NAMES and (trained_on == "synthetic" or root is not None)
        name = str(trained_on) if usable else "synthetic"
    size = info.model.image_size
    known = info.provenance.get("train_subjects", []) if trained_on == name else []
    data = load(name, root, image_size=size, subjects=known[:8] or None, limit=4)
    spread = np.linspace(0, len(data) - 1, min(CALIBRATION_CLIPS, len(data))).round().astype(np.intp)
    chosen = data.subset(spread)
    record = {"data": name, "samples": len(chosen), "sha256": chosen.digest(), "training_side": bool(known)}
    return chosen.flows, record


def _check_target(target: str, precisions: Sequence[str] | None) -> list[str]:
    if target not in PRECISIONS:
        raise InputError(f"unknown target {target!r}; accepted: {', '.join(PRECISIONS)}")
    have = PRECISIONS[target]
    for precision in precisions or ():
        if precision not in have:
            raise InputError(f"target {target} has no precision {precision!r}; it has: {', '.join(have)}")
    return list(dict.fromkeys(precisions or have))


def _check_budgets(info: CheckpointInfo, budgets: Sequence[float] | None) -> list[float]:
    """Keep rates from the largest down, each token count once."""
    config = info.model
    if budgets is None:
        budgets = BUDGETS if config.kind == "ptsr" else (1.0,)
    if not budgets:
        raise InputError("no budget given; a budget is a keep rate in (0, 1]")
    rates = {config.tokens_at(rate): rate for rate in sorted(budgets)}
    if config.kind == "vit" and set(rates) != {config.patches}:
        raise InputError(f"{config.name} is the full-token baseline: its only budget is 1, got {list(budgets)}")
    return [rates[tokens] for tokens in sorted(rates, reverse=True)]


def _provenance(info: CheckpointInfo, digest: str, calibration: dict[str, Any]) -> dict[str, Any]:
    return {"checkpoint_sha256": digest, **info.provenance, "calibration": calibration}


def _parse_budget(text: str) -> float:
    rate = float(text)
    if not 0 < rate <= 1:
        raise InputError(f"a budget is a keep rate in (0, 1], got {text}")
    return rate


@click.command(cls=Verb, epilog="Example: python -m ptsr_edge.export --target cpu --budgets 1.0,0.5,0.25")
@click.option("--target", default="cpu", show_default=True, help=f"One of {', '.join(PRECISIONS)}.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="A .safetensors file made by `train`.")
@click.option("--model", help=f"One of {', '.join(MODELS)}: its embedded weights, or seeded random ones.")
@click.option("--budgets", callback=comma_separated(_parse_budget, "--budgets"),
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
    if checkpoint is None and embedded_checkpoint(model or DEFAULT_MODEL) is None:
        say(f"{model}: no weights are embedded, exporting seeded random ones (for speed studies only)")
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
        f"{v.id:28} {v.keep_rate:6.1%} {v.tokens:4d} tokens {v.macs / 1e6:9.1f} MMACs  "
        f"max |logit difference| {v.parity.max_abs:.1e} on {v.parity.samples} samples"
        for v in bundle.variants
    ]


if __name__ == "__main__":
    run(main, "python -m ptsr_edge.export")
