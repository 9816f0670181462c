"""Planted changes are found and small ones are not called, on simulated drifting timings and real records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judged_data import judged_profile
from report_data import changed, make_profile
from timings import ratio

from ptsr_edge.core.errors import InputError
from ptsr_edge.profile.schema import Attempt, Measured, Missing, Profile
from ptsr_edge.report.changes import changes_words, compare_profiles, sentence, summary, time_verdict
from ptsr_edge.stats.latency import Ratio


@pytest.fixture
def profile(tmp_path: Path) -> Profile:
    return make_profile(tmp_path, samples=20, raw="none", kept=False)


def verdicts(profile: Profile, slowdown: float, tries: int) -> list[str]:
    found = []
    for seed in range(tries):
        old, new = ratio(2 * seed, 1.0), ratio(2 * seed + 1, slowdown)
        found.append(
            compare_profiles(changed(profile, ratio=old), changed(profile, ratio=new)).changes[1].time
        )
    return found


def test_a_slowdown_of_ten_percent_is_found(profile: Profile) -> None:
    # Five processes a variant that differ by 1 %: the change has a standard error near 1 %, and 8 % lie between
    # it and the margin. Seeds are fixed: this cannot fail by chance.
    assert verdicts(profile, 1.10, 40).count("slower") >= 38


@pytest.mark.parametrize("slowdown", [1.0, 1.01, 1 / 1.01])
def test_one_percent_and_nothing_are_not_called(profile: Profile, slowdown: float) -> None:
    # The whole interval must lie beyond 2 %: by 1 % this errs in far fewer than 2.5 of 100 cases.
    found = verdicts(profile, slowdown, 60)
    assert found.count("slower") + found.count("faster") <= 1


def test_a_gain_is_told_apart(profile: Profile) -> None:
    assert verdicts(profile, 1 / 1.15, 20).count("faster") >= 19


@pytest.mark.parametrize("when", ["before", "now"])
def test_an_unstable_run_leaves_it_open(profile: Profile, when: str) -> None:
    restless = {"attempts": [Attempt(unstable=None), Attempt(unstable="a neighbour woke up")]}
    stable = {"attempts": [Attempt(unstable="at first"), Attempt(unstable=None)]}
    old = changed(profile, ratio=ratio(0, 1.0)).model_copy(update=restless if when == "before" else stable)
    new = changed(profile, ratio=ratio(1, 1.2)).model_copy(update=restless if when == "now" else stable)
    found = compare_profiles(old, new)
    assert found.changes[1].time == "unclear"
    assert found.changes[1].note == f"the run {when} was unstable: a neighbour woke up"
    assert found.changes[1].times_as_long == pytest.approx(1.2, abs=0.05)
    assert found.regressions == []


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.03, 1.2, "slower"), (1.01, 1.05, "no change"), (0.97, 1.01, "no change"), (0.8, 0.95, "faster"),
        (0.95, 1.3, "unclear"), (0.7, 1.01, "unclear"), (1.02, 1.5, "unclear"),
    ],
)  # fmt: skip
def test_verdicts_of_intervals(low: float, high: float, verdict: str) -> None:
    assert time_verdict(low, high) == verdict


def test_one_process_each_leaves_it_open(profile: Profile) -> None:
    found = compare_profiles(profile, profile)
    assert [change.time for change in found.changes] == ["not compared", *["unclear"] * 3]
    assert "profile with --processes 5" in (found.changes[1].note or "")
    assert found.regressions == []


def test_nothing_that_could_be_compared_is_no_good_news(profile: Profile) -> None:
    """Neither a change nor none is called of any variant: the last line says why."""
    base, one, *rest = profile.variants

    def ending(**fields: Any) -> str:
        return summary(compare_profiles(profile, profile.model_copy(update=fields)))[-1]

    names = ", ".join(row.id for row in (one, *rest))
    alone = "one process of each variant says nothing about the next: profile with --processes 5"
    assert ending() == f"nothing could be compared: {alone} ({names})"
    assert ending(variants=[base]) == (
        "nothing could be compared: no variant beside the baseline is in both profiles"
    )
    untimed = one.model_copy(update={"ratio": None})
    assert ending(variants=[base, untimed]) == (f"nothing could be compared: it was not timed now ({one.id})")
    assert ending(variants=[base, untimed, rest[0]]) == (
        f"nothing could be compared: it was not timed now ({one.id}); {alone} ({rest[0].id})"
    )
    # What got worse, or better, was compared.
    larger = one.model_copy(update={"size_bytes": 2 * one.size_bytes})
    assert ending(variants=[base, larger]) == f"worse than before: {one.id}"
    smaller = one.model_copy(update={"size_bytes": one.size_bytes // 2})
    assert ending(variants=[base, smaller]) == "nothing got worse beyond noise"


def scores(profile: Profile, **fields: Any) -> list[tuple[str, str]]:
    change = compare_profiles(profile, changed(profile, **fields)).changes[1]
    assert change.is_regression == any(score.is_ == "worse" for score in change.scores)
    return [(score.name, score.is_) for score in change.scores]


def test_results_beyond_their_margins(profile: Profile) -> None:
    row: Measured = profile.variants[1]
    assert row.peak_rss_bytes is not None
    assert scores(profile, size_bytes=round(row.size_bytes * 1.01)) == []
    assert scores(profile, size_bytes=round(row.size_bytes * 1.5)) == [("size_bytes", "worse")]
    assert scores(profile, macs=round(row.macs * 0.5)) == [("macs", "better")]
    assert scores(profile, peak_rss_bytes=round(row.peak_rss_bytes * 1.04)) == []
    assert scores(profile, peak_rss_bytes=round(row.peak_rss_bytes * 1.10)) == [("peak_rss_bytes", "worse")]


def test_accuracy_beyond_its_interval(profile: Profile) -> None:
    accuracy = profile.variants[1].accuracy
    assert accuracy is not None
    assert accuracy.confusion is not None
    # 768 samples at .88: standard errors near .013 each, so .037 for the difference.
    for drop, expected in ((0.02, []), (0.2, [("uar", "worse")]), (-0.1, [("uar", "better")])):
        other = accuracy.model_copy(update={"uar": accuracy.uar - drop})
        assert scores(profile, accuracy=other) == expected
    elsewhere = accuracy.model_copy(update={"uar": 0.3, "data": "megc-flow"})
    assert scores(profile, accuracy=elsewhere) == []


def test_answers_to_the_same_samples_are_paired(tmp_path: Path) -> None:
    # The variant at 25 % turns wrong on a share of the subjects where it was right before. On 900 samples a loss
    # of .03 lies inside the interval of two independent UARs (.033); paired, it is a loss and nothing else.
    old = judged_profile(tmp_path / "old", worse={1.0: 0.0, 0.5: 0.0, 0.25: 0.0})
    new = judged_profile(tmp_path / "new", worse={1.0: 0.0, 0.5: 0.0, 0.25: 0.03})
    found = {change.id: change.scores for change in compare_profiles(old, new).changes}
    (score,) = found["ptsr-k0.25-fp32-cpu"]
    assert (score.name, score.is_) == ("uar", "worse")
    assert 0.02 < score.old - score.new < 0.033
    assert all(not scores for name, scores in found.items() if name != "ptsr-k0.25-fp32-cpu")
    unpaired = compare_profiles(old.model_copy(update={"judged": None}), new)
    assert all(not change.scores for change in unpaired.changes)


def test_what_came_and_went_and_what_else_differs(profile: Profile) -> None:
    cpu = {**profile.environment["cpu"], "model": "Other CPU"}
    new = profile.model_copy(
        update={
            "variants": [*profile.variants[:-1], profile.variants[-1].model_copy(update={"id": "x"})],
            "environment": {**profile.environment, "cpu": cpu},
        }
    )
    found = compare_profiles(profile, new)
    assert (found.only_old, found.only_new) == ([profile.variants[-1].id], ["x"])
    assert found.conditions == ["environment.cpu.model: Test CPU 3000 before, Other CPU now"]


def test_words(profile: Profile) -> None:
    old, new = changed(profile, ratio=ratio(0, 1.0)), changed(profile, ratio=ratio(1, 1.2))
    found = compare_profiles(old, new)
    assert found.regressions == [profile.variants[1].id]
    lines = summary(found)
    assert "slower: 1." in lines[1]
    assert lines[-1] == f"worse than before: {profile.variants[1].id}"
    told = changes_words(found)
    assert told["since"].startswith("2026-01-15")
    assert told["rows"][1][0] == profile.variants[1].id
    assert told["rows"][1][1].startswith("slower: 1.")
    assert told["rest"] == [lines[-1]]
    assert np.isfinite(found.changes[1].high or np.nan)
    assert summary(compare_profiles(old, old))[-1] == "nothing got worse beyond noise"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model": "ptsr-small"}, "differ in their model: ptsr-tiny before, ptsr-small now"),
        (
            {"labels": ["a", "b", "c"]},
            "differ in their classes: negative, positive, surprise before, a, b, c now",
        ),
        ({"baseline": "x"}, "differ in their baseline"),
    ],
)
def test_profiles_that_cannot_be_compared(profile: Profile, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        compare_profiles(profile, profile.model_copy(update=fields))


# ---------------------------------------------------------------------------------------------
# What runs are told apart by


def test_a_quick_run_beside_a_full_one_is_named(profile: Profile) -> None:
    def told(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
        sides = [profile.model_copy(update={"method": {**profile.method, **more}}) for more in (old, new)]
        return compare_profiles(*sides).conditions

    assert told({}, {"quick": True}) == ["a full run before, a quick run now"]
    assert told({"quick": True}, {"quick": False}) == ["a quick run before, a full run now"]
    assert told({}, {"quick": False}) == []  # earlier records do not say it, and are full


NOISE = 0.005
"""Of the bootstrap: the ratio's own interval has 500 draws here, the one that it is held against 4000."""


def by_cpu(found: Ratio, wider: float) -> Ratio:
    """The ratio taken beside other processes: typical runs say less, those that were hardly disturbed more, by this factor."""
    return found.model_copy(
        update={
            "clock": "cpu",
            "per_process_typical": [each / wider for each in found.per_process],
            "per_process_least": [each * wider for each in found.per_process],
        }
    )


def test_a_ratio_by_cpu_time_brings_its_wider_interval(profile: Profile) -> None:
    before, after = ratio(0, 1.0), ratio(1, 1.1)

    def found(old: Ratio, new: Ratio) -> tuple[str, float, float, str | None]:
        change = compare_profiles(changed(profile, ratio=old), changed(profile, ratio=new)).changes[1]
        assert change.low is not None
        assert change.high is not None
        return change.time, change.low, change.high, change.note

    verdict, low, high, note = found(before, after)
    assert (verdict, note) == ("slower", None)
    # Only the new run was disturbed: its change reaches 9 % further at either end.
    verdict, low_of_one, high_of_one, note = found(before, by_cpu(after, 1.09))
    assert (low_of_one, high_of_one) == pytest.approx((low / 1.09, high * 1.09), rel=NOISE)
    assert (verdict, note) == ("unclear", "by wall time before, by CPU time now")
    # Both were, and alike: of runs of the same kind the change is as well known as in quiet.
    verdict, low_of_both, high_of_both, note = found(by_cpu(before, 1.09), by_cpu(after, 1.09))
    assert (low_of_both, high_of_both) == pytest.approx((low, high), rel=NOISE)
    assert (verdict, note) == ("slower", "both by CPU time, beside other processes")


@pytest.mark.parametrize(
    ("faults", "clock", "verdict"),
    [
        (["wide"], "wall", "slower"),
        (["withheld"], "wall", "slower"),
        (["wide", "drift"], "wall", "unclear"),
        (["wide", "drift"], "cpu", "slower"),
        ([], "cpu", "unclear"),  # an earlier record does not say what it was
    ],
)
def test_what_makes_a_run_unstable_for_which_ratio(
    profile: Profile, faults: list[Any], clock: str, verdict: str
) -> None:
    slow = changed(profile, ratio=ratio(1, 1.1).model_copy(update={"clock": clock}))
    now = slow.model_copy(update={"attempts": [Attempt(unstable="it was restless", faults=faults)]})
    assert compare_profiles(changed(profile, ratio=ratio(0, 1.0)), now).changes[1].time == verdict


@pytest.mark.parametrize("when", ["before", "now"])
def test_a_ratio_that_was_withheld_is_not_compared(profile: Profile, when: str) -> None:
    withheld = changed(
        profile, ratio=None, missing={"ratio": Missing(kind="disturbed", reason="others used the machine")}
    )
    timed = changed(profile, ratio=ratio(0, 1.0))
    sides = (withheld, timed) if when == "before" else (timed, withheld)
    change = compare_profiles(*sides).changes[1]
    assert (change.time, change.note) == ("not compared", f"disturbed {when}")


# ---------------------------------------------------------------------------------------------
# Counts

RUN = {"MatMul": 20, "Transpose": 6, "Reorder": 2, "QuantizeLinear": 3, "DequantizeLinear": 4}


def test_any_count_that_is_another_one_is_told(profile: Profile) -> None:
    old = changed(profile, operators_run=RUN, instructions=1_000_000)

    def counts(**fields: Any) -> dict[str, float]:
        change = compare_profiles(old, changed(old, **fields)).changes[1]
        assert change.uncounted == []
        return {score.name: score.new - score.old for score in change.counts}

    assert counts() == {}
    assert counts(operators_run={**RUN, "Transpose": 7}) == {"nodes": 1, "transposes": 1}
    assert counts(operators_run={**RUN, "ReorderInput": 2}) == {"nodes": 2, "reorders": 2}
    assert counts(operators_run={**RUN, "DequantizeLinear": 2}) == {"nodes": -2, "quantizers": -2}
    row = profile.variants[1]
    assert counts(macs=row.macs + 1, size_bytes=row.size_bytes + 1) == {"macs": 1, "size_bytes": 1}
    # Instructions: half a per cent is what they all share.
    assert counts(instructions=1_004_900) == {}
    assert counts(instructions=1_005_100) == {"instructions": 5_100}


def test_a_count_of_one_side_or_of_another_tool_is_not_compared(profile: Profile) -> None:
    counted = changed(profile, operators_run=RUN, instructions=10)
    told = {"method": {**profile.method, "instructions": "perf"}}
    (_, change, *_) = compare_profiles(profile, counted).changes
    assert change.uncounted == ["nodes", "transposes", "reorders", "quantizers", "instructions"]
    assert "not comparable: nodes run, transposes, reorders, Q/DQ, instructions" in sentence(change)
    (_, change, *_) = compare_profiles(
        counted, changed(counted, instructions=20).model_copy(update=told)
    ).changes
    assert (change.counts, change.uncounted) == ([], ["instructions"])
