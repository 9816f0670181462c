"""An aarch64 machine in a folder: an emulator, a Python, and what a device installs. Nothing else changes.

The emulator and the Python come from the system's own package archive, by apt with lists and state of its
own, so neither root nor a foreign architecture is needed. The wheels come by pip, for aarch64.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ptsr_edge.core.console import say
from ptsr_edge.core.errors import JobError
from ptsr_edge.core.files import code_digest, staged_folder

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = Path(__file__).parents[2]
EMULATOR = "qemu-aarch64-static"
ROOTS = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
"""Packages whose libraries, with those that they need in turn, make up the machine."""

PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
ONNXRUNTIME = "onnxruntime==1.27.0"
"""1.20 to 1.27 run under QEMU 7.2; 1.32 looks at the processor in a way that ends there in a crash."""

MADE_FROM = "MADE_FROM"
RUN_LIMIT_S = 1800


@dataclass(frozen=True)
class Machine:
    """What it takes to run a script as an aarch64 processor would.

    Attributes:
        emulator: QEMU for user programs.
        root: where the loader and the libraries of aarch64 are found.
        python: the interpreter in there.
        site: the packages that a device needs.
        package: this one, from its wheel.
        runtime_here: for this machine, the ONNX Runtime that the other one has: so that a difference between
            the two is the processor's.
    """

    emulator: Path
    root: Path
    python: Path
    site: Path
    package: Path
    runtime_here: Path

    def emulator_version(self) -> str:
        """Such as "7.2"."""
        text = _call([str(self.emulator), "--version"], "asking the emulator for its version")
        found = re.search(r"version (\d+\.\d+)", text)
        return found[1] if found else "unknown version"

    def run(self, processor: str, script: Path, *arguments: Path) -> None:
        """Runs a Python script on a processor such as "cortex-a76"; its output goes to stderr.

        Raises:
            JobError: it failed, or was not done after half an hour.
        """
        start: list[str | Path] = [self.emulator, "-cpu", processor, "-L", self.root, self.python, "-s"]
        # Nothing of this machine's Python may be seen by the other one.
        environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8",
                       "PYTHONPATH": f"{self.package}{os.pathsep}{self.site}"}  # fmt: skip
        _run([*start, script, *arguments], environment, f"{script.name} on {processor}")

    def run_here(self, script: Path, *arguments: Path) -> None:
        """The same on this machine, with the same version of ONNX Runtime.

        Raises:
            JobError: as `run`.
        """
        environment = {**os.environ, "PYTHONPATH": f"{self.runtime_here}{os.pathsep}{REPOSITORY}"}
        _run([sys.executable, script, *arguments], environment, f"{script.name} on this machine")


def _run(call: Sequence[str | Path], environment: dict[str, str], what: str) -> None:
    try:
        done = subprocess.run(
            list(map(str, call)), env=environment, stdin=subprocess.DEVNULL, stdout=sys.stderr,
            timeout=RUN_LIMIT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise JobError(f"{what}: not done after {RUN_LIMIT_S} s") from None
    if done.returncode:
        raise JobError(f"{what} ended with exit code {done.returncode}: see above")


def prepare(work: Path) -> Machine:
    """Makes the machine in a folder, or what is out of date of it.

    Raises:
        JobError: no apt or no network, or a package that is not to be had; one line says which.
    """
    system = work / "system"
    found = shutil.which(EMULATOR) or ""
    _made(system, " ".join([*ROOTS, found]), fetch_system, "the emulator and an aarch64 Python (90 MB)")
    root = system / "root"
    python = next(iter(sorted((root / "usr/bin").glob("python3.*[0-9]"))))
    version = python.name.removeprefix("python")
    rules = device_requirements((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    pins = constraints((REPOSITORY / "constraints.txt").read_text(encoding="utf-8"))
    _made(
        work / "site", "\n".join([version, *rules, pins]), lambda folder: install(folder, version, rules, pins),
        "what a device needs, for aarch64 (35 MB)",
    )  # fmt: skip
    _made(work / "package", _state_of_package(), build_package, "the wheel of ptsr-edge")
    _made(
        work / "runtime-here",
        f"{ONNXRUNTIME} {sys.version}",
        install_runtime_here,
        "the same runtime, for here",
    )
    emulator = Path(found) if found else system / EMULATOR
    places = (emulator, root, python, work / "site", work / "package", work / "runtime-here")
    return Machine(*(path.resolve() for path in places))


def _made(folder: Path, key: str, make: Callable[[Path], None], what: str) -> None:
    """Fills a folder, unless it stands there and was made from the same."""
    digest = hashlib.sha256(key.encode()).hexdigest()
    stamp = folder / MADE_FROM
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == digest:
        return
    say(f"fetching or building {what}")
    with staged_folder(folder) as stage:
        make(stage)
        (stage / MADE_FROM).write_text(digest, encoding="utf-8")


def fetch_system(folder: Path) -> None:
    """Unpacks the emulator and the packages of `ROOTS` for aarch64 into a folder.

    Raises:
        JobError: apt is not there, or does not offer a package.
    """
    missing = [tool for tool in ("apt-get", "apt-cache", "dpkg") if shutil.which(tool) is None]
    if missing:
        raise JobError(
            f"the aarch64 machine is fetched by apt, of Debian and what derives from it; {', '.join(missing)} "
            f"not found: run this there, or tools/arm/run_on_arm.py on an aarch64 board"
        )
    with TemporaryDirectory(prefix="ptsr-edge-arm-") as scratch:
        apt = _Apt(Path(scratch))
        names = apt.closure(ROOTS)
        wanted = [*names] if shutil.which(EMULATOR) else [*names, f"qemu-user-static:{apt.here}"]
        for archive in apt.download(wanted):
            if not archive.name.startswith("qemu-user-static_"):
                _call(["dpkg", "-x", str(archive), str(folder / "root")], f"unpacking {archive.name}")
                continue
            _call(["dpkg", "-x", str(archive), scratch], f"unpacking {archive.name}")
            shutil.copy2(Path(scratch) / "usr/bin" / EMULATOR, folder / EMULATOR)


class _Apt:
    """apt for aarch64, with the system's sources and keys and everything else in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.here = _call(["dpkg", "--print-architecture"], "asking dpkg for the architecture").strip()
        self._archives = folder / "archives"
        for name in ("lists/partial", "cache/archives/partial", "archives"):
            (folder / name).mkdir(parents=True)
        (folder / "status").touch()
        settings = folder / "apt.conf"
        settings.write_text(
            'APT::Architecture "arm64";\n'
            f'APT::Architectures {{ "arm64"; "{self.here}"; }};\n'
            'APT::Sandbox::User "root";\n'  # another user could not write here
            'Acquire::Languages "none";\n'
            'Acquire::Retries "2";\n'
            'Acquire::http::Timeout "30";\n'
            f'Dir::State "{folder}";\n'
            f'Dir::State::Lists "{folder}/lists";\n'
            f'Dir::State::status "{folder}/status";\n'
            f'Dir::Cache "{folder}/cache";\n',
            encoding="utf-8",
        )
        self._environment = {**os.environ, "APT_CONFIG": str(settings), "LC_ALL": "C.UTF-8"}
        # A source that has nothing for aarch64 may fail here: what counts is that the packages are found.
        subprocess.run(
            ["apt-get", "-qq", "update"], env=self._environment, capture_output=True, check=False
        )  # fmt: skip

    def closure(self, roots: Sequence[str]) -> list[str]:
        """The packages that these need, as far as they hold a Python or a library."""
        call = ["apt-cache", "depends", "--recurse", "--important", *roots]
        try:
            names = packages_in(_call(call, "asking apt for aarch64 packages", self._environment))
        except JobError:
            names = []
        lacking = sorted(set(roots) - set(names))
        if lacking or not any(re.fullmatch(r"python3\.\d+-minimal", name) for name in names):
            raise JobError(
                f"apt offers no {', '.join(lacking) or 'Python'} for aarch64: it needs the network, and "
                "sources (see /etc/apt) that serve arm64, as Debian's do"
            )
        return names

    def download(self, names: Sequence[str]) -> list[Path]:
        call = ["apt-get", "-qq", "download", *names]
        _call(call, "downloading aarch64 packages", self._environment, self._archives)
        return sorted(self._archives.glob("*.deb"))


def packages_in(listing: str) -> list[str]:
    """Names of Python's packages and of libraries in what `apt-cache depends --recurse` prints.

    Packages stand at the start of a line. What is left out are tools that a running system needs, Perl's
    library with them, and the same names for this machine's architecture.
    """
    found = re.findall(r"^((?:lib(?!perl)|zlib1g|python3)[^\s:]*)$", listing, re.MULTILINE)
    return sorted(set(found))


def device_requirements(pyproject: str) -> list[str]:
    """What the extra `ort` asks for."""
    project = tomllib.loads(pyproject)["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["ort"]]


def constraints(text: str) -> str:
    """The versions that the tests pass with, with an ONNX Runtime that the emulator can run."""
    lines = [line for line in text.splitlines() if not line.lower().startswith("onnxruntime==")]
    return "\n".join([*lines, ONNXRUNTIME]) + "\n"


def install(folder: Path, version: str, rules: Sequence[str], pins: str) -> None:
    """Installs wheels for aarch64 and a version of Python into a folder.

    Raises:
        JobError: pip finds no wheel for a rule.
    """
    with TemporaryDirectory(prefix="ptsr-edge-arm-") as scratch:
        limits = Path(scratch) / "constraints.txt"
        limits.write_text(pins, encoding="utf-8")
        call = ["--only-binary", ":all:", "--python-version", version, "-c", str(limits)]
        for platform in PLATFORMS:
            call += ["--platform", platform]
        _pip("installing for aarch64", "install", "--no-compile", "--target", str(folder), *call, *rules)


def install_runtime_here(folder: Path) -> None:
    """Installs the ONNX Runtime of the other machine for this one; what it needs is in this environment.

    Raises:
        JobError: pip finds no wheel for this Python.
    """
    _pip("installing for here", "install", "--no-deps", "--target", str(folder), ONNXRUNTIME)


def build_package(folder: Path) -> None:
    """Builds this package's wheel and unpacks it, as pip does with one that is Python only.

    Raises:
        JobError: it cannot be built.
    """
    with TemporaryDirectory(prefix="ptsr-edge-arm-") as scratch:
        _pip("building the wheel", "wheel", "--no-deps", "-w", scratch, str(REPOSITORY))
        for wheel in Path(scratch).glob("*.whl"):
            shutil.unpack_archive(wheel, folder, "zip")


def _state_of_package() -> str:
    settings = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    return code_digest(REPOSITORY / "ptsr_edge") + settings


def _pip(what: str, verb: str, *arguments: str) -> None:
    _call([sys.executable, "-m", "pip", "--disable-pip-version-check", verb, "-q", *arguments], what)


def _call(
    command: Sequence[str], what: str, environment: dict[str, str] | None = None, cwd: Path | None = None
) -> str:
    """A tool's stdout.

    Raises:
        JobError: it failed; with the last line that it said.
    """
    done = subprocess.run(
        command,
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise JobError(f"{what}: {command[0]} said: {said[-1] if said else f'exit code {done.returncode}'}")
    return done.stdout
