"""Small videos for the tests: moving stripes, or given images, with given timestamps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

SIZE = (64, 48)


def stripes(count: int, size: tuple[int, int] = SIZE) -> list[NDArray[np.uint8]]:
    """(H, W, 3) uint8 images; the n-th has a bright bar up to column n mod width on a changing ground."""
    images = []
    for number in range(count):
        image = np.full((size[1], size[0], 3), 20 + number % 100, np.uint8)
        image[:, : number % size[0]] = 200
        images.append(image)
    return images


def write_video(
    path: Path,
    times_ms: Sequence[int],
    images: Iterable[NDArray[np.uint8]] | None = None,
    size: tuple[int, int] = SIZE,
    codec: str = "libx264",
) -> Path:
    """Writes a video; its container is told by the suffix, timestamps are exact to a millisecond in .mkv."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time_ms, image in zip(times_ms, images or stripes(len(times_ms), size), strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="bgr24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


PLAYLISTS = {
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.2,\nother.ts\n#EXT-X-ENDLIST\n",
    "list.ffconcat": "ffconcat version 1.0\nfile other.ts\n",
    "named-otherwise.mp4": "ffconcat version 1.0\nfile other.ts\n",
}
"""Files that FFmpeg takes for videos, whose frames are those of another file beside them."""
