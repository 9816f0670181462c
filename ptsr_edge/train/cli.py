"""The verb `train`: from a data set to a checkpoint.

python -m ptsr_edge.train --data synthetic --model ptsr-tiny --out out/tiny.safetensors

With `--crop close` it trains on faces that are cropped as closely as those of recorded sets: from brow to chin and from
temple to temple, where a detector's box is wider. So were made the weights of `ptsr-nano` and `vit-nano`, which never
saw a recorded face, and which training on recorded data starts from:

python -m ptsr_edge.train --data ict-face --root DIR --crop close --model ptsr-nano --out nano.safetensors
"""

from __future__ import annotations

import csv
import io
import re
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ptsr_edge.core.config import DEFAULT_MODEL, DEVICES, MODELS, CropName, named_model
from ptsr_edge.core.console import (
    THREADS,
    Verb,
    doing,
    explained_imports,
    finish,
    if_interrupted,
    progress,
    say,
)
from ptsr_edge.core.errors import InputError
from ptsr_edge.core.files import check_file, require_file, write_whole
from ptsr_edge.data.cli import DataOption, reading_options
from ptsr_edge.data.datasets import (
    FlowDataset,
    find_dataset,
    load,
    refuse_root_of_rendered,
    split_subjects,
)
from ptsr_edge.stats.classification import confusion, uar, uf1

if TYPE_CHECKING:
    from ptsr_edge.models.ptsr import Model
    from ptsr_edge.train.trainer import Epoch


def held_out_scores(model: Model, data: FlowDataset, budgets: tuple[float, ...]) -> dict[str, Any]:
    """Returns sample count, UF1 and UAR by keep rate: those of `budgets` and 1; of the baseline 1 alone."""
    from ptsr_edge.models.checkpoint import predict_logits
    from ptsr_edge.models.ptsr import Ptsr

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
              help="Of faces; close: as recorded sets were cropped. Of synthetic ones with a recipe of its own.")  # fmt: skip
@click.option("--clips", type=click.IntRange(min=1), help="At most so many of each subject; by default all.")
@click.option(
    "--model", "model_name", default=DEFAULT_MODEL, show_default=True, help=f"One of {', '.join(MODELS)}."
)
@click.option("--epochs", type=click.IntRange(min=1), help="Instead of the recipe's number.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
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
@click.option("--threads", type=THREADS, help="CPU threads; by default torch's choice.")
@click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True,
              help="Where to train; auto: on the GPU where torch sees one.")  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="The checkpoint to write (.safetensors)."
)
@click.option("--resume", is_flag=True, help="Go on where a killed run stood.")
@click.option("--json", "as_json", is_flag=True, help="Print the result record.")
def main(
    data_name: str, root: Path | None, crop: CropName, clips: int | None, model_name: str, epochs: int | None, seed: int,
    holdout: float, init: Path | None, bf16: bool, half: bool, threads: int | None, device: str, out: Path,
    resume: bool, as_json: bool, skip_bad: bool | None, face_model: Path | None,
) -> None:  # fmt: skip
    """Train PTSR or its full-token baseline and write a checkpoint."""
    config = named_model(model_name)
    if out.suffix != ".safetensors":
        raise InputError(f"a checkpoint ends in .safetensors, got {out.name!r}")
    check_file(out)
    refuse_root_of_rendered(data_name, find_dataset(data_name), root)
    if init is not None:
        if config.kind != "vit":
            raise InputError(f"--init fills a baseline (vit-*), not {config.name}")
        require_file(init, "checkpoint")
    with explained_imports("train"):
        import torch

        from ptsr_edge.models.checkpoint import CheckpointInfo, choose_device, load_vit, save_checkpoint
        from ptsr_edge.models.ptsr import Vit
        from ptsr_edge.train.trainer import (
            first_weights,
            fit,
            for_classes,
            starting_config_for,
            train_config_for,
        )

    device = choose_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    close = crop == "close" and find_dataset(data_name).synthetic
    train_config = starting_config_for(config) if close else train_config_for(config, data_name)
    changes: dict[str, Any] = {"bfloat16": bf16} | ({"epochs": epochs} if epochs else {})
    train_config = train_config.model_copy(update=changes)
    data = load(
        data_name,
        root,
        image_size=config.image_size,
        limit=clips,
        skip_bad=skip_bad,
        face_model=face_model,
        crop=crop,
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
    judged = data.of_subjects(held) if held else None
    state_file, history = out.with_suffix(".state"), History(out.with_suffix(".history.csv"), judged)
    total = train_config.epochs * max(1, len(training) // train_config.batch_size)
    bar = iter(progress(range(total), f"training {config.name}", length=total))
    behind = 0

    def on_step(done: int, _total: int) -> None:
        nonlocal behind
        for _ in range(done - behind):  # many at once where a run is resumed
            next(bar, None)
        behind = done

    def advice() -> str:
        if not state_file.is_file():
            return "no epoch was finished and nothing was written; the same command starts anew"
        return f"{state_file} and {history.path} are left; the same command with --resume goes on from there"

    with if_interrupted(advice):
        model = fit(
            config, training, train_config, seed, initial=initial, state_file=state_file, resume=resume,
            on_step=on_step, on_epoch=history.add, device=device,
        )  # fmt: skip
        with doing("judging the held-out subjects"):
            scores = {} if judged is None else held_out_scores(model, judged, train_config.budgets)
    provenance = {
        "kind": "trained",
        "data": data_name,
        "data_sha256": training.digest(),
        "card": find_dataset(data_name).card_of(root),
        "synthetic": find_dataset(data_name).synthetic,
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
    state_file.unlink(missing_ok=True)
    lines = [
        f"held out, {rate:>4} of the tokens: UF1 {f['uf1']:.3f}  UAR {f['uar']:.3f}  (n = {f['n']})"
        for rate, f in scores.items()
    ]
    record = {"checkpoint": str(out), "history": str(history.path), "held_out": scores}
    finish(record, [*lines, str(out)], as_json)


class History:
    """A line on the console and a row of a CSV file for each epoch, with the score on the held-out subjects.

    The columns are `epoch` (from 1), `loss` (its mean over the epoch's steps, as it is minimised), and `uf1` and `uar`
    of the moving average of the weights with all tokens; these two are empty where nobody is held out.
    """

    COLUMNS = ("epoch", "loss", "uf1", "uar")

    def __init__(self, path: Path, held_out: FlowDataset | None) -> None:
        """Writes nothing before the first epoch; a file of an earlier run is then replaced, or gone on with."""
        self.path = path
        self._held_out = held_out
        self._rows: list[dict[str, Any]] | None = None

    def add(self, epoch: Epoch) -> None:
        """Takes the end of an epoch; rows of a resumed run are kept up to it."""
        if self._rows is None:
            self._rows = [row for row in self._earlier() if int(row["epoch"]) < epoch.number]
        score = {} if self._held_out is None else held_out_scores(epoch.model, self._held_out, ())["1"]
        row = {
            "epoch": epoch.number,
            "loss": f"{epoch.loss:.4f}",
            "uf1": score.get("uf1"),
            "uar": score.get("uar"),
        }
        self._rows.append(row)
        text = io.StringIO()
        table = csv.DictWriter(text, self.COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(self._rows)
        write_whole(self.path, text.getvalue())
        told = f"  held out: UF1 {score['uf1']:.3f}  UAR {score['uar']:.3f}" if score else ""
        say(f"epoch {epoch.number:3d} of {epoch.total}  loss {epoch.loss:.3f}{told}")

    def _earlier(self) -> list[dict[str, Any]]:
        """The rows that are there of epochs before this run's first; none where the file is no history."""
        try:
            rows = list(csv.DictReader(io.StringIO(self.path.read_text(encoding="utf-8"))))
        except (OSError, UnicodeDecodeError, csv.Error):
            return []
        whole = all(
            row.keys() == set(self.COLUMNS) and re.fullmatch("[0-9]{1,9}", str(row["epoch"])) for row in rows
        )
        return rows if whole else []


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
