"""The small pieces, by pytest-benchmark: `make bench`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ptsr_edge import Session
from ptsr_edge.core.config import Preprocess
from ptsr_edge.data.synthetic_clips import render_clip
from ptsr_edge.export.exporter import export_bundle
from ptsr_edge.vision.flow import flow_sample, normalise, optical_strain

SIZE = 112


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "bundle"
    export_bundle(out=folder, model="ptsr-tiny", budgets=[1.0, 0.25], precisions=["fp32"])
    return folder


def test_flow_of_a_frame_pair(benchmark) -> None:
    onset, apex, _ = render_clip(0, 0, SIZE)
    assert benchmark(flow_sample, onset, apex, Preprocess(image_size=SIZE)).shape == (SIZE, SIZE, 3)


def test_strain(benchmark) -> None:
    field = np.random.default_rng(0).normal(size=(SIZE, SIZE, 2)).astype(np.float32)
    assert benchmark(optical_strain, field).shape == (SIZE, SIZE)


def test_normalise(benchmark) -> None:
    sample = np.random.default_rng(0).normal(size=(SIZE, SIZE, 3)).astype(np.float32)
    assert benchmark(normalise, sample).shape == sample.shape


@pytest.mark.parametrize("budget", [1.0, 0.25])
def test_predict(benchmark, bundle: Path, budget: float) -> None:
    session = Session.open(bundle, budget=budget, precision="fp32", threads=1)
    sample = np.random.default_rng(0).normal(size=(SIZE, SIZE, 3)).astype(np.float32)
    assert benchmark(session.predict, sample).label in session.bundle.labels
