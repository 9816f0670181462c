"""Whether a PNG file is whole, which OpenCV does not say."""

import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png_fault(content: bytes) -> str:
    """What is wrong with a PNG file's frame, empty where nothing is; pixels are not looked at.

    OpenCV says of a damaged file nothing but None, and libpng writes to stderr by itself. Source: PNG
    specification (third edition), 5.2 and 5.3: a signature, then chunks of length, type, data and CRC-32 of
    type and data, from IHDR to IEND.
    """
    if content[:8] != SIGNATURE:
        return "it has no PNG signature" if content else "it is empty"
    place, kind = 8, b""
    while kind != b"IEND":
        length = int.from_bytes(content[place : place + 4], "big")
        kind = content[place + 4 : place + 8]
        end = place + 8 + length
        if len(content) < end + 4:
            return f"it is cut short after {len(content)} bytes"
        if zlib.crc32(content[place + 4 : end]) != int.from_bytes(content[end : end + 4], "big"):
            return f"its bytes {place} to {end} are damaged"
        if place == 8 and kind != b"IHDR":
            return "it does not begin with its header"
        place = end + 4
    return ""
