"""PTSR in an application: frames in, events out.

python examples/embed.py BUNDLE VIDEO
"""

import sys

import cv2

from ptsr_edge.camera import Pipeline

bundle, video = sys.argv[1:]
capture = cv2.VideoCapture(video)  # any source of frames will do, as long as each has its timestamp
period_ns = 1e9 / capture.get(cv2.CAP_PROP_FPS)
with Pipeline(bundle, face="crop") as pipeline:  # this video shows a face and nothing else; by default faces are found
    for number in range(int(capture.get(cv2.CAP_PROP_FRAME_COUNT))):
        there, frame = capture.read()
        for event in pipeline.push(frame, round(number * period_ns), stream="door") if there else ():
            print(event.label, f"apex at {event.apex_ns / 1e9:.2f} s, told {event.latency_ms:.0f} ms later")
