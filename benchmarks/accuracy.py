"""PTSR, its baseline and its references in the same folds, with paired intervals: the figures of ACCURACY.md.

    python benchmarks/accuracy.py --root DIR [--protocol loso|groups|cross] [--seeds 3] [--jobs 2] [--out DIR]

Data are megc-flow; nothing that is derived from them is written but the run folder below --out, which stays with the
user. Every model that learns begins with weights from the same closely cropped synthetic faces or, where its name says
`random start`, with seeded random ones. Controls of the selection are pre-trained with their own selection.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reference_learners import CnnLearner, MeansLearner, Ststnet, SvmLearner, fit_cnn

from ptsr_edge.core.config import ModelConfig, named_model
from ptsr_edge.core.console import progress
from ptsr_edge.data.datasets import HELD_OUT, FlowDataset, load, load_closely_cropped, split_subjects
from ptsr_edge.evaluate.cross_validation import Answers, Learner, ModelLearner, cross_validate
from ptsr_edge.evaluate.evaluation import PROTOCOLS, folds
from ptsr_edge.evaluate.folds import paired_records, summaries
from ptsr_edge.models.macs import exported_macs
from ptsr_edge.models.ptsr import Ptsr
from ptsr_edge.train.trainer import PRETRAINING, RECORDED, TRAIN_CONFIGS, TrainConfig, first_weights, fit

RATES = (0.5, 0.25, 0.12)
CNN_RECIPE = TrainConfig(epochs=50, batch_size=48, lr=3e-3, ema=0.98)
"""Of the CNN that starts from random weights: 300 steps, as the others."""

NANO = named_model("ptsr-nano")
RANDOM_START = RECORDED["nano"].model_copy(update={"start": "random", "lr": TRAIN_CONFIGS["nano"].lr})


def variant(label: str, training: FlowDataset, **changes: Any) -> ModelLearner:
    """PTSR with something else in it, pre-trained and trained with that."""
    config = NANO.model_copy(update={"name": "ptsr-nano-variant"} | changes)
    start = fit(config, training, PRETRAINING["nano"], seed=0)
    recipe = RECORDED["nano"].model_copy(update={"start": "random"})
    return ModelLearner(config, recipe, RATES, initial=start, label=f"ptsr-nano, {label}")


def learners(without: Sequence[str]) -> list[Learner]:
    """All that are compared; `without` leaves out those whose names begin so."""
    everything = load_closely_cropped("synthetic", image_size=NANO.image_size)
    training = everything.of_subjects(split_subjects(everything.subjects, HELD_OUT, seed=0)[0])
    cnn_start: Ststnet = fit_cnn(training, PRETRAINING["nano"], seed=0)
    started = first_weights(NANO, RECORDED["nano"], seed=0)
    found: list[Learner] = [
        SvmLearner(),
        MeansLearner("means alone", started.means if isinstance(started, Ptsr) else None),
        CnnLearner("cnn, random start", CNN_RECIPE),
        CnnLearner("cnn", RECORDED["nano"].model_copy(update={"start": "random"}), cnn_start),
        ModelLearner(named_model("vit-nano"), RECORDED["nano"], (1.0,)),
        ModelLearner(NANO, RECORDED["nano"], (1.0, *RATES)),
        ModelLearner(NANO, RANDOM_START, RATES, label="ptsr-nano, random start"),
        variant("random selection", training, score="random"),
        variant("no means", training, mean_readout=False),
        variant("no means, random selection", training, mean_readout=False, score="random"),
    ]
    return [one for one in found if not any(one.name.startswith(name) for name in without)]


def macs_of(learner: Learner, rate: float) -> int | None:
    """Multiply-adds of one inference; None for the SVM, whose number depends on its support vectors."""
    if isinstance(learner, CnnLearner):
        return Ststnet.macs()
    if isinstance(learner, MeansLearner):
        return NANO.channels * NANO.patches * NANO.classes
    if isinstance(learner, ModelLearner):
        config: ModelConfig = learner.config
        return sum(exported_macs(config, config.tokens_at(rate)).values())
    return None


def table(found: Sequence[Answers]) -> list[str]:
    """A line a learner and keep rate, Markdown."""
    lines = ["| model | tokens | MMACs | UF1 | UAR | by set, UF1 |", "|---|---:|---:|---:|---:|---|"]
    for answers in found:
        for record in summaries(answers):
            macs = macs_of(answers.learner, record["keep_rate"])
            sets = ", ".join(
                f"{name} {show(of_set['uf1'])}" for name, of_set in (record["sets"] or {}).items()
            )
            tokens = (
                ""
                if macs is None or isinstance(answers.learner, CnnLearner | MeansLearner)
                else f"{record['keep_rate']:.0%}"
            )
            counted = "" if macs is None else f"{macs / 1e6:.{3 if macs >= 1e4 else 6}f}"
            lines.append(
                f"| {answers.learner.name} | {tokens} | {counted} | {show(record['uf1'])} | {show(record['uar'])} | {sets} |"
            )
    return lines


def show(value: dict[str, float | None]) -> str:
    spread = "" if value["spread"] is None else f" +- {value['spread']:.3f}"
    return f"{value['mean']:.3f}{spread}"


def comparisons(found: Sequence[Answers]) -> list[str]:
    """PTSR against each of the others, and its selection without the means, UF1, with intervals over subjects."""
    by_name = {answers.learner.name: answers for answers in found}
    pairs = [(NANO.name, name) for name in by_name if name != NANO.name]
    plain = f"{NANO.name}, no means"
    pairs += [(plain, name) for name in by_name if name.startswith(f"{plain},")]
    return [line for pair in pairs for line in _comparison(*(by_name[name] for name in pair))]


def _comparison(ours: Answers, other: Answers) -> list[str]:
    lines = []
    for rate in ours.learner.keep_rates:
        theirs = rate if rate in other.learner.keep_rates else other.learner.keep_rates[0]
        if len(other.learner.keep_rates) == 1 or rate == theirs:
            record = paired_records((ours, rate), (other, theirs))[0]
            lines.append(
                f"{ours.learner.name} at {rate:.0%} against {other.learner.name}"
                + (f" at {theirs:.0%}" if len(other.learner.keep_rates) > 1 else "")
                + f": UF1 {record['difference']:+.3f} [{record['low']:+.3f}, {record['high']:+.3f}]"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="folder of megc-flow")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="loso")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--without", nargs="*", default=[], help="leave out learners whose names begin so")
    parser.add_argument("--out", type=Path, help="run folder: a killed run goes on from it")
    options = parser.parse_args()
    data = load("megc-flow", options.root, image_size=NANO.image_size)
    compared = learners(options.without)
    seeds = range(options.seeds)
    total = sum(len(folds(options.protocol, data.subjects, seed)) for seed in seeds) * len(compared)
    bar = iter(progress(range(total), options.protocol))
    found = cross_validate(
        compared, data, options.protocol, seeds, jobs=options.jobs, on_fold=lambda: next(bar, None) and None,
        folder=options.out, resume=options.out is not None,
    )  # fmt: skip
    print("\n".join([*table(found), "", *comparisons(found)]))


if __name__ == "__main__":
    main()
