"""PTSR in an application: frames in, events out.

python examples/embed.py BUNDLE VIDEO
"""

import sys

import av

from ptsr_edge.camera import Pipeline

bundle, video = sys.argv[1:]
# face="crop": these frames show a face and nothing else. Without it, faces are found and followed.
with Pipeline(bundle, face="crop") as pipeline, av.open(video) as container:
    for frame in container.decode(video=0):  # any source will do, as long as each frame has its timestamp
        image, pts_ns = frame.to_ndarray(format="bgr24"), round(frame.pts * frame.time_base * 1e9)
        for event in pipeline.push(image, pts_ns, stream="door"):
            print(event.label, f"apex at {event.apex_ns / 1e9:.2f} s, told {event.latency_ms:.0f} ms later")
