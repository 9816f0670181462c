"""From a bundle to events on a device: an environment without torch, the wheel's own extras, and the camera on a clip."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from synthetic_clip import filmed, write_clip

from ptsr_edge.export.cli import main as export

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment with `ptsr-edge[ort,camera]` of this tree and nothing else."""
    place = tmp_path_factory.mktemp("device") / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    python = place / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    done = subprocess.run(
        [*pip, "-c", str(ROOT / "constraints.txt"), f"{ROOT}[ort,camera]"],
        capture_output=True, text=True, check=False, env=_plain(),
    )  # fmt: skip
    if done.returncode:
        offline = subprocess.run(
            [*pip, "--dry-run", "hatchling"], capture_output=True, check=False, env=_plain()
        )
        if offline.returncode:
            pytest.skip("no package registry can be reached here")
    assert done.returncode == 0, done.stderr
    return python


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a build host makes of the embedded default, by the command of the quick start, whose test leaves it in the cache."""
    out = tmp_path_factory.mktemp("built") / "bundle"
    call = [
        "--target",
        "cpu",
        "--precision",
        "fp32",
        "--budgets",
        "1.0,0.25",
        "--calibration-samples",
        "16",
        "--out",
        str(out),
    ]
    done = CliRunner().invoke(export, call)
    assert done.exit_code == 0, done.output
    return out


def _plain() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}


def on_device(python: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command in another folder, so that nothing of this tree is imported by chance."""
    return subprocess.run(
        [str(python), *arguments], cwd=folder, capture_output=True, text=True, check=False, env=_plain()
    )


def test_the_camera_on_a_clip_in_an_environment_without_torch(
    device: Path, bundle: Path, tmp_path: Path
) -> None:
    for package in ("torch", "onnx", "scipy", "matplotlib"):
        assert on_device(device, tmp_path, "-c", f"import {package}").returncode == 1, f"{package} is there"
    where = on_device(device, tmp_path, "-c", "import ptsr_edge; print(ptsr_edge.__file__)").stdout
    assert str(ROOT) not in where
    clip = write_clip(tmp_path / "clip.mkv")
    verb = str(device.parent / "ptsr-edge")
    call = [
        "camera",
        "--bundle",
        str(bundle),
        "--source",
        str(clip),
        "--face",
        "crop",
        "--record",
        "seen.mp4",
    ]
    done = on_device(device, tmp_path, verb, *call)
    assert done.returncode == 0, done.stderr
    line, recorded = done.stdout.splitlines()
    event = json.loads(line)
    micro = filmed()[2]
    assert event["onset_ns"] / 1e9 < micro.apex_s < event["offset_ns"] / 1e9
    assert event["label"] in event["probabilities"]
    assert (tmp_path / recorded).stat().st_size > 0
