"""The choice under limits: what is taken, what is not, and what would have to be there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from judged_data import judged_profile
from report_data import make_profile, write_profile

from ptsr_edge.core.errors import InputError
from ptsr_edge.core.records import read_record
from ptsr_edge.report.cli import Report, main
from ptsr_edge.report.comparison import compare, read_sources, rounded_up
from ptsr_edge.report.recommendation import Decision, Recommendation, check_limits, choose
from ptsr_edge.stats.risk_bounds import paired, upper_bound

EQUAL = {1.0: 0.0, 0.5: 0.0, 0.25: 0.0}


def chosen(
    folder: Path, latency: float | None, drop: float | None, unit: str = "subject"
) -> tuple[Recommendation, Decision]:
    limits = check_limits(latency, drop, 0.95, unit)  # type: ignore[arg-type]
    assert limits is not None
    return choose(compare(read_sources([folder])), limits)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in arguments], prog_name="ptsr-edge report")


def test_the_fastest_that_meets_both_is_taken(tmp_path: Path) -> None:
    profile = judged_profile(tmp_path, worse=EQUAL)
    verdict, decision = chosen(tmp_path, 20, 0.05)
    assert verdict.id == "ptsr-k0.25-fp32-cpu"
    assert decision.picked == verdict.name == "25 %"
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
        f"loses at most {rounded_up(expected)} of UAR against 100 %, with 95 % confidence" in verdict.sentence
    )
    assert "900 samples of 300 subjects, subjects taken as the unit, one of 2 variants" in verdict.detail


def test_a_faster_one_that_loses_is_passed_over(tmp_path: Path) -> None:
    judged_profile(tmp_path, worse={1.0: 0.0, 0.5: 0.0, 0.25: 0.10})
    verdict, decision = chosen(tmp_path, None, 0.05)
    assert decision.picked == "50 %"
    assert decision.nearest == "25 %"
    assert "more data of this kind would not show 0.05" in verdict.detail
    assert {c.name: c.told for c in decision.candidates}["25 %"] == "drop too large"


def test_a_point_estimate_within_the_limit_is_not_enough(tmp_path: Path) -> None:
    # 1 % of the subjects are lost: a drop of about .0085 as measured, which 300 subjects cannot bound by .02.
    profile = judged_profile(tmp_path, worse={1.0: 0.0, 0.5: 0.01, 0.25: 0.01})
    small, large = profile.variants[3].latency_ms, profile.variants[2].latency_ms
    assert small is not None
    assert large is not None
    verdict, decision = chosen(tmp_path, large.p95, 0.02)
    assert (decision.picked, verdict.status) == (None, "none-meets-the-limits")
    close = next(c for c in decision.candidates if c.name == decision.nearest)
    assert close.drop < 0.02 < (close.upper or 0)
    assert close.needed_units is not None
    assert close.needed_units > 300
    assert close.needed_samples == pytest.approx(3 * close.needed_units, rel=0.01)
    assert "subjects like these, and has 300" in verdict.detail


def test_too_slow_names_the_fastest(tmp_path: Path) -> None:
    judged_profile(tmp_path, worse=EQUAL)
    verdict, decision = chosen(tmp_path, 0.1, 0.05)
    assert decision.picked is None
    assert verdict.sentence.startswith("No variant meets 0.1 ms of latency (p95)")
    assert "the fastest, 25 %, takes" in verdict.sentence
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


def test_the_command_chooses_and_says_how(tmp_path: Path) -> None:
    judged_profile(tmp_path / "p", worse=EQUAL)
    call = [
        "--profile",
        tmp_path / "p",
        "--out",
        tmp_path / "r",
        "--max-latency-ms",
        8,
        "--max-uar-drop",
        0.05,
    ]
    result = run(*call)
    assert result.exit_code == 0, result.output
    record = read_record(Report, tmp_path / "r" / "report.json")
    assert record.decision is not None
    assert record.decision.picked == "25 %"
    assert "--max-latency-ms 8 --max-uar-drop 0.05 --confidence 0.95 --unit subject" in record.command
    assert record.verdict.sentence in result.stdout
    for name in ("report.html", "report.md"):
        text = (tmp_path / "r" / name).read_text().replace("\u00a0", " ")
        assert text.index("Take 25 %") < text.index("Held against the limits")


def test_none_is_exit_code_1_with_one_line_and_a_report(tmp_path: Path) -> None:
    judged_profile(tmp_path / "p", worse=EQUAL)
    result = run("--profile", tmp_path / "p", "--out", tmp_path / "r", "--max-latency-ms", 0.1)
    assert result.exit_code == 1
    (line,) = result.stderr.strip().splitlines()
    assert "No variant meets 0.1 ms" in line
    assert (tmp_path / "r" / "report.html").is_file()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--max-latency-ms", "-8"], "--max-latency-ms is a time above 0, got -8"),
        (["--max-latency-ms", "nan"], "--max-latency-ms is a time above 0, got nan"),
        (["--max-uar-drop", "-0.01"], "--max-uar-drop is a share above 0 and below 1, got -0.01"),
        (["--max-uar-drop", "1"], "--max-uar-drop is a share above 0 and below 1, got 1"),
        (
            ["--max-uar-drop", "0.01", "--confidence", "95"],
            "--confidence is a share above 0 and below 1, got 95",
        ),
    ],
)
def test_a_limit_that_is_none_is_refused(tmp_path: Path, options: list[str], said: str) -> None:
    judged_profile(tmp_path / "p", worse=EQUAL)
    result = run("--profile", tmp_path / "p", "--out", tmp_path / "r", *options)
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert said in line
    assert not (tmp_path / "r").exists()


def test_a_profile_of_another_schema_is_refused(tmp_path: Path) -> None:
    judged_profile(tmp_path / "p", worse=EQUAL)
    path = tmp_path / "p" / "profile.json"
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 9', 1))
    result = run("--profile", tmp_path / "p", "--out", tmp_path / "r", "--max-uar-drop", 0.05)
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert "schema" in line
    assert "9" in line


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


@pytest.mark.parametrize(
    ("value", "text"), [(0.0301, "0.031"), (0.03, "0.030"), (0.0, "0.000"), (np.nextafter(0.03, 0), "0.030")]
)
def test_a_bound_is_rounded_upwards(value: float, text: str) -> None:
    assert rounded_up(value) == text
