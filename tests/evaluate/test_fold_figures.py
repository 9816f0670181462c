"""Means, spreads and paired differences over seeds, against what is worked out by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fold_data import NearestMean, composite, toy_learner

from ptsr_edge.evaluate.cross_validation import Answers
from ptsr_edge.evaluate.folds import lines_of_folds, paired_records, run_records, summaries

DATA = composite()


def answers_of(classes: np.ndarray, *, oracle: np.ndarray | None = None, name: str = "toy") -> Answers:
    """Answers of these classes (seeds, rates, n)."""
    rates = (1.0, 0.25)[: classes.shape[1]]
    learner = NearestMean(name=name, keep_rates=rates)
    one_hot = np.eye(3, dtype=np.float32)[classes]
    return Answers(learner, DATA, tuple(range(len(classes))), one_hot, oracle)


def wrong_at(*places: int) -> np.ndarray:
    classes = DATA.labels.copy()
    classes[list(places)] = (classes[list(places)] + 1) % 3
    return classes


def test_runs_are_pooled_and_by_set() -> None:
    # Clips 0..2 and 6..8 are of set `one`. Clip 0 (class 0) is called 1: recalls 3/4, 1, 1 pooled, 1/2, 1, 1
    # in `one`, all 1 in `two`.
    (record,) = run_records(answers_of(wrong_at(0)[None, None]))
    assert record["uar"] == pytest.approx((3 / 4 + 1 + 1) / 3)
    assert record["sets"]["one"]["uar"] == pytest.approx((1 / 2 + 1 + 1) / 3)
    assert record["sets"]["two"]["uar"] == 1.0
    assert record["sets"]["one"]["n"] == record["sets"]["two"]["n"] == 6
    assert record["n"] == 12
    assert "oracle" not in record


def test_mean_and_spread_over_seeds() -> None:
    # UAR of the seeds: 1 and (3/4 + 1 + 1) / 3 = 11/12. Mean 23/24; spread with n - 1: (1/12) / sqrt 2.
    (record,) = summaries(answers_of(np.stack([wrong_at(), wrong_at(0)])[:, None]))
    assert record["uar"]["mean"] == pytest.approx(23 / 24)
    assert record["uar"]["spread"] == pytest.approx(1 / 12 / 2**0.5)
    assert record["sets"]["two"]["uar"] == {"mean": 1.0, "spread": 0.0}
    assert "n - 1" in record["spread"]
    (single,) = summaries(answers_of(wrong_at(0)[None, None]))
    assert single["uar"]["spread"] is None


def test_the_oracle_stands_beside_and_is_called_leaky() -> None:
    found = answers_of(wrong_at(0, 3)[None, None], oracle=wrong_at()[None, None])
    (run,), (summary,) = run_records(found), summaries(found)
    assert run["uar"] < 1
    assert run["oracle"]["uar"] == 1
    assert summary["oracle"]["uar"]["mean"] == 1
    record = {"results": [run], "summary": [summary], "paired": []}
    (line,) = [line for line in lines_of_folds(record) if "UF1 1.000" in line]
    assert "LEAKY oracle" in line
    assert "LEAKY" in run["oracle"]["note"]


def test_paired_differences_of_two_budgets_and_of_two_learners() -> None:
    both = answers_of(np.stack([[wrong_at(), wrong_at(0)], [wrong_at(), wrong_at(3)]]))
    pair = {record["metric"]: record for record in paired_records((both, 1.0), (both, 0.25))}
    # Both seeds of the second budget miss one of the four clips of class 0: 1 - 11/12.
    assert pair["uar"]["difference"] == pytest.approx(1 / 12)
    assert 0 <= pair["uar"]["low"] <= pair["uar"]["high"]
    assert pair["uar"]["against"] == {"model": "toy", "keep_rate": 0.25}
    same = paired_records((both, 1.0), (answers_of(wrong_at()[None, None], name="other"), 1.0))
    assert [(record["difference"], record["low"], record["high"]) for record in same] == [(0, 0, 0)] * 2


def test_lines_say_everything_and_the_record_is_json() -> None:
    found = answers_of(np.stack([[wrong_at(), wrong_at(0)], [wrong_at(), wrong_at(3)]]))
    record = {
        "results": run_records(found),
        "summary": summaries(found),
        "paired": paired_records((found, 1.0), (found, 0.25), resamples=50),
    }
    lines = lines_of_folds(json.loads(json.dumps(record, allow_nan=False)))
    text = "\n".join(lines)
    assert len(record["results"]) == 4
    assert "toy at 25%, mean +- standard deviation of 2 seeds: UF1 0.91" in text
    assert "  two: UF1" in text
    assert "toy at 100% against toy at 25%: UAR +0.083 [" in text


def test_one_set_has_no_sets() -> None:
    alone = DATA.of_subjects([name for name in DATA.subject_names if name.startswith("one/")])
    found = Answers(
        toy_learner(keep_rates=(1.0,)),
        alone,
        (0,),
        np.eye(3, dtype=np.float32)[alone.labels][None, None],
        None,
    )
    assert run_records(found)[0]["sets"] is None
    assert summaries(found)[0]["sets"] is None
