"""Charts of latency, multiply-adds, stages and the dynamic mode's counts."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from judged_data import judged_profile
from report_data import compared, drawn, make_profile, with_effects, without, write_profile

from ptsr_edge.profile.schema import Stages, read_profile
from ptsr_edge.report.comparison import steps_of, three_digits
from ptsr_edge.report.cost_charts import MOST_DISTRIBUTIONS, MOST_OPERATORS, stages_ms
from ptsr_edge.report.recommendation import Limits, recommend
from ptsr_edge.report.sections import draw_card


def test_latency_shows_the_raw_samples(tmp_path: Path) -> None:
    make_profile(tmp_path / "one", samples=400, kept=False)
    comparison = compared(tmp_path / "one")
    picture = drawn("latency", comparison)
    assert picture.wide is not None
    assert "All raw samples, 400 a variant" in picture.caption
    for row in comparison.rows:
        stored = np.load(tmp_path / "one" / (row.measured.raw_samples or ""))["samples_ns"] / 1e6
        p50, p99 = np.percentile(stored, (50, 99))
        tip = re.search(rf"<title>{row.name}: p50 ([\d.]+) ms, p90 [\d.]+ ms, p99 ([\d.]+) ms", picture.wide)
        assert tip is not None
        assert [float(part) for part in tip.groups()] == pytest.approx([p50, p99], rel=5e-3)


def test_latency_without_samples_says_so(tmp_path: Path) -> None:
    make_profile(tmp_path / "one", raw="none", kept=False)
    comparison = compared(tmp_path / "one")
    picture = drawn("latency", comparison)
    assert picture.wide is None
    assert picture.note == "Not drawn: no raw samples were recorded."


def test_latency_names_the_one_that_is_missing(tmp_path: Path) -> None:
    profile = make_profile(tmp_path / "one", samples=100, kept=False)
    (tmp_path / "one" / (profile.variants[1].raw_samples or "")).unlink()
    comparison = compared(tmp_path / "one")
    picture = drawn("latency", comparison)
    assert "Not drawn: 100 % (samples/ptsr-k1-fp32-cpu.npz is not beside profile.json)" in picture.caption


def test_latency_of_many_keeps_the_recommended_variant_and_its_baseline(tmp_path: Path) -> None:
    rates = tuple(place / 20 for place in range(1, 21))
    made = {rate: 0.88 - 0.05 * (1 - rate) for rate in rates}
    make_profile(tmp_path / "one", rates=rates, uars=made, samples=60, kept=False)
    comparison = compared(tmp_path / "one")
    recommendation = recommend(comparison)[0]
    picture = drawn("latency", comparison)
    assert f"{len(comparison.rows) - MOST_DISTRIBUTIONS} slower ones are left out" in picture.caption
    assert f"{recommendation.name}: p50" in picture.words
    assert "full ViT: p50" in picture.words


def test_bars_are_as_long_as_their_counts(tmp_path: Path) -> None:
    make_profile(tmp_path / "one", samples=50, kept=False)
    comparison = compared(tmp_path / "one")
    picture = drawn("macs", comparison)
    assert picture.wide is not None
    # Lengths are read back from the drawn paths, counts from the profile.
    bars = re.findall(
        r"<title>([^,]+), (\w+): [^<]*</title>\s*<path d=\"M ([\d.]+) [\d.]+\s+L ([\d.]+) ", picture.wide
    )
    lengths = {(name, operator): float(right) - float(left) for name, operator, left, right in bars}
    counts = {
        (row.name, operator): count
        for row in comparison.rows
        for operator, count in (row.measured.macs_by_operator or {}).items()
    }
    assert lengths.keys() == counts.keys()
    scale = lengths["full ViT", "linear"] / counts["full ViT", "linear"]
    for key, length in lengths.items():
        assert length == pytest.approx(scale * counts[key], abs=0.03)  # two roundings to 0.01 px


def test_one_bar_for_all_precisions_of_a_budget(tmp_path: Path) -> None:
    make_profile(tmp_path / "one", precisions=("fp32", "int8"), samples=50, kept=False)
    comparison = compared(tmp_path / "one")
    assert drawn("macs", comparison).words.count(";") == 3


def test_operators_beyond_the_colours_are_one(tmp_path: Path) -> None:
    profile = make_profile(tmp_path / "one", samples=50, kept=False)
    split = {f"op{place}": 10**6 for place in range(MOST_OPERATORS + 3)}
    write_profile(tmp_path / "one", without(profile, macs_by_operator=split, macs=sum(split.values())))
    comparison = compared(tmp_path / "one")
    picture = drawn("macs", comparison)
    assert picture.wide is not None
    assert "full ViT, other: 3 MMAC" in picture.wide


def test_a_split_that_was_not_recorded_is_said(tmp_path: Path) -> None:
    profile = make_profile(tmp_path / "one", samples=50, kept=False)
    write_profile(tmp_path / "one", without(profile, macs_by_operator=None))
    comparison = compared(tmp_path / "one")
    assert "The split by operator was not recorded." in drawn("macs", comparison).caption


def test_parts_add_up_to_the_time_of_a_sample() -> None:
    record = Stages(
        flow_ms=2.0, strain_ms=0.5, normalise_ms=0.1, inference_ms=4.0, postprocess_ms=0.2,
        operators={"selection": 0.25, "matrix products": 0.75}, operators_why=None,
    )  # fmt: skip
    parts = stages_ms(record)
    assert parts == pytest.approx(
        {"flow and strain": 2.5, "matrix products": 3.0, "selection": 1.0, "before and after": 0.3}
    )
    assert list(parts)[1] == "matrix products"
    whole = stages_ms(record.model_copy(update={"operators": None, "flow_ms": None, "strain_ms": None}))
    assert whole == pytest.approx({"inference": 4.0, "before and after": 0.3})


def test_every_variant_has_its_bar_and_small_classes_share_one(tmp_path: Path) -> None:
    profile = make_profile(tmp_path)
    picture = drawn("stages", compared(tmp_path))
    assert picture.wide is not None
    assert picture.narrow is not None
    # Flow, three classes of operators, the others together, before and after.
    assert picture.wide.count("<title>") == 6 * len(profile.variants)
    assert picture.words.count("matrix products") == len(profile.variants)
    assert "other operators: " in picture.wide


def test_what_was_not_split_and_what_was_not_timed_is_said(tmp_path: Path) -> None:
    profile = make_profile(tmp_path)
    first = profile.variants[0]
    assert first.stages is not None
    unsplit = first.stages.model_copy(update={"operators": None, "operators_why": "no profiler"})
    write_profile(tmp_path, without(profile, stages=unsplit))
    assert (
        f"{len(profile.variants)} of these could not be split" in drawn("stages", compared(tmp_path)).caption
    )
    write_profile(tmp_path, without(profile, stages=None))
    assert drawn("stages", compared(tmp_path)).note == "Not drawn: stages were not timed."


def test_bars_hold_every_sample_and_lines_their_shares(tmp_path: Path) -> None:
    make_profile(tmp_path, samples=50)
    comparison = compared(tmp_path)
    picture = drawn("dynamic", comparison)
    assert picture.wide is not None
    assert picture.narrow is not None
    # 196 tokens over at most 40 bars: 5 tokens a bar, from 1.
    for tip in ("36 to 40 tokens: 5 samples", "56 to 60 tokens: 10 samples", "96 to 100 tokens: 4 samples"):
        assert f"<title>{tip}</title>" in picture.wide
    assert "25 % (49 tokens) truncates 75 %" in picture.wide
    assert "25 % truncates 75 %; 50 % truncates 5 %; 100 % truncates 0 %" in picture.words
    assert "20 calibration samples" in picture.caption


def test_without_counts_it_says_so(tmp_path: Path) -> None:
    make_profile(tmp_path, kept=False)
    comparison = compared(tmp_path)
    picture = drawn("dynamic", comparison)
    assert picture.wide is None
    assert picture.note.startswith("Not drawn:")


def test_the_effects_multiply_to_the_whole(tmp_path: Path) -> None:
    profile = make_profile(
        tmp_path, samples=50, precisions=("fp32", "int8"), targets=("cpu", "openvino"), kept=False
    )
    write_profile(tmp_path, with_effects(profile))
    comparison = compared(tmp_path)
    row = next(row for row in comparison.rows if row.name == "25 % int8 openvino")
    steps = steps_of(row, comparison)
    assert steps is not None
    assert [step.kind for step in steps] == ["runtime", "precision", "selection"]
    assert row.measured.ratio is not None
    assert math.prod(step.times for step in steps) == pytest.approx(row.measured.ratio.median)
    # Of int8, the quotient of each process's ratios, which are alike in their luck: its interval has no width.
    assert (steps[1].low, steps[1].high) == pytest.approx((steps[1].times, steps[1].times))
    picture = drawn("effects", comparison)
    assert picture.wide is not None
    bars = re.findall(r"<title>(\w+)[^<]*</title>\s*<path d=\"M ([\d.]+) [\d.]+\s+L ([\d.]+) ", picture.wide)
    places = {name: (float(left), float(right)) for name, left, right in bars}
    assert places["runtime"][1] == pytest.approx(places["precision"][0], abs=0.03)
    assert places["precision"][1] == pytest.approx(places["selection"][0], abs=0.03)
    assert places["together"] == pytest.approx((places["runtime"][0], places["selection"][1]), abs=0.05)


def test_effects_need_the_vit_in_every_kind_and_two_of_them(tmp_path: Path) -> None:
    profile = make_profile(tmp_path, samples=50, kept=False, precisions=("fp32", "int8"))
    assert "the full-token ViT was not timed in int8 on cpu" in drawn("effects", compared(tmp_path)).note
    alone = with_effects(make_profile(tmp_path, samples=50, kept=False))
    write_profile(tmp_path, alone)
    assert "the selection of tokens alone" in drawn("effects", compared(tmp_path)).note
    assert profile.variants


def test_the_median_stands_at_the_median_and_colours_have_names(tmp_path: Path) -> None:
    make_profile(tmp_path, samples=50, kept=False, precisions=("fp32", "int8"))
    comparison = compared(tmp_path)
    picture = drawn("latency", comparison)
    assert picture.wide is not None
    texts = {
        text: float(x)
        for x, text in re.findall(r'<text[^>]*? x="([\d.]+)"[^>]*>([^<]+)</text>', picture.wide)
    }
    assert {"fp32", "int8", "full ViT"} <= texts.keys()
    upright = re.findall(
        r'd="M ([\d.]+) ([\d.]+)\s+L \1 ([\d.]+)"[^>]*var\(--ink\); stroke-width: 1.5', picture.wide
    )
    medians = sorted(
        float(x) for x, top, bottom in upright if abs(float(top) - float(bottom)) > 20
    )  # p99: short
    written = sorted(texts[three_digits(row.p50_ms)] for row in comparison.rows if row.p50_ms)
    assert written == pytest.approx([x + 5 for x in medians], abs=0.1)


def test_stages_show_the_latency_of_the_tables() -> None:
    record = Stages(
        flow_ms=2.0, strain_ms=0.5, normalise_ms=0.1, inference_ms=4.0, postprocess_ms=0.2,
        operators={"selection": 0.25, "matrix products": 0.75}, operators_why=None,
    )  # fmt: skip
    assert stages_ms(record, 2.0)["matrix products"] == 1.5


def test_the_card_has_all_that_a_reader_elsewhere_needs(tmp_path: Path) -> None:
    judged_profile(tmp_path, worse={1.0: 0.0, 0.5: 0.0, 0.25: 0.0}, precisions=("fp32", "int8"))
    write_profile(tmp_path, with_effects(read_profile(tmp_path)))
    comparison = compared(tmp_path)
    picture = draw_card(comparison, recommend(comparison)[0])
    assert picture.wide is not None
    text = " ".join(re.findall(r">([^<>]+)</text>", picture.wide))
    for said in ("ptsr-tiny: 25 % of the tokens, int8 on cpu", "as fast as the full-token ViT built alike", "as a whole sample",
                 "as fast as the ViT in fp32 on cpu", "Test CPU 3000, 1 thread, 2026-01-15", "not for judging people"):  # fmt: skip
        assert said in text
    assert re.search(r"0\.\d{3} \[0\.\d{3}, 0\.\d{3}\] UAR; the full-token ViT: 0\.\d{3}", text)
    assert "recommended" in draw_card(comparison, recommend(comparison, Limits(max_latency_ms=0.001))[0]).note
    bare = make_profile(tmp_path, raw="none", kept=False)
    write_profile(tmp_path, without(bare, latency_ms=None, accuracy=None))
    comparison = compared(tmp_path)
    assert draw_card(comparison, recommend(comparison)[0]).note.startswith("Not drawn:")
