"""Environments of tools that cannot share one with the project: `python -m benchmarks.speed.environments [NAME...]`.

Each lies in `.venv-speed/NAME`, made by pip from exact versions; what pip takes besides, such as an index with CPU builds of torch,
is read from the variable PIP_ARGS. A build for a GPU is refused before anything is fetched: it is of no use here and takes
gigabytes. Exit code 1 where one could not be made; the reason is kept beside it, and the benchmark tells it.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from ptsr_edge.core.config import nearest
from ptsr_edge.core.console import say
from ptsr_edge.core.errors import InputError, JobError, PtsrError
from ptsr_edge.core.files import write_whole
from ptsr_edge.profile.schema import Missing

FOLDER = Path(__file__).parents[2] / ".venv-speed"

TORCH = "torch==2.13.0"


@dataclass(frozen=True)
class Environment:
    """What pip installs, and what it installs along with that and does not work with a CPU build of torch."""

    pins: tuple[str, ...]
    unwanted: tuple[str, ...] = ()


ENVIRONMENTS = {
    "litert": Environment((TORCH, "litert-torch==0.10.0", "ai-edge-litert==2.3.0", "transformers==5.24.0")),
    "executorch": Environment((TORCH, "executorch==1.5.1", "torchao==0.18.0", "transformers==5.24.0")),
    "optimum-onnx": Environment((TORCH, "optimum-onnx[onnxruntime]==0.1.0")),
    # torchvision is asked for, not used, and where it does not fit torch even ViT cannot be imported.
    "optimum-intel": Environment((TORCH, "optimum-intel[openvino]==2.2.0"), unwanted=("torchvision",)),
}


def python_of(name: str) -> Path | Missing:
    """Returns the interpreter of an environment, "" for this one; or why there is none."""
    if not name:
        return Path(sys.executable)
    python = FOLDER / name / "bin" / "python"
    if python.is_file():
        return python
    why = _reason(name)
    told = why.read_text(encoding="utf-8").strip() if why.is_file() else "`make bench-speed-peers` makes it"
    return Missing(kind="not_installed", reason=f"there is no environment {name}: {told}")


def versions_of(name: str) -> dict[str, str]:
    """Returns the versions of what an environment was made for."""
    wanted = [pin.partition("==")[0].partition("[")[0] for pin in ENVIRONMENTS[name].pins]
    places = [str(path) for path in (FOLDER / name).glob("lib/python*/site-packages")]
    found = {one.metadata["Name"]: one.version for one in metadata.distributions(path=places)}
    return {
        package: found[package]
        for package in (*wanted, "onnxruntime", "openvino", "nncf")
        if package in found
    }


def make(name: str) -> None:
    """Makes an environment anew.

    Raises:
        InputError: there is none of that name.
        JobError: pip cannot install it, or would take a build for a GPU.
    """
    if name not in ENVIRONMENTS:
        raise InputError(
            f"unknown environment {name!r}; known: {', '.join(ENVIRONMENTS)} (nearest: {nearest(name, ENVIRONMENTS)})"
        )
    environment, place = ENVIRONMENTS[name], FOLDER / name
    shutil.rmtree(place, ignore_errors=True)
    _reason(name).unlink(missing_ok=True)
    try:
        _run([sys.executable, "-m", "venv", str(place)])
        pip = [str(place / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "-q"]
        install = [*pip, "install", *shlex.split(os.environ.get("PIP_ARGS", "")), *environment.pins]
        report = json.loads(_run([*install, "--dry-run", "--report", "-"]))
        heavy = sorted(
            one["metadata"]["name"]
            for one in report["install"]
            if one["metadata"]["name"].startswith("nvidia-")
        )
        if heavy:
            raise JobError(
                f"pip would take a build for a GPU ({heavy[0]} and {len(heavy) - 1} more): name an index with CPU builds in PIP_ARGS"
            )
        _run(install)
        if environment.unwanted:
            _run([*pip, "uninstall", "-y", *environment.unwanted])
    except JobError as error:
        shutil.rmtree(place, ignore_errors=True)
        write_whole(_reason(name), f"{error}\n")
        raise
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)  # half of one would look like a whole one
        raise


def _reason(name: str) -> Path:
    return FOLDER / f"{name}.txt"


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise JobError(
            f"{' '.join(command[1:4])} ended with exit code {done.returncode}: {(lines or ['it said nothing'])[-1][:300]}"
        )
    return done.stdout


def main() -> int:
    failed = 0
    for name in sys.argv[1:] or ENVIRONMENTS:
        if (place := FOLDER / name).exists() and not sys.argv[1:]:
            say(f"{name}: is there ({place}); name it to make it anew")
            continue
        say(f"{name}: installing")
        try:
            make(name)
        except PtsrError as error:
            failed = max(failed, error.exit_code)
            say(f"{name}: {error}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
