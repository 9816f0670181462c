"""Shared by the tests: small models with telling weights, a bundle, and a data folder.

What `build_model` draws is nearly neutral (norms of 1, biases of 0, one temperature): a mix-up of two
weights would not show. `randomised` redraws everything.
"""

from __future__ import annotations

import os

# Before numpy is loaded, and for what the tests start: on the cores that the processes of a run share, threads of BLAS and
# OpenMP spin for one another, and a clip took ten times as long to render.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ptsr_edge.core.config import LABELS, ModelConfig, Preprocess
from ptsr_edge.models.checkpoint import CheckpointInfo, save_checkpoint
from ptsr_edge.models.ptsr import Model, build_model

torch.set_num_threads(1)

Build = Callable[..., ModelConfig]
Randomised = Callable[[ModelConfig], Model]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the pages first: they take longest of all files, and what they export is then in the cache for the others."""
    items.sort(key=lambda item: item.path.name != "test_pages.py")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or fills the cache of the person who runs it; all processes of a run share one.

    What is exported or rendered in several tests is made once. A test of the making itself sets a cache of its own.
    """
    base = tmp_path_factory.getbasetemp()
    run = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PTSR_EDGE_CACHE", str(run / "cache"))
        yield


@pytest.fixture(scope="session")
def ptsr_config() -> Build:
    """A PTSR of 4 x 4 patches of 8 pixels, or with fields changed."""

    def build(**changes: Any) -> ModelConfig:
        small = dict(
            name="ptsr-test",
            kind="ptsr",
            image_size=32,
            patch_size=8,
            dim=24,
            depth=3,
            heads=2,
            mlp_ratio=2.0,
        )
        return ModelConfig(**small | changes)

    return build


@pytest.fixture(scope="session")
def randomised() -> Randomised:
    """A model in evaluation mode with every weight and every BatchNorm statistic drawn, seed 0."""

    def draw(config: ModelConfig) -> Model:
        model = build_model(config, seed=0)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, value in model.named_parameters():
                noise = torch.randn(value.shape, generator=generator)
                if name.endswith("attn.scale"):
                    value.copy_(0.5 + 0.3 * noise)
                elif (
                    name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "gamma")) or "norm_" in name
                ):
                    value.copy_((1.0 if name.endswith(("weight", "gamma")) else 0.0) + 0.2 * noise)
                elif value.ndim == 2:
                    value.copy_(noise * value.shape[1] ** -0.5)
                else:
                    value.copy_(0.3 * noise)
            for name, value in model.named_buffers():
                if name.endswith("running_mean"):
                    value.copy_(0.3 * torch.randn(value.shape, generator=generator))
                elif name.endswith("running_var"):
                    value.copy_(0.5 + torch.rand(value.shape, generator=generator))
        return model.eval()

    return draw


@pytest.fixture(scope="session")
def tiny_checkpoint(
    ptsr_config: Build, randomised: Randomised, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A checkpoint of the small PTSR that selects by the class token's attention in its second block.

    Its card says that it was trained on three subjects of `megc_folder`, so that exports prove on those.
    """
    config = ptsr_config(select_block=1)
    info = CheckpointInfo(
        schema=1,
        model=config,
        preprocess=Preprocess(image_size=config.image_size, flow="published", global_motion="none"),
        labels=list(LABELS),
        provenance={
            "kind": "trained",
            "data": "megc-flow",
            "card": "made by a test",
            "train_subjects": ["casme2/sub00", "casme2/sub01", "casme2/sub02"],
        },
    )
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    save_checkpoint(path, randomised(config), info)
    return path


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, megc_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fp32 bundle of `tiny_checkpoint` at 16, 8 and 4 tokens; read only: copy it to change it."""
    pytest.importorskip("onnxruntime")
    from ptsr_edge.export.exporter import export_bundle

    folder = tmp_path_factory.mktemp("bundle") / "tiny-cpu"
    export_bundle(
        out=folder,
        checkpoint=tiny_checkpoint,
        budgets=(1.0, 0.5, 0.25),
        precisions=("fp32",),
        calibration=megc_folder,
        cache=True,
    )
    return folder


@pytest.fixture(scope="session")
def random_flows() -> Callable[..., NDArray[np.float32]]:
    """Flow samples (n, side, side, 3): u, v drawn around a common motion, a strain that is not negative."""

    def draw(count: int, side: int = 32, seed: int = 0) -> NDArray[np.float32]:
        flows = np.random.default_rng(seed).normal(0.3, 1.0, (count, side, side, 3)).astype(np.float32)
        flows[..., 2] = np.abs(flows[..., 2])
        return flows

    return draw


@pytest.fixture(scope="session")
def megc_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the layout of `megc-flow`: 6 subjects with 6 clips of noise, two of each class."""
    pytest.importorskip("cv2")
    from megc_data import write_megc

    return write_megc(tmp_path_factory.mktemp("megc"))
