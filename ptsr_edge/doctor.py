"""What is installed, which targets can be built and run here, and the line that brings what is missing.

python -m ptsr_edge.doctor

Nothing heavy is imported into this process: each package is tried in a process of its own, with a time limit, so
that one that is installed but broken, or hangs, is told apart from one that works.
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
from packaging.requirements import Requirement

from ptsr_edge.core.config import DEFAULT_MODEL, Record
from ptsr_edge.core.console import Verb, doing, finish, run_verb, say
from ptsr_edge.core.errors import InputError, JobError, MissingExtraError, install_line
from ptsr_edge.core.system import describe_cpu, installed, visible_cpus
from ptsr_edge.runtimes import build_on_device
from ptsr_edge.runtimes.base import Runtime, find_runtime, load_part, target_names
from ptsr_edge.runtimes.openvino import SENDER
from ptsr_edge.sign import KEY_VARIABLE, SERIAL_VARIABLE, demanded, fingerprint, read_public_key

MODULES = {
    "cuda-bindings": "cuda.bindings.runtime",
    "fvcore": "fvcore.nn",
    "opencv-python-headless": "cv2",
    "tensorrt-rtx-cu13": "tensorrt_rtx",
}
"""What is imported of the distributions that are not used under their own name."""

LIMIT_S = 60.0

WEIGHTS = Path(__file__).parent / "weights"

INT8_FLAGS = ("avx512_vnni", "avx_vnni", "amx_int8", "dotprod", "i8mm")

BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")

FP16_FLAGS = ("avx512_fp16", "fp16")

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
    """The outcome of an import: how the module stands, and why, or what it said of itself."""

    state: State
    detail: str = ""


class TargetState(Record):
    """Whether a target can be built and run here, what is in the way, and the lines that change it."""

    build: bool
    run: bool
    notes: list[str]
    install: list[str]


def examine(limit_s: float = LIMIT_S) -> dict[str, Any]:
    """Returns everything that `doctor` reports, ready for JSON.

    Args:
        limit_s: how long one package may take to import.

    Raises:
        JobError: ptsr-edge is not installed in this Python, so what its extras hold is unknown.
    """
    try:
        wanted = read_extras(metadata.requires("ptsr-edge") or [])
    except metadata.PackageNotFoundError:
        raise JobError(
            f"ptsr-edge runs from a bare folder, so what its extras hold is unknown: {install_line('ort')}"
        ) from None
    runtimes = {name: _runtime(name) for name in target_names()}
    facts = {package.module: "[]" for packages in wanted.values() for package in packages}
    for runtime in reversed(runtimes.values()):  # the built-in ones come first, and have the last word
        if isinstance(runtime, Runtime):
            facts |= dict.fromkeys(runtime.packages, runtime.facts)
    probes = probe_all(facts, limit_s)
    extras = {
        extra: [as_found(package, probes[package.module]) for package in packages]
        for extra, packages in wanted.items()
    }
    gpus = find_gpus(limit_s)
    cpu = describe_cpu()
    targets = {name: judge_target(name, runtime, extras, probes, gpus) for name, runtime in runtimes.items()}
    return {
        "ptsr_edge": metadata.version("ptsr-edge"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu | {"notes": cpu_notes(cpu)},
        "gpus": [
            {"name": gpu["name"], "compute_capability": f"{gpu['capability'][2:-1]}.{gpu['capability'][-1]}"}
            for gpu in gpus
        ],
        "weights": embedded_weights(WEIGHTS),
        "signatures": signatures_asked(),
        "extras": {extra: [p.model_dump() for p in packages] for extra, packages in extras.items()},
        "targets": {name: state.model_dump() for name, state in targets.items()},
    }


def signatures_asked() -> dict[str, Any] | None:
    """Returns what is asked of the signatures of bundles here, by which key, or why it cannot be checked; None: nothing is."""
    try:
        demand = demanded()
        if demand is None:
            return None
        key = fingerprint(read_public_key(demand.key))
        return {"file": str(demand.key), "key": key, "least_serial": demand.least_serial, "fault": None}
    except (InputError, MissingExtraError) as error:
        return {"file": None, "key": None, "least_serial": None, "fault": str(error)}


def _runtime(name: str) -> Runtime | str:
    """A target, or what is wrong with the package that brings it."""
    try:
        return find_runtime(name)
    except JobError as error:
        return str(error)


def read_extras(requirements: Iterable[str]) -> dict[str, list[Package]]:
    """Returns the packages of each extra; those that ptsr-edge always needs are `base`.

    `all` and `dev` are left out: the first repeats the others, the second is for work on ptsr-edge. So are
    what another version of Python would need, and extras within an extra.

    Args:
        requirements: `Requires-Dist` lines, such as `onnxruntime>=1.20; extra == 'ort'`.
    """

    def named(variable: str) -> list[str]:
        return re.findall(rf"{variable} == ['\"]([^'\"]+)", str(rule.marker or ""))

    here = platform.machine()
    extras: dict[str, list[Package]] = {}
    for rule in map(Requirement, requirements):
        extra = (named("extra") or ["base"])[0]
        machines = [
            machine
            for machine in (here, *named("platform_machine"))
            if rule.marker is None or rule.marker.evaluate({"extra": extra, "platform_machine": machine})
        ]
        if machines and extra not in ("all", "dev") and rule.name != "ptsr-edge":
            package = Package(
                name=rule.name,
                module=MODULES.get(rule.name, rule.name.replace("-", "_")),
                wanted=str(rule.specifier),
                state="missing" if here in machines else "not for this machine",
            )
            extras.setdefault(extra, []).append(package)
    return extras


def as_found(package: Package, found: Probe) -> Package:
    """Returns a package with its state and version here."""
    if found.state == "missing":
        return package
    version = installed([package.name]).get(package.name)
    detail = found.detail
    if found.state == "works" and version is None:
        detail = "; ".join(part for part in ("installed under another name", detail) if part)
    return package.model_copy(update={"state": found.state, "detail": detail, "version": version})


def probe_all(facts: Mapping[str, str], limit_s: float = LIMIT_S) -> dict[str, Probe]:
    """Tries the import of each module, several at a time; the values are what each is asked, see `probe`."""
    with ThreadPoolExecutor(max_workers=min(4, len(visible_cpus()))) as pool:
        probes = pool.map(lambda module: probe(module, facts[module], limit_s), facts)
        return dict(zip(facts, probes, strict=True))


_IMPORT = """
import importlib, json, sys
path, name, facts, silenced = sys.argv[1:]
sys.path[:] = json.loads(path)
sys.modules[silenced] = None
answer = None
try:
    module = importlib.import_module(name)
except ModuleNotFoundError as error:
    if not f"{name}.".startswith(f"{error.name}."):
        raise
else:
    # A folder of that name in the working directory passes for a namespace package, which has no origin.
    if module.__spec__.origin is not None:
        answer = eval(facts)
print()
print(json.dumps(answer))
"""


def probe(module: str, facts: str = "[]", limit_s: float = LIMIT_S) -> Probe:
    """Imports a module in a process of its own; telemetry of OpenVINO and NNCF is off there.

    Args:
        module: as it is imported.
        facts: a Python expression over `module`, a list of texts to tell: asking loads a runtime's plug-ins too.
        limit_s: after so many seconds it counts as broken.
    """
    code, said = _python(_IMPORT, [json.dumps(sys.path), module, facts, SENDER], limit_s)
    if code:
        return Probe("broken", said)
    told = json.loads(said)
    return Probe("missing") if told is None else Probe("works", ", ".join(told))


_GPUS = "import json, runpy, sys; print(json.dumps(runpy.run_path(sys.argv[1])['cuda_devices']()))"


def find_gpus(limit_s: float = LIMIT_S) -> list[dict[str, str]]:
    """Returns what `build_on_device.cuda_devices` finds, from a process of its own: a driver can hang, too."""
    code, said = _python(_GPUS, [build_on_device.__file__], limit_s)
    found: list[dict[str, str]] = [] if code else json.loads(said)
    return found


def _python(program: str, arguments: Sequence[str], limit_s: float) -> tuple[int, str]:
    """Runs a program in this Python; returns its exit code and last line, of stdout or, if it failed, of stderr."""
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


def judge_target(
    name: str,
    runtime: Runtime | str,
    extras: Mapping[str, Sequence[Package]],
    probes: Mapping[str, Probe],
    gpus: Sequence[Mapping[str, str]],
) -> TargetState:
    """Judges whether a target can be built and run.

    Building needs the extra `train` and the target's own (`Runtime.build_extra`, `extra`); running needs its runtime
    alone. Both need the
    target's code, and what its `hindrances` ask of the machine.

    Args:
        name: of the target.
        runtime: the target, or why there is none.
        extras: packages by extra, as they were found.
        probes: by module, those of the target among them.
        gpus: as `find_gpus` gives them.
    """
    if isinstance(runtime, str):
        return TargetState(build=False, run=False, notes=[runtime], install=[])
    works = [module for module in runtime.packages if probes[module].state == "works"]
    faults = _faults(extras, "train") | _faults(extras, runtime.build_extra)
    if runtime.extra and not (runtime.comes_with_system and works):
        faults |= _faults(extras, runtime.extra)
    elif not works:
        faults |= {f"{module} is {probes[module].state}": "" for module in runtime.packages}
    notes, install = list(faults), list(dict.fromkeys(line for line in faults.values() if line))
    if works:
        in_the_way = _hindrances(name, runtime, works, gpus)
        notes += dict.fromkeys(reason for reason in in_the_way if reason)
    else:
        in_the_way = ("nothing to build with", "nothing to run with")
        states = [package.state for package in extras.get(runtime.extra, ())]
        if runtime.comes_with_system and "not for this machine" in states:
            notes.append(runtime.comes_with_system)
            install.append("python3 -m venv --system-site-packages .venv")
    no_build, no_run = in_the_way
    return TargetState(build=not (faults or no_build), run=not no_run, notes=notes, install=install)


def _hindrances(
    name: str, runtime: Runtime, works: Sequence[str], gpus: Sequence[Mapping[str, str]]
) -> tuple[str, str]:
    """Returns why a target whose packages work can still not be built and not be run; empty where it can."""
    try:
        load_part(name, runtime.runner)
        no_build, no_run = (
            load_part(name, runtime.hindrances)(works, gpus) if runtime.hindrances else ("", "")
        )
    except JobError as error:
        return str(error), str(error)
    # A builder may load torch: it is looked for, and not imported.
    builder = runtime.builder.partition(":")[0]
    try:
        found = importlib.util.find_spec(builder) is not None
    except ImportError:
        found = False
    return no_build if found else f"target {name!r} is broken: there is no module {builder}", no_run


def _faults(extras: Mapping[str, Sequence[Package]], extra: str) -> dict[str, str]:
    """Returns what is wrong with an extra, and the line against each fault."""
    faults = {}
    for package in extras.get(extra, ()):
        if package.state == "missing":
            faults[f"{package.name} is missing"] = install_line(extra)
        elif package.state == "broken":
            line = f"pip install --force-reinstall '{package.name}{package.wanted}'"
            faults[f"{package.name} is broken: {package.detail}"] = line
    return faults


def cpu_notes(cpu: Mapping[str, Any]) -> list[str]:
    """Explains what the facts of `describe_cpu` mean for speed, and for measuring it."""

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
    """Returns name, size, training data and card of each checkpoint in a folder, read from the files' headers."""
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
    """Writes the record for a terminal; the last line says what can be built and run."""
    targets = record["targets"]
    lines = [f"ptsr-edge {record['ptsr_edge']}, Python {record['python']}, {record['system']}"]
    lines += [*_machine_lines(record["cpu"], record["gpus"]), *_weights_lines(record["weights"])]
    lines.append(_signatures_line(record["signatures"]))
    lines += ["", f"{'extra':14} {'package':24} {'version':18} state"]
    for extra, packages in record["extras"].items():
        for package in packages:
            state = f"{package['state']}: {package['detail']}" if package["detail"] else package["state"]
            lines.append(f"{extra:14} {package['name']:24} {package['version'] or '-':18} {state}")
        if "missing" in [package["state"] for package in packages]:
            lines.append(f"{'':14} {install_line(extra)}")
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


def _signatures_line(asked: Mapping[str, Any] | None) -> str:
    if asked is None:
        return f"signed    not asked for: bundles of anybody are opened; ${KEY_VARIABLE} names the key of those that may be"
    if asked["fault"]:
        return f"signed    nothing can be opened: {asked['fault']}"
    least = f", serial {asked['least_serial']} or more (${SERIAL_VARIABLE})" if asked["least_serial"] else ""
    return f"signed    only bundles by key {asked['key'][:16]} ({asked['file']}) are opened{least}"


@click.command(cls=Verb, epilog="Example: python -m ptsr_edge.doctor")
@click.option("--limit-s", type=click.FloatRange(min=0, min_open=True), default=LIMIT_S, show_default=True,
              help="How long one package may take to import.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the record.")
def main(limit_s: float, as_json: bool) -> None:
    """Say what is installed, and which targets can be built and run here."""
    say("importing each installed package once, in a process of its own")
    with doing("importing"):
        record = examine(limit_s)
    finish(record, lines_of(record), as_json)
    if not any(state["build"] or state["run"] for state in record["targets"].values()):
        raise JobError(f"no target can be built or run here; the smallest start: {install_line('ort')}")
    if fault := (record["signatures"] or {}).get("fault"):
        raise JobError(f"signatures cannot be checked, so nothing is opened here: {fault}")


if __name__ == "__main__":
    run_verb("doctor")
