"""The sentence: each case, with figures that were put in by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from report_data import make_profile, write_profile

from ptsr_edge.profile.schema import NOT_RUN, Measured, Profile
from ptsr_edge.report.comparison import compare, ratio_text, read_sources
from ptsr_edge.report.recommendation import Recommendation, decide
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
def verdict_of(tmp_path: Path) -> Callable[..., Recommendation]:
    def decided(change: Callable[[Measured], Measured] = lambda row: row, **made: object) -> Recommendation:
        profile = make_profile(tmp_path / "one", samples=50, raw="none", kept=False, **made)  # type: ignore[arg-type]
        write_profile(tmp_path / "one", exact(profile, change))
        return decide(compare(read_sources([tmp_path / "one"])))

    return decided


def dropping(**figures: object) -> Callable[[Measured], Measured]:
    return lambda row: row.model_copy(update=figures)


def test_fastest_within_the_limit(verdict_of: Callable[..., Recommendation]) -> None:
    verdict = verdict_of()
    assert verdict.sentence == (
        "At 25 % of the tokens PTSR answers in 3.1 ms (p50), 2.6x [2.5, 2.7] as fast as the full-token ViT "
        "at 8.1 ms, and its UAR is 0.012 lower (0.871 against 0.883, n = 768)."
    )
    assert (verdict.status, verdict.name, verdict.id) == ("within", "25 %", "ptsr-k0.25-fp32-cpu")


def test_a_faster_one_beyond_the_limit_is_passed_over_and_mentioned(
    verdict_of: Callable[..., Recommendation],
) -> None:
    verdict = verdict_of(uars={1.0: 0.885, 0.5: 0.8631, 0.25: 0.8629})
    assert verdict.name == "50 %"
    assert verdict.sentence.endswith("What is faster loses more than 0.02.")


def test_the_limit_itself_qualifies(verdict_of: Callable[..., Recommendation]) -> None:
    assert verdict_of(uars={1.0: 0.883, 0.5: 0.863, 0.25: 0.863}).name == "25 %"


@pytest.mark.parametrize(
    ("uar", "words"),
    [
        (0.890, "its UAR is 0.007 higher (0.890 against 0.883, n = 768)"),
        (0.8833, "its UAR is the same (0.883 against 0.883, n = 768)"),
    ],
)
def test_gain_and_tie(verdict_of: Callable[..., Recommendation], uar: float, words: str) -> None:
    assert words in verdict_of(uars={1.0: 0.880, 0.5: 0.880, 0.25: uar}).sentence


def test_none_qualifies(verdict_of: Callable[..., Recommendation]) -> None:
    verdict = verdict_of(uars={1.0: 0.80, 0.5: 0.85, 0.25: 0.70})
    assert verdict.status == "beyond"
    assert verdict.sentence == (
        "No variant stays within 0.02 of the full-token ViT's UAR. The closest: at 50 % of the tokens PTSR "
        "answers in 5.0 ms (p50), 1.6x [1.5, 1.7] as fast as the full-token ViT at 8.1 ms, but its UAR is "
        "0.033 lower (0.850 against 0.883, n = 768)."
    )


def test_accuracy_missing(verdict_of: Callable[..., Recommendation]) -> None:
    verdict = verdict_of(dropping(accuracy=None, notes=["accuracy was not measured: the weights are random"]))
    assert verdict.status == "accuracy-not-measured"
    assert verdict.sentence == (
        "At 25 % of the tokens PTSR answers in 3.1 ms (p50), 2.6x [2.5, 2.7] as fast as the full-token ViT "
        "at 8.1 ms; its loss of accuracy was not measured (the weights are random), so what that costs is "
        "not known."
    )


def test_latency_missing(verdict_of: Callable[..., Recommendation]) -> None:
    verdict = verdict_of(dropping(latency_ms=None, ratio=None))
    assert verdict.status == "latency-not-measured"
    assert verdict.sentence == (
        "Latency was not measured; at 100 % of the tokens PTSR is closest to the full-token ViT: its UAR is "
        "0.003 lower (0.880 against 0.883, n = 768)."
    )


def test_nothing_measured(verdict_of: Callable[..., Recommendation]) -> None:
    verdict = verdict_of(dropping(latency_ms=None, ratio=None, accuracy=None))
    assert (verdict.status, verdict.id) == ("nothing-measured", None)


def test_interval_missing(verdict_of: Callable[..., Recommendation]) -> None:
    sentence = verdict_of(dropping(ratio=None)).sentence
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
    verdict_of: Callable[..., Recommendation], ratio: tuple[float, float, float], words: str
) -> None:
    median, low, high = ratio
    against = Ratio(against="vit-k1-fp32-cpu", median=median, low=low, high=high)
    assert words in verdict_of(dropping(ratio=against)).sentence


def test_a_baseline_at_chance_proves_nothing(verdict_of: Callable[..., Recommendation]) -> None:
    verdict = verdict_of(baseline_uar=0.35, uars={1.0: 0.34, 0.5: 0.34, 0.25: 0.34})
    assert verdict.status == "chance"
    assert "about as good as guessing (UAR 0.350, chance 0.333)" in verdict.sentence


def test_another_precision_is_said(tmp_path: Path) -> None:
    profile = make_profile(tmp_path / "one", samples=50, raw="none", kept=False)
    rows = list(profile.variants)
    rows[-1] = rows[-1].model_copy(update={"precision": "int8", "target": "openvino"})
    write_profile(tmp_path / "one", profile.model_copy(update={"variants": rows}))
    sentence = decide(compare(read_sources([tmp_path / "one"]))).sentence
    assert sentence.startswith("At 25 % of the tokens, in int8 on openvino, PTSR answers")
    assert "as fast as the full-token ViT in fp32 on cpu at" in sentence


def test_two_profiles_are_told_apart(tmp_path: Path) -> None:
    make_profile(tmp_path / "desk", samples=50)
    make_profile(tmp_path / "board", samples=50, scale=9)
    verdict = decide(compare(read_sources([tmp_path / "board", tmp_path / "desk"])))
    assert verdict.profile == "desk"
    assert "in the profile desk" in verdict.sentence


def test_only_the_baseline(tmp_path: Path) -> None:
    make_profile(tmp_path / "one", samples=50, rates=(), kept=False)
    assert decide(compare(read_sources([tmp_path / "one"]))).status == "no-variant"


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        ((2.61, 2.5, 2.7), "2.6x [2.5, 2.7]"),
        ((1.02, 0.99, 1.05), "1.02x [0.99, 1.05]"),
        ((2.61, 2.60, 2.62), "2.61x [2.60, 2.62]"),
    ],
)
def test_ratio_text_has_the_digits_that_its_interval_deserves(
    ratio: tuple[float, float, float], expected: str
) -> None:
    assert ratio_text(*ratio) == expected


def test_engines_that_were_not_run_are_said_to_be_built(verdict_of: Callable[..., Recommendation]) -> None:
    def unrun(row: Measured) -> Measured:
        nothing = dict.fromkeys(("latency_ms", "ratio", "accuracy"))
        return row.model_copy(update={"target": "trt", "notes": [f"{NOT_RUN}: no GPU"], **nothing})

    verdict = verdict_of(lambda row: unrun(row) if row.bundle else row)
    assert (
        verdict.sentence
        == "Neither latency nor accuracy was measured: every variant was built, not run here."
    )
    assert verdict.status == "nothing-measured"
