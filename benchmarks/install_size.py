"""Megabytes and start times of what a device installs.

    python benchmarks/install_size.py --bundle out/ptsr-tiny-cpu

Builds the wheel, installs it with each set of extras into an environment of its own, in the versions of
`constraints.txt`, and measures there: bytes on disk, and milliseconds of CPU time of Python, of `import ptsr_edge`, of
`ptsr-edge --help`, and of a program that opens the bundle and predicts once. pip takes packages from where it is
configured to.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
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


def cpu_ms(*call: str) -> float:
    """Returns the median CPU time of several runs after one that fills the caches; others' load hardly moves it.

    Raises:
        subprocess.CalledProcessError: a run fails.
    """
    used = []
    for _ in range(RUNS + 1):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(used[1:]) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--bundle", type=Path, action="append", default=[], help="to predict with; may be repeated"
    )
    parser.add_argument("--install", action="append", help=f"extras; default: {' '.join(INSTALLS)}")
    options = parser.parse_args()
    print(
        "| install | MB | of these ptsr-edge | Python alone | `import ptsr_edge` | `--help` | first prediction |"
    )
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="ptsr-install-") as scratch:
        wheel = built_wheel(Path(scratch))
        for number, what in enumerate(options.install or INSTALLS):
            try:
                python = installed(wheel, what, Path(scratch) / str(number))
            except subprocess.CalledProcessError:
                print(f"| `{what}` | pip could not install it here | | | | | |", flush=True)
                continue
            size = megabytes(python)
            program = str(python.with_name("ptsr-edge"))
            bare = cpu_ms(str(python), "-c", "pass")
            imported = cpu_ms(str(python), "-c", "import ptsr_edge")
            helped = cpu_ms(program, "--help")
            first = "-"  # without a bundle of a target that this installation runs
            for bundle in options.bundle:
                with contextlib.suppress(subprocess.CalledProcessError):
                    first = f"{cpu_ms(str(python), '-c', FIRST_PREDICTION, str(bundle)):.0f}"
            print(
                f"| `{what}` | {size['all']:.0f} | {size['own']:.0f} | {bare:.0f} | {imported:.0f} | {helped:.0f} "
                f"| {first} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
