"""The gate: an artifact is compared with the eager fp32 model before it may be written.

Logits, top class, and selected tokens as sets. Runtimes break exact ties between scores differently, so a
token may stand for another of the same score; the logits are then compared for the artifact's selection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptsr_edge.errors import ParityError
from ptsr_edge.flow import to_input
from ptsr_edge.manifest import Parity
from ptsr_edge.model import Model, Ptsr

Run = Callable[[NDArray[np.float32]], tuple[NDArray[np.float32], NDArray[np.int64] | None]]

LIMITS = {"fp32": 1e-4}
"""Largest difference of a logit from eager fp32, absolute."""

SPREADS = {"fp16": 0.1, "bf16": 0.6, "int8": 1.5}
"""The same as a multiple of the reference logits' standard deviation: these precisions round by design, and
a sample on the edge of the selection may keep other tokens."""

AGREEMENT = {"fp32": 1.0, "fp16": 0.95, "bf16": 0.85, "int8": 0.8}
"""Least share of samples with the same top class, and of selected tokens."""

TIE = 1e-5
"""Scores closer than this, relative to the largest, count as equal."""


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

    def first(self, count: int) -> Reference:
        """The same for the first `count` samples."""
        return replace(
            self,
            inputs=self.inputs[:count],
            logits=self.logits[:count],
            kept=self.kept[:count],
            scores=None if self.scores is None else self.scores[:count],
        )


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
    """How far an artifact departs from the reference over all samples; judges nothing."""
    worst, same_class, overlap = 0.0, 0, 0.0
    for index, one in enumerate(reference.inputs):
        logits, kept = run(one[None])
        expected = reference.logits[index]
        if kept is not None:
            agreeing, swapped = compare_selection(reference, index, kept)
            overlap += agreeing
            if agreeing == 1.0 and swapped:
                expected = _eager_with(reference, one, kept)
        else:
            overlap += 1.0
        difference = float(np.abs(logits.astype(np.float64) - expected).max())
        worst = max(worst, difference if np.isfinite(difference) else float("inf"))
        same_class += int(logits.argmax() == expected.argmax())
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


def compare_selection(reference: Reference, index: int, kept: NDArray[np.int64]) -> tuple[float, bool]:
    """The share of an artifact's tokens that the reference keeps too or that tie with one it keeps.

    Also whether any differs. A token that is kept twice counts once, one that does not exist not at all,
    and a selection of another size is none.
    """
    ours, theirs = set(reference.kept[index].tolist()), set(kept.tolist())
    if kept.shape != reference.kept[index].shape:
        return 0.0, True
    theirs &= set(range(reference.model.config.patches))
    extra = theirs - ours
    if not extra or reference.scores is None:
        return len(theirs & ours) / len(ours), bool(extra)
    scores = reference.scores[index]
    lowest = scores[reference.kept[index]].min()
    tied = {token for token in extra if scores[token] >= lowest - TIE * abs(float(scores.max()))}
    return len((theirs & ours) | tied) / len(ours), True


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
    least = AGREEMENT[precision]
    if parity.top1_agreement < least:
        faults.append(f"the top class agrees on {parity.top1_agreement:.1%} only (least {least:.0%})")
    if parity.kept_agreement < least:
        faults.append(f"selected tokens agree on {parity.kept_agreement:.1%} only (least {least:.0%})")
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
