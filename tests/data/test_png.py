"""The frame of a PNG file: signature, chunks, CRC-32."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from ptsr_edge.data.extraction import png_fault


@pytest.fixture(scope="module")
def whole() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, size=(28, 28, 3), dtype=np.uint8)
    return bytes(cv2.imencode(".png", pixels)[1])


def test_every_flipped_bit_is_found(whole: bytes) -> None:
    """Length, type, data and CRC-32 of every chunk are looked at, and the signature before them."""
    assert png_fault(whole) == ""
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        assert png_fault(bytes(flipped)), f"byte {place}"


def test_a_file_that_ends_too_early_is_found(whole: bytes) -> None:
    assert png_fault(b"") == "it is empty"
    for length in range(1, len(whole)):
        assert png_fault(whole[:length]), f"{length} bytes"


def test_a_file_without_its_header_is_found(whole: bytes) -> None:
    """IHDR takes 25 bytes behind the signature's 8: a length, a type, 13 bytes and a CRC."""
    assert png_fault(whole[:8] + whole[33:]) == "it does not begin with its header"
