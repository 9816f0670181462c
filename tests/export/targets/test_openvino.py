"""IR is built by the real OpenVINO and NNCF, says how it runs, and answers as the fp32 graph does."""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from openvino_models import TOKENS, request_for, samples, write_graphs

import ptsr_edge
from ptsr_edge.core.config import Preprocess
from ptsr_edge.core.errors import InputError, JobError
from ptsr_edge.export.onnx_graph import MEANS, layer_of
from ptsr_edge.export.targets.base import Artifact, Graph
from ptsr_edge.runtimes.onnxruntime import OrtRunner

ov = pytest.importorskip("openvino", reason="openvino is missing: the extra openvino brings it")
pytest.importorskip("nncf", reason="nncf is missing: the extra openvino-build brings it")

from ptsr_edge.export.targets.openvino import (  # noqa: E402
    INFERENCE_PRECISION,
    OpenVinoTarget,
    WeightsPool,
    keep_reduced_axes,
    read_onnx,
    save,
    selection_only,
    without_weight_matrix,
)
from ptsr_edge.runtimes.openvino import (  # noqa: E402
    OpenVinoRunner,
    can_calculate,
    compile_model,
    matrix_products,
    read_ir,
)

pytestmark = pytest.mark.slow

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
def graphs(ptsr_config, randomised, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Graph]:
    return write_graphs(tmp_path_factory.mktemp("ov") / "graphs", randomised(ptsr_config(score="strain")))


@pytest.fixture(scope="module")
def built(
    graphs: dict[int, Graph], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[int, Artifact]]:
    """Artifacts by precision and token count."""
    folder = tmp_path_factory.mktemp("ov") / "out"
    return {
        precision: TARGET.build(request_for(folder, graphs, precision)) for precision in TARGET.precisions
    }


# fp32: rounding in another order. fp16 and bf16 keep 11 and 8 bits, over a depth of 3 on logits of a few
# units. int8 rounds activations to 1/127 and weights to 1/63 of each range.
@pytest.mark.parametrize(
    ("precision", "limit"), [("fp32", 1e-4), ("fp16", 0.1), ("bf16", 0.6), ("int8", 1.5)]
)
def test_every_precision_answers_as_fp32_does(
    graphs: dict[int, Graph], built: dict[str, dict[int, Artifact]], precision: str, limit: float
) -> None:
    assert set(built[precision]) == set(TOKENS)
    for tokens, artifact in built[precision].items():
        runner = TARGET.runner(artifact, threads=1)
        if runner is None:
            pytest.skip(f"this CPU cannot calculate in {artifact.runs_on['inference_precision']}")
        exact = OrtRunner(graphs[tokens].path, threads=1)
        for one in samples(4):
            logits, kept = runner.run(one[None])
            expected, chosen = exact.run(one[None])
            assert np.abs(logits - expected).max() <= limit
            assert kept is not None
            assert chosen is not None
            # Selection by strain reads the input, which no precision may round: the scores are drawn, so
            # there are no ties.
            assert set(kept.tolist()) == set(chosen.tolist())


# Matrix products of the model: DNSPT (kernel, cell map, two by the cells' weights), five a block, the head's
# global part and its readout by position; the runtime fuses attention with what surrounds it.
@pytest.mark.parametrize(
    ("precision", "types", "weights"),
    [("fp32", {"f32"}, "f32"), ("bf16", {"bf16"}, "f16"), ("int8", {"i8", "u8", "f32"}, "i8")],
)
def test_what_it_runs_in_is_recorded(
    built: dict[str, dict[int, Artifact]], precision: str, types: set[str], weights: str
) -> None:
    for artifact in built[precision].values():
        assert artifact.runs_on["inference_precision"] == INFERENCE_PRECISION[precision]
        assert artifact.built_with["weights"] == weights
        if not can_calculate(INFERENCE_PRECISION[precision].split()):
            assert artifact.built_with["read_back"] is None
            continue
        products = artifact.built_with["read_back"]["matrix_products"]
        assert set(products) <= types
        if precision == "int8":
            assert sum(products.get(kind, 0) for kind in ("i8", "u8")) >= 15  # five in each of three blocks


def test_budgets_share_one_weights_file(
    graphs: dict[int, Graph], built: dict[str, dict[int, Artifact]], tmp_path: Path
) -> None:
    names = [path for each in built["fp32"].values() for path in each.files if path.suffix == ".bin"]
    assert len(names) == len(TOKENS)
    assert len({path.stat().st_ino for path in names}) == 1
    weights = names[0]
    alone = [
        TARGET.build(request_for(tmp_path / str(tokens), {tokens: graph}, "fp32"))[tokens].files[1]
        for tokens, graph in graphs.items()
    ]
    sizes = [path.stat().st_size for path in alone]
    # All but the masks and index tables, which depend on the budget, is there once.
    assert weights.stat().st_size < 1.2 * max(sizes)


def test_half_precisions_share_their_weights(built: dict[str, dict[int, Artifact]]) -> None:
    assert len({each[8].files[1].stat().st_ino for each in (built["fp16"], built["bf16"])}) == 1
    assert len({each[8].files[1].stat().st_ino for each in built.values()}) == 3


def test_weights_are_copied_where_there_are_no_links(
    graphs: dict[int, Graph], built: dict[str, dict[int, Artifact]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr("os.link", no_links)
    for tokens, artifact in TARGET.build(request_for(tmp_path, graphs, "fp32")).items():
        assert artifact.files[1].read_bytes() == built["fp32"][tokens].files[1].read_bytes()
        assert artifact.files[1].stat().st_nlink == 1


def test_a_second_build_replaces_the_weights_of_all_budgets(graphs: dict[int, Graph], tmp_path: Path) -> None:
    TARGET.build(request_for(tmp_path, graphs, "fp32"))
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for path in tmp_path.glob("*.bin"):
        path.unlink()
        path.write_bytes(b"of an earlier build")
    TARGET.build(request_for(tmp_path, graphs, "fp32"))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first


@pytest.mark.parametrize("precision", TARGET.precisions)
def test_plain_openvino_opens_an_ir_and_with_its_configuration_answers_as_the_runner_does(
    built: dict[str, dict[int, Artifact]], precision: str
) -> None:
    """What no IR can say, `runs_on` does: left alone, OpenVINO picks the arithmetic by the CPU, for every IR alike."""
    artifact = built[precision][8]
    config = artifact.runs_on["config"]
    if not can_calculate([config["INFERENCE_PRECISION_HINT"]]):
        pytest.skip(f"this CPU cannot calculate in {config['INFERENCE_PRECISION_HINT']}")
    core = ov.Core()
    compiled = core.compile_model(core.read_model(artifact.path), "CPU", config)
    assert set(matrix_products(compiled)) <= {INFERENCE_PRECISION[precision].split()[-1], "f32", "i8", "u8"}
    runner = OpenVinoRunner(artifact.path, threads=1)
    for one in samples(4):
        expected, kept = runner.run(one[None])
        answer = compiled([one[None]])
        # The same kernels; a CPU that has float16 gives the runner 11 bits where plain OpenVINO is told 24.
        np.testing.assert_allclose(
            answer["logits"][0], expected, rtol=0, atol=0.1 if precision == "fp16" else 1e-5
        )
        np.testing.assert_array_equal(answer["kept"][0], kept)


def test_plain_openvino_without_a_configuration_runs_the_bf16_ir_in_bf16(
    built: dict[str, dict[int, Artifact]],
) -> None:
    if not can_calculate(["bf16"]):
        pytest.skip("this CPU cannot calculate in bf16")
    core = ov.Core()
    products = matrix_products(core.compile_model(core.read_model(built["bf16"][8].path), "CPU"))
    assert set(products) <= {"bf16", "f32"}
    assert products["bf16"] >= 15  # five in each of three blocks


def test_benchmark_app_opens_every_ir(built: dict[str, dict[int, Artifact]]) -> None:
    program = shutil.which("benchmark_app", path=sysconfig.get_path("scripts"))
    if program is None:
        pytest.skip("benchmark_app is missing: it comes with openvino")
    silenced = "import sys; sys.modules['openvino_telemetry'] = None; import runpy; sys.argv = sys.argv[1:]; "
    silenced += "runpy.run_path(sys.argv[0], run_name='__main__')"
    for artifacts in built.values():
        call = [sys.executable, "-c", silenced, program, "-m", str(artifacts[8].path), "-d", "CPU"]
        call += ["-niter", "2", "-nireq", "1", "-nstreams", "1", "-hint", "none"]
        done = subprocess.run(call, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Count:            2 iterations" in done.stdout


def test_a_build_leaves_nothing_else_behind(built: dict[str, dict[int, Artifact]]) -> None:
    artifacts = [artifact for each in built.values() for artifact in each.values()]
    files = {path for artifact in artifacts for path in artifact.files}
    assert set(artifacts[0].path.parent.iterdir()) == files
    assert not any(
        str(artifacts[0].path.parent) in path.read_text() for path in files if path.suffix == ".xml"
    )


def test_a_build_can_be_repeated_byte_for_byte(
    graphs: dict[int, Graph], built: dict[str, dict[int, Artifact]], tmp_path: Path
) -> None:
    for precision in ("fp16", "int8"):
        for artifact in TARGET.build(request_for(tmp_path / "again", graphs, precision)).values():
            for path in artifact.files:
                first = built[precision][TOKENS[0]].path.parent / path.name
                assert path.read_bytes() == first.read_bytes(), path.name


def test_the_ir_tells_other_tools_what_it_is(built: dict[str, dict[int, Artifact]]) -> None:
    for precision, artifacts in built.items():
        root = ElementTree.parse(artifacts[8].path).getroot()
        info = {node.tag: node.attrib.get("value") for node in root.iterfind("rt_info/model_info/*")}
        # The keys that ClassificationModel of OpenVINO Model API 0.4 and DL Streamer's label converter read.
        assert info["model_type"] == "Classification"
        assert info["labels"] == "negative positive surprise"
        assert (info["multilabel"], info["hierarchical"], info["output_raw_scores"]) == (
            "False",
            "False",
            "True",
        )
        assert (info["input_dtype"], info["resize_type"], info["reverse_input_channels"]) == (
            "f32", "standard", "False",
        )  # fmt: skip
        assert (info["input_frame_height"], info["input_frame_width"]) == ("32", "32")
        assert Preprocess(**json.loads(info["preprocess"] or "")) == Preprocess(image_size=32)
        own = {node.tag: node.attrib.get("value") for node in root.iterfind("rt_info/ptsr_edge/*")}
        assert own == {"precision": precision, "inference_precision": INFERENCE_PRECISION[precision]}


def test_bf16_holds_where_only_the_class_token_is_read(ptsr_config, randomised, tmp_path: Path) -> None:
    # With the class key masked in place of dropped, OpenVINO's bf16 is wrong by half of the logits' size.
    if not can_calculate(["bf16"]):
        pytest.skip("this CPU cannot calculate in bf16")
    graphs = write_graphs(tmp_path / "graphs", randomised(ptsr_config(score="strain", local_readout=False)))
    for tokens, artifact in TARGET.build(request_for(tmp_path / "out", graphs, "bf16")).items():
        runner, exact = TARGET.runner(artifact, threads=1), OrtRunner(graphs[tokens].path, threads=1)
        assert runner is not None
        pairs = [(runner.run(one[None])[0], exact.run(one[None])[0]) for one in samples(8)]
        found, expected = (np.array(side) for side in zip(*pairs, strict=True))
        # 8 bits are 2^-9 relative a rounding; 5 % leaves room for a depth of 3.
        assert np.abs(found - expected).max() <= 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_what_only_serves_the_selection_is_calculated_in_float32(
    precision: str, ptsr_config, randomised, tmp_path: Path
) -> None:
    """Read back from what was compiled: the softmax of the scores, and for contrast all else."""
    kind = INFERENCE_PRECISION[precision].split()[0]
    if not can_calculate([kind]):
        pytest.skip(f"this CPU cannot calculate in {kind}")
    graphs = write_graphs(tmp_path / "graphs", randomised(ptsr_config(score="class-attention")))
    artifact = TARGET.build(request_for(tmp_path / "out", graphs, precision))[TOKENS[1]]
    names = selection_only(read_ir(ov.Core(), artifact.path))
    model = read_ir(ov.Core(), artifact.path)
    compiled = compile_model(ov.Core(), model, kind, 1, "m")
    scores, others = set(), set()
    for node in compiled.get_runtime_model().get_ordered_ops():
        said = {key: node.get_rt_info()[key].astype(str) for key in ("layerType", "originalLayersNames")}
        ran = node.get_rt_info()["runtimePrecision"].astype(str)
        if names.isdisjoint(said["originalLayersNames"].split(",")):
            others.add(ran)
        elif said["layerType"] == "Softmax":
            scores.add(ran)
    assert scores == {"f32"}
    assert kind in others


def test_a_transpose_after_a_reduction_is_not_lost() -> None:
    # logits (1, 3) + (the sum of five (3, 1))^T, by hand: [0, 1, 2] + [5, 10, 15]
    ops = ov.opset13
    rows, logits = ops.parameter([5, 3, 1], ov.Type.f32), ops.parameter([1, 3], ov.Type.f32)
    total = ops.transpose(
        ops.reduce_sum(rows, ops.constant(np.array([0])), False), ops.constant(np.array([1, 0]))
    )
    model = ov.Model([ops.add(logits, total)], [rows, logits], "m")
    (reduction,) = (one for one in model.get_ordered_ops() if one.get_type_name() == "ReduceSum")
    reduction.set_friendly_name("scores")
    keep_reduced_axes(ov, model)
    # No name of the process's own: it would stand in what NNCF writes, and differ from build to build.
    assert [
        one.get_friendly_name() for one in model.get_ordered_ops() if one.get_type_name() == "Squeeze"
    ] == ["scores/squeeze"]
    each = np.broadcast_to(np.array([1, 2, 3], np.float32).reshape(1, 3, 1), (5, 3, 1)).copy()
    answer = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(
        [each, np.array([[0, 1, 2]], np.float32)]
    )[0]
    np.testing.assert_array_equal(answer, [[5, 11, 17]])


def test_weights_that_do_not_hold_a_constant_are_refused(
    built: dict[str, dict[int, Artifact]], tmp_path: Path
) -> None:
    xml = tmp_path / "cut.xml"
    xml.write_bytes(built["fp32"][8].path.read_bytes())
    xml.with_suffix(".bin").write_bytes(b"\0" * 16)
    with pytest.raises(JobError, match=r"cut\.xml names bytes \d+ to \d+ of 16 bytes of weights"):
        WeightsPool().move_constants(xml)


def test_wrong_requests(graphs: dict[int, Graph], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no precision 'int4'; it has: fp32, fp16, bf16, int8"):
        TARGET.build(request_for(tmp_path / "a", graphs, "int4"))
    with pytest.raises(
        InputError, match="keep_float names 'blocks.9', which is a layer of none of the graphs"
    ):
        TARGET.build(request_for(tmp_path / "b", graphs, "fp32", keep_float=["blocks.9"]))
    request = request_for(tmp_path / "c", graphs, "int8")
    object.__setattr__(request, "calibration", samples(0))
    with pytest.raises(InputError, match="int8 needs calibration samples, got none"):
        TARGET.build(request)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    with pytest.raises(JobError, match="cannot read broken"):
        TARGET.build(request_for(tmp_path / "d", {4: Graph(broken, graphs[8].model)}, "fp32"))
    assert not list((tmp_path / "d").iterdir())


def test_an_ir_that_cannot_be_written_is_one_line(graphs: dict[int, Graph], tmp_path: Path) -> None:
    model = read_onnx(ov, graphs[8].path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(JobError, match=r"cannot write .*file/model\.xml: .*; is there room\?") as caught:
        save(ov, model, tmp_path / "file" / "model.xml", "fp32")
    assert "\n" not in str(caught.value)


def test_an_ir_that_is_cut_short_is_not_taken_over(graphs: dict[int, Graph], tmp_path: Path) -> None:
    path = tmp_path / "model.xml"
    save(ov, read_onnx(ov, graphs[8].path), path, "fp32")
    WeightsPool().move_constants(path)
    text, weights = path.read_bytes(), path.with_suffix(".bin")
    path.write_bytes(text[: len(text) // 2])
    with pytest.raises(JobError, match=r"model\.xml: not all of it is there"):
        WeightsPool().move_constants(path)
    path.write_bytes(text)
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(JobError, match=r"model\.xml names bytes \d+ to \d+ of \d+ bytes of weights"):
        WeightsPool().move_constants(path)


def test_layers_that_are_named_stay_in_float(
    graphs: dict[int, Graph], built: dict[str, dict[int, Artifact]], tmp_path: Path
) -> None:
    kept = TARGET.build(request_for(tmp_path / "kept", graphs, "int8", keep_float=["blocks.0.tail.mlp.fc1"]))
    counts = [each[8].path.read_text().count('type="FakeQuantize"') for each in (built["int8"], kept)]
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


@pytest.mark.parametrize("hidden", [0, 8])
def test_the_read_out_of_the_means_stays_in_float(
    ptsr_config, randomised, tmp_path: Path, hidden: int
) -> None:
    config = ptsr_config(score="strain", mean_readout=True, mean_hidden=hidden, depth=1)
    graphs = write_graphs(tmp_path / "graphs", randomised(config))
    built = TARGET.build(request_for(tmp_path / "int8", graphs, "int8"))
    products = {
        layer_of(operation.get_friendly_name()): operation.input_value(0).get_node().get_type_name()
        for operation in read_ir(ov.Core(), built[8].path).get_ordered_ops()
        if operation.get_type_name() == "MatMul"
    }
    means = {layer for layer in products if layer.startswith("means.")}
    assert means == (set(MEANS) if hidden else {"means.linear"})
    assert {layer for layer, read in products.items() if read == "FakeQuantize"}.isdisjoint(means)
    assert "FakeQuantize" in products.values()


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not shutil.which(EMULATOR),
    reason=f"{EMULATOR} is missing: apt-get install qemu-user-static",
)
def test_int8_answers_alike_on_a_cpu_without_vnni(
    built: dict[str, dict[int, Artifact]], tmp_path: Path
) -> None:
    np.save(tmp_path / "samples.npy", samples(8) * 3)  # beyond the calibrated range: saturated activations
    call = [sys.executable, "-c", ANSWERS, str(built["int8"][16].path), str(tmp_path / "samples.npy")]
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
