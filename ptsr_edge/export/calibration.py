"""What an export takes from data and machine: calibration samples, budgets, the margins of cascades, the recommended variant.

Samples are stratified, seeded, from the training side, and never from those that accuracy is reported on.

A cascade answers as the small budget does where that leads by a margin, else as the full budget. Its drop of UAR
against the full budget is bounded by `classification.upper_bound`, which assumes no distribution. Margins are tested in an
order that is fixed beforehand, from the safest one (the full budget is always asked: no loss) down, and the last one
before the first whose bound exceeds the limit is taken. Such fixed-sequence testing needs no correction for the number
of margins: that any margin is accepted whose expected drop exceeds the limit has a probability of at most
1 - confidence. Source: Angelopoulos et al., Learn then Test: calibrating predictive algorithms to achieve risk control,
2021 (arXiv 2110.01052), section on fixed-sequence testing.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto

from ptsr_edge.bundle import Cascade, RecommendedVariant, Variant
from ptsr_edge.core.config import Record
from ptsr_edge.core.console import progress, say
from ptsr_edge.core.errors import InputError
from ptsr_edge.core.system import describe_cpu
from ptsr_edge.data.datasets import (
    HELD_OUT,
    FlowDataset,
    as_for,
    find_dataset,
    known_dataset,
    load,
    split_subjects,
)
from ptsr_edge.export.config import OpenVinoOptions
from ptsr_edge.export.onnx_graph import trace_blocks
from ptsr_edge.export.targets.openvino import quantize
from ptsr_edge.export.targets.quantization import products_kept_float, quantize_static_qdq
from ptsr_edge.models.checkpoint import CheckpointInfo
from ptsr_edge.models.ptsr import Model, Ptsr, dynamic_counts
from ptsr_edge.runtimes.onnxruntime import open_session
from ptsr_edge.runtimes.openvino import compile_model, load_openvino
from ptsr_edge.session import default_variant, open_artifact, preferred_targets, why_not_here
from ptsr_edge.stats.classification import CONFIDENCE, Bound, confusion, paired, uar, upper_bound
from ptsr_edge.stats.latency import student_quantile
from ptsr_edge.vision.flow import to_input

log = logging.getLogger("ptsr_edge")

MOST_SUBJECTS = 48
"""Rendered people to calibrate on, at most."""

MASS = 0.9
"""Share of a sample's score that its tokens hold in DTSM's dynamic mode."""

QUANTILES = (0.5, 0.9, 0.99)
"""Of the dynamic counts: the static budgets."""


class CalibrationRecord(Record):
    """What a bundle was calibrated and proven on.

    Attributes:
        data: name of the data set.
        samples: how many there are.
        asked: how many were asked for.
        seed: of the draw.
        sha256: of flows, labels and subjects.
        subjects: whose clips they are; none of them is among those that accuracy is reported on.
        classes: samples of each class.
    """

    data: str
    samples: int
    asked: int
    seed: int
    sha256: str
    subjects: list[str]
    classes: dict[str, int]


def calibration_side(
    info: CheckpointInfo, root: Path | None, name: str | None, count: int, seed: int = 0
) -> FlowDataset:
    """Returns clips that may be calibrated on, at least twice as many as `count` where there are so many.

    Of the data that a model was trained on: clips of subjects it was trained on. Of other data: the
    training side of their `holdout` split. Of many subjects, a seeded draw.

    Args:
        info: of the model.
        root: folder of the data; rendered data need none.
        name: of the data; by default what the model was trained on where that needs no folder or one is
            given, else `synthetic`.
        count: samples that will be drawn.
        seed: of the draw of subjects.

    Raises:
        InputError: unknown data, or a folder that does not hold them.
    """
    trained_on = info.provenance.get("data")
    if name is None:
        known = known_dataset(str(trained_on))
        usable = known is not None and (known.is_rendered or root is not None)
        name = str(trained_on) if usable else "synthetic"
    how = as_for(info.preprocess)
    trained: Sequence[str] = info.provenance.get("train_subjects", []) if name == trained_on else []
    rendered = find_dataset(name).rendered_subjects
    if rendered is None:
        data = load(name, root, **how)
        # None of them is there where another folder of the same kind is calibrated on.
        seen = [subject for subject in trained if subject in set(data.subject_names)]
        return data.of_subjects(seen or split_subjects(data.subjects, HELD_OUT, seed=0)[0])
    allowed = trained or split_subjects(rendered(), HELD_OUT, seed=0)[0]
    wanted = min(MOST_SUBJECTS, max(8, count // 2))
    if len(allowed) > wanted:
        drawn = np.random.default_rng(seed).choice(len(allowed), wanted, replace=False)
        allowed = [allowed[place] for place in sorted(drawn)]
    limit = max(6, -(-2 * count // len(allowed)))
    return load(name, root, subjects=allowed, limit=limit, **how)


def describe_calibration(record: CalibrationRecord, provenance: Mapping[str, Any], proven: int) -> str:
    """Returns one line on what an export is calibrated and proven on."""
    trained_on, seen = provenance.get("data"), set(provenance.get("train_subjects", []))
    line = (
        f"calibrating on {record.samples} samples of data {record.data} and proving on {proven} of them "
        f"({len(record.subjects)} people, {len(seen & set(record.subjects))} of them seen in training)"
    )
    if trained_on is not None and trained_on != record.data:
        line += f"; the model was trained on {trained_on}: --calibration DIR names its folder"
    return line


def draw(data: FlowDataset, count: int, seed: int = 0) -> tuple[FlowDataset, CalibrationRecord]:
    """Draws samples that are spread over classes and, within a class, over subjects.

    Classes take turns, and within a class subjects do, in an order that the seed draws; so counts differ
    by one at most as long as there are clips.

    Raises:
        InputError: fewer than one sample asked for.
    """
    if count < 1:
        raise InputError(f"calibration needs at least 1 sample, got {count}")
    order = _spread(data, np.random.default_rng(seed))[:count]
    if len(order) < count:
        log.warning("calibration: %d samples asked for, %s has %d", count, data.source, len(order))
    chosen = data.subset(np.sort(order))
    counts = np.bincount(chosen.labels, minlength=len(data.label_names))
    return chosen, CalibrationRecord(
        data=data.source,
        samples=len(chosen),
        asked=count,
        seed=seed,
        sha256=chosen.digest(),
        subjects=chosen.subject_names,
        classes={label: int(number) for label, number in zip(data.label_names, counts, strict=True)},
    )


def _spread(data: FlowDataset, rng: np.random.Generator) -> NDArray[np.intp]:
    """Returns all places in the order in which they are drawn."""
    shuffled = rng.permutation(len(data))
    turns: dict[tuple[int, str], int] = {}
    keys: list[tuple[int, int, int]] = []
    for place in shuffled:
        group = (int(data.labels[place]), str(data.subjects[place]))
        turns[group] = turns.get(group, 0) + 1
        keys.append((turns[group], len(keys), int(data.labels[place])))
    by_class: dict[int, list[int]] = {}
    for (_, _, label), place in sorted(zip(keys, shuffled.tolist(), strict=True)):
        by_class.setdefault(label, []).append(place)
    ranked = [(rank, label, place) for label, places in by_class.items() for rank, place in enumerate(places)]
    return np.array([place for _, _, place in sorted(ranked)], dtype=np.intp)


def budgets_from_data(model: Model, inputs: NDArray[np.float32], mass: float = MASS) -> dict[str, Any]:
    """Chooses static budgets by DTSM's dynamic mode: quantiles of its counts over calibration samples.

    Args:
        model: PTSR; a baseline keeps all tokens and has nothing to choose.
        inputs: (n, C, S, S) float32, normalised.
        mass: share of the score that each sample's tokens must hold.

    Returns:
        `mass`, `quantiles` (the budgets, in tokens, by quantile), `counts` (count: how many samples).

    Raises:
        InputError: the model is a baseline.
    """
    if not isinstance(model, Ptsr):
        raise InputError(f"{model.config.name} keeps all tokens: `--budgets auto` needs a PTSR")
    with torch.no_grad():
        parts = [
            dynamic_counts(model.scores(torch.from_numpy(part)), mass)
            for part in np.array_split(inputs, max(1, len(inputs) // 32))
        ]
    counts = torch.cat(parts).numpy()
    tokens = np.quantile(counts, QUANTILES, method="higher").astype(int)
    values, numbers = np.unique(counts, return_counts=True)
    return {
        "mass": mass,
        "quantiles": {f"{q:g}": int(t) for q, t in zip(QUANTILES, tokens, strict=True)},
        "counts": {str(int(v)): int(n) for v, n in zip(values, numbers, strict=True)},
    }


MARGINS: tuple[float, ...] = tuple(round(1 - step / 40, 3) for step in range(41))
"""Tested in this order. At 1 the full budget is always asked, at 0 never."""

SYNTHETIC_SEED = 1
"""Of the synthetic people that cascades are calibrated on: models are trained, calibrated and judged on those of 0."""

SYNTHETIC_CLIPS = 6
"""Of each of them."""


STEP = 1.02
"""How many times as much one token more has to cost, beyond what the tokens around cost, to be called a step."""

NEAR = 0.9
"""A budget goes down to a step that keeps at least this share of its tokens."""

FIRST = 8
"""Tokens that the staircase begins with."""

LAST = 0.6
"""Share of all tokens that it ends at: who keeps more does not drop tokens for speed."""

_AROUND = 8
_OPENINGS, _ROUNDS, _RUNS = 8, 2, 5


class Step(Record):
    """A jump of the latency between `tokens`, the last count before it, and one token more.

    `factor` is how many times as much the one token costs beyond the tokens around; `low` holds for all counts at once.
    """

    tokens: int
    factor: float
    low: float


class Staircase(Record):
    """Latency over tokens as it was measured: `cost` at each of `tokens`, as a share of that at the last of them."""

    target: str
    precision: str
    threads: int
    cpu: str
    tokens: list[int]
    cost: list[float]
    steps: list[Step]


def find_steps(tokens: Sequence[int], openings: NDArray[np.float64]) -> list[Step]:
    """Returns where latency jumps.

    Between two counts the ratio of their costs is taken opening by opening, over the median of such ratios in the neighbourhood,
    which is the slope. A step is at least `STEP`, as the median over openings, half of which is still there over three counts on
    either side; and its mean is above 1 by Student's t at a level of 5 % over all counts (Bonferroni), so that a machine without
    steps rarely shows one. A compiled graph that is opened anew differs from its twin by up to 1 %, which no number of runs of
    one opening would show.

    Args:
        tokens: n counts, each one more than the last.
        openings: (r, n) costs, each row of graphs that were opened anew.
    """
    rises = np.log(openings[:, 1:] / openings[:, :-1])
    level = np.median(rises, axis=0)
    slope = [np.median(level[max(0, place - _AROUND) : place + _AROUND + 1]) for place in range(len(level))]
    jumps = rises - np.array(slope)
    middle = np.median(jumps, axis=0)
    error = jumps.std(axis=0, ddof=1) / np.sqrt(len(jumps))
    low = jumps.mean(axis=0) - student_quantile(len(jumps) - 1, 1 - 0.05 / len(level)) * error
    flat = np.concatenate([[0.0], np.cumsum(middle)])  # at each count, without the slope
    steps = []
    for place in np.flatnonzero((middle >= np.log(STEP)) & (low > 0)).tolist():
        held = np.median(flat[place + 1 : place + 4]) - np.median(flat[max(0, place - 2) : place + 1])
        if held >= np.log(STEP) / 2:
            factor, least = np.exp([middle[place], low[place]]).round(4).tolist()
            steps.append(Step(tokens=tokens[place], factor=factor, low=least))
    return steps


def on_steps(counts: Sequence[int], staircase: Staircase) -> list[int]:
    """Returns token counts moved to where they waste nothing.

    One goes up to the most tokens that cost less than `STEP` times as much, if there are such; else down to the last count
    before a step, if that keeps `NEAR` of its tokens. What is above the counts that were measured stays.
    """
    cost = dict(zip(staircase.tokens, staircase.cost, strict=True))
    before = [step.tokens for step in staircase.steps]
    moved = []
    for count in counts:
        free = [n for n in before if n >= count and cost[n] < STEP * cost.get(count, 0)]
        lower = [n for n in before if NEAR * count <= n <= count]
        moved.append(max(free, default=max(lower, default=count)))
    return moved


def measure_staircase(model: Model, target: str, precision: str, threads: int = 1) -> Staircase:
    """Measures what two transformer blocks of a model cost over the number of kept tokens, in a target and precision.

    The blocks are one graph, opened anew several times. What is around the blocks in an artifact adds a constant.
    By CPU time on one thread, which neighbours hardly lengthen, else by the wall's clock.

    Raises:
        InputError: a target or precision for which nobody here knows how; such as an engine for a GPU.
        MissingExtraError: the runtime is not installed.
        JobError: torch or the runtime refuses the block.
    """
    ways = {"cpu": _rows_by_onnx_runtime, "openvino": _rows_by_openvino}
    if target not in ways or precision not in ("fp32", "int8"):
        raise InputError(
            f"steps of latency are measured for fp32 and int8 of target {' and '.join(ways)}, not for {precision} of {target}"
        )
    config = model.config
    tokens = list(range(min(FIRST, config.patches // 2), math.ceil(LAST * config.patches) + 1))
    rng = np.random.default_rng(0)
    calibration = rng.normal(size=(8, 1, config.patches // 4 + 1, config.dim)).astype(np.float32)
    graph = trace_blocks([*model.blocks][:2], calibration)
    inputs = {count: rng.normal(size=(1, 1, count + 1, config.dim)).astype(np.float32) for count in tokens}
    clock = time.process_time_ns if threads == 1 else time.perf_counter_ns
    rows = []
    make = ways[target](graph, precision, calibration, threads)
    for _ in progress(range(_OPENINGS), f"measuring the steps of latency ({target} {precision})"):
        runs = make(inputs)
        rows.append(np.median([_one_round(runs, clock, rng) for _ in range(_ROUNDS)], axis=0))
    openings = np.array(rows)
    cost = np.median(openings, axis=0)
    return Staircase(
        target=target,
        precision=precision,
        threads=threads,
        cpu=str(describe_cpu()["model"]),
        tokens=tokens,
        cost=[round(float(share), 4) for share in cost / cost[-1]],
        steps=find_steps(tokens, openings),
    )


def describe_staircase(staircase: Staircase) -> str:
    """Returns one line on where latency jumps."""
    where = f"{staircase.target} {staircase.precision} on {staircase.cpu}"
    if not staircase.steps:
        return f"latency has no step of {STEP - 1:.0%} on {where}: no budget is moved"
    told = ", ".join(f"{step.tokens} (+{step.factor - 1:.0%})" for step in staircase.steps)
    return f"latency steps up after {told} tokens on {where}"


Run = Callable[[], object]


def _one_round(runs: Sequence[Run], clock: Callable[[], int], rng: np.random.Generator) -> list[float]:
    """Median nanoseconds of each, in an order drawn anew."""
    taken = [0.0] * len(runs)
    for place in rng.permutation(len(runs)):
        runs[place]()
        samples = []
        for _ in range(_RUNS):
            started = clock()
            runs[place]()
            samples.append(clock() - started)
        taken[place] = float(np.median(samples))
    return taken


Inputs = Mapping[int, NDArray[np.float32]]

Make = Callable[[Inputs], list[Run]]


def _rows_by_onnx_runtime(
    graph: ModelProto, precision: str, calibration: NDArray[np.float32], threads: int
) -> Make:
    if precision == "int8":
        graph = quantize_static_qdq(
            graph, calibration, symmetric_activations=False, exclude=products_kept_float(graph)
        )
    content = graph.SerializeToString()

    def make(inputs: Inputs) -> list[Run]:
        session = open_session(content, threads)
        return [partial(session.run, None, {"flow": rows}) for rows in inputs.values()]

    return make


def _rows_by_openvino(
    graph: ModelProto, precision: str, calibration: NDArray[np.float32], threads: int
) -> Make:
    core = load_openvino().Core()
    model = core.read_model(graph.SerializeToString())
    if precision == "int8":
        model.reshape(list(calibration[:1].shape))
        model = quantize(model, calibration, OpenVinoOptions(), "a block")[0]

    def make(inputs: Inputs) -> list[Run]:
        runs: list[Run] = []
        for rows in inputs.values():
            own = model.clone()
            own.reshape(list(rows.shape))
            request = compile_model(core, own, "f32", threads, "a block").create_infer_request()
            runs.append(partial(request.infer, [rows], share_inputs=True, share_outputs=True))
        return runs

    return make


@dataclass(frozen=True)
class Chosen:
    """A margin, the share of samples that the full budget is asked for with it, and the bound that it has."""

    margin: float
    escalated: float
    bound: Bound


def choose_margin(
    truth: NDArray[np.integer],
    subjects: NDArray[np.str_],
    small: NDArray[np.floating],
    full: NDArray[np.floating],
    limit: float,
    confidence: float = CONFIDENCE,
) -> Chosen:
    """Returns the smallest margin whose bound on the drop of UAR, and that of all larger ones, is within the limit.

    Args:
        truth: (n,) true classes.
        subjects: (n,) who is seen: the independent units.
        small: (n, k) logits of the small budget.
        full: (n, k) logits of the full one.
        limit: on the drop of UAR, in (0, 1).
        confidence: of the statement.

    Raises:
        InputError: so few subjects that not even equal answers throughout would be within the limit.
    """
    check_reach(truth, subjects, limit, confidence)
    ordered = np.sort(_softmax(small), axis=1)  # (n, k)
    leads = ordered[:, -1] - ordered[:, -2]
    answers, reference = small.argmax(axis=1), full.argmax(axis=1)
    chosen: Chosen | None = None
    for margin in MARGINS:
        asked = leads < margin
        answered = np.where(asked, reference, answers)
        bound = upper_bound(paired(truth, reference, answered, subjects), confidence=confidence)
        if chosen is not None and bound.upper > limit:
            break
        chosen = Chosen(margin, float(asked.mean()), bound)
    # The first margin answers as the full budget does, which `check_reach` looked at.
    assert chosen is not None
    return chosen


def check_reach(
    truth: NDArray[np.integer], subjects: NDArray[np.str_], limit: float, confidence: float = CONFIDENCE
) -> None:
    """Makes sure that there are so many people that equal answers throughout would be within the limit.

    Raises:
        InputError: there are not, or the limit is none.
    """
    if not 0 < limit < 1:
        raise InputError(f"the loss of a cascade is a drop of UAR in (0, 1), got {limit:g}")
    bound = upper_bound(paired(truth, truth, truth, subjects), confidence=confidence)
    if bound.least > limit:
        raise InputError(
            f"{bound.units} subjects bound the drop of UAR by {bound.least:.3f} at best, with {confidence:.0%} "
            f"confidence: a cascade cannot be shown to lose at most {limit:g}; allow more or calibrate on more people"
        )


def cascade_samples(side: FlowDataset, used: Sequence[str]) -> FlowDataset:
    """Returns samples that nothing else was done with: of rendered data new people, else what the side has left.

    Args:
        side: the calibration side; see `calibration_side`.
        used: names of its samples that were calibrated, proven or judged on.

    Raises:
        InputError: none is left.
    """
    entry = known_dataset(side.source)
    if entry is not None and entry.is_rendered:
        return load(side.source, seed=SYNTHETIC_SEED, limit=SYNTHETIC_CLIPS, **as_for(side.preprocess))
    left = side.subset(~np.isin(side.names, list(used)))
    if not len(left):
        raise InputError(
            f"no clip of the training side of {side.source} is left to calibrate a cascade on: ask for fewer with "
            "--calibration-samples"
        )
    return left


def calibrate(variants: Sequence[Variant], folder: Path, samples: FlowDataset, limit: float) -> list[Cascade]:
    """Makes a rule for each target and precision that has two budgets and runs here, through the artifacts themselves.

    What cannot run here, or gains nothing, is said and left out: a rule that would never ask the full budget, where the
    small one alone does as well, or would ask it so often that the full one alone costs no more.

    Raises:
        InputError: as `choose_margin`.
        JobError: a runtime refuses an artifact.
    """
    inputs = to_input(samples.flows)
    rules = []
    for target, precision in dict.fromkeys((variant.target, variant.precision) for variant in variants):
        of_kind = [v for v in variants if (v.target, v.precision) == (target, precision)]
        small, full = (pick(of_kind, key=lambda variant: variant.tokens) for pick in (min, max))
        reason = why_not_here(full, folder)
        if small is full or reason:
            say(f"no cascade for {target} {precision}: {reason or 'it has a single budget'}")
            continue
        quick, thorough = (_logits(variant, folder, inputs) for variant in (small, full))
        chosen = choose_margin(samples.labels, samples.subjects, quick, thorough, limit)
        useless = _why_useless(small, full, chosen)
        if useless:
            say(f"no cascade for {target} {precision}: {useless}")
            continue
        rules.append(_record(small, full, chosen, limit, samples))
    return rules


def _why_useless(small: Variant, full: Variant, chosen: Chosen) -> str:
    """Returns why a cascade gains nothing over one of its two budgets; empty where it gains something."""
    escalated = chosen.escalated
    if chosen.margin == MARGINS[0]:
        return "the full budget would have to be asked always"
    if escalated == 0:
        return f"it would never ask the full budget; the budget {small.keep_rate:g} alone is within the limit, take that"
    if small.macs + escalated * full.macs >= full.macs:
        return f"it would ask the full budget for {escalated:.0%} of the samples, which costs as much as asking it alone"
    return ""


def _record(small: Variant, full: Variant, chosen: Chosen, limit: float, samples: FlowDataset) -> Cascade:
    bound = chosen.bound
    say(
        f"cascade {small.target} {small.precision}: below a margin of {chosen.margin:g} the full budget is asked, for "
        f"{chosen.escalated:.0%} of {bound.samples} samples; drop of UAR {bound.drop:.4f}, at most {bound.upper:.4f} "
        f"with {bound.confidence:.0%} confidence ({bound.units} subjects)"
    )
    return Cascade(
        target=small.target,
        precision=small.precision,
        small=small.keep_rate,
        full=full.keep_rate,
        margin=chosen.margin,
        escalated=chosen.escalated,
        limit=limit,
        drop=bound.drop,
        upper=bound.upper,
        confidence=bound.confidence,
        unit=bound.unit,
        units=bound.units,
        samples=bound.samples,
        data=samples.source,
        sha256=samples.digest(),
    )


def _logits(
    variant: Variant, folder: Path, inputs: NDArray[np.float32], purpose: str = "cascade"
) -> NDArray[np.float32]:
    runner = open_artifact(variant, folder, threads=1)
    return np.stack([runner.run(one[None])[0] for one in progress(inputs, f"{purpose} {variant.id}")])


MOST_LOSS = 0.02
"""Of UAR, that a recommended variant may have against fp32 at full budget, as measured."""

FEWEST_JUDGED = 100
"""Samples below which a loss of `MOST_LOSS` is not told from none: one answer more or less is half of it or more."""

MOST_JUDGED = 480

CHANCE_MARGIN = 0.05
"""A model whose UAR is less than this above chance has learnt nothing that a small budget could lose."""

JUDGED_SEED = 2
"""Of the synthetic people that budgets are judged on: no model is trained, calibrated or reported on these."""

JUDGED_CLIPS = 3
"""Of each of them."""


def judging_samples(side: FlowDataset, used: Sequence[str]) -> FlowDataset:
    """Returns samples to judge budgets on: of rendered data new people, else what the training side has left.

    Args:
        side: the calibration side; see `calibration_side`.
        used: names of its samples that were calibrated or proven on.
    """
    entry = known_dataset(side.source)
    if entry is not None and entry.is_rendered:
        return load(side.source, seed=JUDGED_SEED, limit=JUDGED_CLIPS, **as_for(side.preprocess))
    left = side.subset(~np.isin(side.names, list(used)))
    return draw(left, min(MOST_JUDGED, len(left)))[0] if len(left) else left


def recommend(
    variants: Sequence[Variant], folder: Path, samples: FlowDataset | None, why_not: str = ""
) -> RecommendedVariant:
    """Chooses the variant that a session takes where nothing is asked for, through the artifacts themselves.

    Of the first target in the order of a session that runs here: the variant with the fewest multiply-adds, and of equal
    ones with the smallest files, that loses at most `MOST_LOSS` of UAR against fp32 at full budget. The loss is an
    estimate without a bound; what a device measures may replace the choice. Where a target that comes before it in the
    session's order does not run here, its own variant of the same budget is recommended: all are proven to compute
    alike, and the device may well run it.

    Args:
        variants: of the bundle at `folder`.
        folder: where their files lie.
        samples: to judge on; None: nothing is judged, and `why_not` says why.
        why_not: a clause.
    """
    targets = preferred_targets(variants)
    of_first = [variant for variant in variants if variant.target == targets[0]]
    running = [variant for variant in variants if not why_not_here(variant, folder)]
    if samples is not None and len(samples) < FEWEST_JUDGED:
        why_not = f"{len(samples)} samples are left to judge budgets on, fewer than {FEWEST_JUDGED}"
    elif samples is not None and not running:
        why_not = "none of the variants can run on the machine that exported them"
    if samples is None or why_not:
        return _unjudged(of_first, why_not)
    judging = preferred_targets(running)[0]
    judged = [variant for variant in running if variant.target == judging]
    truth, classes, inputs = samples.labels, len(samples.label_names), to_input(samples.flows)

    def uar_of(variant: Variant) -> float:
        answers = _logits(variant, folder, inputs, "judging").argmax(axis=1)
        return uar(confusion(truth, answers, classes))

    reference = max(judged, key=lambda variant: (variant.tokens, variant.precision == "fp32"))
    expected = uar_of(reference)
    if expected < 1 / classes + CHANCE_MARGIN:
        return _unjudged(
            of_first,
            f"{reference.id} is about as good as guessing (UAR {expected:.3f}), so there is nothing to lose",
        )
    by_cost = sorted(judged, key=lambda variant: (variant.macs, sum(entry.bytes for entry in variant.files)))
    found = {reference.id: expected}
    for variant in by_cost:
        if variant is not reference:
            found[variant.id] = uar_of(variant)
        if expected - found[variant.id] <= MOST_LOSS + 1e-9:
            break
    reason = (
        f"the cheapest that loses at most {MOST_LOSS:g} of UAR as measured at the export: {found[variant.id]:.3f}, "
        f"{reference.id} {expected:.3f}, on {len(samples)} samples of {len(samples.subject_names)} people ({samples.source})"
    )
    if judging == targets[0]:
        return RecommendedVariant(variant=variant.id, kind="judged", reason=reason)
    alike = default_variant([other for other in of_first if other.tokens == variant.tokens])
    return RecommendedVariant(
        variant=alike.id, kind="judged", reason=f"its budget was judged through {variant.id}: {reason}"
    )


def _unjudged(variants: Sequence[Variant], why: str) -> RecommendedVariant:
    return RecommendedVariant(
        variant=default_variant(variants).id,
        kind="unjudged",
        reason=f"the largest budget, as none was judged: {why}",
    )


def _softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    weights = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return shares
