"""int8 that loses too much is repaired by putting layers back, and never more than it takes.

The artifacts are real graphs: what their layers lose is written into the weights, layer by layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from typed_graphs import small_graph

from ptsr_edge.core.errors import JobError
from ptsr_edge.export.accuracy_control import LayerSensitivity, build_within, uar_of
from ptsr_edge.export.targets.base import Artifact
from ptsr_edge.runtimes.onnxruntime import OrtRunner
from ptsr_edge.stats.classification import confusion, uar

pytest.importorskip("onnxruntime")

LAYERS = ["fc1", "proj", "query", "fc2", "key", "head"]
RANKING = [LayerSensitivity(layer=layer, error=0.5**place) for place, layer in enumerate(LAYERS)]
SAMPLES, CLASSES = 30, 3
LABELS = np.arange(SAMPLES) % CLASSES
INPUTS = np.eye(CLASSES, dtype=np.float32)[LABELS].reshape(SAMPLES, CLASSES, 1, 1)
"""Each sample shows its class: a graph that multiplies by the identity is always right."""


class Builder:
    """Builds graphs that answer wrongly while one of `faulty` layers is int8.

    A graph at `tokens` mixes up classes 0 and 1 for such a layer, which takes UAR from 1 to 1/3: the
    recalls become 0, 0 and 1.
    """

    def __init__(self, folder: Path, faulty: Mapping[int, Sequence[str]]) -> None:
        self.folder, self.faulty = folder, faulty
        self.asked: list[list[str]] = []

    def __call__(self, kept: Sequence[str]) -> dict[int, Artifact]:
        self.asked.append(list(kept))
        built = {}
        for tokens, faulty in self.faulty.items():
            weights = np.eye(CLASSES, dtype=np.float32)
            if set(faulty) - set(kept):
                weights = weights[[1, 0, 2]]
            nodes = [
                onnx.helper.make_node("Flatten", ["flow"], ["flat"]),
                onnx.helper.make_node("MatMul", ["flat", "w"], ["logits"]),
            ]
            path = self.folder / f"k{tokens}-{len(self.asked)}.onnx"
            onnx.save(small_graph(nodes, [1, CLASSES, 1, 1], {"w": weights}), path)
            built[tokens] = Artifact(path, [path], {"keep_float": list(kept)}, {})
        return built


def open_artifact(artifact: Artifact) -> OrtRunner:
    return OrtRunner(artifact.path, threads=1)


def judge(runner: OrtRunner) -> float:
    return uar_of(runner, INPUTS, LABELS, CLASSES)


def counted() -> tuple[Callable[[], list[LayerSensitivity]], list[int]]:
    calls: list[int] = []

    def rank() -> list[LayerSensitivity]:
        calls.append(1)
        return RANKING

    return rank, calls


def answers(runner: OrtRunner) -> NDArray[np.intp]:
    return np.array([runner.run(one[None])[0].argmax() for one in INPUTS])


def test_uar_is_that_of_the_artifacts_answers(tmp_path: Path) -> None:
    wrong = open_artifact(Builder(tmp_path, {4: ["fc1"]})([])[4])
    assert uar_of(wrong, INPUTS, LABELS, CLASSES) == pytest.approx(1 / 3)
    few = np.array([0, 2, 2, 1])  # all of class 2's right, others wrong: recalls 0, 0, 1 whatever the counts
    assert uar_of(wrong, INPUTS[[0, 2, 2, 1]], few, CLASSES) == pytest.approx(1 / 3)
    assert uar(confusion(LABELS, answers(wrong), CLASSES)) == pytest.approx(1 / 3)


def test_what_holds_the_limit_is_left_as_it_is(tmp_path: Path) -> None:
    build, (rank, ranked) = Builder(tmp_path, {8: [], 4: []}), counted()
    artifacts, record = build_within(0.0, build, open_artifact, {8: 1.0, 4: 1.0}, judge, rank)
    assert build.asked == [[]]
    assert not ranked, "ranking takes minutes: only when something has to be repaired"
    assert list(artifacts) == [8, 4]
    assert record == {
        "limit": 0.0,
        "kept_float": [],
        "uar": {"8": 1.0, "4": 1.0},
        "uar_fp32": {"8": 1.0, "4": 1.0},
        "sensitivity": None,
    }


@pytest.mark.parametrize(
    ("faulty", "rounds"),
    [
        (["fc1"], [0, 1]),
        (["proj"], [0, 1, 2]),
        (["fc1", "fc2"], [0, 1, 2, 4]),
        (["head"], [0, 1, 2, 4, 6]),  # there are six layers: the last step is no doubling
    ],
)
def test_twice_as_many_layers_are_put_back_until_it_holds(
    tmp_path: Path, faulty: list[str], rounds: list[int]
) -> None:
    build, (rank, ranked) = Builder(tmp_path, {8: [], 4: faulty}), counted()
    artifacts, record = build_within(0.1, build, open_artifact, {8: 1.0, 4: 1.0}, judge, rank)
    assert build.asked == [LAYERS[:count] for count in rounds]
    assert len(ranked) == 1
    assert record["kept_float"] == LAYERS[: rounds[-1]]
    assert record["uar"] == {"8": 1.0, "4": 1.0}
    assert record["sensitivity"] == [{"layer": one.layer, "error": one.error} for one in RANKING]
    # The artifacts are those of the last round and not of one before.
    assert artifacts[4].built_with == {"keep_float": LAYERS[: rounds[-1]]}
    np.testing.assert_array_equal(answers(open_artifact(artifacts[4])), LABELS)


def test_the_loss_is_against_fp32_of_the_same_budget(tmp_path: Path) -> None:
    # 1/3 is no loss where fp32 itself reaches no more; more than fp32 is none either.
    build, (rank, _) = Builder(tmp_path, {8: [], 4: ["fc1"]}), counted()
    _, record = build_within(0.0, build, open_artifact, {8: 0.9, 4: 1 / 3}, judge, rank)
    assert build.asked == [[]]
    assert record["uar_fp32"] == {"8": 0.9, "4": 0.3333}


def test_the_limit_itself_holds(tmp_path: Path) -> None:
    build, (rank, _) = Builder(tmp_path, {4: ["fc1"]}), counted()
    build_within(1 - judge(open_artifact(build([])[4])), build, open_artifact, {4: 1.0}, judge, rank)
    assert build.asked == [[], []]


def test_what_cannot_be_repaired_lists_the_layers(tmp_path: Path) -> None:
    build, (rank, ranked) = Builder(tmp_path, {8: [], 4: ["no layer of the ranking"]}), counted()
    with pytest.raises(JobError) as caught:
        build_within(0.05, build, open_artifact, {8: 1.0, 4: 1.0}, judge, rank)
    assert str(caught.value) == (
        "int8 loses 0.667 UAR (limit 0.05) with every layer put back; the most sensitive: "
        "fc1 (1), proj (0.5), query (0.25), fc2 (0.12), key (0.062), head (0.031)"
    )
    assert [len(kept) for kept in build.asked] == [0, 1, 2, 4, 6]
    assert len(ranked) == 1


def test_what_cannot_run_here_is_not_called_accurate(tmp_path: Path) -> None:
    build, (rank, ranked) = Builder(tmp_path, {8: [], 4: []}), counted()
    with pytest.raises(JobError, match="cannot be measured here: the artifact cannot run on this machine"):
        build_within(
            1.0,
            build,
            lambda artifact: open_artifact(artifact) if "k8" in artifact.path.name else None,
            {8: 1.0, 4: 1.0},
            judge,
            rank,
        )
    assert (len(build.asked), ranked) == (1, [])
