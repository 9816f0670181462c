from __future__ import annotations

import platform
import re
from importlib import metadata
from pathlib import Path

import pytest

from ptsr_edge.doctor import Package, Probe, as_found, find_gpus, probe, probe_all, read_extras

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
]


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
    assert (extras["camera"][0].module, extras["camera"][0].wanted) == ("cv2", ">=4.10,<6")
    assert [package.state for package in extras["trt"]] == ["missing", "not for this machine"]
    assert [package.name for package in extras["train"]] == ["numpy", "present"]


def test_the_markers_of_ptsr_edge_itself_are_of_the_kinds_that_are_read() -> None:
    for line in metadata.requires("ptsr-edge") or []:
        marker = line.partition(";")[2]
        known = r"(extra|platform_machine) == ['\"][\w-]+['\"]|python_version (<|>=) ['\"][\d.]+['\"]"
        left = re.sub(rf"{known}|and|[() ]", "", marker)
        assert left == "", f"read_extras does not understand {left!r} in {line!r}"


def test_every_package_of_every_extra_that_is_installed_has_the_import_name_that_is_tried() -> None:
    """The names follow from the distributions; `top_level.txt` or the file list says what they install."""
    for packages in read_extras(metadata.requires("ptsr-edge") or []).values():
        for package in packages:
            try:
                files = metadata.files(package.name) or []
            except metadata.PackageNotFoundError:
                continue
            tops = {file.parts[0].partition(".")[0] for file in files}
            assert package.module in tops, f"{package.name} is not imported as {package.module}"


def test_a_module_that_works() -> None:
    assert probe("json") == Probe("works")


def test_a_module_that_is_not_there() -> None:
    assert probe("no_such_module_anywhere") == Probe("missing")


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
    assert "CPUExecutionProvider" in probe("onnxruntime").detail


def test_many_are_tried_once_each() -> None:
    assert probe_all(["json", "csv", "json"]) == {"csv": Probe("works"), "json": Probe("works")}


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
        assert re.fullmatch(r"\d+\.\d+", gpu["compute_capability"])
        assert gpu["name"]
