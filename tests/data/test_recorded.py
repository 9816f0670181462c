"""Made-up trees of the recorded data sets, with the quirks of the real ones, become clips."""

from __future__ import annotations

import csv
import re
import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import openpyxl
import pytest
import recorded_trees as trees

from ptsr_edge.core.errors import InputError
from ptsr_edge.data.annotations import Annotations
from ptsr_edge.data.catalog import CASME2, RECORDED
from ptsr_edge.data.recorded import (
    MEGC_FOLDER,
    MEGC_TABLE,
    find_sheet,
    read_composite,
    read_fields,
    read_megc_flow,
    read_recorded,
)

REAL_SHEET = Path(__file__).parents[3] / "shared" / "data" / "casme3_part_A_annotations.csv"
READERS = ("casme2", "samm", "smic", "casme3")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    """Each tree once; read only."""
    return {name: getattr(trees, name)(tmp_path_factory.mktemp("set") / name) for name in READERS}


@pytest.fixture
def casme2(made, tmp_path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(made["casme2"], tmp_path / "set"))


def summary(read: Annotations) -> list[tuple[str, int, list[str]]]:
    return [(clip.name, clip.label, [path.stem for path in clip.files]) for clip in read.clips]


def only_fault(read: Annotations):
    (row,) = read.unfit
    return row.finding


def change(root: Path, row: int, column: int, value) -> None:
    path = root / "CASME2-coding-20140508.xlsx"
    book = openpyxl.load_workbook(path)
    book.active.cell(row=row, column=column).value = value
    book.save(path)


def test_casme2(made):
    read = read_recorded("casme2", made["casme2"])
    assert summary(read) == [
        ("casme2/sub01/EP02_01f", 1, ["reg_img46", "reg_img59"]),
        ("casme2/sub01/EP19_05f", 0, ["reg_img51", "reg_img56"]),  # (51 + 61) // 2
        ("casme2/sub01/EP01_2", 0, ["reg_img30", "reg_img35"]),
        ("casme2/sub02/EP03_02f", 2, ["reg_img1", "reg_img4"]),
        ("casme2/sub17/EP06_08", 0, ["reg_img200", "reg_img210"]),
    ]
    assert [clip.apex_rule for clip in read.clips] == ["sheet", "midpoint", "sheet", "sheet", "sheet"]
    assert [sorted(clip.units) for clip in read.clips] == [[12], [4, 7], [4], [1, 2], [4]]
    assert [clip.offset.stem if clip.offset else None for clip in read.clips] == [
        "reg_img86", "reg_img61", "reg_img41", "reg_img9", None,
    ]  # fmt: skip
    assert read.account() == (
        "8 rows = 5 used + 3 dropped (fear 1, not in MEGC2019's list 1, others 1) + 0 unfit"
    )
    assert read.cropped
    assert {clip.fps for clip in read.clips} == {200}
    assert [(finding.kind, finding.row) for finding in read.odd] == [
        ("apex", 3), ("offset", 9), ("folder", None), ("stray file", None), ("stray file", None),
    ]  # fmt: skip


def test_casme2_as_whole_frames_nested_twice(tmp_path):
    read = read_recorded("casme2", trees.casme2_raw(tmp_path / "set"))
    assert summary(read) == [("casme2/sub01/EP02_01f", 1, ["img46", "img59"])]
    assert not read.clips[0].cropped


def test_samm(made):
    read = read_recorded("samm", made["samm"])
    assert summary(read) == [
        ("samm/006/006_1_2", 1, ["006_05562", "006_05569"]),
        ("samm/006/006_1_3", 0, ["006_00100", "006_00104"]),
        ("samm/011/011_2_1", 0, ["011_00020", "011_00025"]),  # (20 + 31) // 2
        ("samm/011/011_2_2", 2, ["011_00040", "011_00044"]),
    ]
    assert read.clips[0].row == 15
    assert read.account() == "5 rows = 4 used + 1 dropped (other 1) + 0 unfit"
    assert not read.cropped


def test_smic(made):
    read = read_recorded("smic", made["smic"])
    assert summary(read) == [
        (
            "smic/s01/s01_ne_01",
            0,
            ["reg_image000001", "reg_image000005"],
        ),  # by place: frame 22803 is the first
        ("smic/s01/s1_po_01", 1, ["reg_image000100", "reg_image000103"]),
        ("smic/s13/s13_sur_02", 2, ["reg_image000007", "reg_image000010"]),
    ]
    assert read.rows == 3
    assert {clip.apex_rule for clip in read.clips} == {"midpoint"}
    assert [finding.kind for finding in read.odd] == ["frames"]


def test_casme3(made):
    read = read_recorded("casme3", made["casme3"])
    assert summary(read) == [
        ("casme3/spNO.1/b/166", 0, ["166", "175"]),
        ("casme3/spNO.1/b/300", 1, ["300", "305"]),
        ("casme3/spNO.10/m/1", 2, ["1", "5"]),
        ("casme3/spNO.10/m/40", 0, ["40", "44"]),
    ]
    assert read.account() == "7 rows = 4 used + 1 dropped (others 1) + 2 unfit"
    assert [sorted(clip.units) for clip in read.clips] == [[4], [4, 14], [1, 2], [4]]
    assert [(row.finding.row, row.finding.column, row.label) for row in read.unfit] == [
        (4, "Apex", 0), (5, "Apex", 0),
    ]  # fmt: skip
    assert "the apex 11 is the onset" in read.unfit[0].finding.message
    assert "the apex 83 comes before the onset 112" in read.unfit[1].finding.message
    assert all(path.parent.name == "color" for clip in read.clips for path in clip.files)


def test_names_are_those_of_the_published_flow_fields():
    names = {name: RECORDED[name].subject_name.format(1) for name in RECORDED}
    assert names == {"casme2": "sub01", "samm": "001", "smic": "s01", "casme3": "spNO.1"}


@pytest.mark.parametrize(
    ("column", "value", "named", "says"),
    [
        pytest.param(5, 46, "ApexFrame", "the apex 46 is the onset", id="apex is onset"),
        pytest.param(5, 40, "ApexFrame", "the apex 40 comes before the onset 46", id="apex first"),
        pytest.param(5, "soon", "ApexFrame", "a frame number is expected, found 'soon'", id="apex is text"),
        pytest.param(5, 90, "ApexFrame", "frame 90 is not in .*EP02_01f .41 frames, 46 to 86", id="no apex frame"),
        pytest.param(4, 30, "OnsetFrame", "frame 30 is not in", id="no onset frame"),
        pytest.param(4, "/", "OnsetFrame", "an onset is needed, found '/'", id="no onset"),
        pytest.param(2, "EP99_01", "Filename", "no folder of the clip 'EP99_01'", id="no clip"),
        pytest.param(2, "EP19_05f", "OnsetFrame", "frame 46 is not in .*EP19_05f", id="another clip"),
        pytest.param(2, None, "Filename", "the clip's name is empty", id="no clip's name"),
        pytest.param(1, "99", "Subject", "no folder of subject 99", id="no subject"),
        pytest.param(1, "x", "Subject", "a subject's number is expected, found 'x'", id="subject is text"),
        pytest.param(9, "joy", "Estimated Emotion", "unknown emotion 'joy'; known: happiness", id="emotion"),
        pytest.param(9, None, "Estimated Emotion", "unknown emotion ''", id="no emotion"),
    ],
)  # fmt: skip
def test_an_unfit_row_is_listed_with_its_place_and_the_others_are_read(casme2, column, value, named, says):
    change(casme2, 2, column, value)
    read = read_recorded("casme2", casme2)
    fault = only_fault(read)
    assert (fault.file.name, fault.row, fault.column) == ("CASME2-coding-20140508.xlsx", 2, named)
    assert len(read.clips) == 4
    assert re.search(says, fault.message)


def test_a_clip_that_is_listed_twice_counts_once(casme2):
    change(casme2, 4, 2, "EP02_01f")
    change(casme2, 4, 4, 46)
    change(casme2, 4, 5, 59)
    assert only_fault(read_recorded("casme2", casme2)).message == "the same clip as in row 2"


def test_without_apex_and_offset_the_last_frame_stands_for_the_offset(casme2):
    change(casme2, 3, 6, 40)
    read = read_recorded("casme2", casme2)
    assert read.clips[1].files[1].stem == "reg_img56"  # (51 + 61) // 2: 61 is the last frame
    assert [finding.kind for finding in read.odd if finding.row == 3] == ["offset", "apex"]


def test_a_middle_frame_that_was_lost_gives_way_to_its_neighbour(casme2):
    (casme2 / "Cropped/sub01/EP19_05f/reg_img56.jpg").unlink()
    assert read_recorded("casme2", casme2).clips[1].files[1].stem == "reg_img55"


def test_frames_that_are_gone_are_one_unfit_row(casme2):
    shutil.rmtree(casme2 / "Cropped/sub02/EP03_02f")
    (casme2 / "Cropped/sub02/EP03_02f").mkdir()
    assert "holds no frames" in only_fault(read_recorded("casme2", casme2)).message


def test_a_row_without_a_clip_is_dropped(casme2):
    change(casme2, 14, 8, "coded by two")
    assert read_recorded("casme2", casme2).dropped["rows without a clip"] == 1


def test_a_missing_column_is_refused(casme2):
    change(casme2, 1, 5, "Climax")
    with pytest.raises(
        InputError, match=r"20140508\.xlsx has no column ApexFrame .*found: Subject, .*Climax"
    ):
        read_recorded("casme2", casme2)


@pytest.mark.parametrize("name", READERS)
def test_a_missing_sheet_is_refused(made, name, tmp_path):
    root = Path(shutil.copytree(made[name], tmp_path / "set"))
    for path in root.rglob("*.xlsx"):
        path.unlink()
    with pytest.raises(InputError, match=rf"has no sheet .*\.xlsx \(or \.csv\) of {name}; accepted: "):
        read_recorded(name, root)


def test_missing_frames_are_refused(casme2):
    shutil.rmtree(casme2 / "Cropped")
    shutil.rmtree(casme2 / "CASME2_RAW_selected")
    with pytest.raises(InputError, match=r"no folder with subjects; accepted: CASME2-coding"):
        read_recorded("casme2", casme2)


def test_unfit_roots(tmp_path):
    with pytest.raises(InputError, match="'samm' needs a root; accepted: a folder with SAMM_Micro"):
        read_recorded("samm", None)
    with pytest.raises(InputError, match="nowhere is no folder; accepted"):
        read_recorded("samm", tmp_path / "nowhere")


def test_the_sheet_may_lie_beside_the_root(casme2):
    assert len(read_recorded("casme2", casme2 / "Cropped").clips) == 5


def test_the_owners_name_comes_before_others_and_two_others_are_refused(tmp_path):
    for name in ("CASME2-coding-20190701.xlsx", "~$CASME2-coding-20190701.xlsx"):
        (tmp_path / name).write_bytes(b"x")
    assert find_sheet(tmp_path, CASME2).name == "CASME2-coding-20190701.xlsx"
    (tmp_path / "casme2-coding-updated.csv").write_bytes(b"x")
    with pytest.raises(InputError, match="several sheets of casme2: .*; keep one"):
        find_sheet(tmp_path, CASME2)
    (tmp_path / "CASME2-coding-20140508.csv").write_bytes(b"x")
    assert find_sheet(tmp_path, CASME2).name == "CASME2-coding-20140508.csv"


def test_the_composite_finds_its_members_by_the_names_of_their_folders(tmp_path):
    sets, missing = read_composite(trees.megc2019(tmp_path / "set"))
    assert [(part.name, len(part.clips)) for part in sets] == [("casme2", 5), ("smic", 3), ("samm", 4)]
    assert missing == []
    names = [clip.name for part in sets for clip in part.clips]
    assert len(set(names)) == len(names)


def test_a_member_that_is_missing_is_refused_or_listed(tmp_path):
    root = trees.megc2019(tmp_path / "set")
    shutil.rmtree(root / "SMIC")
    with pytest.raises(
        InputError, match="must hold one folder of SMIC-HS, named smic or .*; found: CASME II, samm"
    ):
        read_composite(root)
    sets, missing = read_composite(root, skip_bad=True)
    assert [part.name for part in sets] == ["casme2", "samm"]
    assert "smic is left out" in missing[0].message


def test_a_composite_without_any_member_is_refused(tmp_path):
    (tmp_path / "CASME II").mkdir()
    (tmp_path / "casme2").mkdir()
    with pytest.raises(InputError, match="must hold one folder of CASME II.*found: CASME II, casme2"):
        read_composite(tmp_path)
    with pytest.raises(InputError, match="none of casme2, smic, samm can be read"):
        read_composite(tmp_path, skip_bad=True)
    with pytest.raises(
        InputError, match="nowhere is no folder; accepted: a folder with CASME2, SMIC and SAMM"
    ):
        read_composite(tmp_path / "nowhere")


@pytest.mark.skipif(not REAL_SHEET.is_file(), reason=f"the public CAS(ME)^3 table is not at {REAL_SHEET}")
def test_the_public_table_of_casme3(tmp_path):
    """Frames of no content under the names that the table has; folders spelled spNo, as they are handed out."""
    shutil.copy(REAL_SHEET, tmp_path)  # into the test's own folder, which pytest clears
    with REAL_SHEET.open(newline="", encoding="utf-8-sig") as stream:
        rows = list(csv.DictReader(stream))
    frame = tmp_path / "frame.jpg"
    frame.write_bytes(b"x")
    for row in rows:
        folder = tmp_path / "part_A" / row["Subject"].replace("NO", "No") / row["Filename"] / "color"
        folder.mkdir(parents=True, exist_ok=True)
        for number in {row["Onset"], row["Apex"], row["Offset"]}:
            path = folder / f"{number}.jpg"
            if not path.exists():
                path.hardlink_to(frame)
    read = read_recorded("casme3", tmp_path)
    assert read.rows == 687
    # 27 rows with apex = onset and one with its order wrong.
    assert len(read.unfit) == 28
    assert sum("is the onset" in row.finding.message for row in read.unfit) == 27
    # The table has the three classes itself, in its column label_for_3.
    by_row = {clip.row: clip.label for clip in read.clips} | {
        row.finding.row: row.label for row in read.unfit
    }
    assert by_row == {place: int(row["label_for_3"]) for place, row in enumerate(rows, start=2)}
    assert Counter(by_row.values()) == {0: 449, 1: 54, 2: 184}
    # and the apex frame in imagename_apex.
    for clip in read.clips:
        assert clip.files[1].as_posix().endswith(rows[clip.row - 2]["imagename_apex"].replace("spNO", "spNo"))
    assert len({clip.name for clip in read.clips}) == len(read.clips) == 687 - 28
    assert len({clip.subject for clip in read.clips}) <= 87


FIELDS = [
    ("casme2", "sub01", "EP02_01f", 1),
    ("casme2", "sub02", "EP01_11f", 2),
    ("smic", "s01", "s01_ne_01", 0),
]
PIXELS = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)


@pytest.fixture
def fields(tmp_path: Path) -> Path:
    (tmp_path / MEGC_FOLDER).mkdir()
    lines = ["dataset,sub,filename_o,label", *(",".join(map(str, row)) for row in FIELDS)]
    (tmp_path / MEGC_TABLE).write_text("\n".join(lines) + "\n")
    for _, subject, clip, _ in FIELDS:
        cv2.imwrite(str(tmp_path / MEGC_FOLDER / f"{subject}_{clip} .png"), PIXELS)
    return tmp_path


def image(fields: Path, place: int) -> Path:
    return fields / MEGC_FOLDER / f"{FIELDS[place][1]}_{FIELDS[place][2]} .png"


def test_each_data_set_is_read_apart(fields):
    casme2, smic = read_megc_flow(fields)
    assert (casme2.name, smic.name) == ("casme2", "smic")
    assert [(clip.name, clip.label, clip.row) for clip in casme2.clips] == [
        ("casme2/sub01/EP02_01f", 1, 2), ("casme2/sub02/EP01_11f", 2, 3),
    ]  # fmt: skip


def test_a_set_of_which_nothing_is_here_is_dropped_and_a_part_is_unfit(fields):
    image(fields, 2).unlink()
    image(fields, 1).unlink()
    casme2, smic = read_megc_flow(fields)
    assert smic.account() == "1 rows = 0 used + 1 dropped (smic is not here 1) + 0 unfit"
    assert casme2.account() == "2 rows = 1 used + 0 dropped + 1 unfit"
    assert casme2.unfit[0].label == 2


def test_a_damaged_image_is_a_fault_of_its_row(fields):
    image(fields, 1).write_bytes(image(fields, 1).read_bytes()[:100])
    clips = read_megc_flow(fields)[0].clips
    images, faults = read_fields(clips)
    assert len(images) == 1
    assert faults["casme2/sub02/EP01_11f"].row == 3
