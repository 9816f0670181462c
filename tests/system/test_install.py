"""Installed by pip from each place where it can come from, the package names the line that adds an extra from there."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
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


@pytest.fixture(scope="module")
def git_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """This checkout's last commit, served as a repository (git's plain HTTP protocol needs files only)."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    folder = tmp_path_factory.mktemp("served")
    # Not local: one pack, where a copy would have a file, and a request, for each object.
    for call in (
        ["clone", "-q", "--bare", "--no-local", str(ROOT), "edge.git"],
        ["-C", "edge.git", "update-server-info"],
    ):
        subprocess.run(["git", *call], cwd=folder, check=True)

    class Files(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            del format, args

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"git+http://127.0.0.1:{server.server_port}/edge.git"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("origin", ["a wheel file", "a folder", "a git address"])
def test_the_line_that_is_printed_installs_from_the_same_place(
    origin: str, wheel: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if origin == "a git address":
        source = request.getfixturevalue("git_address")
    else:
        source = str({"a wheel file": wheel, "a folder": ROOT}[origin])
    installed = tmp_path / "installed"
    assert pip("install", "--no-deps", "--target", installed, source).returncode == 0
    program = "from ptsr_edge.core.errors import install_line; print(install_line('ort'))"
    line = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
    ).stdout.strip()  # fmt: skip
    assert source in line
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
