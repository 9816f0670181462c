"""No event leaves: the sender is absent before OpenVINO is imported, and no socket is connected."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ptsr_edge.errors import MissingExtraError
from ptsr_edge.telemetry import require_silenced

PROGRAM = """
import sys

def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        print("CALLED HOME", event, arguments)

sys.addaudithook(watch)
from ptsr_edge.telemetry import require_silenced
ov = require_silenced("openvino", "openvino", "a test")
assert sys.modules["openvino_telemetry"] is None
core = ov.Core()
one = ov.opset13.parameter([1, 4], ov.Type.f32)
model = ov.Model([ov.opset13.relu(one)], [one], "m")
core.compile_model(model, "CPU")
print("compiled")
"""


def test_importing_and_compiling_connects_to_nothing() -> None:
    pytest.importorskip("openvino", reason="openvino is missing: pip install 'ptsr-edge[openvino]'")
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["compiled"]


def test_what_is_missing_names_its_extra() -> None:
    with pytest.raises(MissingExtraError, match=r"pip install 'ptsr-edge\[openvino\]'"):
        require_silenced("no_such_openvino", "openvino", "a test")
