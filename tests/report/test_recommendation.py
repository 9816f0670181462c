"""The recommendation: each case with results that were put in by hand, and the choice under limits."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from judged_data import judged_profile
from report_data import compared, lacking, make_profile, write_profile

from ptsr_edge.core.errors import InputError
from ptsr_edge.profile.schema import NEW_CLIPS, Measured, Profile
from ptsr_edge.report.comparison import rounded_up
from ptsr_edge.report.recommendation import (
    Decision,
    Recommendation,
    check_limits,
    people_of_few_clips,
    recommend,
)
from ptsr_edge.stats.classification import needed_factor, paired, upper_bound
from ptsr_edge.stats.latency import Ratio


def exact(profile: Profile, change: Callable[[Measured], Measured] = lambda row: row) -> Profile:
    """Puts round figures into a profile of a full ViT and budgets of 100, 50 and 25 %."""
    times = {"vit-k1-fp32-cpu": 8.1, "ptsr-k1-fp32-cpu": 8.0, "ptsr-k0.5-fp32-cpu": 5.0}
    rows = []
    for row in profile.variants:
        assert row.latency_ms is not None
        p50 = times.get(row.id, 3.1)
        ratio = Ratio(against="vit-k1-fp32-cpu", median=8.1 / p50, low=8.1 / p50 - 0.1, high=8.1 / p50 + 0.1)
        figures = {
            "latency_ms": row.latency_ms.model_copy(update={"p50": p50}),
            "ratio": ratio if row.id.startswith("ptsr") else None,
        }
        rows.append(change(row.model_copy(update=figures)))
    return profile.model_copy(update={"variants": rows})


@pytest.fixture
def recommended(tmp_path: Path) -> Callable[..., Recommendation]:
    def decided(change: Callable[[Measured], Measured] = lambda row: row, **made: object) -> Recommendation:
        profile = make_profile(tmp_path / "one", samples=50, raw="none", kept=False, **made)  # type: ignore[arg-type]
        write_profile(tmp_path / "one", exact(profile, change))
        return recommend(compared(tmp_path / "one"))[0]

    return decided


def dropping(**figures: object) -> Callable[[Measured], Measured]:
    return lambda row: row.model_copy(update=figures)


def test_fastest_within_the_limit(recommended: Callable[..., Recommendation]) -> None:
    found = recommended()
    assert found.sentence == (
        "At 25 % of the tokens PTSR answers in 3.1 ms (p50), 2.6x [2.5, 2.7] as fast as the full-token ViT "
        "at 8.1 ms, and its UAR is 0.012 lower (0.871 against 0.883, n = 768)."
    )
    assert (found.status, found.name, found.id) == ("within", "25 %", "ptsr-k0.25-fp32-cpu")


def test_a_faster_one_beyond_the_limit_is_passed_over_and_mentioned(
    recommended: Callable[..., Recommendation],
) -> None:
    found = recommended(uars={1.0: 0.885, 0.5: 0.8631, 0.25: 0.8629})
    assert found.name == "50 %"
    assert found.sentence.endswith("What is faster loses more than 0.02.")


def test_the_limit_itself_qualifies(recommended: Callable[..., Recommendation]) -> None:
    assert recommended(uars={1.0: 0.883, 0.5: 0.863, 0.25: 0.863}).name == "25 %"


@pytest.mark.parametrize(
    ("uar", "words"),
    [
        (0.890, "its UAR is 0.007 higher (0.890 against 0.883, n = 768)"),
        (0.8833, "its UAR is the same (0.883 against 0.883, n = 768)"),
    ],
)
def test_gain_and_tie(recommended: Callable[..., Recommendation], uar: float, words: str) -> None:
    assert words in recommended(uars={1.0: 0.880, 0.5: 0.880, 0.25: uar}).sentence


def test_none_qualifies(recommended: Callable[..., Recommendation]) -> None:
    found = recommended(uars={1.0: 0.80, 0.5: 0.85, 0.25: 0.70})
    assert found.status == "beyond"
    assert found.sentence == (
        "No variant stays within 0.02 of the full-token ViT's UAR. The closest: at 50 % of the tokens PTSR "
        "answers in 5.0 ms (p50), 1.6x [1.5, 1.7] as fast as the full-token ViT at 8.1 ms, but its UAR is "
        "0.033 lower (0.850 against 0.883, n = 768)."
    )


def test_accuracy_missing(recommended: Callable[..., Recommendation]) -> None:
    found = recommended(
        lambda row: lacking(
            row, "random_weights", "accuracy was not measured: the weights are random", "accuracy"
        )
    )
    assert found.status == "accuracy-not-measured"
    assert found.sentence == (
        "At 25 % of the tokens PTSR answers in 3.1 ms (p50), 2.6x [2.5, 2.7] as fast as the full-token ViT "
        "at 8.1 ms; its loss of accuracy was not measured, so what that costs is not known."
    )
    assert found.detail == "Accuracy was not measured: the weights are random."


def test_latency_missing(recommended: Callable[..., Recommendation]) -> None:
    found = recommended(dropping(latency_ms=None, ratio=None))
    assert found.status == "latency-not-measured"
    assert found.sentence == (
        "Latency was not measured; at 100 % of the tokens PTSR is closest to the full-token ViT: its UAR is "
        "0.003 lower (0.880 against 0.883, n = 768)."
    )


def test_nothing_measured(recommended: Callable[..., Recommendation]) -> None:
    found = recommended(dropping(latency_ms=None, ratio=None, accuracy=None))
    assert (found.status, found.id) == ("nothing-measured", None)


def test_interval_missing(recommended: Callable[..., Recommendation]) -> None:
    sentence = recommended(dropping(ratio=None)).sentence
    assert "3.1 ms (p50), beside the full-token ViT at 8.1 ms, a ratio that was not measured, and" in sentence


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        ((1.01, 0.97, 1.04), "not told apart from the full-token ViT at 8.1 ms (1.01x [0.97, 1.04] as fast)"),
        ((0.81, 0.79, 0.83), "which is slower: 0.81x [0.79, 0.83] as fast as the full-token ViT at 8.1 ms"),
    ],
    ids=["level", "slower"],
)
def test_no_gain_is_called_none(
    recommended: Callable[..., Recommendation], ratio: tuple[float, float, float], words: str
) -> None:
    median, low, high = ratio
    against = Ratio(against="vit-k1-fp32-cpu", median=median, low=low, high=high)
    assert words in recommended(dropping(ratio=against)).sentence


def test_a_baseline_at_chance_proves_nothing(recommended: Callable[..., Recommendation]) -> None:
    found = recommended(baseline_uar=0.35, uars={1.0: 0.34, 0.5: 0.34, 0.25: 0.34})
    assert found.status == "chance"
    assert "about as good as guessing (UAR 0.350, chance 0.333)" in found.sentence


def test_another_precision_is_said(tmp_path: Path) -> None:
    profile = make_profile(tmp_path / "one", samples=50, raw="none", kept=False)
    rows = list(profile.variants)
    rows[-1] = rows[-1].model_copy(update={"precision": "int8", "target": "openvino"})
    write_profile(tmp_path / "one", profile.model_copy(update={"variants": rows}))
    sentence = recommend(compared(tmp_path / "one"))[0].sentence
    assert sentence.startswith("At 25 % of the tokens, in int8 on openvino, PTSR answers")
    assert "as fast as the full-token ViT in fp32 on cpu at" in sentence


def test_two_profiles_are_told_apart(tmp_path: Path) -> None:
    make_profile(tmp_path / "desk", samples=50)
    make_profile(tmp_path / "board", samples=50, scale=9)
    found = recommend(compared(tmp_path / "board", tmp_path / "desk"))[0]
    assert found.profile == "desk"
    assert "in the profile desk" in found.sentence


def test_only_the_baseline(tmp_path: Path) -> None:
    make_profile(tmp_path / "one", samples=50, rates=(), kept=False)
    assert recommend(compared(tmp_path / "one"))[0].status == "no-variant"


def test_engines_that_were_not_run_are_said_to_be_built(recommended: Callable[..., Recommendation]) -> None:
    def unrun(row: Measured) -> Measured:
        return lacking(row, "no_device", "no GPU", "latency_ms", "ratio", "accuracy")

    found = recommended(lambda row: unrun(row) if row.bundle else row)
    assert (
        found.sentence == "Neither latency nor accuracy was measured: every variant was built, not run here."
    )
    assert found.status == "nothing-measured"


def test_no_difference_is_called_none(tmp_path: Path) -> None:
    judged_profile(tmp_path, worse={1.0: 0.0, 0.5: 0.0, 0.25: 0.01})  # every interval holds zero
    sentence = recommend(compared(tmp_path))[0].sentence
    assert "in UAR there is no difference" in sentence
    assert "lower" not in sentence


EQUAL = {1.0: 0.0, 0.5: 0.0, 0.25: 0.0}


def chosen(
    folder: Path, latency: float | None, drop: float | None, unit: str = "subject"
) -> tuple[Recommendation, Decision]:
    limits = check_limits(latency, drop, 0.95, unit)  # type: ignore[arg-type]
    assert limits is not None
    found, decision = recommend(compared(folder), limits)
    assert decision is not None
    return found, decision


def test_the_fastest_that_meets_both_is_taken(tmp_path: Path) -> None:
    profile = judged_profile(tmp_path, worse=EQUAL)
    found, decision = chosen(tmp_path, 20, 0.05)
    assert found.id == "ptsr-k0.25-fp32-cpu"
    assert decision.picked == found.name == "25 %"
    # The bound is that of the paired answers, for the two variants beside the reference.
    assert profile.judged is not None
    answers = [row.accuracy.predicted for row in profile.variants if row.accuracy]
    pairs = paired(profile.judged.truth, answers[1], answers[3], profile.judged.subject)  # type: ignore[arg-type]
    expected = upper_bound(pairs, tests=2).upper
    taken = next(c for c in decision.candidates if c.told == "taken")
    assert (
        taken.upper == taken.upper_against_baseline == expected
    )  # the baseline of this profile answers alike
    assert (
        f"loses at most {rounded_up(expected)} of UAR against 100 %, with 95 % confidence" in found.sentence
    )
    assert "900 samples of 300 subjects, subjects taken as the unit, one of 2 variants" in found.detail


def test_a_faster_one_that_loses_is_passed_over(tmp_path: Path) -> None:
    judged_profile(tmp_path, worse={1.0: 0.0, 0.5: 0.0, 0.25: 0.10})
    found, decision = chosen(tmp_path, None, 0.05)
    assert decision.picked == "50 %"
    assert decision.nearest == "25 %"
    assert "more data of this kind would not show 0.05" in found.detail
    assert {c.name: c.told for c in decision.candidates}["25 %"] == "drop too large"


def test_a_point_estimate_within_the_limit_is_not_enough(tmp_path: Path) -> None:
    # 1 % of the subjects are lost: a drop of about .0085 as measured, which 300 subjects cannot bound by .02.
    profile = judged_profile(tmp_path, worse={1.0: 0.0, 0.5: 0.01, 0.25: 0.01})
    small, large = profile.variants[3].latency_ms, profile.variants[2].latency_ms
    assert small is not None
    assert large is not None
    found, decision = chosen(tmp_path, large.p95, 0.02)
    assert (decision.picked, found.status) == (None, "none-meets-the-limits")
    close = next(c for c in decision.candidates if c.name == decision.nearest)
    assert close.drop < 0.02 < (close.upper or 0)
    assert close.needed_units is not None
    assert close.needed_units > 300
    assert close.needed_samples == pytest.approx(3 * close.needed_units, rel=0.01)
    assert "subjects like these, and has 300" in found.detail


def test_too_slow_names_the_fastest(tmp_path: Path) -> None:
    judged_profile(tmp_path, worse=EQUAL)
    found, decision = chosen(tmp_path, 0.1, 0.05)
    assert decision.picked is None
    assert found.sentence.startswith("No variant meets 0.1 ms of latency (p95)")
    assert "the fastest, 25 %, takes" in found.sentence
    assert all(c.upper is None and c.told == "too slow" for c in decision.candidates)


def test_of_two_that_are_not_told_apart_in_speed_the_smaller_is_taken(tmp_path: Path) -> None:
    profile = judged_profile(tmp_path, worse=EQUAL)
    rows = list(profile.variants)
    ratio = rows[3].ratio
    assert ratio is not None
    rows[2] = rows[2].model_copy(update={"ratio": ratio, "size_bytes": 1000})
    write_profile(tmp_path, profile.model_copy(update={"variants": rows}))
    assert chosen(tmp_path, None, 0.05)[1].picked == "50 %"


def test_independent_samples_are_an_assumption_that_is_asked_for(tmp_path: Path) -> None:
    judged_profile(tmp_path, worse=EQUAL, samples=900, subjects=30)
    by_subject, by_sample = chosen(tmp_path, None, 0.05), chosen(tmp_path, None, 0.05, "sample")
    assert by_subject[1].picked == "100 %"
    assert "is the reference itself" in by_subject[0].sentence
    assert by_sample[1].picked == "25 %"
    assert "taken as independent" in by_sample[0].detail


def test_latency_alone_is_chosen_by_latency_alone(tmp_path: Path) -> None:
    judged_profile(
        tmp_path, worse={1.0: 0.0, 0.5: 0.0, 0.25: 0.10}
    )  # 25 % loses a tenth: no limit on it was set
    found, decision = chosen(tmp_path, 20, None)
    assert (decision.picked, found.max_uar_drop) == ("25 %", None)
    assert found.sentence.endswith("Asked for: 20 ms of latency (p95); no limit on the loss of UAR.")
    assert found.detail.startswith("Accuracy was not held against a limit: ")
    assert all(c.drop is None and c.upper is None for c in decision.candidates)
    assert (decision.reference, decision.units, decision.tests) == (None, 0, 1)


def test_a_limit_on_latency_needs_no_accuracy(tmp_path: Path) -> None:
    profile = make_profile(tmp_path, samples=50, kept=False)
    unjudged = [
        lacking(row, "not_asked", "accuracy was not asked for", "accuracy") for row in profile.variants
    ]
    write_profile(tmp_path, profile.model_copy(update={"variants": unjudged}))
    found, decision = chosen(tmp_path, 1000, None)
    assert decision.picked == found.name == "25 %"
    with pytest.raises(InputError, match="holds no answers by sample"):
        chosen(tmp_path, 1000, 0.05)
    untimed = [row.model_copy(update={"latency_ms": None, "ratio": None}) for row in unjudged]
    write_profile(tmp_path, profile.model_copy(update={"variants": untimed}))
    with pytest.raises(InputError, match="no variant was timed: there is nothing to choose from"):
        chosen(tmp_path, 1000, None)


def test_the_headline_says_what_was_asked_for_and_what_was_not(tmp_path: Path) -> None:
    judged_profile(tmp_path, worse=EQUAL)
    assert chosen(tmp_path, None, 0.05)[0].sentence.endswith(
        "Asked for: a loss of UAR of at most 0.05; no limit on latency."
    )
    assert chosen(tmp_path, 20, 0.05)[0].sentence.endswith(
        "Asked for: 20 ms of latency (p95) with a loss of UAR of at most 0.05."
    )
    assert chosen(tmp_path, 0.1, None)[0].sentence.endswith("(p95); no limit on the loss of UAR.")


def test_the_option_that_renders_enough_people_is_named(tmp_path: Path) -> None:
    """The number is for people of `NEW_CLIPS` clips; here each of 30 subjects has 24, four such people."""
    profile = judged_profile(tmp_path, worse=EQUAL, samples=720, subjects=30)
    found, decision = chosen(tmp_path, None, 0.02)
    close = next(c for c in decision.candidates if c.name == decision.nearest)
    assert profile.judged is not None
    people = np.arange(720) // NEW_CLIPS
    assert len(set(people_of_few_clips(profile.judged.subject))) == len(set(people)) == 120
    answers = profile.variants[1].accuracy.predicted  # type: ignore[union-attr]
    few = paired(profile.judged.truth, answers, answers, people)  # type: ignore[arg-type]
    factor = needed_factor(few, 0.02, tests=2)
    assert factor is not None
    assert close.needed_people == math.ceil(factor * 120)
    assert close.needed_units is not None
    told = -(-close.needed_people // 10) * 10
    assert f"profile ... --subjects {told} (6 clips of each)" in found.detail
    # That many such people do show it.
    copies = -(-told // 120)
    truth, many = np.tile(profile.judged.truth, copies), np.tile(answers, copies)  # type: ignore[arg-type]
    owners = np.arange(truth.size) // NEW_CLIPS
    assert upper_bound(paired(truth, many, many, owners), tests=2).upper <= 0.02
    # Of recorded people there are no more to be had by an option.
    write_profile(tmp_path, profile.model_copy(update={"data_is_rendered": False}))
    found, decision = chosen(tmp_path, None, 0.02)
    assert all(c.needed_people is None for c in decision.candidates)
    assert "--subjects" not in found.detail


@pytest.mark.parametrize(
    ("latency", "drop", "confidence", "said"),
    [
        (-8, None, 0.95, "--max-latency-ms is a time above 0, got -8"),
        (math.nan, None, 0.95, "--max-latency-ms is a time above 0, got nan"),
        (None, -0.01, 0.95, "--max-uar-drop is a share above 0 and below 1, got -0.01"),
        (None, 1.0, 0.95, "--max-uar-drop is a share above 0 and below 1, got 1"),
        (None, 0.01, 95.0, "--confidence is a share above 0 and below 1, got 95"),
    ],
)
def test_a_limit_that_is_none_is_refused(
    latency: float | None, drop: float | None, confidence: float, said: str
) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        check_limits(latency, drop, confidence, "subject")


def test_data_that_cannot_bear_a_bound_are_refused(tmp_path: Path) -> None:
    judged_profile(tmp_path / "few", worse=EQUAL, samples=90, subjects=4)
    with pytest.raises(InputError, match="4 subjects are too few for any statement"):
        chosen(tmp_path / "few", None, 0.05)
    make_profile(tmp_path / "old")
    with pytest.raises(InputError, match="holds no answers by sample"):
        chosen(tmp_path / "old", None, 0.05)
    judged_profile(tmp_path / "chance", worse=EQUAL, right=0.34)
    with pytest.raises(InputError, match="about as good as guessing"):
        chosen(tmp_path / "chance", None, 0.05)
    profile = judged_profile(tmp_path / "int8", worse=EQUAL)
    rows = [row.model_copy(update={"precision": "int8"}) for row in profile.variants]
    write_profile(tmp_path / "int8", profile.model_copy(update={"variants": rows}))
    with pytest.raises(InputError, match="holds no fp32 variant that was judged"):
        chosen(tmp_path / "int8", None, 0.05)
