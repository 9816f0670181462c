"""Pictures of accuracy, and what all pictures have in common."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from judged_data import judged_profile
from report_data import make_profile, without, write_profile

from ptsr_edge.report import plotting as svg
from ptsr_edge.report.accuracy_charts import budgets, draw_all, tradeoff
from ptsr_edge.report.comparison import (
    ComparedVariant,
    Comparison,
    compare,
    half_interval,
    read_sources,
    uar_bounds,
)
from ptsr_edge.report.plotting import Picture
from ptsr_edge.report.recommendation import decide

SVG = "{http://www.w3.org/2000/svg}"


def compared(folder: Path) -> Comparison:
    return compare(read_sources([folder]))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Picture]:
    folder = tmp_path_factory.mktemp("made")
    make_profile(folder / "one", precisions=("fp32", "int8"), targets=("cpu", "openvino"), samples=300)
    comparison = compared(folder / "one")
    return draw_all(comparison, decide(comparison))


def test_all_pictures_are_drawn(pictures: dict[str, Picture]) -> None:
    assert set(pictures) == {
        "tradeoff",
        "latency",
        "macs",
        "kept",
        "confusion",
        "budgets",
        "dynamic",
        "stages",
    }
    for picture in pictures.values():
        assert picture.caption
        assert picture.words


@pytest.mark.parametrize("width", ["wide", "narrow"])
def test_pictures_are_small_well_formed_and_themed(pictures: dict[str, Picture], width: str) -> None:
    for name, picture in pictures.items():
        drawing = getattr(picture, width)
        root = ElementTree.fromstring(drawing)
        assert root.tag == f"{SVG}svg"
        assert len(drawing) < 40_000
        # Only the theme's colours: no fixed one, no stand-in.
        assert not re.search(r"#[0-9a-f]{6}", re.sub(r"base64,[^\"]*", "", drawing)), name
        assert set(re.findall(r"var\(--(\w+)\)", drawing)) <= set(svg.THEME)
        for forbidden in ("<script", "<style", "font-family", "<metadata", "http://www.w3.org/1999"):
            assert forbidden not in drawing


def test_ids_of_all_drawings_differ(pictures: dict[str, Picture]) -> None:
    drawings = [drawing for one in pictures.values() for drawing in (one.wide, one.narrow) if drawing]
    found = [name for drawing in drawings for name in re.findall(r'\bid="([^"]*)"', drawing)]
    assert len(found) == len(set(found))
    for drawing in drawings:
        own = set(re.findall(r'\bid="([^"]*)"', drawing))
        assert set(re.findall(r'(?:href="#|url\(#)([^")]*)', drawing)) <= own


def test_texts_stay_inside_their_drawing(pictures: dict[str, Picture]) -> None:
    for name, picture in pictures.items():
        for drawing in (picture.wide, picture.narrow):
            assert drawing is not None
            root = ElementTree.fromstring(drawing)
            width, height = (float(part) for part in (root.get("viewBox") or "").split()[2:])
            for text in root.iter(f"{SVG}text"):
                anchor = text.get("text-anchor") or re.findall(r"text-anchor: (\w+)", text.get("style", ""))
                anchor = anchor if isinstance(anchor, str) else (anchor or ["start"])[0]
                x, y = float(text.get("x", 0)), float(text.get("y", 0))
                reach = 0.9 * svg.text_width(text.text or "")
                left = {"start": x, "middle": x - reach / 2, "end": x - reach}[anchor]
                assert left >= -6, (name, text.text)
                assert left + reach <= width + 6, (name, text.text)
                assert 0 <= y <= height + 1, (name, text.text)


def test_every_mark_has_its_values(pictures: dict[str, Picture]) -> None:
    wide = pictures["tradeoff"].wide
    assert wide is not None
    tips = re.findall(r"<title>([^<]*)</title>", wide)
    assert len(tips) == 16
    assert "full ViT fp32 cpu: 8.26 ms, UAR 0.883, 10.9 MB, 540 MMAC" in tips


def test_marks_lie_where_their_figures_are(tmp_path: Path) -> None:
    make_profile(tmp_path / "one", samples=50, kept=False)
    comparison = compared(tmp_path / "one")
    picture = tradeoff(comparison, decide(comparison))
    assert picture.wide is not None
    marks = {
        name: (float(x), float(y))
        for name, x, y in re.findall(
            r'<title>([^:]+): [^<]*</title>.*?<use [^>]*?x="([\d.]+)" y="([\d.]+)"', picture.wide, flags=re.S
        )
    }
    rows = {row.name: row for row in comparison.rows}
    assert marks.keys() == rows.keys()
    # Two points fix the scale of each axis, the others must agree with it.
    base, slow = marks["25 %"], marks["full ViT"]
    times = {name: row.p50_ms or 0.0 for name, row in rows.items()}
    uars = {name: row.uar or 0.0 for name, row in rows.items()}
    for name, (x, y) in marks.items():
        across = (times[name] - times["25 %"]) / (times["full ViT"] - times["25 %"])
        up = (uars[name] - uars["25 %"]) / (uars["full ViT"] - uars["25 %"])
        assert x == pytest.approx(base[0] + across * (slow[0] - base[0]), abs=0.02)
        assert y == pytest.approx(base[1] + up * (slow[1] - base[1]), abs=0.02)


def test_without_accuracy_the_budget_takes_its_place(tmp_path: Path) -> None:
    profile = make_profile(tmp_path / "one", samples=50, kept=False)
    write_profile(tmp_path / "one", without(profile, accuracy=None))
    comparison = compared(tmp_path / "one")
    picture = tradeoff(comparison, decide(comparison))
    assert picture.title == "Budget against latency"
    assert "Accuracy was not measured" in picture.caption
    assert picture.wide is not None
    assert "UAR" not in picture.wide
    assert budgets(comparison, decide(comparison)).note.startswith("Not drawn")


def test_without_latency_nothing_is_drawn(tmp_path: Path) -> None:
    profile = make_profile(tmp_path / "one", samples=50, raw="none", kept=False)
    write_profile(tmp_path / "one", without(profile, latency_ms=None, ratio=None))
    comparison = compared(tmp_path / "one")
    assert tradeoff(comparison, decide(comparison)).note == "Not drawn: latency was not measured."


def test_accuracy_on_other_data_is_left_out_and_counted(tmp_path: Path) -> None:
    profile = make_profile(tmp_path / "one", samples=50, kept=False)
    rows = [*profile.variants[:-1], profile.variants[-1].model_copy(update={"accuracy": None})]
    write_profile(tmp_path / "one", profile.model_copy(update={"variants": rows}))
    comparison = compared(tmp_path / "one")
    caption = tradeoff(comparison, decide(comparison)).caption
    assert "Not shown, without an accuracy on this data: 1." in caption


def test_interval_of_uar_by_hand(tmp_path: Path) -> None:
    profile = make_profile(tmp_path / "one", samples=50, kept=False)
    accuracy = profile.variants[0].accuracy
    assert accuracy is not None
    matrix = [[8, 2, 0], [0, 20, 0], [5, 0, 35]]
    changed = accuracy.model_copy(update={"confusion": matrix})
    write_profile(tmp_path / "one", without(profile, accuracy=changed))
    row: ComparedVariant = compared(tmp_path / "one").rows[0]
    # Agresti & Coull: two hits and two misses more; UAR is the mean of three independent recalls.
    shares = [(10 / 14, 14), (22 / 24, 24), (37 / 44, 44)]
    by_hand = 1.96 * math.sqrt(sum(share * (1 - share) / count for share, count in shares)) / 3
    assert half_interval(row) == pytest.approx(by_hand)


def test_budget_picture_shows_the_loss_that_is_let_through(pictures: dict[str, Picture]) -> None:
    picture = pictures["budgets"]
    assert "Line: full ViT fp32 cpu; band: at most 0.02 below it." in picture.caption
    assert picture.wide is not None
    assert "full-token ViT: UAR 0.883" in picture.wide
    assert "Whiskers" in picture.caption


def test_budget_intervals_are_over_subjects_and_never_lost(tmp_path: Path) -> None:
    worse = {1.0: 0.0, 0.5: 0.0, 0.25: 0.1}
    judged_profile(tmp_path / "one", worse=worse)
    comparison = compared(tmp_path / "one")
    picture = budgets(comparison, decide(comparison))
    assert "by a bootstrap over subjects" in picture.caption
    row = comparison.rows[-1]
    bounds = uar_bounds(row)
    assert bounds is not None
    assert row.uar is not None
    assert bounds[0] < row.uar < bounds[1]
    assert f"{row.name} {row.uar:.3f} [{bounds[0]:.3f}, {bounds[1]:.3f}]" in picture.words
    make_profile(
        tmp_path / "many", precisions=("fp32", "fp16", "int8"), targets=("cpu", "openvino"), samples=50
    )
    crowded = compared(tmp_path / "many")
    picture = budgets(crowded, decide(crowded))
    assert "Intervals on hover" in picture.caption
    assert picture.words.count("[") == len(crowded.rows)
