"""PTSR, its baseline and its references in the same folds, with paired intervals: the figures of ACCURACY.md.

    python benchmarks/accuracy.py --root DIR --faces DIR [--protocol zero-shot loso groups cross] [--seeds 3] [--jobs 2]
                                  [--out DIR]

Data are megc-flow, and those that weights are made of are ict-face; nothing that is derived from the former is written but
the run folder below --out, which stays with the user. `zero-shot` trains on faces of the model alone, of other people with
each seed, and judges all recorded clips. In the other protocols every model that learns begins with weights from those
faces or, where its name says `random start`, with seeded random ones. Controls of the selection are pre-trained with
their own selection.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from reference_learners import CnnLearner, MeansLearner, Ststnet, SvmLearner, fit_cnn

from ptsr_edge.core.config import ModelConfig, named_model
from ptsr_edge.core.console import progress
from ptsr_edge.data.datasets import HELD_OUT, FlowDataset, load, split_subjects
from ptsr_edge.data.morphable_face import CLIPS_PER_SUBJECT, SUBJECTS, read_morphable_face, render_people
from ptsr_edge.evaluate.cross_validation import (
    Answers,
    Learner,
    ModelLearner,
    cross_validate,
    deciding_versions,
)
from ptsr_edge.evaluate.evaluation import PROTOCOLS, folds
from ptsr_edge.evaluate.executor import Arrays, Task, run_tasks
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


def drawn_people(faces: Path, seed: int = 0) -> FlowDataset:
    """The clips that the package's own weights were trained on; with another seed as many of other people."""
    everything = load("ict-face", faces, image_size=NANO.image_size, crop="close")
    if seed:
        face = read_morphable_face(faces)
        flows, labels, units = render_people(
            face, range(SUBJECTS), CLIPS_PER_SUBJECT, NANO.image_size, "close", seed
        )
        everything = dataclasses.replace(everything, flows=flows, labels=labels, units=units)
    return everything.of_subjects(split_subjects(everything.subjects, HELD_OUT, seed=0)[0])


def zero_shot_learners() -> list[Learner]:
    """All that are trained on drawn faces alone."""
    recipe = PRETRAINING["nano"]
    chance = NANO.model_copy(update={"name": "ptsr-nano-random", "score": "random"})
    return [
        SvmLearner(),
        MeansLearner("means alone"),
        ModelLearner(named_model("vit-nano"), recipe, (1.0,)),
        ModelLearner(NANO, recipe, (1.0, *RATES)),
        ModelLearner(chance, recipe, RATES, label="ptsr-nano, random selection"),
    ]


@dataclass(frozen=True)
class Judging:
    """What every job of the zero-shot protocol shares."""

    learners: tuple[Learner, ...]
    training: dict[int, FlowDataset]
    judged: FlowDataset


def judge(shared: Judging, job: tuple[int, int]) -> Arrays:
    """Trains a learner, by its place, with a seed and returns its answers for the recorded clips."""
    place, seed = job
    return shared.learners[place].answer(shared.training[seed], shared.judged, seed)


def zero_shot(
    compared: Sequence[Learner], data: FlowDataset, faces: Path, seeds: Sequence[int], **how: Any
) -> list[Answers]:
    """Trains on drawn people, others with each seed, and judges recorded ones; `how` goes to `run_tasks`."""
    shared = Judging(tuple(compared), {seed: drawn_people(faces, seed) for seed in seeds}, data)
    jobs = [(place, seed) for place in range(len(compared)) for seed in seeds]
    digests = {seed: shared.training[seed].digest() for seed in seeds}
    tasks = [
        Task(
            f"{compared[place].name}-seed{seed}",
            {**compared[place].identity(), "training": digests[seed], "judged": data.digest(), "seed": seed},
            (place, seed),
        )
        for place, seed in jobs
    ]
    results = dict(
        zip(jobs, run_tasks(judge, tasks, shared=shared, versions=deciding_versions, **how), strict=True)
    )
    return [
        Answers(
            learner, data, tuple(seeds), np.stack([results[place, seed]["logits"] for seed in seeds]), None
        )
        for place, learner in enumerate(compared)
    ]


def is_kept(name: str, without: Sequence[str]) -> bool:
    """Tells whether a learner's name begins as none of `without`."""
    return not any(name.startswith(one) for one in without)


def learners(faces: Path, without: Sequence[str]) -> list[Learner]:
    """All that are compared in folds, but those that are left out, which are not pre-trained."""
    training = cache(lambda: drawn_people(faces))

    def started_means() -> Learner:
        started = first_weights(NANO, RECORDED["nano"], seed=0)
        return MeansLearner("means alone", started.means if isinstance(started, Ptsr) else None)

    makers: dict[str, Callable[[], Learner]] = {
        "svm": SvmLearner,
        "means alone": started_means,
        "cnn, random start": lambda: CnnLearner("cnn, random start", CNN_RECIPE),
        "cnn": lambda: CnnLearner(
            "cnn",
            RECORDED["nano"].model_copy(update={"start": "random"}),
            fit_cnn(training(), PRETRAINING["nano"], seed=0),
        ),
        "vit-nano": lambda: ModelLearner(named_model("vit-nano"), RECORDED["nano"], (1.0,)),
        NANO.name: lambda: ModelLearner(NANO, RECORDED["nano"], (1.0, *RATES)),
        "ptsr-nano, random start": lambda: ModelLearner(
            NANO, RANDOM_START, RATES, label="ptsr-nano, random start"
        ),
        "ptsr-nano, random selection": lambda: variant("random selection", training(), score="random"),
        "ptsr-nano, no means": lambda: variant("no means", training(), mean_readout=False),
        "ptsr-nano, no means, random selection": lambda: variant(
            "no means, random selection", training(), mean_readout=False, score="random"
        ),
    }
    return [make() for name, make in makers.items() if is_kept(name, without)]


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
    pairs = [(NANO.name, name) for name in by_name if name != NANO.name and NANO.name in by_name]
    plain = f"{NANO.name}, no means"
    pairs += [(plain, name) for name in by_name if name.startswith(f"{plain},") and plain in by_name]
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
    parser.add_argument(
        "--faces", type=Path, required=True, help="folder with ict_face.npz (ptsr-edge data facekit)"
    )
    parser.add_argument(
        "--protocol",
        nargs="+",
        choices=("zero-shot", *PROTOCOLS),
        default=["loso"],
        help="one after the other",
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--without", nargs="*", default=[], help="leave out learners whose names begin so")
    parser.add_argument("--out", type=Path, help="run folder: a killed run goes on from it")
    options = parser.parse_args()
    data = load("megc-flow", options.root, image_size=NANO.image_size)
    seeds = range(options.seeds)
    how: dict[str, Any] = {"jobs": options.jobs, "folder": options.out, "resume": options.out is not None}
    compared = [] if options.protocol == ["zero-shot"] else learners(options.faces, options.without)
    for protocol in options.protocol:
        if protocol == "zero-shot":
            trained = [one for one in zero_shot_learners() if is_kept(one.name, options.without)]
            bar = iter(progress(range(len(trained) * len(seeds)), protocol))
            found = zero_shot(
                trained,
                data,
                options.faces,
                seeds,
                on_done=lambda _, bar=bar: next(bar, None) and None,
                **how,
            )
        else:
            total = sum(len(folds(protocol, data.subjects, seed)) for seed in seeds) * len(compared)
            bar = iter(progress(range(total), protocol))
            found = cross_validate(
                compared, data, protocol, seeds, on_fold=lambda bar=bar: next(bar, None) and None, **how
            )
        print("\n".join([protocol, "", *table(found), "", *comparisons(found), ""]), flush=True)


if __name__ == "__main__":
    main()
