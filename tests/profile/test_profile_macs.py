"""What stands in a record about multiply-adds, and what is said where the counts differ."""

from __future__ import annotations

from pathlib import Path

import onnx
from bundle_data import write_tiny_bundle
from onnx import TensorProto, helper

from ptsr_edge.bundle import BundleFile, Variant
from ptsr_edge.core.config import MODELS
from ptsr_edge.models.macs import eager_macs, explain, exported_macs
from ptsr_edge.profile.results import eager_count, graph_count, mac_figures


def variant(tokens: int, macs: int, **more: dict[str, int]) -> Variant:
    return Variant(
        id="v", target="cpu", keep_rate=1.0, tokens=tokens, precision="fp32", artifact="g.plan",
        files=[BundleFile(path="g.plan", bytes=1, sha256="")], macs=macs, parameters=1, parity=None,
        built_with={}, runs_on={}, **more,
    )  # fmt: skip


def test_all_counts_of_a_named_model_are_recorded_and_explained(tmp_path: Path) -> None:
    config = MODELS["ptsr-nano"]
    exported = sum(exported_macs(config, 13).values())
    fields, notes = mac_figures(config, variant(13, exported), tmp_path / "g.plan")
    assert fields["macs_eager"] == sum(eager_macs(config, 13).values()) > exported == fields["macs"]
    assert fields["macs_explained"] == explain(config, 13)
    assert (fields["macs_graph"], fields["macs_uncounted"]) == (None, {})
    assert notes == [
        "the artifact's own graph is not ONNX: its MACs are those of the graph that it was built from"
    ]


def test_a_count_that_the_closed_form_does_not_give_is_not_explained_away(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path, [1.0])
    only = bundle.variants[0]
    fields, _ = mac_figures(bundle.model, only, tmp_path / only.artifact)
    assert fields["macs_graph"] == only.macs
    assert fields["macs_explained"].startswith("not explained: the closed form gives")


def test_operators_without_a_formula_are_listed(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("DFT", ["flow"], ["y"])],
        "g",
        [helper.make_tensor_value_info("flow", TensorProto.FLOAT, [1, 4, 4, 1])],
        [helper.make_empty_tensor_value_info("y")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), tmp_path / "g.onnx")
    config = MODELS["vit-nano"]
    met = variant(49, 7, macs_uncounted={"fft_fft": 2})
    fields, notes = mac_figures(config, met, tmp_path / "g.onnx")
    assert fields["macs_uncounted"] == {"DFT": 1, "fft_fft": 2}
    assert notes == [
        "MACs leave out operators without a formula: DFT (1x), fft_fft (2x)",
        "the artifact's own graph has 0 MACs, its source 7",
    ]


def test_what_cannot_be_counted_says_why(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_text("no graph")
    assert graph_count(tmp_path / "broken.onnx") == (
        None, ["MACs by operator were not counted: the artifact is no readable ONNX model"]
    )  # fmt: skip
    config = MODELS["ptsr-nano"]
    assert eager_count(config, 13) is eager_count(config, 13)
