"""No event leaves: OpenVINO's and NNCF's sender is absent before they are imported, or made dumb if it was there,
and ONNX Runtime's is never started. A whole export reaches for no network, by Python or by anything else.

Each program runs in a process of its own: NNCF replaces its telemetry by a mock where pytest is loaded. The
user's consent file says yes, and whatever would reach for the network raises: a test that fails sends nothing.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
from no_network import CI, FILTERED, NO_FILTER, run_watched

import ptsr_edge
from ptsr_edge.bundle import read_bundle
from ptsr_edge.core.errors import MissingExtraError
from ptsr_edge.runtimes.openvino import require_silenced

WATCH = """
import sys

def watch(event, arguments):
    # The sender forks, and connects from there.
    if event.startswith("socket.") or event in ("os.fork", "urllib.Request"):
        print("CALLS HOME", event, arguments, flush=True)
        raise RuntimeError("refused by the test")
"""

QUANTIZE = """
sys.addaudithook(watch)
from ptsr_edge.runtimes.openvino import require_silenced
ov = require_silenced("openvino", "openvino", "a test")
nncf = require_silenced("nncf", "openvino", "a test")
assert sys.modules["openvino_telemetry"] is None
import contextlib, io, logging
import numpy as np
nncf.set_log_level(logging.ERROR)
one = ov.opset13.parameter([1, 4], ov.Type.f32, name="one")
weights = ov.opset13.constant(np.ones((4, 4), np.float32))
model = ov.Model([ov.opset13.matmul(one, weights, False, False)], [one], "m")
with contextlib.redirect_stdout(io.StringIO()):
    model = nncf.quantize(model, nncf.Dataset([np.ones((1, 4), np.float32)]), subset_size=1)
assert ov.Core().compile_model(model, "CPU")([np.ones((1, 4), np.float32)])[0].shape == (1, 4)
print("quantized and ran")
"""

SENDER_FIRST = """
import openvino_telemetry
from ptsr_edge.runtimes.openvino import silence
sender = openvino_telemetry.Telemetry("a test", "1", "G-NONE", backend="ga4", enable_opt_in_dialog=False)
assert sender.consent
sys.addaudithook(watch)
silence()
sender.send_event("a", "b", "c", force_send=True)
sender.start_session("a")
sender.end_session("a")
sender.send_error("a", "b")
sender.send_stack_trace("a", "b")
sender.sender.send(sender.backend, {})
print("nothing sent")
"""


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


def run_consenting(program: str, home: Path) -> list[str]:
    """The lines that a program prints, run as a user who consented to telemetry."""
    consent = home / "intel" / "openvino_telemetry"
    consent.parent.mkdir()
    consent.write_text("1")
    outside_of_ci = {k: v for k, v in os.environ.items() if k not in CI}
    done = subprocess.run(
        [sys.executable, "-c", WATCH + program],
        capture_output=True, text=True, check=False, env=outside_of_ci | {"HOME": str(home)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_importing_quantizing_and_compiling_open_no_socket(tmp_path: Path) -> None:
    for package in ("openvino", "nncf"):
        pytest.importorskip(package, reason=f"{package} is missing: pip install 'ptsr-edge[openvino]'")
    assert run_consenting(QUANTIZE, tmp_path) == ["quantized and ran"]
    # A client id or usage counts would lie beside the consent.
    assert [path.name for path in (tmp_path / "intel").iterdir()] == ["openvino_telemetry"]


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


RUN_ONNX = """
import sys, numpy as np
from pathlib import Path
from ptsr_edge.runtimes.onnxruntime import OrtRunner
OrtRunner(Path(sys.argv[1]), threads=1).run(np.zeros((1, 3, 32, 32), np.float32))
"""
IMPORT_ONNX = "import time, onnxruntime; time.sleep(0.5)"


def test_onnx_runtime_keeps_nothing_to_send(tiny_bundle: Path, tmp_path: Path) -> None:
    """Its sender is C++ from 1.29 on, and starts with the import: it names the device and stores its events."""
    artifact = next(tiny_bundle.glob("*.onnx"))
    done, tried, left = run_watched([sys.executable, "-c", RUN_ONNX, str(artifact)], tmp_path / "ours")
    assert (done.returncode, tried, left) == (0, "", []), done.stderr
    version = tuple(int(part) for part in metadata.version("onnxruntime").split(".")[:2])
    if version < (1, 29) or not FILTERED:
        pytest.skip(f"ONNX Runtime {version} has no sender here, or it could not be held back")
    # Without this package it does, or the test above could not fail. The kernel holds it back.
    _, _, left = run_watched([sys.executable, "-c", IMPORT_ONNX], tmp_path / "theirs")
    assert [name for name in left if "onnxruntime" in name]


def test_a_sender_that_was_imported_before_is_silenced(tmp_path: Path) -> None:
    pytest.importorskip("openvino_telemetry", reason="openvino_telemetry is missing: it comes with nncf")
    assert run_consenting(SENDER_FIRST, tmp_path) == ["nothing sent"]


def test_the_package_imports_neither_in_another_way() -> None:
    for path in Path(ptsr_edge.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("require", "errors.require"):
                names = (
                    [str(ast.literal_eval(node.args[0]))] if isinstance(node.args[0], ast.Constant) else []
                )
            found = {name.partition(".")[0] for name in names} & {"openvino", "nncf"}
            assert not found, f"{path.name}:{node.lineno} imports {found}; use telemetry.require_silenced"


def test_what_is_missing_names_its_extra() -> None:
    with pytest.raises(MissingExtraError, match=r"pip install 'ptsr-edge\[openvino\]'"):
        require_silenced("no_such_openvino", "openvino", "a test")
