from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ptsr_edge import doctor
from ptsr_edge.core.system import TELLING_FLAGS
from ptsr_edge.doctor import (
    EXTRA_OF,
    Package,
    Probe,
    cpu_notes,
    embedded_weights,
    judge_target,
    lines_of,
)
from ptsr_edge.models import checkpoint
from ptsr_edge.runtimes.base import RUNTIMES

GPU = {"name": "A", "compute_capability": "8.6"}
HOPPER = {"name": "H", "compute_capability": "9.0"}


def a_package(name: str, state: str = "works", detail: str = "") -> Package:
    return Package.model_validate(
        {"name": name, "module": name.replace("-", "_"), "wanted": ">=1", "state": state, "detail": detail}
    )


def extras_with(**states: str) -> dict[str, list[Package]]:
    """Every extra of the targets with one package each, in the given states; others work."""
    return {extra: [a_package(extra, states.get(extra, "works"))] for extra in (*EXTRA_OF.values(), "train")}


def probes_with(works: Iterable[str]) -> dict[str, Probe]:
    modules = {module for runtime in RUNTIMES.values() for module in runtime.packages}
    return {module: Probe("works" if module in set(works) else "missing") for module in modules}


@pytest.fixture
def all_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this version had the code of every target; what is tested is the judgement."""
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda _name: object())  # type: ignore[attr-defined]


@pytest.mark.usefixtures("all_targets")
@pytest.mark.parametrize(
    ("target", "works", "states", "gpus", "build", "run"),
    [
        pytest.param("cpu", ["onnxruntime"], {}, [], True, True, id="workstation"),
        pytest.param(
            "cpu", ["onnxruntime"], {"train": "missing"}, [], False, True, id="device: runs, no torch"
        ),
        pytest.param("cpu", [], {"ort": "broken"}, [], False, False, id="broken runtime"),
        pytest.param("openvino", ["openvino"], {"openvino": "missing"}, [], False, True, id="no NNCF"),
        pytest.param("trt", ["tensorrt_rtx"], {}, [], True, False, id="RTX builds without a GPU"),
        pytest.param("trt", ["tensorrt_rtx"], {}, [GPU], True, True, id="RTX with a GPU"),
        pytest.param("trt", ["tensorrt_rtx"], {}, [HOPPER], True, False, id="RTX has nothing for 9.0"),
        pytest.param("trt", ["tensorrt"], {"trt": "missing"}, [], False, False, id="TensorRT without a GPU"),
        pytest.param(
            "trt", ["tensorrt"], {"trt": "missing"}, [HOPPER], True, True, id="TensorRT of the system"
        ),
        pytest.param("trt", [], {"trt": "missing"}, [GPU], False, False, id="a GPU and no runtime"),
    ],
)
def test_what_can_be_built_and_run(
    target: str,
    works: list[str],
    states: Mapping[str, str],
    gpus: list[dict[str, str]],
    build: bool,
    run: bool,
) -> None:
    state = judge_target(target, extras_with(**states), probes_with(works), gpus)
    assert (state.build, state.run) == (build, run)
    assert (state.build and state.run) == (not state.notes), "what is in the way is told, and nothing else"


@pytest.mark.usefixtures("all_targets")
def test_each_fault_comes_with_the_line_against_it() -> None:
    extras = extras_with(train="missing", openvino="broken")
    state = judge_target("openvino", extras, probes_with([]), [])
    assert state.install == ["pip install 'ptsr-edge[train]'", "pip install --force-reinstall 'openvino>=1'"]


@pytest.mark.usefixtures("all_targets")
def test_where_tensorrt_comes_with_the_system_the_registry_is_not_suggested() -> None:
    state = judge_target("trt", extras_with(trt="not for this machine"), probes_with([]), [GPU])
    assert state.install == ["python3 -m venv --system-site-packages .venv"]


def test_cpu_facts_that_matter_are_explained() -> None:
    def notes(*flags: str, **facts: Any) -> str:
        return "\n".join(cpu_notes({"flags": flags, "governor": None, "virtual": False} | facts))

    assert notes("avx2") == "no int8 dot products in hardware: int8 saves memory here, hardly time"
    assert "int8 products in hardware (avx512_vnni)" in notes("avx2", "avx512_vnni")
    assert "bfloat16 in hardware (bf16)" in notes("dotprod", "bf16")
    assert "float16" in notes("fp16")
    assert "powersave" in notes(governor="powersave")
    assert "governor" not in notes(governor="performance")
    assert "virtual" in notes(virtual=True)


def test_the_flags_asked_for_are_ones_that_the_environment_reports() -> None:
    known = set(TELLING_FLAGS.values())
    assert {*doctor.INT8_FLAGS, *doctor.BF16_FLAGS, *doctor.FP16_FLAGS} <= known


def test_weights_are_described_from_their_header(tmp_path: Path) -> None:
    """The safetensors format: the header's length as 8 bytes, little-endian, then the header as JSON."""
    record = {"provenance": {"data": "synthetic", "card": "made by a test"}}
    header = json.dumps({"__metadata__": {"ptsr_edge": json.dumps(record)}}).encode()
    (tmp_path / "tiny.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"weights")
    assert embedded_weights(tmp_path) == [
        {"name": "tiny", "size_bytes": 8 + len(header) + 7, "data": "synthetic", "card": "made by a test"}
    ]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(struct.pack("<Q", 1 << 60) + b"{}", id="a length beyond the file"),
        pytest.param(struct.pack("<Q", 2) + b"{}", id="no metadata"),
        pytest.param(struct.pack("<Q", 2) + b"[]", id="no header"),
    ],
)
def test_unreadable_weights_are_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "odd.safetensors").write_bytes(content)
    (entry,) = embedded_weights(tmp_path)
    assert entry["data"] is None
    assert "unreadable" in entry["card"]


def test_the_embedded_weights_are_looked_for_where_they_are_loaded_from() -> None:
    assert doctor.WEIGHTS == checkpoint.EMBEDDED


@pytest.fixture(scope="module")
def this_machine() -> dict[str, Any]:
    """The record of this machine, made in a fresh process that also says which modules it has loaded."""
    program = (
        "import json, sys\nfrom ptsr_edge.doctor import examine\n"
        "print(json.dumps({**examine(), 'loaded': sorted(sys.modules)}, allow_nan=False))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    record: dict[str, Any] = json.loads(done.stdout)
    return record


def test_what_this_suite_runs_on_is_found_to_work(this_machine: dict[str, Any]) -> None:
    pytest.importorskip("onnxruntime")
    found = {p["name"]: p for packages in this_machine["extras"].values() for p in packages}
    assert found["torch"]["state"] == "works"
    assert found["torch"]["version"].startswith(metadata.version("torch"))
    assert this_machine["targets"]["cpu"] == {"build": True, "run": True, "notes": [], "install": []}
    lines = lines_of(this_machine)
    assert lines[-1].startswith("can build: cpu")
    assert any(line.startswith("processor") for line in lines)


def test_nothing_heavy_is_imported_into_the_process(this_machine: dict[str, Any]) -> None:
    heavy = {"torch", "onnx", "onnxruntime", "openvino", "tensorrt_rtx", "cv2", "matplotlib"}
    assert not heavy & set(this_machine["loaded"])


def test_a_machine_that_can_do_nothing_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = {extra: [a_package(extra, "missing").model_dump()] for extra in ("ort", "train")}
    state = {
        "build": False,
        "run": False,
        "notes": ["ort is missing"],
        "install": ["pip install 'ptsr-edge[ort]'"],
    }
    record = {
        "ptsr_edge": "0", "python": "3", "system": "Linux", "gpus": [], "weights": [], "extras": bare,
        "cpu": {"board": None, "model": None, "cores_visible": 1, "cgroup_limit_cores": 0.5, "notes": []},
        "targets": {"cpu": state},
    }  # fmt: skip
    monkeypatch.setattr(doctor, "examine", lambda _limit_s: record)
    answer = CliRunner().invoke(doctor.main, prog_name="ptsr-edge doctor")
    assert answer.exit_code == 1
    assert "pip install 'ptsr-edge[ort]'" in answer.stdout
    assert "limited to 0.5" in answer.stdout
    assert answer.stdout.splitlines()[-1] == "can build: nothing; can run: nothing"
    assert answer.stderr.splitlines()[-1].startswith("ptsr-edge doctor: no target can be built or run here")
