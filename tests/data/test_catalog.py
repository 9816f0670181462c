"""What is known of the recorded data sets fits together, and with what was published."""

from __future__ import annotations

from pathlib import Path

import pytest

from ptsr_edge.core.config import LABELS
from ptsr_edge.core.errors import InputError
from ptsr_edge.data.annotations import RowFault
from ptsr_edge.data.catalog import (
    COMPOSITE,
    COMPOSITE_FOLDERS,
    NEGATIVE,
    POSITIVE,
    RECORDED,
    SURPRISE,
    FrameTree,
    canonical,
    find_tree,
    frame_number,
)


def test_classes_are_those_of_the_labels():
    assert (LABELS[NEGATIVE], LABELS[POSITIVE], LABELS[SURPRISE]) == ("negative", "positive", "surprise")


@pytest.mark.parametrize("known", RECORDED.values(), ids=list(RECORDED))
def test_a_set_has_all_classes_and_drops_none_of_them(known):
    assert set(known.classes.values()) == {0, 1, 2}
    assert not set(known.classes) & set(known.dropped)
    assert all(word == word.casefold() for word in (*known.classes, *known.dropped))


@pytest.mark.parametrize("name", COMPOSITE)
def test_published_classes_add_up(name):
    published = RECORDED[name].published
    assert sum(published.classes) == published.clips


def test_published_counts_of_the_composite():
    # See et al., MEGC 2019, table 1: 442 clips of 68 subjects; 250 negative, 109 positive, 83 surprise.
    published = [RECORDED[name].published for name in COMPOSITE]
    assert sum(part.clips for part in published) == 442
    assert sum(part.subjects for part in published) == 68
    assert [sum(part.classes[label] for part in published) for label in range(3)] == [250, 109, 83]


def test_names_of_folders_in_the_composite_are_each_one_members():
    names = [name for member in COMPOSITE for name in COMPOSITE_FOLDERS[member]]
    assert len(set(names)) == len(names)


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def tree(root: Path, subject: str = r"sub\d+", passed_over: str = r"$^", inside: str = "") -> FrameTree:
    return find_tree(root, subject, passed_over, ("*",), inside, "sub01/EP02_01f/img1.jpg")


def numbers(found: FrameTree, subject: int, clip: str) -> list[int]:
    return list(found.frames(subject, clip, "Subject", "Filename").by_number)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("reg_img46.jpg", 46),
        ("006_05562.jpg", 5562),
        ("175.jpg", 175),
        ("image000123.bmp", 123),
        ("x.jpg", None),
    ],
)
def test_the_last_number_of_a_name_is_the_frame(name, number):
    assert frame_number(Path(name)) == number


def test_names_are_the_same_without_zeros_and_case():
    assert canonical("S01_ne_01") == canonical("s1_ne_1")
    assert canonical("EP01_2") == canonical("EP01_02")
    assert canonical("EP01_2") != canonical("EP01_20")


@pytest.mark.parametrize("above", ["", "CASME2_RAW_selected/", "CASME2_RAW_selected/CASME2_RAW_selected/"])
def test_subjects_are_found_however_deep(tmp_path, above):
    touch(tmp_path, f"{above}sub01/EP02_01f/img46.jpg")
    found = tree(tmp_path)
    assert found.base == tmp_path / above
    assert numbers(found, 1, "EP02_01f") == [46]


def test_frames_are_in_the_order_of_their_numbers(tmp_path):
    touch(tmp_path, *(f"sub01/a/img{number}.jpg" for number in (10, 9, 100)))
    assert numbers(tree(tmp_path), 1, "a") == [9, 10, 100]


def test_crops_are_taken_before_whole_frames_and_the_other_is_told(tmp_path):
    touch(tmp_path, "RAW/sub01/a/img1.jpg", "deep/Cropped/sub01/a/reg_img2.jpg")
    found = tree(tmp_path)
    assert found.cropped
    assert numbers(found, 1, "a") == [2]
    assert found.not_taken == [tmp_path / "RAW"]


def test_a_root_below_the_folder_of_crops_is_known_by_its_parent(tmp_path):
    touch(tmp_path, "SMIC_all_cropped/HS/s1/a/1.bmp", "crop_of_potatoes/RAW/deeper/s1/a/1.bmp")
    assert find_tree(tmp_path / "SMIC_all_cropped" / "HS", r"s\d+", r"$^", ("*",)).cropped
    assert not find_tree(tmp_path / "crop_of_potatoes" / "RAW", r"s\d+", r"$^", ("*",)).cropped


def test_two_folders_that_are_alike_are_refused(tmp_path):
    touch(tmp_path, "Cropped/sub01/a/1.jpg", "Cropped_again/sub01/a/1.jpg")
    with pytest.raises(
        InputError, match="several folders of subjects that are alike: .*Cropped, .*Cropped_again"
    ):
        tree(tmp_path)


def test_folders_of_another_camera_are_not_gone_into(tmp_path):
    touch(tmp_path, "VIS/s1/a/1.bmp", "HS/s1/a/2.bmp")
    found = find_tree(tmp_path, r"s\d+", r"(?<![a-z])(vis|nir)(?![a-z])", ("*",))
    assert numbers(found, 1, "a") == [2]
    assert found.not_taken == []


def test_no_subject_at_all_says_what_is_accepted(tmp_path):
    touch(tmp_path, "readme.txt")
    with pytest.raises(InputError, match="no folder with subjects; accepted: sub01/EP02_01f/img1.jpg"):
        tree(tmp_path)


def test_clips_are_found_exactly_then_by_case_then_without_zeros(tmp_path):
    touch(tmp_path, "sub01/EP01_2/1.jpg", "sub01/EP01_02/2.jpg", "sub01/ep03_07F/3.jpg", "sub01/EP04_1/4.jpg")
    found = tree(tmp_path)
    assert numbers(found, 1, "EP01_2") == [1]
    assert numbers(found, 1, "EP01_02") == [2]
    assert numbers(found, 1, "EP03_07f") == [3]
    assert numbers(found, 1, "EP04_01") == [4]
    with pytest.raises(RowFault, match="several folders fit the clip 'EP01_002': .*EP01_02, .*EP01_2"):
        numbers(found, 1, "EP01_002")


def test_two_folders_of_one_subject_are_read_together(tmp_path):
    touch(tmp_path, "s1/a/1.jpg", "s01/b/2.jpg")
    found = find_tree(tmp_path, r"s\d+", r"$^", ("*",))
    assert (numbers(found, 1, "a"), numbers(found, 1, "b")) == ([1], [2])


def test_a_subject_or_clip_that_is_not_there_names_its_column(tmp_path):
    touch(tmp_path, "sub01/a/1.jpg")
    with pytest.raises(RowFault, match="no folder of subject 2 in") as caught:
        numbers(tree(tmp_path), 2, "a")
    assert caught.value.column == "Subject"
    with pytest.raises(RowFault, match="no folder of the clip 'b' in .*sub01, which has 1 clips") as caught:
        numbers(tree(tmp_path), 1, "b")
    assert caught.value.column == "Filename"


def test_what_is_no_frame_is_passed_over_and_listed(tmp_path):
    touch(tmp_path, "a.lnk", "sub01/x.lnk", "sub01/a/Thumbs.db", "sub01/a/._img1.jpg", "sub01/a/img1.jpg",
          "sub01/a/img1.png", "sub01/a/cover.jpg")  # fmt: skip
    found = tree(tmp_path)
    assert numbers(found, 1, "a") == [1]
    assert [path.name for path in found.stray] == [
        "a.lnk", "x.lnk", "._img1.jpg", "Thumbs.db", "cover.jpg", "img1.png",
    ]  # fmt: skip


def test_frames_may_lie_in_a_folder_of_each_clip(tmp_path):
    touch(tmp_path, "spNo.1/b/Color/175.jpg", "spNo.1/b/depth/176.png", "spNo.1/c/7.jpg")
    found = tree(tmp_path, r"spno\.\d+", inside="color")
    assert numbers(found, 1, "b") == [175]
    assert numbers(found, 1, "c") == [7]


def test_an_empty_clip_says_so(tmp_path):
    (tmp_path / "sub01" / "a").mkdir(parents=True)
    assert tree(tmp_path).frames(1, "a", "Subject", "Filename").describe() == "no frames"
