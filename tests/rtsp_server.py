"""An RTSP server on loopback, run by the system's Python: motion JPEGs of a folder, over and over, at 30 fps.

/usr/bin/python3 tests/rtsp_server.py PORT FOLDER     serves rtsp://127.0.0.1:PORT/live, frames 000.jpg, 001.jpg, ...
"""

from __future__ import annotations

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402


def main(port: str, folder: str) -> None:
    Gst.init(None)
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(
        f"( multifilesrc location={folder}/%03d.jpg loop=true caps=image/jpeg,framerate=30/1 do-timestamp=true "
        "! jpegparse ! identity sync=true ! rtpjpegpay name=pay0 pt=26 )"
    )
    factory.set_shared(True)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    server.get_mount_points().add_factory("/live", factory)
    if not server.attach(None):
        sys.exit(f"port {port} cannot be had")
    print("ready", flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main(*sys.argv[1:])
