"""Kept patches and confusion matrices."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from report_data import LABELS, make_profile, without, write_profile

from ptsr_edge.report.accuracy_charts import _area, _outline, _shrunk, confusion, kept
from ptsr_edge.report.comparison import Comparison, compare, read_sources
from ptsr_edge.report.recommendation import decide


def compared(folder: Path) -> Comparison:
    return compare(read_sources([folder]))


def covered(path: str, size: int) -> np.ndarray:
    """Cells inside a path of `_area`, read back from its text."""
    cells = np.zeros((size, size), dtype=bool)
    for x, y, to_x, to_y in re.findall(r"M(\d+) (\d+)H(\d+)V(\d+)H\d+z", path):
        cells[int(y) : int(to_y), int(x) : int(to_x)] = True
    return cells


def test_area_covers_exactly_the_cells() -> None:
    cells = np.random.default_rng(0).random((7, 7)) < 0.4
    np.testing.assert_array_equal(covered(_area(cells), 7), cells)


def test_outline_of_one_cell_is_its_four_sides() -> None:
    cells = np.zeros((3, 3), dtype=bool)
    cells[1, 2] = True
    assert sorted(re.findall(r"M[^M]+", _outline(cells))) == ["M2 1H3", "M2 1V2", "M2 2H3", "M3 1V2"]


def test_outline_runs_between_kept_and_dropped_cells_only() -> None:
    # The border's length: neighbours (the frame counts as dropped) that differ.
    cells = np.random.default_rng(1).random((7, 7)) < 0.5
    padded = np.pad(cells, 1).astype(int)
    length = np.abs(np.diff(padded, axis=0)).sum() + np.abs(np.diff(padded, axis=1)).sum()
    drawn = sum(
        abs(int(end) - int(x if way == "H" else y))
        for x, y, way, end in re.findall(r"M(\d+) (\d+)([HV])(\d+)", _outline(cells))
    )
    assert drawn == length


def test_images_shrink_by_whole_blocks() -> None:
    image = np.kron(np.arange(56 * 56).reshape(56, 56) % 32 * 8, np.ones((2, 2), dtype=int))
    np.testing.assert_array_equal(_shrunk(image), image[::2, ::2])
    assert _shrunk(np.full((28, 28), 255)).shape == (28, 28)


def test_kept_patches_of_each_budget(tmp_path: Path) -> None:
    profile = make_profile(tmp_path / "one", samples=50)
    patches = profile.kept_patches
    assert patches is not None
    picture = kept(compared(tmp_path / "one"), decide(compared(tmp_path / "one")))
    assert picture.wide is not None
    # A budget that keeps everything has no column; one image a sample, used again in each column.
    assert "the patches kept at 50 %, 25 % outlined" in picture.words
    assert picture.wide.count("<image") == 3
    assert picture.wide.count("<use") == 6
    dropped = ~np.isin(np.arange(196), patches.kept["ptsr-k0.5-fp32-cpu"][0]).reshape(14, 14)
    assert _area(dropped) in picture.wide


def test_words_give_the_share_of_strain(tmp_path: Path) -> None:
    profile = make_profile(tmp_path / "one", samples=50)
    patches = profile.kept_patches
    assert patches is not None
    strain = np.asarray(patches.strain[0], dtype=float)
    inside = np.kron(
        np.isin(np.arange(196), patches.kept["ptsr-k0.5-fp32-cpu"][0]).reshape(14, 14), np.ones((8, 8))
    )
    share = 100 * (strain * inside).sum() / strain.sum()
    picture = kept(compared(tmp_path / "one"), decide(compared(tmp_path / "one")))
    assert f"s01/clip0 (negative) keeps {share:.0f} %" in picture.words


def test_pictures_of_licensed_data_are_marked(tmp_path: Path) -> None:
    make_profile(tmp_path / "one", samples=50, data="casme2")
    picture = kept(compared(tmp_path / "one"), decide(compared(tmp_path / "one")))
    assert "derived from casme2: its licence says who may see them" in picture.caption


def test_without_samples_nothing_is_drawn(tmp_path: Path) -> None:
    make_profile(tmp_path / "one", samples=50, kept=False)
    picture = kept(compared(tmp_path / "one"), decide(compared(tmp_path / "one")))
    assert (picture.wide, picture.narrow) == (None, None)
    assert picture.note.startswith("Not drawn:")


def test_confusion_starts_with_the_baseline_and_the_verdict(tmp_path: Path) -> None:
    make_profile(tmp_path / "one", samples=50, precisions=("fp32", "int8"), kept=False)
    comparison = compared(tmp_path / "one")
    picture = confusion(comparison, decide(comparison))
    assert picture.wide is not None
    titles = re.findall(r'font-weight="600">([^<]*(?:ViT|%)[^<]*)<', picture.wide)
    assert titles[:2] == ["full ViT int8", "25 % int8"]
    assert len(titles) == 6
    assert "2 more are in report.json" in picture.caption


def test_confusion_shows_counts_and_recalls(tmp_path: Path) -> None:
    profile = make_profile(tmp_path / "one", samples=50, kept=False)
    row = profile.variants[0]
    assert row.accuracy is not None
    assert row.accuracy.confusion is not None
    comparison = compared(tmp_path / "one")
    picture = confusion(comparison, decide(comparison))
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
    picture = confusion(comparison, decide(comparison))
    assert (picture.wide is None) == (matrix is None)
