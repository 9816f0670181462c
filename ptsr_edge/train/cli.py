"""The verb `train`: from a data set to a checkpoint.

python -m ptsr_edge.train --data synthetic --model ptsr-tiny --out out/tiny.safetensors

With `--crop close` it trains the weights that training on recorded data starts from: on synthetic faces that are
cropped as closely as recorded ones. The project's own faces are cropped widely, as a detector's box is; the flow
fields that were published for recorded sets are of crops from brow to chin and from temple to temple, so that the
same action units lie elsewhere.
"""

from __future__ import annotations

import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click
import torch

from ptsr_edge.core.config import DEFAULT_MODEL, MODELS, ModelConfig, named_model
from ptsr_edge.core.console import Verb, finish, progress, say
from ptsr_edge.core.errors import InputError
from ptsr_edge.core.files import check_file
from ptsr_edge.data.cli import DataOption, reading_options
from ptsr_edge.data.datasets import FlowDataset, find_dataset, load, load_closely_cropped, split_subjects
from ptsr_edge.models.checkpoint import (
    DEVICES,
    CheckpointInfo,
    choose_device,
    load_vit,
    predict_logits,
    save_checkpoint,
)
from ptsr_edge.models.ptsr import Model, Ptsr, Vit
from ptsr_edge.stats.classification import confusion, uar, uf1
from ptsr_edge.train.trainer import (
    TrainConfig,
    first_weights,
    fit,
    for_classes,
    starting_config_for,
    train_config_for,
)


def held_out_scores(model: Model, data: FlowDataset, budgets: tuple[float, ...]) -> dict[str, Any]:
    """Returns sample count, UF1 and UAR by keep rate: those of `budgets` and 1; of the baseline 1 alone."""
    scores: dict[str, Any] = {}
    for rate in sorted({1.0, *budgets} if isinstance(model, Ptsr) else {1.0}, reverse=True):
        logits, _ = predict_logits(model, data.flows, model.config.tokens_at(rate))
        table = confusion(data.labels, logits.argmax(1), model.config.classes)
        scores[f"{rate:g}"] = {"n": len(data), "uf1": round(uf1(table), 4), "uar": round(uar(table), 4)}
    return scores


def tool_versions() -> dict[str, str]:
    """Returns the versions of what a result depends on, without those packages that are not there."""
    found = {"python": sys.version.split()[0]}
    for package in ("ptsr-edge", "torch", "numpy", "opencv-python-headless"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@click.command(
    cls=Verb, epilog="Example: python -m ptsr_edge.train --data synthetic --out out/tiny.safetensors"
)
@click.option("--data", "data_name", cls=DataOption, default="synthetic", show_default=True)
@click.option("--root", type=click.Path(path_type=Path), help="Folder of the data; synthetic needs none.")
@reading_options
@click.option("--crop", type=click.Choice(["wide", "close"]), default="wide", show_default=True,
              help="Of synthetic faces; close: as recorded ones, with the recipe for starting weights.")  # fmt: skip
@click.option("--clips", type=click.IntRange(min=1), help="At most so many of each subject; by default all.")
@click.option(
    "--model", "model_name", default=DEFAULT_MODEL, show_default=True, help=f"One of {', '.join(MODELS)}."
)
@click.option("--epochs", type=click.IntRange(min=1), help="Instead of the recipe's number.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--holdout", type=click.FloatRange(0, 1, max_open=True), default=0.2, show_default=True,
              help="Share of the subjects that training never sees.")  # fmt: skip
@click.option(
    "--init",
    type=click.Path(path_type=Path),
    help="Start vit-* from a ViT in the layout of timm, DeiT or Hugging Face.",
)
@click.option(
    "--bf16",
    is_flag=True,
    help="Train in bfloat16 where products allow it: twice as fast on CPUs with AVX512-BF16.",
)
@click.option("--half", is_flag=True, help="Store the weights as float16.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; by default torch's choice.")
@click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True,
              help="Where to train; auto: on the GPU where torch sees one.")  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="The checkpoint to write (.safetensors)."
)
@click.option("--resume", is_flag=True, help="Go on where a killed run stood.")
@click.option("--json", "as_json", is_flag=True, help="Print the result record.")
def main(
    data_name: str, root: Path | None, crop: str, clips: int | None, model_name: str, epochs: int | None, seed: int,
    holdout: float, init: Path | None, bf16: bool, half: bool, threads: int | None, device: str, out: Path,
    resume: bool, as_json: bool, skip_bad: bool | None, face_model: Path | None,
) -> None:  # fmt: skip
    """Train PTSR or its full-token baseline and write a checkpoint."""
    config, device = named_model(model_name), choose_device(device)
    if out.suffix != ".safetensors":
        raise InputError(f"a checkpoint ends in .safetensors, got {out.name!r}")
    check_file(out)
    if threads is not None:
        torch.set_num_threads(threads)
    close = crop == "close"
    train_config = starting_config_for(config) if close else train_config_for(config, data_name)
    changes: dict[str, Any] = {"bfloat16": bf16} | ({"epochs": epochs} if epochs else {})
    train_config = train_config.model_copy(update=changes)
    if init is not None and config.kind != "vit":
        raise InputError(f"--init fills a baseline (vit-*), not {config.name}")
    read = load_closely_cropped if close else load
    data = read(
        data_name, root, image_size=config.image_size, limit=clips, skip_bad=skip_bad, face_model=face_model
    )
    config, train_config, no_start = for_classes(config, train_config, data.label_names)
    if no_start:
        say(no_start)
    initial = first_weights(config, train_config, seed)
    if init is not None and isinstance(initial, Vit):
        load_vit(initial, init)
    seen, held = split_subjects(data.subjects, holdout, seed=0) if holdout else (data.subject_names, [])
    training = data.of_subjects(seen)
    say(
        f"training {config.name} on {len(training)} clips of {len(seen)} subjects, "
        f"{len(held)} subjects held out"
    )
    model = _fit_with_bar(config, training, train_config, seed, initial, out, resume, device)
    scores = held_out_scores(model, data.of_subjects(held), train_config.budgets) if held else {}
    provenance = {
        "kind": "trained",
        "data": data_name,
        "data_sha256": training.digest(),
        "card": find_dataset(data_name).card_of(root)
        + ("; starting weights for training on recorded data" if close else ""),
        "train_subjects": seen,
        "held_out_subjects": held,
        "recipe": train_config.model_dump(mode="json"),
        **({"start": no_start} if no_start else {}),
        "seed": seed,
        "device": device,
        "command": _command(),
        "versions": tool_versions(),
        "held_out": scores,
    }
    info = CheckpointInfo(
        schema=1,
        model=config,
        preprocess=data.preprocess,
        labels=list(data.label_names),
        provenance=provenance,
    )
    save_checkpoint(out, model, info, half)
    lines = [
        f"held out, {rate:>4} of the tokens: UF1 {f['uf1']:.3f}  UAR {f['uar']:.3f}  (n = {f['n']})"
        for rate, f in scores.items()
    ]
    finish({"checkpoint": str(out), "held_out": scores}, [*lines, str(out)], as_json)


def _command() -> str:
    """Returns the command that reproduces the checkpoint, without the paths of this machine."""
    places = {name for option in main.params if isinstance(option.type, click.Path) for name in option.opts}
    words, option = [], ""
    for word in sys.argv[2:] if sys.argv[1:2] == ["train"] else sys.argv[1:]:
        name, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        option = name or option
        if value and option in places:
            value = "DIR" if option == "--root" else Path(value).name
        words.append(name + equals + value)
    return f"python -m ptsr_edge.train {shlex.join(words)}"


def _fit_with_bar(
    config: ModelConfig, data: FlowDataset, train_config: TrainConfig, seed: int, initial: Model, out: Path, resume: bool,
    device: str,
) -> Model:  # fmt: skip
    total = train_config.epochs * max(1, len(data) // train_config.batch_size)
    bar = iter(progress(range(total), "training", length=total))
    advanced = 0

    def on_step(done: int, _total: int) -> None:
        nonlocal advanced
        while advanced < done:
            next(bar, None)
            advanced += 1

    state_file = out.with_suffix(".state")
    return fit(
        config, data, train_config, seed, initial=initial, state_file=state_file, resume=resume, on_step=on_step,
        device=device,
    )  # fmt: skip
