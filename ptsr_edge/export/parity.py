"""The gate: an artifact is compared with the eager fp32 model before it may be written.

What is judged, each by itself: the logits, against eager fp32 *for the tokens that the artifact kept*; the
selection, by the scores of eager fp32; and the top class. One borderline token in another's place may move the
logits by half of their spread and is no fault: rounding moves scores, and runtimes break ties differently.
Judged together, the limit on the logits would have to let that through, and a wrong layer with it.

What is refused is looked into: on the sample that is farthest off, which product is the first that departs from the
fp32 graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from torch import Tensor

from ptsr_edge.bundle import Parity
from ptsr_edge.core.errors import InputError, ParityError
from ptsr_edge.export.onnx_graph import PRODUCTS
from ptsr_edge.export.targets.base import THROUGH_GRAPH, Artifact, Graph, Target, open_built
from ptsr_edge.export.targets.quantization import FUSED_BIAS, FUSED_PRODUCT
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


DEPARTURES = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 5e-2, "int8": 0.1}
"""Relative difference from which a layer of a refused artifact is named: several times what rounding to the
precision does to a sound layer (int8: .01 to .05), or the first layer would be named whatever is wrong."""


@dataclass(frozen=True)
class Reference:
    """The answers of the eager fp32 model to the calibration samples at one budget.

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


def require_dependence(reference: Reference) -> None:
    """Refuses a model of which a graph that always gives one answer would pass for exact.

    Raises:
        InputError: its logits differ by less than the limit from sample to sample.
    """
    moved, limit = float(np.ptp(reference.logits, axis=0).max()), limit_of(reference, "fp32")
    if len(reference.inputs) > 1 and moved <= limit:
        raise InputError(
            f"{reference.model.config.name} at {reference.tokens} tokens answers {len(reference.inputs)} samples alike "
            f"(its logits move by {moved:.3g}, the limit of a proof is {limit:.3g}): nothing could be proven of it; are "
            "these trained weights?"
        )


def prove(
    name: str, precision: str, reference: Reference, graph: Graph, target: Target, artifact: Artifact
) -> Parity | None:
    """Compares an artifact with eager fp32 and refuses it where it departs too far.

    Args:
        name: of the variant, for the message.
        precision: that it was built in.
        reference: what eager fp32 says.
        graph: that the artifact was built from.
        target: loads the artifact; where it cannot run here, the target's own graph stands for it, and that is said.
        artifact: to prove.

    Returns:
        How far it departs; None where neither the artifact nor a graph of it can run here.

    Raises:
        ParityError: it misses its limit; the message says by how much, and names the first layer that departs.
    """
    runner, through = open_built(target, artifact)
    if runner is None:
        return None
    answers = compare(reference, runner.run, precision)
    parity = summarise(reference, answers, precision)
    if through == "graph":
        said = f"{parity.reference}; {THROUGH_GRAPH}, engine not run here"
        parity = parity.model_copy(update={"reference": said, "through": through})
    try:
        require_parity(parity, name, precision)
    except ParityError as error:
        index = sample_at_fault(reference, answers, precision)
        fault = _fault(reference, index, answers[index], graph, artifact, precision)
        raise ParityError(f"{error}; {fault}") from None
    return parity


@dataclass(frozen=True)
class Answer:
    """How an artifact answered one sample.

    Attributes:
        kept: the tokens that it kept, (K,); None where it does not say.
        difference: largest absolute difference of a logit, infinite where one is not finite.
        same_class: whether its top class is the reference's.
        overlap: share of its tokens that count as the reference's.
        gap: how far off its selection is; see `compare_selection`.
    """

    kept: NDArray[np.int64] | None
    difference: float
    same_class: bool
    overlap: float = 1.0
    gap: float = 0.0


def compare(reference: Reference, run: Run, precision: str) -> list[Answer]:
    """Runs an artifact on each sample of the reference; judges nothing.

    The logits are compared for the artifact's own selection, the class with eager fp32's own answer, but where
    both selections are the same up to ties. A selection that is farther off than the precision's rounding
    explains is not one: its overlap counts as 0.
    """
    answers = []
    for index, one in enumerate(reference.inputs):
        logits, kept = run(one[None])
        expected = own = reference.logits[index]
        overlap, gap = 1.0, 0.0
        if kept is not None:
            share, gap = compare_selection(reference, index, kept)
            overlap = share if gap <= score_limit(reference, precision, index) else 0.0
            if np.isfinite(gap) and set(kept.tolist()) != set(reference.kept[index].tolist()):
                expected = _eager_with(reference, one, kept)
                own = expected if share == 1.0 else own
        difference = float(np.abs(logits.astype(np.float64) - expected).max())
        answers.append(
            Answer(
                kept=kept,
                difference=difference if np.isfinite(difference) else float("inf"),
                same_class=bool(logits.argmax() == own.argmax()),
                overlap=overlap,
                gap=gap,
            )
        )
    return answers


def summarise(reference: Reference, answers: list[Answer], precision: str) -> Parity:
    """Sums up the answers of an artifact to all samples of the reference."""
    count = len(answers)
    return Parity(
        reference="eager fp32",
        samples=count,
        max_abs=max(answer.difference for answer in answers),
        top1_agreement=sum(answer.same_class for answer in answers) / count,
        kept_agreement=sum(answer.overlap for answer in answers) / count,
        limit=limit_of(reference, precision),
    )


def measure_parity(reference: Reference, run: Run, precision: str) -> Parity:
    """Measures how far an artifact departs from the reference over all samples; judges nothing."""
    return summarise(reference, compare(reference, run, precision), precision)


def _eager_with(
    reference: Reference, one: NDArray[np.float32], kept: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Returns the logits of eager fp32 for the tokens that an artifact kept."""
    model = reference.model
    assert isinstance(model, Ptsr)
    with torch.no_grad():
        forced: Tensor = torch.from_numpy(kept[None])
        logits: Tensor = model(torch.from_numpy(one[None]), reference.tokens, forced).logits
    expected: NDArray[np.float32] = logits[0].numpy()
    return expected


def limit_of(reference: Reference, precision: str) -> float:
    """Returns the largest difference of a logit that a precision may show on these samples."""
    if precision in LIMITS:
        return LIMITS[precision]
    return SPREADS[precision] * max(float(reference.logits.std()), 1e-6)


def score_limit(reference: Reference, precision: str, index: int) -> float:
    """Returns how far off the selection of a sample may be, in standard deviations of its scores.

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
    """Compares an artifact's selection with the scores of the reference.

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


def sample_at_fault(reference: Reference, answers: list[Answer], precision: str) -> int:
    """Returns the sample to look for a fault with.

    The first whose selection no rounding explains; else, of those with the reference's own tokens (of all, where no
    sample has them), the one whose logits are farthest off.
    """
    same = []
    for index, answer in enumerate(answers):
        if answer.kept is None or not other_tokens(reference.kept[index], answer.kept):
            same.append(index)
            continue
        limit = 0.0 if OVERLAP[precision] == 1.0 else score_limit(reference, precision, index)
        if answer.gap > limit:
            return index
    return max(same or range(len(answers)), key=lambda index: answers[index].difference)


def _fault(
    reference: Reference, index: int, answer: Answer, graph: Graph, artifact: Artifact, precision: str
) -> str:
    """Says which layer of a refused artifact is the first to depart, for one sample, from its fp32 graph.

    Of an engine the layers of its typed graph, which lies beside it, are looked at. Where the artifact selects other
    tokens, layers behind the selection are not compared: their inputs are of other tokens.
    """
    one = reference.inputs[index : index + 1]
    others = "" if answer.kept is None else other_tokens(reference.kept[index], answer.kept)
    limit, expected = DEPARTURES[precision], product_values(graph.model, one)
    if others:
        before = before_selection(graph.model)
        expected = {layer: value for layer, value in expected.items() if layer in before}
    typed = artifact.path.with_suffix(".onnx")
    if artifact.path.suffix == ".xml":
        found = ir_values(artifact.path, expected, one)
    elif typed.is_file():
        found = product_values(onnx.load(typed), one)
    else:
        return others or f"the layers of a {artifact.path.suffix} file cannot be compared"
    departure = first_divergence(expected, found, limit)
    if departure is not None:
        return f"{departure}, and with it the selection" if others else str(departure)
    if others:
        return others
    return f"no layer departs from the fp32 graph by more than {limit:g}: the graph does, or rounding adds up"


@dataclass(frozen=True)
class Divergence:
    """The first layer whose result differs by more than the tolerance, and by how much.

    `relative` is the largest difference over the largest value of the reference's result.
    """

    layer: str
    relative: float
    tolerance: float

    def __str__(self) -> str:
        return f"the first layer to depart is {self.layer} (by {self.relative:.2g}, limit {self.tolerance:g})"


def product_values(model: ModelProto, inputs: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Returns what each product of an ONNX graph gives for one input (1, C, S, S): value by the node's name.

    What a fused operator adds as its bias is taken off again.

    Raises:
        MissingExtraError: onnxruntime is not installed.
    """
    tapped = ModelProto()
    tapped.CopyFrom(model)
    nodes = [node for node in tapped.graph.node if node.op_type in (*PRODUCTS, FUSED_PRODUCT)]
    products = {node.name: node.output[0] for node in nodes}
    constants = {tensor.name: tensor for tensor in tapped.graph.initializer}
    biases = {
        node.name: numpy_helper.to_array(constants[node.input[FUSED_BIAS]])
        for node in nodes
        if node.op_type == FUSED_PRODUCT and len(node.input) > FUSED_BIAS
    }
    have = {output.name for output in tapped.graph.output}
    tapped.graph.output.extend(
        onnx.ValueInfoProto(name=value) for value in products.values() if value not in have
    )
    session = open_session(tapped.SerializeToString(), optimize=False)  # fused operators have no products
    values = session.run(list(products.values()), {"flow": inputs})
    return {name: value - biases.get(name, 0) for name, value in zip(products, values, strict=True)}


def ir_values(
    artifact: Path, names: Iterable[str], inputs: NDArray[np.float32]
) -> dict[str, NDArray[np.float32]]:
    """Returns what the operations of some names give in an IR, for one input, calculated as the IR asks for.

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


def first_divergence(
    reference: dict[str, NDArray[np.float32]], found: dict[str, NDArray[np.float32]], tolerance: float
) -> Divergence | None:
    """Returns the first product, in the reference's order, that differs by more than `tolerance`, relative.

    Products that only one side has (fused or quantized ones) are passed over.
    """
    for layer, value in reference.items():
        other = found.get(layer)
        if other is None or other.shape != value.shape:
            continue
        scale = max(float(np.abs(value).max()), 1e-30)
        relative = float(np.abs(other.astype(np.float64) - value).max()) / scale
        if not relative <= tolerance:
            return Divergence(layer, relative, tolerance)
    return None


def before_selection(model: ModelProto) -> set[str]:
    """Returns the names of the products of an ONNX graph that its selection of tokens is calculated from."""
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
    """Says how two selections (K,) differ; empty where they hold the same tokens, in whichever order.

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
