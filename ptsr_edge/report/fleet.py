"""One page over all devices of a fleet: which is slowest, which budget each can hold, and what was lost on the way."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptsr_edge.core.errors import InputError
from ptsr_edge.profile.schema import Fleet, FleetDevice, FleetVariant, slowest_first
from ptsr_edge.report.comparison import (
    budget_text,
    bytes_text,
    precision_rank,
    ratio_text,
    sentence,
    short_ms,
    three_digits,
)
from ptsr_edge.report.plotting import (
    FONT,
    SERIES,
    SVG_CSS,
    Canvas,
    Drawing,
    colour,
    render,
    scale_time,
    shortened,
    text_width,
    theme_css,
)

FULL = "full-token ViT"


@dataclass(frozen=True)
class FleetCell:
    """What stands in a cell, and why there is no more; `is_missing` where that is why there is nothing."""

    text: str
    why: str = ""
    is_missing: bool = False


@dataclass(frozen=True)
class OverDevices:
    """A variant or the ViT, under the name that it has on the page, with its row on each device that answered."""

    name: str
    is_baseline: bool
    rows: list[tuple[FleetDevice, FleetVariant]]


def p95_ms(row: FleetVariant | None) -> float | None:
    """Returns the p95 latency of a variant, None where it was not timed."""
    return row.latency_ms.p95 if row is not None and row.latency_ms is not None else None


def held(device: FleetDevice, limit_ms: float) -> FleetVariant | None:
    """Returns the variant of the largest budget whose p95 is within a limit, of equal ones the fastest; None: none is."""
    within = [
        (-row.keep_rate, p95, row.id, row)
        for row in device.variants
        if not row.is_baseline and (p95 := p95_ms(row)) is not None and p95 <= limit_ms
    ]
    return min(within)[-1] if within else None


def answered(fleet: Fleet) -> list[FleetDevice]:
    """Returns the devices that have results, the slowest first."""
    return [device for device in slowest_first(fleet.devices) if device.missing is None]


def without_budget(fleet: Fleet, limit_ms: float) -> list[FleetDevice]:
    """Returns the devices of which no variant is within a limit, among those that answered."""
    return [device for device in answered(fleet) if held(device, limit_ms) is None]


def names_of(fleet: Fleet) -> dict[str, str]:
    """Returns the name of each variant on the page, by its id: what tells it from the others."""
    rows = {row.id: row for device in fleet.devices for row in device.variants}
    several = len({row.target for row in rows.values()}) > 1

    def name(row: FleetVariant) -> str:
        what = FULL if row.is_baseline else budget_text(row.keep_rate)
        return f"{what} {row.precision}" + (f" {row.target}" if several else "")

    names = {key: name(row) for key, row in rows.items()}
    said = list(names.values())
    return {key: key if said.count(name) > 1 else name for key, name in names.items()}


def over_devices(fleet: Fleet) -> list[OverDevices]:
    """Lists the ViT's variants, then the others from the largest budget on, each on all devices, the slowest first."""
    names = names_of(fleet)
    found: dict[str, OverDevices] = {}
    for device in answered(fleet):
        for row in device.variants:
            one = found.setdefault(row.id, OverDevices(names[row.id], row.is_baseline, []))
            one.rows.append((device, row))

    def order(one: OverDevices) -> tuple[Any, ...]:
        row = one.rows[0][1]
        return not one.is_baseline, -row.keep_rate, row.target, precision_rank(row.precision), row.id

    return sorted(found.values(), key=order)


def machine_text(device: FleetDevice) -> str:
    """Says what a device is: its board or processor, GPUs, cores and memory."""
    machine = device.machine
    if machine is None:
        return "not known"
    parts = [machine.board or machine.cpu or machine.architecture, *machine.gpus]
    parts.append(f"{machine.cores} {'core' if machine.cores == 1 else 'cores'}")
    parts += [] if machine.memory_bytes is None else [bytes_text(machine.memory_bytes)]
    return ", ".join(parts)


def verdict(fleet: Fleet, limit_ms: float | None) -> str:
    """Says in a sentence or two which device is slowest and, under a limit, what all of them can hold."""
    devices, gone = answered(fleet), [device for device in fleet.devices if device.missing]
    names = names_of(fleet)
    lost = (
        ""
        if not gone
        else f" {len(gone)} of {len(fleet.devices)} devices {'has' if len(gone) == 1 else 'have'} no results."
    )
    timed = [device for device in devices if p95_ms(device.fastest) is not None]
    if not timed:
        return "No device has a result."

    def best(device: FleetDevice) -> str:
        assert device.fastest is not None
        return f"{names[device.fastest.id]}, {short_ms(p95_ms(device.fastest) or 0.0)} ms at p95"

    if limit_ms is None:
        slow, fast = timed[0], timed[-1]
        if slow is fast:
            return f"{slow.name} takes {best(slow)}, at its fastest.{lost}"
        return f"{slow.name} is the slowest, at its fastest {best(slow)}; {fast.name} is the fastest: {best(fast)}.{lost}"
    none = without_budget(fleet, limit_ms)
    rates = [(found.keep_rate, device.name) for device in devices if (found := held(device, limit_ms))]
    if not rates:
        return f"No device holds any budget within {limit_ms:g} ms at p95.{lost}"
    least, slowest = min(rates)
    at_least = "all tokens" if least == 1 else f"at least {budget_text(least)} of the tokens"
    if none:
        names_of_none = ", ".join(device.name for device in none)
        rest = f"the {'other holds' if len(rates) == 1 else 'others hold'} {at_least}"
        return f"Within {limit_ms:g} ms at p95, {names_of_none} can hold no budget; {rest}.{lost}"
    who = "every device that answered can hold" if len(devices) > 1 else f"{slowest} can hold"
    return f"Within {limit_ms:g} ms at p95, {who} {at_least}.{lost}"


# ---------------------------------------------------------------------------------------------
# The page


def fleet_words(fleet: Fleet, folder: Path, limit_ms: float | None) -> dict[str, Any]:
    """Returns all that the templates `fleet.html.jinja` and `fleet.md.jinja` fill in.

    Args:
        fleet: the record.
        folder: where it lies, for the commands.
        limit_ms: on the p95 latency; None: the page names no budget that a device can hold.

    Raises:
        InputError: the limit is no positive number.
    """
    if limit_ms is not None and not 0 < limit_ms < float("inf"):
        raise InputError(f"--max-latency-ms must be a positive number of milliseconds, got {limit_ms:g}")
    devices = answered(fleet)
    chart = fleet_chart(fleet, limit_ms)
    wide, narrow = ("", "") if chart is None else render("fleet", chart)
    place = shlex.quote(folder.as_posix())
    limit = "" if limit_ms is None else f" --max-latency-ms {limit_ms:g}"
    pages = [
        f"python -m ptsr_edge.report --profile {shlex.quote((folder / one.name).as_posix())} "
        f"--out {shlex.quote((folder / f'{one.name}-report').as_posix())}"
        for one in devices
    ]
    return {
        "title": f"{fleet.model} on a fleet of {len(fleet.devices)} {'device' if len(fleet.devices) == 1 else 'devices'}",
        "sentence": verdict(fleet, limit_ms),
        "cards": _cards(fleet),
        "gone": [
            (one.name, one.missing.kind.replace("_", " "), sentence(one.missing.reason))
            for one in fleet.devices
            if one.missing
        ],
        "chart": chart,
        "wide": wide,
        "narrow": narrow,
        "headings": _device_headings(limit_ms),
        "devices": [_device_cells(one, names_of(fleet), limit_ms) for one in devices],
        "variants": [_variant_lines(one, limit_ms) for one in over_devices(fleet)],
        "reasons": _reasons(fleet),
        "facts": [(one.name, _facts(one)) for one in slowest_first(fleet.devices)],
        "bundles": [
            (one.name, f"{'the ViT, ' if one.is_baseline else ''}{one.files} files, {bytes_text(one.bytes)}, SHA-256 {one.sha256[:16]}...")
            for one in fleet.bundles
        ],
        "limit_ms": limit_ms,
        "commands": [fleet.command, f"python -m ptsr_edge.report --fleet {place}{limit}", *pages],
        "created": fleet.created,
        "model_card": fleet.model_card,
        "svg_css": SVG_CSS,
        "font": FONT,
        "light": theme_css(0),
        "dark": theme_css(1),
    }  # fmt: skip


def _cards(fleet: Fleet) -> list[str]:
    cards = []
    if fleet.is_quick:
        cards.append(
            "A quick run, for a first look: measure again without --quick before anything is decided by it."
        )
    cards += [f"Take {one.name} with care: {one.unstable}." for one in fleet.devices if one.unstable]
    return cards


def _device_headings(limit_ms: float | None) -> list[str]:
    budget = [] if limit_ms is None else [f"Largest budget within {limit_ms:g} ms"]
    return ["Device", "Fastest variant", "p95, ms", "ViT, p95, ms", *budget, "Machine"]


def _device_cells(device: FleetDevice, names: Mapping[str, str], limit_ms: float | None) -> list[FleetCell]:
    best = device.fastest
    cells = [
        FleetCell(device.name),
        FleetCell(names[best.id] if best is not None else "none"),
        _p95_cell(best),
        _p95_cell(device.vit),
    ]
    if limit_ms is not None:
        found = held(device, limit_ms)
        cells.append(
            FleetCell("none", "its fastest variant is slower", is_missing=True)
            if found is None
            else FleetCell(f"{names[found.id]}: {three_digits(p95_ms(found) or 0.0)} ms")
        )
    return [*cells, FleetCell(machine_text(device))]


def _p95_cell(row: FleetVariant | None) -> FleetCell:
    value = p95_ms(row)
    return _missing_cell(row, "latency_ms") if value is None else FleetCell(three_digits(value))


def _missing_cell(row: FleetVariant | None, field: str) -> FleetCell:
    why = None if row is None else row.missing.get(field)
    if why is None:
        return FleetCell("not there", is_missing=True)
    return FleetCell(why.kind.replace("_", " "), sentence(why.reason), is_missing=True)


def _variant_lines(one: OverDevices, limit_ms: float | None) -> dict[str, Any]:
    """Returns a variant's name and its cells by device: p95 and, of PTSR, the fair ratio and whether it is within the limit."""
    lines = []
    for device, row in one.rows:
        p95 = p95_ms(row)
        fair = row.ratio_same_precision
        ratio = (
            FleetCell(ratio_text(fair)) if fair is not None else _missing_cell(row, "ratio_same_precision")
        )
        cells = [FleetCell(device.name), _p95_cell(row), FleetCell("") if one.is_baseline else ratio]
        if limit_ms is not None:
            cells.append(FleetCell("" if p95 is None else "yes" if p95 <= limit_ms else "no"))
        lines.append(cells)
    return {"name": one.name, "lines": lines}


def _reasons(fleet: Fleet) -> list[tuple[str, str]]:
    """Lists why results of variants are missing, each reason once, with where it holds."""
    names = names_of(fleet)
    found: dict[str, dict[str, list[str]]] = {}
    for device in answered(fleet):
        for row in device.variants:
            for field, why in row.missing.items():
                if field == "latency_ms" or (
                    field == "ratio_same_precision" and row.latency_ms and not row.is_baseline
                ):
                    found.setdefault(why.reason, {}).setdefault(device.name, []).append(names[row.id])
    return [
        ("; ".join(f"{device}: {', '.join(rows)}" for device, rows in places.items()), sentence(reason))
        for reason, places in found.items()
    ]


def _facts(device: FleetDevice) -> str:
    machine = device.machine
    parts = [f"worker {device.worker} at {device.address}"]
    if machine is not None:
        packages = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
        parts += [machine_text(device), machine.architecture, machine.os, machine.python, packages]
    if device.sent_files:
        parts.append(f"{device.sent_files} files, {bytes_text(device.sent_bytes)} were sent")
    elif device.missing is None:
        parts.append("had all files already")
    return "; ".join(filter(None, parts))


# ---------------------------------------------------------------------------------------------
# The picture


def fleet_chart(fleet: Fleet, limit_ms: float | None) -> Drawing | None:
    """Draws the p95 of every variant by device, the slowest device on top; None where nothing was timed."""
    devices = [one for one in answered(fleet) if any(p95_ms(row) is not None for row in one.variants)]
    timed = [
        (place, row, p95) for place, one in enumerate(devices) for row in one.variants if (p95 := p95_ms(row))
    ]
    if not timed:
        return None
    names = names_of(fleet)
    precisions = sorted({row.precision for _, row, _ in timed if not row.is_baseline}, key=precision_rank)
    roles = {precision: SERIES[number % len(SERIES)] for number, precision in enumerate(precisions)}
    values = [p95 for *_, p95 in timed] + ([] if limit_ms is None else [limit_ms])

    def paint(canvas: Canvas) -> None:
        margin = min(16 + max(text_width(one.name) for one in devices), 0.4 * canvas.width)
        axes = canvas.axes(margin, 16, 52, 44)
        scale_time(axes, values, logarithmic=max(values) > 6 * min(values))
        axes.set_ylim(len(devices) - 0.5, -0.5)
        axes.set_yticks(
            range(len(devices)), [shortened(one.name, margin - 12) for one in devices], color=colour("ink")
        )
        axes.xaxis.grid(visible=True)
        if limit_ms is not None:
            axes.axvline(limit_ms, color=colour("ink"), lw=1.5, zorder=1)
            x, _ = canvas.pixel(axes, limit_ms, 0)
            label = f"limit {limit_ms:g} ms"
            canvas.write(min(x, canvas.width - 4 - text_width(label)), 44, label, "ink", weight="bold")
        for place, row, p95 in timed:
            lane = 0.0 if row.is_baseline else _lane(precisions.index(row.precision), len(precisions))
            role = "ink" if row.is_baseline else roles[row.precision]
            (mark,) = axes.plot(
                [p95], [place + lane], "o", ms=5 + 6 * row.keep_rate, mew=1.5, zorder=3, clip_on=False
            )
            mark.set_markerfacecolor(colour("paper" if row.is_baseline else role))
            mark.set_markeredgecolor(colour(role))
            canvas.tip(mark, f"{devices[place].name}, {names[row.id]}: {three_digits(p95)} ms")
        canvas.key({**roles, FULL: "ink"})
        canvas.title_axis(margin, "Latency (p95) in ms, faster to the left")

    height = 100 + 46 * len(devices)
    words = "; ".join(
        f"{devices[place].name}, {names[row.id]} {three_digits(p95)} ms" for place, row, p95 in timed
    )
    caption = "The slowest device is on top. Larger mark: more tokens. Hollow: the full-token ViT."
    return Drawing(paint, (height, height), caption, f"p95 by device: {words}.")


def _lane(number: int, lanes: int) -> float:
    """Returns how far beside the line of its device a precision is drawn, so that marks do not cover one another."""
    return 0.0 if lanes == 1 else 0.44 * (number / (lanes - 1) - 0.5)


def fleet_lines(words: Mapping[str, Any]) -> list[str]:
    """Returns the table of devices for a terminal, then the verdict and what was lost."""
    grid: Sequence[Sequence[str]] = [
        words["headings"],
        *([cell.text for cell in cells] for cells in words["devices"]),
    ]
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in grid
    ]
    return [
        *lines,
        "",
        words["sentence"],
        *(f"{name} ({kind}): {reason}" for name, kind, reason in words["gone"]),
    ]
