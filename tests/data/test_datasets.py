"""Data sets by name: the tree of the published flow fields, the rendered one, and splits by subject."""

from __future__ import annotations

import logging
import shutil
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import recorded_trees

from ptsr_edge.core.config import Preprocess
from ptsr_edge.core.errors import InputError
from ptsr_edge.data import datasets as data
from ptsr_edge.data import recorded
from ptsr_edge.vision.flow import close_up, resize

REAL = Path(__file__).parents[3] / "shared" / "data" / "megc_flow"

HEADING = "dataset,sub,filename_o,label,apex,imagename,sub_filename\r\n"
ROWS = [
    ("casme2", "sub01", "EP02_01f", 1),
    ("casme2", "sub01", "EP19_05f", 0),
    ("casme2", "sub02", "EP01_11f", 2),
    ("smic", "s01", "s01_ne_01", 0),
]


def write_image(root: Path, row: tuple, size: int = 28) -> np.ndarray:
    """Writes a flow image as the publisher did; returns it as (size, size, 3) uint8: u, v, strain."""
    folder = root / recorded.MEGC_FOLDER
    folder.mkdir(exist_ok=True)
    u_v_strain = np.random.default_rng(len(row[2])).integers(0, 256, (size, size, 3), dtype=np.uint8)
    written, png = cv2.imencode(".png", u_v_strain[..., ::-1])  # OpenCV takes blue first
    assert written
    (folder / f"{row[1]}_{row[2]} .png").write_bytes(png.tobytes())
    return u_v_strain


def write_table(root: Path, rows: list[tuple]) -> None:
    lines = [f"{data_set},{sub},{clip},{label},,{sub}_{clip}.jpg,\r\n" for data_set, sub, clip, label in rows]
    (root / recorded.MEGC_TABLE).write_text(HEADING + "".join(lines), newline="")


@pytest.fixture
def tree(tmp_path):
    write_table(tmp_path, ROWS)
    for row in ROWS:
        write_image(tmp_path, row)
    return tmp_path


def load_tree(root, **options):
    return data.load("megc-flow", root, **{"image_size": 28} | options)


def test_published_tree(tree):
    loaded = load_tree(tree)
    assert len(loaded) == 4
    assert loaded.flows.dtype == np.float32
    assert loaded.flows.shape == (4, 28, 28, 3)
    assert loaded.labels.tolist() == [1, 0, 2, 0]
    assert loaded.subjects.tolist() == ["casme2/sub01", "casme2/sub01", "casme2/sub02", "smic/s01"]
    assert loaded.subject_names == ["casme2/sub01", "casme2/sub02", "smic/s01"]
    assert loaded.names[0] == "casme2/sub01/EP02_01f"
    assert loaded.label_names == ("negative", "positive", "surprise")
    assert loaded.preprocess == Preprocess(
        image_size=28, crop="close", flow="published", global_motion="none"
    )
    assert loaded.source == "megc-flow"


def test_channels_are_u_v_strain_in_shares(tree):
    written = write_image(tree, ROWS[2])
    np.testing.assert_allclose(load_tree(tree).flows[2], written / np.float32(255), rtol=1e-6)


def test_images_are_brought_to_the_size_asked_for(tree):
    small, same = load_tree(tree, image_size=16), load_tree(tree)
    assert small.flows.shape == (4, 16, 16, 3)
    assert small.preprocess.image_size == 16
    # An area average keeps the mean; float32 sums of 784 values err by about 1e-6.
    np.testing.assert_allclose(small.flows.mean((1, 2)), same.flows.mean((1, 2)), atol=1e-5)
    assert load_tree(tree, image_size=56).flows.shape == (4, 56, 56, 3)


def test_subjects_and_limit_choose(tree):
    assert load_tree(tree, subjects=["smic/s01", "casme2/sub02"]).labels.tolist() == [2, 0]
    assert load_tree(tree, limit=1).labels.tolist() == [1, 2, 0]


def test_a_data_set_that_is_wholly_absent_is_left_out_and_logged(tree, caplog):
    write_table(tree, [*ROWS, ("samm", "006", "006_1_2", 0), ("samm", "007", "007_3_1", 1)])
    with caplog.at_level(logging.INFO, logger="ptsr_edge"):
        assert len(load_tree(tree)) == 4
    assert "samm" in caplog.text
    assert "2 clips" in caplog.text


def test_an_image_missing_in_a_present_data_set_names_its_line(tree):
    write_table(tree, [*ROWS, ("smic", "s02", "s02_po_01", 1)])
    with pytest.raises(InputError, match=r"row 6: .*s02_s02_po_01 \.png is missing \(1 of the 2 clips"):
        load_tree(tree)


def test_an_image_that_is_no_image_names_file_and_line(tree, capfd):
    """One line, and none from the C libraries beside it: they write to stderr by themselves."""
    image = tree / recorded.MEGC_FOLDER / "sub02_EP01_11f .png"
    whole = image.read_bytes()
    flipped = whole[:100] + bytes([whole[100] ^ 1]) + whole[101:]
    header = whole[12:16] + struct.pack(">II", 10**6, 10**6) + whole[24:29]
    huge = whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:]
    for content, fault in [
        (b"", "it is empty"),
        (b"not a png", "it is no JPEG, PNG, BMP or TIFF"),
        (whole[:8], "it is cut short after 8 bytes"),
        (whole[:-1], f"it is cut short after {len(whole) - 1} bytes"),
        (whole[: len(whole) // 2], "it is cut short"),
        (whole[:8] + whole[33:], "it does not begin with its header"),
        (flipped, r"its bytes \d+ to \d+ are damaged"),
        (huge, "Assertion failed|CV_IO_MAX|refuses its pixels|pixels"),
    ]:
        image.write_bytes(content)
        with pytest.raises(InputError, match=rf"row 4: .*11f \.png is no readable PNG image: .*({fault})"):
            load_tree(tree)
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no /proc: no file that root cannot read")
def test_an_image_that_may_not_be_read_names_file_and_line(tree):
    image = tree / recorded.MEGC_FOLDER / "sub02_EP01_11f .png"
    image.unlink()
    image.symlink_to("/proc/self/mem")  # its first byte is mapped nowhere: an I/O error for everybody
    with pytest.raises(InputError, match=r"row 4: .*11f \.png cannot be read: Input/output error"):
        load_tree(tree)


def test_a_folder_for_data_that_lie_in_none_is_refused(tree):
    with pytest.raises(
        InputError, match=r"'synthetic' is rendered and lies in no folder.*: ict-face, faces, megc-flow"
    ):
        data.load("synthetic", tree, image_size=28)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        pytest.param(
            "dataset,sub,label\r\n", "no column filename_o in .*; found: dataset, sub, label; ", id="column"
        ),
        pytest.param("", "no column dataset.*found: no heading", id="empty"),
        pytest.param(
            HEADING + "smic,s01,x,7,,,\r\n",
            "row 2, column label: label must be 0 to 2.*found '7'",
            id="label",
        ),
        pytest.param(HEADING + "smic,,x,1,,,\r\n", "row 2, column .*must not be empty", id="no subject"),
        pytest.param(HEADING + "smic\r\n", "row 2, column .*must not be empty", id="short row"),
        pytest.param(HEADING + "x,y,z,1,,,\r\n", "none of the 1 images", id="no image at all"),
        pytest.param(HEADING, "none of the 0 images", id="no row"),
    ],
)
def test_unfit_tables(tree, table, says):
    (tree / recorded.MEGC_TABLE).write_text(table, newline="")
    with pytest.raises(InputError, match=says):
        load_tree(tree)


def test_unfit_roots(tmp_path):
    with pytest.raises(InputError, match="needs a root; accepted: a folder with"):
        data.load("megc-flow", image_size=28)
    with pytest.raises(InputError, match="no such folder; accepted"):
        load_tree(tmp_path / "nowhere")
    with pytest.raises(InputError, match=f"no {recorded.MEGC_TABLE} and no {recorded.MEGC_FOLDER}; accepted"):
        load_tree(tmp_path)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the published flow fields are not at {REAL}")
def test_published_flow_fields_of_casme2_and_smic():
    # Counts of the composite: CASME II 145 and SMIC 164 clips, of 24 and 16 subjects (MEGC 2019).
    loaded = load_tree(REAL)
    assert len(loaded) == 145 + 164
    assert len(loaded.subject_names) == 24 + 16
    assert len(set(loaded.names)) == len(loaded)
    # negative: 88 + 70, positive: 32 + 51, surprise: 25 + 43 (See et al., MEGC 2019, table 1)
    assert np.bincount(loaded.labels).tolist() == [158, 83, 68]
    assert loaded.flows.min() >= 0
    assert loaded.flows.max() <= 1


@pytest.fixture(scope="module")
def smic(tmp_path_factory):
    return recorded_trees.smic(tmp_path_factory.mktemp("set") / "smic")


def test_recorded_frames_become_flow_samples(smic):
    loaded = data.load("smic", smic, image_size=28)
    assert loaded.flows.shape == (3, 28, 28, 3)
    assert loaded.labels.tolist() == [0, 1, 2]
    assert loaded.subjects.tolist() == ["smic/s01", "smic/s01", "smic/s13"]
    assert loaded.names[0] == "smic/s01/s01_ne_01"
    assert loaded.preprocess == Preprocess(image_size=28)
    assert loaded.source == "smic"
    assert data.load("smic", smic, image_size=28, subjects=["smic/s01"], limit=1).names == loaded.names[:1]


def test_skipped_rows_are_logged_one_by_one_and_counts_add_up(smic, tmp_path, caplog):
    root = tmp_path / "smic"
    shutil.copytree(smic, root)
    for frame in root.rglob("s1_po_01/*103.bmp"):
        frame.write_bytes(b"")
    for options in ({}, {"skip_bad": False}):
        with pytest.raises(
            InputError, match=r"annotation\.xlsx, row 3: .*000103\.bmp .*it is empty .*--skip-bad"
        ):
            data.load("smic", root, image_size=28, **options)
    with caplog.at_level(logging.INFO, logger="ptsr_edge"):
        loaded = data.load("smic", root, image_size=28, subjects=["smic/s01"], skip_bad=True)
    assert loaded.names == ["smic/s01/s01_ne_01"]
    assert "smic: 3 rows = 1 used + 1 dropped (not asked for 1) + 1 unfit" in caplog.text
    assert caplog.text.count("skipped: ") == 1


def test_published_images_may_be_skipped_too(tree, caplog):
    (tree / recorded.MEGC_FOLDER / "sub01_EP19_05f .png").write_bytes(b"")
    with pytest.raises(InputError, match=r"row 3: .*it is empty \(1 of 4 rows"):
        load_tree(tree)
    with caplog.at_level(logging.INFO, logger="ptsr_edge"):
        loaded = load_tree(tree, skip_bad=True)
    assert loaded.labels.tolist() == [1, 2, 0]
    assert "casme2: 3 rows = 2 used + 0 dropped + 1 unfit" in caplog.text


def test_nothing_that_can_be_used_is_refused_even_where_rows_are_skipped(tree):
    for image in (tree / recorded.MEGC_FOLDER).iterdir():
        image.write_bytes(b"")
    with pytest.raises(InputError, match="has no clip of megc-flow that can be used"):
        load_tree(tree, skip_bad=True)


def test_synthetic_needs_no_root():
    names = ["synthetic/003", "synthetic/001"]
    loaded = data.load("synthetic", image_size=32, subjects=names, limit=2)
    assert loaded.flows.shape == (4, 32, 32, 3)
    assert loaded.subjects.tolist() == ["synthetic/001"] * 2 + ["synthetic/003"] * 2
    assert loaded.names == ["synthetic/001/00", "synthetic/001/01", "synthetic/003/00", "synthetic/003/01"]
    assert loaded.preprocess == Preprocess(image_size=32)
    assert loaded.source == "synthetic"


def test_synthetic_is_the_same_alone_and_among_others():
    both = data.load("synthetic", image_size=32, subjects=["synthetic/001", "synthetic/003"], limit=2)
    alone = data.load("synthetic", image_size=32, subjects=["synthetic/003"], limit=1)
    np.testing.assert_array_equal(both.flows[2], alone.flows[0])
    assert both.labels[2] == alone.labels[0]


def test_synthetic_follows_its_seed():
    one, other = (
        data.load("synthetic", image_size=32, subjects=["synthetic/000"], limit=1, seed=seed)
        for seed in (0, 1)
    )
    assert one.digest() != other.digest()


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        pytest.param("megc_flow", {}, "unknown data 'megc_flow'.*nearest: megc-flow", id="name"),
        pytest.param("synthetic", {"image_size": 8}, "image_size must be at least 16, got 8", id="size"),
        pytest.param("synthetic", {"limit": 0}, "limit must be at least 1", id="limit"),
        pytest.param("synthetic", {"subjects": ["synthetic/1"]}, "nearest: synthetic/", id="subject"),
        pytest.param("synthetic", {"subjects": []}, "list of subjects is empty", id="no subject"),
        pytest.param("synthetic", {"seed": -1}, "must not be negative", id="seed"),
    ],
)
def test_unfit_requests(name, options, says):
    with pytest.raises(InputError, match=says):
        data.load(name, **{"image_size": 28} | options)


def test_unknown_data_names_all_that_are_known():
    with pytest.raises(InputError, match=", ".join(data.DATASETS)):
        data.load("casme9", image_size=28)


def test_subset_by_mask_and_by_place(tree):
    loaded = load_tree(tree)
    by_mask = loaded.subset(loaded.labels == 0)
    assert by_mask.names == [loaded.names[1], loaded.names[3]]
    by_place = loaded.subset(np.array([3, 1]))
    assert by_place.names == [loaded.names[3], loaded.names[1]]
    np.testing.assert_array_equal(by_place.flows[0], loaded.flows[3])
    assert loaded.of_subjects(["smic/s01"]).labels.tolist() == [0]


def test_digest_sees_flows_labels_and_subjects(tree):
    loaded = load_tree(tree)
    digest = loaded.digest()
    assert len(digest) == 64
    assert load_tree(tree).digest() == digest
    assert loaded.subset(np.array([1, 0, 2, 3])).digest() != digest
    write_table(tree, [(*ROWS[0][:3], 2), *ROWS[1:]])
    assert load_tree(tree).digest() != digest


def test_split_is_disjoint_seeded_and_covers_all():
    subjects = np.repeat([f"s{number:02d}" for number in range(20)], 3)
    train, held = data.split_subjects(subjects, 0.25, seed=4)
    assert (len(train), len(held)) == (15, 5)
    assert sorted(train + held) == sorted(set(subjects.tolist()))
    assert data.split_subjects(subjects[::-1], 0.25, seed=4) == (train, held)
    assert data.split_subjects(subjects, 0.25, seed=5) != (train, held)


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_neither_side_of_a_split_is_empty(fraction):
    train, held = data.split_subjects(["a", "b", "c"], fraction, seed=0)
    assert train
    assert held


@pytest.mark.parametrize(
    ("subjects", "fraction", "says"),
    [
        (["a", "b"], 0.0, r"in \(0, 1\), got 0"),
        (["a", "b"], 1.0, r"in \(0, 1\), got 1"),
        (["a", "a"], 0.5, "at least 2 subjects, found 1"),
    ],
)
def test_unfit_splits(subjects, fraction, says):
    with pytest.raises(InputError, match=says):
        data.split_subjects(subjects, fraction, seed=0)


def test_samples_are_cropped_closely_where_that_is_asked_for():
    wide, close = (
        data.load("synthetic", image_size=size, subjects=["synthetic/003"], limit=1, crop=crop)
        for size, crop in ((112, "wide"), (28, "close"))
    )
    assert close.preprocess == Preprocess(image_size=28, crop="close")
    np.testing.assert_array_equal(close.flows[0], resize(close_up(wide.flows[0]), 28))


def test_every_data_set_has_a_card_of_its_own():
    cards = {name: entry.card_of(None) for name, entry in data.DATASETS.items()}
    assert len(set(cards.values())) == len(cards)
    assert "not for judging people" in cards.pop("synthetic")
    assert "no licence text given" in cards.pop("folder")
    assert "MIT licence" in cards.pop("ict-face")
    assert "MIT licence" in cards.pop("faces")
    for card in cards.values():
        assert "non-commercial academic research only and no passing on" in card
