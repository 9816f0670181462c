"""From measurements to the record: rows, notes and counts, from timings that were made up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundle_data import profiled, write_tiny_bundle
from onnx import TensorProto, helper

from ptsr_edge.bundle import BundleFile, Variant
from ptsr_edge.core.config import MODELS
from ptsr_edge.models.macs import eager_macs, explain, exported_macs
from ptsr_edge.profile import results
from ptsr_edge.profile.cli import main
from ptsr_edge.profile.results import (
    command_of,
    eager_count,
    graph_count,
    mac_results,
    measured,
    method_of,
    timing_notes,
    write_samples,
)
from ptsr_edge.profile.schema import Measured, Missing, null_results
from ptsr_edge.profile.timing import TimingConfig
from ptsr_edge.profile.worker import ProfiledVariant, RawTiming
from ptsr_edge.stats.latency import Block, Ratio


def timing(median: int, cpu_share: float = 1.0) -> RawTiming:
    runs = np.full(5, median)
    blocks = [
        Block(runs, (runs * cpu_share).astype(np.int64), launch=launch) for launch in (0, 0, 0, 0, 1, 1, 1, 1)
    ]
    ceiling = {"gmacs_per_s": 10.0, "shape": [1, 1, 1], "why": None}
    return RawTiming(1.0, 1.0, 1.0, None, blocks=blocks, ceiling=ceiling)


@pytest.fixture
def variants(folders: tuple[Path, Path]) -> list[ProfiledVariant]:
    """The baseline, the same as int8, and an int8 variant."""
    (vit,), (_, ptsr) = profiled(folders[1], "vit"), profiled(folders[0], "all", "a")
    return [vit, changed(vit, id="vit8", precision="int8"), changed(ptsr, precision="int8")]


def changed(variant: ProfiledVariant, id: str | None = None, **changes: str) -> ProfiledVariant:
    return replace(variant, id=id or variant.id, variant=variant.variant.model_copy(update=changes))


def row_of(
    variant: ProfiledVariant,
    references: Sequence[ProfiledVariant],
    timings: Mapping[str, RawTiming],
    refusals: Mapping[str, Missing] | None = None,
    **config: int,
) -> Measured:
    row = measured(variant, references, timings, refusals or {}, None, None, TimingConfig(**config))
    assert set(row.missing) == set(null_results(row))
    return row


def test_ratios_against_the_baseline_and_against_its_own_precision(variants: list[ProfiledVariant]) -> None:
    timings = {"vit": timing(8_000_000), "vit8": timing(4_000_000), "a": timing(2_000_000)}
    row = row_of(variants[2], variants[:2], timings)
    assert row.ratio is not None
    assert (row.ratio.against, row.ratio.median) == ("vit", pytest.approx(4.0))
    assert row.ratio.per_process == pytest.approx([4.0, 4.0])
    assert row.ratio_same_precision is not None
    assert (row.ratio_same_precision.against, row.ratio_same_precision.median) == ("vit8", pytest.approx(2.0))
    # 6,168 multiply-adds (see test_profiler) in 2 ms are 3.084e6 a second, of 10e9.
    assert row.ceiling is not None
    assert row.ceiling.share == pytest.approx(row.macs / 2e-3 / 10e9)
    for reference in variants[:2]:
        row = row_of(reference, variants[:2], timings)
        assert row.ratio_same_precision is None
        assert row.missing["ratio_same_precision"].kind == "not_applicable"
    alone = row_of(variants[2], variants[:1], timings)
    assert alone.missing["ratio_same_precision"] == Missing(
        kind="no_counterpart", reason="there is no ratio within int8 on cpu: the baseline was not given so"
    )


def test_the_ratio_by_cpu_time(variants: list[ProfiledVariant]) -> None:
    # Twice as much wall time at .45 of a core is as much CPU time as half of it at .9.
    slow, quick = timing(8_000_000, cpu_share=0.45), timing(4_000_000, cpu_share=0.9)
    row = row_of(variants[2], variants[:1], {"vit": slow, "a": quick})
    assert row.cpu_share == pytest.approx(0.9)
    assert row.ratio_cpu_time is not None
    assert (row.ratio_cpu_time.against, row.ratio_cpu_time.median) == ("vit", pytest.approx(1.0))
    kinds = []
    for variant, share, threads in (
        (variants[2], 1.0, 2), (changed(variants[2], target="trt"), 1.0, 1), (variants[2], 0.0, 1),
    ):  # fmt: skip
        timings = {"vit": slow, "a": timing(4_000_000, cpu_share=share)}
        kinds.append(row_of(variant, variants[:1], timings, threads=threads).missing["ratio_cpu_time"].kind)
    assert kinds == ["not_applicable", "not_applicable", "not_supported"]


def test_ratios_beside_other_processes(variants: list[ProfiledVariant]) -> None:
    # Half of the time away: the wall says 1, the CPU's clock 2, and that is what is quoted, of whole samples too.
    base, other = timing(8_000_000), timing(8_000_000, cpu_share=0.5)
    whole = replace(other, whole=other.blocks)
    row = row_of(variants[2], variants[:1], {"vit": replace(base, whole=base.blocks), "a": whole})
    assert row.sample_ms == 8.0
    for ratio in (row.ratio, row.ratio_sample):
        assert ratio is not None
        assert (ratio.median, ratio.clock, ratio.rounds) == (pytest.approx(2.0), "cpu", 8)
    # A third of a core, or several threads: nothing is quoted.
    for away, threads in (
        (timing(8_000_000, cpu_share=0.33), 1),
        (replace(other, blocks=switched(other.blocks)), 2),
    ):
        row = row_of(variants[2], variants[:1], {"vit": base, "a": away}, threads=threads)
        assert row.ratio is None
        assert row.missing["ratio"].kind == "disturbed"


def switched(blocks: list[Block]) -> list[Block]:
    """As if a thread had been sent away ten thousand times a block."""
    return [replace(block, switches=10_000) for block in blocks]


def test_a_variant_that_did_not_run_has_its_refusal_for_every_result(variants: list[ProfiledVariant]) -> None:
    refusal = Missing(kind="no_device", reason="built, not run here: no GPU")
    row = row_of(changed(variants[2], target="trt"), variants[:1], {"vit": timing(8)}, {"a": refusal})
    assert row.missing["accuracy"].kind == "not_asked"
    refused = {name for name, why in row.missing.items() if why == refusal}
    assert refused == {
        "latency_ms", "cpu_share", "ratio", "ratio_same_precision", "ratio_cpu_time", "load_ms", "first_ms",
        "predict_ms", "sample_ms", "ratio_sample", "throughput_per_s", "energy_mj", "stages", "ceiling",
        "peak_rss_bytes", "base_rss_bytes", "operators_run", "instructions",
    }  # fmt: skip
    assert row.raw_samples is None


def drawn(blocks: np.ndarray, cpu_share: float = 1.0, **more: Any) -> RawTiming:
    rows = [Block(row.astype(np.int64), (row * cpu_share).astype(np.int64)) for row in blocks]
    return RawTiming(1.0, 1.0, 1.0, 1000, blocks=rows, **more)


STEADY = np.full((40, 30), 1_000_000)


def test_a_steady_run_has_nothing_to_confess() -> None:
    notes = timing_notes(drawn(STEADY), drawn(STEADY), None, is_alone=True)
    assert notes == ["p99 has 12 of 1200 samples beyond it"]


def test_what_weakens_a_result_is_said() -> None:
    rng = np.random.default_rng(0)
    few = drawn(STEADY[:20, :5])
    said = timing_notes(few, few, None, is_alone=True)
    assert said == ["p99 has 1 of 100 samples beyond it: too few to quote it"]
    # Uniform in 1 +- .2: standard deviation .4 / sqrt(12) = 11.5 %.
    noisy = drawn(1e6 * rng.uniform(0.8, 1.2, size=(40, 30)))
    assert any("varies by 11." in note for note in timing_notes(noisy, noisy, None, is_alone=True))
    shared = drawn(STEADY, cpu_share=0.8)
    ratio = Ratio(against="vit", median=1.5, low=1.25, high=2.0, clock="cpu", rounds=40)
    said = timing_notes(shared, drawn(STEADY), ratio, is_alone=True)
    assert "the process had a core for 80% of the timed time: it was not alone on it" in said
    assert any("the ratio is by CPU time, since other processes used the cores" in note for note in said)
    some = ratio.model_copy(update={"clock": "wall", "rounds": 31})
    said = timing_notes(drawn(STEADY), drawn(STEADY), some, is_alone=True)
    assert any("the ratio is of 31 of 40 rounds" in note for note in said)
    assert not any("core" in note for note in timing_notes(shared, shared, None, is_alone=False))
    tuned = replace(drawn(STEADY), settings={"enable_mem_pattern": False})
    said = timing_notes(tuned, drawn(STEADY), None, is_alone=True)
    assert "ran with settings that were tuned on this device: enable_mem_pattern=false" in said
    wandering = drawn(STEADY * (1 + 0.1 * np.sin(np.arange(40) / 6))[:, None])
    notes = timing_notes(wandering, drawn(STEADY), None, is_alone=True)
    assert any("interval is too narrow" in note for note in notes)


def counted(tokens: int, macs: int, **more: dict[str, int]) -> Variant:
    return Variant(
        id="v", target="cpu", keep_rate=1.0, tokens=tokens, precision="fp32", artifact="g.plan",
        files=[BundleFile(path="g.plan", bytes=1, sha256="")], macs=macs, parameters=1, parity=None,
        built_with={}, runs_on={}, **more,
    )  # fmt: skip


def test_all_counts_of_a_named_model_are_recorded_and_explained(tmp_path: Path) -> None:
    config = MODELS["ptsr-nano"]
    exported = sum(exported_macs(config, 13).values())
    fields, reasons, notes = mac_results(config, counted(13, exported), tmp_path / "g.plan")
    assert fields["macs_eager"] == sum(eager_macs(config, 13).values()) > exported == fields["macs"]
    assert fields["macs_explained"] == explain(config, 13)
    assert (fields["macs_graph"], fields["macs_uncounted"]) == (None, {})
    assert notes == []
    assert {name: why.kind for name, why in reasons.items()} == {
        "macs_graph": "not_supported", "macs_by_operator": "not_supported"
    }  # fmt: skip
    assert reasons["macs_graph"].reason == (
        "the artifact's own graph is not ONNX: its MACs are those of the graph that it was built from"
    )


def test_a_count_that_the_closed_form_does_not_give_is_not_explained_away(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path, [1.0])
    only = bundle.variants[0]
    fields, *_ = mac_results(bundle.model, only, tmp_path / only.artifact)
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
    met = counted(49, 7, macs_uncounted={"fft_fft": 2})
    fields, _, notes = mac_results(config, met, tmp_path / "g.onnx")
    assert fields["macs_uncounted"] == {"DFT": 1, "fft_fft": 2}
    assert notes == [
        "MACs leave out operators without a formula: DFT (1x), fft_fft (2x)",
        "the artifact's own graph has 0 MACs, its source 7",
    ]


def test_what_cannot_be_counted_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.onnx").write_text("no graph")
    said = "MACs by operator were not counted"
    assert graph_count(tmp_path / "broken.onnx") == Missing(
        kind="failed", reason=f"{said}: the artifact is no readable ONNX model"
    )
    config = MODELS["ptsr-nano"]
    assert eager_count(config, 13) is eager_count(config, 13)
    monkeypatch.setattr(results, "find_spec", lambda _: None)
    assert graph_count(tmp_path / "broken.onnx") == Missing(
        kind="not_installed", reason=f"{said}: the package onnx is not installed"
    )
    eager_count.cache_clear()
    found = eager_count(config, 13)
    eager_count.cache_clear()
    assert isinstance(found, Missing)
    assert found.kind == "not_installed"


def test_samples_know_their_process(tmp_path: Path) -> None:
    timed = timing(7, cpu_share=0.5)
    write_samples(tmp_path / "samples" / "a.npz", replace(timed, whole=timed.blocks[3:5]))
    with np.load(tmp_path / "samples" / "a.npz") as stored:
        assert stored["launch"].tolist() == [0] * 20 + [1] * 20
        assert stored["round"].tolist() == [number for number in range(8) for _ in range(5)]
        assert (set(stored["samples_ns"]), set(stored["cpu_ns"])) == ({7}, {3})
        assert stored["whole_launch"].tolist() == [0] * 5 + [1] * 5
        assert stored["whole_ns"].size == stored["whole_cpu_ns"].size == 10
    write_samples(tmp_path / "samples" / "b.npz", timed)
    with np.load(tmp_path / "samples" / "b.npz") as stored:
        assert stored["whole_ns"].size == 0


def test_the_command_repeats_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = TimingConfig(
        duration_s=2.5, min_runs=7, threads=2, pin=True, seed=9, processes=5, attempts=2, streams=3
    )
    words = command_of(
        [Path("a b"), tmp_path / "c"], tmp_path / "out" / "p", config, baseline=tmp_path / "vit",
        data="megc-flow", root=tmp_path.parent / "data", checkpoint=tmp_path / "w", control_seeds=3,
    )  # fmt: skip
    assert words == (
        "python -m ptsr_edge.profile --bundle 'a b' --bundle c --baseline vit --data megc-flow --root DIR "
        "--duration-s 2.5 --min-runs 7 --threads 2 --seed 9 --processes 5 --attempts 2 --streams 3 --pin --out out/p "
        "--checkpoint w --control-seeds 3"
    )
    # Every option that it names is one that the command has.
    known = {name for option in main.params for name in option.opts}
    assert {word for word in words.split() if word.startswith("--")} <= known


def test_the_method_counts_its_rounds() -> None:
    timed = RawTiming(1.0, 1.0, 1.0, None, blocks=[Block(np.array([5]), np.array([5]))] * 23)
    method = method_of(TimingConfig(duration_s=3.0, threads=2), {"a": timed})
    assert method["interleaving"].startswith("23 rounds;")
    assert (method["least_duration_s"], method["threads"], method["pinned"]) == (3.0, 2, False)
    assert "one multiply-add counts as one" in method["macs"]
