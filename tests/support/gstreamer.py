"""The system's Python with GStreamer, as far as it is there: in Debian, python3-gi and the packages named below."""

from __future__ import annotations

import subprocess
from functools import cache

PYTHON = "/usr/bin/python3"

_PROBE = """
import sys
import gi
for name in sys.argv[1].split(","):
    gi.require_version(name, "1.0")
from gi.repository import Gst
Gst.init(None)
missing = [name for name in sys.argv[2].split(",") if not Gst.ElementFactory.find(name)]
sys.exit(f"no GStreamer element {', '.join(missing)}" if missing else 0)
"""


@cache
def missing(namespaces: str, elements: str) -> str:
    """What is missing of GStreamer's namespaces and elements, both comma-separated; empty where all is there."""
    try:
        done = subprocess.run(
            [PYTHON, "-c", _PROBE, namespaces, elements],
            capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""
