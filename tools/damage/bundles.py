"""Real bundles that answers are sought in, exported once into the material."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from damage.trial import end, start
from damage.work import MODEL
from ptsr_edge.bundle import read_bundle
from ptsr_edge.core.errors import MissingExtraError
from ptsr_edge.core.files import staged_folder
from ptsr_edge.runtimes.openvino import CAPABILITY, load_openvino

PRECISIONS = {"cpu": ("fp32", "int8"), "openvino": ("fp32", "fp16", "bf16", "int8")}


def targets() -> list[str]:
    """Returns the targets whose bundles run on any processor and can be built here."""
    try:
        load_openvino()
    except MissingExtraError:
        return ["cpu"]
    return ["cpu", "openvino"]


def precisions(target: str) -> list[str]:
    """Returns the precisions that this processor calculates in: bf16 and fp16 are not for all."""
    if target == "cpu":
        return list(PRECISIONS["cpu"])
    able = load_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    types = {"fp16": "f16", "bf16": "bf16"}
    return [one for one in PRECISIONS[target] if one not in types or CAPABILITY[types[one]] in able]


def bundle_of(target: str, material: Path) -> Path:
    """Returns the smallest trained model's bundle in all precisions, at two budgets."""
    folder = material / f"{MODEL}-{target}"
    if not folder.is_dir():
        with staged_folder(folder) as stage:
            call = ["export", "--model", MODEL, "--target", target, "--precision", ",".join(precisions(target)),
                    "--budgets", "1.0,0.25", "--out", str(stage / "bundle")]  # fmt: skip
            done = end(start(call, stage, material / "full-cache"))
            assert done.code == 0, done.said
            assert read_bundle(stage / "bundle").variants
    return folder / "bundle"


def flows(draw: np.random.Generator, count: int, side: int) -> NDArray[np.float32]:
    """Draws samples (n, side, side, 3): strain is not negative."""
    found = draw.normal(0, 1, (count, side, side, 3)).astype(np.float32)
    found[..., 2] = np.abs(found[..., 2])
    return found
