"""`evaluate --model`: named models trained afresh in each fold, beside what they are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ptsr_edge.core.config import ModelConfig, named_model, parse_budget
from ptsr_edge.core.console import progress
from ptsr_edge.core.errors import InputError
from ptsr_edge.data.datasets import FlowData, load
from ptsr_edge.evaluate.cross_validation import Answers, cross_validate
from ptsr_edge.evaluate.executor import check_engine
from ptsr_edge.evaluate.fold_figures import paired_records, run_records, summaries
from ptsr_edge.evaluate.model_learner import THROUGH, ModelLearner
from ptsr_edge.evaluate.protocol import GROUPS, PROTOCOLS, folds
from ptsr_edge.models.inference import choose_device
from ptsr_edge.train.trainer import recipe_for


@dataclass(frozen=True)
class FoldCall:
    """A call of `evaluate --model`; the names are those of the options.

    Attributes:
        against: `MODEL` or `MODEL@RATE`: what every model is compared with.
        budgets: keep rates of the models that drop tokens; None: `default_rates`.
        epochs: instead of the recipes' numbers.
        how: `engine`, `jobs`, `scheduler`, `folder` and `resume` of `engine.run_tasks`.
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


def default_rates(config: ModelConfig) -> list[float]:
    """The keep rates that are judged where none are named."""
    return [1.0, 0.5, 0.25] if config.kind == "ptsr" else [1.0]


def evaluate_folds(call: FoldCall, data_name: str, root: Path | None, **reading: Any) -> dict[str, Any]:
    """Figures of every model, seed and keep rate, their mean and spread, and paired differences.

    `reading` holds `skip_bad` and `face_model` of `data.load`.

    Raises:
        InputError: the call does not go together; nothing was started.
        JobError: as `engine.run_tasks`.
    """
    learners, references = plan_learners(call, data_name)
    sizes = dict.fromkeys(learner.image_size for learner in learners)
    data = {size: load(data_name, root, image_size=size, **reading) for size in sizes}
    subjects = next(iter(data.values())).subjects
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
    return _record(call, answers, references, next(iter(data.values())))


def _record(
    call: FoldCall, answers: Sequence[Answers], references: Sequence[tuple[str, float]], data: FlowData
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
    }


def plan_learners(call: FoldCall, data_name: str) -> tuple[list[ModelLearner], list[tuple[str, float]]]:
    """Who is trained, each model once with all the keep rates that are asked for; and the references.

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
        found = parse_rate(rate, text) if at else 1.0
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
        recipe = recipe_for(config, data_name)
        if call.epochs is not None:
            recipe = recipe.model_copy(update={"epochs": call.epochs})
        learners.append(ModelLearner(config, recipe, tuple(own), call.oracle, (), device))
    return learners, references


def parse_rate(rate: str, text: str) -> float:
    """The keep rate behind the @ of `MODEL@RATE`; raises InputError where it is none."""
    try:
        return parse_budget(rate)
    except InputError:
        raise
    except ValueError:
        raise InputError(f"cannot read the keep rate in {text!r}; accepted: MODEL or MODEL@RATE") from None


def _rates(config: ModelConfig, budgets: Sequence[float] | None) -> list[float]:
    if budgets is None or config.kind == "vit":
        return default_rates(config)
    by_tokens = {config.tokens_at(rate): rate for rate in budgets}
    return list(by_tokens.values())
