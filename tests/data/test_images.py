"""Image files are read whole, or refused with what is wrong with them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from ptsr_edge.data.annotations import RowFault
from ptsr_edge.data.extraction import decode_image, image_fault, read_file

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def encoded(suffix: str) -> bytes:
    written, content = cv2.imencode(suffix, PIXELS)
    assert written
    return content.tobytes()


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff"])
def test_lossless_files_come_back_pixel_by_pixel(suffix, tmp_path):
    path = tmp_path / f"ä{suffix}"
    path.write_bytes(encoded(suffix))
    np.testing.assert_array_equal(decode_image(read_file(path), path), PIXELS)


def test_a_gray_file_has_three_equal_channels(tmp_path):
    written, content = cv2.imencode(".png", PIXELS[..., 0])
    assert written
    image = decode_image(content.tobytes(), tmp_path / "gray.png")
    np.testing.assert_array_equal(image, np.repeat(PIXELS[..., :1], 3, axis=2))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp"])
def test_a_file_that_is_cut_short_is_refused_at_every_length(suffix, capfd):
    """Without a word from the C libraries beside it."""
    whole = encoded(suffix)
    assert image_fault(whole) == ""
    for length in (1, 8, 60, len(whole) // 2, len(whole) - 2):
        assert image_fault(whole[:length]) != "", f"{length} of {len(whole)} bytes"
    assert capfd.readouterr().err == ""


def test_a_thumbnail_inside_does_not_stand_for_the_end():
    """A JPEG within the header of a JPEG ends in EOI too; what counts is the one after the last SOS."""
    whole, thumbnail = encoded(".jpg"), encoded(".jpg")
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    inside = whole[:2] + segment + whole[2:]
    assert image_fault(inside) == ""
    assert image_fault(inside[: len(inside) // 2 + len(thumbnail) // 2]) != ""


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "it is empty"), (b"hello", "no JPEG, PNG, BMP or TIFF"), (b"\xff\xd8", "cut short")],
)
def test_what_is_no_image_is_refused_with_the_file(content, says, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(RowFault, match=rf"a\.jpg is no readable image: .*{says}"):
        decode_image(read_file(path), path)


def test_pixels_that_cannot_be_decoded_are_refused(tmp_path):
    damaged = b"II*\0" + bytes(20)
    with pytest.raises(RowFault, match=r"is no readable image: .*(refuses its pixels|.)"):
        decode_image(damaged, tmp_path / "a.tif")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(RowFault, match=r"gone\.jpg cannot be read: No such file"):
        read_file(tmp_path / "gone.jpg")
