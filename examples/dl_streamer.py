"""DL Streamer into PTSR: `gvadetect` finds faces, the exported OpenVINO IR answers on the events.

python3 examples/dl_streamer.py BUNDLE "filesrc location=clip.mp4 ! decodebin3" face-detection-adas-0001.xml CPU

BUNDLE is of target openvino: `ptsr-edge export --target openvino`. `gvaclassify` cannot run its IR: that element feeds
one picture a face, and this model takes the flow between two (its `model_info` says input_dtype f32, and `preprocess`
how a sample is made). So the frames leave DL Streamer by an appsink, the faces with them, and `Pipeline` does the rest.
"""

import ctypes
import sys

# GStreamer brings libunwind, in which exceptions inside of OpenVINO end the process: the compiler's own goes first.
ctypes.CDLL("libgcc_s.so.1", mode=ctypes.RTLD_GLOBAL)

import gi  # noqa: E402

gi.require_version("Gst", "1.0")
from gi.repository import Gst  # noqa: E402
from gstgva import VideoFrame  # noqa: E402  # comes with DL Streamer
from gstreamer_appsink import SINK, as_array, samples  # noqa: E402  # beside this file

from ptsr_edge.camera import Pipeline  # noqa: E402
from ptsr_edge.vision.face_detection import Face  # noqa: E402

DETECT = "gvadetect model={model} device={device} threshold=0.6 inference-interval=1 ! queue"


class DetectedUpstream:
    """The faces that came with the frame that is being pushed: a detector as `Pipeline` takes one."""

    def __init__(self):
        self.faces = []

    def take(self, sample):
        regions = VideoFrame(sample.get_buffer(), caps=sample.get_caps()).regions()
        rects = [region.rect() for region in regions if region.label() in ("face", "")]
        self.faces = [Face(rect.x, rect.y, rect.w, rect.h) for rect in rects]

    def detect(self, frame):
        return self.faces


def main(bundle, source, model, device="CPU", detect=DETECT):
    Gst.init(None)
    found = DetectedUpstream()
    launch = f"{source} ! {detect.format(model=model, device=device)} ! {SINK}"
    with Pipeline(bundle, face=found, target="openvino", detect_every_s=0) as pipeline:
        for sample in samples(launch):
            found.take(sample)
            for event in pipeline.push(as_array(sample), sample.get_buffer().pts, stream="dl-streamer"):
                print(event.to_json(), flush=True)
        for event in pipeline.flush("dl-streamer"):
            print(event.to_json(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
