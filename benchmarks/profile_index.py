"""What pages say of committed profiles, out of the records: the index of all, and tables of chosen variants.

python benchmarks/profile_index.py profiles README.md    rewrites the index in profiles/README.md, and tables in README.md

A table stands between `<!-- measured: PROFILE VARIANT... -->` and `<!-- end of measured -->`; its first line names what it is
made from, a profile's folder relative to the page and its variants in their order. So does one of `benchmarks/speed` between
`<!-- speed: FILE ROW... -->` and `<!-- end of speed -->`, from a `speed.json` and the ids of its rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import click
from speed.record import read_speed
from speed.show import measured_on, table

from ptsr_edge.core.console import Verb, finish, run
from ptsr_edge.core.errors import InputError
from ptsr_edge.core.files import write_whole
from ptsr_edge.profile.schema import PROFILE, Measured, Missing, Profile, read_profile
from ptsr_edge.report.comparison import budget_text, difference_text, ratio_text, three_digits
from ptsr_edge.stats.latency import Ratio

PAGE = "README.md"
START, END = "<!-- profiles: written by python benchmarks/profile_index.py -->", "<!-- end of profiles -->"


MEASURED = re.compile(r"(<!-- measured: (\S+) (.+?) -->\n)(.*?)(<!-- end of measured -->)", re.DOTALL)

SPEED = re.compile(r"(<!-- speed: (\S+) (.+?) -->\n)(.*?)(<!-- end of speed -->)", re.DOTALL)


def index_lines(folder: Path) -> list[str]:
    """A Markdown table with a line for each `DEVICE/NAME/profile.json` in a folder.

    Raises:
        InputError: there is none, or one cannot be read.
    """
    places = sorted(path.parent for path in folder.glob(f"*/*/{PROFILE}"))
    if not places:
        raise InputError(f"{folder} holds no profile: DEVICE/NAME/{PROFILE} is looked for")
    lines = ["| device | profile | model | measured | command |", "|---|---|---|---|---|"]
    for place in places:
        profile = read_profile(place)
        device = (
            f"{place.parent.name} ({profile.environment.get('cpu', {}).get('model', 'processor not known')})"
        )
        report = place.with_name(f"{place.name}-report") / "report.md"
        shown = f"[{place.name}]({report.relative_to(folder).as_posix()})" if report.is_file() else place.name
        lines.append(
            f"| {device} | {shown} | `{profile.model}` | {profile.created[:10]} | `{profile.command}` |"
        )
    return lines


def indexed(text: str, lines: list[str], where: Path) -> str:
    """A page with the table between its two marks replaced.

    Raises:
        InputError: the marks are not there.
    """
    head, found, rest = text.partition(START)
    _, closed, tail = rest.partition(END)
    if not found or not closed:
        raise InputError(f"{where} has no place for the table: put it between {START!r} and {END!r}")
    return "\n".join([f"{head}{START}", "", *lines, "", f"{END}{tail}"])


def with_tables(text: str, page: Path) -> str:
    """A page whose tables of measured variants and of speed are those of the records that they name.

    Raises:
        InputError: there is no such table, or it names a record or a row that is not there.
    """
    if not MEASURED.search(text) and not SPEED.search(text):
        raise InputError(f"{page} has no table of measured variants: <!-- measured: PROFILE VARIANT... -->")
    for marks, lines_of in ((MEASURED, measured_lines), (SPEED, speed_lines)):

        def rewritten(
            found: re.Match[str], lines_of: Callable[[Path, list[str]], list[str]] = lines_of
        ) -> str:
            start, place, names, _, end = found.groups()
            return "\n".join([start, *lines_of(page.parent / place, names.split()), "", end])

        text = marks.sub(rewritten, text)
    return text


def speed_lines(file: Path, names: list[str]) -> list[str]:
    """A sentence on the machine and a Markdown table with a line for each of these rows of a speed record.

    Raises:
        InputError: it has no such row.
    """
    speed = read_speed(file)
    rows = {row.id: row for row in speed.rows}
    if unknown := [name for name in names if name not in rows]:
        raise InputError(f"{file} has not measured {', '.join(unknown)}; it has {', '.join(rows)}")
    return [measured_on(speed), "", *table([rows[name] for name in names])]


def measured_lines(folder: Path, names: list[str]) -> list[str]:
    """A sentence on the machine and a Markdown table with a line for each of these variants of a profile.

    Raises:
        InputError: it has no such variant.
    """
    profile = read_profile(folder)
    rows = {row.id: row for row in profile.variants}
    if unknown := [name for name in names if name not in rows]:
        raise InputError(f"{folder} has not measured {', '.join(unknown)}; it has {', '.join(rows)}")
    cpu, threads = profile.environment.get("cpu", {}), profile.method.get("threads")
    lines = [
        f"Measured on {profile.created[:10]}: {cpu.get('model')}, {cpu.get('cores_visible')} cores, {threads} "
        f"thread{'s' if threads != 1 else ''}, batch 1, in turn with the baseline `{profile.baseline}`; 95 % intervals over processes.",
        "",
    ]
    grid = [list(HEADINGS), *(cells_of(rows[name], profile) for name in names)]
    kept = [column for column in zip(*grid, strict=True) if set(column[1:]) - UNKNOWN]
    table = [f"| {' | '.join(cells)} |" for cells in zip(*kept, strict=True)]
    return [*lines, table[0], "|---|" + "---:|" * (len(kept) - 1), *table[1:]]


HEADINGS = (
    "variant", "tokens", "p50, ms", "times as fast as the ViT alike", "as a whole sample", "as the baseline", "UAR", "UAR lost",
)  # fmt: skip

UNKNOWN = {"-", "not asked"}
"""What stands in a column that is left out, where nothing else does."""


def cells_of(row: Measured, profile: Profile) -> list[str]:
    """A variant's cells; what was not measured says which kind of reason it has."""

    def ratio(name: str) -> str:
        found: Ratio | None = getattr(row, name)
        why = row.missing.get(name, Missing(kind="not_asked", reason=""))
        missing = "-" if why.kind == "not_applicable" else why.kind.replace("_", " ")
        return missing if found is None else ratio_text(found)

    judged = row.accuracy
    lost = "-"
    if judged and None not in (judged.uar_drop, judged.uar_drop_low, judged.uar_drop_high):
        lost = difference_text(
            judged.uar_drop or 0.0, judged.uar_drop_low or 0.0, judged.uar_drop_high or 0.0
        )
    kind = "full-token ViT" if row.id.startswith("vit") else budget_text(row.keep_rate)
    return [
        f"{kind}, {row.precision}, {row.target}",
        str(row.tokens),
        three_digits(row.latency_ms.p50) if row.latency_ms else "-",
        ratio("ratio_same_precision"),
        ratio("ratio_sample"),
        "baseline" if row.id == profile.baseline else ratio("ratio"),
        f"{judged.uar:.3f}" if judged else "-",
        "baseline" if row.id == profile.baseline else lost,
    ]


@click.command(cls=Verb, epilog="Example: python benchmarks/profile_index.py profiles README.md")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("pages", type=click.Path(path_type=Path), nargs=-1)
def main(folder: Path, pages: tuple[Path, ...]) -> None:
    """Rewrite the index in FOLDER/README.md, and the tables of measured variants in PAGES."""
    index = folder / PAGE
    for page in (index, *pages):
        if not page.is_file():
            raise InputError(f"{page} does not exist")
    lines = index_lines(folder)
    texts = {index: indexed(index.read_text(encoding="utf-8"), lines, index)}
    texts |= {page: with_tables(page.read_text(encoding="utf-8"), page) for page in pages}
    for page, text in texts.items():
        write_whole(page, text)
    shown = [page.as_posix() for page in texts]
    finish({"pages": shown, "profiles": len(lines) - 2}, shown, as_json=False)


if __name__ == "__main__":
    run(main, "python benchmarks/profile_index.py")
