"""Megabytes and start times of what a device installs.

    python benchmarks/install_size.py --bundle out/ptsr-tiny-cpu

Builds the wheel, installs it with each set of extras into an environment of its own, in the versions of
`constraints.txt`, and measures there: bytes on disk, CPU time of `import ptsr_edge` and of `ptsr-edge --help`, and wall
time from the start of Python to the first prediction. pip takes packages from where it is configured to.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]

INSTALLS = ("ort", "openvino", "openvino+nncf", "ort,camera", "openvino,camera", "trt")
"""Extras, and behind a plus a package beside them: NNCF came with `openvino` once."""

RUNS = 7

FIRST_PREDICTION = """
import sys, numpy as np
from ptsr_edge import Session
session = Session.open(sys.argv[1], budget=0.25)
side = session.bundle.preprocess.image_size
session.predict(np.random.default_rng(0).normal(size=(side, side, 3)).astype(np.float32))
"""


def built_wheel(folder: Path) -> Path:
    call = [sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "-w", str(folder), str(ROOT)]
    subprocess.run(call, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def installed(wheel: Path, what: str, folder: Path) -> Path:
    """Makes an environment without pip, and returns its Python."""
    extras, _, more = what.partition("+")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    call = [sys.executable, "-m", "pip", "--python", str(python), "install", "-qq", "--no-compile",
            "-c", str(ROOT / "constraints.txt"), f"{wheel}[{extras}]", *more.split()]  # fmt: skip
    subprocess.run(call, check=True)
    return python


def megabytes(python: Path) -> dict[str, float]:
    """Of everything, and of this package alone."""
    scheme = sysconfig.get_paths(vars={"base": str(python.parents[1]), "platbase": str(python.parents[1])})
    site = Path(scheme["purelib"])
    files = [path for path in site.rglob("*") if path.is_file() and "__pycache__" not in path.parts]

    def total(paths: list[Path]) -> float:
        return sum(path.stat().st_size for path in paths) / 1e6

    return {"all": total(files), "own": total([path for path in files if "ptsr_edge" in path.parts])}


def milliseconds(*call: str) -> tuple[float, float]:
    """Median CPU and wall time of several runs after one that fills the caches.

    Raises:
        subprocess.CalledProcessError: a run fails.
    """
    cpu, wall = [], []
    for _ in range(RUNS + 1):
        before, started = os.times(), time.perf_counter()
        subprocess.run(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        after = os.times()
        wall.append((time.perf_counter() - started) * 1e3)
        used = after.children_user + after.children_system - before.children_user - before.children_system
        cpu.append(used * 1e3)
    return statistics.median(cpu[1:]), statistics.median(wall[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--bundle", type=Path, action="append", default=[], help="to predict with; may be repeated"
    )
    parser.add_argument("--install", action="append", help=f"extras; default: {' '.join(INSTALLS)}")
    options = parser.parse_args()
    print(
        "| install | MB | of these ptsr-edge | `import ptsr_edge`, CPU ms | `--help`, CPU ms | first prediction, ms |"
    )
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="ptsr-install-") as scratch:
        wheel = built_wheel(Path(scratch))
        for number, what in enumerate(options.install or INSTALLS):
            try:
                python = installed(wheel, what, Path(scratch) / str(number))
            except subprocess.CalledProcessError:
                print(f"| `{what}` | pip could not install it here | | | | |", flush=True)
                continue
            size = megabytes(python)
            program = str(python.with_name("ptsr-edge"))
            bare = milliseconds(str(python), "-c", "pass")
            imported = milliseconds(str(python), "-c", "import ptsr_edge")
            helped = milliseconds(program, "--help")
            shown = "-"  # without a bundle of a target that this installation runs
            for bundle in options.bundle:
                with contextlib.suppress(subprocess.CalledProcessError):
                    shown = f"{milliseconds(str(python), '-c', FIRST_PREDICTION, str(bundle))[1]:.0f}"
            print(
                f"| `{what}` | {size['all']:.0f} | {size['own']:.0f} | {imported[0]:.0f} (Python alone {bare[0]:.0f}) "
                f"| {helped[0]:.0f} | {shown} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
