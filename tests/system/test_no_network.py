"""A whole export reaches for no network, by Python or by anything else, and whoever does is seen."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from no_network import FILTERED, NO_FILTER, run_watched

from ptsr_edge.bundle import read_bundle

pytestmark = pytest.mark.slow

CONNECT = "import socket; socket.create_connection(('127.0.0.1', 9), 1)"
"""Port 9 of this machine, which nobody serves: should a test fail to stop it, nothing leaves."""

PLANTED = {
    "connects": CONNECT,
    "a child connects": f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CONNECT!r}])",
    "an isolated child of C": (
        "import ctypes, os, subprocess, sys\n"
        "subprocess.run([sys.executable, '-c', 'import ctypes; ctypes.CDLL(None).socket(2, 2, 0)'])"
    ),
    "a forked child": (
        f"import os\nif os.fork() == 0:\n    try:\n        {CONNECT}\n    finally:\n        os._exit(0)\nos.wait()"
    ),
    "asks for an address": "import socket; socket.getaddrinfo('localhost', 80)",
    "C": "import ctypes; ctypes.CDLL(None).socket(10, 1, 0)",
    "C in a thread": (
        "import ctypes, threading\n"
        "t = threading.Thread(target=ctypes.CDLL(None).socket, args=(2, 1, 0)); t.start(); t.join()"
    ),
}
"""What a tool may do to call home."""


@pytest.mark.parametrize("how", PLANTED)
def test_whoever_calls_home_is_seen(how: str, tmp_path: Path) -> None:
    """The test of a whole export, below, can fail."""
    if how.startswith(("C", "an isolated")) and not FILTERED:
        pytest.skip(NO_FILTER)
    if "fork" in how and not hasattr(os, "fork"):
        pytest.skip("no fork here")
    _, tried, _ = run_watched([sys.executable, "-c", f"import ptsr_edge\n{PLANTED[how]}"], tmp_path)
    assert tried


def test_a_whole_export_calls_nobody(tiny_checkpoint: Path, megc_folder: Path, tmp_path: Path) -> None:
    """Every target that can be built here, in fp32 and int8, from the command line to the end."""
    packages = {"cpu": ["onnxruntime"], "openvino": ["openvino", "nncf"], "trt": ["tensorrt_rtx"]}
    targets = [name for name, needs in packages.items() if all(map(find_spec, needs))]
    assert targets, "nothing can be built here"
    out = tmp_path / "bundle"
    call = ["--target", ",".join(targets), "--precision", "fp32,int8", "--budgets", "0.5", "--no-cache",
            "--checkpoint", str(tiny_checkpoint), "--calibration", str(megc_folder), "--out", str(out)]  # fmt: skip
    done, tried, left = run_watched([sys.executable, "-m", "ptsr_edge.export", *call], tmp_path)
    assert done.returncode == 0, done.stderr
    assert {variant.target for variant in read_bundle(out).variants} == set(targets)
    assert tried == ""
    # A sender keeps what it could not send, and a name for the device, to send them later.
    assert left == []
