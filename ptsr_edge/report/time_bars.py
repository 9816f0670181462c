"""The picture of where the time of one sample goes: flow, strain, the classes of operators, the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ptsr_edge.profile.schema import Stages
from ptsr_edge.report import svg
from ptsr_edge.report.comparison import Comparison, Row, three_digits
from ptsr_edge.report.plotting import Canvas, render
from ptsr_edge.report.svg import Picture
from ptsr_edge.report.verdict import Verdict

MOST_ROWS = 12
MOST_CLASSES = 3
"""Classes of operators that get a colour of their own; the rest is drawn as one."""

FLOW, AROUND, OTHER = "flow and strain", "before and after", "other operators"


def stages(comparison: Comparison, verdict: Verdict) -> Picture:
    """A bar a variant, in milliseconds: pre-processing, inference by class of operator, post-processing."""
    name, title = "stages", "Where the time goes"
    timed = [(row, row.measured.stages) for row in comparison.rows if row.measured.stages is not None]
    if not timed:
        return Picture(name, title, note="Not drawn: stages were not timed.")
    order = {row.name: place for place, row in enumerate(comparison.rows)}
    picked = {verdict.name, *(row.name for row, _ in timed if row.is_baseline)}
    shown = sorted(timed, key=lambda pair: (pair[0].name not in picked, order[pair[0].name]))[:MOST_ROWS]
    shown.sort(key=lambda pair: order[pair[0].name])
    rows = [(row, stages_ms(record)) for row, record in shown if record is not None]
    roles = _roles([parts for _, parts in rows])
    top = max(sum(parts.values()) for _, parts in rows)

    def paint(canvas: Canvas) -> None:
        lines = _key_lines(canvas, roles)
        margin = min(12 + max(svg.text_width(row.name) for row, _ in rows), 0.4 * canvas.width)
        axes = canvas.axes(margin, 64, 14 + 18 * len(lines), 4)
        axes.set_xlim(0, top)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xticks([])
        names = [svg.shortened(row.name, margin - 8) for row, _ in rows]
        axes.set_yticks(range(len(rows)), names, color=svg.colour("ink"))
        for place, (row, parts) in enumerate(rows):
            _bar(canvas, axes, place, row, parts, roles)
        for number, line in enumerate(lines):
            x = 4.0
            for part in line:
                canvas.write(x, 16 + 18 * number, part, roles[part], weight="bold")
                x += svg.text_width(part, bold=True) + 12

    caption = (
        "Milliseconds of one sample, medians. The inference is split by the shares that the runtime's own "
    )
    caption += "profiler gives, which slows small operators more than large ones. Finding the face is not part of it: that is done twice a second, whatever is asked."
    untold = sum(record is not None and record.operators is None for _, record in shown)
    caption += f" {untold} of these could not be split." if untold else ""
    left_out = len(timed) - len(shown)
    caption += f" {left_out} more {'is' if left_out == 1 else 'are'} in the tables." if left_out > 0 else ""
    words = "; ".join(f"{row.name}: {_words(parts)}" for row, parts in rows)
    heights = [
        14 + 18 * len(_key_lines(Canvas(width, 10), roles)) + 4 + 34 * len(rows)
        for width in (svg.WIDE, svg.NARROW)
    ]
    wide, narrow = render(name, (heights[0], heights[1]), paint)
    return Picture(name, title, caption, f"{words}.", wide, narrow)


def stages_ms(record: Stages) -> dict[str, float]:
    """Milliseconds by part, in the order of time: before the network, its classes of operators, after it."""
    parts = {FLOW: (record.flow_ms or 0.0) + (record.strain_ms or 0.0)}
    shares = record.operators or {}
    for kind, share in sorted(shares.items(), key=lambda entry: -entry[1]):
        parts[kind] = share * record.inference_ms
    if not shares:
        parts["inference"] = record.inference_ms
    parts[AROUND] = record.normalise_ms + record.postprocess_ms
    return {part: time for part, time in parts.items() if time > 0}


def _roles(rows: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """Colours by part; small classes of operators share one."""
    totals: dict[str, float] = {}
    for parts in rows:
        for part, time in parts.items():
            totals[part] = totals.get(part, 0.0) + time
    kinds = sorted(totals.keys() - {FLOW, AROUND}, key=lambda part: -totals[part])
    roles = {FLOW: svg.SERIES[0]} if FLOW in totals else {}
    roles |= dict(zip(kinds[:MOST_CLASSES], svg.SERIES[1:], strict=False))
    roles |= {OTHER: svg.SERIES[MOST_CLASSES + 1]} if len(kinds) > MOST_CLASSES else {}
    return roles | {AROUND: "muted"}


def _key_lines(canvas: Canvas, roles: Mapping[str, str]) -> list[list[str]]:
    """The names of the parts, in as many lines as the drawing needs."""
    lines: list[list[str]] = [[]]
    x = 4.0
    for part in roles:
        width = svg.text_width(part, bold=True) + 12
        if lines[-1] and x + width > canvas.width:
            lines.append([])
            x = 4.0
        lines[-1].append(part)
        x += width
    return lines


def _bar(
    canvas: Canvas, axes: Any, place: int, row: Row, parts: Mapping[str, float], roles: Mapping[str, str]
) -> None:
    start, total = 0.0, sum(parts.values())
    drawn = dict.fromkeys(roles, 0.0)
    for part, time in parts.items():
        drawn[part if part in roles else OTHER] += time
    for part in roles:
        if not drawn[part]:
            continue
        (bar,) = axes.barh([place], [drawn[part]], left=start, height=0.56, color=svg.colour(roles[part]))
        bar.set_edgecolor(svg.colour("paper"))
        share = 100 * drawn[part] / total
        canvas.tip(bar, f"{row.name}, {part}: {three_digits(drawn[part])} ms, {share:.0f} %")
        start += drawn[part]
    axes.annotate(
        f"{three_digits(total)} ms", (total, place), (7, -4), textcoords="offset points", va="baseline"
    )


def _words(parts: Mapping[str, float]) -> str:
    return ", ".join(f"{part} {three_digits(time)} ms" for part, time in parts.items())
