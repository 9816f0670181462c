"""IR is built by the real OpenVINO and NNCF, says how it runs, and answers as the fp32 graph does."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from openvino_models import TOKENS, request_for, samples, write_graphs

from ptsr_edge.backend_ort import OrtRunner
from ptsr_edge.errors import InputError, JobError

ov = pytest.importorskip("openvino", reason="openvino is missing: pip install 'ptsr-edge[openvino]'")

from ptsr_edge.target_openvino import OpenVinoTarget  # noqa: E402

TARGET = OpenVinoTarget()


@pytest.fixture(scope="module")
def graphs(ptsr_config, randomised, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    return write_graphs(tmp_path_factory.mktemp("ov") / "graphs", randomised(ptsr_config(score="strain")))


# fp32: rounding in another order. fp16 and bf16 keep 11 and 8 bits, over a depth of 3 on logits of a few
# units. int8 rounds to 1/255 of each range.
@pytest.mark.parametrize(
    ("precision", "limit"), [("fp32", 1e-4), ("fp16", 0.1), ("bf16", 0.6), ("int8", 1.5)]
)
def test_every_precision_answers_as_fp32_does(
    graphs: dict[int, Path], tmp_path: Path, precision: str, limit: float
) -> None:
    artifacts = TARGET.build(request_for(tmp_path / "out", graphs, precision))
    assert set(artifacts) == set(TOKENS)
    assert (
        len({path for artifact in artifacts.values() for path in artifact.files if path.suffix == ".bin"})
        == 1
    )
    for tokens, artifact in artifacts.items():
        runner = TARGET.runner(artifact, threads=1)
        if runner is None:
            pytest.skip(f"this CPU cannot calculate in {artifact.runs_on['inference_precision']}")
        exact = OrtRunner(graphs[tokens], threads=1)
        for one in samples(4):
            logits, kept = runner.run(one[None])
            expected, chosen = exact.run(one[None])
            assert np.abs(logits - expected).max() <= limit
            assert kept is not None
            assert chosen is not None
            # Selection by strain reads the input: the same tokens up to the order of equals.
            assert len(set(kept.tolist()) & set(chosen.tolist())) >= 0.85 * tokens


def test_the_ir_tells_other_tools_what_it_is(graphs: dict[int, Path], tmp_path: Path) -> None:
    artifact = TARGET.build(request_for(tmp_path / "out", graphs, "fp32"))[8]
    root = ElementTree.parse(artifact.path).getroot()
    info = {node.tag: node.attrib.get("value") for node in root.iterfind("rt_info/model_info/*")}
    assert info["model_type"] == "Classification"
    assert info["labels"] == "negative positive surprise"


def test_layers_that_are_named_stay_in_float(graphs: dict[int, Path], tmp_path: Path) -> None:
    plain = TARGET.build(request_for(tmp_path / "all", graphs, "int8"))[8]
    kept = TARGET.build(request_for(tmp_path / "kept", graphs, "int8", keep_float=["blocks.0.tail.mlp.fc1"]))[
        8
    ]
    count = [artifact.path.read_text().count('type="FakeQuantize"') for artifact in (plain, kept)]
    assert count[1] < count[0]


def test_wrong_requests(graphs: dict[int, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no precision 'int4'; it has: fp32"):
        TARGET.build(request_for(tmp_path / "a", graphs, "int4"))
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    with pytest.raises(JobError, match="cannot read broken"):
        TARGET.build(request_for(tmp_path / "b", {4: broken}, "fp32"))
