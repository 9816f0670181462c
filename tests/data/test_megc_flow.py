"""Published flow fields as clips; how they are loaded is tested with the other data."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from ptsr_edge.core.errors import InputError
from ptsr_edge.data import recorded as megc_flow

ROWS = [
    ("casme2", "sub01", "EP02_01f", 1),
    ("casme2", "sub02", "EP01_11f", 2),
    ("smic", "s01", "s01_ne_01", 0),
]
PIXELS = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / megc_flow.FOLDER).mkdir()
    lines = ["dataset,sub,filename_o,label", *(",".join(map(str, row)) for row in ROWS)]
    (tmp_path / megc_flow.TABLE).write_text("\n".join(lines) + "\n")
    for _, subject, clip, _ in ROWS:
        cv2.imwrite(str(tmp_path / megc_flow.FOLDER / f"{subject}_{clip} .png"), PIXELS)
    return tmp_path


def image(tree: Path, place: int) -> Path:
    return tree / megc_flow.FOLDER / f"{ROWS[place][1]}_{ROWS[place][2]} .png"


def test_each_data_set_is_read_apart(tree):
    casme2, smic = megc_flow.read_megc_flow(tree)
    assert (casme2.name, smic.name) == ("casme2", "smic")
    assert [(clip.name, clip.label, clip.row) for clip in casme2.clips] == [
        ("casme2/sub01/EP02_01f", 1, 2), ("casme2/sub02/EP01_11f", 2, 3),
    ]  # fmt: skip


def test_fields_are_u_v_strain_in_shares_though_opencv_reads_blue_first(tree):
    fields, faults = megc_flow.read_fields(megc_flow.read_megc_flow(tree)[0].clips)
    np.testing.assert_allclose(fields[0], PIXELS[..., ::-1] / np.float32(255), rtol=1e-6)
    assert faults == {}


def test_a_set_of_which_nothing_is_here_is_dropped_and_a_part_is_unfit(tree):
    image(tree, 2).unlink()
    image(tree, 1).unlink()
    casme2, smic = megc_flow.read_megc_flow(tree)
    assert smic.account() == "1 rows = 0 used + 1 dropped (smic is not here 1) + 0 unfit"
    assert casme2.account() == "2 rows = 1 used + 0 dropped + 1 unfit"
    assert casme2.unfit[0].label == 2


def test_a_damaged_image_is_a_fault_of_its_row(tree):
    image(tree, 1).write_bytes(image(tree, 1).read_bytes()[:100])
    clips = megc_flow.read_megc_flow(tree)[0].clips
    fields, faults = megc_flow.read_fields(clips)
    assert len(fields) == 1
    assert faults["casme2/sub02/EP01_11f"].row == 3


def test_nothing_at_all_is_refused(tree):
    for place in range(len(ROWS)):
        image(tree, place).unlink()
    with pytest.raises(InputError, match="none of the 3 images"):
        megc_flow.read_megc_flow(tree)
