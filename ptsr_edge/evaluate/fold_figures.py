"""Figures of learners over folds and seeds: each run, mean and spread, the leaky oracle, and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.evaluate.cross_validation import Answers
from ptsr_edge.evaluate.protocol import figures
from ptsr_edge.stats.classification import Metric, paired_bootstrap, uar, uf1

METRICS: dict[str, Metric] = {"uf1": uf1, "uar": uar}
RESAMPLES = 2000

ORACLE = (
    "LEAKY oracle: for each held-out subject the epoch that is best on that very subject; comparable with "
    "figures that were published that way, and with nothing else"
)
SPREAD = "sample standard deviation over seeds (n - 1); null for one seed"
PAIRED = (
    "subjects drawn with replacement, the same for both; the metric is averaged over the seeds inside each draw; "
    "95 % percentile interval: what other people would change, not other seeds"
)


def run_records(answers: Answers) -> list[dict[str, Any]]:
    """A record each seed and keep rate: figures, and under `oracle` the leaky ones where they were asked for."""
    records = []
    for run, seed in enumerate(answers.seeds):
        for place, rate in enumerate(answers.learner.keep_rates):
            record = {
                "id": f"{answers.learner.name}-seed{seed}-{rate:.0%}",
                "model": answers.learner.name,
                "keep_rate": rate,
                "seed": seed,
                **figures(answers.data, answers.predicted[run, place]),
            }
            if answers.oracle is not None:
                record["oracle"] = {"note": ORACLE, **figures(answers.data, answers.oracle[run, place])}
            records.append(record)
    return records


def summaries(answers: Answers) -> list[dict[str, Any]]:
    """A record each keep rate: mean and spread over the seeds, pooled, by set, and of the leaky oracle."""
    records = []
    runs = run_records(answers)
    for rate in answers.learner.keep_rates:
        same = [record for record in runs if record["keep_rate"] == rate]
        record: dict[str, Any] = {
            "model": answers.learner.name,
            "keep_rate": rate,
            "seeds": len(same),
            "n": same[0]["n"],
            "subjects": same[0]["subjects"],
            "spread": SPREAD,
            **_over_seeds(same),
            "sets": None,
        }
        if same[0]["sets"] is not None:
            record["sets"] = {
                name: _over_seeds([run["sets"][name] for run in same]) for name in same[0]["sets"]
            }
        if answers.oracle is not None:
            record["oracle"] = {"note": ORACLE, **_over_seeds([run["oracle"] for run in same])}
        records.append(record)
    return records


def _over_seeds(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    found = {}
    for name in METRICS:
        values = [run[name] for run in runs]
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
        found[name] = {"mean": float(np.mean(values)), "spread": spread}
    return found


def paired_records(
    first: tuple[Answers, float], second: tuple[Answers, float], resamples: int = RESAMPLES
) -> list[dict[str, Any]]:
    """The difference of two learners, or of two keep rates of one, with a 95 % interval; a record each metric.

    Args:
        first: answers and one of their keep rates.
        second: the same of what it is compared with: of the same clips and seeds.
        resamples: how many draws of the subjects.
    """
    data = first[0].data
    runs = [_runs(*side) for side in (first, second)]
    records = []
    for name, metric in METRICS.items():
        difference, low, high = paired_bootstrap(
            data.labels, runs[0], runs[1], data.subjects, metric, resamples, classes=len(data.label_names)
        )
        records.append(
            {
                "model": first[0].learner.name,
                "keep_rate": first[1],
                "against": {"model": second[0].learner.name, "keep_rate": second[1]},
                "metric": name,
                "difference": difference,
                "low": low,
                "high": high,
                "resamples": resamples,
                "method": PAIRED,
            }
        )
    return records


def _runs(answers: Answers, rate: float) -> NDArray[np.int64]:
    """(seeds, n) classes at one keep rate."""
    return answers.predicted[:, list(answers.learner.keep_rates).index(rate)]


def lines_of_folds(record: Mapping[str, Any]) -> list[str]:
    """The record of a protocol for people: a line each run, and below it what the runs come to."""
    lines = []
    for run in record["results"]:
        lines.append(
            f"{run['id']:28} {run['keep_rate']:6.1%}  UF1 {run['uf1']:.3f}  UAR {run['uar']:.3f}  "
            f"(n = {run['n']}, {run['subjects']} subjects)"
        )
    for entry in record["summary"]:
        lines.append("")
        lines.append(
            f"{entry['model']} at {entry['keep_rate']:.0%}, {_seeds(entry['seeds'])}: {_both(entry)}"
        )
        for name, of_set in (entry["sets"] or {}).items():
            lines.append(f"  {name}: {_both(of_set)}")
        if "oracle" in entry:
            lines.append(f"  {_both(entry['oracle'])}  <- {ORACLE}")
    if record["paired"]:
        lines += ["", f"differences ({PAIRED}):"]
    for pair in record["paired"]:
        other = pair["against"]
        lines.append(
            f"  {pair['model']} at {pair['keep_rate']:.0%} against {other['model']} at {other['keep_rate']:.0%}: "
            f"{pair['metric'].upper()} {pair['difference']:+.3f} [{pair['low']:+.3f}, {pair['high']:+.3f}]"
        )
    return lines


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"mean +- standard deviation of {count} seeds"


def _both(entry: Mapping[str, Any]) -> str:
    return f"UF1 {_show(entry['uf1'])}  UAR {_show(entry['uar'])}"


def _show(value: Mapping[str, float | None]) -> str:
    return f"{value['mean']:.3f}" + ("" if value["spread"] is None else f" +- {value['spread']:.3f}")
