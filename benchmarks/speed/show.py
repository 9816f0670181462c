"""A record as a table, as a picture, and as the few lines that matter."""

from __future__ import annotations

from collections.abc import Sequence

from ptsr_edge.report.comparison import percent, quantity, ratio_text, three_digits
from ptsr_edge.report.plotting import WIDE, Canvas, Drawing, colour, render, standalone

from .record import Comparison, Row, Speed

ROLES = {"full ViT by others": "s6", "token reduction by others": "s2", "ours": "s3"}

HEADINGS = (
    "contender",
    "runtime",
    "precision",
    "tokens",
    "MACs",
    "p50, ms",
    "CPU, ms",
    "times as fast as the plain export",
    "of its products' speed",
)

SHOWN_OPERATORS = 6

BAR = 22


def ratio_cell(row: Row) -> str:
    """Writes the ratio over the plain export, or what there is instead."""
    if row.ratio is not None:
        return ratio_text(row.ratio)
    why = row.missing.get("ratio") or row.missing["latency_ms"]
    return (
        "1"
        if why.kind == "not_applicable" and row.latency_ms
        else f"not measured: {why.kind.replace('_', ' ')}"
    )


def row_cells(row: Row) -> list[str]:
    """Writes a row's cells, in the order of `HEADINGS`."""
    products = row.products
    share = "-"
    if products is not None and products.share is not None:
        assert products.share_low is not None
        assert products.share_high is not None
        share = f"{percent(products.share)} [{100 * products.share_low:.0f}, {100 * products.share_high:.0f}]"
    return [
        row.label,
        row.runtime,
        row.precision,
        str(row.tokens) if row.tokens else "-",
        quantity(row.macs) if row.macs else "-",
        three_digits(row.latency_ms.p50) if row.latency_ms else "-",
        three_digits(row.cpu_ms) if row.cpu_ms else "-",
        ratio_cell(row),
        share,
    ]


def table(rows: Sequence[Row]) -> list[str]:
    """Returns a Markdown table of rows."""
    lines = [f"| {' | '.join(HEADINGS)} |", "|---|---|---|" + "---:|" * (len(HEADINGS) - 3)]
    return lines + [f"| {' | '.join(row_cells(row))} |" for row in rows]


def measured_on(speed: Speed) -> str:
    """Says in a sentence where, when and how a record was measured."""
    cpu, method = speed.machine.get("cpu", {}), speed.method
    load = speed.machine.get("load_average") or ["not told"]
    return (
        f"Measured on {speed.created[:10]}: {cpu.get('model')}, {cpu.get('cores_visible')} cores at load {load[0]}, batch 1, {method['rounds']} "
        f"interleaved rounds in {method['processes']} process{'es' if method['processes'] != 1 else ''} of each; 95 % intervals."
    )


def comparison_line(comparison: Comparison) -> str:
    """Writes a comparison for a reader."""
    missing = comparison.missing
    found = ratio_text(comparison.ratio) if comparison.ratio else "not measured"
    why = f": {missing.kind.replace('_', ' ')}" if missing else ""
    return f"{comparison.what}: **{found}{why}** (`{comparison.row}` over `{comparison.against}`)"


def blocks_of(speed: Speed) -> list[tuple[str, list[Row]]]:
    """Returns the rows of each size and number of threads, in the record's order."""
    found: dict[str, list[Row]] = {}
    for row in speed.rows:
        title = f"vit-{row.size}, {row.threads} thread{'s' if row.threads != 1 else ''}"
        found.setdefault(title, []).append(row)
    return list(found.items())


def as_markdown(speed: Speed) -> str:
    """Returns the page: what matters, the tables, what was not measured, and where the time goes."""
    lines = ["# Beside what others give", "", measured_on(speed), ""]
    lines += [f"- {comparison_line(one)}" for one in speed.comparisons]
    for title, rows in blocks_of(speed):
        lines += ["", f"## {title}", ""]
        for group in ROLES:
            some = [row for row in rows if row.group == group and row.latency_ms]
            lines += [f"### {group[0].upper()}{group[1:]}", "", *table(some), ""] if some else []
        untold = [row for row in rows if row.latency_ms is None]
        lines += [
            f"- {row.label} ({row.runtime}, {row.precision}): not measured: {row.missing['latency_ms'].reason}"
            for row in untold
        ]
        profiled = [row for row in rows if row.operators]
        if profiled:
            lines += [
                "",
                "### Where the time goes",
                "",
                "| variant | share of the time by operator |",
                "|---|---|",
            ]
        for row in profiled:
            assert row.operators is not None
            told = ", ".join(
                f"{name} {percent(share)}" for name, share in list(row.operators.items())[:SHOWN_OPERATORS]
            )
            lines.append(f"| `{row.name}` | {told} |")
    tools = "; ".join(
        f"{name or 'this environment'}: {', '.join(f'{tool} {number}' for tool, number in found.items())}"
        for name, found in speed.tools.items()
    )
    return "\n".join([*lines, "", f"Versions: {tools}.", ""])


def drawn_rows(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Returns the rows of a picture by group, the fastest last: of each other runtime, schedule and budget the fastest."""
    found = []
    for group in ROLES:
        best: dict[object, Row] = {}
        for row in rows:
            if row.group != group or row.ratio is None:
                continue
            key = row.runtime if group == "full ViT by others" else row.label
            if key not in best or row.ratio.median > _median(best[key]):
                best[key] = row
        if best:
            found.append((group, sorted(best.values(), key=_median)))
    return found


def _median(row: Row) -> float:
    assert row.ratio is not None
    return row.ratio.median


def as_picture(speed: Speed) -> str:
    """Returns an SVG of the first block: bars with intervals, by group."""
    title, rows = blocks_of(speed)[0]
    heading = f"{title}: times as fast as its plain export in ONNX Runtime fp32"
    groups = drawn_rows(rows)
    count = sum(len(some) + 1 for _, some in groups)
    most = max((row.ratio.high for _, some in groups for row in some if row.ratio), default=1.0)

    def paint(canvas: Canvas) -> None:
        canvas.write(4, 18, heading, "ink", weight="bold")
        if not groups:
            canvas.write(4, 48, "No ratio is known: other processes used the cores.")
            return
        left = 300
        axes = canvas.axes(left, 120, 44, 44)
        axes.set_ylim(count - 0.4, -0.6)
        axes.set_xlim(0, most * 1.02)
        axes.set_yticks([])
        axes.xaxis.grid(visible=True)
        axes.axvline(1, color=colour("ink"), lw=1)
        place = 0
        for group, some in groups:
            _, y = canvas.pixel(axes, 0, place)
            canvas.write(4, y + 5, f"{group[0].upper()}{group[1:]}", ROLES[group], weight="bold")
            for row in some:
                place += 1
                assert row.ratio is not None
                (bar,) = axes.barh([place], [row.ratio.median], height=0.66, color=colour(ROLES[group]))
                canvas.tip(bar, f"{row.name}: {ratio_text(row.ratio)}")
                for role, width in (("paper", 4), ("ink", 1.5)):
                    axes.plot(
                        [row.ratio.low, row.ratio.high],
                        [place, place],
                        color=colour(role),
                        lw=width,
                        solid_capstyle="butt",
                    )
                x, y = canvas.pixel(axes, row.ratio.high, place)
                canvas.write(x + 8, y + 4, ratio_text(row.ratio), "ink")
                canvas.write(
                    left - 10, y + 4, f"{row.label}, {row.runtime} {row.precision}", "ink", ha="right"
                )
            place += 1
        canvas.title_axis(
            left, "The fastest of each runtime, schedule and budget. Black: the plain export, 95 % intervals"
        )

    words = "; ".join(
        f"{row.label}, {row.runtime} {row.precision}: {ratio_text(row.ratio)}"
        for _, some in groups
        for row in some
        if row.ratio
    )
    drawing = Drawing(paint, (88 + BAR * count, 0), "", words)
    return standalone(render("speed", drawing, (WIDE,))[0], f"{heading}. {words}")
