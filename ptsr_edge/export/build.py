"""Graphs are traced once a budget, built for a target in a precision, and proven."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto

from ptsr_edge.bundle import Parity, Variant, describe_file
from ptsr_edge.core.console import progress, say
from ptsr_edge.core.errors import ParityError
from ptsr_edge.data.datasets import FlowData
from ptsr_edge.export.accuracy_control import rank_layers
from ptsr_edge.export.layerwise import _first_fault, _sample_at_fault
from ptsr_edge.export.onnx_graph import add_metadata, trace, write_sharing_weights
from ptsr_edge.export.parity import Reference, eager_reference, measure_parity, require_parity
from ptsr_edge.export.repair import build_within, uar_of
from ptsr_edge.export.static_model import to_static
from ptsr_edge.export.targets.base import (
    THROUGH_ARTIFACT,
    THROUGH_GRAPH,
    Artifact,
    BuildRequest,
    Target,
    _open,
    variant_id,
)
from ptsr_edge.export.targets.tensorrt import NoEngineError
from ptsr_edge.models.checkpoint import CheckpointInfo
from ptsr_edge.models.flops import count_macs
from ptsr_edge.models.inference import predict_logits
from ptsr_edge.models.ptsr import Model, count_parameters
from ptsr_edge.runtimes.base import Runner
from ptsr_edge.stats.classification import confusion, uar
from ptsr_edge.vision.flow import to_input

PROOF_SAMPLES = 32

JUDGED_SAMPLES = 400

GRAPH_ONLY = f"{THROUGH_GRAPH}, engine not run here"


@dataclass(frozen=True)
class Job:
    """What is exported, and on which samples it is calibrated, proven and judged.

    Attributes:
        model: the eager fp32 model.
        info: what it says of itself.
        rates: keep rates, from the largest down.
        calibration: samples that ranges are taken from; `PROOF_SAMPLES` of them prove every variant.
        judged: other samples of the training side, on which the loss of int8 is measured.
        options: what targets understand; see their `build`.
        max_uar_drop: the largest loss of UAR of int8 against fp32 on `judged`; None: not judged.
        uncounted: filled while tracing: by token count, operators that the MACs leave out for want of a formula.
        not_built: filled while building: why there are graphs where engines were asked for.
    """

    model: Model
    info: CheckpointInfo
    rates: Sequence[float]
    calibration: FlowData
    judged: FlowData
    options: Mapping[str, Any] = field(default_factory=dict)
    max_uar_drop: float | None = None
    uncounted: dict[int, dict[str, int]] = field(default_factory=dict)
    not_built: list[str] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        """Token counts, in the order of the rates."""
        return [self.info.model.tokens_at(rate) for rate in self.rates]

    @cached_property
    def references(self) -> dict[int, Reference]:
        """What eager fp32 says of the proof's samples, by token count."""
        places = np.linspace(0, len(self.calibration) - 1, min(PROOF_SAMPLES, len(self.calibration)))
        flows = self.calibration.flows[places.round().astype(np.intp)]
        return {tokens: eager_reference(self.model, tokens, flows) for tokens in self.tokens}

    @cached_property
    def calibration_inputs(self) -> NDArray[np.float32]:
        """(n, C, S, S) float32, normalised."""
        return to_input(self.calibration.flows)


def trace_budgets(job: Job, folder: Path) -> tuple[dict[int, Path], dict[int, int]]:
    """Writes one fp32 graph a token count, with shared weights; their paths and their MACs."""
    config = job.info.model
    models: dict[Path, ModelProto] = {}
    graphs, macs = {}, {}
    for tokens in progress(job.tokens, "tracing graphs"):
        static = to_static(job.model, tokens)
        graphs[tokens] = folder / f"{config.name}-k{tokens}.onnx"
        models[graphs[tokens]] = trace(static, config)
        add_metadata(models[graphs[tokens]], job.info.labels, job.info.preprocess)
        counted = count_macs(static, (torch.zeros(1, *config.input_shape),))
        macs[tokens], job.uncounted[tokens] = counted.total, counted.uncounted
        if counted.uncounted:
            say(
                f"MACs at {tokens} tokens leave out operators without a formula: {', '.join(counted.uncounted)}"
            )
    write_sharing_weights(models, folder / "weights.bin")
    return graphs, macs


def build_and_prove(
    job: Job, target: Target, precision: str, graphs: Mapping[int, Path], macs: Mapping[int, int], stage: Path
) -> list[Variant]:
    """Builds all budgets in one precision and compares each with the eager model.

    Raises:
        ParityError: a variant misses its limit.
        JobError: the target's tools refuse a graph, or int8 loses more than `max_uar_drop`.
    """
    info = job.info
    artifacts, repaired = _build(job, target, precision, graphs, stage)
    variants = []
    for rate, tokens in progress(list(zip(job.rates, job.tokens, strict=True)), f"{target.name} {precision}"):
        artifact = artifacts[tokens]
        name = variant_id(info.model.name, target.name, precision, tokens)
        parity = _measure(job.references[tokens], target, artifact, precision)
        if parity is not None:
            try:
                require_parity(parity, name, precision)
            except ParityError as error:
                index, others = _sample_at_fault(job.references[tokens], target, artifact, precision)
                one = job.references[tokens].inputs[index : index + 1]
                raise ParityError(
                    f"{error}; {_first_fault(one, others, graphs[tokens], artifact, precision)}"
                ) from None
        built_with = {"torch": version("torch"), **artifact.built_with}
        variants.append(
            Variant(
                id=name,
                target=target.name,
                keep_rate=rate,
                tokens=tokens,
                precision=precision,
                artifact=artifact.path.relative_to(stage).as_posix(),
                files=[describe_file(stage, path) for path in artifact.files],
                macs=macs[tokens],
                macs_uncounted=job.uncounted.get(tokens, {}),
                parameters=count_parameters(job.model),
                parity=parity,
                built_with=built_with if repaired is None else {**built_with, "accuracy": repaired},
                runs_on=artifact.runs_on,
            )
        )
    return variants


def _measure(reference: Reference, target: Target, artifact: Artifact, precision: str) -> Parity | None:
    """Parity of the artifact; of the graph it was built from where it cannot run here, and that is said.

    None where neither can be computed.
    """
    runner, through = _open(target, artifact)
    if runner is None:
        return None
    parity = measure_parity(reference, runner.run, precision)
    if through == THROUGH_ARTIFACT:
        return parity
    return parity.model_copy(update={"reference": f"{parity.reference}; {GRAPH_ONLY}"})


def _build(
    job: Job, target: Target, precision: str, graphs: Mapping[int, Path], stage: Path
) -> tuple[Mapping[int, Artifact], dict[str, Any] | None]:
    """The artifacts; with `max_uar_drop`, int8 ones that hold it, and the record of what that took."""
    info = job.info

    def build(kept: Sequence[str]) -> Mapping[int, Artifact]:
        options = {key: value for key, value in job.options.items() if key in target.options}
        if kept:
            options["keep_float"] = list(dict.fromkeys([*options.get("keep_float", ()), *kept]))
        request = BuildRequest(
            name=info.model.name,
            graphs=graphs,
            precision=precision,
            folder=stage,
            labels=info.labels,
            preprocess=info.preprocess,
            calibration=job.calibration_inputs,
            options=options,
        )
        try:
            return target.build(request)
        except NoEngineError as error:
            job.not_built.append(str(error))
            return error.artifacts

    if precision != "int8" or job.max_uar_drop is None:
        return build(()), None
    judged, classes = job.judged, len(info.labels)
    inputs = to_input(judged.flows)
    expected = {}
    for tokens in job.tokens:
        answers = predict_logits(job.model, judged.flows, tokens)[0].argmax(axis=1)
        expected[tokens] = uar(confusion(judged.labels, answers, classes))
    said: dict[str, Any] = {"samples": len(inputs)}

    def open_artifact(artifact: Artifact) -> Runner | None:
        runner, through = _open(target, artifact)
        if through == THROUGH_GRAPH and "through" not in said:
            say(f"{target.name} int8 is judged through its {through}: no engine runs here")
        said["through"] = through
        return runner

    artifacts, record = build_within(
        job.max_uar_drop,
        build,
        open_artifact,
        expected,
        lambda runner: uar_of(runner, inputs, judged.labels, classes),
        lambda: rank_layers(graphs[min(graphs)], job.calibration_inputs, progress),
    )
    return artifacts, record | said
