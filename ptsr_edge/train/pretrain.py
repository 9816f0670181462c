"""Starting weights for the few clips of recorded data: trained on synthetic faces, cropped as closely as recorded ones.

python -m ptsr_edge.pretrain --model ptsr-nano --out ptsr_edge/weights/starting/ptsr-nano.safetensors

The project's own faces are cropped widely, as a detector's box is. The flow fields that were published for recorded
sets are of crops from brow to chin and from temple to temple, so that the same action units lie elsewhere.
"""

from __future__ import annotations

from pathlib import Path

import click

from ptsr_edge.core.config import named_model
from ptsr_edge.core.console import Verb, finish, progress
from ptsr_edge.core.errors import InputError
from ptsr_edge.core.files import check_file
from ptsr_edge.data.datasets import HELD_OUT, closely_cropped, split_subjects
from ptsr_edge.evaluate.evaluation import scores_of
from ptsr_edge.models.checkpoint import CheckpointInfo, predict_logits, save_checkpoint
from ptsr_edge.train.cli import model_card, tool_versions
from ptsr_edge.train.trainer import PRETRAINING, fit


@click.command(
    cls=Verb, epilog="Example: python -m ptsr_edge.pretrain --model ptsr-nano --out start.safetensors"
)
@click.option("--model", "model_name", required=True, help="ptsr-nano or vit-nano.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--epochs", type=click.IntRange(min=1), help="Instead of the recipe's number.")
@click.option("--clips", type=click.IntRange(min=1), help="At most so many of each subject; by default all.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The checkpoint to write.")
@click.option("--json", "as_json", is_flag=True, help="Print the result record.")
def main(model_name: str, seed: int, epochs: int | None, clips: int | None, out: Path, as_json: bool) -> None:
    """Train the weights that training on recorded data starts from."""
    config = named_model(model_name)
    size = config.name.rpartition("-")[2]
    if size not in PRETRAINING:
        raise InputError(
            f"there is no recipe for starting weights of {config.name}; sizes: {', '.join(PRETRAINING)}"
        )
    check_file(out)
    recipe = PRETRAINING[size]
    if epochs is not None:
        recipe = recipe.model_copy(update={"epochs": epochs})
    data = closely_cropped(config.image_size, clips)
    seen, held = split_subjects(data.subjects, HELD_OUT, seed=0)
    training, judged = data.of_subjects(seen), data.of_subjects(held)
    total = recipe.epochs * max(1, len(training) // recipe.batch_size)
    bar = iter(progress(range(total), "training", length=total))
    next(bar, None)

    def on_step(_done: int, _total: int) -> None:
        next(bar, None)

    model = fit(config, training, recipe, seed, on_step=on_step)
    found = {}
    for rate in sorted(set(recipe.budgets) if config.kind == "ptsr" else {1.0}, reverse=True):
        logits, _ = predict_logits(model, judged.flows, config.tokens_at(rate))
        found[f"{rate:g}"] = scores_of(judged, logits.argmax(axis=1))
    provenance = {
        "kind": "trained",
        "data": data.source,
        "data_sha256": training.digest(),
        "card": f"{model_card(data.source)}; starting weights for training on recorded data",
        "train_subjects": seen,
        "held_out_subjects": held,
        "recipe": recipe.model_dump(mode="json"),
        "seed": seed,
        "command": f"python -m ptsr_edge.pretrain --model {config.name} --seed {seed}",
        "versions": tool_versions(),
        "held_out": {rate: {key: entry[key] for key in ("n", "uf1", "uar")} for rate, entry in found.items()},
    }
    info = CheckpointInfo(
        schema=1,
        model=config,
        preprocess=data.preprocess,
        labels=list(data.label_names),
        provenance=provenance,
    )
    save_checkpoint(out, model, info)
    lines = [
        f"held out, {rate:>4} of the tokens: UF1 {entry['uf1']:.3f}  UAR {entry['uar']:.3f}  (n = {entry['n']})"
        for rate, entry in found.items()
    ]
    finish({"checkpoint": str(out), "held_out": provenance["held_out"]}, [*lines, str(out)], as_json)
