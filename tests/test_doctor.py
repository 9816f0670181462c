"""What is installed is found as it is, and each target is judged by it."""

from __future__ import annotations

import dataclasses
import json
import platform
import re
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
from ptsr_edge.core.errors import install_line
from ptsr_edge.core.system import TELLING_FLAGS
from ptsr_edge.doctor import (
    Package,
    Probe,
    as_found,
    cpu_notes,
    embedded_weights,
    find_gpus,
    judge_target,
    lines_of,
    probe,
    probe_all,
    read_extras,
)
from ptsr_edge.models import checkpoint
from ptsr_edge.runtimes.base import RUNTIMES
from ptsr_edge.sign import KEY_VARIABLE

pytestmark = pytest.mark.slow

GPU = {"name": "A", "capability": "SM86"}
HOPPER = {"name": "H", "capability": "SM90"}

REQUIREMENTS = [
    "numpy>=1.26",
    "jinja2; extra == 'report'",
    "onnxruntime>=1.20; extra == 'ort'",
    'opencv-python-headless>=4.10,<6; extra == "camera"',
    "here>=1; (platform_machine == 'MACHINE') and extra == 'trt'",
    "elsewhere>=1; (platform_machine == 'pdp11') and extra == 'trt'",
    "numpy[fast] (>=1.26); extra == 'train'",
    "future; (python_version >= '3.99') and extra == 'train'",
    "past; (python_version < '3.10') and extra == 'train'",
    "present; (python_version >= '3.10') and extra == 'train'",
    "ruff>=0.14; extra == 'dev'",
    "torch>=2.9; extra == 'all'",
    "ptsr-edge[ort]; extra == 'train'",
]


def a_package(name: str, state: str = "works", detail: str = "") -> Package:
    return Package.model_validate(
        {"name": name, "module": name.replace("-", "_"), "wanted": ">=1", "state": state, "detail": detail}
    )


def extras_with(**states: str) -> dict[str, list[Package]]:
    """Every extra of the targets with one package each, in the given states; others work."""
    extras = [extra for runtime in RUNTIMES.values() for extra in (runtime.extra, runtime.build_extra)]
    return {extra: [a_package(extra, states.get(extra, "works"))] for extra in extras}


def probes_with(works: Iterable[str]) -> dict[str, Probe]:
    modules = {module for runtime in RUNTIMES.values() for module in runtime.packages}
    return {module: Probe("works" if module in set(works) else "missing") for module in modules}


@pytest.mark.parametrize(
    ("target", "works", "states", "gpus", "build", "run"),
    [
        pytest.param("cpu", ["onnxruntime"], {}, [], True, True, id="workstation"),
        pytest.param(
            "cpu", ["onnxruntime"], {"train": "missing"}, [], False, True, id="device: runs, no torch"
        ),
        pytest.param("cpu", [], {"ort": "broken"}, [], False, False, id="broken runtime"),
        pytest.param("openvino", ["openvino"], {"openvino-build": "missing"}, [], False, True, id="no NNCF"),
        pytest.param("trt", ["tensorrt_rtx"], {}, [], True, False, id="RTX builds without a GPU"),
        pytest.param("trt", ["tensorrt_rtx"], {}, [GPU], True, True, id="RTX with a GPU"),
        pytest.param("trt", ["tensorrt_rtx"], {}, [HOPPER], True, False, id="RTX has nothing for 9.0"),
        pytest.param(
            "trt", ["tensorrt"], {"trt-rtx": "missing"}, [], False, False, id="TensorRT without a GPU"
        ),
        pytest.param(
            "trt", ["tensorrt"], {"trt-rtx": "missing"}, [HOPPER], True, True, id="TensorRT of the system"
        ),
        pytest.param("trt", [], {"trt-rtx": "missing"}, [GPU], False, False, id="a GPU and no runtime"),
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
    state = judge_target(target, RUNTIMES[target], extras_with(**states), probes_with(works), gpus)
    assert (state.build, state.run) == (build, run)
    assert (state.build and state.run) == (not state.notes), "what is in the way is told, and nothing else"


def test_each_fault_comes_with_the_line_against_it() -> None:
    extras = extras_with(train="missing", openvino="broken")
    state = judge_target("openvino", RUNTIMES["openvino"], extras, probes_with([]), [])
    assert state.install == [install_line("train"), "pip install --force-reinstall 'openvino>=1'"]


def test_where_tensorrt_comes_with_the_system_the_registry_is_not_suggested() -> None:
    state = judge_target(
        "trt", RUNTIMES["trt"], extras_with(**{"trt-rtx": "not for this machine"}), probes_with([]), [GPU]
    )
    assert state.install == ["python3 -m venv --system-site-packages .venv"]


@pytest.mark.parametrize(
    ("changes", "build", "run", "said"),
    [
        ({"builder": "ptsr_edge.export.targets.gone:T"}, False, True, "there is no module ptsr_edge.export.targets.gone"),
        ({"builder": "gone.deep:T"}, False, True, "there is no module gone.deep"),
        ({"runner": "ptsr_edge.runtimes.gone:R"}, False, False, "ptsr_edge.runtimes.gone:R cannot be loaded"),
        ({"runner": "ptsr_edge.runtimes.base:R"}, False, False, "base:R cannot be loaded .AttributeError"),
        ({"packages": ("gone",), "extra": ""}, False, False, "gone is missing"),
    ],
)  # fmt: skip
def test_a_target_whose_code_or_package_is_missing_is_not_healthy(
    changes: dict[str, Any], build: bool, run: bool, said: str
) -> None:
    runtime = dataclasses.replace(RUNTIMES["cpu"], **changes)
    probes = {**probes_with(["onnxruntime"]), "gone": Probe("missing")}
    state = judge_target("cpu", runtime, extras_with(), probes, [])
    assert (state.build, state.run) == (build, run)
    assert re.search(said, state.notes[0])


def test_a_target_that_is_broken_says_so() -> None:
    state = judge_target("npu", "target 'npu' is broken: ...", extras_with(), {}, [])
    assert (state.build, state.run, state.notes) == (False, False, ["target 'npu' is broken: ..."])


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


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module named `brittle` on the path; tests fill it."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "brittle.py"


def test_requirements_are_read_by_extra() -> None:
    extras = read_extras(line.replace("MACHINE", platform.machine()) for line in REQUIREMENTS)
    assert list(extras) == ["base", "report", "ort", "camera", "trt", "train"]
    assert extras["base"] == [Package(name="numpy", module="numpy", wanted=">=1.26")]
    assert (extras["report"][0].name, extras["report"][0].wanted) == ("jinja2", "")
    assert (extras["camera"][0].module, extras["camera"][0].wanted) == ("cv2", "<6,>=4.10")
    assert [package.state for package in extras["trt"]] == ["missing", "not for this machine"]
    assert [package.name for package in extras["train"]] == ["numpy", "present"]


def test_every_package_of_every_extra_that_is_installed_has_the_import_name_that_is_tried() -> None:
    """The names follow from the distributions; `top_level.txt` or the file list says what they install."""
    for packages in read_extras(metadata.requires("ptsr-edge") or []).values():
        for package in packages:
            try:
                files = metadata.files(package.name) or []
            except metadata.PackageNotFoundError:
                continue
            tops = {file.parts[0].partition(".")[0] for file in files}
            assert package.module.partition(".")[0] in tops, (
                f"{package.name} is not imported as {package.module}"
            )


def test_a_module_that_works() -> None:
    assert probe("json") == Probe("works")


def test_a_module_that_is_not_there() -> None:
    assert probe("no_such_module_anywhere") == Probe("missing")


def test_what_is_used_of_a_namespace_package_is_imported() -> None:
    """`cuda` has no module of its own: a probe of that name would take it for a folder."""
    (package,) = read_extras(["cuda-bindings>=12; extra == 'trt'"])["trt"]
    pytest.importorskip(package.module, reason="cuda-bindings is missing: the extra trt brings it")
    assert probe(package.module) == Probe("works")
    assert probe("cuda.no_such_part.runtime") == Probe("missing")


def test_a_folder_that_happens_to_have_the_name_is_not_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "openvino_folder").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert probe("openvino_folder") == Probe("missing")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        pytest.param(
            "import ctypes; ctypes.CDLL('libgone.so.3')",
            r"OSError: libgone\.so\.3: cannot open shared object file.*",
            id="a shared library is missing",
        ),
        pytest.param("raise SystemExit(3)", "exit code 3", id="it leaves without a word"),
        pytest.param(
            "import os, signal; os.kill(os.getpid(), signal.SIGILL)",
            "its import was ended by SIGILL",
            id="instructions that this processor lacks",
        ),
    ],
)
def test_a_broken_module_is_told_with_its_reason(module: Path, source: str, said: str) -> None:
    module.write_text(source, encoding="utf-8")
    found = probe("brittle")
    assert found.state == "broken"
    assert re.fullmatch(said, found.detail)


def test_a_module_that_hangs_is_broken_after_the_limit(module: Path) -> None:
    module.write_text("import time; time.sleep(60)", encoding="utf-8")
    assert probe("brittle", limit_s=0.3) == Probe("broken", "its import did not end within 0.3 s")


def test_what_a_module_prints_is_not_taken_for_its_answer(module: Path) -> None:
    module.write_text("print('welcome', end='')", encoding="utf-8")
    assert probe("brittle") == Probe("works")


def test_a_runtime_says_what_it_can_use() -> None:
    pytest.importorskip("onnxruntime")
    assert "CPUExecutionProvider" in probe("onnxruntime", RUNTIMES["cpu"].facts).detail


def test_telemetry_is_off_where_packages_are_tried(module: Path) -> None:
    module.write_text("import openvino_telemetry", encoding="utf-8")
    found = probe("brittle")
    assert found.state == "broken"
    assert "openvino_telemetry" in found.detail


def test_many_are_tried_once_each() -> None:
    asked = {"json": "['said']", "csv": "[]"}
    assert probe_all(asked) == {"csv": Probe("works"), "json": Probe("works", "said")}


def test_a_package_takes_state_and_version_from_what_was_found() -> None:
    numpy = Package(name="numpy", module="numpy", wanted=">=1")
    assert as_found(numpy, Probe("works")).version == metadata.version("numpy")
    assert as_found(numpy, Probe("broken", "why")).detail == "why"
    foreign = Package(name="opencv-from-jetpack", module="cv2", wanted="")
    assert as_found(foreign, Probe("works", "x")).detail == "installed under another name; x"
    elsewhere = Package(name="x", module="x", wanted="", state="not for this machine")
    assert as_found(elsewhere, Probe("missing")).state == "not for this machine"


def test_gpus_are_named_with_their_compute_capability_or_there_are_none() -> None:
    for gpu in find_gpus():
        assert re.fullmatch(r"SM\d+", gpu["capability"])
        assert gpu["name"]


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
        "install": [install_line("ort")],
    }
    record = {
        "ptsr_edge": "0", "python": "3", "system": "Linux", "gpus": [], "weights": [], "extras": bare,
        "signatures": None,
        "cpu": {"board": None, "model": None, "cores_visible": 1, "cgroup_limit_cores": 0.5, "notes": []},
        "targets": {"cpu": state},
    }  # fmt: skip
    monkeypatch.setattr(doctor, "examine", lambda _limit_s: record)
    answer = CliRunner().invoke(doctor.main, prog_name="ptsr-edge doctor")
    assert answer.exit_code == 1
    assert install_line("ort") in answer.stdout
    assert "limited to 0.5" in answer.stdout
    assert answer.stdout.splitlines()[-1] == "can build: nothing; can run: nothing"
    assert answer.stderr.splitlines()[-1].startswith("ptsr-edge doctor: no target can be built or run here")


def test_the_key_that_bundles_have_to_be_signed_with_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cryptography", reason="cryptography is missing: the extra sign brings it")
    assert doctor.signatures_asked() is None
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "gone.pem"))
    asked = doctor.signatures_asked()
    assert asked is not None
    assert (
        asked["fault"] == f"the public key {tmp_path / 'gone.pem'} cannot be read: No such file or directory"
    )
    record = {
        "ptsr_edge": "0", "python": "3", "system": "Linux", "gpus": [], "weights": [], "extras": {},
        "signatures": asked,
        "cpu": {"board": None, "model": None, "cores_visible": 1, "cgroup_limit_cores": None, "notes": []},
        "targets": {"cpu": {"build": True, "run": True, "notes": [], "install": []}},
    }  # fmt: skip
    monkeypatch.setattr(doctor, "examine", lambda _limit_s: record)
    answer = CliRunner().invoke(doctor.main, prog_name="ptsr-edge doctor")
    assert answer.exit_code == 1
    assert "signed    nothing can be opened: " in answer.stdout
    assert "signatures cannot be checked, so nothing is opened here: " in answer.stderr
