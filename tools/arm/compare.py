"""Answers of one bundle on two machines: how far apart they are, and whether that may be."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.bundle import VerifiedOn
from ptsr_edge.core.errors import InputError, JobError
from ptsr_edge.export.parity import LIMITS, TIE

AGREEMENT = {"fp32": 1.0, "int8": 0.9}
"""Least share of samples with the same top class. int8 rounds at the borders of its steps, and two kinds of
processors add in another order: a few values fall on the other side, and grow from layer to layer."""


@dataclass(frozen=True)
class Difference:
    """How far the answers of a variant on another machine depart from the ones here.

    Attributes:
        samples: how many were compared.
        max_abs: largest absolute difference of a logit; samples in which a tie was decided otherwise are
            left out, unless all are such.
        top1_agreement: share of samples with the same top class.
        kept_agreement: mean overlap of the selected tokens as sets; a token that ties with one that it
            stands for counts as the same.
        tied: samples where such a token was taken.
    """

    samples: int
    max_abs: float
    top1_agreement: float
    kept_agreement: float
    tied: int


def strain_scores(inputs: NDArray[np.float32], patch: int) -> NDArray[np.float64]:
    """Normalised inputs (n, C, S, S) -> mean strain of each patch (n, N), what tokens are selected by."""
    count, _, side, _ = inputs.shape
    strain = inputs[:, -1].astype(np.float64)
    cells = strain.reshape(count, side // patch, patch, side // patch, patch)
    scores: NDArray[np.float64] = cells.mean(axis=(2, 4)).reshape(count, -1)
    return scores


def check_same_question(here: Mapping[str, Any], there: Mapping[str, Any], machine: str) -> None:
    """Makes sure that two answers of `run_on_arm` are of the same samples and artifacts.

    Raises:
        InputError: they are not.
    """
    if here["samples_sha256"] != there["samples_sha256"]:
        raise InputError(f"the answers of {machine} are of other samples than those here")
    for name, ours in here["variants"].items():
        if there["variants"].get(name, {}).get("sha256") != ours["sha256"]:
            raise InputError(f"the answers of {machine} hold none of this export's {name}")


def compare(
    here: Mapping[str, Any], there: Mapping[str, Any], scores: NDArray[np.float64] | None = None
) -> Difference:
    """Compares the answers of a variant on two machines.

    Args:
        here: `logits` (n lists of k) and `kept` (n lists of K), as `run_on_arm` writes them.
        there: the same of the other machine.
        scores: (n, N) of the selection, to tell ties; without, any other token is a difference.

    Raises:
        JobError: the answers are not of the same samples and classes.
    """
    ours, theirs = (np.asarray(answers["logits"], dtype=np.float64) for answers in (here, there))
    if ours.shape != theirs.shape or not len(ours) or len(here["kept"]) != len(there["kept"]):
        raise JobError(f"the answers are of {theirs.shape} samples and classes there, of {ours.shape} here")
    apart = np.abs(ours - theirs).max(axis=1)
    overlaps, same = [], []
    for place, (kept, other) in enumerate(zip(here["kept"], there["kept"], strict=True)):
        same.append(set(kept) == set(other))
        overlaps.append(overlap(kept, other, None if scores is None else scores[place]))
    tied = [not equal and share == 1.0 for equal, share in zip(same, overlaps, strict=True)]
    # With a token in another's place the logits are of another input: a tie is no error of the arithmetic.
    counted = apart[~np.array(tied)] if not all(tied) else apart
    return Difference(
        samples=len(ours),
        max_abs=float(counted.max()) if np.isfinite(counted).all() else float("inf"),
        top1_agreement=float((ours.argmax(axis=1) == theirs.argmax(axis=1)).mean()),
        kept_agreement=float(np.mean(overlaps)),
        tied=sum(tied),
    )


def overlap(kept: Sequence[int], other: Sequence[int], scores: NDArray[np.float64] | None) -> float:
    """The share of `other`'s tokens that are in `kept`, or whose score is not below the lowest in there."""
    ours, theirs = set(kept), set(other)
    if scores is not None:
        theirs &= set(range(len(scores)))  # what does not exist is no token
    if len(other) != len(kept):
        return 0.0
    extra = theirs - ours
    if scores is None or not extra:
        return len(theirs & ours) / len(ours)
    lowest = float(scores[list(ours)].min()) - TIE * float(np.abs(scores).max())
    tied = {token for token in extra if float(scores[token]) >= lowest}
    return len((theirs & ours) | tied) / len(ours)


def faults(difference: Difference, precision: str) -> list[str]:
    """What may not be, in words; empty where all is well. Logits of int8 are measured, not judged."""
    found = []
    limit = LIMITS.get(precision)
    if limit is not None and not difference.max_abs <= limit:
        found.append(f"logits differ by up to {difference.max_abs:.3g}, limit {limit:g}")
    if limit is not None and difference.kept_agreement < 1:
        found.append(f"only {difference.kept_agreement:.2%} of the tokens are the same, and no ties")
    least = AGREEMENT[precision]
    if difference.top1_agreement < least:
        found.append(f"same class for {difference.top1_agreement:.1%}, least {least:.0%}")
    return found


def verification(
    difference: Difference, machine: str, there: Mapping[str, Any], here: Mapping[str, Any]
) -> VerifiedOn:
    """The record for the manifest; `there` and `here` are what `run_on_arm` says of the two machines."""
    return VerifiedOn(
        machine=machine,
        runtime=f"onnxruntime {there['packages']['onnxruntime']}",
        reference=f"onnxruntime {here['packages']['onnxruntime']} on {here['machine']}",
        samples=difference.samples,
        max_abs=difference.max_abs,
        top1_agreement=difference.top1_agreement,
        kept_agreement=difference.kept_agreement,
        date=datetime.datetime.now(datetime.timezone.utc).date(),
    )
