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


def samples(launch):
    """Runs a pipeline whose appsink is called `frames`, and yields its samples; ends the process on an error."""
    running = Gst.parse_launch(launch)
    frames, bus = running.get_by_name("frames"), running.get_bus()
    running.set_state(Gst.State.PLAYING)
    try:
        while not frames.get_property("eos"):
            sample = frames.emit("try-pull-sample", Gst.SECOND // 5)
            if sample:
                yield sample
            if error := bus.pop_filtered(Gst.MessageType.ERROR):
                sys.exit(error.parse_error()[0].message)
    finally:
        running.set_state(Gst.State.NULL)


def main(bundle, source, face="auto"):
    Gst.init(None)
    with Pipeline(bundle, face=face) as pipeline:
        for sample in samples(f"{source} ! {SINK}"):
            for event in pipeline.push(as_array(sample), sample.get_buffer().pts, stream="gstreamer"):
                print(event.to_json(), flush=True)
        for event in pipeline.flush("gstreamer"):
            print(event.to_json(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
