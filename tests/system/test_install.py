"""Installed by pip from each place where it can come from, the package names the line that adds an extra from there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def pip(*arguments: object) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    return subprocess.run(call, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    done = pip("wheel", "--no-deps", "-w", folder, ROOT)
    if done.returncode:
        pytest.skip(
            f"pip cannot build a wheel here, for which it needs hatchling: {done.stderr.strip()[-200:]}"
        )
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.parametrize("origin", ["a wheel file", "a folder", "a git address"])
def test_the_line_that_is_printed_installs_from_the_same_place(
    origin: str, wheel: Path, tmp_path: Path
) -> None:
    source = {"a wheel file": str(wheel), "a folder": str(ROOT), "a git address": f"git+file://{ROOT}"}[
        origin
    ]
    if origin == "a git address" and not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    installed = tmp_path / "installed"
    assert pip("install", "--no-deps", "--target", installed, source).returncode == 0
    program = "from ptsr_edge.core.errors import install_line; print(install_line('ort'))"
    line = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
    ).stdout.strip()  # fmt: skip
    assert source.partition("+")[2] in line
    assert "[ort]" in line
    # What a shell makes of the line is what pip takes; what it would download is left out.
    done = subprocess.run(
        ["sh", "-c", f"{line} --dry-run --no-deps --ignore-installed"], capture_output=True, text=True, check=False,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Would install ptsr-edge-" in done.stdout


def test_recipes_are_found_by_name_in_a_wheel(wheel: Path, tmp_path: Path) -> None:
    assert pip("install", "--no-deps", "--target", tmp_path, wheel).returncode == 0
    program = (
        "from ptsr_edge.export.config import find_recipe, read_recipe\n"
        "path = find_recipe('raspberry-pi-5'); print(path); print(read_recipe(path).threads)"
    )
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    ).stdout.splitlines()  # fmt: skip
    assert said == [str(tmp_path / "ptsr_edge" / "recipes" / "raspberry-pi-5.toml"), "2"]
