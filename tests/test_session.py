"""What an application calls: the same answers as the eager model, and clear words for a wrong call."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from ptsr_edge import Session
from ptsr_edge.bundle import (
    MANIFEST,
    RecommendedVariant,
    describe_file,
    find_variant,
    read_bundle,
    write_bundle,
    write_recommended,
)
from ptsr_edge.core.config import LABELS
from ptsr_edge.core.errors import InputError, JobError, MissingExtraError, install_line
from ptsr_edge.export.exporter import export_bundle
from ptsr_edge.models.checkpoint import load_checkpoint, predict_logits
from ptsr_edge.runtimes.tensorrt import TrtRunner
from ptsr_edge.vision.flow import to_input

pytestmark = pytest.mark.slow

BUDGETS = {1.0: 16, 0.5: 8, 0.25: 4}


@pytest.fixture
def own_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that a test may spoil."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.mark.parametrize("budget", BUDGETS)
def test_predictions_are_those_of_the_eager_model(
    tiny_bundle: Path, tiny_checkpoint: Path, random_flows: Any, budget: float
) -> None:
    # 1e-5 of the largest logit: the same float32 sums in another order, through three blocks.
    model = load_checkpoint(tiny_checkpoint)[0]
    session = Session.open(tiny_bundle, budget=budget, target="cpu", precision="fp32", threads=1)
    for flow in random_flows(8, seed=5):
        prediction = session.predict(flow)
        with torch.no_grad():
            logits, kept = model(torch.from_numpy(to_input(flow)), BUDGETS[budget])
        expected = logits[0].numpy()
        np.testing.assert_allclose(prediction.logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        assert set(prediction.kept_tokens.tolist()) == set(kept[0].tolist())
        assert prediction.kept_tokens.shape == (BUDGETS[budget],)
        assert prediction.label == LABELS[int(expected.argmax())]
        assert prediction.budget == budget


def test_probabilities_are_the_softmax_by_label(tiny_bundle: Path, random_flows: Any) -> None:
    prediction = Session.open(str(tiny_bundle)).predict(random_flows(1)[0])
    powers = [math.exp(logit) for logit in prediction.logits.tolist()]
    expected = {label: power / sum(powers) for label, power in zip(LABELS, powers, strict=True)}
    assert prediction.probabilities == pytest.approx(expected, rel=1e-12)  # float64 both
    assert prediction.label == max(expected, key=lambda label: expected[label])
    assert prediction.logits.dtype == np.float32


def test_a_prediction_does_not_depend_on_the_ones_before(tiny_bundle: Path, random_flows: Any) -> None:
    session = Session.open(tiny_bundle, budget=0.25)
    first, second = random_flows(2)
    before = session.predict(first)
    session.predict(second)
    assert np.array_equal(session.predict(first).logits, before.logits)
    assert np.array_equal(session.predict(first).kept_tokens, before.kept_tokens)


def test_the_gain_of_a_flow_does_not_matter(tiny_bundle: Path, random_flows: Any) -> None:
    # The normalisation travels with the model: predict takes pixels, whatever their scale. Doubling is
    # exact in binary.
    session, flow = Session.open(tiny_bundle), random_flows(1)[0]
    assert np.array_equal(session.predict(flow).logits, session.predict(2 * flow).logits)


def test_a_still_scene_has_an_answer(tiny_bundle: Path) -> None:
    prediction = Session.open(tiny_bundle, budget=0.25).predict(np.zeros((32, 32, 3), np.float32))
    assert math.isclose(sum(prediction.probabilities.values()), 1.0)
    assert len(set(prediction.kept_tokens.tolist())) == 4


def test_defaults_are_the_largest_budget_and_the_first_precision(tiny_bundle: Path) -> None:
    session = Session.open(tiny_bundle)
    assert (session.variant.keep_rate, session.variant.target, session.variant.precision) == (
        1.0,
        "cpu",
        "fp32",
    )
    # Any rate that means the same number of tokens is the same variant: ceil(.24 x 16) = 4.
    assert Session.open(tiny_bundle, budget=0.24).variant.tokens == 4


def recommend(folder: Path, tokens: int, **kind: str) -> str:
    """Has a bundle recommend its variant with so many tokens and, where given, of a target and precision."""
    chosen = next(
        variant.id
        for variant in read_bundle(folder).variants
        if variant.tokens == tokens and all(getattr(variant, key) == value for key, value in kind.items())
    )
    write_recommended(folder, RecommendedVariant(variant=chosen, kind="measured", reason="it is quick"))
    return chosen


def test_the_recommended_variant_is_taken_where_nothing_else_is_asked_for(
    own_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ptsr_edge")
    chosen = recommend(own_bundle, 8)
    session = Session.open(own_bundle)
    assert session.variant.id == chosen
    (line,) = caplog.messages
    assert line == f"{chosen} runs on onnxruntime {version('onnxruntime')}: it is quick"
    assert session.runtime == f"onnxruntime {version('onnxruntime')}"
    with pytest.MonkeyPatch.context() as patch:  # a runtime of another package may keep its module to itself
        patch.delitem(sys.modules, "onnxruntime")
        assert session.runtime == "cpu"
    assert Session.open(own_bundle, target="cpu").variant.id == chosen
    assert Session.open(own_bundle, precision="fp32", threads=1).variant.id == chosen
    caplog.clear()
    assert Session.open(own_bundle, budget=1.0).variant.tokens == 16
    assert caplog.messages[0].endswith(f"; {chosen} is recommended (something else was asked for)")
    caplog.clear()
    Session.open(own_bundle, budget=1.0, target="cpu", precision="fp32")
    assert caplog.messages == [], "nothing was left open, and nothing was chosen"


def test_a_session_says_what_it_is(own_bundle: Path) -> None:
    session = Session.open(own_bundle, budget=0.25)
    assert (session.budget, session.precision, session.labels) == (0.25, "fp32", list(LABELS))
    assert repr(session) == (
        "Session(ptsr-test, cpu/fp32, budget 0.25: 4 of 16 tokens, negative, positive, surprise)"
    )


def test_a_prediction_says_what_it_is_and_holds_what_was_classified(
    tiny_bundle: Path, random_flows: Any
) -> None:
    flow = random_flows(1)[0]
    prediction = Session.open(tiny_bundle, budget=0.25).predict(flow)
    share = prediction.probabilities[prediction.label]
    assert repr(prediction) == f"Prediction({prediction.label} {share:.1%}, budget 0.25, 4 of 16 tokens kept)"
    assert prediction.flow is flow
    assert (prediction.grid, prediction.apex) == (4, None)


def test_a_prediction_draws_what_it_holds(tiny_bundle: Path, random_flows: Any) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is missing")
    session = Session.open(tiny_bundle, budget=0.25)
    bare = session.answer(*session.infer(to_input(random_flows(1)[0])))
    whole = session.predict(random_flows(1)[0])
    framed = dataclasses.replace(whole, apex=np.zeros((112, 112), np.uint8))
    titles = [[axes.get_title() for axes in one.plot().axes] for one in (bare, whole, framed)]
    assert titles == [
        ["probability"],
        ["strain", "flow on strain", "probability"],
        ["apex frame", "flow on strain", "probability"],
    ]
    kept = framed.plot().axes[0]
    squares = {(round(min(line.get_xdata())), round(min(line.get_ydata()))) for line in kept.lines}
    assert squares == {(token % 4, token // 4) for token in framed.kept_tokens.tolist()}
    bars = [bar.get_width() for bar in framed.plot().axes[2].patches]
    assert bars == pytest.approx(list(framed.probabilities.values()))
    still = session.predict(np.zeros((32, 32, 3), np.float32))
    for drawn in (whole._repr_png_(), still.to_png()):
        assert drawn is not None
        assert drawn.startswith(b"\x89PNG")


def test_without_matplotlib_a_prediction_says_how_to_get_it(
    tiny_bundle: Path, random_flows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prediction = Session.open(tiny_bundle).predict(random_flows(1)[0])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match="drawing a prediction needs the package 'matplotlib'"):
        prediction.plot()
    assert prediction._repr_png_() is None, "a notebook shows the text"


@pytest.fixture(scope="module")
def every_target(tiny_checkpoint: Path, megc_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model for all three targets; what is built for `trt` is an engine for a GPU that is not here."""
    for module in ("openvino", "nncf", "tensorrt_rtx"):
        pytest.importorskip(module, reason=f"{module} is missing: the extra all brings it")
    folder = tmp_path_factory.mktemp("bundle") / "tiny-all"
    export_bundle(
        out=folder, checkpoint=tiny_checkpoint, calibration=megc_folder, target=("cpu", "openvino", "trt"),
        budgets=(1.0, 0.5), precisions=("fp32", "int8"), max_uar_drop=1.0,
        calibration_samples=4, cache=True,
        options={"compute_capabilities": ["8.6"], "int8_scheme": "static", "flavour": "tensorrt-rtx"},
    )  # fmt: skip
    return folder


def test_of_several_targets_the_first_that_can_run_here(
    every_target: Path, random_flows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"budget": 1.0, "precision": "fp32"}
    assert TrtRunner.why_not_here(every_target / "ptsr-test-trt-fp32-k16.plan", {})  # no GPU of that kind
    through_openvino = Session.open(every_target, **asked)
    assert through_openvino.variant.target == "openvino"
    monkeypatch.setitem(sys.modules, "openvino", None)
    through_ort = Session.open(every_target, **asked)
    assert through_ort.variant.target == "cpu"
    flow = random_flows(1)[0]
    found, expected = through_openvino.predict(flow).logits, through_ort.predict(flow).logits
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        JobError, match="nothing of the bundle can run here: trt: .*; openvino: .*; cpu: "
    ) as caught:
        Session.open(every_target, **asked)
    for extra in ("openvino", "ort"):
        assert install_line(extra) in str(caught.value)


@pytest.mark.parametrize("budget", [1.0, 0.5])
def test_a_flow_has_the_same_class_through_the_eager_model_and_both_runtimes_of_processors(
    every_target: Path, tiny_checkpoint: Path, random_flows: Any, budget: float
) -> None:
    flows = random_flows(200)
    model, _ = load_checkpoint(tiny_checkpoint)
    classes = predict_logits(model, flows, model.config.tokens_at(budget))[0].argmax(axis=1).tolist()
    assert len(set(classes)) > 1  # a model that always says the same would prove nothing
    for target in ("cpu", "openvino"):
        session = Session.open(every_target, budget=budget, target=target, precision="fp32", threads=1)
        assert [int(session.predict(flow).logits.argmax()) for flow in flows] == classes


def test_where_the_recommended_variant_cannot_run_its_budget_is_taken(
    every_target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ptsr_edge")
    own = Path(shutil.copytree(every_target, tmp_path / "bundle"))
    chosen = recommend(own, 8, target="openvino", precision="fp32")
    assert Session.open(own).variant.id == chosen
    monkeypatch.setitem(sys.modules, "openvino", None)
    caplog.clear()
    taken = Session.open(own).variant
    assert (taken.target, taken.tokens) == ("cpu", 8)
    (line,) = caplog.messages
    assert re.search(rf"; {chosen} is recommended \(.*'openvino', which is not installed", line)
    assert find_variant(read_bundle(own), chosen).precision == "fp32"


def test_int8_is_taken_by_default_where_its_accuracy_was_judged(every_target: Path, tmp_path: Path) -> None:
    assert Session.open(every_target, target="cpu").variant.precision == "int8"
    own = Path(shutil.copytree(every_target, tmp_path / "bundle"))
    bundle = read_bundle(own)
    unjudged = [
        variant.model_copy(
            update={"built_with": {k: v for k, v in variant.built_with.items() if k != "accuracy"}}
        )
        for variant in bundle.variants
    ]
    write_bundle(own, bundle.model_copy(update={"variants": unjudged}))
    assert Session.open(own, target="cpu").variant.precision == "fp32"


def test_budgets_are_switched_without_loading_again(tiny_bundle: Path, random_flows: Any) -> None:
    flow = random_flows(1)[0]
    session = Session.open(tiny_bundle, budget=1.0)
    session.load(0.25)
    assert session.variant.keep_rate == 1.0
    loaded = dict(session._loaded)
    for budget in (0.25, 1.0, 0.25):
        session.switch(budget)
        expected = Session.open(tiny_bundle, budget=budget).predict(flow)
        np.testing.assert_array_equal(session.predict(flow).logits, expected.logits)
        assert session.predict(flow).budget == budget
    assert session._loaded == loaded
    with pytest.raises(InputError, match="budget 0.7; it has"):
        session.switch(0.7)
    assert session.variant.keep_rate == 0.25


@pytest.mark.parametrize(
    ("logits", "kept", "says"),
    [
        ([0.0, np.nan, 1.0], [0, 3], "not finite"),
        ([0.0, 1.0], [0, 3], "not finite, or not 3"),
        ([0.0, 0.0, 1.0], [0, 16], "kept patches outside of the 16 that there are"),
        ([0.0, 0.0, 1.0], [-1, 3], "kept patches outside of the 16 that there are"),
    ],
)
def test_an_answer_that_cannot_be_is_none(tiny_bundle: Path, logits: Any, kept: Any, says: str) -> None:
    session = Session.open(tiny_bundle, budget=1.0)
    with pytest.raises(JobError, match=says):
        session.answer(np.array(logits, np.float32), np.array(kept))


def test_a_closed_session_answers_no_more(tiny_bundle: Path, random_flows: Any) -> None:
    flow = random_flows(1)[0]
    with Session.open(tiny_bundle, budget=1.0) as session:
        session.load(0.25)
        closed = []
        for runner in session._loaded.values():
            runner.close = lambda runner=runner: closed.append(runner)
        runners = list(session._loaded.values())
        session.predict(flow)
    assert closed == runners
    session.close()
    assert closed == runners
    for call in (lambda: session.predict(flow), lambda: session.switch(1.0), lambda: session.load(0.5)):
        with pytest.raises(InputError, match="is closed"):
            call()


def test_budgets_that_share_their_weights_answer_the_same(tiny_bundle: Path, random_flows: Any) -> None:
    flow = random_flows(1)[0]
    sharing = Session.open(tiny_bundle, share_weights=True)
    for budget in BUDGETS:
        sharing.switch(budget)
        expected = Session.open(tiny_bundle, budget=budget).predict(flow).logits
        # The same float32 sums in another order.
        np.testing.assert_allclose(sharing.predict(flow).logits, expected, atol=1e-5 * np.abs(expected).max())


def test_threads_are_those_of_the_call_then_those_of_the_recipe(own_bundle: Path) -> None:
    def threads(session: Session) -> int:
        return int(session._runner._session.get_session_options().intra_op_num_threads)  # type: ignore[attr-defined]

    assert threads(Session.open(own_bundle)) == 0  # ONNX Runtime's choice
    bundle = read_bundle(own_bundle)
    told = [v.model_copy(update={"runs_on": {**v.runs_on, "threads": 2}}) for v in bundle.variants]
    write_bundle(own_bundle, bundle.model_copy(update={"variants": told}))
    assert threads(Session.open(own_bundle)) == 2
    assert threads(Session.open(own_bundle, threads=1)) == 1


@pytest.mark.parametrize(
    ("flow", "found"),
    [
        (np.zeros((32, 32), np.float32), r"\(32, 32\) float32"),
        (np.zeros((3, 32, 32), np.float32), r"\(3, 32, 32\) float32"),
        (np.zeros((28, 28, 3), np.float32), r"\(28, 28, 3\) float32"),
        (np.zeros((1, 32, 32, 3), np.float32), r"\(1, 32, 32, 3\) float32"),
        (np.zeros((0, 32, 3), np.float32), r"\(0, 32, 3\) float32"),
        (np.zeros((32, 32, 3)), r"\(32, 32, 3\) float64"),
        (np.zeros((32, 32, 3), np.uint8), r"\(32, 32, 3\) uint8"),
        ([[0.0]], "list"),
        (None, "NoneType"),
    ],
)
def test_what_is_no_flow_sample_is_refused(tiny_bundle: Path, flow: Any, found: str) -> None:
    says = rf"^a flow sample must be \(32, 32, 3\) float32: u, v, strain; found {found}$"
    with pytest.raises(InputError, match=says):
        Session.open(tiny_bundle).predict(flow)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_flow_that_is_not_finite_is_refused(tiny_bundle: Path, random_flows: Any, value: float) -> None:
    flow = random_flows(1)[0]
    flow[3, 4, 1] = value
    with pytest.raises(InputError, match="found 1 values that are NaN or infinite"):
        Session.open(tiny_bundle).predict(flow)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"budget": 0.7}, r"budget 0\.7; it has cpu/fp32/1, cpu/fp32/0\.5, cpu/fp32/0\.25"),
        ({"target": "trt"}, "no variant with target trt, precision any, budget any; it has cpu/fp32/1"),
        ({"precision": "int3"}, "precision int3, budget any; it has"),
        ({"budget": 0}, r"a budget is a keep rate in \(0, 1\], got 0"),
        ({"budget": 1.5}, r"a budget is a keep rate in \(0, 1\], got 1\.5"),
        ({"budget": math.nan}, r"a budget is a keep rate in \(0, 1\], got nan"),
        ({"threads": 0}, "threads must be 1 to 1024, got 0"),
    ],
)
def test_a_variant_that_there_is_not_is_answered_with_those_there_are(
    tiny_bundle: Path, asked: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        Session.open(tiny_bundle, **asked)


def test_a_changed_weight_is_refused(own_bundle: Path) -> None:
    (weights,) = {
        entry.path for v in read_bundle(own_bundle).variants for entry in v.files if "weights" in entry.path
    }
    content = bytearray((own_bundle / weights).read_bytes())
    content[5000] ^= 1  # one bit
    (own_bundle / weights).write_bytes(content)
    with pytest.raises(InputError, match=r"has changed since it was exported .*export the bundle again"):
        Session.open(own_bundle, precision="fp32")


def test_weights_that_no_manifest_lists_are_not_taken(own_bundle: Path, random_flows: Any) -> None:
    """A graph may name any file as that of its weights; one that lies beside it is found by the runtime alone."""
    bundle = read_bundle(own_bundle)
    variant = next(one for one in bundle.variants if one.tokens == 4)
    graph = onnx.load(own_bundle / variant.artifact)
    onnx.save(
        graph,
        own_bundle / variant.artifact,
        save_as_external_data=True,
        location="other.bin",
        size_threshold=1024,
    )
    files = [describe_file(own_bundle, own_bundle / variant.artifact)]
    others = [one for one in bundle.variants if one != variant]
    changed = variant.model_copy(update={"files": files})
    write_bundle(own_bundle, bundle.model_copy(update={"variants": [*others, changed]}))
    with pytest.raises(JobError, match=r"cannot load .*other\.bin"):
        Session.open(own_bundle, budget=0.25)
    listed = changed.model_copy(
        update={"files": [*files, describe_file(own_bundle, own_bundle / "other.bin")]}
    )
    write_bundle(own_bundle, bundle.model_copy(update={"variants": [*others, listed]}))
    Session.open(own_bundle, budget=0.25).predict(random_flows(1)[0])


def test_only_what_is_opened_is_checked(own_bundle: Path) -> None:
    broken = next(v for v in read_bundle(own_bundle).variants if v.tokens == 4)
    (own_bundle / broken.artifact).unlink()
    Session.open(own_bundle, budget=0.5)
    with pytest.raises(InputError, match=f"{broken.artifact} is missing: export the bundle again"):
        Session.open(own_bundle, budget=0.25)


@pytest.mark.parametrize("key", ["artifact", "files"])
def test_a_manifest_that_points_outside_is_refused(own_bundle: Path, key: str) -> None:
    # The file outside is a real one with the hash that the manifest names.
    record = json.loads((own_bundle / MANIFEST).read_text(encoding="utf-8"))
    variant = record["variants"][0]
    shutil.copy(own_bundle / variant["artifact"], own_bundle.parent / "outside.onnx")
    if key == "artifact":
        variant["artifact"] = "../outside.onnx"
    else:
        variant["files"][0]["path"] = variant["artifact"] = "../outside.onnx"
    (own_bundle / MANIFEST).write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(InputError, match=r"bundle\.json: variants\.0"):
        Session.open(own_bundle)


def test_a_bundle_of_another_schema_is_refused(own_bundle: Path) -> None:
    record = json.loads((own_bundle / MANIFEST).read_text(encoding="utf-8")) | {"schema": 2}
    (own_bundle / MANIFEST).write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(InputError, match=r"schema: Input should be 1 \(found 2\)"):
        Session.open(own_bundle)


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none is not a folder"):
        Session.open(tmp_path / "none")
    with pytest.raises(InputError, match=r"holds no bundle\.json"):
        Session.open(tmp_path)


def test_an_artifact_that_the_runtime_refuses_is_one_line(own_bundle: Path) -> None:
    bundle = read_bundle(own_bundle)
    artifact = own_bundle / bundle.variants[0].artifact
    artifact.write_bytes(b"no graph")
    files = [describe_file(own_bundle, own_bundle / entry.path) for entry in bundle.variants[0].files]
    variants = [bundle.variants[0].model_copy(update={"files": files}), *bundle.variants[1:]]
    write_bundle(own_bundle, bundle.model_copy(update={"variants": variants}))
    with pytest.raises(JobError, match=f"ONNX Runtime .* cannot load {artifact.name}"):
        Session.open(own_bundle)


def test_importing_the_package_loads_no_heavy_package() -> None:
    # The contract: on a device these calls need numpy and one runtime, and importing loads neither torch
    # nor a runtime.
    script = (
        "import sys, ptsr_edge; heavy = {'torch', 'onnx', 'onnxruntime', 'cv2', 'safetensors', 'openvino'}; "
        "print(*sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_a_session_needs_no_torch(tiny_bundle: Path) -> None:
    script = (
        "import sys; sys.modules['torch'] = None; import numpy; from ptsr_edge import Session; "
        "flow = numpy.zeros((32, 32, 3), numpy.float32); "
        "print(len(Session.open(sys.argv[1], budget=0.25).predict(flow).kept_tokens))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(tiny_bundle)], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "4"
