"""What a TensorRT plan file tells without a GPU: flavour, version, and whether all of it is there.

Header, little endian (as NVIDIA's trtexec reads it): bytes 0-3 the tag, `ftrt` of TensorRT or `vtrt` of
TensorRT-RTX; bytes 24-27 the version's four numbers. TensorRT-RTX has the plan's length at bytes 16-23.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ptsr_edge.core.errors import JobError

TAGS = {b"ftrt": "tensorrt", b"vtrt": "tensorrt-rtx"}
HEADER_BYTES = 28


@dataclass(frozen=True)
class Plan:
    """A plan file.

    Attributes:
        flavour: `tensorrt` or `tensorrt-rtx`.
        version: of the TensorRT that built it, such as `10.3.0.30`.
        capabilities: compute capabilities it was built for (`SM86`), empty where no record tells.
    """

    path: Path
    flavour: str
    version: str
    capabilities: tuple[str, ...]


def read_plan(path: Path) -> Plan:
    """Reads a plan's header and the record of its build beside it (`NAME.build.json`), if there is one.

    Raises:
        JobError: the file is missing, no plan, or not all of it is there.
    """
    try:
        with path.open("rb") as stream:
            header = stream.read(HEADER_BYTES)
        size = path.stat().st_size
    except OSError as error:
        raise JobError(f"cannot read {path}: {error.strerror}; export the bundle again") from error
    flavour = TAGS.get(header[:4])
    if flavour is None or len(header) < HEADER_BYTES:
        raise JobError(f"{path} is no TensorRT plan (it begins with {header[:4]!r}); export the bundle again")
    expected, capabilities = _record(path)
    if flavour == "tensorrt-rtx":
        expected = int.from_bytes(header[16:24], "little")
    if expected is not None and size != expected:
        raise JobError(f"{path} has {size} bytes, {expected} are needed: truncated; export the bundle again")
    version = ".".join(str(number) for number in header[24:28])
    return Plan(path, flavour, version, capabilities)


def require_version(plan: Plan, installed: str) -> None:
    """Makes sure that a plan was built by the TensorRT that is to load it.

    Raises:
        JobError: it was built by another version.
    """
    if plan.version.split(".")[:4] != installed.split(".")[:4]:
        raise JobError(
            f"{plan.path.name} was built by {plan.flavour} {plan.version}, here is {installed}, and a plan "
            f"loads in its own version only: {rebuild_line(plan)}"
        )


def require_capability(plan: Plan, gpu: dict[str, str]) -> None:
    """Makes sure that a plan was built for a GPU's compute capability, where its record tells.

    Raises:
        JobError: it was built for others.
    """
    if plan.capabilities and gpu["capability"] not in plan.capabilities:
        raise JobError(
            f"{plan.path.name} was built for {', '.join(plan.capabilities)}, the GPU here is {gpu['name']} "
            f"({gpu['capability']}): {rebuild_line(plan)}"
        )


def rebuild_line(plan: Plan) -> str:
    """The command that builds a plan anew where it is to run."""
    return f"run `python3 build_on_device.py` in {plan.path.parent}"


def _record(path: Path) -> tuple[int | None, tuple[str, ...]]:
    """A plan's length and compute capabilities, as far as the record of its build tells."""
    side = path.with_suffix(".build.json")
    if not side.is_file():
        return None, ()
    try:
        engine = json.loads(side.read_text(encoding="utf-8"))["engine"] or {}
        size = engine.get("bytes")
        gpu = engine.get("gpu") or {}
        capabilities = engine.get("capabilities") or ([gpu["capability"]] if "capability" in gpu else [])
        return None if size is None else int(size), tuple(str(name) for name in capabilities)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise JobError(f"{side} is damaged ({error!r}); export the bundle again") from error
