"""At which margin a cascade may trust its small budget, so that its loss against the full one is bounded.

The cascade answers as the small budget does where that leads by a margin, else as the full budget. Its drop of UAR
against the full budget is bounded by `bounds.upper_bound`, which assumes no distribution. Margins are tested in an
order that is fixed beforehand, from the safest one (the full budget is always asked: no loss) down, and the last one
before the first whose bound exceeds the limit is taken. Such fixed-sequence testing needs no correction for the number
of margins: that any margin is accepted whose expected drop exceeds the limit has a probability of at most
1 - confidence.

Source: Angelopoulos et al., Learn then Test: calibrating predictive algorithms to achieve risk control, 2021
(arXiv 2110.01052), section on fixed-sequence testing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.bundle import Cascade, Variant
from ptsr_edge.core.console import progress, say
from ptsr_edge.core.errors import InputError
from ptsr_edge.data.datasets import FlowData, load
from ptsr_edge.session import open_artifact, why_not_here
from ptsr_edge.stats.risk_bounds import CONFIDENCE, Bound, paired, upper_bound
from ptsr_edge.vision.flow import to_input

MARGINS: tuple[float, ...] = tuple(round(1 - step / 40, 3) for step in range(41))
"""Tested in this order. At 1 the full budget is always asked, at 0 never."""

SYNTHETIC_SEED = 1
"""Of the synthetic people that cascades are calibrated on: models are trained, calibrated and judged on those of 0."""

SYNTHETIC_CLIPS = 6
"""Of each of them."""


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
    """The smallest margin whose bound on the drop of UAR, and that of all larger ones, is within the limit.

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
    assert (
        chosen is not None
    )  # the first margin answers as the full budget does, which `check_reach` looked at
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


def cascade_samples(side: FlowData, used: Sequence[str], image_size: int) -> FlowData:
    """Samples that nothing else was done with: of synthetic data new people, else what the side has left.

    Args:
        side: the calibration side; see `calibration.calibration_side`.
        used: names of its samples that were calibrated, proven or judged on.
        image_size: S.

    Raises:
        InputError: none is left.
    """
    if side.source == "synthetic":
        return load("synthetic", image_size=image_size, seed=SYNTHETIC_SEED, limit=SYNTHETIC_CLIPS)
    left = side.subset(~np.isin(side.names, list(used)))
    if not len(left):
        raise InputError(
            f"no clip of the training side of {side.source} is left to calibrate a cascade on: ask for fewer with "
            "--calibration-samples"
        )
    return left


def calibrate(variants: Sequence[Variant], folder: Path, samples: FlowData, limit: float) -> list[Cascade]:
    """A rule for each target and precision that has two budgets and runs here, through the artifacts themselves.

    What cannot run here, or gains nothing because the full budget would always be asked, is said and left out.

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
        if chosen.margin == MARGINS[0]:
            say(f"no cascade for {target} {precision}: the full budget would have to be asked always")
            continue
        rules.append(_record(small, full, chosen, limit, samples))
    return rules


def _record(small: Variant, full: Variant, chosen: Chosen, limit: float, samples: FlowData) -> Cascade:
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


def _logits(variant: Variant, folder: Path, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    runner = open_artifact(variant, folder, threads=1)
    return np.stack([runner.run(one[None])[0] for one in progress(inputs, f"cascade {variant.id}")])


def _softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    weights = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return shares
