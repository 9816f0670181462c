"""What stands behind a verdict, as tables and sentences: bounds, controls of DTSM, dynamic counts, int8 layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ptsr_edge.profile.schema import Control, Dynamic
from ptsr_edge.report.comparison import ComparedVariant, Comparison, budget_text, rounded_up, three_digits
from ptsr_edge.report.recommendation import Decision
from ptsr_edge.report.tables import Cell, Line, Table
from ptsr_edge.stats.latency import CV_LIMIT

Values = Sequence[tuple[str, float | int | str | None]]
"""What is written and by what it is sorted, cell by cell."""

NONE = "none"
"""What a difference is called whose interval holds zero."""


def build_evidence(comparison: Comparison, decision: Decision | None) -> dict[str, Any]:
    """Tables and sentences by the names that the templates know; a table of null was not to be had."""
    controls = next((s.profile.controls for s in comparison.sources if s.profile.controls), None)
    dynamic = next((s.profile.dynamic_counts for s in comparison.sources if s.profile.dynamic_counts), None)
    int8 = _int8_rows(comparison)
    return {
        "decision_table": _decision_table(decision),
        "decision_text": _decision_text(decision),
        "controls_table": _controls_table(controls),
        "controls_text": controls_text(controls),
        "dynamic_table": _dynamic_table(dynamic, comparison),
        "dynamic_text": dynamic_text(dynamic),
        "int8_table": _int8_table(int8),
        "int8_text": int8_text(int8),
        "macs_text": macs_text(comparison),
    }


def macs_text(comparison: Comparison) -> list[str]:
    """The multiply-adds as written, exported and in the file itself, a sentence a budget, and why they differ."""
    texts: dict[str, None] = {}
    for row in comparison.rows:
        found = row.measured
        if found.macs_eager is None or found.macs_explained is None:
            continue
        name = "The full-token ViT" if row.is_baseline else f"At {budget_text(found.keep_rate)}"
        text = f"{name}: {found.macs_eager:,} multiply-adds as written (fvcore on the eager model), {found.macs:,} exported"
        if found.macs_graph is not None:
            alike = "the same" if found.macs_graph == found.macs else f"{found.macs_graph:,}"
            text += f", {alike} counted on the ONNX file itself"
        elif any(text in other for other in texts):
            continue  # the same budget, counted on a file of another target
        told = found.macs_explained
        texts[text + ("." if found.macs == found.macs_eager else f": {told}.")] = None
    return list(texts)


def difference_text(value: float, low: float, high: float) -> str:
    """A difference with its interval; called none where the interval holds zero."""
    interval = f"[{low:+.3f}, {high:+.3f}]"
    return f"{NONE} {interval}" if low <= 0 <= high else f"{value:+.3f} {interval}"


def _decision_table(decision: Decision | None) -> Table | None:
    if decision is None:
        return None
    rows: list[tuple[str, Values]] = []
    for entry in decision.candidates:
        upper = "-" if entry.upper is None else rounded_up(entry.upper)
        alone = "-" if entry.upper_if_independent is None else rounded_up(entry.upper_if_independent)
        vit = entry.upper_against_baseline
        against = "-" if vit is None else rounded_up(vit)
        needed = "-" if entry.needed_units is None else f"{entry.needed_units:,}"
        rows.append(
            (
                entry.name,
                (
                    (entry.told, entry.told),
                    (three_digits(entry.p95_ms), entry.p95_ms),
                    (f"{entry.drop:+.3f}" if round(entry.drop, 3) else "0.000", entry.drop),
                    (upper, entry.upper),
                    (alone, entry.upper_if_independent),
                    (needed, entry.needed_units),
                    (against, entry.upper_against_baseline),
                ),
            )
        )
    headings = ("Variant", "Stands", f"{decision.percentile}, ms", "UAR lost", "At most", "If independent",
                f"Needs {decision.limits.unit}s", "At most, ViT")  # fmt: skip
    return _table("decision", "Held against the limits", headings, rows, decision.picked)


def _decision_text(decision: Decision | None) -> list[str]:
    if decision is None:
        return [
            "No limits were asked for: --max-latency-ms and --max-uar-drop choose a variant, with a bound on what "
            "it loses."
        ]
    limits, unit = decision.limits, decision.limits.unit
    together = f" for all {decision.tests} variants at once" if decision.tests > 1 else ""
    dependent = (
        "Assumed: subjects are independent of one another; samples of one subject may depend on each other in any way."
        if unit == "subject"
        else "Assumed: all samples are independent of one another, those of one subject too: --unit subject does not "
        "assume it."
    )
    return [
        f"UAR lost: against {decision.reference}, as measured. At most: with {100 * limits.confidence:g} % confidence{together}, the expected "
        "loss is not above this. The bound assumes no distribution: it is a "
        "test by betting (Waudby-Smith and Ramdas 2023) on paired answers to the same held-out samples.",
        f"{dependent} There are {decision.units:,} subjects with {decision.samples:,} samples. "
        "If independent: the bound, were all samples independent of one another. Needs: how many like these would "
        f"bring the bound to {limits.max_uar_drop:g}. At most, ViT: for information, the bound on the loss against the "
        "full-token ViT.",
        f"Latency is held against {decision.percentile}: what 19 of 20 inferences meet. The fastest by its median "
        "is taken; of those whose ratios' intervals overlap, the smallest.",
    ]


def _controls_table(controls: Sequence[Control] | None) -> Table | None:
    if not controls:
        return None
    rows: list[tuple[str, Values]] = []
    for entry in controls:
        gain = "-"
        if entry.gain is not None and entry.gain_low is not None and entry.gain_high is not None:
            gain = difference_text(entry.gain, entry.gain_low, entry.gain_high)
        cells: Values = (
            (str(entry.tokens), entry.tokens),
            (str(entry.seeds), entry.seeds),
            (f"{entry.uar:.3f}", entry.uar),
            (gain, entry.gain),
        )
        rows.append((entry.selection, cells))
    headings = ("Selection", "Tokens", "Draws", "UAR", "DTSM gains")
    return _table("controls", "DTSM against its controls", headings, rows, None)


def controls_text(controls: Sequence[Control] | None) -> str:
    """What DTSM gains over its controls, in a sentence a control."""
    if not controls:
        return "DTSM was not set against its controls: that needs --data and the checkpoint of the bundle."
    parts = []
    for name in dict.fromkeys(entry.selection for entry in controls if entry.gain is not None):
        gains = [
            f"{difference_text(entry.gain, entry.gain_low, entry.gain_high)} at {entry.tokens} tokens"
            for entry in controls
            if entry.selection == name
            and entry.gain is not None
            and entry.gain_low is not None
            and entry.gain_high is not None
        ]
        title = "random selection" if name == "random" else "selection by strain energy"
        parts.append(f"Over {title} DTSM gains UAR: {', '.join(gains)}.")
    if all(entry.selection != "strain" for entry in controls):
        parts.append("This model's DTSM selects by strain energy itself, so that is no control of it.")
    parts.append(
        "All through the eager model with the same weights on the same samples; 95 % intervals by a paired bootstrap "
        "over subjects; a difference whose interval holds zero is called none. Weights that were "
        "trained with DTSM's selection favour it."
    )
    return " ".join(parts)


def _dynamic_table(dynamic: Dynamic | None, comparison: Comparison) -> Table | None:
    if dynamic is None:
        return None
    budgets = {row.measured.tokens: row.measured.keep_rate for row in comparison.rows if not row.is_baseline}
    rows: list[tuple[str, Values]] = []
    for tokens, rate in sorted(budgets.items(), reverse=True):
        share = dynamic.truncated(tokens)
        rows.append((budget_text(rate), ((str(tokens), tokens), (f"{100 * share:.1f} %", share))))
    headings = ("Budget", "Tokens", "Samples truncated")
    return _table("dynamic", "Static budgets against the dynamic mode", headings, rows, None)


def dynamic_text(dynamic: Dynamic | None) -> str:
    """Where the counts come from and what they say."""
    if dynamic is None:
        return "Not counted: that needs calibration data (export --budgets auto) or --data, and the bundle's weights."
    counts = sorted(int(count) for count, n in dynamic.counts.items() for _ in range(n))
    middle = counts[len(counts) // 2]
    whose = "calibration samples" if dynamic.on == "calibration" else "judged samples"
    return (
        f"DTSM's dynamic mode keeps the smallest set that holds {dynamic.mass:.0%} of a sample's score: {counts[0]} to "
        f"{counts[-1]} tokens, {middle} at the median, over {len(counts):,} {whose} of {dynamic.data}. A static "
        "budget truncates a sample that would keep more; what that costs is for the accuracy to say."
    )


def _int8_rows(comparison: Comparison) -> list[tuple[ComparedVariant, Mapping[str, Any]]]:
    found: dict[str, tuple[ComparedVariant, Mapping[str, Any]]] = {}
    for row in comparison.rows:
        if row.measured.int8_layers:  # the same for all budgets of a target
            found.setdefault(f"{row.measured.target} {row.source.name}", (row, row.measured.int8_layers))
    return list(found.values())


def int8_text(rows: Sequence[tuple[ComparedVariant, Mapping[str, Any]]]) -> str:
    """Which layers the export put back to floating point, a sentence a target."""
    if not rows:
        return "No int8 was judged at its export: export --max-uar-drop does that."
    parts = []
    for row, record in rows:
        kept = record.get("kept_float") or []
        text = f"On {row.measured.target}, int8 may lose {record['limit']:g} of UAR at the export; "
        text += f"put back to floating point: {', '.join(kept)}" if kept else "no layer had to be put back"
        parts.append(f"{text}.")
    if not any(record.get("sensitivity") for _, record in rows):
        parts.append("Layers are ranked by their sensitivity only where one has to be put back.")
    return " ".join(parts)


def _int8_table(rows: Sequence[tuple[ComparedVariant, Mapping[str, Any]]]) -> Table | None:
    lines: list[tuple[str, Values]] = []
    for row, record in rows:
        for layer in record.get("sensitivity") or []:
            kept = "floating point" if layer["layer"] in record["kept_float"] else "int8"
            error = float(layer["error"])
            lines.append(
                (
                    layer["layer"],
                    ((row.measured.target, row.measured.target), (f"{error:.2g}", error), (kept, kept)),
                )
            )
    headings = ("Layer", "Target", "Error alone in int8", "Built in")
    return _table("int8", "Sensitivity of layers to int8", headings, lines, None) if lines else None


def _table(
    name: str, title: str, headings: Sequence[str], rows: Sequence[tuple[str, Values]], picked: str | None
) -> Table:
    lines = tuple(
        Line(
            label,
            tuple(Cell(text, sort, not isinstance(sort, str)) for text, sort in cells),
            picked is not None and label == picked,
        )
        for label, cells in rows
    )
    return Table(name, title, tuple(headings), lines, ())


# FOLDED from report.caveats: What the numbers of a report do not say.

TAIL_SAMPLES = 24_576
"""Samples that MLPerf asks for before it trusts a 90th percentile at 99 % confidence."""


def instability(comparison: Comparison) -> list[str]:
    """A sentence for each profile whose last attempt was unstable: what disturbed it, and how often it was tried."""
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


def caveats(comparison: Comparison) -> list[str]:
    """What the numbers do not say, in sentences."""
    rows = comparison.rows
    texts = [
        "The latencies are those of the machine, versions and thread count under Environment, at batch 1. "
        "Another device needs a profile of its own.",
        "What is timed is what Method says; finding the face and measuring the optical flow are not part "
        "of it unless Method names them.",
        "One multiply-add counts as one MAC. MACs bound what a budget can gain, they do not promise it.",
    ]
    counts = [row.measured.latency_ms.n for row in rows if row.measured.latency_ms]
    if counts and min(counts) < TAIL_SAMPLES:
        texts.append(
            f"The tail percentiles rest on {min(counts):,} samples and more. MLPerf asks for "
            f"{TAIL_SAMPLES:,} before it trusts a 90th percentile: read p99 as an impression."
        )
    spreads = [row.measured.latency_ms.cv for row in rows if row.measured.latency_ms]
    restless = sum(spread > CV_LIMIT for spread in spreads)
    if restless:
        texts.append(
            f"The latency of {restless} of {len(spreads)} variants varied by more than "
            f"{100 * CV_LIMIT:g} % (coefficient of variation, up to {100 * max(spreads):.0f} %): the machine "
            "was not quiet."
        )
    if len(comparison.sources) > 1:
        texts.append(
            "The profiles are separate runs. A ratio holds within its own profile, and the dashed line of "
            "the first picture joins points of one profile only."
        )
    trained = {str(source.profile.method.get("baseline_trained", "")) for source in comparison.sources}
    texts += [
        f"The baseline was trained {text}: what its accuracy differs by is not the architecture's alone."
        for text in sorted(trained)
        if text.startswith("otherwise")
    ]
    data = sorted({row.measured.accuracy.data for row in rows if row.measured.accuracy})
    if data:
        texts.append(
            "Accuracy is that of one set of weights on one set of samples. Another training seed moves it, "
            "and a difference of a hundredth is not evidence."
        )
    if "synthetic" in data:
        texts.append(
            "Accuracy on synthetic data shows what a smaller budget or precision keeps of what the "
            "checkpoint learnt. It is no evidence about people."
        )
    texts += [
        "The weights that ship with ptsr-edge were trained on the project's own synthetic data. They are "
        "for trying the toolkit, not for judging people.",
        "PTSR is a documented reconstruction from the publication's abstract and published building "
        "blocks, not its authors' code. A class is a pattern of movement, not what somebody feels.",
    ]
    return texts
