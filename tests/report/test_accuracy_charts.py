"""Charts of accuracy, and what all charts have in common."""

from __future__ import annotations

import base64
import io
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from judged_data import judged_profile
from report_data import LABELS, compared, drawn, make_profile, without, write_profile

from ptsr_edge.report.accuracy_charts import FADED, MOST_WHISKERED, border, shrunk
from ptsr_edge.report.comparison import uar_bounds
from ptsr_edge.report.plotting import THEME, text_width
from ptsr_edge.report.recommendation import recommend
from ptsr_edge.report.sections import LEAD, Picture, build_sections, draw

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Picture]:
    folder = tmp_path_factory.mktemp("made")
    make_profile(folder / "one", precisions=("fp32", "int8"), targets=("cpu", "openvino"), samples=300)
    comparison = compared(folder / "one")
    recommendation = recommend(comparison)[0]
    blocks = [block for section in build_sections(comparison, recommendation) for block in section.blocks]
    found = [draw(LEAD, comparison, recommendation), *(block.picture for block in blocks if block.picture)]
    return {picture.name: picture for picture in found}


def test_all_charts_are_drawn(pictures: dict[str, Picture]) -> None:
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
def test_charts_are_small_well_formed_and_themed(pictures: dict[str, Picture], width: str) -> None:
    for name, picture in pictures.items():
        drawing = getattr(picture, width)
        root = ElementTree.fromstring(drawing)
        assert root.tag == f"{SVG}svg"
        assert len(drawing) < 40_000
        # Only the theme's colours: no fixed one, no stand-in.
        assert not re.search(r"#[0-9a-f]{6}", re.sub(r"base64,[^\"]*", "", drawing)), name
        assert set(re.findall(r"var\(--(\w+)\)", drawing)) <= set(THEME)
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
                reach = 0.9 * text_width(text.text or "")
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


def test_marks_lie_where_their_results_are(tmp_path: Path) -> None:
    make_profile(tmp_path / "one", samples=50, kept=False)
    comparison = compared(tmp_path / "one")
    picture = drawn("tradeoff", comparison)
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
    picture = drawn("tradeoff", comparison)
    assert picture.title == "Budget against latency"
    assert "Accuracy was not measured" in picture.caption
    assert picture.wide is not None
    assert "UAR" not in picture.wide
    assert drawn("budgets", comparison).note.startswith("Not drawn")


def test_without_latency_nothing_is_drawn(tmp_path: Path) -> None:
    profile = make_profile(tmp_path / "one", samples=50, raw="none", kept=False)
    write_profile(tmp_path / "one", without(profile, latency_ms=None, ratio=None))
    comparison = compared(tmp_path / "one")
    assert drawn("tradeoff", comparison).note == "Not drawn: latency was not measured."


def test_accuracy_on_other_data_is_left_out_and_counted(tmp_path: Path) -> None:
    profile = make_profile(tmp_path / "one", samples=50, kept=False)
    rows = [*profile.variants[:-1], profile.variants[-1].model_copy(update={"accuracy": None})]
    write_profile(tmp_path / "one", profile.model_copy(update={"variants": rows}))
    comparison = compared(tmp_path / "one")
    caption = drawn("tradeoff", comparison).caption
    assert "Not shown, without an accuracy on this data: 1." in caption


def test_budget_chart_shows_the_loss_that_is_let_through(pictures: dict[str, Picture]) -> None:
    picture = pictures["budgets"]
    assert "Line: full ViT fp32 cpu; band: at most 0.02 below it." in picture.caption
    assert picture.wide is not None
    assert "full-token ViT: UAR 0.883" in picture.wide
    assert "Whiskers" in picture.caption


def test_budget_intervals_are_over_subjects_and_never_lost(tmp_path: Path) -> None:
    worse = {1.0: 0.0, 0.5: 0.0, 0.25: 0.1}
    judged_profile(tmp_path / "one", worse=worse)
    comparison = compared(tmp_path / "one")
    picture = drawn("budgets", comparison)
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
    picture = drawn("budgets", crowded)
    assert "Intervals on hover" in picture.caption
    assert picture.words.count("[") == len(crowded.rows)


def test_accuracy_against_latency_has_the_intervals_of_what_the_choice_is_between(tmp_path: Path) -> None:
    make_profile(tmp_path / "few", precisions=("fp32",), samples=50)
    few = compared(tmp_path / "few")
    picture = drawn("tradeoff", few)
    assert picture.words.count("[") == len(few.rows)
    assert picture.caption.count("Intervals: ") == 1
    assert picture.wide is not None
    for sign in (
        "hollow: full ViT",
        "ring: recommended",
        "dashed: beaten by no other",
        "upright line: 95 % interval",
    ):
        assert sign in picture.wide
    make_profile(
        tmp_path / "many", precisions=("fp32", "fp16", "int8"), targets=("cpu", "openvino"), samples=50
    )
    many = compared(tmp_path / "many")
    picture = drawn("tradeoff", many)
    optimal = picture.words.partition("Beaten by no other in both: ")[2].rstrip(".").split(", ")
    chosen = next(row for row in many.rows if row.name == recommend(many)[0].name)
    base = many.reference(chosen)
    assert base is not None
    telling = {*optimal, chosen.name, base.name}
    assert len(many.rows) > max(MOST_WHISKERED, len(telling))
    assert picture.words.count("[") == len(telling)
    assert "of its baseline and of what is joined" in picture.caption


def test_the_border_of_one_cell_is_its_four_sides() -> None:
    cells = np.zeros((3, 3), dtype=bool)
    cells[1, 2] = True
    sides = {((2, 1), (2, 2)), ((3, 1), (3, 2)), ((2, 1), (3, 1)), ((2, 2), (3, 2))}
    assert {tuple(map(tuple, run)) for run in border(cells).astype(int).tolist()} == sides


def test_the_border_runs_between_kept_and_dropped_cells_only() -> None:
    # The border's length: neighbours (the frame counts as dropped) that differ.
    cells = np.random.default_rng(1).random((7, 7)) < 0.5
    padded = np.pad(cells, 1).astype(int)
    length = np.abs(np.diff(padded, axis=0)).sum() + np.abs(np.diff(padded, axis=1)).sum()
    assert np.abs(np.diff(border(cells), axis=1)).sum() == length


def test_images_shrink_by_whole_blocks() -> None:
    image = np.kron(np.arange(56 * 56).reshape(56, 56) % 32 * 8, np.ones((2, 2), dtype=int))
    np.testing.assert_array_equal(shrunk(image), image[::2, ::2])
    assert shrunk(np.full((28, 28), 255)).shape == (28, 28)


def test_kept_patches_of_each_budget(tmp_path: Path) -> None:
    profile = make_profile(tmp_path / "one", samples=50)
    patches = profile.kept_patches
    assert patches is not None
    picture = drawn("kept", compared(tmp_path / "one"))
    assert picture.wide is not None
    # A budget that keeps everything has no column.
    assert "the patches kept at 50 %, 25 % outlined" in picture.words
    images = re.findall(r'base64,([^"]*)"', picture.wide)
    assert len(images) == 3
    read = matplotlib.image.imread(io.BytesIO(base64.b64decode(images[0])))
    tiles = np.round(read * 255).astype(int)  # (56, 3 tiles and 2 gaps, 4)
    assert tiles.shape == (56, 3 * 56 + 2 * 4, 4)
    half = tiles[:, 60:116]
    np.testing.assert_array_equal(half[..., 0], shrunk(np.asarray(patches.strain[0])))
    inside = np.isin(np.arange(196), patches.kept["ptsr-k0.5-fp32-cpu"][0]).reshape(14, 14)
    expected = np.kron(np.where(inside, 255, round(255 * FADED)), np.ones((4, 4)))
    np.testing.assert_array_equal(half[..., 3], expected)
    assert set(tiles[:, :56, 3].ravel()) == {255}
    assert set(tiles[:, 56:60, 3].ravel()) == {0}


def test_words_give_the_share_of_strain(tmp_path: Path) -> None:
    profile = make_profile(tmp_path / "one", samples=50)
    patches = profile.kept_patches
    assert patches is not None
    strain = np.asarray(patches.strain[0], dtype=float)
    inside = np.kron(
        np.isin(np.arange(196), patches.kept["ptsr-k0.5-fp32-cpu"][0]).reshape(14, 14), np.ones((8, 8))
    )
    share = 100 * (strain * inside).sum() / strain.sum()
    picture = drawn("kept", compared(tmp_path / "one"))
    assert f"s01/clip0 (negative) keeps {share:.0f} %" in picture.words


def test_charts_of_licensed_data_are_marked(tmp_path: Path) -> None:
    make_profile(tmp_path / "one", samples=50, data="casme2")
    picture = drawn("kept", compared(tmp_path / "one"))
    assert "derived from casme2: its licence says who may see them" in picture.caption


def test_without_samples_nothing_is_drawn(tmp_path: Path) -> None:
    make_profile(tmp_path / "one", samples=50, kept=False)
    picture = drawn("kept", compared(tmp_path / "one"))
    assert (picture.wide, picture.narrow) == (None, None)
    assert picture.note.startswith("Not drawn:")


def test_confusion_starts_with_the_baseline_and_the_recommended_variant(tmp_path: Path) -> None:
    make_profile(tmp_path / "one", samples=50, precisions=("fp32", "int8"), kept=False)
    comparison = compared(tmp_path / "one")
    picture = drawn("confusion", comparison)
    assert picture.wide is not None
    titles = re.findall(r"font-weight: (?:bold|700)[^>]*>([^<]*(?:ViT|%)[^<]*)<", picture.wide)
    assert titles[:2] == ["full ViT int8", "25 % int8"]
    assert len(titles) == 6
    assert "2 more are in report.json" in picture.caption


def test_confusion_shows_counts_and_recalls(tmp_path: Path) -> None:
    profile = make_profile(tmp_path / "one", samples=50, kept=False)
    row = profile.variants[0]
    assert row.accuracy is not None
    assert row.accuracy.confusion is not None
    comparison = compared(tmp_path / "one")
    picture = drawn("confusion", comparison)
    assert picture.wide is not None
    for true, label in enumerate(LABELS):
        total = sum(row.accuracy.confusion[true])
        assert f"{label} {100 * row.accuracy.confusion[true][true] / total:.0f} %" in picture.words
        for answer, other in enumerate(LABELS):
            count = row.accuracy.confusion[true][answer]
            assert f"full ViT: {count} of {total} {label} samples answered {other}" in picture.wide


@pytest.mark.parametrize("matrix", [None, [[0, 0, 0], [0, 0, 0], [0, 0, 1]]], ids=["none", "empty class"])
def test_confusion_of_little(tmp_path: Path, matrix: list[list[int]] | None) -> None:
    profile = make_profile(tmp_path / "one", samples=50, kept=False)
    accuracy = profile.variants[0].accuracy
    assert accuracy is not None
    write_profile(
        tmp_path / "one", without(profile, accuracy=accuracy.model_copy(update={"confusion": matrix}))
    )
    comparison = compared(tmp_path / "one")
    picture = drawn("confusion", comparison)
    assert (picture.wide is None) == (matrix is None)
