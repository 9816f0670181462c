"""What a report says its numbers do not say."""

from __future__ import annotations

from pathlib import Path

from report_data import make_profile, without, write_profile

from ptsr_edge.profile.schema import Attempt
from ptsr_edge.report.cli import write_report
from ptsr_edge.report.comparison import compare, read_sources
from ptsr_edge.report.sections import TAIL_SAMPLES, caveats, instability


def told(*folders: Path) -> str:
    return " ".join(caveats(compare(read_sources(folders))))


def test_few_samples_and_a_restless_machine_are_named(tmp_path: Path) -> None:
    profile = make_profile(tmp_path)
    assert "The tail percentiles rest on 1,200 samples" in told(tmp_path)
    assert "The latency of 4 of 4 variants varied by more than 2.5 %" in told(tmp_path)
    latency = profile.variants[0].latency_ms
    assert latency is not None
    quiet = latency.model_copy(update={"n": TAIL_SAMPLES, "cv": 0.01})
    write_profile(tmp_path, without(profile, latency_ms=quiet))
    assert "tail percentiles" not in told(tmp_path)
    assert "varied by more" not in told(tmp_path)


def test_synthetic_data_and_separate_runs_are_named_where_they_are(tmp_path: Path) -> None:
    make_profile(tmp_path / "a")
    make_profile(tmp_path / "b", data="megc-flow")
    assert "no evidence about people" in told(tmp_path / "a")
    assert "no evidence about people" not in told(tmp_path / "b")
    assert "separate runs" not in told(tmp_path / "a")
    assert "separate runs" in told(tmp_path / "a", tmp_path / "b")


def test_an_unstable_run_is_named_on_the_page_and_in_markdown(tmp_path: Path) -> None:
    profile = make_profile(tmp_path / "p", samples=50)
    assert instability(compare(read_sources([tmp_path / "p"]))) == []
    mended = [Attempt(unstable="a neighbour"), Attempt(unstable=None)]
    write_profile(tmp_path / "p", profile.model_copy(update={"attempts": mended}))
    assert instability(compare(read_sources([tmp_path / "p"]))) == []
    shaky = [Attempt(unstable="a neighbour"), Attempt(unstable="the ratio of b is known to 9% only")]
    write_profile(tmp_path / "p", profile.model_copy(update={"attempts": shaky}))
    page = write_report([tmp_path / "p"], tmp_path / "r")
    said = "This profile is unstable: the ratio of b is known to 9% only. It was measured 2 times"
    assert said in page.read_text(encoding="utf-8")
    assert said in page.with_suffix(".md").read_text(encoding="utf-8")


def test_a_baseline_trained_otherwise_is_a_caveat(tmp_path: Path) -> None:
    profile = make_profile(tmp_path, samples=50)
    assert "trained otherwise" not in told(tmp_path)
    method = profile.method | {"baseline_trained": "otherwise than the model, in seed"}
    write_profile(tmp_path, profile.model_copy(update={"method": method}))
    assert "The baseline was trained otherwise than the model, in seed" in told(tmp_path)
