"""`evaluate --model`: named models trained afresh in each fold, beside what they are compared with.

A call is planned (who is trained, at which keep rates, compared with what), run, and told as one record: each run, mean
and spread over the seeds, the leaky oracle where it was asked for, and paired differences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.core.config import ModelConfig, named_model, parse_keep_rate
from ptsr_edge.core.console import progress, say
from ptsr_edge.core.errors import InputError
from ptsr_edge.data.datasets import FlowDataset, load
from ptsr_edge.evaluate.cross_validation import Answers, ModelLearner, cross_validate
from ptsr_edge.evaluate.evaluation import (
    GROUPS,
    PROTOCOLS,
    THROUGH,
    default_rates,
    folds,
    lines_of_ceiling,
    scores_of,
    unit_ceiling,
)
from ptsr_edge.evaluate.executor import check_engine
from ptsr_edge.models.checkpoint import choose_device
from ptsr_edge.stats.classification import Metric, paired_bootstrap
from ptsr_edge.train.trainer import for_classes, train_config_for

METRICS: tuple[Metric, ...] = ("uf1", "uar")

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


@dataclass(frozen=True)
class FoldCall:
    """A call of `evaluate --model`; the names are those of the options.

    Attributes:
        against: `MODEL` or `MODEL@RATE`: what every model is compared with.
        budgets: keep rates of the models that drop tokens; None: `default_rates`.
        epochs: instead of the recipes' numbers.
        how: `engine`, `jobs`, `scheduler`, `folder` and `resume` of `executor.run_tasks`.
    """

    models: Sequence[str]
    protocol: str = "loso"
    against: Sequence[str] = ()
    budgets: Sequence[float] | None = None
    groups: int = GROUPS
    seeds: int = 1
    epochs: int | None = None
    oracle: bool = False
    through: str = "torch"
    device: str = "auto"
    how: Mapping[str, Any] = field(default_factory=dict)


def evaluate_folds(call: FoldCall, data_name: str, root: Path | None, **reading: Any) -> dict[str, Any]:
    """Trains and judges every model: scores per seed and keep rate, their mean and spread, and paired differences.

    `reading` holds `skip_bad` and `face_model` of `datasets.load`.

    Raises:
        InputError: the call does not go together; nothing was started.
        JobError: as `executor.run_tasks`.
    """
    learners, references = plan_learners(call, data_name)
    sizes = dict.fromkeys(learner.image_size for learner in learners)
    data = {size: load(data_name, root, image_size=size, **reading) for size in sizes}
    first = next(iter(data.values()))
    subjects = first.subjects
    learners = [_with_classes(learner, first.label_names) for learner in learners]
    seeds = range(call.seeds)
    total = len(learners) * sum(len(folds(call.protocol, subjects, seed, call.groups)) for seed in seeds)
    if call.through == "cpu":
        learners = [learner.with_templates() for learner in progress(learners, "exporting graphs")]
    bar = iter(progress(range(total), f"{call.protocol}, seeds: {call.seeds}"))
    next(bar, None)

    def on_fold() -> None:
        next(bar, None)

    answers = cross_validate(
        learners, data, call.protocol, seeds, groups=call.groups, on_fold=on_fold, **call.how
    )
    return _record(call, answers, references, first)


def _with_classes(learner: ModelLearner, labels: Sequence[str]) -> ModelLearner:
    config, recipe, no_start = for_classes(learner.config, learner.recipe, labels)
    if no_start:
        say(f"{learner.name}: {no_start}")
    return replace(learner, config=config, recipe=recipe)


def plan_learners(call: FoldCall, data_name: str) -> tuple[list[ModelLearner], list[tuple[str, float]]]:
    """Returns the learners, each model once with all the keep rates that are asked for, and the references.

    Raises:
        InputError: an unknown name, a budget that no model has, or a way to run that does not go together.
    """
    if call.protocol not in PROTOCOLS:
        raise InputError(f"unknown protocol {call.protocol!r}; accepted: {', '.join(PROTOCOLS)}")
    if call.groups != GROUPS and call.protocol != "groups":
        raise InputError(f"a number of groups goes with protocol groups, not with {call.protocol}")
    if call.through not in THROUGH:
        raise InputError(f"unknown way to answer {call.through!r}; accepted: {', '.join(THROUGH)}")
    check_engine(
        call.how.get("engine", "joblib"), call.how.get("jobs", 1), call.how.get("scheduler"),
        call.how.get("folder"), call.how.get("resume", False),
    )  # fmt: skip
    device = choose_device(call.device)
    rates = {name: _rates(named_model(name), call.budgets) for name in dict.fromkeys(call.models)}
    if call.budgets and not any(named_model(name).kind == "ptsr" for name in rates):
        raise InputError(f"budgets go with a PTSR; all tokens are kept by {', '.join(rates)}")
    references = []
    for text in call.against:
        name, at, rate = text.partition("@")
        config = named_model(name)
        try:
            found = parse_keep_rate(rate) if at else 1.0
        except InputError:
            raise
        except ValueError:
            raise InputError(
                f"cannot read the keep rate in {text!r}; accepted: MODEL or MODEL@RATE"
            ) from None
        if config.kind == "vit" and found != 1.0:
            raise InputError(f"{name} keeps all tokens: it cannot be compared with at {rate}")
        known = rates.setdefault(name, [])
        same = [own for own in known if config.tokens_at(own) == config.tokens_at(found)]
        if not same:
            known.append(found)
        references.append((name, same[0] if same else found))
    learners = []
    for name, own in rates.items():
        config = named_model(name)
        recipe = train_config_for(config, data_name)
        if call.epochs is not None:
            recipe = recipe.model_copy(update={"epochs": call.epochs})
        learners.append(ModelLearner(config, recipe, tuple(own), call.oracle, (), device))
    return learners, references


def _rates(config: ModelConfig, budgets: Sequence[float] | None) -> list[float]:
    if budgets is None or config.kind == "vit":
        return default_rates(config)
    by_tokens = {config.tokens_at(rate): rate for rate in budgets}
    return list(by_tokens.values())


def _record(
    call: FoldCall, answers: Sequence[Answers], references: Sequence[tuple[str, float]], data: FlowDataset
) -> dict[str, Any]:
    by_name = {found.learner.name: found for found in answers}
    pairs = [
        pair
        for name, rate in references
        for model in dict.fromkeys(call.models)
        for own in by_name[model].learner.keep_rates
        if (model, own) != (name, rate)
        for pair in paired_records((by_name[model], own), (by_name[name], rate))
    ]
    return {
        "data": data.source,
        "protocol": call.protocol,
        "through": call.through,
        "seeds": list(range(call.seeds)),
        "results": [record for found in answers for record in run_records(found)],
        "summary": [record for found in answers for record in summaries(found)],
        "paired": pairs,
        "ceiling": unit_ceiling(data, call.protocol, range(call.seeds), call.groups),
    }


def run_records(answers: Answers) -> list[dict[str, Any]]:
    """Returns a record per seed and keep rate: scores, and under `oracle` the leaky ones where they were asked for."""
    records = []
    for run, seed in enumerate(answers.seeds):
        for place, rate in enumerate(answers.learner.keep_rates):
            record = {
                "id": f"{answers.learner.name}-seed{seed}-{rate:.0%}",
                "model": answers.learner.name,
                "keep_rate": rate,
                "seed": seed,
                **scores_of(answers.data, answers.predicted[run, place]),
            }
            if answers.oracle is not None:
                record["oracle"] = {"note": ORACLE, **scores_of(answers.data, answers.oracle[run, place])}
            records.append(record)
    return records


def summaries(answers: Answers) -> list[dict[str, Any]]:
    """Returns a record per keep rate: mean and spread over the seeds, pooled, by set, and of the leaky oracle."""
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
    found: dict[str, dict[str, float | None]] = {}
    for name in METRICS:
        values = [run[name] for run in runs]
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
        found[name] = {"mean": float(np.mean(values)), "spread": spread}
    return found


def paired_records(
    first: tuple[Answers, float], second: tuple[Answers, float], resamples: int = RESAMPLES
) -> list[dict[str, Any]]:
    """Compares two learners, or two keep rates of one: a record per metric, the difference with its 95 % interval.

    Args:
        first: answers and one of their keep rates.
        second: the same of what it is compared with: of the same clips and seeds.
        resamples: how many draws of the subjects.
    """
    data = first[0].data
    runs = [_runs(*side) for side in (first, second)]
    records = []
    for metric in METRICS:
        difference, low, high = paired_bootstrap(
            data.labels, runs[0], runs[1], data.subjects, metric, resamples, classes=len(data.label_names)
        )
        records.append(
            {
                "model": first[0].learner.name,
                "keep_rate": first[1],
                "against": {"model": second[0].learner.name, "keep_rate": second[1]},
                "metric": metric,
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
    """Returns the record as text: a line per run, then the summary and the differences."""
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
    if ceiling := lines_of_ceiling(record["ceiling"]):
        lines += ["", *ceiling]
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
