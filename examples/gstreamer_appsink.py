"""A GStreamer pipeline into PTSR: everything that GStreamer can decode, with the timestamps of its buffers.

python3 examples/gstreamer_appsink.py BUNDLE "filesrc location=clip.mkv ! decodebin" crop
python3 examples/gstreamer_appsink.py BUNDLE "rtspsrc location=rtsp://camera/live ! decodebin" yunet.onnx
"""

import sys

import gi
import numpy as np

gi.require_version("Gst", "1.0")
gi.require_version("GstVideo", "1.0")
from gi.repository import Gst, GstVideo  # noqa: E402

from ptsr_edge.camera import Pipeline  # noqa: E402

SINK = "videoconvert ! video/x-raw,format=BGR ! appsink name=frames sync=false max-buffers=8"


def as_array(sample):
    """The frame of a sample, (H, W, 3) uint8 BGR; rows may be padded, so the stride counts."""
    info = GstVideo.VideoInfo.new_from_caps(sample.get_caps())
    data = sample.get_buffer().extract_dup(0, sample.get_buffer().get_size())
    rows = np.frombuffer(data, np.uint8).reshape(info.height, info.stride[0])
    return np.ascontiguousarray(rows[:, : 3 * info.width]).reshape(info.height, info.width, 3)


def main(bundle, source, face="auto"):
    Gst.init(None)
    running = Gst.parse_launch(f"{source} ! {SINK}")
    frames = running.get_by_name("frames")
    running.set_state(Gst.State.PLAYING)
    with Pipeline(bundle, face=face) as pipeline:
        while sample := frames.emit("pull-sample"):  # None at the end and after an error
            for event in pipeline.push(as_array(sample), sample.get_buffer().pts, stream="gstreamer"):
                print(event.to_json(), flush=True)
        for event in pipeline.flush("gstreamer"):
            print(event.to_json(), flush=True)
    error = running.get_bus().pop_filtered(Gst.MessageType.ERROR)
    running.set_state(Gst.State.NULL)
    sys.exit(error.parse_error()[0].message if error else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
