"""The search finds and keeps what is faster and answers the same, records it, and sessions use it where it was found."""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundle_data import SIDE, write_tiny_bundle
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from ptsr_edge import Session
from ptsr_edge.bundle import (
    Bundle,
    Speedup,
    Tuned,
    describe_file,
    find_variant,
    read_bundle,
    write_bundle,
    write_tuned,
)
from ptsr_edge.core.errors import InputError, JobError
from ptsr_edge.info import describe, lines_of
from ptsr_edge.runtimes.base import RUNTIMES, Parameter
from ptsr_edge.runtimes.onnxruntime import OrtRunner
from ptsr_edge.session import open_artifact, tuning_facts, why_not_tuned
from ptsr_edge.stats.latency import Ratio
from ptsr_edge.tune import Search, main, tell_unfair_baseline, tune_bundle

pytest.importorskip("onnxruntime")

LEVEL = "graph_optimization_level"


class SlowRunner(OrtRunner):
    """Rewrites no graph where nothing else is said: constants are then folded in each inference."""

    parameters = (Parameter(LEVEL, ("ORT_ENABLE_ALL",)),)

    def __init__(self, artifact: Path, threads: int | None = None, *, settings: Any = None) -> None:
        super().__init__(artifact, threads, settings={LEVEL: "ORT_DISABLE_ALL", **(settings or {})})


class OtherRunner(OrtRunner):
    """Answers otherwise with each of its settings."""

    parameters = (
        Parameter("enable_mem_pattern", (False,)),
        Parameter("enable_cpu_mem_arena", (False,)),
        Parameter(LEVEL, ("ORT_NO_SUCH_LEVEL",)),
    )

    def __init__(self, artifact: Path, threads: int | None = None, *, settings: Any = None) -> None:
        self.told = settings or {}
        if LEVEL in self.told:
            raise JobError(f"{artifact} is refused")
        super().__init__(artifact, threads)

    def run(self, flow: Any) -> Any:
        logits, kept = super().run(flow)
        assert kept is not None
        return logits + 0.1 * ("enable_mem_pattern" in self.told), kept + (
            "enable_cpu_mem_arena" in self.told
        )


class PlainRunner(OrtRunner):
    """Declares nothing, as runners of other packages may."""

    parameters = ()

    def __init__(self, artifact: Path, threads: int | None = None) -> None:
        super().__init__(artifact, threads)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tiny_bundle(tmp_path / "bundle", (1.0, 0.5))
    return tmp_path / "bundle"


@pytest.fixture
def takes(monkeypatch: pytest.MonkeyPatch) -> Callable[[type], None]:
    def take(runner: type) -> None:
        runtime = dataclasses.replace(RUNTIMES["cpu"], runner=f"{__name__}:{runner.__name__}")
        monkeypatch.setitem(RUNTIMES, "cpu", runtime)

    return take


def record(folder: Path, **changes: Any) -> Tuned:
    facts = tuning_facts("cpu")._asdict()
    speedup = Speedup(median=1.1, low=1.05, high=1.2, clock="wall")
    own: dict[str, Any] = dict(
        settings={LEVEL: "ORT_ENABLE_BASIC", "enable_cpu_mem_arena": False, "session.disable_prepacking": "1"},
        speedup=speedup, trials=[], threads=None, date=datetime.date(2026, 1, 1),
    )  # fmt: skip
    found = Tuned(**{**facts, **own, **changes})
    for variant in read_bundle(folder).variants:
        write_tuned(folder, variant.id, found)
    return found


def search(
    folder: Path, ratios: Sequence[tuple[float, float, float] | str], monkeypatch: pytest.MonkeyPatch
) -> Tuned:
    """Searches with these ratios in place of measured ones: the decision alone is looked at."""
    given = iter(ratios)

    def measure(*_: Any) -> Ratio | str:
        found = next(given)
        return (
            found
            if isinstance(found, str)
            else Ratio(against="x", median=found[0], low=found[1], high=found[2])
        )

    monkeypatch.setattr(Search, "_measure", measure)
    bundle = read_bundle(folder)
    found = Search(folder, bundle, bundle.variants[0], threads=1).run()
    assert next(given, None) is None
    return found


def folded_bundle(folder: Path) -> Bundle:
    """A bundle whose first product is of constants: 150 million multiply-adds that a rewritten graph does not have."""
    bundle = write_tiny_bundle(folder, (0.5,))
    path = folder / bundle.variants[0].artifact
    graph = onnx.load(path).graph
    rng = np.random.default_rng(0)
    inner, width = 4096, 48
    for name, shape in (("c", (3 * SIDE * SIDE, inner)), ("d", (inner, width)), ("b", (width, 3))):
        value = (rng.normal(size=shape) / shape[0]).astype(np.float32)
        kept = [one for one in graph.initializer if one.name not in (name, "a")]
        del graph.initializer[:]
        graph.initializer.extend([*kept, numpy_helper.from_array(value, name)])
    graph.node.insert(0, helper.make_node("MatMul", ["c", "d"], ["a"]))
    assert graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    variant = bundle.variants[0].model_copy(update={"files": [describe_file(folder, path)]})
    changed = bundle.model_copy(update={"variants": [variant]})
    write_bundle(folder, changed)
    return changed


@pytest.mark.slow
def test_a_real_gain_is_found_kept_recorded_and_used(tmp_path: Path, takes: Callable[[type], None]) -> None:
    takes(SlowRunner)
    bundle = folded_bundle(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.onnx")}
    [found] = tune_bundle(tmp_path, threads=1, duration_s=0.15).values()
    assert found.settings == {LEVEL: "ORT_ENABLE_ALL"}
    assert found.speedup is not None
    assert found.speedup.low > 1.3
    assert [trial.outcome for trial in found.trials] == ["kept"]
    again = read_bundle(tmp_path)
    assert again.variants[0].tuned == found
    assert again.model_copy(update={"variants": bundle.variants}) == bundle
    assert before == {path: path.read_bytes() for path in tmp_path.glob("*.onnx")}
    session = Session.open(tmp_path, threads=1)
    assert session.settings == found.settings


@pytest.mark.parametrize(
    ("ratio", "outcome"),
    [
        ((1.05, 0.99, 1.1), "not faster"),  # the interval holds 1
        ((1.05, 1.019, 1.1), "not faster"),  # it is above 1, and not by as much as a value has to be worth
        ((0.5, 0.4, 0.6), "not faster"),
        ("others are at work", "disturbed"),
    ],
)
def test_what_is_not_shown_to_be_faster_is_not_kept(
    folder: Path, ratio: Any, outcome: str, monkeypatch: pytest.MonkeyPatch, takes: Callable[[type], None]
) -> None:
    takes(SlowRunner)
    found = search(folder, [ratio], monkeypatch)
    assert (found.settings, found.speedup, [trial.outcome for trial in found.trials]) == ({}, None, [outcome])


def test_what_is_kept_is_measured_anew_and_dropped_where_that_does_not_hold(
    folder: Path, monkeypatch: pytest.MonkeyPatch, takes: Callable[[type], None]
) -> None:
    takes(SlowRunner)
    good, bad = (1.2, 1.1, 1.3), (1.03, 0.99, 1.1)
    found = search(folder, [good, good], monkeypatch)
    assert (found.settings, found.speedup and found.speedup.low) == ({LEVEL: "ORT_ENABLE_ALL"}, 1.1)
    found = search(folder, [good, bad], monkeypatch)
    assert (found.settings, found.speedup and found.speedup.low) == ({}, 0.99)


def test_settings_that_answer_otherwise_or_are_refused_are_not_timed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, takes: Callable[[type], None]
) -> None:
    takes(OtherRunner)
    found = search(folder, [], monkeypatch)
    assert [(trial.outcome, trial.detail) for trial in found.trials] == [
        ("other answers", "logits moved by 0.1, the proof allows 0.001"),
        ("other answers", "other patches are kept on 8 of 8 inputs"),
        ("refused", f"{read_bundle(folder).variants[0].artifact} is refused"),
    ]


def test_threads_are_searched_where_nothing_says_how_many(folder: Path) -> None:
    bundle = read_bundle(folder)

    def tried(threads: int | None) -> list[str]:
        return [one.name for one in Search(folder, bundle, bundle.variants[0], threads)._parameters()]

    assert tried(None)[0] == "threads"
    assert "threads" not in tried(1)


def test_settings_reach_the_session(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = record(folder).settings
    variant = read_bundle(folder).variants[0]
    with caplog.at_level(logging.INFO, "ptsr_edge"):
        session = Session.open(folder, budget=1.0)
    assert session.settings == settings
    assert f"{variant.id} runs with tuned settings: {LEVEL}=" in caplog.text
    runner = open_artifact(variant, folder, None)
    assert isinstance(runner, OrtRunner)
    options = runner._session.get_session_options()
    assert options.graph_optimization_level.name == "ORT_ENABLE_BASIC"
    assert options.enable_cpu_mem_arena is False
    assert options.get_session_config_entry("session.disable_prepacking") == "1"


def test_the_number_of_threads_is_a_setting_of_its_own(folder: Path) -> None:
    record(folder, settings={"threads": 2})
    variant = read_bundle(folder).variants[0]
    for asked, expected in ((None, 2), (2, 2), (1, 1)):
        runner = open_artifact(variant, folder, asked)
        assert isinstance(runner, OrtRunner)
        assert runner._session.get_session_options().intra_op_num_threads == expected


@pytest.mark.parametrize(
    ("changes", "threads", "why"),
    [
        ({"cpu": "Z80"}, None, "the CPU was Z80, here it is"),
        ({"cores": 999}, None, "the number of cores was 999, here it is"),
        ({"runtime": "onnxruntime 0.1"}, None, "the runtime was onnxruntime 0.1, here it is onnxruntime"),
        ({"settings": {LEVEL: "ORT_ALL"}}, None, f'{LEVEL}="ORT_ALL" is no setting that this version knows'),
        ({"settings": {"arena": False}}, None, "arena=false is no setting that this version knows"),
        ({"threads": 1}, 2, "the number of threads was 1, here it is 2"),
        ({"threads": 1}, None, "the number of threads was 1, here it is left to the runtime"),
    ],
)
def test_elsewhere_the_record_is_ignored_and_that_is_told(
    folder: Path, changes: dict[str, Any], threads: int | None, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    record(folder, **changes)
    with caplog.at_level(logging.INFO, "ptsr_edge"):
        session = Session.open(folder, budget=1.0, threads=threads)
    assert session.settings == {}
    assert f"{session.variant.id} runs without its tuned settings: {why}" in caplog.text
    assert why in why_not_tuned(session.variant, threads)


def test_budgets_that_share_weights_take_the_defaults(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    record(folder)
    with caplog.at_level(logging.INFO, "ptsr_edge"):
        assert Session.open(folder, share_weights=True).settings == {}
    assert "budgets that share their weights take the defaults" in caplog.text


def test_info_shows_the_record_and_reset_takes_it_out(folder: Path) -> None:
    record(folder, threads=1, cpu="Z80")
    shown = [line for line in lines_of(describe(folder)) if ": tuned: " in line]
    assert len(shown) == 2
    assert "1.10x [1.05, 1.20] as fast as the defaults (Z80, onnxruntime" in shown[0]
    assert "not used here: the CPU was Z80" in shown[0]
    ids = [variant.id for variant in read_bundle(folder).variants]
    answer = CliRunner().invoke(main, [str(folder), "--reset", "--budget", "0.5", "--json"])
    assert json.loads(answer.stdout)["reset"] == ids[1:]
    assert find_variant(read_bundle(folder), ids[0]).tuned is not None
    assert find_variant(read_bundle(folder), ids[1]).tuned is None


def test_one_line_says_what_cannot_be_tuned(folder: Path, takes: Callable[[type], None]) -> None:
    before = (folder / "bundle.json").read_bytes()
    takes(PlainRunner)
    for arguments, code, said in (
        ([], 1, "nothing can be tuned here: the runtime of target cpu has no parameters to search"),
        (
            ["--target", "trt"],
            2,
            "the bundle has no variant with target trt, precision any, budget any; it has cpu/",
        ),
        (["--reset", "--threads", "1"], 2, "--reset searches nothing"),
    ):
        answer = CliRunner().invoke(main, [str(folder), *arguments])
        assert answer.exit_code == code
        assert len(answer.stderr.splitlines()) == 1
        assert said in answer.stderr
    assert (folder / "bundle.json").read_bytes() == before


def test_files_that_are_not_those_of_the_export_are_refused(folder: Path) -> None:
    (folder / read_bundle(folder).variants[1].artifact).write_bytes(b"other")
    with pytest.raises(InputError, match="has changed since it was exported"):
        tune_bundle(folder)
    assert all(variant.tuned is None for variant in read_bundle(folder).variants)


def test_an_end_from_outside_leaves_what_was_recorded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = record(folder)
    first, second = read_bundle(folder).variants
    for variant in (first, second):
        write_tuned(folder, variant.id, None)

    def run(self: Search) -> Tuned:
        if self.variant.id == second.id:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(Search, "run", run)
    answer = CliRunner().invoke(main, [str(folder)], prog_name="ptsr-edge tune")
    assert answer.exit_code == 130
    assert answer.stderr.splitlines()[-1] == (
        "ptsr-edge tune: ended by SIGINT: 1 of 2 variants are recorded, the others as they were; the same command starts anew"
    )
    assert [variant.tuned for variant in read_bundle(folder).variants] == [found, None]


def test_a_record_without_a_number_of_threads_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="threads must be a whole number of at least 1"):
        record(folder, settings={"threads": 0})


def test_a_baseline_that_was_never_tuned_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny_bundle(folder.with_name("bundle-baseline"), (1.0,), kind="vit")
    tell_unfair_baseline(folder)
    assert capsys.readouterr().err == ""
    record(folder)
    tell_unfair_baseline(folder)
    assert "bundle-baseline was never tuned, so ratios against it would be unfair" in capsys.readouterr().err
    record(folder.with_name("bundle-baseline"))
    tell_unfair_baseline(folder)
    assert capsys.readouterr().err == ""
