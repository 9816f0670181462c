"""The gate: an artifact is compared with the eager fp32 model before it may be written.

What is judged, each by itself: the logits, against eager fp32 *for the tokens that the artifact kept*; the
selection, by the scores of eager fp32; and the top class. One borderline token in another's place may move the
logits by half of their spread and is no fault: rounding moves scores, and runtimes break ties differently.
Judged together, the limit on the logits would have to let that through, and a wrong layer with it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptsr_edge.bundle import Parity
from ptsr_edge.core.errors import ParityError
from ptsr_edge.export.onnx_graph import PRODUCTS
from ptsr_edge.export.targets.base import Artifact, Target, open_built
from ptsr_edge.models.ptsr import Model, Ptsr, selects_before_embedding
from ptsr_edge.runtimes.onnxruntime import open_session
from ptsr_edge.runtimes.openvino import compile_ir, load_openvino, read_ir
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
    if precision == "int8" and selects_before_embedding(reference.model.config):
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


# FOLDED from export.layerwise: Where an artifact departs from its fp32 graph: the products of both, compared in the graph's order.


@dataclass(frozen=True)
class Departure:
    """The first layer whose result differs by more than the tolerance, and by how much.

    `relative` is the largest difference over the largest value of the reference's result.
    """

    layer: str
    relative: float
    tolerance: float

    def __str__(self) -> str:
        return f"the first layer to depart is {self.layer} (by {self.relative:.2g}, limit {self.tolerance:g})"


def product_values(graph: Path, inputs: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """What each product of an ONNX graph gives for one input (1, C, S, S): value by the node's name.

    Raises:
        MissingExtraError: onnxruntime is not installed.
    """
    model = onnx.load(graph, load_external_data=False)
    tapped = {node.name: node.output[0] for node in model.graph.node if node.op_type in PRODUCTS}
    have = {output.name for output in model.graph.output}
    model.graph.output.extend(
        onnx.ValueInfoProto(name=value) for value in tapped.values() if value not in have
    )
    # Beside the graph: ONNX Runtime reads weights from the folder of the file alone.
    beside = graph.with_name(f".taps-{os.getpid()}-{graph.name}")
    try:
        onnx.save(model, beside)
        session = open_session(beside, optimize=False)  # fused operators have no products to look at
        names = list(tapped)
        values = session.run([tapped[name] for name in names], {"flow": inputs})
    finally:
        beside.unlink(missing_ok=True)
    return dict(zip(names, values, strict=True))


def ir_values(
    artifact: Path, names: Iterable[str], inputs: NDArray[np.float32]
) -> dict[str, NDArray[np.float32]]:
    """What the operations of some names give in an IR, for one input, calculated as the IR asks for.

    An IR names its operations as the ONNX graph that it was made of does; those that it lacks are left out. One
    that is read out is fused less than one that is not, so that the last digits may differ.

    Raises:
        MissingExtraError: openvino is not installed.
        JobError: a file is missing or no IR, or this CPU cannot calculate in its precision.
    """
    core = load_openvino().Core()
    model = read_ir(core, artifact)
    wanted = set(names)
    tapped = [op for op in model.get_ordered_ops() if op.get_friendly_name() in wanted]
    model.add_outputs([operation.output(0) for operation in tapped])
    _, compiled = compile_ir(core, model, artifact.name, threads=1)
    answers = list(compiled([inputs]).values())
    return {
        operation.get_friendly_name(): np.array(value)
        for operation, value in zip(tapped, answers[len(answers) - len(tapped) :], strict=True)
    }


def first_departure(
    reference: dict[str, NDArray[np.float32]], found: dict[str, NDArray[np.float32]], tolerance: float
) -> Departure | None:
    """The first product, in the reference's order, that differs by more than `tolerance`, relative.

    Products that only one side has (fused or quantized ones) are passed over.
    """
    for layer, value in reference.items():
        other = found.get(layer)
        if other is None or other.shape != value.shape:
            continue
        scale = max(float(np.abs(value).max()), 1e-30)
        relative = float(np.abs(other.astype(np.float64) - value).max()) / scale
        if not relative <= tolerance:
            return Departure(layer, relative, tolerance)
    return None


def before_selection(graph: Path) -> set[str]:
    """The names of the products of an ONNX graph that its selection of tokens is calculated from."""
    model = onnx.load(graph, load_external_data=False)
    makers = {value: node for node in model.graph.node for value in node.output}
    wanted = [node for node in model.graph.node if node.op_type == "TopK"]
    seen: set[str] = set()
    names = set()
    while wanted:
        node = wanted.pop()
        names |= {node.name} if node.op_type in PRODUCTS else set()
        for value in node.input:
            if value in makers and value not in seen:
                seen.add(value)
                wanted.append(makers[value])
    return names


def other_tokens(reference: NDArray[np.int64], found: NDArray[np.int64]) -> str:
    """How two selections (K,) differ, in words; empty where they hold the same tokens, in whichever order.

    Behind a selection of other tokens every layer has other inputs, and its results cannot be compared.
    """
    theirs, ours = set(reference.tolist()), set(found.tolist())
    if theirs == ours:
        return ""
    few = 5
    lists = []
    for tokens in (sorted(ours - theirs), sorted(theirs - ours)):
        more = f" and {len(tokens) - few} more" if len(tokens) > few else ""
        lists.append(", ".join(map(str, tokens[:few])) + more if tokens else "none")
    return f"the selection differs first: tokens {lists[0]} are kept in place of {lists[1]}"


DEPARTURES = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 5e-2, "int8": 0.1}
"""Relative difference from which a layer of a refused artifact is named: several times what rounding to the
precision does to a sound layer (int8: .01 to .05), or the first layer would be named whatever is wrong."""


def _sample_at_fault(
    reference: Reference, target: Target, artifact: Artifact, precision: str
) -> tuple[int, str]:
    """A sample to look for the fault with, and how the artifact's selection differs there, empty where it does not.

    The first whose selection no rounding explains; else the first with the reference's own tokens.
    """
    runner, _ = open_built(target, artifact)
    same = []
    for index, one in enumerate(reference.inputs):
        kept = None if runner is None else runner.run(one[None])[1]
        others = "" if kept is None else other_tokens(reference.kept[index], kept)
        if not others:
            same.append(index)
        elif kept is not None:
            limit = 0.0 if OVERLAP[precision] == 1.0 else score_limit(reference, precision, index)
            if compare_selection(reference, index, kept)[1] > limit:
                return index, others
    return (same[0], "") if same else (0, others)


def _first_fault(
    one: NDArray[np.float32], others: str, graph: Path, artifact: Artifact, precision: str
) -> str:
    """Which layer departs first, for `one` input, from the graph that the artifact was made of.

    Of an engine those of its typed graph, which lies beside it. Where the artifact selects `others`, layers behind
    the selection are not compared: their inputs are of other tokens.
    """
    limit, reference = DEPARTURES[precision], product_values(graph, one)
    if others:
        before = before_selection(graph)
        reference = {layer: value for layer, value in reference.items() if layer in before}
    if artifact.path.suffix == ".xml":
        found = ir_values(artifact.path, reference, one)
    else:
        found = product_values(artifact.path.with_suffix(".onnx"), one)
    departure = first_departure(reference, found, limit)
    if departure is not None:
        return f"{departure}, and with it the selection" if others else str(departure)
    if others:
        return others
    return f"no layer departs from the fp32 graph by more than {limit:g}: the graph does, or rounding adds up"
