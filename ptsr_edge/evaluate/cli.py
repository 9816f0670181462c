"""UF1, UAR and confusion matrix: of a model under a protocol, of a checkpoint, or of a bundle's artifacts.

python -m ptsr_edge.evaluate --data synthetic --bundle out/ptsr-tiny-cpu
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ptsr_edge.core.config import DEVICES, MODELS, parse_keep_rate
from ptsr_edge.core.console import THREADS, Verb, comma_separated, doing, finish, if_interrupted, say
from ptsr_edge.core.errors import InputError, require
from ptsr_edge.core.files import check_file, require_file, write_json
from ptsr_edge.data.cli import DataOption, reading_options
from ptsr_edge.data.datasets import as_for, load
from ptsr_edge.evaluate.evaluation import (
    GROUPS,
    PROTOCOLS,
    THROUGH,
    check_classes,
    default_rates,
    evaluate_bundle,
    evaluate_checkpoint,
    judged_samples,
    lines_of_ceiling,
    unit_ceiling,
    variants_at,
)
from ptsr_edge.evaluate.executor import ENGINES
from ptsr_edge.export.targets.base import THROUGH_GRAPH
from ptsr_edge.sign import read_verified


def lines_of(records: Sequence[dict[str, Any]]) -> list[str]:
    """Returns a line per record."""
    lines = []
    for record in records:
        agreement = record.get("agrees_with_eager")
        tail = f"  same class as eager on {agreement} of {record['n']}" if agreement is not None else ""
        if record.get("through") == THROUGH_GRAPH:
            tail += f"  [{THROUGH_GRAPH}: no engine ran]"
        lines.append(
            f"{record['id']:28} {record['keep_rate']:6.1%}  "
            f"UF1 {record['uf1']:.3f}  UAR {record['uar']:.3f}  "
            f"(n = {record['n']}, {record['subjects']} subjects){tail}"
        )
    return lines


TRAINS_AFRESH = ("model_name", "against", "protocol", "groups", "seeds", "epochs", "oracle", "through", "device",
                 "jobs", "engine", "scheduler", "run_folder", "resume")  # fmt: skip
"""Options of a model that is trained afresh in each fold."""

OF_TRAINED = {"subjects": "--bundle or --checkpoint", "threads": "--bundle"}
"""Options of what was trained before, with what they go."""


def _refuse_options(names: Iterable[str], reason: str) -> None:
    """Refuses options that were given and would be ignored."""
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise InputError(f"--{name.replace('_', '-')} {reason}")


@click.command(
    cls=Verb, epilog="Example: python -m ptsr_edge.evaluate --data synthetic --bundle out/ptsr-tiny-cpu"
)
@click.option("--data", "data_name", cls=DataOption, default="synthetic", show_default=True)
@click.option("--root", type=click.Path(path_type=Path), help="Folder of the data; synthetic needs none.")
@reading_options
@click.option("--bundle", type=click.Path(path_type=Path), help="Judge the artifacts of a bundle.")
@click.option("--checkpoint", type=click.Path(path_type=Path),
              help="Judge the eager model; with --bundle: compare the artifacts with it.")  # fmt: skip
@click.option(
    "--budgets",
    callback=comma_separated(parse_keep_rate, "--budgets"),
    help="Keep rates in (0, 1]; of a bundle only these.",
)
@click.option("--subjects", type=click.Choice(["unseen", "all"]), default="unseen", show_default=True,
              help="Whom to judge a trained model on.")  # fmt: skip
@click.option("--threads", type=THREADS, help="CPU threads of an artifact.")
@click.option("--model", "model_name", multiple=True,
              help=f"Train afresh in each fold; may be repeated: {', '.join(MODELS)}.")  # fmt: skip
@click.option("--against", multiple=True, metavar="MODEL[@RATE]",
              help="With --model: the paired difference from it, in the same folds; may be repeated.")  # fmt: skip
@click.option("--protocol", help=f"With --model: one of {', '.join(PROTOCOLS)}; by default loso.")
@click.option("--groups", type=click.IntRange(min=2), default=GROUPS, show_default=True,
              help="Subject-disjoint groups of the protocol groups.")  # fmt: skip
@click.option("--seeds", type=click.IntRange(1, 1000), default=1, show_default=True, help="How many.")
@click.option("--epochs", type=click.IntRange(min=1), help="With --model: instead of the recipe's number.")
@click.option("--oracle", is_flag=True,
              help="Also the LEAKY score: the best epoch for each held-out subject, by its own labels.")  # fmt: skip
@click.option("--through", type=click.Choice(THROUGH), default="torch", show_default=True,
              help="Who answers in a fold: the model in torch, or its artifact of target cpu.")  # fmt: skip
@click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True,
              help="Where to train; auto: on the GPU where torch sees one.")  # fmt: skip
@click.option("--jobs", type=THREADS, default=1, show_default=True,
              help="Folds at a time, each in a process of its own.")  # fmt: skip
@click.option("--engine", type=click.Choice(ENGINES), default="joblib", show_default=True,
              help="This machine, or a Dask cluster.")  # fmt: skip
@click.option("--scheduler", metavar="ADDRESS", help="Of the Dask cluster: tcp://HOST:PORT.")
@click.option(
    "--run-folder", type=click.Path(path_type=Path), help="Keep each fold's answers in a file here."
)
@click.option("--resume", is_flag=True, help="Take the folds that --run-folder has, and do the others.")
@click.option("--out", type=click.Path(path_type=Path), help="Also write the record to this JSON file.")
@click.option("--json", "as_json", is_flag=True, help="Print the record.")
def main(
    data_name: str, root: Path | None, bundle: Path | None, checkpoint: Path | None,
    budgets: list[float] | None, subjects: str, threads: int | None, out: Path | None, as_json: bool,
    skip_bad: bool | None, face_model: Path | None, **folds: Any,
) -> None:  # fmt: skip
    """Judge a bundle's artifacts, a checkpoint, or a model trained afresh in each fold."""
    if not (bundle or checkpoint or folds["model_name"]):
        raise InputError("nothing to evaluate: give --bundle DIR, --checkpoint FILE or --model NAME")
    if out is not None:
        check_file(out)
    reading: dict[str, Any] = {"skip_bad": skip_bad, "face_model": face_model}
    if folds["model_name"]:
        if bundle or checkpoint:
            raise InputError(
                "--model trains afresh in each fold; it does not go with --bundle or --checkpoint"
            )
        for name, others in OF_TRAINED.items():
            _refuse_options([name], f"is about what was trained before: it goes with {others}")
        folder = folds["run_folder"]

        def advice() -> str:
            if folder is None:
                return "no fold was kept (--run-folder keeps them); the same command starts anew"
            return f"{folder} holds the folds that are done; the same command with --resume goes on"

        with if_interrupted(advice):
            record, lines = _train_and_judge(folds, budgets, data_name, root, reading)
    else:
        _refuse_options(TRAINS_AFRESH, "is about training afresh in each fold: it goes with --model")
        if bundle is None:
            _refuse_options(["threads"], "is of an artifact: it goes with --bundle")
        else:
            variants_at(read_verified(bundle), budgets)
        model = info = None
        if checkpoint is not None:
            require_file(checkpoint, "checkpoint")
            with doing("loading torch"):
                require("torch", "train", "judging a checkpoint")
            from ptsr_edge.models.checkpoint import load_checkpoint

            model, info = load_checkpoint(checkpoint)
        source = read_verified(bundle) if bundle is not None else info
        assert source is not None
        if info is not None and info.model != source.model:
            raise InputError(f"{bundle} holds {source.model.name}, {checkpoint} is {info.model.name}")
        everything = load(data_name, root, **as_for(source.preprocess), **reading)
        check_classes(everything, source.model.name, source.labels)
        data, chosen = judged_samples(everything, source.provenance, subjects == "all")
        if bundle is not None:
            records = evaluate_bundle(bundle, data, model, threads, budgets)
        else:
            assert model is not None
            records = evaluate_checkpoint(model, data, budgets or default_rates(source.model))
        ceiling = unit_ceiling(data)
        record = {"data": data_name, "protocol": chosen, "results": records, "ceiling": ceiling}
        lines = lines_of(records) + lines_of_ceiling(ceiling)
    say(f"{data_name}: {record['protocol']}")
    if out is not None:
        write_json(out, record)
        lines.append(str(out))
    finish(record, lines, as_json)


def _train_and_judge(
    options: dict[str, Any],
    budgets: list[float] | None,
    data_name: str,
    root: Path | None,
    reading: dict[str, Any],
) -> tuple[dict[str, Any], list[str]]:
    """The record of `evaluate --model`, and its lines."""
    require("torch", "train", "training in each fold")
    from ptsr_edge.evaluate.folds import FoldCall, evaluate_folds, lines_of_folds

    named = ("against", "groups", "seeds", "epochs", "oracle", "through", "device")
    how = {key: options[key] for key in ("engine", "jobs", "scheduler", "resume")}
    call = FoldCall(
        models=options["model_name"],
        protocol=options["protocol"] or "loso",
        budgets=budgets,
        how=how | {"folder": options["run_folder"]},
        **{key: options[key] for key in named},
    )
    record = evaluate_folds(call, data_name, root, **reading)
    return record, lines_of_folds(record)
