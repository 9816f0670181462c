"""Which variant to take: the fastest that loses little, by what was measured or under limits that it surely meets."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from ptsr_edge.core.config import Record
from ptsr_edge.core.errors import InputError
from ptsr_edge.profile.schema import NEW_CLIPS
from ptsr_edge.report.comparison import (
    ComparedVariant,
    Comparison,
    accuracy_key,
    budget_text,
    interval_text,
    ratio_text,
    rounded_up,
    sentence,
    short_ms,
    three_digits,
)
from ptsr_edge.stats.classification import CONFIDENCE, Paired, Unit, needed_factor, paired, upper_bound

MAX_UAR_DROP = 0.02
"""The largest loss of UAR that a variant may have where no other limit was asked for."""

CHANCE_MARGIN = 0.05
"""A baseline whose UAR is less than this above chance has learnt nothing that could be lost."""

Status = Literal[
    "within",
    "beyond",
    "chance",
    "accuracy-not-measured",
    "latency-not-measured",
    "nothing-measured",
    "no-variant",
    "chosen",
    "none-meets-the-limits",
]


class Recommendation(Record):
    """The sentence, what kind of answer it is, and the variant it is about (null: about none).

    `max_uar_drop` is the loss of UAR that it was held against, null where only latency was asked for. `detail` says how sure a choice is and what is missing for another one, or why a result is missing.
    """

    sentence: str
    status: Status
    max_uar_drop: float | None
    name: str | None = None
    id: str | None = None
    profile: str | None = None
    detail: str = ""


PERCENTILE = "p95"
"""What the limit on latency is held against: what 19 of 20 frames meet. Half of them are slower than the median;
p99 rests on a fifth of the samples."""


class Limits(Record):
    """What a variant must meet; null is no limit. Confidence and unit are those of a limit on the loss of UAR."""

    max_latency_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_uar_drop: float | None = Field(default=None, gt=0, lt=1)
    confidence: float = Field(default=CONFIDENCE, gt=0, lt=1)
    unit: Unit = "subject"


class Candidate(Record):
    """One variant held against the limits.

    Attributes:
        p95_ms: its latency.
        drop: UAR of the reference minus this one's, as measured; null where no limit on it was asked for.
        upper: the bound on it, which holds for all candidates at once; null where the latency is not met too.
        least: that bound, had all answers been equal: what the amount of data can show at all.
        needed_units: how many units of the same kind would bring the bound to the limit; null: no number would.
        needed_samples: the same in samples.
        needed_people: the same in people of `profile --subjects`; null too where the data are not rendered.
        upper_if_independent: the bound, were all samples independent of one another.
        upper_against_baseline: the bound on what it loses against the full-token ViT, for information; null where
            that was not judged.
        told: how it stands against the limits.
    """

    name: str
    id: str
    profile: str
    p95_ms: float
    drop: float | None = None
    upper: float | None = None
    least: float | None = None
    needed_units: int | None = None
    needed_samples: int | None = None
    needed_people: int | None = None
    upper_if_independent: float | None = None
    upper_against_baseline: float | None = None
    told: Literal["taken", "meets the limits", "too slow", "drop not excluded", "drop too large"]


class Decision(Record):
    """The choice: `picked` is the name of a candidate, null where none meets the limits.

    `reference`, `units` and `samples` are what a loss of UAR is measured against and on; null and 0 where no limit on
    it was asked for.
    """

    limits: Limits
    percentile: str = PERCENTILE
    reference: str | None
    units: int
    samples: int
    tests: int
    picked: str | None
    nearest: str | None
    candidates: list[Candidate]


def check_limits(
    max_latency_ms: float | None, max_uar_drop: float | None, confidence: float, unit: Unit
) -> Limits | None:
    """Returns the limits that were asked for; None where there is none.

    Raises:
        InputError: one that no variant can be held against.
    """
    if max_latency_ms is not None and not 0 < max_latency_ms < math.inf:
        raise InputError(f"--max-latency-ms is a time above 0, got {max_latency_ms:g}")
    for value, option in ((max_uar_drop, "--max-uar-drop"), (confidence, "--confidence")):
        if value is not None and not 0 < value < 1:
            raise InputError(f"{option} is a share above 0 and below 1, got {value:g}")
    if max_latency_ms is None and max_uar_drop is None:
        return None
    return Limits(max_latency_ms=max_latency_ms, max_uar_drop=max_uar_drop, confidence=confidence, unit=unit)


# ---------------------------------------------------------------------------------------------
# The choice


def recommend(comparison: Comparison, limits: Limits | None = None) -> tuple[Recommendation, Decision | None]:
    """Names the fastest variant that loses little, in one sentence.

    Without limits, by what was measured: its UAR is at most `MAX_UAR_DROP` below its baseline's. Where none
    qualifies, or latency or accuracy is missing, the sentence says that instead.

    With limits, the fastest that meets all that was asked for, and nothing else is asked of it. A limit on the loss of
    UAR is met surely: a drop is measured against the fp32 variant of the largest budget in the same profile, and
    a bound on it, corrected for the number of variants that meet the limit on latency, is held against the limit.
    Of variants that are not told apart in speed the smallest is taken.

    Returns:
        The recommendation; how every variant stands against the limits, None without limits.

    Raises:
        InputError: there are limits and no variant was timed; or one on the loss of UAR, and a profile without answers
            by sample, without its reference, or with too few samples.
    """
    if limits is None:
        return _by_estimates(comparison), None
    decision, about, reference = _decide(comparison, limits)
    status: Status = "none-meets-the-limits" if decision.picked is None else "chosen"
    told, detail = _words(decision, about, reference, comparison)
    return _recommendation(status, told, about, detail, limits.max_uar_drop), decision


def _recommendation(
    status: Status,
    told: str,
    about: ComparedVariant | None = None,
    detail: str = "",
    max_uar_drop: float | None = MAX_UAR_DROP,
) -> Recommendation:
    return Recommendation(
        sentence=told,
        status=status,
        max_uar_drop=max_uar_drop,
        name=about.name if about else None,
        id=about.measured.id if about else None,
        profile=about.source.name if about else None,
        detail=detail,
    )


def _by_estimates(comparison: Comparison) -> Recommendation:
    variants = [row for row in comparison.rows if not row.is_baseline]
    timed = [row for row in variants if row.p50_ms is not None]
    judged = [row for row in variants if row.uar_drop is not None]
    both = [row for row in timed if row.uar_drop is not None]
    if not variants:
        text = "Only the full-token ViT was measured: there is no PTSR variant to set against it."
        return _recommendation("no-variant", text)
    if not timed and not judged:
        reasons = [row.why_missing("latency_ms") for row in variants]
        unrun = all(reason is not None and reason.kind == "no_device" for reason in reasons)
        text = "Neither latency nor accuracy was measured"
        return _recommendation(
            "nothing-measured", f"{text}: every variant was built, not run here." if unrun else f"{text}."
        )
    if not timed:
        best = min(judged, key=_drop)
        text = f"Latency was not measured; {_lower_first(_where(best, comparison))} PTSR is closest "
        text += f"to the full-token ViT: {accuracy_clause(best, comparison)}."
        return _recommendation("latency-not-measured", text, best)
    fastest = min(timed, key=_p50)
    speed = _speed_clause(fastest, comparison)
    if not both:
        text = f"{speed}; its loss of accuracy was not measured, so what that costs is not known."
        missing = fastest.why_missing("accuracy.uar_drop")
        detail = "" if missing is None else sentence(missing.reason)
        return _recommendation("accuracy-not-measured", text, fastest, detail)
    telling = [row for row in both if not _is_at_chance(row, comparison)]
    if not telling:
        chance = 1 / len(comparison.labels)
        text = f"{speed}; the full-token ViT itself is about as good as guessing (UAR "
        text += f"{_baseline_uar(both[0], comparison):.3f}, chance {chance:.3f}), so these weights "
        text += "say nothing about what that costs."
        return _recommendation("chance", text, fastest)
    within = [row for row in telling if _drop(row) <= MAX_UAR_DROP + 1e-9]
    if not within:
        close = min(both, key=lambda row: (_drop(row), _p50(row)))
        text = f"No variant stays within {MAX_UAR_DROP:g} of the full-token ViT's UAR. The closest: "
        text += f"{_lower_first(_speed_clause(close, comparison))}, "
        text += f"but {accuracy_clause(close, comparison)}."
        return _recommendation("beyond", text, close)
    pick = min(within, key=_p50)
    text = f"{_speed_clause(pick, comparison)}, and {accuracy_clause(pick, comparison)}."
    if any(_p50(row) < _p50(pick) for row in both):
        text += f" What is faster loses more than {MAX_UAR_DROP:g}."
    return _recommendation("within", text, pick)


def _decide(
    comparison: Comparison, limits: Limits
) -> tuple[Decision, ComparedVariant, ComparedVariant | None]:
    """Returns the decision, the variant that it is about (picked or nearest), and what drops are measured against."""
    limit = limits.max_uar_drop
    rows = [row for row in comparison.rows if not row.is_baseline and row.p50_ms is not None]
    references: dict[str, ComparedVariant] = {}
    if limit is not None:
        references = {source.name: _reference(comparison, source.name) for source in comparison.sources}
        rows = [row for row in rows if _predicted(row) is not None]
    if not rows:
        wanted = "timed" if limit is None else "both timed and judged"
        raise InputError(f"no variant was {wanted}: there is nothing to choose from")
    fast = [row for row in rows if limits.max_latency_ms is None or _p95(row) <= limits.max_latency_ms]
    tests = max(1, sum(row is not references.get(row.source.name) for row in fast))
    candidates = {
        row: _candidate(row, references, comparison.reference(row), row in fast, limits, tests)
        for row in rows
    }

    def bound_then_time(row: ComparedVariant) -> tuple[float, float]:
        return candidates[row].upper or 0.0, _p50(row)

    passing = [row for row in fast if limit is None or (candidates[row].upper or 0.0) <= limit]
    picked = _fastest(passing)
    nearest: ComparedVariant | None
    if picked is None:
        nearest = min(fast, key=bound_then_time, default=None) or min(rows, key=_p95)
    else:
        candidates[picked] = candidates[picked].model_copy(update={"told": "taken"})
        faster = [row for row in fast if row not in passing and _p50(row) < _p50(picked)]
        nearest = min(faster, key=bound_then_time, default=None)
    about = picked or nearest
    assert about is not None, "there is a nearest where none is picked"
    reference = references.get(about.source.name)
    judged = None if reference is None else reference.source.profile.judged
    decision = Decision(
        limits=limits,
        reference=None if reference is None else reference.name,
        units=0 if judged is None else len(set(judged.subject)),
        samples=0 if judged is None else len(judged.truth),
        tests=1 if reference is None else tests,
        picked=picked.name if picked else None,
        nearest=nearest.name if nearest else None,
        candidates=list(candidates.values()),
    )
    return decision, about, reference


def _reference(comparison: Comparison, source: str) -> ComparedVariant:
    """Returns the fp32 variant of the largest budget in a profile, on the target of its first variant if there."""
    rows = [row for row in comparison.rows if row.source.name == source]
    if next(row.source.profile.judged for row in rows) is None:
        raise InputError(
            f"the profile {source} holds no answers by sample, so a drop of UAR cannot be bounded: profile with "
            "--data, by this version"
        )
    fp32 = [
        row
        for row in rows
        if not row.is_baseline and row.measured.precision == "fp32" and _predicted(row) is not None
    ]
    if not fp32:
        raise InputError(
            f"the profile {source} holds no fp32 variant that was judged: a drop of UAR is measured against that"
        )
    target = rows[0].source.profile.variants[0].target
    found = max(fp32, key=lambda row: (row.measured.tokens, row.measured.target == target))
    chance = 1 / len(comparison.labels)
    if (found.uar or 0.0) < chance + CHANCE_MARGIN:
        raise InputError(
            f"{found.name} is about as good as guessing (UAR {found.uar:.3f}, chance {chance:.3f}): there is nothing "
            "that could be lost"
        )
    return found


def _candidate(
    row: ComparedVariant,
    references: Mapping[str, ComparedVariant],
    baseline: ComparedVariant | None,
    is_fast: bool,
    limits: Limits,
    tests: int,
) -> Candidate:
    about = {"name": row.name, "id": row.measured.id, "profile": row.source.name, "p95_ms": _p95(row)}
    limit = limits.max_uar_drop
    if limit is None:
        return Candidate(**about, told="meets the limits" if is_fast else "too slow")
    reference, judged = references[row.source.name], row.source.profile.judged
    assert judged is not None, "the reference was judged"
    drop = (reference.uar or 0.0) - (row.uar or 0.0)
    if not is_fast:
        return Candidate(**about, drop=drop, told="too slow")
    answers, base = _predicted(row), _predicted(reference)
    assert answers is not None, "candidates were judged"
    assert base is not None, "the reference was judged"
    sure = limits.confidence

    def pairs(
        other: list[int], unit: Unit = limits.unit, people: list[int] | list[str] = judged.subject
    ) -> Paired:
        return paired(judged.truth, other, answers, people, unit)

    vit = _predicted(baseline) if baseline is not None else None
    bounded = None if vit is None else upper_bound(pairs(vit), confidence=sure, tests=tests).upper
    if row is reference:
        same = {"drop": 0.0, "upper": 0.0, "least": 0.0, "upper_against_baseline": bounded}
        return Candidate(**about, **same, told="meets the limits")
    bound = upper_bound(pairs(base), confidence=sure, tests=tests)
    alone = upper_bound(pairs(base, "sample"), confidence=sure, tests=tests)
    factor = needed_factor(pairs(base), limit, confidence=sure, tests=tests)
    needed_people = None
    if factor is not None and row.source.profile.is_of_rendered_data:
        few = pairs(base, "subject", people_of_few_clips(judged.subject))
        times = needed_factor(few, limit, confidence=sure, tests=tests)
        needed_people = None if times is None else math.ceil(times * len(few.parts))
    within = bound.upper <= limit
    return Candidate(
        **about,
        drop=bound.drop,
        upper=bound.upper,
        least=bound.least,
        needed_units=None if factor is None else math.ceil(factor * bound.units),
        needed_samples=None if factor is None else math.ceil(factor * bound.samples),
        needed_people=needed_people,
        upper_if_independent=alone.upper,
        upper_against_baseline=bounded,
        told="meets the limits" if within else "drop too large" if factor is None else "drop not excluded",
    )


def people_of_few_clips(subjects: Sequence[int]) -> list[str]:
    """Cuts each subject's clips into people of `NEW_CLIPS` clips, as `profile --subjects` renders them.

    Args:
        subjects: (n,) who is seen.

    Returns:
        (n,) names.
    """
    seen: Counter[int] = Counter()
    names = []
    for subject in subjects:
        names.append(f"{subject}/{seen[subject] // NEW_CLIPS}")
        seen[subject] += 1
    return names


def _fastest(rows: Sequence[ComparedVariant]) -> ComparedVariant | None:
    """Returns the fastest by its median; of those whose ratio's interval meets the fastest one's, the smallest."""
    if not rows:
        return None
    first = min(rows, key=_p50)

    def is_tied(row: ComparedVariant) -> bool:
        mine, its = row.measured.ratio, first.measured.ratio
        alike = row.source is first.source and mine is not None and its is not None
        return row is first or (alike and mine.high >= its.low)  # type: ignore[union-attr]

    return min(filter(is_tied, rows), key=lambda row: (row.measured.size_bytes, _p50(row)))


def _p50(row: ComparedVariant) -> float:
    assert row.p50_ms is not None, "only timed rows are candidates"
    return row.p50_ms


def _p95(row: ComparedVariant) -> float:
    assert row.measured.latency_ms is not None, "only timed rows are candidates"
    return row.measured.latency_ms.p95


def _drop(row: ComparedVariant) -> float:
    assert row.uar_drop is not None, "only judged rows are compared"
    return row.uar_drop


def _predicted(row: ComparedVariant) -> list[int] | None:
    return row.measured.accuracy.predicted if row.measured.accuracy else None


def _baseline_uar(row: ComparedVariant, comparison: Comparison) -> float:
    base = comparison.reference(row)
    if base is not None and base.uar is not None and accuracy_key(base) == accuracy_key(row):
        return base.uar
    return (row.uar or 0.0) + _drop(row)


def _is_at_chance(row: ComparedVariant, comparison: Comparison) -> bool:
    return _baseline_uar(row, comparison) < 1 / len(comparison.labels) + CHANCE_MARGIN


# ---------------------------------------------------------------------------------------------
# Its words


def _speed_clause(row: ComparedVariant, comparison: Comparison) -> str:
    text = f"{_where(row, comparison)} PTSR answers in {short_ms(row.p50_ms or 0.0)} ms (p50)"
    base = comparison.reference(row)
    full = "the full-token ViT"
    if base and _build_of(base) != _build_of(row):
        full += f" in {base.measured.precision} on {base.measured.target}"
    if base and base.p50_ms is not None:
        full += f" at {short_ms(base.p50_ms)} ms"
    ratio, fair = row.measured.ratio, row.measured.ratio_same_precision
    if ratio is None:
        known = base is not None and base.p50_ms is not None
        return f"{text}, beside {full}, a ratio that was not measured" if known else (
            f"{text}; how that compares with {full} was not measured"
        )  # fmt: skip
    times = ratio_text(ratio)
    if ratio.low <= 1 <= ratio.high:
        return f"{text}, not told apart from {full} ({times} as fast)"
    alike = base is None or _build_of(base) == _build_of(row) or fair is None
    first = (
        "" if alike or fair is None else f"{ratio_text(fair)} as fast as the full-token ViT built alike and "
    )
    return f"{text}, {'which is slower: ' if ratio.high < 1 else ''}{first}{times} as fast as {full}"


def accuracy_clause(row: ComparedVariant, comparison: Comparison) -> str:
    """Says in a clause how a variant's UAR lies to that of its baseline, with the interval of the difference."""
    accuracy = row.measured.accuracy
    if accuracy is None or accuracy.uar_drop is None:
        return "its loss of UAR was not measured"
    base = comparison.reference(row)
    same = base is not None and base.uar is not None and accuracy_key(base) == accuracy_key(row)
    against = f" against {base.uar:.3f}" if base is not None and same else ""
    if accuracy.is_told_apart is False:
        gain = interval_text(-(accuracy.uar_drop_high or 0.0), -(accuracy.uar_drop_low or 0.0))
        return f"in UAR there is no difference ({accuracy.uar:.3f}{against}, {gain}, n = {accuracy.n})"
    known = accuracy.uar_drop_low is not None and accuracy.uar_drop_high is not None
    gain = (
        f"{interval_text(-(accuracy.uar_drop_high or 0.0), -(accuracy.uar_drop_low or 0.0))}, "
        if known
        else ""
    )
    told = f"({accuracy.uar:.3f}{against}, {gain}n = {accuracy.n})"
    return f"its UAR is {_step(accuracy.uar_drop, 'the same')} {told}"


def _where(row: ComparedVariant, comparison: Comparison) -> str:
    text = f"At {budget_text(row.measured.keep_rate)} of the tokens"
    extra = []
    if len({_build_of(other) for other in comparison.rows}) > 1:
        extra.append(f"in {row.measured.precision} on {row.measured.target}")
    if len(comparison.sources) > 1:
        extra.append(f"in the profile {row.source.name}")
    return f"{text}, {', '.join(extra)}," if extra else text


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def _build_of(row: ComparedVariant) -> tuple[str, str]:
    return row.measured.precision, row.measured.target


def _words(
    decision: Decision, about: ComparedVariant, reference: ComparedVariant | None, comparison: Comparison
) -> tuple[str, str]:
    """Returns a decision in a sentence that says what was asked for and what was not, and what stands behind it."""
    limits = decision.limits
    candidates = {candidate.name: candidate for candidate in decision.candidates}
    found, close = candidates[about.name], candidates.get(decision.nearest or "")
    latency = (
        "" if limits.max_latency_ms is None else f"{limits.max_latency_ms:g} ms of latency ({PERCENTILE})"
    )
    loss = "" if limits.max_uar_drop is None else f"a loss of UAR of at most {limits.max_uar_drop:g}"
    asked = " with ".join(filter(None, (latency, loss)))
    open_ = "" if latency and loss else f"; no limit on {'the loss of UAR' if latency else 'latency'}"
    sure = f"with {100 * limits.confidence:g} % confidence"
    if decision.picked is None:
        if found.told == "too slow":
            took = f"{three_digits(found.p95_ms)} ms ({PERCENTILE})"
            return f"No variant meets {asked}: the fastest, {found.name}, takes {took}{open_}.", ""
        return (
            f"No variant is shown to meet {asked}{open_}.",
            f"The nearest is {_missing(found, decision, sure)}",
        )
    text = f"Take {found.name}: it answers within {three_digits(found.p95_ms)} ms ({PERCENTILE})"
    if reference is None:
        loss_told = accuracy_clause(about, comparison)
        text, detail = (
            f"{text}, and none is shown to be faster.",
            f"Accuracy was not held against a limit: {loss_told}.",
        )
        return f"{text} Asked for: {asked}{open_}.", detail
    text += " and "
    if about is reference:
        text, detail = f"{text}is the reference itself: nothing faster is shown to lose so little.", ""
    else:
        text += f"loses at most {rounded_up(found.upper or 0.0)} of UAR against {reference.name}, {sure}."
        detail = f"Measured: {_step(found.drop or 0.0)}, on {_counted(decision)}."
    if close is not None:
        detail += f" Faster is {_missing(close, decision, sure)}"
    return f"{text} Asked for: {asked}{open_}.", detail.strip()


def _missing(close: Candidate, decision: Decision, sure: str) -> str:
    """Describes a candidate whose drop is not excluded, and what would exclude it."""
    unit, limit = decision.limits.unit, f"{decision.limits.max_uar_drop or 0:g}"
    text = f"{close.name} at {three_digits(close.p95_ms)} ms: measured {_step(close.drop or 0.0)}, but {sure} all that is "
    text += f"excluded is a loss above {rounded_up(close.upper or 0.0)} ({_counted(decision)})"
    if close.needed_units is None:
        return f"{text}; more data of this kind would not show {limit}."
    has = decision.units if unit == "subject" else decision.samples
    text += f". To show {limit} it needs about {_two_digits(close.needed_units):,} {unit}s like these, and has {has:,}"
    if unit == "subject" and close.upper_if_independent is not None:
        text += f"; were all samples independent of one another, the bound would be {rounded_up(close.upper_if_independent)}"
    if close.needed_people is not None:
        people = _two_digits(close.needed_people)
        text += f". So many are rendered by: ptsr-edge profile ... --subjects {people} ({NEW_CLIPS} clips of each)"
    return text + "."


def _two_digits(count: int) -> int:
    """Rounds a number up to two digits."""
    step: int = 10 ** max(0, len(str(count)) - 2)
    return -(-count // step) * step


def _counted(decision: Decision) -> str:
    unit = f"{decision.samples:,} samples of {decision.units} subjects"
    unit += ", subjects taken as the unit" if decision.limits.unit == "subject" else ", taken as independent"
    return f"{unit}, one of {decision.tests} variants" if decision.tests > 1 else unit


def _step(drop: float, none: str = "no difference") -> str:
    """Says how a UAR lies to another one, `none` where they are the same."""
    drop = round(drop, 3)
    return none if drop == 0 else f"{abs(drop):.3f} {'lower' if drop > 0 else 'higher'}"
