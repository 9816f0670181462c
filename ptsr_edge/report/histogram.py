"""The picture of DTSM's dynamic mode: how many tokens samples would keep, beside the static budgets."""

from __future__ import annotations

import numpy as np

from ptsr_edge.report import svg
from ptsr_edge.report.comparison import Comparison, budget_text
from ptsr_edge.report.plotting import Canvas, render
from ptsr_edge.report.svg import Picture
from ptsr_edge.report.verdict import Verdict

MOST_BARS = 40


def dynamic(comparison: Comparison, _: Verdict) -> Picture:
    """Histogram of the dynamic mode's counts; lines at the static budgets with the share they truncate."""
    name, title = "dynamic", "What the dynamic mode would keep"
    record = next((s.profile.dynamic_counts for s in comparison.sources if s.profile.dynamic_counts), None)
    if record is None:
        return Picture(name, title, note="Not drawn: the dynamic mode's counts were not recorded.")
    counts = np.repeat([int(count) for count in record.counts], list(record.counts.values()))
    budgets = {row.measured.tokens: row.measured.keep_rate for row in comparison.rows if not row.is_baseline}
    most = max(int(counts.max()), *budgets, 1)
    # The line of the whole image would stand at the edge and says nothing: no sample has more tokens.
    shown = sorted(tokens for tokens, rate in budgets.items() if rate < 1)
    width = -(-most // MOST_BARS)
    edges = np.arange(0.5, most + width + 0.5, width)
    heights, _edges = np.histogram(counts, edges)

    def paint(canvas: Canvas) -> None:
        axes = canvas.axes(44, 16, 24 + 18 * len(shown), 44)
        axes.set_xlim(0, 1.04 * most)
        axes.set_ylim(0, 1.1 * heights.max())
        axes.yaxis.grid(visible=True)
        axes.yaxis.get_major_locator().set_params(nbins=4, integer=True)
        for left, height in zip(edges, heights, strict=False):
            if height:
                (bar,) = axes.bar([left], [height], width * 0.92, align="edge", color=svg.colour("s1"))
                last = int(left + width - 0.5)
                span = f"{int(left + 0.5)} to {last}" if width > 1 else f"{last}"
                canvas.tip(bar, f"{span} tokens: {height} samples")
        # From the fewest tokens on, each lower than the one before: no label is crossed by a line.
        for place, tokens in enumerate(shown):
            words = "" if canvas.compact else f" ({tokens} tokens)"
            label = f"{budget_text(budgets[tokens])}{words} truncates {100 * record.truncated(tokens):.0f} %"
            x, y = canvas.pixel(axes, tokens, 0)[0], 34 + 18 * place
            on_left = x + 6 + svg.text_width(label) > canvas.width
            canvas.write(x - 6 if on_left else x + 6, y, label, "s2", ha="right" if on_left else "left")
            top = axes.transData.inverted().transform((x, canvas.height - (y - 10)))[1]
            (line,) = axes.plot([tokens, tokens], [0, top], color=svg.colour("s2"), lw=1.2, clip_on=False)
            canvas.tip(line, label)
        canvas.write(4, 16, "Samples", "ink")
        canvas.title_axis(44, "Tokens that hold the score's mass")

    whose = "calibration" if record.on == "calibration" else "judged"
    caption = f"{record.samples:,} {whose} samples of {record.data}: tokens in the smallest set that holds "
    caption += f"{record.mass:.0%} of the score. Lines: the static budgets below 100 %; a sample to the right of one is truncated."
    shares = "; ".join(
        f"{budget_text(budgets[tokens])} truncates {100 * record.truncated(tokens):.0f} %"
        for tokens in sorted(budgets)
    )
    words = f"Between {counts.min()} and {counts.max()} tokens, median {int(np.median(counts))}. {shares}."
    height = 240 + 18 * len(shown)
    wide, narrow = render(name, (height, height), paint)
    return Picture(name, title, caption, words, wide, narrow)
