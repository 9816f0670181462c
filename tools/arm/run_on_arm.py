"""Answers of every ONNX Runtime variant of a bundle on the machine that runs this, as JSON.

    python run_on_arm.py BUNDLE SAMPLES.npz ANSWERS.json

It needs what a device has and no more: ptsr_edge, numpy, ONNX Runtime. So it also runs on a real board.
"""

from __future__ import annotations

import hashlib
import platform
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptsr_edge import Session
from ptsr_edge.bundle import read_bundle
from ptsr_edge.core.files import write_json


def answers(bundle: Path, flows: NDArray[np.float32]) -> dict[str, Any]:
    """What each variant of target cpu says of samples (n, H, W, 3), and what it ran on.

    Returns:
        `machine`, `python`, `packages` (all that Python finds here, with their versions), `samples_sha256`,
        and `variants`: by id, `sha256` of the artifact's files, `logits` (n lists of k), `kept` (n lists of K).
    """
    found = {}
    for variant in read_bundle(bundle).variants:
        if variant.target != "cpu":
            continue
        print(variant.id, file=sys.stderr, flush=True)
        session = Session.open(
            bundle, budget=variant.keep_rate, target="cpu", precision=variant.precision, threads=1
        )
        predictions = [session.predict(flow) for flow in flows]
        found[variant.id] = {
            "sha256": [file.sha256 for file in variant.files],
            "logits": [prediction.logits.tolist() for prediction in predictions],
            "kept": [prediction.kept_tokens.tolist() for prediction in predictions],
        }
    packages: dict[str, str] = {}
    for one in distributions():  # in the order of the search path: the first is the one that is imported
        packages.setdefault(one.metadata["Name"].lower().replace("_", "-"), one.version)
    return {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "packages": dict(sorted(packages.items())),
        "samples_sha256": hashlib.sha256(np.ascontiguousarray(flows, dtype="<f4").data).hexdigest(),
        "variants": found,
    }


if __name__ == "__main__":
    folder, samples, out = map(Path, sys.argv[1:])
    write_json(out, answers(folder, np.load(samples)["flows"]))
