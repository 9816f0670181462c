"""Calibration samples are spread, seeded and nobody's who is judged; a cascade's margin is bounded on samples of its own."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from bundle_data import tiny_flows, write_tiny_bundle
from numpy.typing import NDArray

from ptsr_edge.bundle import Bundle, describe_file, find_variant, read_bundle, write_bundle
from ptsr_edge.camera.stages import goes_on, probability_margin
from ptsr_edge.core.config import LABELS, FlowMethod, ModelConfig, Preprocess
from ptsr_edge.core.errors import InputError
from ptsr_edge.data.datasets import FlowDataset, load, split_subjects
from ptsr_edge.data.synthetic_clips import subject_names
from ptsr_edge.evaluate.evaluation import folds
from ptsr_edge.export.calibration import (
    FIRST,
    MARGINS,
    MASS,
    MOST_LOSS,
    QUANTILES,
    SYNTHETIC_SEED,
    Staircase,
    Step,
    budgets_from_data,
    calibrate,
    calibration_side,
    cascade_samples,
    check_reach,
    choose_margin,
    describe_calibration,
    draw,
    find_steps,
    judging_samples,
    measure_staircase,
    on_steps,
    recommend,
)
from ptsr_edge.models.checkpoint import CheckpointInfo, load_checkpoint, predict_logits, save_checkpoint
from ptsr_edge.models.ptsr import Model
from ptsr_edge.session import Session
from ptsr_edge.stats.classification import confusion, paired, uar, upper_bound

COUNTS = {("a", 0): 14, ("b", 0): 5, ("c", 0): 1, ("a", 1): 4, ("c", 1): 2, ("b", 2): 2, ("d", 2): 1}
"""Clips by subject and class: 20, 6 and 3 of the classes, no subject like the other."""


@pytest.fixture
def uneven() -> FlowDataset:
    rows = [key for key, count in COUNTS.items() for _ in range(count)]
    order = np.random.default_rng(3).permutation(len(rows))
    return FlowDataset(
        flows=np.random.default_rng(4).normal(size=(len(rows), 16, 16, 3)).astype(np.float32),
        labels=np.array([rows[place][1] for place in order], dtype=np.int64),
        subjects=np.array([rows[place][0] for place in order]),
        names=[f"clip{place:02d}" for place in order],
        label_names=LABELS,
        preprocess=Preprocess(image_size=16),
        source="toy",
    )


def trained_on(data: str | None, subjects: list[str] | None = None, size: int = 32) -> CheckpointInfo:
    provenance: dict[str, Any] = {"kind": "random"} if data is None else {"kind": "trained", "data": data}
    if subjects is not None:
        provenance["train_subjects"] = subjects
    config = ModelConfig(
        name="ptsr-test", kind="ptsr", image_size=size, patch_size=8, dim=8, depth=1, heads=2, score="strain"
    )
    return CheckpointInfo(
        schema=1,
        model=config,
        preprocess=Preprocess(image_size=size),
        labels=list(LABELS),
        provenance=provenance,
    )


def assert_even(drawn: Counter[Any], there: Counter[Any]) -> None:
    """No group is two ahead of another that still has clips."""
    for group, count in there.items():
        if drawn[group] < count:
            assert max(drawn.values(), default=0) <= drawn[group] + 1, (drawn, there)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 9, 10, 15, 20, 28, 29])
@pytest.mark.parametrize("seed", [0, 1])
def test_classes_and_within_them_subjects_take_turns(uneven: FlowDataset, count: int, seed: int) -> None:
    chosen, record = draw(uneven, count, seed)
    assert len(chosen) == count == record.samples
    assert_even(Counter(chosen.labels.tolist()), Counter(uneven.labels.tolist()))
    for label in range(3):
        there = Counter(uneven.subjects[uneven.labels == label].tolist())
        assert_even(Counter(chosen.subjects[chosen.labels == label].tolist()), there)
    assert len(set(chosen.names)) == count, "no clip twice"


def test_the_draw_is_the_seed_s(uneven: FlowDataset) -> None:
    first, again, other = draw(uneven, 12, 0), draw(uneven, 12, 0), draw(uneven, 12, 1)
    assert first[0].names == again[0].names
    assert first[1] == again[1]
    assert first[0].names != other[0].names
    assert first[1].sha256 != other[1].sha256


def test_the_record_says_what_was_drawn(uneven: FlowDataset) -> None:
    chosen, record = draw(uneven, 9, 5)
    assert record.data == "toy"
    assert (record.asked, record.samples, record.seed) == (9, 9, 5)
    assert record.sha256 == chosen.digest()
    assert record.subjects == sorted(set(chosen.subjects.tolist()))
    assert record.classes == {"negative": 3, "positive": 3, "surprise": 3}


def test_samples_stay_in_the_order_of_the_data(uneven: FlowDataset) -> None:
    """So that the same set has the same hash, however it was drawn."""
    chosen, _ = draw(uneven, 12)
    places = [uneven.names.index(name) for name in chosen.names]
    assert places == sorted(places)
    np.testing.assert_array_equal(chosen.flows, uneven.flows[places])


def test_fewer_than_asked_for_is_said(uneven: FlowDataset, caplog: pytest.LogCaptureFixture) -> None:
    chosen, record = draw(uneven, 100)
    assert [entry.getMessage() for entry in caplog.records] == [
        "calibration: 100 samples asked for, toy has 29"
    ]
    assert len(chosen) == 29
    assert (record.asked, record.samples) == (100, 29)
    caplog.clear()
    draw(uneven, 29)
    assert caplog.records == []


@pytest.mark.parametrize("count", [0, -1])
def test_no_sample_is_no_calibration(uneven: FlowDataset, count: int) -> None:
    with pytest.raises(InputError, match=f"at least 1 sample, got {count}"):
        draw(uneven, count)


def test_a_model_is_calibrated_on_people_it_was_trained_on() -> None:
    known = subject_names()
    side = calibration_side(trained_on("synthetic", known[:2]), None, None, count=4)
    assert side.source == "synthetic"
    assert side.subject_names == known[:2]
    assert side.preprocess.image_size == 32
    assert len(side) >= 8, "twice as many as will be drawn"


def test_of_other_data_the_held_out_people_are_left_alone(megc_folder: Path) -> None:
    """`holdout` is the protocol under which such data are judged; its split does not depend on the seed."""
    info = trained_on("synthetic", subject_names()[:2], size=32)
    side = calibration_side(info, megc_folder, "megc-flow", count=4)
    (fold,) = folds("holdout", [f"casme2/sub{number:02d}" for number in range(6)])
    assert set(side.subject_names) == set(fold.train)
    assert not set(side.subject_names) & set(fold.held_out)
    assert side.source == "megc-flow"


def test_random_weights_are_calibrated_on_synthetic_people_of_the_training_side_that_the_seed_draws() -> None:
    sides = [calibration_side(trained_on(None), None, None, count=2, seed=seed) for seed in (0, 1)]
    train, held = split_subjects(subject_names(), 0.2, seed=0)
    for side in sides:
        assert side.source == "synthetic"
        assert len(side.subject_names) == 8, "a few people are enough for so few samples"
        assert set(side.subject_names) <= set(train)
        assert not set(side.subject_names) & set(held)
    assert sides[0].subject_names != sides[1].subject_names


def test_the_data_are_those_of_training_where_they_can_be_had(megc_folder: Path) -> None:
    trained = ["casme2/sub00", "casme2/sub03"]
    with_folder = calibration_side(trained_on("megc-flow", trained), megc_folder, None, count=4)
    assert (with_folder.source, with_folder.subject_names) == ("megc-flow", trained)
    assert len(with_folder) == 12
    without = calibration_side(trained_on("megc-flow", trained), None, None, count=1)
    assert without.source == "synthetic"


def test_of_another_folder_the_training_side_is_taken(megc_folder: Path) -> None:
    """The people of training are of another folder of the same kind: none of them is there."""
    side = calibration_side(trained_on("megc-flow", ["folder:x/anna"]), megc_folder, None, 8)
    assert (
        side.subject_names
        == split_subjects(load("megc-flow", megc_folder, image_size=32).subjects, 0.2, 0)[0]
    )


def test_the_console_says_on_what_an_export_is_calibrated_and_proven(uneven: FlowDataset) -> None:
    _, record = draw(uneven, 9)
    told = (
        "calibrating on 9 samples of data toy and proving on 5 of them (4 people, 1 of them seen in training)"
    )
    assert record.subjects == ["a", "b", "c", "d"]
    assert describe_calibration(record, trained_on("toy", ["a", "z"]).provenance, 5) == told
    other = describe_calibration(record, trained_on("folder", ["a"]).provenance, 5)
    assert other == f"{told}; the model was trained on folder: --calibration DIR names its folder"
    assert describe_calibration(record, trained_on(None).provenance, 5) == told.replace("1 of", "0 of")


def test_what_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown data 'synthetik'; known: .*\(nearest: synthetic\)"):
        calibration_side(trained_on(None), None, "synthetik", count=4)
    with pytest.raises(InputError, match="is no megc-flow"):
        calibration_side(trained_on(None), tmp_path, "megc-flow", count=4)
    # A folder that the model's own data do not lie in must be named, not passed over.
    with pytest.raises(InputError, match=r"'synthetic' is rendered and lies in no folder"):
        calibration_side(trained_on("synthetic", subject_names()[:2]), tmp_path, None, count=4)
    with pytest.raises(InputError, match="needs a root"):
        calibration_side(trained_on(None), None, "megc-flow", count=4)


def equal_patches(count: int, patches: int = 16) -> NDArray[np.float32]:
    """(3, 32, 32): strain 1 in the first `count` patches of 8 x 8 pixels, 0 in the others."""
    grid = (np.arange(patches) < count).astype(np.float32).reshape(4, 4)
    inputs = np.zeros((3, 32, 32), dtype=np.float32)
    inputs[2] = np.kron(grid, np.ones((8, 8), dtype=np.float32))
    return inputs


def test_budgets_are_quantiles_of_the_dynamic_mode_s_counts(
    ptsr_config: Callable[..., ModelConfig], randomised: Callable[[ModelConfig], Model]
) -> None:
    model = randomised(ptsr_config(score="strain"))
    inputs = np.stack([equal_patches(count) for count in range(1, 12)])
    found = budgets_from_data(model, inputs, mass=0.9)
    # By hand: of k equal patches the smallest set that holds .9 has ceil(.9 k): 1..9, then 9 of 10, 10 of 11.
    assert found["counts"] == {str(k): 1 for k in range(1, 9)} | {"9": 2, "10": 1}
    # Of 11 sorted counts the quantiles lie at places 5, 9 and 9.9; between two, the higher.
    assert found["quantiles"] == {"0.5": 6, "0.9": 9, "0.99": 10}
    assert found["mass"] == 0.9


def costs(tile: int, jump: float, noise: float, seed: int = 0) -> NDArray[np.float64]:
    """(8, 189) made-up costs at 8 to 196 tokens: a slope, a jump whenever a tile of rows is full, noise of every opening."""
    rows = np.arange(8, 197) + 1
    level = np.log(20 + rows) + (np.ceil(rows / tile) * np.log1p(jump) if tile else 0)
    return np.exp(level + np.random.default_rng(seed).normal(0, noise, (8, len(rows))))


TOKENS = list(range(8, 197))


@pytest.mark.parametrize("tile", [8, 16])
def test_steps_are_found_where_tiles_are_full(tile: int) -> None:
    found = find_steps(TOKENS, costs(tile, 0.04, 0.004))
    assert [step.tokens for step in found] == [n for n in TOKENS[:-1] if (n + 1) % tile == 0]
    assert all(1.03 < step.factor < 1.05 and 1 < step.low < step.factor for step in found)


def test_a_single_slow_count_is_no_step() -> None:
    slow = costs(0, 0.0, 0.002)
    slow[:, TOKENS.index(48)] *= 1.04
    assert find_steps(TOKENS, slow) == []


@pytest.mark.parametrize(("tile", "jump", "noise"), [(0, 0.0, 0.004), (0, 0.0, 0.05), (16, 0.01, 0.002)])
def test_no_step_is_found_where_none_is_worth_it(tile: int, jump: float, noise: float) -> None:
    found = [len(find_steps(TOKENS, costs(tile, jump, noise, seed))) for seed in range(20)]
    assert sum(found) <= 2, found  # 1 of 20 may show one


def staircase(steps: Sequence[int], cost: Mapping[int, float]) -> Staircase:
    level = np.interp(TOKENS, sorted(cost), [cost[n] for n in sorted(cost)])
    found = [Step(tokens=n, factor=1.05, low=1.02) for n in steps]
    return Staircase(
        target="cpu", precision="int8", threads=1, cpu="x", tokens=TOKENS, cost=level.tolist(), steps=found
    )


@pytest.mark.parametrize(
    ("count", "moved"),
    [
        (49, 47),  # down over the step
        (42, 47),  # up: the tread costs nothing
        (47, 47),
        (70, 70),  # the step below is more than a tenth away, the one above costs more
        (230, 230),  # more than was measured
    ],
)
def test_budgets_move_to_where_they_waste_nothing(count: int, moved: int) -> None:
    on = staircase([47, 95, 191], {8: 0.1, 40: 0.3, 47: 0.3, 48: 0.33, 95: 0.6, 196: 1.0})
    assert on_steps([count], on) == [moved]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "precision"), [("cpu", "int8"), ("openvino", "int8"), ("openvino", "fp32")]
)
def test_a_block_is_measured_at_every_number_of_tokens(
    ptsr_config: Any, randomised: Any, target: str, precision: str
) -> None:
    model = randomised(ptsr_config(score="strain"))
    measured = measure_staircase(model, target, precision)
    assert measured.tokens == list(range(FIRST, 11))  # of 16: from half of them to .6
    assert measured.cost[-1] == 1
    assert (measured.target, measured.precision) == (target, precision)


def test_steps_of_what_does_not_run_here_are_refused(ptsr_config: Any, randomised: Any) -> None:
    with pytest.raises(
        InputError, match="steps of latency are measured for fp32 and int8 of target cpu and openvino, not"
    ):
        measure_staircase(randomised(ptsr_config()), "trt", "fp16")


@pytest.mark.parametrize("score", ["strain", "class-attention", "rollout"])
def test_budgets_grow_with_the_quantile_and_with_the_mass(
    ptsr_config: Callable[..., ModelConfig], randomised: Callable[[ModelConfig], Model], score: str
) -> None:
    model = randomised(ptsr_config(score=score, select_block=1))
    inputs = np.abs(np.random.default_rng(0).normal(size=(70, 3, 32, 32))).astype(np.float32) ** 3
    found = {mass: budgets_from_data(model, inputs, mass) for mass in (0.5, MASS, 1.0)}
    for entry in found.values():
        budgets = list(entry["quantiles"].values())
        assert list(entry["quantiles"]) == [f"{quantile:g}" for quantile in QUANTILES]
        assert budgets == sorted(budgets)
        assert budgets[0] >= 1
        assert budgets[-1] <= model.config.patches
        assert sum(entry["counts"].values()) == 70
    medians = [entry["quantiles"]["0.5"] for entry in found.values()]
    assert medians == sorted(medians)
    assert medians[0] < medians[2]


def test_counts_do_not_depend_on_how_the_samples_are_batched(
    ptsr_config: Callable[..., ModelConfig], randomised: Callable[[ModelConfig], Model]
) -> None:
    model = randomised(ptsr_config(score="strain"))
    inputs = np.abs(np.random.default_rng(1).normal(size=(70, 3, 32, 32))).astype(np.float32) ** 3
    one_by_one: Counter[str] = Counter()
    for sample in inputs:
        one_by_one.update(budgets_from_data(model, sample[None])["counts"])
    assert budgets_from_data(model, inputs)["counts"] == dict(
        sorted(one_by_one.items(), key=lambda entry: int(entry[0]))
    )
    assert torch.is_grad_enabled()


def test_a_baseline_has_no_budget_to_choose(
    ptsr_config: Callable[..., ModelConfig], randomised: Callable[[ModelConfig], Model]
) -> None:
    model = randomised(ptsr_config(kind="vit", name="vit-test"))
    with pytest.raises(InputError, match="vit-test keeps all tokens: `--budgets auto` needs a PTSR"):
        budgets_from_data(model, np.zeros((2, 3, 32, 32), np.float32))


def test_a_mass_that_is_no_share_is_refused(
    ptsr_config: Callable[..., ModelConfig], randomised: Callable[[ModelConfig], Model]
) -> None:
    model = randomised(ptsr_config(score="strain"))
    with pytest.raises(InputError, match=r"share in \(0, 1\], got 1\.5"):
        budgets_from_data(model, np.zeros((2, 3, 32, 32), np.float32), mass=1.5)


CLASSES = 3


def costed_bundle(folder: Path, noise: dict[float, float] | None = None) -> Bundle:
    """A bundle of three budgets that cost by their size; `noise` disturbs the answers of some of them."""
    bundle = write_tiny_bundle(folder, (1.0, 0.5, 0.25))
    variants = []
    for variant in bundle.variants:
        path = folder / variant.artifact
        graph = onnx.load(path)
        for weights in graph.graph.initializer:
            if weights.name == "b":
                values = onnx.numpy_helper.to_array(weights) / 100  # else every answer is certain
                drawn = np.random.default_rng(9).normal(size=values.shape).astype(np.float32)
                changed = values + np.float32((noise or {}).get(variant.keep_rate, 0.0)) * drawn
                weights.CopyFrom(onnx.numpy_helper.from_array(changed, "b"))
        onnx.save(graph, path)
        files = [describe_file(folder, path)]
        variants.append(variant.model_copy(update={"files": files, "macs": 1000 * variant.tokens}))
    changed_bundle = bundle.model_copy(update={"variants": variants})
    write_bundle(folder, changed_bundle)
    return changed_bundle


def answers(people: int, *, clips: int = 6, skill: float = 2.0, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Truth, subjects and the logits of a worse and of a better model; the worse one errs where it is close."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, CLASSES, people * clips)
    right = np.eye(CLASSES)[truth]
    subjects = np.repeat([f"s{number}" for number in range(people)], clips)
    noise = rng.normal(size=(len(truth), CLASSES))
    small = skill * right + noise
    full = 2 * skill * right + 0.8 * noise + 0.3 * rng.normal(size=noise.shape)
    return truth, subjects, small, full


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def test_the_chosen_margin_is_the_last_within_the_limit() -> None:
    truth, subjects, small, full = answers(400)
    chosen = choose_margin(truth, subjects, small, full, 0.03)
    leads = np.array([probability_margin(row.tolist()) for row in softmax(small)])
    bounds = {}
    for margin in MARGINS:
        answered = np.where(leads < margin, full.argmax(1), small.argmax(1))
        bounds[margin] = upper_bound(paired(truth, full.argmax(1), answered, subjects)).upper
    place = MARGINS.index(chosen.margin)
    assert all(bounds[margin] <= 0.03 for margin in MARGINS[: place + 1])
    assert bounds[MARGINS[place + 1]] > 0.03
    assert chosen.bound.upper == bounds[chosen.margin] <= 0.03
    assert chosen.escalated == pytest.approx((leads < chosen.margin).mean())
    assert 0.05 < chosen.escalated < 0.8
    # The drop that is bounded is that of UAR by the project's own metric.
    answered = np.where(leads < chosen.margin, full.argmax(1), small.argmax(1))
    drop = uar(confusion(truth, full.argmax(1), CLASSES)) - uar(confusion(truth, answered, CLASSES))
    assert chosen.bound.drop == pytest.approx(drop, abs=1e-12)


def test_a_looser_limit_asks_the_full_budget_less() -> None:
    data = answers(400)
    shares = [choose_margin(*data, limit).escalated for limit in (0.02, 0.05, 0.1)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[2]


def test_equal_models_need_no_full_budget() -> None:
    truth, subjects, small, _ = answers(200)
    chosen = choose_margin(truth, subjects, small, small, 0.05)
    assert (chosen.margin, chosen.escalated, chosen.bound.drop) == (0.0, 0.0, 0.0)


def test_the_limit_holds_for_new_people_as_often_as_is_said() -> None:
    """Over 20 calibrations the expected drop, measured on 30,000 new samples, exceeds the limit in 1 at most (5 %)."""
    truth, _, small, full = answers(5_000, seed=999)
    leads = np.array([row[-1] - row[-2] for row in np.sort(softmax(small), axis=1)])
    reference, limit, exceeded = full.argmax(1), 0.04, 0
    for seed in range(20):
        chosen = choose_margin(*answers(150, seed=seed), limit)
        answered = np.where(leads < chosen.margin, reference, small.argmax(1))
        drop = uar(confusion(truth, reference, CLASSES)) - uar(confusion(truth, answered, CLASSES))
        exceeded += drop > limit
    assert exceeded <= 1


def test_too_few_people_for_a_limit_are_refused_beforehand() -> None:
    truth, subjects, small, full = answers(30)
    for refused in (
        lambda: choose_margin(truth, subjects, small, full, 0.02),
        lambda: check_reach(truth, subjects, 0.02),
    ):
        with pytest.raises(InputError, match=r"30 subjects bound the drop of UAR by 0\.1\d\d at best"):
            refused()
    with pytest.raises(InputError, match=r"a drop of UAR in \(0, 1\), got 0"):
        check_reach(truth, subjects, 0)


def judged_people(folder: Path, count: int = 200) -> FlowDataset:
    """As many people with a sample each, labelled as the bundle's full budget answers."""
    samples = tiny_flows(count)
    session = Session.open(folder, budget=1.0)
    labels = [int(session.predict(flow).logits.argmax()) for flow in samples.flows]
    subjects = np.array([f"s{number}" for number in range(count)])
    return dataclasses.replace(samples, labels=np.array(labels), subjects=subjects)


def test_the_rule_of_a_bundle_is_measured_through_its_artifacts(tmp_path: Path) -> None:
    bundle = costed_bundle(tmp_path, noise={0.25: 0.002})
    samples = judged_people(tmp_path)
    (rule,) = calibrate(bundle.variants, tmp_path, samples, 0.1)
    assert (rule.target, rule.precision, rule.small, rule.full) == ("cpu", "fp32", 0.25, 1.0)
    small = Session.open(tmp_path, budget=0.25)
    asked = [goes_on(rule, probability_margin(small.predict(flow).probabilities)) for flow in samples.flows]
    assert rule.escalated == pytest.approx(np.mean(asked))
    assert 0 < rule.escalated < 1
    assert rule.drop <= rule.upper <= rule.limit == 0.1
    assert (rule.units, rule.samples, rule.sha256) == (200, 200, samples.digest())


@pytest.mark.parametrize(
    ("noise", "said"),
    [
        (0.0, r"it would never ask the full budget; the budget 0\.25 alone is within the limit"),
        (0.02, r"it would ask the full budget for \d+% of the samples, which costs as much as asking it"),
        (1.0, "the full budget would have to be asked always"),
    ],
    ids=["answers as the full one", "is asked in vain", "is certain of wrong answers"],
)
def test_a_cascade_that_gains_nothing_is_said_and_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], noise: float, said: str
) -> None:
    bundle = costed_bundle(tmp_path, noise={0.25: noise})
    assert calibrate(bundle.variants, tmp_path, judged_people(tmp_path), 0.1) == []
    assert re.search(f"^no cascade for cpu fp32: {said}", capsys.readouterr().err, re.MULTILINE)


def test_a_single_budget_and_a_rule_that_gains_nothing_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_tiny_bundle(tmp_path, (1.0,))
    assert calibrate(bundle.variants, tmp_path, tiny_flows(60), 0.5) == []
    assert "no cascade for cpu fp32: it has a single budget" in capsys.readouterr().err


def measured_by(flow: FlowMethod, data: FlowDataset) -> FlowDataset:
    return dataclasses.replace(data, preprocess=data.preprocess.model_copy(update={"flow": flow}))


def test_samples_are_people_or_clips_that_nothing_else_was_done_with(monkeypatch: pytest.MonkeyPatch) -> None:
    import ptsr_edge.export.calibration as module

    asked = {}
    monkeypatch.setattr(
        module, "load", lambda name, **options: asked.update(options, name=name) or tiny_flows(6)
    )
    synthetic = measured_by("dis-medium", tiny_flows(12))
    cascade_samples(synthetic, synthetic.names)
    assert (asked["name"], asked["flow"]) == ("synthetic", "dis-medium")
    assert asked["seed"] == SYNTHETIC_SEED != 0
    recorded = dataclasses.replace(synthetic, source="megc-flow")
    assert cascade_samples(recorded, recorded.names[:8]).names == recorded.names[8:]
    with pytest.raises(InputError, match="no clip of the training side of megc-flow is left"):
        cascade_samples(recorded, recorded.names)


def test_an_export_calibrates_a_cascade_and_writes_it_down(
    tiny_checkpoint: Path,
    megc_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    random_flows: Any,
) -> None:
    from ptsr_edge.export import exporter as export

    options: dict[str, Any] = dict(
        checkpoint=tiny_checkpoint,
        budgets=(1.0, 0.25),
        precisions=("fp32",),
        calibration=megc_folder,
        calibration_samples=6,
    )
    # Of the six people of the folder three are on the training side: too few for any statement.
    with pytest.raises(InputError, match="3 subjects are too few"):
        export.export_bundle(out=tmp_path / "none", cascade_loss=0.2, **options)
    assert not (tmp_path / "none").exists()
    people = dataclasses.replace(
        tiny_flows(200), flows=random_flows(200), subjects=np.array([f"s{number}" for number in range(200)])
    )
    monkeypatch.setattr(export, "cascade_samples", lambda *_: people)
    bundle = export.export_bundle(out=tmp_path / "bundle", cascade_loss=0.1, **options)
    (rule,) = bundle.cascades
    assert (rule.small, rule.full, rule.limit, rule.units) == (0.25, 1.0, 0.1, 200)
    assert rule.drop <= rule.upper <= 0.1
    assert read_bundle(tmp_path / "bundle") == bundle
    assert "article 5(1)(f)" in bundle.provenance["model_card"]


@pytest.mark.parametrize(
    ("noise", "chosen"),
    [({}, "k4"), ({0.25: 1.0}, "k8"), ({0.25: 1.0, 0.5: 1.0}, "k16")],
    ids=["all answer alike", "the smallest loses", "both smaller ones lose"],
)
def test_the_cheapest_variant_that_loses_little_is_recommended(
    tmp_path: Path, noise: dict[float, float], chosen: str
) -> None:
    bundle = costed_bundle(tmp_path, noise=noise)
    samples = judged_people(tmp_path)
    found = recommend(bundle.variants, tmp_path, samples)
    assert (found.variant, found.kind) == (f"ptsr-test-cpu-fp32-{chosen}", "judged")
    # The truth is what the full budget answers: its UAR is 1.
    assert "ptsr-test-cpu-fp32-k16 1.000, on 200 samples of 200 people (synthetic)" in found.reason
    session = Session.open(tmp_path, budget=find_variant(bundle, found.variant).keep_rate)
    answers = [int(session.predict(flow).logits.argmax()) for flow in samples.flows]
    assert 1 - uar(confusion(samples.labels, np.array(answers), CLASSES)) <= MOST_LOSS


def test_of_equal_budgets_the_smallest_files_are_recommended(tmp_path: Path) -> None:
    bundle = costed_bundle(tmp_path)
    full = bundle.variants[0]
    graph = onnx.load(tmp_path / full.artifact)
    onnx.helper.set_model_props(graph, {"padding": "x" * 5000})
    onnx.save(graph, tmp_path / "larger.onnx")
    larger = full.model_copy(
        update={"id": "larger", "files": [describe_file(tmp_path, tmp_path / "larger.onnx")],
                "artifact": "larger.onnx", "precision": "fp16"}
    )  # fmt: skip
    samples = judged_people(tmp_path)
    assert recommend([larger, full], tmp_path, samples).variant == full.id
    assert recommend([full, larger], tmp_path, samples).variant == full.id


def test_where_nothing_can_be_judged_the_largest_budget_is_recommended_and_the_reason_told(
    tmp_path: Path,
) -> None:
    bundle = costed_bundle(tmp_path)
    samples = judged_people(tmp_path)
    guessing = dataclasses.replace(samples, labels=np.arange(len(samples)) % CLASSES)
    for found, why in (
        (
            recommend(bundle.variants, tmp_path, None, "its weights are random"),
            "none was judged: its weights are random",
        ),
        (
            recommend(bundle.variants, tmp_path, tiny_flows(99)),
            "99 samples are left to judge budgets on, fewer than 100",
        ),
        (recommend(bundle.variants, tmp_path, guessing), "k16 is about as good as guessing"),
    ):
        assert (found.variant, found.kind) == ("ptsr-test-cpu-fp32-k16", "unjudged")
        assert why in found.reason


def test_of_a_target_that_does_not_run_here_the_budget_is_judged_through_another(tmp_path: Path) -> None:
    bundle = costed_bundle(tmp_path)
    (tmp_path / "none.plan").write_bytes(b"no plan")
    plans = [
        variant.model_copy(
            update={"id": f"plan-k{variant.tokens}", "target": "trt", "precision": "fp16", "artifact": "none.plan",
                    "files": [describe_file(tmp_path, tmp_path / "none.plan")]}
        )
        for variant in bundle.variants
    ]  # fmt: skip
    samples = judged_people(tmp_path)
    found = recommend([*bundle.variants, *plans], tmp_path, samples)
    assert (found.variant, found.kind) == ("plan-k4", "judged")
    assert "its budget was judged through ptsr-test-cpu-fp32-k4" in found.reason
    alone = recommend(plans, tmp_path, samples)
    assert (alone.variant, alone.kind) == ("plan-k16", "unjudged")
    assert "none of the variants can run on the machine that exported them" in alone.reason


def test_samples_to_judge_on_are_other_people_or_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    import ptsr_edge.export.calibration as module

    asked: dict[str, Any] = {}
    monkeypatch.setattr(
        module, "load", lambda name, **options: asked.update(options, name=name) or tiny_flows(6)
    )
    synthetic = measured_by("dis-medium", tiny_flows(12))
    judging_samples(synthetic, synthetic.names)
    assert asked["flow"] == "dis-medium"
    assert asked["seed"] not in (0, SYNTHETIC_SEED)
    recorded = dataclasses.replace(synthetic, source="megc-flow")
    assert judging_samples(recorded, recorded.names[:8]).names == recorded.names[8:]
    assert len(judging_samples(recorded, recorded.names)) == 0


@pytest.mark.parametrize("kind", ["trained", "random"])
def test_an_export_writes_what_it_recommends(
    tiny_checkpoint: Path, megc_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, random_flows: Any,
    kind: str,
) -> None:  # fmt: skip
    from ptsr_edge.export import exporter as export

    flows = random_flows(120)
    model, info = load_checkpoint(tiny_checkpoint)
    full = predict_logits(model, flows, 16)[0].argmax(axis=1)
    people = dataclasses.replace(tiny_flows(120), flows=flows, labels=full)
    monkeypatch.setattr(export, "judging_samples", lambda *_: people)
    checkpoint = tmp_path / "model.safetensors"
    provenance = {**info.provenance, "kind": kind}
    save_checkpoint(checkpoint, model, info.model_copy(update={"provenance": provenance}))
    bundle = export.export_bundle(
        out=tmp_path / "bundle", checkpoint=checkpoint, budgets=(1.0, 0.25), precisions=("fp32",),
        calibration=megc_folder, calibration_samples=6,
    )  # fmt: skip
    assert read_bundle(tmp_path / "bundle") == bundle
    found = bundle.recommended
    assert found is not None
    small = predict_logits(model, flows, 4)[0].argmax(axis=1)
    loss = 1 - uar(confusion(full, small, CLASSES))
    assert loss > MOST_LOSS, "the small budget of random weights answers otherwise"
    assert find_variant(bundle, found.variant).tokens == 16
    assert found.kind == ("judged" if kind == "trained" else "unjudged")
    assert Session.open(tmp_path / "bundle").variant.id == found.variant
