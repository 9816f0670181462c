"""Hazards: what in the record makes a number misleading or a variant a poor choice; and what no number here says.

A further hazard is a function, from the compared variants to what it found, and one entry of `HAZARDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ptsr_edge.core.config import Record
from ptsr_edge.report.comparison import (
    ComparedVariant,
    Comparison,
    percent,
    precision_rank,
    ratio_text,
    short_ms,
    signed,
)
from ptsr_edge.report.recommendation import MAX_UAR_DROP, Recommendation
from ptsr_edge.stats.latency import CV_LIMIT, Ratio

Severity = Literal["serious", "care", "note"]

SEVERITIES: tuple[Severity, ...] = ("serious", "care", "note")
"""From the worst on: what makes a result or a choice wrong, what makes it uncertain, what could be better."""

MOVED = ("shapes and copies", "number formats")
"""Classes of operators that compute nothing: they move values and change how these are written."""

MOST_MOVED = 0.1
"""Of the inference; more is a hazard."""

LEAST_INFERENCE = 0.5
"""Of a whole sample; where it is less, a faster network alone helps little."""

LEAST_CORE_SHARE = 0.97
"""CPU time over wall time of one thread; below it, something else had its core."""

TAIL = 1.5
"""p95 over p50; above it, the median says little about the next frame."""

LEAST_OF_CEILING = 0.2
"""Of the speed of a plain matrix product; below it, the network is bound by something else than multiply-adds."""

MOST_NAMED = 4


class Hazard(Record):
    """One hazard: `kind` for programs, one sentence for people, and the names of the variants that it concerns."""

    kind: str
    severity: Severity
    text: str
    variants: list[str]


Found = Iterator[tuple[str, Sequence[ComparedVariant]]]
"""Sentences, each with the variants that it concerns."""


@dataclass(frozen=True)
class Rule:
    """A kind of hazard and the function that looks for it."""

    kind: str
    severity: Severity
    find: Callable[[Comparison, Recommendation], Found]


def hazards(comparison: Comparison, recommendation: Recommendation) -> list[Hazard]:
    """Returns what the rules of `HAZARDS` find, the worst first."""
    found = [
        Hazard(kind=rule.kind, severity=rule.severity, text=text, variants=[row.name for row in rows])
        for rule in HAZARDS
        for text, rows in rule.find(comparison, recommendation)
    ]
    return sorted(found, key=lambda hazard: SEVERITIES.index(hazard.severity))


def _named(rows: Sequence[ComparedVariant]) -> str:
    names = [row.name for row in rows[:MOST_NAMED]]
    more = len(rows) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def _variants(comparison: Comparison) -> list[ComparedVariant]:
    return [row for row in comparison.rows if not row.is_baseline]


def _disturbed(comparison: Comparison, _: Recommendation) -> Found:
    rows = [
        row
        for row in comparison.rows
        if (missing := row.measured.missing.get("ratio")) is not None and missing.kind == "disturbed"
    ]
    if rows:
        yield f"Other processes used the machine so much that no ratio can be told: {_named(rows)}.", rows


def _by_cpu_time(comparison: Comparison, _: Recommendation) -> Found:
    rows = [row for row in comparison.rows if row.measured.ratio and row.measured.ratio.clock == "cpu"]
    if rows:
        yield (
            "Load beside the run: other processes shared the cores, so ratios are of CPU time, and the latencies in "
            f"milliseconds are longer than on a quiet machine: {_named(rows)}.",
            rows,
        )


def _shared_core(comparison: Comparison, _: Recommendation) -> Found:
    rows = [
        row
        for row in comparison.rows
        if row.measured.cpu_share is not None
        and row.measured.cpu_share < LEAST_CORE_SHARE
        and row.source.profile.method.get("threads") == 1
        and not (row.measured.ratio and row.measured.ratio.clock == "cpu")
    ]
    if rows:
        least = min(row.measured.cpu_share or 0.0 for row in rows)
        yield (
            f"Load beside the run: a thread had its core for {percent(least)} of the time at the least: {_named(rows)}.",
            rows,
        )


def _slower_than_vit(comparison: Comparison, _: Recommendation) -> Found:
    rows = [row for row in _variants(comparison) if (ratio := _fair(row, comparison)) and ratio.high < 1]
    if rows:
        told = "; ".join(f"{row.name} {ratio_text(_fair(row, comparison))}" for row in rows[:MOST_NAMED])  # type: ignore[arg-type]
        more = f" and {len(rows) - MOST_NAMED} more" if len(rows) > MOST_NAMED else ""
        yield f"Slower than the full-token ViT in the same runtime and precision: {told}{more}.", rows


def _fair(row: ComparedVariant, comparison: Comparison) -> Ratio | None:
    """Returns a variant's ratio within its runtime and precision, where that was measured."""
    measured, base = row.measured, comparison.reference(row)
    if measured.ratio_same_precision is not None:
        return measured.ratio_same_precision
    alike = base is not None and (base.measured.target, base.measured.precision) == (
        measured.target,
        measured.precision,
    )
    return measured.ratio if alike else None


def _slower_than_wider(comparison: Comparison, _: Recommendation) -> Found:
    for row in comparison.rows:
        mine = row.measured.ratio
        for wider in comparison.rows:
            its = wider.measured.ratio
            alike = (wider.source is row.source and wider.is_baseline == row.is_baseline
                     and wider.measured.target == row.measured.target and wider.measured.tokens == row.measured.tokens
                     and wider.measured.bundle == row.measured.bundle)  # fmt: skip
            narrower = precision_rank(row.measured.precision) > precision_rank(wider.measured.precision)
            if alike and narrower and mine is not None and its is not None and mine.high < its.low:
                yield (
                    f"{row.measured.precision} is slower than {wider.measured.precision} here: {row.name} takes "
                    f"{short_ms(row.p50_ms or 0.0)} ms, {wider.name} {short_ms(wider.p50_ms or 0.0)} ms.",
                    [row],
                )


def _uncertain_gain(comparison: Comparison, _: Recommendation) -> Found:
    rows = [
        row
        for row in _variants(comparison)
        if (ratio := _fair(row, comparison) or row.measured.ratio)
        and ratio.high - ratio.low > abs(ratio.median - 1)
    ]
    if rows:
        yield f"The interval of the ratio is wider than the gain: {_named(rows)}.", rows


def _uncertain_accuracy(comparison: Comparison, recommendation: Recommendation) -> Found:
    for row in _variants(comparison):
        accuracy = row.measured.accuracy
        high = None if accuracy is None else accuracy.uar_drop_high
        if row.name == recommendation.name and high is not None and high > MAX_UAR_DROP:
            yield (
                f"A loss of UAR of up to {signed(high)[1:]} is not excluded for {row.name}: the 95 % interval is wider than "
                f"the {MAX_UAR_DROP:g} that may be lost.",
                [row],
            )


def _restless_tail(comparison: Comparison, _: Recommendation) -> Found:
    timed = [(row, row.measured.latency_ms) for row in comparison.rows if row.measured.latency_ms is not None]
    rows = [row for row, latency in timed if latency.p95 > TAIL * latency.p50]
    if rows:
        yield f"p95 is more than {TAIL:g} times the median: {_named(rows)}.", rows


def _little_inference(comparison: Comparison, recommendation: Recommendation) -> Found:
    shares = {row: share for row in _variants(comparison) if (share := _inference_share(row)) is not None}
    rows = [row for row, share in shares.items() if share < LEAST_INFERENCE]
    picked = [row for row in rows if row.name == recommendation.name]
    if rows:
        row = (picked or sorted(rows, key=lambda row: shares[row]))[0]
        yield (
            f"Of a whole sample at {row.name}, inference is only {percent(shares[row])}; the rest is flow, strain and "
            f"normalisation, which no budget makes faster. It is less than half at {len(rows)} of {len(shares)} variants.",
            rows,
        )


def _inference_share(row: ComparedVariant) -> float | None:
    """Returns the inference's share of a whole sample: of the measured one, else of the sum of the stages."""
    stages, p50 = row.measured.stages, row.p50_ms
    if p50 is None:
        return None
    if row.measured.sample_ms is not None:
        return min(1.0, p50 / row.measured.sample_ms)
    if stages is None or stages.flow_ms is None or stages.strain_ms is None:
        return None
    return p50 / (p50 + stages.flow_ms + stages.strain_ms + stages.normalise_ms + stages.postprocess_ms)


def _moved(comparison: Comparison, recommendation: Recommendation) -> Found:
    shares = {
        row: sum(row.measured.stages.operators.get(kind, 0.0) for kind in MOVED)
        for row in _variants(comparison)
        if row.measured.stages and row.measured.stages.operators
    }
    rows = sorted((row for row, share in shares.items() if share > MOST_MOVED), key=lambda row: -shares[row])
    if rows:
        shown = next((row for row in rows if row.name == recommendation.name), rows[0])
        most = f", {percent(shares[rows[0]])} at {rows[0].name}" if rows[0] is not shown else ""
        yield (
            f"{percent(shares[shown])} of the inference at {shown.name} goes into reordering, copying and changing number "
            f"formats{most}; more than {percent(MOST_MOVED)} at {len(rows)} of {len(shares)} variants.",
            rows,
        )


def _far_from_ceiling(comparison: Comparison, recommendation: Recommendation) -> Found:
    for row in comparison.rows:
        share = row.measured.ceiling.share if row.measured.ceiling else None
        if row.name == recommendation.name and share is not None and share < LEAST_OF_CEILING:
            yield (
                f"{row.name} reaches {percent(share)} of the speed of a plain matrix product in the same runtime: "
                "something else than multiply-adds takes most of its time.",
                [row],
            )


HAZARDS: tuple[Rule, ...] = (
    Rule("ratio withheld", "serious", _disturbed),
    Rule("slower than the ViT alike", "serious", _slower_than_vit),
    Rule("slower in less precision", "serious", _slower_than_wider),
    Rule("ratio by CPU time", "care", _by_cpu_time),
    Rule("shared core", "care", _shared_core),
    Rule("interval wider than the gain", "care", _uncertain_gain),
    Rule("loss not excluded", "care", _uncertain_accuracy),
    Rule("restless tail", "care", _restless_tail),
    Rule("little inference", "note", _little_inference),
    Rule("reorders", "note", _moved),
    Rule("far from the ceiling", "note", _far_from_ceiling),
)
"""What is looked for; its order is that of hazards that weigh the same."""


# ---------------------------------------------------------------------------------------------
# What the numbers do not say

TAIL_SAMPLES = 24_576
"""Samples that MLPerf asks for before it trusts a 90th percentile at 99 % confidence."""


def instability(comparison: Comparison) -> list[str]:
    """Returns a sentence per profile whose last attempt was unstable: what disturbed it, and how often it was tried."""
    texts = []
    for source in comparison.sources:
        attempts = source.profile.attempts
        if attempts and attempts[-1].unstable:
            which = f"The profile {source.name} is" if len(comparison.sources) > 1 else "This profile is"
            times = "once" if len(attempts) == 1 else f"{len(attempts)} times"
            texts.append(
                f"{which} unstable: {attempts[-1].unstable}. It was measured {times}; times and ratios are to be "
                "taken with care until a quiet machine repeats them."
            )
    return texts


def limitations(comparison: Comparison) -> Iterator[str]:
    """Yields, in sentences, what the numbers do not say."""
    yield (
        "The latencies are those of the machine, versions and thread count under Environment on the page, at batch 1. "
        "Another device needs a profile of its own."
    )
    yield (
        "What is timed is what Method on the page says; finding the face and measuring the optical flow are not part "
        "of it unless Method names them."
    )
    yield "One multiply-add counts as one MAC. MACs bound what a budget can gain, they do not promise it."
    latencies = [row.measured.latency_ms for row in comparison.rows if row.measured.latency_ms]
    fewest = min((latency.n for latency in latencies), default=TAIL_SAMPLES)
    if fewest < TAIL_SAMPLES:
        yield (
            f"The tail percentiles rest on {fewest:,} samples and more. MLPerf asks for "
            f"{TAIL_SAMPLES:,} before it trusts a 90th percentile: read p99 as an impression."
        )
    restless = [latency.cv for latency in latencies if latency.cv > CV_LIMIT]
    if restless:
        yield (
            f"The latency of {len(restless)} of {len(latencies)} variants varied by more than "
            f"{100 * CV_LIMIT:g} % (coefficient of variation, up to {percent(max(restless))}): the machine "
            "was not quiet."
        )
    if len(comparison.sources) > 1:
        yield (
            "The profiles are separate runs. A ratio holds within its own profile, and the dashed line of "
            "the first chart joins points of one profile only."
        )
    methods = [source.profile.method for source in comparison.sources]
    for left_out in sorted({method["left_out"] for method in methods if method.get("quick")}):
        yield f"A quick run, for a first look: few starts and rounds; not measured: {left_out}."
    unlike = {
        method["baseline_trained"] for method in methods if method.get("baseline_trained_alike") is False
    }
    for trained in sorted(unlike):
        yield f"The baseline was trained {trained}: what its accuracy differs by is not the architecture's alone."
    judged = [row for row in comparison.rows if row.measured.accuracy]
    if judged:
        yield (
            "Accuracy is that of one set of weights on one set of samples. Another training seed moves it, "
            "and a difference of a hundredth is not evidence."
        )
    if any(row.source.profile.is_of_rendered_data for row in judged):
        yield (
            "Accuracy on synthetic data shows what a smaller budget or precision keeps of what the "
            "checkpoint learnt. It is no evidence about people."
        )
    yield (
        "The weights that ship with ptsr-edge were trained on the project's own synthetic data. They are "
        "for trying the toolkit, not for judging people."
    )
    yield (
        "PTSR is a documented reconstruction from the publication's abstract and published building "
        "blocks, not its authors' code. A class is a pattern of movement, not what somebody feels."
    )
