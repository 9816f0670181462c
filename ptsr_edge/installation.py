"""The packages that ptsr-edge can use, and whether each of them works here.

Nothing heavy is imported into this process: each package is tried in a process of its own, with a time
limit, so that one that is installed but broken, or hangs, is told apart from one that works.
"""

from __future__ import annotations

import importlib.util
import json
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

from ptsr_edge.core.records import Record
from ptsr_edge.core.system import installed, visible_cpus

MODULES = {"cuda-bindings": "cuda", "opencv-python-headless": "cv2", "tensorrt-rtx-cu13": "tensorrt_rtx"}
"""Import names of the distributions that are not imported under their own name."""

FACTS = {
    "onnxruntime": "module.get_available_providers()",
    "openvino": "module.Core().available_devices",
}
"""What a runtime is asked after its import, as Python expressions: asking loads its plug-ins too."""

LIMIT_S = 60.0

_IMPORT = """
import importlib, json, sys
sys.path[:] = json.loads(sys.argv[1])
module = importlib.import_module(sys.argv[2])
print()
print(json.dumps(eval(sys.argv[3])))
"""

_CUDA = """
import ctypes, json
cuda = ctypes.CDLL("libcuda.so.1")
if cuda.cuInit(0):
    raise SystemExit("the driver does not start")
count, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
name, found = ctypes.create_string_buffer(256), []
cuda.cuDeviceGetCount(ctypes.byref(count))
for device in range(count.value):
    cuda.cuDeviceGetName(name, 256, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
    found.append({"name": name.value.decode(), "compute_capability": f"{major.value}.{minor.value}"})
print(json.dumps(found))
"""

State = Literal["works", "missing", "broken", "not for this machine"]


class Package(Record):
    """One package of an extra, as it stands here.

    Attributes:
        name: its name in the registry.
        module: the name it is imported by.
        wanted: the versions that the extra asks for, such as `>=1.20`.
        version: the one installed; None where there is none, or it came under another name.
        state: whether its import works.
        detail: why it does not, or what the runtime said of itself.
    """

    name: str
    module: str
    wanted: str
    version: str | None = None
    state: State = "missing"
    detail: str = ""


class Probe(NamedTuple):
    """What came of importing a module: how it stands, and why or what it said of itself."""

    state: State
    detail: str = ""


def read_extras(requirements: Iterable[str]) -> dict[str, list[Package]]:
    """The packages of each extra; those that ptsr-edge always needs are `base`.

    `all` and `dev` are left out: the first repeats the others, the second is for work on ptsr-edge. So is
    what another version of Python would need.

    Args:
        requirements: `Requires-Dist` lines as build tools write them, such as
            `onnxruntime>=1.20; extra == 'ort'`.
    """
    extras: dict[str, list[Package]] = {}
    for line in requirements:
        rule, _, marker = line.partition(";")
        name, wanted = re.split(r"(?=[^\w.-])|$", rule.strip(), maxsplit=1)
        conditions = {key: (sign, value) for key, sign, value in _CONDITION.findall(marker)}
        _, extra = conditions.get("extra", ("==", "base"))
        if extra in ("all", "dev") or not _for_this_python(*conditions.get("python_version", (">=", "3"))):
            continue
        _, machine = conditions.get("platform_machine", ("==", platform.machine()))
        package = Package(
            name=name,
            module=MODULES.get(name, name.replace("-", "_")),
            wanted=wanted.strip(" ()"),
            state="missing" if machine == platform.machine() else "not for this machine",
        )
        extras.setdefault(extra, []).append(package)
    return extras


_CONDITION = re.compile(r"(extra|python_version|platform_machine) (==|<|>=) ['\"]([\w.-]+)['\"]")


def _for_this_python(sign: str, version: str) -> bool:
    other = tuple(int(part) for part in version.split("."))
    here = sys.version_info[: len(other)]
    return here < other if sign == "<" else here >= other


def as_found(package: Package, found: Probe) -> Package:
    """The package with its state and version here."""
    if found.state == "missing":
        return package
    version = installed([package.name]).get(package.name)
    detail = found.detail
    if found.state == "works" and version is None:
        detail = "; ".join(part for part in ("installed under another name", detail) if part)
    return package.model_copy(update={"state": found.state, "detail": detail, "version": version})


def probe_all(modules: Iterable[str], limit_s: float = LIMIT_S) -> dict[str, Probe]:
    """Tries the import of each module, several at a time."""
    names = sorted(set(modules))
    with ThreadPoolExecutor(max_workers=min(4, len(visible_cpus()))) as pool:
        return dict(zip(names, pool.map(lambda name: probe(name, limit_s), names), strict=True))


def probe(module: str, limit_s: float = LIMIT_S) -> Probe:
    """Imports a top-level module in a process of its own.

    Args:
        module: as it is imported.
        limit_s: after so many seconds it counts as broken.
    """
    spec = importlib.util.find_spec(module)
    # A folder of that name in the working directory passes for a namespace package, which has no origin.
    if spec is None or spec.origin is None:
        return Probe("missing")
    code, said = _python(_IMPORT, [json.dumps(sys.path), module, FACTS.get(module, "[]")], limit_s)
    if code:
        return Probe("broken", said)
    return Probe("works", ", ".join(json.loads(said)))


def find_gpus(limit_s: float = LIMIT_S) -> list[dict[str, str]]:
    """`name` and `compute_capability` of each GPU that the CUDA driver can start; needs only the driver."""
    code, said = _python(_CUDA, [], limit_s)
    found: list[dict[str, str]] = [] if code else json.loads(said)
    return found


def _python(program: str, arguments: Sequence[str], limit_s: float) -> tuple[int, str]:
    """Exit code of a program for this Python, and its last line: of stdout, or of stderr if it failed."""
    call = [sys.executable, "-c", program, *arguments]
    try:
        done = subprocess.run(
            call, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=limit_s
        )
    except subprocess.TimeoutExpired:
        return 1, f"its import did not end within {limit_s:g} s"
    if done.returncode < 0:
        return 1, f"its import was ended by {signal.Signals(-done.returncode).name}"
    lines = (done.stderr if done.returncode else done.stdout).strip().splitlines()
    return done.returncode, lines[-1].strip() if lines else f"exit code {done.returncode}"
