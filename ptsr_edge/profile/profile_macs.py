"""The multiply-adds of a variant, counted three ways: written, exported, and on the file that runs."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ptsr_edge.bundle import Variant
from ptsr_edge.core.config import ModelConfig
from ptsr_edge.core.errors import InputError
from ptsr_edge.models.macs import MacCount, eager_macs, explain, exported_macs


def mac_figures(config: ModelConfig, variant: Variant, artifact: Path) -> tuple[dict[str, Any], list[str]]:
    """The fields of `profile_record.Measured` about multiply-adds, and what is to be said about them.

    Args:
        config: of the model.
        variant: whose manifest holds the count of the exported graph.
        artifact: what the runtime opens; only ONNX graphs can be counted themselves.
    """
    graph, notes = graph_count(artifact)
    eager = eager_count(config, variant.tokens)
    uncounted = dict(variant.macs_uncounted)
    for count in (graph, eager):
        uncounted |= {} if count is None else count.uncounted
    if uncounted:
        met = ", ".join(f"{name} ({times}x)" for name, times in sorted(uncounted.items()))
        notes.append(f"MACs leave out operators without a formula: {met}")
    if graph is not None and graph.total != variant.macs:
        notes.append(f"the artifact's own graph has {graph.total} MACs, its source {variant.macs}")
    return {
        "macs": variant.macs,
        "macs_by_operator": None if graph is None else graph.by_operator,
        "macs_eager": None if eager is None else eager.total,
        "macs_graph": None if graph is None else graph.total,
        "macs_uncounted": uncounted,
        "macs_explained": _explained(config, variant, eager),
    }, notes


def graph_count(artifact: Path) -> tuple[MacCount | None, list[str]]:
    """What the graph that runs takes; None and why, where it cannot be counted."""
    if artifact.suffix != ".onnx":
        return None, [
            "the artifact's own graph is not ONNX: its MACs are those of the graph that it was built from"
        ]
    if find_spec("onnx") is None:
        return None, ["MACs by operator were not counted: the package onnx is not installed"]
    from ptsr_edge.models.macs import onnx_macs

    try:
        return onnx_macs(artifact), []
    except InputError:
        return None, ["MACs by operator were not counted: the artifact is no readable ONNX model"]


@lru_cache(maxsize=64)
def eager_count(config: ModelConfig, tokens: int) -> MacCount | None:
    """What the model takes as it is written, by fvcore; None where torch or fvcore is not installed."""
    if find_spec("torch") is None or find_spec("fvcore") is None:
        return None
    import torch

    from ptsr_edge.models.macs import count_macs
    from ptsr_edge.models.ptsr import build_model

    return count_macs(build_model(config), (torch.zeros(1, *config.input_shape), tokens))


def _explained(config: ModelConfig, variant: Variant, eager: MacCount | None) -> str:
    """Why the counts differ; where the closed form does not give them, that is said instead."""
    written = sum(eager_macs(config, variant.tokens).values())
    exported = sum(exported_macs(config, variant.tokens).values())
    if variant.macs != exported or (eager is not None and eager.total != written):
        return f"not explained: the closed form gives {written:,} as written and {exported:,} exported"
    return explain(config, variant.tokens)
