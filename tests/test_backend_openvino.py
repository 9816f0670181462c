"""The runner: the real runtime, its precision read back, and files that are not what they should be."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from openvino_models import request_for, samples, write_graphs

from ptsr_edge.errors import JobError, PtsrError

pytest.importorskip("openvino", reason="openvino is missing: pip install 'ptsr-edge[openvino]'")

from ptsr_edge.backend_openvino import OpenVinoRunner, choose_precision
from ptsr_edge.target_openvino import OpenVinoTarget


@pytest.fixture(scope="module")
def artifact(ptsr_config, randomised, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ovrun")
    graphs = write_graphs(folder / "graphs", randomised(ptsr_config(score="strain")))
    return OpenVinoTarget().build(request_for(folder / "out", graphs, "fp32"))[8].path


def test_the_precision_is_set_and_read_back(artifact: Path) -> None:
    runner = OpenVinoRunner(artifact, threads=1)
    assert runner.inference_precision == "f32"


def test_the_same_input_gives_the_same_answer_again(artifact: Path) -> None:
    runner = OpenVinoRunner(artifact, threads=1)
    first, second = samples(2)
    logits, _ = runner.run(first[None])
    kept = logits.copy()
    runner.run(second[None])
    np.testing.assert_array_equal(logits, kept)  # an answer is the caller's own, not a view
    np.testing.assert_array_equal(runner.run(first[None])[0], kept)


def test_of_several_precisions_the_first_that_the_cpu_can() -> None:
    assert choose_precision(["f16", "f32"], ["FP32", "INT8"], "x") == "f32"
    assert choose_precision(["f16", "f32"], ["FP32", "FP16"], "x") == "f16"
    with pytest.raises(PtsrError, match="x"):
        choose_precision(["bf16"], ["FP32"], "x")


def test_a_corrupt_ir_is_refused(artifact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(artifact.parent, folder)
    (folder / artifact.name).write_text("<net>")
    with pytest.raises(JobError, match=artifact.stem):
        OpenVinoRunner(folder / artifact.name, threads=1)
