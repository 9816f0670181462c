"""Own clips with own labels: every way that a table may be filled in, and every fault that it may have."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from recorded_trees import write_workbook
from video_files import write_video

from ptsr_edge.core.errors import InputError, JobError
from ptsr_edge.data import datasets, own_clips
from ptsr_edge.data.annotations import Annotations
from ptsr_edge.data.cli import examine
from ptsr_edge.data.extraction import decode_video
from ptsr_edge.data.own_clips import (
    TEMPLATE,
    FolderSettings,
    folder_card,
    read_folder,
    read_settings,
    tomllib,
    write_template,
)

HEADING = "subject,clip,onset,apex,offset,label"
ROWS = ("anna,a1,3,6,9,smile", "anna,a2,3,5,9,frown", "ben,b1,3,7,9,smile")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three clips of ten frames each, numbered from 1; what is in them does not matter to the table's reader."""
    for clip in ("anna/a1", "anna/a2", "ben/b1"):
        folder = tmp_path / clip
        folder.mkdir(parents=True)
        for number in range(1, 11):
            (folder / f"img{number:03d}.png").touch()
    return tmp_path


def read(root: Path, *rows: str, heading: str = HEADING, settings: str = "") -> Annotations:
    (root / "clips.csv").write_text("\n".join([heading, *rows]) + "\n", encoding="utf-8")
    (root / "dataset.toml").write_text(settings, encoding="utf-8")
    return read_folder(root)


def places(found: Annotations) -> list[tuple[str, ...]]:
    return [tuple(path.stem for path in clip.files) for clip in found.clips]


def test_a_table_becomes_clips_with_the_labels_as_classes(root: Path) -> None:
    found = read(root, *ROWS)
    assert found.label_names == ("frown", "smile")
    assert [(clip.subject, clip.name, clip.label) for clip in found.clips] == [
        ("folder/anna", "folder/anna/a1/3", 1), ("folder/anna", "folder/anna/a2/3", 0),
        ("folder/ben", "folder/ben/b1/3", 1),
    ]  # fmt: skip
    assert places(found) == [("img003", "img006"), ("img003", "img005"), ("img003", "img007")]
    assert (found.cropped, found.clips[0].fps, found.odd) == (False, None, ())


def test_a_workbook_is_read_alike_and_two_tables_are_refused(root: Path) -> None:
    expected = read(root, *ROWS).clips
    (root / "clips.csv").unlink()
    cells = [[int(cell) if cell.isdigit() else cell for cell in row.split(",")] for row in ROWS]
    write_workbook(root / "clips.xlsx", HEADING.split(","), cells)
    assert [clip.name for clip in read_folder(root).clips] == [clip.name for clip in expected]
    with pytest.raises(InputError, match=r"holds clips\.xlsx and clips\.csv: keep one"):
        read(root, *ROWS)


def test_a_table_with_semicolons_and_a_byte_order_mark_is_read(root: Path) -> None:
    text = "\ufeff" + "\n".join([HEADING, *ROWS]).replace(",", ";")
    (root / "clips.csv").write_text(text, encoding="utf-8")
    assert len(read_folder(root).clips) == 3


def test_a_missing_apex_is_the_middle_frame(root: Path) -> None:
    found = read(root, "anna,a1,3,,9,smile", "anna,a2,3,,,frown", "ben,b1,3,7,9,smile")
    assert places(found) == [
        ("img003", "img006"),
        ("img003", "img006"),
        ("img003", "img007"),
    ]  # (3 + 10) // 2
    assert [clip.apex_rule for clip in found.clips] == ["midpoint", "midpoint", "sheet"]
    assert [(finding.kind, finding.row) for finding in found.odd] == [("apex", 2), ("apex", 3)]
    without = read(root, "anna,a1,3,smile", "anna,a2,4,frown", heading="subject,clip,onset,label")
    assert places(without) == [("img003", "img006"), ("img004", "img007")]


def test_times_of_image_files_need_a_frame_rate(root: Path) -> None:
    # At 20 frames a second .1 s is the third frame, number 3; .26 s is 5.2 frames after the first: number 6.
    rows = ("anna,a1,0.1s,0.26 s,.45S,smile", "anna,a2,3,5,9,frown")
    assert places(read(root, *rows, settings="fps = 20"))[0] == ("img003", "img006")
    (fault,) = read(root, *rows).unfit
    assert (fault.finding.column, fault.finding.row) == ("onset", 2)
    assert "0.1s is a time: dataset.toml must say the fps of image files" in fault.finding.message
    (fault,) = read(root, *rows, "ben,b1,0s,0.5s,,smile", settings="fps = 20").unfit
    assert "0.5s lies behind the last frame of" in fault.finding.message
    assert "at 0.450s" in fault.finding.message


def test_frames_of_a_video_are_counted_from_0_and_found_by_their_own_times(root: Path) -> None:
    # Ten frames at uneven times, from 5 s on: the clip's time begins with its first frame.
    times = [5000, 5040, 5080, 5200, 5240, 5280, 5320, 5360, 5400, 5440]
    write_video(root / "anna" / "v.mkv", times)
    found = read(root, "anna,v.mkv,1,4,9,smile", "anna,v.mkv,0.19s,0.33s,,smile", "anna,a2,3,5,9,frown")
    assert [clip.places for clip in found.clips] == [(1, 4), (3, 6), ()]
    assert found.clips[0].files == (root / "anna/v.mkv",) * 2
    assert len({clip.name for clip in found.clips}) == 3


@pytest.mark.parametrize(
    ("row", "column", "says"),
    [
        (",a1,3,6,9,smile", "subject", "the subject is empty"),
        ("an/na,a1,3,6,9,smile", "subject", "a subject's name is no path, found 'an/na'"),
        ("..,a1,3,6,9,smile", "subject", "a subject's name is no path, found '..'"),
        ("anna,,3,6,9,smile", "clip", "the clip is empty"),
        ("anna,a9,3,6,9,smile", "clip", "no folder or video 'a9' in .*; the nearest there is anna/a"),
        ("anna,../x,3,6,9,smile", "clip", "a clip lies below .*, found '../x'"),
        ("anna,/etc,3,6,9,smile", "clip", "a clip lies below .*, found '/etc'"),
        ("anna,a1/img001.png,3,6,9,smile", "clip", "neither a folder of frames nor a video"),
        ("anna,.,3,6,9,smile", "clip", "a clip lies below .*, found '.'"),
        ("anna,empty,3,6,9,smile", "clip", "empty holds no frames"),
        ("anna,text.mp4,3,6,9,smile", "clip", "is no video that FFmpeg can read"),
        ("anna,a1,,6,9,smile", "onset", "an onset is needed, found ''"),
        ("anna,a1,0.12,6,9,smile", "onset", r"a frame's number \(12\) or a time in seconds \(0.48s\) is expected, found '0.12'"),
        ("anna,a1,30,36,,smile", "onset", r"frame 30 is not in .*\(10 frames, 1 to 10\)"),
        ("anna,a1,3,36,,smile", "apex", "frame 36 is not in"),
        ("anna,a1,6,6,9,smile", "apex", "the apex 6 is the onset"),
        ("anna,a1,6,4,9,smile", "apex", "the apex 4 comes before the onset 6"),
        ("anna,a1,10,,,smile", "offset", "no frame lies between the onset 10 and the offset 10"),
        ("anna,a1,3,6,9,", "label", "the label is empty"),
        ("anna,a1,3,6,9,sm|le", "label", "a label is 1 to 40 letters, .*; found 'sm|le'"),
        ("anna,a1,3,6,9,Smile", "label", r"unknown label 'Smile'; known: frown, smile \(nearest: smile\)"),
        ("anna,anna/a2,3,5,9,smile", "clip", "the same clip as in row 2"),
        ("anna,both,3,6,9,smile", "clip", "the clip 'both' is twice there: .*both and .*both"),
    ],
)  # fmt: skip
def test_an_unfit_row_is_told_with_its_place_and_the_others_are_read(
    root: Path, row: str, column: str, says: str
) -> None:
    (root / "anna/text.mp4").write_text("no video", encoding="utf-8")
    (root / "anna/empty").mkdir()
    (root / "anna/both").mkdir()
    (root / "both").mkdir()
    found = read(root, *ROWS[1:], row)
    (fault,) = found.unfit
    assert (fault.finding.row, fault.finding.column, fault.finding.file.name) == (4, column, "clips.csv")
    assert re.search(says, fault.finding.message), fault.finding.message
    assert len(found.clips) == 2


def test_one_person_spelled_in_two_ways_is_one(root: Path) -> None:
    (root / "ben").rename(root / "01")
    found = read(root, "anna,a1,3,6,9,smile", "Anna,a2,3,5,9,frown", "1,b1,3,7,9,smile")  # a spreadsheet's 1
    assert [clip.subject for clip in found.clips] == ["folder/anna", "folder/anna", "folder/1"]
    assert [str(finding).rpartition("clips.csv, ")[2] for finding in found.odd] == [
        "row 3, column subject: 'Anna' is taken for 'anna'"
    ]


def test_dataset_toml_orders_and_maps_classes_and_names_the_data(root: Path) -> None:
    found = read(
        root, *ROWS, "anna,a2,4,6,9,blink", "ben,b1,4,7,9,grin",
        settings='name = "lab A"\nfps = 50\nframes = "crops"\nclasses = ["smile", "frown"]\n'
        '[labels]\nblink = "drop"\ngrin = "smile"\n',
    )  # fmt: skip
    assert found.label_names == ("smile", "frown")
    assert [clip.label for clip in found.clips] == [0, 1, 0, 0]
    assert found.account() == "5 rows = 4 used + 1 dropped (blink 1) + 0 unfit"
    assert (found.name, found.clips[0].subject, found.clips[0].fps) == (
        "folder:lab A",
        "folder:lab A/anna",
        50,
    )
    assert found.cropped


def test_without_classes_a_mapped_label_is_no_class(root: Path) -> None:
    found = read(root, *ROWS, "ben,b1,4,7,9,grin", settings='[labels]\ngrin = "smile"\n')
    assert found.label_names == ("frown", "smile")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("nme = 'x'", "dataset.toml: unknown key 'nme'; the nearest known key is 'name'"),
        ("fps = 0", r"fps: .*greater than 0 \(found 0"),
        ("frames = 'faces'", "frames: .*'crops' or 'whole'"),
        ("name = 'a/b'", "name: "),
        ("classes = ['smile']", "two or more different names"),
        ("classes = ['smile', 'Smile']", "two or more different names"),
        ("classes = ['smile', 'drop']", "'drop' is no class"),
        ("classes = ['smile', 'frown']\nlabels = {grin = 'smle'}", r"labels.grin: 'smle' is none of .*\(nearest: smile\)"),
        ("fps = ", "dataset.toml is not a readable TOML file"),
    ],
)  # fmt: skip
def test_faults_of_dataset_toml_are_one_line(root: Path, settings: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        read(root, *ROWS, settings=settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("heading", "rows", "says"),
    [
        ("subject,clip,onset,apex,offset,emotion", ROWS, r"clips\.csv has no column label in its first"),
        ("subject,clip,onset,apx,offset,label", ROWS, "has a column 'apx': is 'apex' meant"),
        ("subject,clip,onset,apex,OffsetFrame,label", ROWS, "has a column 'offsetframe': is 'offset' meant"),
        (HEADING, ROWS[:1], "fewer than two classes in its column label: found smile"),
        (HEADING, (), "fewer than two classes in its column label: found none"),
    ],
)
def test_faults_of_the_whole_table_are_refused(
    root: Path, heading: str, rows: tuple[str, ...], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        read(root, *rows, heading=heading)


def test_a_folder_without_a_table_says_how_to_get_one(tmp_path: Path) -> None:
    for root, says in (
        (None, "needs a root"),
        (tmp_path / "x", "is no folder"),
        (tmp_path, "holds no clips.csv"),
    ):
        with pytest.raises(InputError, match=rf"{says}; accepted: .*data init --root DIR"):
            read_folder(root)


def test_what_is_odd_is_told_and_does_no_harm(root: Path) -> None:
    (root / "anna/a1/notes.txt").touch()
    found = read(
        root, *(f"{row},x" for row in ROWS[:2]), heading=f"{HEADING},remark", settings='[labels]\nfrwn = "frown"\n'
    )  # fmt: skip
    assert len(found.clips) == 2
    assert [(finding.kind, finding.file.name) for finding in found.odd] == [
        ("column", "clips.csv"), ("stray file", "notes.txt"), ("clip", "b1"), ("label", "dataset.toml"),
    ]  # fmt: skip
    assert "the column 'remark' is not read" in str(found.odd[0])
    assert "labels.frwn: no row has this label (nearest: frown)" in str(found.odd[-1])


def test_a_class_without_a_clip_that_can_be_used_is_missing(root: Path) -> None:
    read(root, *ROWS, settings='frames = "crops"')
    record = examine("folder", root, skip_bad=True)  # every image is empty
    assert not record["ok"]
    assert [finding["message"] for finding in record["missing"]] == [
        "the class 'frown' has no clip that can be used", "the class 'smile' has no clip that can be used",
    ]  # fmt: skip


def test_the_card_says_what_the_owner_says_and_no_more(tmp_path: Path) -> None:
    root = tmp_path / "casme2"
    root.mkdir()
    assert folder_card(root) == folder_card(None) == "trained on own clips; no licence text given"
    (root / "dataset.toml").write_text('name = "casme2"\nlicence = """CC BY 4.0,\nmine."""', encoding="utf-8")
    card = datasets.DATASETS["folder"].card_of(root)
    assert card == (
        "trained on own clips, which their owner calls 'casme2'; licence, as their owner gives it: CC BY 4.0, mine"
    )
    assert not datasets.DATASETS["folder"].may_be_shown


def test_a_template_has_a_line_for_each_clip_that_is_there(root: Path) -> None:
    write_video(root / "loose.mp4", [0, 40, 80])
    (root / ".hidden").mkdir()
    (root / ".hidden/x.mp4").touch()
    table, settings = write_template(root)
    assert table.read_text(encoding="utf-8").splitlines() == [
        HEADING, "anna,a1,1,,10,", "anna,a2,1,,10,", "ben,b1,1,,10,", ",loose.mp4,0,,2,",
    ]  # fmt: skip
    assert read_settings(root) == FolderSettings()
    for path in (table, settings):
        path.write_text("mine", encoding="utf-8")
        with pytest.raises(InputError, match=f"{path.name} is there already and is not replaced"):
            write_template(root)
        assert path.read_text(encoding="utf-8") == "mine"
        path.unlink()


def test_the_template_explains_every_key_of_dataset_toml() -> None:
    spoken = re.sub(r"^# (?=[a-z]+ = |\[labels\])", "", TEMPLATE, flags=re.MULTILINE)
    assert set(tomllib.loads(spoken)) == set(FolderSettings.model_fields)
    FolderSettings.model_validate(tomllib.loads(spoken))


def test_half_a_template_is_not_left(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = own_clips.write_whole

    def fails(path: Path, content: str) -> None:
        if path.suffix == ".toml":
            raise JobError("no room")
        whole(path, content)

    monkeypatch.setattr(own_clips, "write_whole", fails)
    with pytest.raises(JobError, match="no room"):
        write_template(root)
    assert sorted(path.name for path in root.iterdir()) == ["anna", "ben"]


def test_samples_of_a_video_are_those_of_its_frames(tmp_path: Path) -> None:
    """The same frames as images and as a lossless video give the same flow; the cache keeps the places apart."""
    cv2 = pytest.importorskip("cv2")
    images = [np.zeros((48, 64, 3), np.uint8) for _ in range(6)]
    for place, image in enumerate(images):
        cv2.circle(image, (20 + 2 * place, 24), 9, (255, 255, 255), -1)
    folder = tmp_path / "anna/still"
    folder.mkdir(parents=True)
    write_video(tmp_path / "anna/moving.avi", [40 * n for n in range(6)], images, codec="ffv1")
    for place, image in enumerate(decode_video(tmp_path / "anna/moving.avi", range(6))):
        cv2.imwrite(str(folder / f"{place}.png"), image)
    read(
        tmp_path, "anna,still,0,3,,smile", "anna,moving.avi,0,3,,smile", "anna,moving.avi,1,5,,frown",
        settings='frames = "crops"',
    )  # fmt: skip
    flows = datasets.load("folder", tmp_path, image_size=28).flows
    assert np.array_equal(flows[0], flows[1])
    assert not np.array_equal(flows[1], flows[2])
