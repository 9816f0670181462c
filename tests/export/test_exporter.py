"""Graphs are traced, built and proven; a departing artifact is refused with the layer at fault; a bundle is kept.

Everything runs for real. What is tampered with is a built artifact, as a faulty tool chain would do it.
"""

from __future__ import annotations

import copy
import dataclasses
import errno
import inspect
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from bundle_data import write_tiny_bundle
from numpy.typing import NDArray
from onnx import ModelProto

from ptsr_edge.bundle import MANIFEST, Variant, check_files, read_bundle
from ptsr_edge.core.config import LABELS, ModelConfig, Preprocess
from ptsr_edge.core.errors import InputError, JobError, ParityError
from ptsr_edge.core.files import DiskCache, cache_key, sha256_of
from ptsr_edge.data.datasets import FlowDataset
from ptsr_edge.export import exporter, parity
from ptsr_edge.export.calibration import Staircase, on_steps
from ptsr_edge.export.exporter import (
    PROOF_SAMPLES,
    ExportJob,
    TracedBudget,
    build,
    data_fingerprint,
    export_bundle,
    fetch_bundle,
    prove_all,
    store_bundle,
    surroundings,
    trace_budgets,
)
from ptsr_edge.export.onnx_graph import trace, write_sharing_weights
from ptsr_edge.export.parity import DEPARTURES
from ptsr_edge.export.targets.base import Artifact, BuildRequest, Graph, Target
from ptsr_edge.export.targets.onnxruntime import CpuTarget
from ptsr_edge.export.targets.openvino import OpenVinoTarget
from ptsr_edge.export.targets.quantization import FUSED_PRODUCT
from ptsr_edge.export.targets.tensorrt import TrtTarget
from ptsr_edge.export.targets.typed_graph import TypedGraphRunner, product_types
from ptsr_edge.models.checkpoint import CheckpointInfo
from ptsr_edge.models.ptsr import Model, Ptsr, count_parameters
from ptsr_edge.runtimes.base import RUNTIMES
from ptsr_edge.runtimes.onnxruntime import OrtRunner
from ptsr_edge.stats.classification import confusion, uar
from ptsr_edge.vision.flow import to_input

pytestmark = pytest.mark.slow

pytest.importorskip("onnxruntime")

SIDE = 16
RATES = (1.0, 0.5)
TOKENS = (4, 2)
"""4 patches of 8 pixels in a frame of 16."""

FC1 = "blocks.0.tail.mlp.fc1"
Traced = dict[int, TracedBudget]


def samples_of(model: Model, count: int, seed: int) -> FlowDataset:
    """Noise, each sample labelled with what fp32 answers when it keeps all: UAR 1 by construction."""
    flows = np.random.default_rng(seed).normal(0.3, 1.0, (count, SIDE, SIDE, 3)).astype(np.float32)
    flows[..., 2] = np.abs(flows[..., 2])
    with torch.no_grad():
        answers = model(torch.from_numpy(to_input(flows)), TOKENS[0]).logits.argmax(dim=1).numpy()
    return FlowDataset(
        flows=flows,
        labels=answers,
        subjects=np.array(["s0"] * count),
        names=[f"clip{place}" for place in range(count)],
        label_names=LABELS,
        preprocess=Preprocess(image_size=SIDE),
        source="noise",
    )


@pytest.fixture(scope="module")
def job(ptsr_config: Any, randomised: Any) -> ExportJob:
    """A PTSR with one channel of an MLP's input 1000 times the others; its weights make up for it.

    In fp32 that is the same function. In int8 all channels share one range, and 255 steps over the large
    one leave none for the others.
    """
    model = randomised(ptsr_config(image_size=SIDE, depth=1, score="strain"))
    block = model.blocks[0]
    with torch.no_grad():
        block.norm2.weight[0] *= 1000
        block.norm2.bias[0] *= 1000
        block.mlp.fc1.weight[:, 0] /= 1000
    info = CheckpointInfo(
        schema=1,
        model=model.config,
        preprocess=Preprocess(image_size=SIDE),
        labels=list(LABELS),
        provenance={},
    )
    return ExportJob(
        model=model,
        info=info,
        rates=RATES,
        calibration=samples_of(model, 40, seed=0),
        judged=samples_of(model, 90, seed=1),
        options={"int8_scheme": "static"},
    )


@pytest.fixture(scope="module")
def traced(job: ExportJob, tmp_path_factory: pytest.TempPathFactory) -> Traced:
    return trace_budgets(job, tmp_path_factory.mktemp("graphs"))


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    folder = tmp_path / "stage"
    folder.mkdir()
    return folder


def prove(
    job: ExportJob, traced: Traced, stage: Path, precision: str, target: Target | None = None
) -> list[Variant]:
    target = target or CpuTarget()
    return prove_all(job, target, precision, traced, *build(job, target, precision, traced, stage), stage)


def eager(model: Model, flows: NDArray[np.float32], tokens: int) -> NDArray[np.float32]:
    with torch.no_grad():
        return np.concatenate([model(torch.from_numpy(to_input(f[None])), tokens).logits for f in flows])


def scale_layer(models: Iterable[onnx.ModelProto], layer: str) -> None:
    """Makes the weights of a layer 1 % larger, in place."""
    for model in models:
        node = next(node for node in model.graph.node if node.name == layer)
        weights = next(tensor for tensor in model.graph.initializer if tensor.name in node.input)
        values = onnx.numpy_helper.to_array(weights) * np.float32(1.01)
        weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))


class Tampering(CpuTarget):
    """A tool chain at fault: the weights of one layer come out 1 % too large."""

    def __init__(self, layer: str) -> None:
        self.layer = layer

    def build(self, request: BuildRequest) -> dict[int, Artifact]:
        built = super().build(request)
        models = {artifact.path: onnx.load(artifact.path) for artifact in built.values()}
        scale_layer(models.values(), self.layer)
        write_sharing_weights(models, next(iter(built.values())).files[1])
        return built


class TamperingIr(OpenVinoTarget):
    """The same fault, in an IR."""

    def __init__(self, layer: str, scratch: Path) -> None:
        self.layer, self.scratch = layer, scratch

    def build(self, request: BuildRequest) -> dict[int, Artifact]:
        graphs = {}
        for tokens, graph in request.graphs.items():
            model = onnx.load(graph.path)
            scale_layer([model], self.layer)
            graphs[tokens] = Graph(self.scratch / graph.path.name, model)
            onnx.save(model, graphs[tokens].path)
        return super().build(dataclasses.replace(request, graphs=graphs))


class Elsewhere(CpuTarget):
    """Builds for a machine that is not this one."""

    def runner(self, artifact: Artifact, threads: int | None) -> Any:  # noqa: ARG002
        return None


def test_a_budget_knows_what_fp32_says_of_it(job: ExportJob, traced: Traced) -> None:
    assert isinstance(job.model, Ptsr)
    assert [budget.keep_rate for budget in traced.values()] == list(RATES)
    assert list(traced) == list(TOKENS)
    reference = traced[2].reference
    # 32 of the 40 calibration samples, spread from the first to the last.
    assert len(reference.inputs) == PROOF_SAMPLES == 32
    np.testing.assert_array_equal(reference.inputs[0], to_input(job.calibration.flows[:1])[0])
    np.testing.assert_array_equal(reference.inputs[-1], to_input(job.calibration.flows[-1:])[0])
    assert len({one.tobytes() for one in reference.inputs}) == 32
    assert reference.kept.shape == (32, 2)
    np.testing.assert_array_equal(reference.logits[-1:], eager(job.model, job.calibration.flows[-1:], 2))
    np.testing.assert_array_equal(job.calibration_inputs, to_input(job.calibration.flows))


@pytest.mark.parametrize("constant", ["all zero", "a bias alone"])
def test_a_model_that_answers_every_sample_alike_is_refused(
    job: ExportJob, tmp_path: Path, constant: str
) -> None:
    """A graph that ignored its input would agree with it on every sample."""
    model = copy.deepcopy(job.model)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if constant == "all zero" or name.endswith("weight"):
                value.zero_()
    with pytest.raises(InputError, match="at 4 tokens answers 32 samples alike .* nothing could be proven"):
        trace_budgets(dataclasses.replace(job, model=model), tmp_path)
    assert not list(tmp_path.iterdir())


def test_few_samples_are_all_used(job: ExportJob, tmp_path: Path) -> None:
    few = dataclasses.replace(job, calibration=job.calibration.subset(np.arange(3)), rates=RATES[1:])
    assert len(trace_budgets(few, tmp_path)[2].reference.inputs) == 3


def test_a_graph_for_each_budget_with_one_set_of_weights(traced: Traced) -> None:
    graphs = {tokens: budget.graph.path for tokens, budget in traced.items()}
    macs = {tokens: budget.macs.total for tokens, budget in traced.items()}
    assert {tokens: path.name for tokens, path in graphs.items()} == {
        4: "ptsr-test-k4.onnx",
        2: "ptsr-test-k2.onnx",
    }
    folder = graphs[4].parent
    files = {"ptsr-test-k4.onnx", "ptsr-test-k2.onnx", "weights.bin"}
    assert {path.name for path in folder.iterdir()} == files
    # Both budgets read the MLP's weights from the same bytes.
    places = []
    for path in graphs.values():
        graph = onnx.load(path, load_external_data=False).graph
        node = next(node for node in graph.node if node.name == FC1)
        tensor = next(tensor for tensor in graph.initializer if tensor.name in node.input)
        places.append({entry.key: entry.value for entry in tensor.external_data})
    assert places[0] == places[1]
    assert places[0]["location"] == "weights.bin"
    # Half the tokens, but the class token and the head's global part are there in both.
    assert macs[4] / 2 < macs[2] < macs[4]
    for tokens, path in graphs.items():
        logits, kept = OrtRunner(path, threads=1).run(traced[tokens].reference.inputs[:1])
        assert kept is not None
        assert kept.shape == (tokens,)
        np.testing.assert_allclose(logits, traced[tokens].reference.logits[0], atol=1e-4)


def test_a_variant_says_what_it_is_and_what_was_proven(job: ExportJob, traced: Traced, stage: Path) -> None:
    variants = prove(job, traced, stage, "fp32")
    assert [variant.id for variant in variants] == ["ptsr-test-cpu-fp32-k4", "ptsr-test-cpu-fp32-k2"]
    for variant, rate, tokens in zip(variants, RATES, TOKENS, strict=True):
        assert (variant.keep_rate, variant.tokens, variant.precision) == (rate, tokens, "fp32")
        assert (variant.target, variant.macs) == ("cpu", traced[tokens].macs.total)
        assert variant.parameters == count_parameters(job.model)
        assert variant.artifact == f"ptsr-test-cpu-fp32-k{tokens}.onnx"
        assert {entry.path for entry in variant.files} == {variant.artifact, "weights-cpu-fp32.bin"}
        check_files(stage, variant)
        assert variant.built_with["torch"] == torch.__version__
        assert "accuracy" not in variant.built_with
        # The record, against the same comparison made here.
        runner, flows = OrtRunner(stage / variant.artifact, threads=1), traced[tokens].reference.inputs
        worst = np.abs(
            np.stack([runner.run(one[None])[0] for one in flows]) - traced[tokens].reference.logits
        )
        assert variant.parity is not None
        assert variant.parity.max_abs == pytest.approx(worst.max(), rel=1e-5)
        assert variant.parity.through == "artifact"
        assert variant.parity.max_abs < variant.parity.limit == 1e-4
        assert (variant.parity.samples, variant.parity.top1_agreement) == (32, 1.0)


def test_what_cannot_run_here_is_not_said_to_be_proven(job: ExportJob, traced: Traced, stage: Path) -> None:
    assert [variant.parity for variant in prove(job, traced, stage, "fp32", Elsewhere())] == [None, None]
    judged = dataclasses.replace(job, max_uar_drop=1.0)
    with pytest.raises(JobError, match="cannot run on this machine"):
        prove(judged, traced, stage, "int8", Elsewhere())


def test_an_engine_for_another_machine_is_proven_by_its_graph_and_that_is_said(
    job: ExportJob, traced: Traced, stage: Path
) -> None:
    # `int8_scheme` is another target's option: TensorRT, which refuses what it does not know, is not asked.
    graphs_only = dataclasses.replace(job, options={"int8_scheme": "static", "onnx_only": True})
    for variant in prove(graphs_only, traced, stage, "fp32", TrtTarget()):
        assert variant.parity is not None
        assert variant.parity.through == "graph"
        assert variant.parity.reference == (
            "eager fp32; typed graph computed on the CPU, engine not run here"
        )
        assert variant.parity.samples == PROOF_SAMPLES
        assert variant.parity.max_abs <= variant.parity.limit == 1e-4


@pytest.fixture(scope="module")
def attentive(ptsr_config: Any, randomised: Any) -> ExportJob:
    """A PTSR of 4 patches that selects 2 by the class token's attention in its first block of two."""
    model = randomised(ptsr_config(image_size=SIDE, depth=2, select_block=0))
    return ExportJob(
        model=model,
        info=CheckpointInfo(
            schema=1,
            model=model.config,
            preprocess=Preprocess(image_size=SIDE),
            labels=list(LABELS),
            provenance={},
        ),
        rates=RATES,
        calibration=samples_of(model, 40, seed=0),
        judged=samples_of(model, 90, seed=1),
        options={"onnx_only": True},
    )


@pytest.fixture(scope="module")
def attentive_graphs(attentive: ExportJob, tmp_path_factory: pytest.TempPathFactory) -> Traced:
    return trace_budgets(attentive, tmp_path_factory.mktemp("attentive"))


class Damaging(TrtTarget):
    """A tool chain at fault: its typed graphs come out changed."""

    def __init__(self, damage: Callable[[onnx.ModelProto], None]) -> None:
        self.damage = damage

    def build(self, request: BuildRequest) -> dict[int, Artifact]:
        built = super().build(request)
        models = {artifact.path: onnx.load(artifact.path) for artifact in built.values()}
        for model in models.values():
            self.damage(model)
        weights = next(path for path in next(iter(built.values())).files if path.suffix == ".bin")
        write_sharing_weights(models, weights)
        return built


def scaled(layer: str, factor: float) -> Callable[[onnx.ModelProto], None]:
    """Makes a layer's weights larger; those of int8 by their scales."""

    def damage(model: onnx.ModelProto) -> None:
        producers = {name: node for node in model.graph.node for name in node.output}
        product = next(node for node in model.graph.node if node.name == layer)
        read = producers.get(product.input[1])
        name = read.input[1] if read is not None else product.input[1]
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        values = onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.numpy_helper.from_array((values * factor).astype(values.dtype), name))

    return damage


def keeps_the_least(model: onnx.ModelProto) -> None:
    """Turns each selection around."""
    for node in model.graph.node:
        if node.op_type == "TopK":
            kept = [attribute for attribute in node.attribute if attribute.name != "largest"]
            del node.attribute[:]
            node.attribute.extend([*kept, onnx.helper.make_attribute("largest", 0)])


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_sound_typed_graphs_are_let_through(
    attentive: ExportJob, attentive_graphs: Traced, stage: Path, precision: str
) -> None:
    for variant in prove(attentive, attentive_graphs, stage, precision, TrtTarget()):
        assert variant.parity is not None
        assert variant.parity.kept_agreement >= parity.OVERLAP[precision]


@pytest.mark.parametrize(
    ("precision", "factor"),
    # What is noticed is what stands out of the precision's rounding: of int8 only a gross fault.
    [("fp32", 1.01), ("fp16", 1.05), ("int8", 2.0)],
)
def test_a_wrongly_scaled_layer_of_a_typed_graph_is_refused_and_named(
    attentive: ExportJob, attentive_graphs: Traced, stage: Path, precision: str, factor: float
) -> None:
    layer = "blocks.1.tail.mlp.fc2"
    with pytest.raises(ParityError, match="logits differ") as caught:
        prove(attentive, attentive_graphs, stage, precision, Damaging(scaled(layer, factor)))
    found = re.search(rf"the first layer to depart is {layer} \(by ([\d.]+), limit", str(caught.value))
    assert found is not None
    # The precision rounds beside the fault, and the message has two digits.
    assert float(found[1]) == pytest.approx(factor - 1, rel=0.05)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_typed_graph_that_selects_wrongly_is_refused(
    attentive: ExportJob, attentive_graphs: Traced, stage: Path, precision: str
) -> None:
    with pytest.raises(ParityError, match=r"k2 departs .* selected tokens agree on \d") as caught:
        prove(attentive, attentive_graphs, stage, precision, Damaging(keeps_the_least))
    # Behind the selection each layer sees other tokens: none of them is at fault.
    assert re.search(
        r"; the selection differs first: tokens \d, \d are kept in place of \d, \d$", str(caught.value)
    )
    assert "layer" not in str(caught.value)


def test_a_layer_that_the_selection_comes_from_is_named_before_it(
    attentive: ExportJob, attentive_graphs: Traced, stage: Path
) -> None:
    layer = "blocks.0.attention.query"
    half = {TOKENS[1]: attentive_graphs[TOKENS[1]]}
    with pytest.raises(ParityError, match=r"selected tokens agree on \d") as caught:
        prove(attentive, half, stage, "fp32", Damaging(scaled(layer, -1.0)))
    assert "; the first layer to depart is " in str(caught.value)
    assert str(caught.value).endswith(", and with it the selection")


def test_of_a_model_that_selects_nothing_the_layer_is_named_alone(
    ptsr_config: Any, randomised: Any, stage: Path
) -> None:
    """A full-token ViT has no `kept`: nothing is said of a selection, and no layer is left out behind one."""
    vit = randomised(ptsr_config(kind="vit", image_size=SIDE, depth=2))
    job = ExportJob(
        model=vit,
        info=CheckpointInfo(
            schema=1,
            model=vit.config,
            preprocess=Preprocess(image_size=SIDE),
            labels=list(LABELS),
            provenance={},
        ),
        rates=(1.0,),
        calibration=samples_of(vit, 8, seed=0),
        judged=samples_of(vit, 8, seed=1),
        options={"onnx_only": True},
    )
    layer = "blocks.1.mlp.fc2"
    with pytest.raises(ParityError) as caught:
        prove(job, trace_budgets(job, stage), stage, "fp32", Damaging(scaled(layer, 1.01)))
    assert re.search(
        rf"; the first layer to depart is {layer} \(by 0\.01, limit [\d.]+\)$", str(caught.value)
    )


def test_int8_for_an_engine_that_cannot_run_here_is_judged_through_its_typed_graph(
    attentive: ExportJob, attentive_graphs: Traced, stage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judged = dataclasses.replace(attentive, max_uar_drop=1.0)
    variants = prove(judged, attentive_graphs, stage, "int8", TrtTarget())
    said = "trt int8 is judged through its typed graph computed on the CPU: no engine runs here\n"
    assert capsys.readouterr().err == said
    for variant in variants:
        record = variant.built_with["accuracy"]
        assert (record["through"], record["samples"]) == ("typed graph computed on the CPU", 90)
        runner = TypedGraphRunner(stage / variant.artifact)
        answers = [runner.run(one[None])[0].argmax() for one in to_input(judged.judged.flows)]
        found = uar(confusion(judged.judged.labels, answers, 3))
        assert record["uar"][str(variant.tokens)] == pytest.approx(found, abs=1e-4)


def test_typed_graphs_that_lose_too_much_get_their_layers_back(
    job: ExportJob, traced: Traced, stage: Path
) -> None:
    # The outlier of `job` hurts symmetric int8 as well.
    judged = dataclasses.replace(job, options={"onnx_only": True}, max_uar_drop=0.15)
    for variant in prove(judged, traced, stage, "int8", TrtTarget()):
        record = variant.built_with["accuracy"]
        assert record["kept_float"] == variant.built_with["keep_float"] == [FC1]
        assert product_types(onnx.load(stage / variant.artifact))[FC1] == "fp16"
        assert record["uar_fp32"][str(variant.tokens)] - record["uar"][str(variant.tokens)] <= 0.15


def test_layers_that_were_asked_for_stay_float_beside_those_put_back(
    job: ExportJob, traced: Traced, stage: Path
) -> None:
    own = "blocks.0.attention.proj"
    options = {"int8_scheme": "static", "keep_float": [own]}
    judged = dataclasses.replace(job, options=options, max_uar_drop=0.15)
    assert prove(judged, traced, stage, "int8")[0].built_with["keep_float"] == [own, FC1]


def test_graphs_in_place_of_engines_are_written_and_the_job_fails_with_the_reason(
    tiny_checkpoint: Path, megc_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoTools(CpuTarget):
        def build(self, request: BuildRequest) -> dict[int, Artifact]:
            built = super().build(request)
            return {
                tokens: dataclasses.replace(artifact, not_built="no engine was built: no tool chain")
                for tokens, artifact in built.items()
            }

    monkeypatch.setattr("ptsr_edge.export.targets.onnxruntime.CpuTarget", NoTools)
    monkeypatch.setenv("PTSR_EDGE_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    with pytest.raises(JobError, match=r"out holds checked graphs .*; no engine was built: no tool chain$"):
        export_bundle(
            out=out, checkpoint=tiny_checkpoint, budgets=[0.5], precisions=["fp32"], calibration=megc_folder,
            cache=True,
        )  # fmt: skip
    assert [variant.tokens for variant in read_bundle(out).variants] == [8]
    assert not (tmp_path / "cache" / "bundles").exists(), "what is unfinished is not kept"


def test_a_graph_is_written_once_and_read_where_a_tool_wrote_it(
    attentive: ExportJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX files that this package reads and writes itself, for two budgets in four precisions of two targets."""
    seen: Counter[str] = Counter()
    stage = "tracing"
    for name, real in (("load", onnx.load), ("save", onnx.save)):

        def counted(*args: Any, name: str = name, real: Any = real, **options: Any) -> Any:
            if "ptsr_edge" in sys._getframe(1).f_code.co_filename:
                seen[f"{name}, {stage}"] += 1
            return real(*args, **options)

        monkeypatch.setattr(onnx, name, counted)
    traced = trace_budgets(attentive, tmp_path)
    job = dataclasses.replace(attentive, options={"int8_scheme": "static", "onnx_only": True})
    for target, precision in (
        (CpuTarget(), "fp32"),
        (CpuTarget(), "int8"),
        (TrtTarget(), "fp16"),
        (TrtTarget(), "int8"),
    ):
        stage = f"{target.name} {precision}"
        prove(job, traced, tmp_path, precision, target)
    # ONNX Runtime quantizes into a file, once per budget; the proof of a typed graph opens the file that was written.
    assert seen == {"load, cpu int8": 2, "load, trt fp16": 2, "load, trt int8": 4}


def test_every_precision_that_is_judged_can_name_a_layer() -> None:
    assert set(DEPARTURES) == set(parity.AGREEMENT)


@pytest.mark.parametrize("layer", ["tokenizer.kernel", "blocks.0.attention.proj", "blocks.0.tail.mlp.fc2"])
def test_the_layer_that_was_built_wrongly_is_named(
    job: ExportJob, traced: Traced, stage: Path, layer: str
) -> None:
    with pytest.raises(ParityError) as caught:
        prove(job, traced, stage, "fp32", Tampering(layer))
    message = str(caught.value)
    assert message.startswith("ptsr-test-cpu-fp32-k4 departs from eager fp32 on 32 samples: logits differ by")
    # Its weights are 1 % too large, and so is its product.
    assert message.endswith(f"; the first layer to depart is {layer} (by 0.01, limit 0.001)")
    assert "\n" not in message


@pytest.mark.parametrize("layer", ["tokenizer.kernel", "blocks.0.tail.mlp.fc2"])
def test_the_layer_of_an_ir_that_was_built_wrongly_is_named(
    job: ExportJob, traced: Traced, stage: Path, tmp_path: Path, layer: str
) -> None:
    pytest.importorskip("openvino", reason="openvino is missing: the extra openvino brings it")
    with pytest.raises(ParityError) as caught:
        prove(job, traced, stage, "fp32", TamperingIr(layer, tmp_path))
    message = str(caught.value)
    assert message.startswith(
        "ptsr-test-openvino-fp32-k4 departs from eager fp32 on 32 samples: logits differ"
    )
    assert message.endswith(f"; the first layer to depart is {layer} (by 0.01, limit 0.001)")
    assert "\n" not in message


def test_int8_names_the_layer_that_it_ruins_and_not_the_first_that_it_rounds(
    job: ExportJob, traced: Traced, stage: Path
) -> None:
    with pytest.raises(ParityError, match=f"the first layer to depart is {FC1} "):
        prove(job, traced, stage, "int8")


def test_where_no_layer_departs_that_is_said(
    job: ExportJob, traced: Traced, stage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(parity.LIMITS, "fp32", 0.0)  # rounding alone is refused
    with pytest.raises(ParityError, match=r"no layer departs from the fp32 graph by more than 0\.001"):
        prove(job, traced, stage, "fp32")


@pytest.fixture(scope="module")
def repaired(
    job: ExportJob, traced: Traced, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Variant]]:
    stage = tmp_path_factory.mktemp("repaired")
    return stage, prove(dataclasses.replace(job, max_uar_drop=0.15), traced, stage, "int8")


def test_int8_that_loses_too_much_is_repaired_and_says_how(
    job: ExportJob, repaired: tuple[Path, list[Variant]]
) -> None:
    stage, variants = repaired
    assert [variant.id for variant in variants] == ["ptsr-test-cpu-int8-k4", "ptsr-test-cpu-int8-k2"]
    record = variants[0].built_with["accuracy"]
    assert record["limit"] == 0.15
    assert record["kept_float"] == variants[0].built_with["keep_float"] == [FC1]
    ranked = [entry["layer"] for entry in record["sensitivity"]]
    assert ranked[0] == FC1
    assert len(ranked) == 7  # tokenizer; query, key and value, projection, two of the MLP; the global head
    assert record["uar_fp32"]["4"] == 1.0  # the labels are what it answers
    for variant in variants:
        assert variant.built_with["accuracy"] == record
        assert (record["through"], record["samples"]) == ("artifact", len(job.judged))
        # UAR of the very file that the manifest lists, and of the eager model.
        runner = OrtRunner(stage / variant.artifact, threads=1)
        answers = [runner.run(one[None])[0].argmax() for one in to_input(job.judged.flows)]
        found = uar(confusion(job.judged.labels, answers, 3))
        assert record["uar"][str(variant.tokens)] == pytest.approx(found, abs=1e-4)
        exact = eager(job.model, job.judged.flows, variant.tokens).argmax(axis=1)
        expected = uar(confusion(job.judged.labels, exact, 3))
        assert record["uar_fp32"][str(variant.tokens)] == pytest.approx(expected, abs=1e-4)
        assert expected - found <= 0.15
        check_files(stage, variant)


def test_repaired_int8_is_int8_still(repaired: tuple[Path, list[Variant]]) -> None:
    stage, variants = repaired
    for variant in variants:
        graph = onnx.load(stage / variant.artifact).graph
        kinds = {node.name: node.op_type for node in graph.node}
        assert kinds[FC1] == "MatMul"
        assert kinds["blocks.0.tail.mlp.fc2"] == FUSED_PRODUCT
        assert kinds["blocks.0.attention.proj"] == FUSED_PRODUCT


def test_fp32_is_not_judged(job: ExportJob, traced: Traced, stage: Path) -> None:
    variants = prove(dataclasses.replace(job, max_uar_drop=-1.0), traced, stage, "fp32")
    assert all("accuracy" not in variant.built_with for variant in variants)


def test_a_loss_that_nothing_repairs_fails_with_the_list(job: ExportJob, traced: Traced, stage: Path) -> None:
    impossible = dataclasses.replace(job, max_uar_drop=-1.0)  # int8 would have to gain
    with pytest.raises(JobError, match=f"with every layer put back; the most sensitive: {FC1} "):
        prove(impossible, traced, stage, "int8")


KEY = "a" * 64


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle with two variants and a script that can be executed, which no manifest lists; and an empty cache."""
    monkeypatch.setenv("PTSR_EDGE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "made"
    write_tiny_bundle(folder)
    (folder / "tools").mkdir()
    script = folder / "tools" / "build_on_device.sh"
    script.write_text("#!/bin/sh\n", encoding="utf-8")
    script.chmod(0o755)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def kept(folder: Path) -> list[Path]:
    """The files of a cache, hidden leftovers included."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_stored_bundle_comes_back_byte_for_byte(tmp_path: Path, made: Path) -> None:
    out = tmp_path / "out"
    assert fetch_bundle(KEY, out) is None
    assert not out.exists()
    store_bundle(KEY, made)
    assert fetch_bundle(KEY, out) == read_bundle(made)
    assert content(out) == content(made)
    assert os.access(out / "tools" / "build_on_device.sh", os.X_OK)
    assert len(kept(tmp_path / "cache")) == 1


@pytest.mark.parametrize("links", [True, False])
def test_files_that_are_one_are_kept_once_and_come_back_as_one(
    tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    (made / "a.bin").write_bytes(bytes(1_000_000))
    (made / "b.bin").hardlink_to(made / "a.bin")
    store_bundle(KEY, made)
    (entry,) = kept(tmp_path / "cache")
    assert entry.stat().st_size < 1_500_000
    if not links:
        monkeypatch.setattr("os.link", no_links)
    assert fetch_bundle(KEY, tmp_path / "out") == read_bundle(made)
    assert content(tmp_path / "out") == content(made)
    assert (tmp_path / "out" / "a.bin").samefile(tmp_path / "out" / "b.bin") == links


def no_links(*_: object) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def changed_graph(folder: Path) -> None:
    path = next(folder.glob("*.onnx"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    "spoil",
    [
        changed_graph,
        lambda folder: next(folder.glob("*.onnx")).unlink(),
        lambda folder: (folder / MANIFEST).write_text("{", encoding="utf-8"),
        lambda folder: (folder / MANIFEST).unlink(),
        None,
    ],
    ids=["graph changed", "graph missing", "manifest broken", "manifest missing", "no archive"],
)
def test_a_kept_bundle_that_is_not_what_its_manifest_says_is_removed_and_not_handed_out(
    tmp_path: Path, made: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None] | None
) -> None:
    """As if somebody had exchanged the entry and repaired its hash."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "earlier").write_bytes(b"work")
    if spoil is not None:
        spoil(made)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.add(made, ".")
    archived = stream.getvalue() if spoil is not None else b"x" * 2000
    DiskCache("bundles").store(KEY, lambda entry: entry.write(archived) and None)
    assert fetch_bundle(KEY, out) is None
    assert "it is made anew" in caplog.text
    assert content(out) == {"earlier": b"work"}
    assert kept(tmp_path / "cache") == []


def test_a_bundle_that_is_not_what_its_manifest_says_is_not_kept(
    tmp_path: Path, made: Path, caplog: pytest.LogCaptureFixture
) -> None:
    next(made.glob("*.onnx")).write_bytes(b"other")
    store_bundle(KEY, made)
    assert "is not kept" in caplog.text
    assert not (tmp_path / "cache").exists()


def test_no_room_for_the_copy_leaves_what_stood_there(
    tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store_bundle(KEY, made)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "earlier").write_bytes(b"work")
    monkeypatch.setattr(tarfile.TarFile, "extractall", no_room)
    with pytest.raises(JobError, match=r"cannot write .*out: No space left"):
        fetch_bundle(KEY, tmp_path / "out")
    assert content(tmp_path / "out") == {"earlier": b"work"}
    monkeypatch.undo()
    monkeypatch.setenv("PTSR_EDGE_CACHE", str(tmp_path / "cache"))
    # Nothing is wrong with the entry.
    assert fetch_bundle(KEY, tmp_path / "out") is not None


@pytest.mark.parametrize("change", ["content", "content alone", "time", "name", "more", "less"])
def test_the_data_fingerprint_sees_every_change_of_a_folder(tmp_path: Path, change: str) -> None:
    (tmp_path / "s01").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "s01" / name).write_bytes(b"12")
    before = data_fingerprint("megc-flow", tmp_path)
    assert data_fingerprint("megc-flow", tmp_path) == before
    path = tmp_path / "s01" / "b.png"
    if change == "content":
        path.write_bytes(b"123")
    elif change == "content alone":  # as a tool does that copies times, too
        modified_ns = path.stat().st_mtime_ns
        path.write_bytes(b"21")
        os.utime(path, ns=(modified_ns, modified_ns))
    elif change == "time":
        os.utime(path, ns=(1, 1))
    elif change == "name":
        path.rename(tmp_path / "b.png")
    elif change == "more":
        (tmp_path / "c.png").write_bytes(b"")
    else:
        path.unlink()
    assert data_fingerprint("megc-flow", tmp_path) != before


def test_data_that_are_made_here_have_no_files_to_look_at(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    assert data_fingerprint("synthetic", tmp_path) == data_fingerprint("synthetic", None)
    assert data_fingerprint("synthetic", None) != data_fingerprint("megc-flow", None)


def test_the_same_export_again_is_served(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("PTSR_EDGE_CACHE", str(tmp_path / "cache"))

    def export(name: str) -> bool:
        """Whether a bundle was served."""
        export_bundle(
            out=tmp_path / name, checkpoint=tiny_checkpoint, budgets=[0.25], precisions=["fp32"],
            calibration_samples=6, cache=True,
        )  # fmt: skip
        return "served from the cache" in capsys.readouterr().err

    assert not export("first")
    assert export("second")
    assert content(tmp_path / "first") == content(tmp_path / "second")
    assert len(kept(tmp_path / "cache" / "bundles")) == 1


class _Asked(Exception):  # noqa: N818
    """Raised in place of the export, with what its key is made of."""


@pytest.fixture
def key_of(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[str, ...]]:
    """The key of an export; nothing is built."""

    def asked(parts: dict[str, Any]) -> str:
        raise _Asked(cache_key(parts))

    monkeypatch.setattr("ptsr_edge.export.exporter.cache_key", asked)

    def key(**call: Any) -> tuple[str, ...]:
        with pytest.raises(_Asked) as caught:
            export_bundle(
                **{"out": tmp_path / "out", "checkpoint": tiny_checkpoint, "budgets": [0.25]} | call,
                cache=True,
            )
        return caught.value.args

    return key


def test_a_graph_is_traced_once_for_what_it_depends_on_and_each_budget(
    job: ExportJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PTSR_EDGE_CACHE", str(tmp_path / "cache"))
    traced = []

    def counted(static: torch.nn.Module, config: ModelConfig) -> ModelProto:
        traced.append(config)
        return trace(static, config)

    monkeypatch.setattr(exporter, "trace", counted)

    def traces(name: str, **change: Any) -> int:
        traced.clear()
        (tmp_path / name).mkdir()
        trace_budgets(dataclasses.replace(job, **change), tmp_path / name)
        return len(traced)

    assert traces("one", rates=[0.5], identity={"weights": "these"}) == 1
    assert traces("more", identity={"weights": "these"}) == 1
    assert traces("others", rates=[0.5], identity={"weights": "others"}) == 1
    assert traces("anew") == 2
    assert content(tmp_path / "more") == content(tmp_path / "anew")


def test_a_graph_depends_on_weights_and_surroundings_where_the_cache_may_be_used(
    tiny_checkpoint: Path, megc_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(job: ExportJob, _: Path) -> None:
        raise _Asked(job.identity)

    monkeypatch.setattr(exporter, "trace_budgets", asked)
    for cache, expected in (
        (True, {"weights": sha256_of(tiny_checkpoint), **surroundings()}),
        (False, None),
    ):
        with pytest.raises(_Asked) as caught:
            export_bundle(
                out=tmp_path / "out", checkpoint=tiny_checkpoint, calibration=megc_folder, cache=cache
            )
        assert caught.value.args == (expected,)


@pytest.mark.slow
def test_budgets_at_the_steps_of_this_machine_are_told_with_what_was_measured(
    tiny_checkpoint: Path, megc_folder: Path, tmp_path: Path
) -> None:
    bundle = export_bundle(
        out=tmp_path / "out",
        checkpoint=tiny_checkpoint,
        calibration=megc_folder,
        budgets="steps",
        precisions=["fp32"],
    )
    measured = Staircase(**bundle.provenance["staircase"])
    assert (measured.target, measured.precision) == ("cpu", "fp32")
    wanted = on_steps([16, 8, 4], measured)
    assert [variant.tokens for variant in bundle.variants] == sorted(set(wanted), reverse=True)


@pytest.mark.parametrize(
    "change",
    [
        {"checkpoint": None, "model": "ptsr-nano"},
        {"budgets": [0.5]},
        {"budgets": "auto"},
        {"precisions": ["fp32"]},
        {"calibration": Path(__file__).parent},
        {"calibration_data": "megc-flow"},
        {"calibration_samples": 7},
        {"max_uar_drop": 0.01},
        {"cascade_loss": 0.05},
        {"threads": 2},
        {"options": {"int8_scheme": "static"}},
    ],
    ids=str,
)
def test_every_argument_of_an_export_is_in_its_key(
    key_of: Callable[..., tuple[str, ...]], change: dict[str, Any]
) -> None:
    assert key_of(**change) != key_of()


def test_where_the_bundle_goes_is_not_in_the_key_and_every_other_argument_was_tried(
    tmp_path: Path, key_of: Callable[..., tuple[str, ...]]
) -> None:
    assert key_of(out=tmp_path / "elsewhere") == key_of()
    tried = {"model", "checkpoint", "budgets", "precisions", "calibration", "calibration_data",
             "calibration_samples", "max_uar_drop", "cascade_loss", "threads", "options"}  # fmt: skip
    assert set(inspect.signature(export_bundle).parameters) - tried == {"out", "cache", "target"}
    keys = [key_of(target=name, precisions=["fp32"]) for name in RUNTIMES]
    assert len(set(keys)) == len(RUNTIMES)


def test_the_surroundings_are_in_the_key_of_an_export_and_do_not_change_by_themselves(
    key_of: Callable[..., tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = surroundings()
    assert set(parts) == {"tools", "code", "hardware"}
    assert {"torch", "onnx", "numpy"} <= set(parts["tools"])
    assert set(parts["hardware"]["cpu"]) == {"model", "architecture", "flags"}
    # The same within one run: load, clocks and free memory are no part of it.
    assert parts == surroundings()
    before = key_of()
    monkeypatch.setattr(exporter, "surroundings", lambda: parts | {"code": "another"})
    assert key_of() != before


EXPORT = """
import json, sys
from pathlib import Path
from ptsr_edge.export.exporter import export_bundle
out, checkpoint, calibration = map(Path, sys.argv[1:4])
export_bundle(out=out, checkpoint=checkpoint, calibration=calibration, **json.loads(sys.argv[4]))
"""


def test_the_same_inputs_give_the_same_bytes_in_another_process(
    tmp_path: Path, tiny_checkpoint: Path, megc_folder: Path
) -> None:
    """Each draws another seed for its hashes. Both are fresh: what other tests set in this one would be in its numbers."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("nncf", reason="nncf is missing: the extra openvino-build brings it")
    arguments = {"target": ("cpu", "openvino"), "precisions": ("fp32", "int8"), "budgets": (1.0, 0.25)}
    for name in ("first", "second"):
        places = [str(tmp_path / name), str(tiny_checkpoint), str(megc_folder)]
        call = [sys.executable, "-c", EXPORT, *places, json.dumps(arguments)]
        environment = os.environ | {"PYTHONHASHSEED": str(len(name))}
        done = subprocess.run(call, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
    first, second = content(tmp_path / "first"), content(tmp_path / "second")
    assert len(first) == 1 + 2 * 2 + 2 + 2 * 2 * 2  # the manifest; ONNX files, their weights; IRs with theirs
    assert [name for name in first if first[name] != second[name]] == []
    assert first.keys() == second.keys()
