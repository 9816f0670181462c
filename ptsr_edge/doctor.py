"""What is installed, which targets can be built and run here, and the line that brings what is missing.

python -m ptsr_edge.doctor
"""

from __future__ import annotations

import importlib.util
import json
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

import click

from ptsr_edge.core.config import DEFAULT_MODEL
from ptsr_edge.core.console import Verb, finish, run, say
from ptsr_edge.core.errors import JobError
from ptsr_edge.core.records import Record
from ptsr_edge.core.system import describe_cpu, installed, visible_cpus
from ptsr_edge.runtimes.base import RUNTIMES

# FOLDED from installation: The packages that ptsr-edge can use, and whether each of them works here. Nothing heavy is imported into this process: each package is tried in a process of its own, with a time limit, so that one that is installed but broken, or hangs, is told apart from one that works.

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


EXTRA_OF = {"cpu": "ort", "openvino": "openvino", "trt": "trt"}
"""The extra that brings a target's tool chain; building needs `train` as well."""

RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities that TensorRT-RTX 1.7 makes engines for."""

INT8_FLAGS = ("avx512_vnni", "avx_vnni", "amx_int8", "dotprod", "i8mm")

BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")

FP16_FLAGS = ("avx512_fp16", "fp16")

WEIGHTS = Path(__file__).parent / "weights"


class TargetState(Record):
    """Whether a target can be built and run here, what is in the way, and the lines that change it."""

    build: bool
    run: bool
    notes: list[str]
    install: list[str]


def examine(limit_s: float = LIMIT_S) -> dict[str, Any]:
    """Everything that `doctor` reports, ready for JSON.

    Args:
        limit_s: how long one package may take to import.

    Raises:
        JobError: ptsr-edge is not installed in this Python, so what its extras hold is unknown.
    """
    try:
        wanted = read_extras(metadata.requires("ptsr-edge") or [])
    except metadata.PackageNotFoundError:
        raise JobError(
            "ptsr-edge runs from a bare folder, so what its extras hold is unknown: pip install ptsr-edge"
        ) from None
    modules = [package.module for packages in wanted.values() for package in packages]
    probes = probe_all(
        [*modules, *(module for runtime in RUNTIMES.values() for module in runtime.packages)], limit_s
    )
    extras = {
        extra: [as_found(package, probes[package.module]) for package in packages]
        for extra, packages in wanted.items()
    }
    gpus = find_gpus(limit_s)
    cpu = describe_cpu()
    return {
        "ptsr_edge": metadata.version("ptsr-edge"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu | {"notes": cpu_notes(cpu)},
        "gpus": gpus,
        "weights": embedded_weights(WEIGHTS),
        "extras": {extra: [p.model_dump() for p in packages] for extra, packages in extras.items()},
        "targets": {name: judge_target(name, extras, probes, gpus).model_dump() for name in RUNTIMES},
    }


def judge_target(
    name: str,
    extras: Mapping[str, Sequence[Package]],
    probes: Mapping[str, Probe],
    gpus: Sequence[Mapping[str, str]],
) -> TargetState:
    """Whether a target can be built and run.

    Building needs the extra `train` and the target's tool chain; running needs its runtime alone and,
    for `trt`, a GPU. TensorRT-RTX builds without a GPU, TensorRT does not.

    Args:
        name: of the target.
        extras: packages by extra, as they were found.
        probes: by module, those of `RUNTIMES` among them.
        gpus: as `find_gpus` gives them.
    """
    runtimes = [module for module in RUNTIMES[name].packages if probes[module].state == "works"]
    faults = _faults(extras, "train")
    # A TensorRT that came with the system stands in for the package of the extra.
    if name != "trt" or not runtimes:
        faults |= _faults(extras, EXTRA_OF[name])
    notes, install = list(faults), list(dict.fromkeys(faults.values()))
    can_build, can_run = bool(runtimes) and not faults, bool(runtimes)
    if name == "trt" and runtimes:
        hindrance = _gpu_hindrance(runtimes, gpus)
        can_run = not hindrance
        can_build = can_build and ("tensorrt_rtx" in runtimes or bool(gpus))
        notes += [hindrance] if hindrance else []
    elif name == "trt" and "not for this machine" in [package.state for package in extras["trt"]]:
        notes.append("TensorRT comes with the system here (JetPack), not from the registry")
        install.append("python3 -m venv --system-site-packages .venv")
    return TargetState(build=can_build, run=can_run, notes=notes, install=install)


def _faults(extras: Mapping[str, Sequence[Package]], extra: str) -> dict[str, str]:
    """What is wrong with an extra, and the line against each fault."""
    faults = {}
    for package in extras[extra]:
        if package.state == "missing":
            faults[f"{package.name} is missing"] = f"pip install 'ptsr-edge[{extra}]'"
        elif package.state == "broken":
            line = f"pip install --force-reinstall '{package.name}{package.wanted}'"
            faults[f"{package.name} is broken: {package.detail}"] = line
    return faults


def _gpu_hindrance(runtimes: Sequence[str], gpus: Sequence[Mapping[str, str]]) -> str:
    """Why the runtimes of `trt` cannot run here; empty when one of them can."""
    if not gpus:
        return "running needs an NVIDIA GPU and its driver; building with TensorRT-RTX does not"
    if "tensorrt" in runtimes or any(gpu["compute_capability"] in RTX_CAPABILITIES for gpu in gpus):
        return ""
    found = ", ".join(f"{gpu['name']} has {gpu['compute_capability']}" for gpu in gpus)
    return f"TensorRT-RTX runs on compute capability {', '.join(RTX_CAPABILITIES)}; {found}"


def cpu_notes(cpu: Mapping[str, Any]) -> list[str]:
    """What the facts of `describe_cpu` mean for speed, and for measuring it."""

    def having(kind: Sequence[str]) -> str:
        return ", ".join(flag for flag in kind if flag in cpu["flags"])

    notes = ["no int8 dot products in hardware: int8 saves memory here, hardly time"]
    if int8 := having(INT8_FLAGS):
        notes = [f"int8 products in hardware ({int8})"]
    if bf16 := having(BF16_FLAGS):
        notes.append(f"bfloat16 in hardware ({bf16}): OpenVINO computes in it unless told otherwise")
    if fp16 := having(FP16_FLAGS):
        notes.append(f"float16 arithmetic in hardware ({fp16})")
    if cpu["governor"] not in (None, "performance"):
        notes.append(f"clock governor {cpu['governor']}: timings will vary")
    if cpu["virtual"]:
        notes.append("a virtual machine: others may share the processor, timings will vary")
    return notes


def embedded_weights(folder: Path) -> list[dict[str, Any]]:
    """Name, size, training data and card of each checkpoint in a folder, read from the files' headers."""
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        entry: dict[str, Any] = {"name": path.stem, "size_bytes": path.stat().st_size}
        try:
            with path.open("rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
                header = json.loads(stream.read(min(length, entry["size_bytes"])))
            provenance = json.loads(header["__metadata__"]["ptsr_edge"])["provenance"]
            entry |= {"data": provenance["data"], "card": provenance["card"]}
        except (ValueError, KeyError, TypeError) as error:
            entry |= {"data": None, "card": f"unreadable ({error!r}): reinstall ptsr-edge"}
        found.append(entry)
    return found


def lines_of(record: Mapping[str, Any]) -> list[str]:
    """The record for a terminal; the last line says what can be built and run."""
    targets = record["targets"]
    lines = [f"ptsr-edge {record['ptsr_edge']}, Python {record['python']}, {record['system']}"]
    lines += [*_machine_lines(record["cpu"], record["gpus"]), *_weights_lines(record["weights"])]
    lines += ["", f"{'extra':9} {'package':24} {'version':18} state"]
    for extra, packages in record["extras"].items():
        for package in packages:
            state = f"{package['state']}: {package['detail']}" if package["detail"] else package["state"]
            lines.append(f"{extra:9} {package['name']:24} {package['version'] or '-':18} {state}")
        if "missing" in [package["state"] for package in packages]:
            lines.append(f"{'':9} pip install 'ptsr-edge[{extra}]'")
    lines += ["", f"{'target':9} build  run"]
    for name, state in targets.items():
        build, run_ = ("yes" if state[verb] else "no" for verb in ("build", "run"))
        lines.append(f"{name:9} {build:6} {run_:6} {'; '.join(state['notes'])}".rstrip())
        lines += [f"{'':23} {line}" for line in state["install"]]
    can = {verb: [name for name, state in targets.items() if state[verb]] for verb in ("build", "run")}
    last = (f"can {verb}: {', '.join(names) or 'nothing'}" for verb, names in can.items())
    return [*lines, "", "; ".join(last)]


def _machine_lines(cpu: Mapping[str, Any], gpus: Sequence[Mapping[str, str]]) -> list[str]:
    limit = cpu["cgroup_limit_cores"]
    cores = f"{cpu['cores_visible']} cores" + (f", limited to {limit:g}" if limit else "")
    lines = [f"processor {cpu['board'] or cpu['model'] or 'unknown'}, {cores}"]
    lines += [f"          {note}" for note in cpu["notes"]]
    lines += [f"GPU       {gpu['name']}, compute capability {gpu['compute_capability']}" for gpu in gpus]
    return lines if gpus else [*lines, "GPU       none that CUDA can start"]


def _weights_lines(weights: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [f"weights   {w['name']}, {w['size_bytes'] / 1e6:.1f} MB: {w['card']}" for w in weights]
    if DEFAULT_MODEL not in [entry["name"] for entry in weights]:
        lines.append(f"weights   none for {DEFAULT_MODEL}: exports without --checkpoint hold random ones")
    return lines


@click.command(cls=Verb, epilog="Example: python -m ptsr_edge.doctor")
@click.option("--limit-s", type=click.FloatRange(min=0, min_open=True), default=LIMIT_S, show_default=True,
              help="How long one package may take to import.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the record.")
def main(limit_s: float, as_json: bool) -> None:
    """Say what is installed, and which targets can be built and run here."""
    say("importing each installed package once, in a process of its own")
    record = examine(limit_s)
    finish(record, lines_of(record), as_json)
    if not any(state["build"] or state["run"] for state in record["targets"].values()):
        raise JobError("no target can be built or run here; the smallest start: pip install 'ptsr-edge[ort]'")


if __name__ == "__main__":
    run(main, "python -m ptsr_edge.doctor")
