"""Bundles of target trt, which most machines can judge through their typed graphs only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def typed_bundle(tiny_checkpoint: Path, megc_folder: Path) -> Callable[..., Path]:
    """Exports the fp16 bundle of target trt at 16 and 4 tokens to a folder; other arguments are the target's."""
    from ptsr_edge.export.exporter import export_bundle

    def export(folder: Path, **options: object) -> Path:
        export_bundle(
            out=folder, checkpoint=tiny_checkpoint, target="trt", budgets=(1.0, 0.25), precisions=("fp16",),
            calibration=megc_folder, options=options, cache=True,
        )  # fmt: skip
        return folder

    return export


@pytest.fixture(scope="session")
def graphs_only(typed_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return typed_bundle(tmp_path_factory.mktemp("trt") / "bundle", onnx_only=True)
