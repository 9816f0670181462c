"""The page's sections: the verdict, which charts stand where, and the tables and sentences behind them.

A further chart is a function, from the compared variants to a `Drawing`, and one entry of `CHARTS`.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ptsr_edge.profile.schema import needs_gpu
from ptsr_edge.report import accuracy_charts, cost_charts
from ptsr_edge.report.comparison import (
    ComparedVariant,
    Comparison,
    budget_text,
    difference_text,
    percent,
    ratio_text,
    rounded_up,
    sentence,
    short_ms,
    signed,
    steps_of,
    three_digits,
    times_text,
)
from ptsr_edge.report.plotting import WIDE, Drawing, NotDrawn, render
from ptsr_edge.report.recommendation import Candidate, Decision, Recommendation, accuracy_clause
from ptsr_edge.report.tables import NONE, Cell, Line, Table


@dataclass(frozen=True)
class Evidence:
    """What stands below a chart or a heading: sentences, then a table where there is something to list.

    `fold` is the line behind which the sentences are closed at first; `missing` says why there is nothing to tell.
    """

    texts: Sequence[str] = ()
    table: Table | None = None
    fold: str = ""
    missing: str = ""


@dataclass(frozen=True)
class Chart:
    """A chart of the report.

    Attributes:
        name: the stem of its file, and what makes its ids unique.
        title: its heading.
        draw: what it shows, or why there is nothing to show.
        tell: what stands below it.
    """

    name: str
    title: str
    draw: Callable[[Comparison, Recommendation], Drawing | NotDrawn]
    tell: Callable[[Comparison], Evidence] | None = None


@dataclass(frozen=True)
class Finding:
    """A heading with sentences and a table, and no chart."""

    title: str
    tell: Callable[[Comparison], Evidence]


@dataclass(frozen=True)
class Picture:
    """A chart as it stands on the page; one that was not drawn has neither SVG, and says in `note` what is missing.

    Attributes:
        caption: how to read it.
        words: what can be seen in it, for those who cannot see it.
        wide: inline SVG element for a desktop; `narrow` is the same for a phone.
    """

    name: str
    title: str
    caption: str = ""
    words: str = ""
    wide: str | None = None
    narrow: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Block:
    """What a section shows under one heading."""

    title: str
    picture: Picture | None
    evidence: Evidence


@dataclass(frozen=True)
class Section:
    """A section of the page: what there is to show; why the rest is not, with its title; and the charts that were not drawn."""

    title: str
    blocks: tuple[Block, ...]
    empty: tuple[tuple[str, str], ...] = ()
    undrawn: tuple[Picture, ...] = ()

    @property
    def pictures(self) -> list[Picture]:
        """All of its charts."""
        return [*(block.picture for block in self.blocks if block.picture), *self.undrawn]


def draw(chart: Chart, comparison: Comparison, recommendation: Recommendation) -> Picture:
    """Draws a chart.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    drawn = chart.draw(comparison, recommendation)
    if isinstance(drawn, NotDrawn):
        return Picture(chart.name, chart.title, note=f"Not drawn: {drawn.reason}.")
    wide, narrow = render(chart.name, drawn)
    return Picture(chart.name, drawn.title or chart.title, drawn.caption, drawn.words, wide, narrow)


def draw_card(comparison: Comparison, recommendation: Recommendation) -> Picture:
    """Draws the picture that is made to be pasted elsewhere: a file that is not on the page.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    drawn = cost_charts.summary(comparison, recommendation)
    name, title = "summary", "The result in one picture"
    if isinstance(drawn, NotDrawn):
        return Picture(name, title, note=f"Not drawn: {drawn.reason}.")
    return Picture(name, title, words=drawn.words, wide=render(name, drawn, (WIDE,))[0])


def build_sections(comparison: Comparison, recommendation: Recommendation) -> list[Section]:
    """Draws all charts of `CHARTS` and gathers what stands below them.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    sections = []
    for title, entries in CHARTS:
        blocks: list[Block] = []
        empty: list[tuple[str, str]] = []
        undrawn: list[Picture] = []
        for entry in entries:
            picture = draw(entry, comparison, recommendation) if isinstance(entry, Chart) else None
            evidence = entry.tell(comparison) if entry.tell is not None else Evidence()
            heading = entry.title if picture is None else picture.title
            is_drawn = picture is not None and picture.wide is not None
            if picture is not None and not is_drawn:
                undrawn.append(picture)
            why = evidence.missing or ("" if picture is None or is_drawn else picture.note)
            if why:
                empty.append((why, heading))
            if is_drawn or evidence.texts or evidence.table:
                blocks.append(Block(heading, picture if is_drawn else None, evidence))
        sections.append(Section(title, tuple(blocks), tuple(empty), tuple(undrawn)))
    return sections


# ---------------------------------------------------------------------------------------------
# The first screen


def verdict(comparison: Comparison, recommendation: Recommendation) -> list[str]:
    """Returns the answer in two lines: which variant and how much faster, fairly first; what it costs in accuracy.

    Where no variant is named, or its latency is not known, it is the recommendation's sentence alone.
    """
    row = recommended_row(comparison, recommendation)
    if row is None or row.p50_ms is None or recommendation.status == "none-meets-the-limits":
        return [recommendation.sentence]
    measured, base = row.measured, comparison.reference(row)
    fair, whole, total = measured.ratio_same_precision, measured.ratio_sample, measured.ratio
    profile = f", in the profile {row.source.name}" if len(comparison.sources) > 1 else ""
    name = f"{budget_text(measured.keep_rate)} of the tokens in {measured.precision} on {measured.target}{profile}"
    full = "the full-token ViT"
    if base is not None:
        full += f" in {base.measured.precision} on {base.measured.target}"
    fast = [f"{ratio_text(fair)} as fast as the ViT built alike"] if fair is not None else []
    fast += [f"{ratio_text(whole)} as a whole sample"] if whole is not None else []
    against = "" if total is None or total == fair else f"{ratio_text(total)} as fast as {full}"
    known = {"the ratio to the ViT built alike": fair, "that of a whole sample": whole}
    lacking = [what for what, ratio in known.items() if ratio is None] if total is not None else []
    if not fast:
        fast, against = [against or f"{short_ms(row.p50_ms)} ms (p50)"], ""
    if total is None:
        why = row.why_missing("ratio")
        withheld = why is not None and why.kind == "disturbed"
        against = "no ratio is given: the machine was too busy" if withheld else "no ratio was measured"
    first = {
        "chosen": "Take ",
        "beyond": f"None stays within {recommendation.max_uar_drop or 0:g} of the ViT's UAR; the closest is ",
    }.get(recommendation.status, "")
    cost = accuracy_clause(row, comparison)
    if recommendation.status == "chance":
        cost = "the ViT itself is about as good as guessing, so what it costs in accuracy is not known"
    missing = f"not measured: {' and '.join(lacking)}" if lacking else ""
    return [
        f"{first}{name}: {', '.join(fast)}.",
        sentence("; ".join(filter(None, (against, cost, missing)))),
    ]


def recommended_row(comparison: Comparison, recommendation: Recommendation) -> ComparedVariant | None:
    """Returns the variant that the recommendation is about, None where it is about none."""
    return next(
        (
            row
            for row in comparison.rows
            if row.measured.id == recommendation.id and row.source.name == recommendation.profile
        ),
        None,
    )


def effects_sentence(comparison: Comparison, recommendation: Recommendation) -> str:
    """Returns what the recommended variant's speed is made of, empty where that is one effect or was not measured."""
    row = recommended_row(comparison, recommendation)
    if recommendation.status == "none-meets-the-limits":
        return ""
    steps = None if row is None else steps_of(row, comparison)
    if row is None or row.measured.ratio is None or not steps or len(steps) < 2:
        return ""
    told = "; ".join(step.told for step in reversed(steps))
    total = row.measured.ratio
    return f"{told}; together {times_text(total.median, total.low, total.high, interval=False)}."


def circumstances(comparison: Comparison) -> list[str]:
    """Returns, for each profile, the machine, the threads and the day."""
    lines = []
    for source in comparison.sources:
        profile = source.profile
        cpu = profile.environment.get("cpu") or {}
        gpus = profile.environment.get("gpus") or []
        machine = [str(cpu.get("board") or cpu.get("model") or "an unknown processor")]
        machine += [str(gpu.get("name", "GPU")) for gpu in gpus if isinstance(gpu, dict)]
        count = profile.method.get("threads")
        parts = [" with ".join(machine)]
        parts += [] if count is None else [f"{count} thread{'' if count == 1 else 's'}"]
        lines.append(", ".join([*parts, f"measured on {profile.created[:10]}"]))
        if len(comparison.sources) > 1:
            lines[-1] = f"{source.name}: {lines[-1]}"
    return lines


def clock_warning(comparison: Comparison) -> list[str]:
    """Returns a sentence where ratios were taken by CPU time, and one where they are withheld."""
    texts = []
    if any(row.measured.ratio and row.measured.ratio.clock == "cpu" for row in comparison.rows):
        texts.append(
            "Ratios are of CPU time: other processes shared the cores while this was measured, so the milliseconds are "
            "longer than on a quiet machine."
        )
    withheld = [
        row
        for row in comparison.rows
        if (why := row.measured.missing.get("ratio")) and why.kind == "disturbed"
    ]
    if withheld:
        texts.append(
            f"No ratio is given for {len(withheld)} of {len(comparison.rows)} rows: other processes used the machine too "
            "much while they were measured. Measure again on a quiet machine."
        )
    return texts


# ---------------------------------------------------------------------------------------------
# What stands behind a choice under limits

Cells = Sequence[tuple[str, float | int | str | None]]
"""What is written and by what it is sorted, cell by cell; None: there is nothing, and what is written says why."""


def _table(
    name: str,
    title: str,
    headings: Sequence[str],
    rows: Sequence[tuple[str, Cells]],
    picked: str | None = None,
) -> Table | None:
    """Builds a table; None where it has no line."""

    def cell(text: str, sort: float | int | str | None) -> Cell:
        return Cell(NONE, None, True, text) if sort is None else Cell(text, sort, not isinstance(sort, str))

    lines = tuple(
        Line(label, tuple(cell(*found) for found in cells), label == picked) for label, cells in rows
    )
    return Table(name, title, tuple(headings), lines) if lines else None


def decision_evidence(decision: Decision) -> Evidence:
    """Tells how each candidate stands against the limits, and what its bound rests on."""

    def bound(value: float | None, why: str) -> tuple[str, float | None]:
        return why if value is None else rounded_up(value), value

    limits, unit = decision.limits, decision.limits.unit
    title = "Held against the limits"
    latency = (
        f"Latency is held against {decision.percentile}: what 19 of 20 inferences meet. The fastest by its median "
        "is taken; of those whose ratios' intervals overlap, the smallest."
    )
    if limits.max_uar_drop is None:
        times: list[tuple[str, Cells]] = [
            (entry.name, ((entry.told, entry.told), (three_digits(entry.p95_ms), entry.p95_ms)))
            for entry in decision.candidates
        ]
        headings: tuple[str, ...] = ("Variant", "Stands", f"{decision.percentile}, ms")
        texts = [
            latency,
            "No limit on the loss of UAR was asked for (--max-uar-drop): none is held against it.",
        ]
        return Evidence(texts, _table("decision", title, headings, times, decision.picked))
    slow, itself = "not looked at: it is too slow", "it is what the others are measured against"
    rows: list[tuple[str, Cells]] = [
        (
            entry.name,
            (
                (entry.told, entry.told),
                (three_digits(entry.p95_ms), entry.p95_ms),
                ("not judged" if entry.drop is None else signed(entry.drop), entry.drop),
                bound(entry.upper, slow),
                bound(entry.upper_if_independent, slow if entry.told == "too slow" else itself),
                (_needs_none(entry, slow), entry.needed_units)
                if entry.needed_units is None
                else (f"{entry.needed_units:,}", entry.needed_units),
                bound(
                    entry.upper_against_baseline,
                    slow if entry.told == "too slow" else "the ViT was not judged",
                ),
            ),
        )
        for entry in decision.candidates
    ]
    headings = ("Variant", "Stands", f"{decision.percentile}, ms", "UAR lost", "At most", "If independent",
                f"Needs {unit}s", "At most, ViT")  # fmt: skip
    together = f" for all {decision.tests} variants at once" if decision.tests > 1 else ""
    dependent = (
        "Assumed: subjects are independent of one another; samples of one subject may depend on each other in any way."
        if unit == "subject"
        else "Assumed: all samples are independent of one another, those of one subject too: --unit subject does not "
        "assume it."
    )
    texts = [
        f"UAR lost: against {decision.reference}, as measured. At most: with {100 * limits.confidence:g} % "
        f"confidence{together}, the expected loss is not above this. The bound assumes no distribution: it is a "
        "test by betting (Waudby-Smith and Ramdas 2023) on paired answers to the same held-out samples.",
        f"{dependent} There are {decision.units:,} subjects with {decision.samples:,} samples. "
        "If independent: the bound, were all samples independent of one another. Needs: how many like these would "
        f"bring the bound to {limits.max_uar_drop:g}. At most, ViT: for information, the bound on the loss against the "
        "full-token ViT.",
        latency,
    ]
    return Evidence(texts, _table("decision", title, headings, rows, decision.picked))


def _needs_none(entry: Candidate, slow: str) -> str:
    """Says why a candidate has no number of units that it needs."""
    if entry.told == "too slow":
        return slow
    return "no amount of such data would show it" if entry.told == "drop too large" else "it needs no more"


# ---------------------------------------------------------------------------------------------
# What stands at the end: the lines that use the variant


@dataclass(frozen=True)
class Paste:
    """Lines to paste that use one variant: of a program, and of a shell."""

    name: str
    python: tuple[str, ...]
    shell: tuple[str, ...]


def lines_to_paste(comparison: Comparison, recommendation: Recommendation) -> Paste | None:
    """Returns the lines that open, watch with and export the variant that is recommended; None where none is.

    Threads are those that it was measured with. CHECKPOINT stands for a file whose place no record holds, BUNDLE and MODEL
    for names that would end a block of code.
    """
    row = recommended_row(comparison, recommendation)
    if row is None or row.measured.bundle is None or recommendation.status not in ("chosen", "within"):
        return None
    measured, profile = row.measured, row.source.profile
    bundle, model = _in_code(measured.bundle or "", "BUNDLE"), _in_code(profile.model, "MODEL")
    rate, target, precision = f"{measured.keep_rate:.6g}", measured.target, measured.precision
    count = profile.method.get("threads")
    threads = [] if count is None or needs_gpu(target) else ["--threads", str(count)]
    opened = [json.dumps(bundle), f"budget={rate}", f"target={json.dumps(target)}"]
    opened += [f"precision={json.dumps(precision)}", *([f"threads={count}"] if threads else [])]
    camera = ["camera", "--bundle", bundle, "--source", "0", "--budget", rate, "--target", target]
    export = [
        "export",
        *(["--model", model] if profile.weights_are_named else ["--checkpoint", "CHECKPOINT"]),
    ]
    export += ["--target", target, "--budgets", rate, "--precision", precision]
    if precision == "int8" and measured.int8_layers:
        export += ["--max-uar-drop", f"{measured.int8_layers['limit']:g}"]
    out = ["--out", f"out/{model}-{target}-{precision}-k{rate}"]
    return Paste(
        row.name,
        ("from ptsr_edge import Session", "", f"session = Session.open({', '.join(opened)})"),
        tuple(
            shlex.join(["ptsr-edge", *words])
            for words in ([*camera, "--precision", precision, *threads], [*export, *threads, *out])
        ),
    )


def _in_code(name: str, stand_in: str) -> str:
    """Returns a name, or what stands in for it where Markdown or a shell would take a part of it for markup."""
    return stand_in if re.search(r"[<>`\r\n]", name) else name


# ---------------------------------------------------------------------------------------------
# What stands below charts and headings


def macs_evidence(comparison: Comparison) -> Evidence:
    """Tells the multiply-adds as written, exported and in the file itself, one sentence per budget, and why they differ."""
    rows = [
        row for row in comparison.rows if row.measured.macs_eager is not None and row.measured.macs_explained
    ]

    def budget(row: ComparedVariant) -> tuple[object, ...]:
        return row.is_baseline, row.measured.keep_rate, row.measured.macs_eager, row.measured.macs

    counted = {budget(row) for row in rows if row.measured.macs_graph is not None}
    texts: dict[str, None] = {}
    for row in rows:
        found = row.measured
        if found.macs_graph is None and budget(row) in counted:
            continue  # the same budget, counted on a file of another target
        name = "The full-token ViT" if row.is_baseline else f"At {budget_text(found.keep_rate)}"
        text = f"{name}: {found.macs_eager:,} multiply-adds as written (fvcore on the eager model), {found.macs:,} exported"
        if found.macs_graph is not None:
            alike = "the same" if found.macs_graph == found.macs else f"{found.macs_graph:,}"
            text += f", {alike} counted on the ONNX file itself"
        texts[text + ("." if found.macs == found.macs_eager else f": {found.macs_explained}.")] = None
    return Evidence(list(texts), fold="Why multiply-adds as written and as exported differ")


def controls_evidence(comparison: Comparison) -> Evidence:
    """Tells what DTSM gains over other ways to select tokens."""
    controls = next((s.profile.controls for s in comparison.sources if s.profile.controls), None)
    if not controls:
        return Evidence(missing="not compared: that needs --data and the checkpoint of the bundle")
    rows: list[tuple[str, Cells]] = []
    gains: dict[str, list[str]] = {}
    for entry in controls:
        gain = "itself" if entry.selection == "DTSM" else "not known"
        if entry.gain is not None and entry.gain_low is not None and entry.gain_high is not None:
            gain = difference_text(entry.gain, entry.gain_low, entry.gain_high)
            gains.setdefault(entry.selection, []).append(f"{gain} at {entry.tokens} tokens")
        cells = ((str(entry.tokens), entry.tokens), (str(entry.seeds), entry.seeds),
                 (f"{entry.uar:.3f}", entry.uar), (gain, entry.gain or 0.0))  # fmt: skip
        rows.append((entry.selection, cells))
    names = {"random": "random selection", "strain": "selection by strain energy"}
    parts = [
        f"Over {names.get(selection, selection)} DTSM gains UAR: {', '.join(told)}."
        for selection, told in gains.items()
    ]
    if all(entry.selection != "strain" for entry in controls):
        parts.append("This model's DTSM selects by strain energy itself, so that is no control of it.")
    parts.append(
        "All through the eager model with the same weights on the same samples; 95 % intervals by a paired bootstrap "
        "over subjects; a difference whose interval holds zero is called none. Weights that were "
        "trained with DTSM's selection favour it."
    )
    headings = ("Selection", "Tokens", "Draws", "UAR", "DTSM gains")
    return Evidence([" ".join(parts)], _table("controls", "DTSM against its controls", headings, rows))


def dynamic_evidence(comparison: Comparison) -> Evidence:
    """Tells where the counts of the dynamic mode come from, and how many samples each static budget truncates."""
    dynamic = next((s.profile.dynamic_counts for s in comparison.sources if s.profile.dynamic_counts), None)
    if dynamic is None:
        return Evidence(
            missing="not counted: that needs calibration data (export --budgets auto) or --data, and the bundle's weights"
        )
    counts = sorted(int(count) for count, n in dynamic.counts.items() for _ in range(n))
    whose = "calibration samples" if dynamic.on == "calibration" else "judged samples"
    text = (
        f"DTSM's dynamic mode keeps the smallest set that holds {dynamic.mass:.0%} of a sample's score: {counts[0]} to "
        f"{counts[-1]} tokens, {counts[len(counts) // 2]} at the median, over {len(counts):,} {whose} of "
        f"{dynamic.data}. A static budget truncates a sample that would keep more; what that costs is for the accuracy "
        "to say."
    )
    budgets = {row.measured.tokens: row.measured.keep_rate for row in comparison.rows if not row.is_baseline}
    rows: list[tuple[str, Cells]] = []
    for tokens, rate in sorted(budgets.items(), reverse=True):
        share = dynamic.truncated(tokens)
        rows.append((budget_text(rate), ((str(tokens), tokens), (percent(share, 1), share))))
    headings = ("Budget", "Tokens", "Samples truncated")
    return Evidence([text], _table("dynamic", "Static budgets against the dynamic mode", headings, rows))


def int8_evidence(comparison: Comparison) -> Evidence:
    """Tells which layers an export put back to floating point, one sentence per target."""
    found: dict[tuple[str, str], tuple[ComparedVariant, Mapping[str, Any]]] = {}
    for row in comparison.rows:
        if row.measured.int8_layers:  # the same for all budgets of a target
            found.setdefault((row.measured.target, row.source.name), (row, row.measured.int8_layers))
    if not found:
        return Evidence(missing="no int8 was judged at its export: export --max-uar-drop does that")
    parts = []
    lines: list[tuple[str, Cells]] = []
    for row, record in found.values():
        target, kept = row.measured.target, record.get("kept_float") or []
        text = f"On {target}, int8 may lose {record['limit']:g} of UAR at the export; "
        text += f"put back to floating point: {', '.join(kept)}" if kept else "no layer had to be put back"
        parts.append(f"{text}.")
        for layer in record.get("sensitivity") or []:
            built = "floating point" if layer["layer"] in kept else "int8"
            error = float(layer["error"])
            lines.append((layer["layer"], ((target, target), (f"{error:.2g}", error), (built, built))))
    if not lines:
        parts.append("Layers are ranked by their sensitivity only where one has to be put back.")
    headings = ("Layer", "Target", "Error alone in int8", "Built in")
    return Evidence([" ".join(parts)], _table("int8", "Sensitivity of layers to int8", headings, lines))


LEAD = Chart("tradeoff", "Accuracy against latency", accuracy_charts.tradeoff)
"""The chart that stands below the verdict."""

CHARTS: list[tuple[str, list[Chart | Finding]]] = [
    (
        "Cost",
        [
            Chart("effects", "What makes it faster", cost_charts.effects),
            Chart("latency", "How latency is distributed", cost_charts.latency),
            Chart("macs", "Where the multiply-adds go", cost_charts.macs, macs_evidence),
            Chart("stages", "Where the time goes", cost_charts.stages),
        ],
    ),
    (
        "Accuracy",
        [
            Chart("budgets", "Accuracy against budget", accuracy_charts.budgets),
            Chart("confusion", "What is taken for what", accuracy_charts.confusion),
        ],
    ),
    (
        "Selection",
        [
            Chart("kept", "What the model looks at", accuracy_charts.kept),
            Chart("dynamic", "What the dynamic mode would keep", cost_charts.dynamic, dynamic_evidence),
            Finding("DTSM against its controls", controls_evidence),
            Finding("Layers in int8", int8_evidence),
        ],
    ),
]
"""The sections of the page with their charts, in the order of reading."""
