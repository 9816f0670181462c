"""Which TensorRT is there, what it can build here, and for which GPUs.

Three flavours behind one way of building (`trt_engine`): `tensorrt` 10.x (Jetson), `tensorrt` 11.x, and
`tensorrt-rtx`. The first two build for the GPU in the machine and need it; `tensorrt-rtx` builds without one,
for the compute capabilities that are asked for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ptsr_edge.core.errors import InputError, JobError, MissingExtraError
from ptsr_edge.runtimes.trt_engine import MODULES, BuildError, describe_gpus, load_tensorrt

CAPABILITIES = ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121")
"""What tensorrt-rtx builds for: Turing, A100, RTX 30, RTX 40, RTX 50, GB10."""

NO_FP32_PRODUCTS = ("SM75",)
"""Compute capabilities for which tensorrt-rtx has no fp32 matrix products."""

MAJORS = {"tensorrt": (10, 11), "tensorrt-rtx": (1,)}
"""Major versions that are known to build what is exported here."""

INSTALL = {
    "tensorrt": "it comes with JetPack on a Jetson (python3 -m venv --system-site-packages), elsewhere with "
    "NVIDIA's own TensorRT packages",
    "tensorrt-rtx": "pip install 'ptsr-edge[trt]'",
}


@dataclass(frozen=True)
class Flavour:
    """One TensorRT and whether it can build here.

    Attributes:
        name: `tensorrt` or `tensorrt-rtx`.
        version: None where it is not installed.
        hindrance: why it cannot build here; empty when it can.
        cross: whether it builds for GPUs that are not in the machine.
    """

    name: str
    version: str | None
    hindrance: str
    cross: bool


def find_flavour(name: str) -> Flavour:
    """What is there of one flavour.

    Raises:
        InputError: there is no flavour of that name.
    """
    if name not in MODULES:
        raise InputError(f"unknown TensorRT flavour {name!r}; accepted: {', '.join(MODULES)}")
    cross = name == "tensorrt-rtx"
    try:
        version = str(load_tensorrt(name)[1].__version__)
    except BuildError as error:
        return Flavour(name, None, f"not installed ({error}): {INSTALL[name]}", cross)
    major = int(version.split(".")[0])
    if major not in MAJORS[name]:
        wanted = " or ".join(f"{known}.x" for known in MAJORS[name])
        return Flavour(name, version, f"version {version} is installed, {wanted} is needed", cross)
    if not cross and not describe_gpus():
        return Flavour(name, version, "it builds on the GPU itself, and no NVIDIA GPU is here", cross)
    return Flavour(name, version, "", cross)


def find_flavours() -> list[Flavour]:
    """All flavours, in the order in which they are preferred."""
    return [find_flavour(name) for name in MODULES]


def choose_flavour(name: str | None) -> Flavour:
    """The one named, or the first that can build here.

    Raises:
        InputError: there is no flavour of that name.
        MissingExtraError: none that was asked for is installed.
        JobError: what is installed cannot build here.
    """
    found = [find_flavour(name)] if name else find_flavours()
    for flavour in found:
        if not flavour.hindrance:
            return flavour
    reasons = "; ".join(f"{flavour.name}: {flavour.hindrance}" for flavour in found)
    kind = JobError if any(flavour.version for flavour in found) else MissingExtraError
    raise kind(f"no TensorRT can build here: {reasons}")


def choose_capabilities(flavour: Flavour, precision: str, asked: Sequence[str] | None) -> list[str]:
    """The compute capabilities to build for: those asked for, else all that the precision allows.

    Empty where the flavour builds for the GPU in the machine.

    Args:
        asked: such as `8.6`, `86`, `sm_86` or `SM86`.

    Raises:
        InputError: an unknown capability, one that the precision is not to be had on, or any for a
            flavour that builds for the GPU in the machine only.
    """
    allowed = [name for name in CAPABILITIES if precision != "fp32" or name not in NO_FP32_PRODUCTS]
    if not flavour.cross:
        if asked:
            raise InputError(f"{flavour.name} builds for the GPU in the machine only, got {', '.join(asked)}")
        return []
    names = list(dict.fromkeys(read_capability(text) for text in asked)) if asked is not None else allowed
    if not names:
        raise InputError(f"no compute capability given; accepted: {', '.join(allowed)}")
    for name in names:
        if name not in allowed:
            raise InputError(f"tensorrt-rtx has no fp32 matrix products for {name}: fp16 and int8 do build")
    return names


def read_capability(text: str) -> str:
    """A compute capability as TensorRT writes it: `8.6`, `86` or `sm_86` -> `SM86`.

    Raises:
        InputError: not one of `CAPABILITIES`.
    """
    match = re.fullmatch(r"(?:sm_?)?(\d+)\.?(\d)", str(text).strip(), flags=re.IGNORECASE)
    name = f"SM{match[1]}{match[2]}" if match else ""
    if name not in CAPABILITIES:
        known = ", ".join(f"{entry[2:-1]}.{entry[-1]}" for entry in CAPABILITIES)
        raise InputError(f"unknown compute capability {text!r}; tensorrt-rtx builds for {known}")
    return name
