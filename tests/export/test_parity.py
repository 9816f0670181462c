"""The gate lets through what agrees and nothing else, and names the layer that was tampered with."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from typed_graphs import saved

from ptsr_edge.bundle import Parity, read_bundle
from ptsr_edge.core.errors import ParityError
from ptsr_edge.export.onnx_graph import trace
from ptsr_edge.export.parity import (
    LIMITS,
    SCORE_SPREADS,
    SPREADS,
    Divergence,
    Reference,
    before_selection,
    compare_selection,
    eager_reference,
    first_divergence,
    limit_of,
    measure_parity,
    other_tokens,
    product_values,
    prove,
    require_parity,
    sample_at_fault,
    score_limit,
)
from ptsr_edge.export.parity import (
    Answer as Given,
)
from ptsr_edge.export.static_model import to_static
from ptsr_edge.export.targets.base import Artifact
from ptsr_edge.export.targets.onnxruntime import CpuTarget
from ptsr_edge.models.checkpoint import load_checkpoint
from ptsr_edge.models.ptsr import Model, Ptsr
from ptsr_edge.runtimes.onnxruntime import OrtRunner

pytestmark = pytest.mark.slow

Answer = tuple[NDArray[np.float32], NDArray[np.int64] | None]
Run = Callable[[NDArray[np.float32]], Answer]


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Ptsr:
    return cast(Ptsr, load_checkpoint(tiny_checkpoint)[0])


@pytest.fixture(scope="module")
def artifacts(tiny_bundle: Path) -> dict[int, OrtRunner]:
    variants = [v for v in read_bundle(tiny_bundle).variants if v.precision == "fp32"]
    return {v.tokens: OrtRunner(tiny_bundle / v.artifact, threads=1) for v in variants}


def run_of(model: Model, tokens: int, choose: Callable[[list[int]], list[int]] = list) -> Run:
    """An artifact that answers as the model does for the tokens that `choose` makes of the model's."""

    def run(flow: NDArray[np.float32]) -> Answer:
        with torch.no_grad():
            chosen = choose(model(torch.from_numpy(flow), tokens).kept[0].tolist())
            inside = torch.tensor([token % 16 for token in chosen])[None]
            logits = model(torch.from_numpy(flow), tokens, inside).logits[0].numpy()
        return logits, np.array(chosen)

    return run


def shares(reference: Reference, run: Run) -> Parity:
    return measure_parity(reference, run, "fp32")


@pytest.mark.parametrize("tokens", [16, 8, 4])
def test_a_true_artifact_passes(
    model: Ptsr, artifacts: dict[int, OrtRunner], random_flows: Any, tokens: int
) -> None:
    parity = shares(eager_reference(model, tokens, random_flows(6)), artifacts[tokens].run)
    require_parity(parity, "tiny")
    assert (parity.samples, parity.top1_agreement, parity.kept_agreement) == (6, 1.0, 1.0)
    # Another runtime rounds differently: exactly 0 would mean that nothing was compared.
    assert 0 < parity.max_abs <= parity.limit == LIMITS["fp32"] == 1e-4


@pytest.mark.parametrize("tokens", [16, 4])
def test_still_input_passes(model: Ptsr, artifacts: dict[int, OrtRunner], tokens: int) -> None:
    # Where nothing moves all inner patches are alike: which of them are kept is the runtime's choice.
    parity = shares(
        eager_reference(model, tokens, np.zeros((2, 32, 32, 3), np.float32)), artifacts[tokens].run
    )
    require_parity(parity, "tiny")


def test_perturbed_weights_are_refused_with_the_limit_that_would_pass(
    model: Ptsr, artifacts: dict[int, OrtRunner], random_flows: Any
) -> None:
    perturbed = copy.deepcopy(model)
    with torch.no_grad():
        perturbed.head.global_.bias[1] += 0.002
    parity = shares(eager_reference(perturbed, 16, random_flows(4)), artifacts[16].run)
    # The bias adds to one logit: the difference is .002, but for float32's rounding.
    assert parity.max_abs == pytest.approx(0.002, rel=0.05)
    with pytest.raises(ParityError) as caught:
        require_parity(parity, "tiny-k16")
    assert str(caught.value) == (
        f"tiny-k16 departs from eager fp32 on 4 samples: logits differ by up to {parity.max_abs:.3g} (limit "
        f"0.0001; the smallest limit that would pass is {parity.max_abs:.3g}); nothing was written"
    )


@pytest.mark.parametrize(
    "name", ["tokenizer.project.weight", "pos_embed", "blocks.2.mlp.fc1.weight", "head.local"]
)
def test_no_weight_can_drift_unseen(
    model: Ptsr, artifacts: dict[int, OrtRunner], random_flows: Any, name: str
) -> None:
    perturbed = copy.deepcopy(model)
    with torch.no_grad():
        dict(perturbed.named_parameters())[name].mul_(1.01)
    with pytest.raises(ParityError, match=r"logits differ by up to .*limit 0\.0001"):
        require_parity(shares(eager_reference(perturbed, 4, random_flows(4)), artifacts[4].run), "tiny")


def test_the_limit_itself_passes() -> None:
    parity = Parity(reference="eager fp32", samples=1, max_abs=1e-4, top1_agreement=1.0, limit=1e-4)
    require_parity(parity, "tiny")
    with pytest.raises(ParityError):
        require_parity(parity.model_copy(update={"max_abs": np.nextafter(1e-4, 1)}), "tiny")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused(model: Ptsr, random_flows: Any, value: float) -> None:
    truth = run_of(model, 4)
    calls = []

    def broken(flow: NDArray[np.float32]) -> Answer:
        logits, kept = truth(flow)
        calls.append(1)
        if len(calls) == 2:  # one bad answer among good ones
            logits = logits.copy()
            logits[2] = value
        return logits, kept

    with pytest.raises(ParityError, match="logits differ by up to inf"):
        require_parity(shares(eager_reference(model, 4, random_flows(3)), broken), "tiny")


def test_another_top_class_is_refused_within_the_limit(model: Ptsr, random_flows: Any) -> None:
    reference = eager_reference(model, 16, random_flows(1))
    close = np.array([1.0, 1.0 + 5e-5, 0.0], np.float32)
    object.__setattr__(reference, "logits", close[None])
    parity = shares(reference, lambda _: (close[[1, 0, 2]], np.arange(16)))
    assert parity.max_abs < parity.limit
    with pytest.raises(ParityError, match=r"the top class agrees on 0\.0% only"):
        require_parity(parity, "tiny")


def test_the_order_of_the_kept_tokens_does_not_matter(model: Ptsr, random_flows: Any) -> None:
    parity = shares(eager_reference(model, 4, random_flows(2)), run_of(model, 4, lambda kept: kept[::-1]))
    require_parity(parity, "tiny")


def test_a_graph_that_keeps_all_may_leave_the_tokens_out(model: Ptsr, random_flows: Any) -> None:
    truth = run_of(model, 16)
    require_parity(shares(eager_reference(model, 16, random_flows(2)), lambda x: (truth(x)[0], None)), "tiny")


def test_a_tied_token_may_stand_for_another(ptsr_config: Any, randomised: Any) -> None:
    # By strain, and where nothing moves, all 16 patches tie: any 4 of them are right, and the logits
    # are compared for the ones that the artifact took.
    model = cast(Ptsr, randomised(ptsr_config(score="strain")))
    reference = eager_reference(model, 4, np.zeros((1, 32, 32, 3), np.float32))
    others = sorted(set(range(16)) - set(reference.kept[0].tolist()))[:4]
    parity = shares(reference, run_of(model, 4, lambda _: others))
    require_parity(parity, "tiny")
    assert parity.kept_agreement == 1.0
    # The read-out is by position: without comparing for the same tokens this could not have agreed.
    with torch.no_grad():
        elsewhere = model(torch.zeros(1, 3, 32, 32), 4, torch.tensor([others])).logits[0].numpy()
    assert np.abs(elsewhere - reference.logits[0]).max() > 1e-2


def test_8_bit_flow_has_true_ties_that_only_the_order_of_a_sum_decides(
    ptsr_config: Any, randomised: Any
) -> None:
    """Two patches of other pixels and the same sum: a mean that is summed up in another order may take either."""
    model = cast(Ptsr, randomised(ptsr_config(score="strain")))
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 200, (32, 32)).astype(np.float32)
    first, second = levels[:8, :8], levels[:8, 8:16]  # of 16 patches, tokens 0 and 1
    first[:] = rng.integers(150, 200, (8, 8))
    second[:] = first[::-1]
    second[0, :2] += [7, -7]  # another multiset of pixels, the same sum
    assert first.sum() == second.sum()
    flows = np.zeros((1, 32, 32, 3), np.float32)
    flows[0, ..., 2] = levels / 255
    reference = eager_reference(model, 1, flows)
    for token in (0, 1):
        assert compare_selection(reference, 0, np.array([token])) == (1.0, 0.0)
        require_parity(shares(reference, run_of(model, 1, lambda _, token=token: [token])), "tiny")  # type: ignore[misc]
    second[0, 0] += (
        7  # a ninth of a grey level more in the mean of its 64 pixels, and it is no tie any longer
    )
    flows[0, ..., 2] = levels / 255
    assert compare_selection(eager_reference(model, 1, flows), 0, np.array([0]))[0] == 0.0


def test_wrong_logits_do_not_hide_behind_a_tie(ptsr_config: Any, randomised: Any) -> None:
    model = cast(Ptsr, randomised(ptsr_config(score="strain")))
    reference = eager_reference(model, 4, np.zeros((1, 32, 32, 3), np.float32))
    others = sorted(set(range(16)) - set(reference.kept[0].tolist()))[:4]
    # Reads other places than it says.
    parity = shares(reference, lambda _: (reference.logits[0], np.array(others)))
    with pytest.raises(ParityError, match="logits differ"):
        require_parity(parity, "tiny")


@pytest.mark.parametrize(
    ("choose", "share", "share_of_ties"),
    # Of the model's four tokens (of 16), how many the artifact has; where all scores tie, how many of
    # the artifact's are distinct and exist. By hand.
    [
        (lambda kept: [*kept[:3], next(t for t in range(16) if t not in kept)], 0.75, 1.0),
        (lambda kept: [t for t in range(16) if t not in kept][:4], 0.0, 1.0),
        (lambda kept: [kept[0], kept[0], kept[1], kept[2]], 0.75, 0.75),
        (lambda kept: [kept[0]] * 4, 0.25, 0.25),
        (lambda kept: kept[:3], 0.0, 0.0),
        (lambda kept: [*kept, next(t for t in range(16) if t not in kept)], 0.0, 0.0),
        (lambda kept: [*kept[:3], 16 + kept[3]], 0.75, 0.75),
        (lambda kept: [*kept[:3], kept[3] - 16], 0.75, 0.75),
    ],
    ids=["other", "all others", "duplicate", "all one", "missing", "too many", "beyond the last", "negative"],
)
@pytest.mark.parametrize("still", [False, True])
def test_other_tokens_are_refused_but_for_ties(
    ptsr_config: Any,
    randomised: Any,
    random_flows: Any,
    choose: Any,
    share: float,
    share_of_ties: float,
    still: bool,
) -> None:
    model = cast(Ptsr, randomised(ptsr_config(score="strain")))
    flows = np.zeros((1, 32, 32, 3), np.float32) if still else random_flows(1)
    reference = eager_reference(model, 4, flows)
    kept = np.array(choose(reference.kept[0].tolist()))
    expected = share_of_ties if still else share
    assert compare_selection(reference, 0, kept)[0] == expected
    if expected < 1:
        parity = shares(reference, lambda _: (reference.logits[0], kept))
        with pytest.raises(ParityError, match=f"selected tokens agree on {expected:.1%} only"):
            require_parity(parity, "tiny")


def scored(model: Ptsr, scores: NDArray[np.float32], kept: list[int]) -> Reference:
    """A reference of one sample with scores of one's own."""
    return Reference(
        model, len(kept), np.zeros((1, 3, 32, 32), np.float32), np.zeros((1, 3), np.float32),
        np.array([kept]), scores[None],
    )  # fmt: skip


def test_a_near_tie_is_one_and_a_difference_is_none(model: Ptsr) -> None:
    scores = np.linspace(1, 2, 16, dtype=np.float32)
    scores[3] = scores[12] * (1 - 5e-6)  # TIE is 1e-5 of the largest
    scores[4] = scores[12] * (1 - 5e-5)
    reference = scored(model, scores, [15, 14, 13, 12])
    assert compare_selection(reference, 0, np.array([15, 14, 13, 12])) == (1.0, 0.0)
    assert compare_selection(reference, 0, np.array([15, 14, 13, 3])) == (1.0, 0.0)
    share, gap = compare_selection(reference, 0, np.array([15, 14, 13, 4]))
    assert share == 0.75
    # Token 12 was dropped for token 4: 1.8 x 5e-5 of score, in standard deviations; float32 holds it to 1e-3.
    assert gap == pytest.approx(1.8 * 5e-5 / scores.std(), rel=1e-3)


def test_a_tie_excuses_no_better_token_that_is_dropped(model: Ptsr) -> None:
    scores = np.linspace(1, 2, 16, dtype=np.float32)
    scores[3] = scores[12]
    reference = scored(model, scores, [15, 14, 13, 12])
    # Token 3 may stand for 12, and not beside it for 15, whose score is the highest.
    share, gap = compare_selection(reference, 0, np.array([3, 14, 13, 12]))
    assert share == 0.75
    assert gap == pytest.approx((scores[15] - scores[12]) / scores.std(), rel=1e-6)


@pytest.mark.parametrize(("precision", "roundoff"), [("fp16", 2.0**-11), ("bf16", 2.0**-8)])
def test_nearly_even_scores_may_differ_by_a_few_roundings_of_themselves(
    model: Ptsr, precision: str, roundoff: float
) -> None:
    """Scores around 1 that deviate by 2 roundings from each other; 4 may be lost, 16 may not."""
    scores = 1 + 2 * roundoff * np.linspace(-1.7, 1.7, 16, dtype=np.float32)
    reference = scored(model, scores, [15, 14, 13, 12])
    limit = score_limit(reference, precision, 0)
    assert limit * scores.std() == pytest.approx(4 * roundoff * scores[12], rel=1e-6)
    assert compare_selection(reference, 0, np.array([15, 14, 13, 8]))[1] < limit
    # Where scores are far apart the rounding is nothing, and the limit is what it is for all.
    assert (
        score_limit(scored(model, np.linspace(0, 99, 16), [15, 14, 13, 12]), precision, 0)
        == (SCORE_SPREADS[precision])
    )
    scores[15] += 12 * roundoff  # dropping this one is no rounding
    assert compare_selection(reference, 0, np.array([14, 13, 12, 11]))[1] > score_limit(
        reference, precision, 0
    )


@pytest.mark.parametrize("kept", [[15, 15, 14, 13], [16, 15, 14, 13], [-1, 15, 14, 13], [15, 14, 13]])
def test_what_is_no_selection_is_infinitely_off(model: Ptsr, kept: list[int]) -> None:
    reference = scored(model, np.linspace(1, 2, 16, dtype=np.float32), [15, 14, 13, 12])
    assert compare_selection(reference, 0, np.array(kept))[1] == np.inf


def swapped(reference: Reference, index: int) -> tuple[list[int], float]:
    """The worst kept token exchanged for the best dropped one; how far that is off by the scores."""
    assert reference.scores is not None
    scores, kept = reference.scores[index], reference.kept[index].tolist()
    worst = min(kept, key=lambda token: scores[token])
    best = max(set(range(16)) - set(kept), key=lambda token: scores[token])
    return [best if t == worst else t for t in kept], float((scores[worst] - scores[best]) / scores.std())


def test_a_borderline_token_is_judged_by_its_score_and_not_by_what_it_does_to_the_logits(
    model: Ptsr, random_flows: Any
) -> None:
    reference = eager_reference(model, 4, random_flows(24))
    index = min(range(24), key=lambda place: swapped(reference, place)[1])
    kept, gap = swapped(reference, index)
    assert 0 < gap < SCORE_SPREADS["bf16"]
    flow = reference.inputs[index : index + 1]
    with torch.no_grad():
        logits = model(torch.from_numpy(flow), 4, torch.tensor([kept])).logits[0].numpy()
    # The swap alone moves the logits by more than bf16 may round them.
    assert np.abs(logits - reference.logits[index]).max() > limit_of(reference, "bf16")

    def run(one: NDArray[np.float32]) -> Answer:
        return (logits, np.array(kept)) if np.array_equal(one, flow) else run_of(model, 4)(one)

    parity = measure_parity(reference, run, "bf16")
    require_parity(parity, "tiny", "bf16")
    assert parity.kept_agreement == pytest.approx(
        1 - 0.25 / 24
    )  # the swap is not hidden: 1 token of 4, in 1 of 24
    assert parity.max_abs < 1e-5
    with pytest.raises(ParityError, match="selected tokens agree on 99.0% only"):
        require_parity(measure_parity(reference, run, "fp32"), "tiny")


def test_the_sample_that_is_looked_into_is_the_one_that_is_farthest_off(model: Ptsr) -> None:
    """By hand: scores 0 to 15, their standard deviation is 4.6, bf16 explains gaps of up to .1 of it."""
    scores = np.tile(np.arange(16, dtype=np.float32), (3, 1))
    kept = np.tile([15, 14, 13, 12], (3, 1))
    reference = Reference(
        model, 4, np.zeros((3, 3, 32, 32), np.float32), np.zeros((3, 3), np.float32), kept, scores
    )
    swapped = np.array([15, 14, 13, 11])

    def answer(difference: float, gap: float | None = None) -> Given:
        tokens = kept[0] if gap is None else swapped
        return Given(kept=tokens, difference=difference, same_class=True, gap=gap or 0.0)

    # No rounding explains a gap of .3, however right the logits are for these tokens.
    assert sample_at_fault(reference, [answer(9), answer(0, gap=0.3), answer(8)], "bf16") == 1
    # Layers behind the selection can be compared where the tokens are the reference's.
    assert sample_at_fault(reference, [answer(9, gap=0.05), answer(1), answer(2)], "bf16") == 2
    assert (
        sample_at_fault(reference, [answer(3, gap=0.05), answer(9, gap=0.05), answer(1, gap=0.05)], "bf16")
        == 1
    )
    assert sample_at_fault(reference, [answer(0), answer(np.inf), answer(1)], "bf16") == 1
    # In fp32 any other token is a fault.
    assert sample_at_fault(reference, [answer(9), answer(0), answer(0, gap=0.05)], "fp32") == 2


def test_a_refusal_tells_of_the_tokens_of_the_sample_that_it_looked_into(
    model: Ptsr, random_flows: Any, tmp_path: Path
) -> None:
    """Two samples, each with a borderline token of its own swapped; the logits of the first are worse."""
    flows = random_flows(24)
    every = eager_reference(model, 4, flows)
    reference = eager_reference(
        model, 4, flows[sorted(range(24), key=lambda index: swapped(every, index)[1])[:2]]
    )
    tokens = [swapped(reference, index)[0] for index in range(2)]
    assert all(swapped(reference, index)[1] < score_limit(reference, "bf16", index) for index in range(2))

    class Wrong(CpuTarget):
        def runner(self, artifact: Artifact, threads: int | None) -> Any:  # noqa: ARG002
            class Runner:
                def run(self, flow: NDArray[np.float32]) -> Answer:
                    index = next(i for i in range(2) if np.array_equal(flow[0], reference.inputs[i]))
                    logits, kept = run_of(model, 4, lambda _: tokens[index])(flow)
                    return logits + (9 - 4 * index), kept

            return Runner()

    graph = saved(trace(to_static(model, 4), model.config), tmp_path / "graph.onnx")
    artifact = Artifact(graph.path, [graph.path], {}, {})
    with pytest.raises(ParityError, match=r"logits differ by up to 9 ") as caught:
        prove("tiny", "bf16", reference, graph, Wrong(), artifact)
    differ = [other_tokens(reference.kept[index], np.array(tokens[index])) for index in range(2)]
    assert differ[0] != differ[1]
    assert str(caught.value).endswith(f"; {differ[0]}")


@pytest.mark.parametrize("precision", sorted(SPREADS))
@pytest.mark.parametrize(
    "choose",
    [
        lambda kept: [next(t for t in range(16) if t not in kept), *kept[1:]],
        lambda kept: [t for t in range(16) if t not in kept],
        lambda kept: [(t + 1) % 16 for t in kept],
        lambda kept: [4 * (t % 4) + t // 4 for t in kept],
        lambda kept: [kept[0], *kept[:-1]],
    ],
    ids=["without the best", "what should be dropped", "one place on", "rows for columns", "one twice"],
)
def test_a_wrong_selection_is_refused_in_every_precision(
    model: Ptsr, random_flows: Any, choose: Any, precision: str
) -> None:
    # Its logits are right for what it kept: the selection alone is at fault. Of 8 tokens one wrong is 12.5 %.
    parity = measure_parity(eager_reference(model, 8, random_flows(16)), run_of(model, 8, choose), precision)
    with pytest.raises(ParityError, match="selected tokens agree on"):
        require_parity(parity, "tiny", precision)


def test_int8_has_nothing_to_round_in_a_score_of_the_input(ptsr_config: Any, randomised: Any) -> None:
    attention = eager_reference(randomised(ptsr_config()), 4, np.zeros((1, 32, 32, 3), np.float32))
    strain = eager_reference(randomised(ptsr_config(score="strain")), 4, np.zeros((1, 32, 32, 3), np.float32))
    assert score_limit(attention, "int8", 0) == SCORE_SPREADS["int8"]
    assert score_limit(strain, "int8", 0) == score_limit(strain, "fp16", 0) == SCORE_SPREADS["fp16"]


@pytest.mark.parametrize("precision", sorted(SPREADS))
def test_logits_are_held_to_the_rounding_of_the_precision(
    model: Ptsr, random_flows: Any, precision: str
) -> None:
    reference = eager_reference(model, 4, random_flows(8))
    limit = SPREADS[precision] * reference.logits.std()
    for share, sound in ((0.99, True), (1.01, False)):

        def run(flow: NDArray[np.float32], share: float = share) -> Answer:
            logits, kept = run_of(model, 4)(flow)
            highest = logits.argmax()  # made higher still, so that the class stays
            return logits + share * limit * (np.arange(3) == highest), kept

        parity = measure_parity(reference, run, precision)
        assert parity.max_abs == pytest.approx(share * limit, rel=1e-3)
        if sound:
            require_parity(parity, "tiny", precision)
        else:
            with pytest.raises(ParityError, match="logits differ by up to"):
                require_parity(parity, "tiny", precision)


def test_the_reference_is_the_model_one_sample_at_a_time(model: Ptsr, random_flows: Any) -> None:
    from ptsr_edge.vision.flow import to_input

    flows = random_flows(3)
    reference = eager_reference(model, 8, flows)
    assert np.array_equal(reference.inputs, to_input(flows))
    with torch.no_grad():
        for index in range(3):
            logits, kept = model(torch.from_numpy(reference.inputs[index : index + 1]), 8)
            assert np.array_equal(reference.logits[index], logits[0].numpy())
            assert np.array_equal(reference.kept[index], kept[0].numpy())
    assert reference.scores is not None
    assert eager_reference(model, 16, flows).scores is None


@pytest.fixture(scope="module")
def traced(ptsr_config, randomised) -> onnx.ModelProto:
    model = randomised(ptsr_config(score="strain", depth=2))
    return trace(to_static(model, 4), model.config)


def test_a_tampered_layer_is_named(traced: onnx.ModelProto) -> None:
    one = np.random.default_rng(0).normal(size=(1, 3, 32, 32)).astype(np.float32)
    bad = onnx.ModelProto()
    bad.CopyFrom(traced)
    node = next(node for node in bad.graph.node if node.name == "blocks.1.tail.mlp.fc1")
    weights = next(tensor for tensor in bad.graph.initializer if tensor.name in node.input)
    weights.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weights) * 1.01, weights.name))
    reference = product_values(traced, one)
    found = product_values(bad, one)
    departure = first_divergence(reference, found, tolerance=1e-4)
    assert departure is not None
    assert departure.layer == "blocks.1.tail.mlp.fc1"
    # Every weight of it was made 1 % larger, and its bias is added by the next node.
    assert departure.relative == pytest.approx(0.01, rel=1e-3)
    assert "blocks.1.tail.mlp.fc1" in str(departure)
    assert first_divergence(reference, reference, tolerance=0.0) is None


def test_not_a_number_departs_and_missing_layers_are_passed_over() -> None:
    reference = {"a": np.ones(2, np.float32), "b": np.ones(2, np.float32)}
    assert first_divergence(reference, {"b": np.ones(2, np.float32)}, 0.1) is None
    broken = first_divergence(reference, {"b": np.array([1, np.nan], np.float32)}, 0.1)
    assert isinstance(broken, Divergence)
    assert broken.layer == "b"


def test_only_what_the_selection_is_calculated_from_stands_before_it(
    ptsr_config, randomised, traced: onnx.ModelProto
) -> None:
    # Strain is read off the input; attention comes from the tokenizer and the queries and keys of its block.
    assert before_selection(traced) == set()
    model = randomised(ptsr_config(depth=2, select_block=0))
    before = before_selection(trace(to_static(model, 4), model.config))
    assert "tokenizer.kernel" in before
    assert not [name for name in before if name.startswith(("blocks.1", "blocks.0.tail", "head"))]


def test_other_tokens_are_told_as_sets() -> None:
    assert other_tokens(np.array([3, 1, 2]), np.array([1, 2, 3])) == ""
    said = other_tokens(np.array([3, 1, 2]), np.array([1, 7, 2]))
    assert said == "the selection differs first: tokens 7 are kept in place of 3"
    said = other_tokens(np.arange(7), np.arange(7, 14))
    assert "tokens 7, 8, 9, 10, 11 and 2 more are kept in place of 0, 1, 2, 3, 4 and 2 more" in said
    assert "tokens none are kept in place of 2" in other_tokens(np.array([1, 2]), np.array([1, 1]))
