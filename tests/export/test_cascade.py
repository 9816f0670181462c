from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_data import tiny_flows, write_tiny_bundle

from ptsr_edge.bundle import read_bundle
from ptsr_edge.camera.inference import goes_on, probability_margin
from ptsr_edge.core.errors import InputError
from ptsr_edge.export.calibration import (
    MARGINS,
    SYNTHETIC_SEED,
    calibrate,
    cascade_samples,
    check_reach,
    choose_margin,
)
from ptsr_edge.session import Session
from ptsr_edge.stats.classification import confusion, uar
from ptsr_edge.stats.risk_bounds import paired, upper_bound
from ptsr_edge.vision.flow import to_input

CLASSES = 3


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


def test_the_rule_of_a_bundle_is_measured_through_its_artifacts(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path, (1.0, 0.5, 0.25))
    samples = dataclasses.replace(tiny_flows(60), subjects=np.array([f"s{number}" for number in range(60)]))
    (rule,) = calibrate(bundle.variants, tmp_path, samples, 0.1)
    # All budgets of the test's graphs answer alike: nothing is lost without the full one.
    assert (rule.target, rule.precision, rule.small, rule.full) == ("cpu", "fp32", 0.25, 1.0)
    assert (rule.margin, rule.drop, rule.units, rule.samples) == (0.0, 0.0, 60, 60)
    assert rule.upper <= rule.limit == 0.1
    assert not goes_on(rule, 0.0)
    assert rule.sha256 == samples.digest()
    session = Session.open(tmp_path)
    assert session.infer(to_input(samples.flows[0]))[0].shape == (3,)


def test_a_single_budget_and_a_rule_that_gains_nothing_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_tiny_bundle(tmp_path, (1.0,))
    assert calibrate(bundle.variants, tmp_path, tiny_flows(60), 0.5) == []
    assert "no cascade for cpu fp32: it has a single budget" in capsys.readouterr().err


def test_samples_are_people_or_clips_that_nothing_else_was_done_with(monkeypatch: pytest.MonkeyPatch) -> None:
    import ptsr_edge.export.calibration as module

    asked = {}
    monkeypatch.setattr(
        module, "load", lambda name, **options: asked.update(options, name=name) or tiny_flows(6)
    )
    synthetic = tiny_flows(12)
    cascade_samples(synthetic, synthetic.names, 16)
    assert asked["name"] == "synthetic"
    assert asked["seed"] == SYNTHETIC_SEED != 0
    recorded = dataclasses.replace(synthetic, source="megc-flow")
    assert cascade_samples(recorded, recorded.names[:8], 16).names == recorded.names[8:]
    with pytest.raises(InputError, match="no clip of the training side of megc-flow is left"):
        cascade_samples(recorded, recorded.names, 16)


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
    bundle = export.export_bundle(out=tmp_path / "bundle", cascade_loss=0.2, **options)
    (rule,) = bundle.cascades
    assert (rule.small, rule.full, rule.limit, rule.units) == (0.25, 1.0, 0.2, 200)
    assert rule.drop <= rule.upper <= 0.2
    assert read_bundle(tmp_path / "bundle") == bundle
    assert "article 5(1)(f)" in bundle.provenance["model_card"]
