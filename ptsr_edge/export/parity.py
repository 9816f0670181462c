"""The gate: an artifact is compared with the eager fp32 model before it may be written.

What is judged, each by itself: the logits, against eager fp32 *for the tokens that the artifact kept*; the
selection, by the scores of eager fp32; and the top class. One borderline token in another's place may move the
logits by half of their spread and is no fault: rounding moves scores, and runtimes break ties differently.
Judged together, the limit on the logits would have to let that through, and a wrong layer with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptsr_edge.bundle import Parity
from ptsr_edge.core.errors import ParityError
from ptsr_edge.models.ptsr import Model, Ptsr
from ptsr_edge.vision.flow import to_input

Run = Callable[[NDArray[np.float32]], tuple[NDArray[np.float32], NDArray[np.int64] | None]]

LIMITS = {"fp32": 1e-4}
"""Largest difference of a logit from eager fp32, absolute."""

SPREADS = {"fp16": 0.015, "bf16": 0.1, "int8": 0.5}
"""The same as a multiple of the reference logits' standard deviation, for precisions that round by design."""

SCORE_SPREADS = {"fp16": 0.01, "bf16": 0.1, "int8": 1.0}
"""How far above a token that was kept one that was dropped may score, as a multiple of the scores' standard
deviation over the sample's tokens; in fp32 nothing but ties may differ."""

ROUNDOFF = {"fp16": 2.0**-11, "bf16": 2.0**-8}

ROUNDINGS = 4
"""A score is rounded in proportion to itself and not to how far the tokens' scores are apart: as many of these
roundings, of a precision's unit roundoff each, are allowed in any case. Attention that is nearly even needs it: with
the seeded weights of `ptsr-small` scores deviate by 4 % from their mean, and two that OpenVINO's fp16 put in each
other's place were up to 1.6 roundings apart, which are .018 standard deviations."""

TIE = 1e-5
"""Scores closer than this, relative to the largest, count as equal in every precision."""

OVERLAP = {"fp32": 1.0, "fp16": 0.98, "bf16": 0.95, "int8": 0.85}
"""Least share of selected tokens that eager fp32 selects too, or that tie with one that it does."""

AGREEMENT = {"fp32": 1.0, "fp16": 0.95, "bf16": 0.85, "int8": 0.8}
"""Least share of samples with the same top class. Where classes are close a swapped token decides; what int8
costs in accuracy is measured where a limit is asked for."""


@dataclass(frozen=True)
class Reference:
    """What the eager fp32 model says of the calibration samples at one budget.

    `inputs` (n, C, S, S) normalised; `logits` (n, k); `kept` (n, K); `scores` (n, N) of the selection,
    None where nothing is dropped.
    """

    model: Model
    tokens: int
    inputs: NDArray[np.float32]
    logits: NDArray[np.float32]
    kept: NDArray[np.int64]
    scores: NDArray[np.float32] | None


def eager_reference(model: Model, tokens: int, flows: NDArray[np.float32]) -> Reference:
    """Runs the eager model on samples (n, S, S, 3), one at a time as the artifact will."""
    inputs = to_input(flows)
    with torch.no_grad():
        outputs = [model(torch.from_numpy(one[None]), tokens) for one in inputs]
        drops = isinstance(model, Ptsr) and tokens < model.config.patches
        scores = model.scores(torch.from_numpy(inputs)) if drops and isinstance(model, Ptsr) else None
    return Reference(
        model=model,
        tokens=tokens,
        inputs=inputs,
        logits=torch.cat([output.logits for output in outputs]).numpy(),
        kept=torch.cat([output.kept for output in outputs]).numpy(),
        scores=None if scores is None else scores.numpy(),
    )


def measure_parity(reference: Reference, run: Run, precision: str) -> Parity:
    """How far an artifact departs from the reference over all samples; judges nothing.

    The logits are compared for the artifact's own selection, the class with eager fp32's own answer, but where
    both selections are the same up to ties. A selection that is farther off than the precision's rounding
    explains is not one: it counts as 0 in the mean overlap.
    """
    worst, same_class, overlap = 0.0, 0, 0.0
    for index, one in enumerate(reference.inputs):
        logits, kept = run(one[None])
        expected = answer = reference.logits[index]
        if kept is not None:
            share, gap = compare_selection(reference, index, kept)
            overlap += share if gap <= score_limit(reference, precision, index) else 0.0
            if np.isfinite(gap) and set(kept.tolist()) != set(reference.kept[index].tolist()):
                expected = _eager_with(reference, one, kept)
                answer = expected if share == 1.0 else answer
        else:
            overlap += 1.0
        difference = float(np.abs(logits.astype(np.float64) - expected).max())
        worst = max(worst, difference if np.isfinite(difference) else float("inf"))
        same_class += int(logits.argmax() == answer.argmax())
    count = len(reference.inputs)
    return Parity(
        reference="eager fp32",
        samples=count,
        max_abs=worst,
        top1_agreement=same_class / count,
        kept_agreement=overlap / count,
        limit=limit_of(reference, precision),
    )


def limit_of(reference: Reference, precision: str) -> float:
    """The largest difference of a logit that a precision may show on these samples."""
    if precision in LIMITS:
        return LIMITS[precision]
    return SPREADS[precision] * max(float(reference.logits.std()), 1e-6)


def score_limit(reference: Reference, precision: str, index: int) -> float:
    """How far off the selection of a sample may be, in standard deviations of its scores.

    See `SCORE_SPREADS` and `ROUNDOFF`. Scores of the input are taken before the first product: int8 has nothing
    to quantize there.
    """
    if precision == "int8" and reference.model.config.selects_before_embedding:
        precision = "fp16"
    limit = SCORE_SPREADS.get(precision, np.inf)
    if precision not in ROUNDOFF or reference.scores is None:
        return limit
    scores = reference.scores[index].astype(np.float64)
    edge = abs(float(scores[reference.kept[index]].min()))
    return max(limit, ROUNDINGS * ROUNDOFF[precision] * edge / max(float(scores.std()), 1e-30))


def compare_selection(reference: Reference, index: int, kept: NDArray[np.int64]) -> tuple[float, float]:
    """How an artifact's selection compares with the scores of the reference.

    Returns:
        The share of its tokens that the reference keeps too, up to ties; and by how much the best token that
        it drops scores above the worst that it keeps, in standard deviations of the sample's scores, 0 up to
        ties. A selection of another size, with a token twice or one that does not exist, is infinitely off.
    """
    ours, theirs = set(reference.kept[index].tolist()), set(kept.tolist())
    if kept.shape != reference.kept[index].shape:
        return 0.0, float("inf")
    theirs &= set(range(reference.model.config.patches))
    shared = len(theirs & ours)
    if len(theirs) < len(ours):
        return shared / len(ours), float("inf")
    if theirs == ours or reference.scores is None:
        return shared / len(ours), 0.0
    scores = reference.scores[index].astype(np.float64)
    tie = TIE * abs(float(scores.max()))
    edge = scores[reference.kept[index]].min()
    gained = sum(scores[token] < edge - tie for token in theirs - ours)
    lost = sum(scores[token] > edge + tie for token in ours - theirs)
    dropped = np.delete(scores, sorted(theirs)).max()
    gap = dropped - scores[sorted(theirs)].min()
    return 1 - max(gained, lost) / len(ours), gap / max(scores.std(), 1e-30) if gap > tie else 0.0


def require_parity(parity: Parity, variant: str, precision: str = "fp32") -> None:
    """Lets a variant through or refuses it.

    Raises:
        ParityError: it misses its limit; the message says by how much, and which limit would pass.
    """
    faults = []
    if not parity.max_abs <= parity.limit:
        faults.append(
            f"logits differ by up to {parity.max_abs:.3g} (limit {parity.limit:.3g}; the smallest limit "
            f"that would pass is {parity.max_abs:.3g})"
        )
    classes, tokens = AGREEMENT[precision], OVERLAP[precision]
    if parity.top1_agreement < classes:
        faults.append(f"the top class agrees on {parity.top1_agreement:.1%} only (least {classes:.0%})")
    if parity.kept_agreement < tokens:
        faults.append(f"selected tokens agree on {parity.kept_agreement:.1%} only (least {tokens:.0%})")
    if faults:
        raise ParityError(
            f"{variant} departs from {parity.reference} on {parity.samples} samples: {'; '.join(faults)}; "
            "nothing was written"
        )


def _eager_with(
    reference: Reference, one: NDArray[np.float32], kept: NDArray[np.int64]
) -> NDArray[np.float32]:
    model = reference.model
    assert isinstance(model, Ptsr)
    with torch.no_grad():
        forced: Tensor = torch.from_numpy(kept[None])
        logits: Tensor = model(torch.from_numpy(one[None]), reference.tokens, forced).logits
    expected: NDArray[np.float32] = logits[0].numpy()
    return expected
