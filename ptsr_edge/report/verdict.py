"""What the profiles support, in one sentence."""

from __future__ import annotations

from typing import Literal

from ptsr_edge.core.records import Record
from ptsr_edge.profile.schema import NOT_RUN
from ptsr_edge.report.comparison import Comparison, Row, _ms, accuracy_key, budget_text, ratio_text

MAX_UAR_DROP = 0.02
"""The largest loss of UAR against the full-token ViT that the verdict lets through."""

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


class Verdict(Record):
    """The sentence, what kind of answer it is, and the variant it is about (null: about none).

    `detail` says how sure a choice is, and what is missing for another one.
    """

    sentence: str
    status: Status
    max_uar_drop: float
    name: str | None = None
    id: str | None = None
    profile: str | None = None
    detail: str = ""


def decide(comparison: Comparison, max_uar_drop: float = MAX_UAR_DROP) -> Verdict:
    """The fastest variant whose UAR is at most `max_uar_drop` below its baseline's, in one sentence.

    Where none qualifies, or latency or accuracy is missing, the sentence says that instead.
    """
    candidates = [row for row in comparison.rows if not row.is_baseline]
    timed = [row for row in candidates if row.p50_ms is not None]
    judged = [row for row in candidates if row.uar_drop is not None]
    both = [row for row in timed if row.uar_drop is not None]
    within = [row for row in both if (row.uar_drop or 0.0) <= max_uar_drop + 1e-9]

    def answer(status: Status, sentence: str, row: Row | None = None) -> Verdict:
        verdict = Verdict(sentence=sentence, status=status, max_uar_drop=max_uar_drop)
        if row is None:
            return verdict
        about = {"name": row.name, "id": row.measured.id, "profile": row.source.name}
        return verdict.model_copy(update=about)

    if not candidates:
        return answer(
            "no-variant",
            "Only the full-token ViT was measured: there is no PTSR variant to set against it.",
        )
    if not timed and not judged:
        text = "Neither latency nor accuracy was measured"
        unrun = all(row.measured.notes and row.measured.notes[0].startswith(NOT_RUN) for row in candidates)
        return answer("nothing-measured", f"{text}: every variant was {NOT_RUN}." if unrun else f"{text}.")
    if not timed:
        best = min(judged, key=lambda row: row.uar_drop or 0.0)
        text = f"Latency was not measured; {_lower_first(_where(best, comparison))} PTSR is closest "
        text += f"to the full-token ViT: {_accuracy_clause(best, comparison)}."
        return answer("latency-not-measured", text, best)
    fastest = min(timed, key=lambda row: row.p50_ms or 0.0)
    speed = _speed_clause(fastest, comparison)
    if not both:
        text = f"{speed}; its loss of accuracy was not measured{_why_unjudged(fastest)}, "
        text += "so what that costs is not known."
        return answer("accuracy-not-measured", text, fastest)
    if all(_at_chance(row, comparison) for row in both):
        chance = 1 / len(comparison.labels)
        text = f"{speed}; the full-token ViT itself is about as good as guessing (UAR "
        text += f"{_baseline_uar(both[0], comparison):.3f}, chance {chance:.3f}), so these weights "
        text += "say nothing about what that costs."
        return answer("chance", text, fastest)
    within = [row for row in within if not _at_chance(row, comparison)]
    if not within:
        close = min(both, key=lambda row: (row.uar_drop or 0.0, row.p50_ms or 0.0))
        text = f"No variant stays within {max_uar_drop:g} of the full-token ViT's UAR. The closest: "
        text += f"{_lower_first(_speed_clause(close, comparison))}, "
        text += f"but {_accuracy_clause(close, comparison)}."
        return answer("beyond", text, close)
    pick = min(within, key=lambda row: row.p50_ms or 0.0)
    text = f"{_speed_clause(pick, comparison)}, and {_accuracy_clause(pick, comparison)}."
    if any((row.p50_ms or 0.0) < (pick.p50_ms or 0.0) for row in both):
        text += f" What is faster loses more than {max_uar_drop:g}."
    return answer("within", text, pick)


def _speed_clause(row: Row, comparison: Comparison) -> str:
    text = f"{_where(row, comparison)} PTSR answers in {_ms(row.p50_ms or 0.0)} ms (p50)"
    base = comparison.reference(row)
    full = "the full-token ViT"
    if base and _build_of(base) != _build_of(row):
        full += f" in {base.measured.precision} on {base.measured.target}"
    if base and base.p50_ms is not None:
        full += f" at {_ms(base.p50_ms)} ms"
    ratio = row.measured.ratio
    if ratio is None:
        known = base is not None and base.p50_ms is not None
        return f"{text}, beside {full}, a ratio that was not measured" if known else (
            f"{text}; how that compares with {full} was not measured"
        )  # fmt: skip
    times = ratio_text(ratio.median, ratio.low, ratio.high)
    if ratio.low <= 1 <= ratio.high:
        return f"{text}, not told apart from {full} ({times} as fast)"
    return f"{text}, {'which is slower: ' if ratio.high < 1 else ''}{times} as fast as {full}"


def _accuracy_clause(row: Row, comparison: Comparison) -> str:
    accuracy = row.measured.accuracy
    if accuracy is None or accuracy.uar_drop is None:
        return "its loss of UAR was not measured"
    drop = round(accuracy.uar_drop, 3)
    step = "the same" if drop == 0 else f"{abs(drop):.3f} {'lower' if drop > 0 else 'higher'}"
    base = comparison.reference(row)
    same = base is not None and base.uar is not None and accuracy_key(base) == accuracy_key(row)
    against = f" against {base.uar:.3f}" if base is not None and same else ""
    if accuracy.is_told_apart is False:
        interval = f"{-(accuracy.uar_drop_high or 0.0):+.3f}, {-(accuracy.uar_drop_low or 0.0):+.3f}"
        return f"in UAR there is no difference ({accuracy.uar:.3f}{against}, [{interval}], n = {accuracy.n})"
    return f"its UAR is {step} ({accuracy.uar:.3f}{against}, n = {accuracy.n})"


def _why_unjudged(row: Row) -> str:
    reasons = (note.partition("accuracy was not measured: ")[2] for note in row.measured.notes)
    return next((f" ({reason})" for reason in reasons if reason), "")


def _where(row: Row, comparison: Comparison) -> str:
    text = f"At {budget_text(row.measured.keep_rate)} of the tokens"
    extra = []
    if len({_build_of(other) for other in comparison.rows}) > 1:
        extra.append(f"in {row.measured.precision} on {row.measured.target}")
    if len(comparison.sources) > 1:
        extra.append(f"in the profile {row.source.name}")
    return f"{text}, {', '.join(extra)}," if extra else text


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def _build_of(row: Row) -> tuple[str, str]:
    return row.measured.precision, row.measured.target


def _baseline_uar(row: Row, comparison: Comparison) -> float:
    base = comparison.reference(row)
    if base is not None and base.uar is not None and accuracy_key(base) == accuracy_key(row):
        return base.uar
    return (row.uar or 0.0) + (row.uar_drop or 0.0)


def _at_chance(row: Row, comparison: Comparison) -> bool:
    return _baseline_uar(row, comparison) < 1 / len(comparison.labels) + CHANCE_MARGIN
