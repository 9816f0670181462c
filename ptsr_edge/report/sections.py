"""The page's sections: which charts stand where, the tables and sentences behind them, and what they do not say.

A further chart is a function, from the compared variants to a `Drawing`, and one entry of `CHARTS`.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    rounded_up,
    signed,
    three_digits,
)
from ptsr_edge.report.plotting import Drawing, NotDrawn, render
from ptsr_edge.report.recommendation import Decision, Recommendation
from ptsr_edge.report.tables import Cell, Line, Table
from ptsr_edge.stats.latency import CV_LIMIT


@dataclass(frozen=True)
class Evidence:
    """What stands below a chart or a heading: sentences, then a table where there is something to list."""

    texts: Sequence[str] = ()
    table: Table | None = None


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
    """A section of the page."""

    title: str
    blocks: tuple[Block, ...]


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


def build_sections(comparison: Comparison, recommendation: Recommendation) -> list[Section]:
    """Draws all charts of `CHARTS` and gathers what stands below them.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    sections = []
    for title, entries in CHARTS:
        blocks = []
        for entry in entries:
            picture = draw(entry, comparison, recommendation) if isinstance(entry, Chart) else None
            evidence = entry.tell(comparison) if entry.tell is not None else Evidence()
            blocks.append(Block(entry.title if picture is None else picture.title, picture, evidence))
        sections.append(Section(title, tuple(blocks)))
    return sections


# ---------------------------------------------------------------------------------------------
# What stands behind a choice under limits

Cells = Sequence[tuple[str, float | int | str | None]]
"""What is written and by what it is sorted, cell by cell."""


def _table(
    name: str,
    title: str,
    headings: Sequence[str],
    rows: Sequence[tuple[str, Cells]],
    picked: str | None = None,
) -> Table | None:
    """Builds a table; None where it has no line."""
    lines = tuple(
        Line(
            label, tuple(Cell(text, sort, not isinstance(sort, str)) for text, sort in cells), label == picked
        )
        for label, cells in rows
    )
    return Table(name, title, tuple(headings), lines) if lines else None


def decision_evidence(decision: Decision) -> Evidence:
    """Tells how each candidate stands against the limits, and what its bound rests on."""

    def bound(value: float | None) -> tuple[str, float | None]:
        return "-" if value is None else rounded_up(value), value

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
    rows: list[tuple[str, Cells]] = [
        (
            entry.name,
            (
                (entry.told, entry.told),
                (three_digits(entry.p95_ms), entry.p95_ms),
                ("-" if entry.drop is None else signed(entry.drop), entry.drop),
                bound(entry.upper),
                bound(entry.upper_if_independent),
                ("-" if entry.needed_units is None else f"{entry.needed_units:,}", entry.needed_units),
                bound(entry.upper_against_baseline),
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
    row = next(
        (
            row
            for row in comparison.rows
            if row.measured.id == recommendation.id and row.source.name == recommendation.profile
        ),
        None,
    )
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
    return Evidence(list(texts))


def controls_evidence(comparison: Comparison) -> Evidence:
    """Tells what DTSM gains over other ways to select tokens."""
    controls = next((s.profile.controls for s in comparison.sources if s.profile.controls), None)
    if not controls:
        return Evidence(
            ["DTSM was not set against its controls: that needs --data and the checkpoint of the bundle."]
        )
    rows: list[tuple[str, Cells]] = []
    gains: dict[str, list[str]] = {}
    for entry in controls:
        gain = "-"
        if entry.gain is not None and entry.gain_low is not None and entry.gain_high is not None:
            gain = difference_text(entry.gain, entry.gain_low, entry.gain_high)
            gains.setdefault(entry.selection, []).append(f"{gain} at {entry.tokens} tokens")
        cells = ((str(entry.tokens), entry.tokens), (str(entry.seeds), entry.seeds),
                 (f"{entry.uar:.3f}", entry.uar), (gain, entry.gain))  # fmt: skip
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
            [
                "Not counted: that needs calibration data (export --budgets auto) or --data, and the bundle's weights."
            ]
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
        return Evidence(["No int8 was judged at its export: export --max-uar-drop does that."])
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
"""The chart that stands below the recommendation."""

CHARTS: list[tuple[str, list[Chart | Finding]]] = [
    (
        "Cost",
        [
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
        "The latencies are those of the machine, versions and thread count under Environment, at batch 1. "
        "Another device needs a profile of its own."
    )
    yield (
        "What is timed is what Method says; finding the face and measuring the optical flow are not part "
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
