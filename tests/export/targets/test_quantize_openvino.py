"""What of a graph becomes 8 bits in OpenVINO, and that the answers do not depend on the CPU's instructions."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from openvino_models import request_for, samples, write_graphs

import ptsr_edge
from ptsr_edge.export.targets.base import Artifact, Graph

ov = pytest.importorskip("openvino", reason="openvino is missing: pip install 'ptsr-edge[openvino]'")
pytest.importorskip("nncf", reason="nncf is missing: pip install 'ptsr-edge[openvino]'")

from ptsr_edge.export.targets.openvino import (  # noqa: E402  # noqa: E402
    OpenVinoTarget,
    read_onnx,
    reads_means,
    selection_only,
    without_weight_matrix,
)

TARGET = OpenVinoTarget()
EMULATOR = "qemu-x86_64-static"
ANSWERS = """
import json, sys, numpy as np
from pathlib import Path
from ptsr_edge.runtimes.openvino import OpenVinoRunner
runner = OpenVinoRunner(Path(sys.argv[1]), threads=1)
print(json.dumps([runner.run(one[None])[0].tolist() for one in np.load(sys.argv[2])]))
"""


@pytest.fixture(scope="module")
def graphs(ptsr_config, randomised, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    return write_graphs(tmp_path_factory.mktemp("ov") / "graphs", randomised(ptsr_config(score="strain")))


@pytest.fixture(scope="module")
def built(graphs: dict[int, Graph], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Artifact]:
    """int8 artifacts by token count."""
    return TARGET.build(request_for(tmp_path_factory.mktemp("ov") / "out", graphs, "int8"))


def test_layers_that_are_named_stay_in_float(
    graphs: dict[int, Graph], built: dict[int, Artifact], tmp_path: Path
) -> None:
    kept = TARGET.build(request_for(tmp_path / "kept", graphs, "int8", keep_float=["blocks.0.tail.mlp.fc1"]))
    counts = [each[8].path.read_text().count('type="FakeQuantize"') for each in (built, kept)]
    assert counts[1] < counts[0]
    assert kept[8].built_with["keep_float"] == ["blocks.0.tail.mlp.fc1"]


def test_what_stays_in_float_without_being_named(graphs: dict[int, Graph]) -> None:
    model = read_onnx(ov, graphs[8].path)
    types = {
        operation.get_friendly_name(): operation.get_type_name() for operation in model.get_ordered_ops()
    }
    # Selection by strain: one channel is cut out, averaged over each patch, and laid in a row.
    assert sorted(types[name] for name in selection_only(model)) == ["AvgPool", "Reshape", "Slice"]
    # Two products of attention in each of three blocks, and the readout by position.
    assert len(without_weight_matrix(model)) == 2 * 3 + 1


def test_the_read_out_of_the_means_stays_in_float(ptsr_config, randomised, tmp_path: Path) -> None:
    config = ptsr_config(score="strain", mean_readout=True)
    means = write_graphs(tmp_path / "graphs", randomised(config))
    assert {name.partition("/")[0] for name in reads_means(read_onnx(ov, means[8]))} == {"means.linear"}
    plain = write_graphs(tmp_path / "plain", randomised(config.model_copy(update={"mean_readout": False})))
    assert reads_means(read_onnx(ov, plain[8])) == set()


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not shutil.which(EMULATOR),
    reason=f"{EMULATOR} is missing: apt-get install qemu-user-static",
)
def test_int8_answers_alike_on_a_cpu_without_vnni(built: dict[int, Artifact], tmp_path: Path) -> None:
    np.save(tmp_path / "samples.npy", samples(8) * 3)  # beyond the calibrated range: saturated activations
    call = [sys.executable, "-c", ANSWERS, str(built[16].path), str(tmp_path / "samples.npy")]
    # An emulated program does not find its virtual environment.
    call[0] = str(Path(sys.executable).resolve())
    packages = os.pathsep.join([sysconfig.get_path("purelib"), str(Path(ptsr_edge.__file__).parents[1])])
    answers = []
    for emulator in ([], [EMULATOR, "-cpu", "Haswell"]):
        done = subprocess.run(
            [*emulator, *call],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONPATH": packages},
        )
        answers.append(np.array(json.loads(done.stdout)))
    # Integer sums are exact unless they overflow; float32 between them rounds in another order, which at
    # worst moves an activation by one step (1/127 of its range).
    assert np.abs(answers[0] - answers[1]).max() < 0.1
    assert np.median(np.abs(answers[0] - answers[1])) < 0.01
