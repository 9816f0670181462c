"""Folds are subject-disjoint, cover everybody once, and training never sees who is judged."""

from __future__ import annotations

import numpy as np
import pytest

from ptsr_edge.core.config import LABELS, Preprocess
from ptsr_edge.core.errors import InputError
from ptsr_edge.data.datasets import FlowDataset
from ptsr_edge.evaluate.evaluation import Fold, figures, folds, set_of, unseen_subjects


def toy_data(subjects: int = 6, clips: int = 3) -> FlowDataset:
    rng = np.random.default_rng(0)
    count = subjects * clips
    return FlowDataset(
        flows=rng.normal(size=(count, 16, 16, 3)).astype(np.float32),
        labels=np.arange(count, dtype=np.int64) % 3,
        subjects=np.repeat([f"s{number}" for number in range(subjects)], clips),
        names=[f"clip{number}" for number in range(count)],
        label_names=LABELS,
        preprocess=Preprocess(image_size=16),
        source="toy",
    )


@pytest.mark.parametrize(("protocol", "count"), [("loso", 10), ("groups", 5), ("holdout", 1)])
def test_folds_are_disjoint_and_complete(protocol: str, count: int) -> None:
    names = [f"s{number}" for number in range(10)]
    made = folds(protocol, names * 3)
    assert len(made) == count
    for fold in made:
        assert not set(fold.train) & set(fold.held_out)
        assert set(fold.train) | set(fold.held_out) == set(names)
    held = [name for fold in made for name in fold.held_out]
    assert len(held) == len(set(held))
    if protocol != "holdout":
        assert set(held) == set(names)


def test_groups_depend_on_the_seed_and_nothing_else() -> None:
    names = [f"s{number}" for number in range(11)]
    assert folds("groups", names, 1) == folds("groups", names[::-1], 1)
    assert folds("groups", names, 1) != folds("groups", names, 2)


def test_as_many_groups_as_are_asked_for() -> None:
    names = [f"s{number}" for number in range(7)]
    made = folds("groups", names, 0, groups=3)
    assert sorted(len(fold.held_out) for fold in made) == [2, 2, 3]
    assert sorted(name for fold in made for name in fold.held_out) == names


def test_each_set_of_a_composite_is_held_out_in_turn() -> None:
    made = folds("cross", ["smic/s1", "casme2/sub02", "samm/006", "casme2/sub01", "smic/s1"])
    assert [{set_of(name) for name in fold.held_out} for fold in made] == [{"casme2"}, {"samm"}, {"smic"}]
    assert made[2] == Fold(("casme2/sub01", "casme2/sub02", "samm/006"), ("smic/s1",))


@pytest.mark.parametrize(
    ("protocol", "names", "words"),
    [("leave-one-out", ["a", "b"], "loso, groups, holdout, cross"), ("loso", ["a"], "the 1 found"),
     ("groups", ["a", "b", "c"], "the 3 found"), ("cross", ["a/1", "a/2"], "two data sets or more, found a")],
)  # fmt: skip
def test_refused(protocol: str, names: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        folds(protocol, names)


def test_figures_pool_all_clips() -> None:
    # By hand: 2 of 2 negatives, 1 of 2 positives (the other called negative), 1 of 2 surprises
    # (the other called positive). Recalls 1, 1/2, 1/2: UAR 2/3. F1 = 2 TP / (2 TP + FP + FN):
    # 4/5, 2/4, 2/3: UF1 .6556.
    data = toy_data(2, 3).subset(np.array([0, 3, 1, 4, 2, 5]))
    found = figures(data, np.array([0, 0, 1, 0, 2, 1]))
    assert found["uar"] == pytest.approx(2 / 3)
    assert found["uf1"] == pytest.approx((4 / 5 + 2 / 4 + 2 / 3) / 3)
    assert found["recall"] == {"negative": 1.0, "positive": 0.5, "surprise": 0.5}
    assert found["n"] == 6
    assert found["subjects"] == 2


def test_unseen_subjects_by_provenance() -> None:
    data = toy_data(4)
    assert unseen_subjects(data, {"data": "toy", "train_subjects": ["s0", "s2"]}) == ["s1", "s3"]
    # A composite and its sets call a person alike: who was seen in one is known in the other.
    assert unseen_subjects(data, {"data": "other", "train_subjects": ["s0"]}) == ["s1", "s2", "s3"]
    assert unseen_subjects(data, {"data": "other", "train_subjects": ["t0"]}) == data.subject_names
