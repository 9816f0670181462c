"""UF1, UAR and confusion matrix: of a model under a protocol, of a checkpoint, or of a bundle's artifacts.

python -m ptsr_edge.evaluate --data synthetic --bundle out/ptsr-tiny-cpu
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from ptsr_edge.checkpoint import load_checkpoint
from ptsr_edge.config import MODELS, ModelConfig, named_model
from ptsr_edge.console import Verb, comma_separated, finish, progress, run, say
from ptsr_edge.data import DATA_NAMES, FlowData, load, reading_options
from ptsr_edge.errors import InputError, JobError
from ptsr_edge.fit import recipe_for
from ptsr_edge.flow import to_input
from ptsr_edge.inference import predict_logits
from ptsr_edge.manifest import Variant, check_files, read_bundle
from ptsr_edge.model import Model
from ptsr_edge.parity import THROUGH_ARTIFACT, THROUGH_GRAPH
from ptsr_edge.plan import parse_budget
from ptsr_edge.protocol import PROTOCOLS, figures, folds, run_protocol, unseen_subjects
from ptsr_edge.runtime import Session, why_not_here
from ptsr_edge.storage import write_json


def evaluate_session(session: Session, data: FlowData, label: str = "") -> NDArray[np.int64]:
    """The classes (n,) that an artifact gives for all samples, one at a time as a camera would."""
    answers = [
        session.predict(flow).logits.argmax() for flow in progress(data.flows, label or session.variant.id)
    ]
    return np.array(answers, dtype=np.int64)


def evaluate_graph(folder: Path, variant: Variant, data: FlowData) -> NDArray[np.int64]:
    """The classes (n,) that the typed graph beside an engine gives for all samples, computed on the CPU.

    It stands for an engine that cannot run here, and tells what its types cost, not what TensorRT makes of them.

    Raises:
        InputError: a file of the variant is missing or has changed.
        JobError: the variant has no typed graph, or gives an answer that is not finite.
    """
    from ptsr_edge.typed_runner import TypedGraphRunner

    check_files(folder, variant)
    graph = str(PurePosixPath(variant.artifact).with_suffix(".onnx"))
    if graph not in [entry.path for entry in variant.files]:
        raise JobError(f"{variant.id} cannot run here, and has no typed graph {graph} to stand for it")
    runner = TypedGraphRunner(folder / graph)
    answers = [runner.run(to_input(flow))[0] for flow in progress(data.flows, f"{variant.id}, typed graph")]
    if not np.isfinite(answers).all():
        raise JobError(f"the typed graph of {variant.id} gave an answer that is not finite")
    classes: np.ndarray = np.array(answers).argmax(axis=1)
    return classes


def judged_samples(data: FlowData, provenance: dict[str, Any], everyone: bool) -> tuple[FlowData, str]:
    """The samples to judge a trained model on, and how to name that choice.

    Raises:
        InputError: training has seen every subject of the data, and `everyone` is not set.
    """
    unseen = unseen_subjects(data, provenance)
    if len(unseen) == len(data.subject_names):
        return data, "all subjects, none seen in training"
    if everyone:
        return data, f"all subjects, {len(data.subject_names) - len(unseen)} of them SEEN in training"
    if not unseen:
        raise InputError(
            f"training has seen all {len(data.subject_names)} subjects of {data.source}: nothing honest "
            "can be said on them; `--subjects all` evaluates them anyway and says so"
        )
    return data.of_subjects(unseen), "held-out subjects"


def evaluate_bundle(
    folder: Path, data: FlowData, model: Model | None = None, threads: int | None = None
) -> list[dict[str, Any]]:
    """Figures of every variant of a bundle through its artifacts; `through` says so.

    An engine that cannot run here is judged through its typed graph, and that is said instead. With `model`,
    also how many of the eager model's classes each variant reproduces at its budget.
    """
    records = []
    eager: dict[int, NDArray[np.int64]] = {}
    for variant in read_bundle(folder).variants:
        by_graph = variant.target == "trt" and bool(why_not_here(variant, folder))
        if by_graph:
            answers = evaluate_graph(folder, variant, data)
        else:
            session = Session.open(
                folder, budget=variant.keep_rate, target=variant.target, precision=variant.precision,
                threads=threads,
            )  # fmt: skip
            answers = evaluate_session(session, data)
        through = THROUGH_GRAPH if by_graph else THROUGH_ARTIFACT
        record = {"id": variant.id, "keep_rate": variant.keep_rate, "through": through}
        record |= figures(data, answers)
        if model is not None:
            if variant.tokens not in eager:
                eager[variant.tokens] = predict_logits(model, data.flows, variant.tokens)[0].argmax(axis=1)
            record["agrees_with_eager"] = int((answers == eager[variant.tokens]).sum())
        records.append(record)
    return records


def evaluate_checkpoint(model: Model, data: FlowData, rates: Sequence[float]) -> list[dict[str, Any]]:
    """Figures of the eager model at each keep rate."""
    config = model.config
    return [
        {"id": f"{config.name}-eager-k{config.tokens_at(rate)}", "keep_rate": rate}
        | figures(data, predict_logits(model, data.flows, config.tokens_at(rate))[0].argmax(axis=1))
        for rate in rates
    ]


def evaluate_protocol(
    config: ModelConfig, data: FlowData, protocol: str, seeds: int, rates: Sequence[float], epochs: int | None
) -> list[dict[str, Any]]:
    """Figures of a model that is trained afresh in each fold, for each seed and keep rate."""
    recipe = recipe_for(config)
    if epochs is not None:
        recipe = recipe.model_copy(update={"epochs": epochs})
    records = []
    for seed in range(seeds):
        bar = iter(progress(folds(protocol, data.subjects, seed), f"{protocol}, seed {seed}"))
        next(bar, None)
        judged, predicted = run_protocol(
            config, data, protocol, recipe, seed, rates, on_fold=lambda bar=bar: next(bar, None)  # type: ignore[misc]
        )  # fmt: skip
        records += [
            {"id": f"{config.name}-seed{seed}-k{config.tokens_at(rate)}", "keep_rate": rate, "seed": seed}
            | figures(judged, classes)
            for rate, classes in predicted.items()
        ]
    return records


def _evaluate_trained(
    bundle: Path | None, checkpoint: Path | None, data_name: str, root: Path | None, subjects: str,
    budgets: list[float] | None, threads: int | None, skip_bad: bool | None, face_model: Path | None,
) -> tuple[list[dict[str, Any]], str]:  # fmt: skip
    """Judges a bundle, a checkpoint, or a bundle beside its checkpoint; the records and whom they are of."""
    loaded = load_checkpoint(checkpoint) if checkpoint is not None else None
    manifest = read_bundle(bundle) if bundle is not None else None
    source = manifest or (loaded[1] if loaded else None)
    assert source is not None
    config = source.model
    if loaded is not None and loaded[1].model != config:
        raise InputError(f"{bundle} holds {config.name}, {checkpoint} is {loaded[1].model.name}")
    everything = load(data_name, root, image_size=config.image_size, skip_bad=skip_bad, face_model=face_model)
    data, chosen = judged_samples(everything, source.provenance, subjects == "all")
    if bundle is not None:
        return evaluate_bundle(bundle, data, loaded[0] if loaded else None, threads), chosen
    assert loaded is not None
    return evaluate_checkpoint(loaded[0], data, budgets or default_rates(config)), chosen


def default_rates(config: ModelConfig) -> list[float]:
    """The keep rates that are judged where none are named."""
    return [1.0, 0.5, 0.25] if config.kind == "ptsr" else [1.0]


def lines_of(records: Sequence[dict[str, Any]]) -> list[str]:
    """A line a record."""
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


@click.command(
    cls=Verb, epilog="Example: python -m ptsr_edge.evaluate --data synthetic --bundle out/ptsr-tiny-cpu"
)
@click.option(
    "--data", "data_name", default="synthetic", show_default=True, help=f"One of {', '.join(DATA_NAMES)}."
)
@click.option("--root", type=click.Path(path_type=Path), help="Folder of the data; synthetic needs none.")
@reading_options
@click.option("--bundle", type=click.Path(path_type=Path), help="Judge the artifacts of a bundle.")
@click.option("--checkpoint", type=click.Path(path_type=Path),
              help="Judge the eager model; with --bundle: compare the artifacts with it.")  # fmt: skip
@click.option("--model", "model_name", help=f"Train afresh in each fold: one of {', '.join(MODELS)}.")
@click.option("--protocol", help=f"With --model: one of {', '.join(PROTOCOLS)}.")
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--epochs", type=click.IntRange(min=1), help="With --model: instead of the recipe's number.")
@click.option("--budgets", callback=comma_separated(parse_budget, "--budgets"), help="Keep rates in (0, 1].")
@click.option("--subjects", type=click.Choice(["unseen", "all"]), default="unseen", show_default=True,
              help="Whom to judge a trained model on.")  # fmt: skip
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of an artifact.")
@click.option("--out", type=click.Path(path_type=Path), help="Also write the record to this JSON file.")
@click.option("--json", "as_json", is_flag=True, help="Print the record.")
def main(
    data_name: str, root: Path | None, bundle: Path | None, checkpoint: Path | None, model_name: str | None,
    protocol: str | None, seeds: int, epochs: int | None, budgets: list[float] | None, subjects: str,
    threads: int | None, out: Path | None, as_json: bool, skip_bad: bool | None, face_model: Path | None,
) -> None:  # fmt: skip
    """Judge a bundle's artifacts, a checkpoint, or a model trained afresh in each fold."""
    if (bundle or checkpoint or model_name) is None:
        raise InputError("nothing to evaluate: give --bundle DIR, --checkpoint FILE or --model NAME")
    if model_name is not None:
        if bundle or checkpoint:
            raise InputError(
                "--model trains afresh in each fold; it does not go with --bundle or --checkpoint"
            )
        config = named_model(model_name)
        data = load(data_name, root, image_size=config.image_size, skip_bad=skip_bad, face_model=face_model)
        chosen = protocol or "loso"
        records = evaluate_protocol(config, data, chosen, seeds, budgets or default_rates(config), epochs)
    else:
        if protocol is not None:
            raise InputError("--protocol trains afresh in each fold: it goes with --model")
        records, chosen = _evaluate_trained(
            bundle, checkpoint, data_name, root, subjects, budgets, threads, skip_bad, face_model
        )
    say(f"{data_name}: {chosen}")
    record = {"data": data_name, "protocol": chosen, "results": records}
    lines = lines_of(records)
    if out is not None:
        write_json(out, record)
        lines.append(str(out))
    finish(record, lines, as_json)


if __name__ == "__main__":
    run(main, "python -m ptsr_edge.evaluate")
