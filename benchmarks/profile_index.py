"""The index of a folder of committed profiles: device, model, date, report and command, out of the records.

python benchmarks/profile_index.py profiles          rewrites the table in profiles/README.md
"""

from __future__ import annotations

from pathlib import Path

import click

from ptsr_edge.core.console import Verb, finish, run
from ptsr_edge.core.errors import InputError
from ptsr_edge.core.files import write_whole
from ptsr_edge.profile.schema import PROFILE, read_profile

PAGE = "README.md"
START, END = "<!-- profiles: written by python benchmarks/profile_index.py -->", "<!-- end of profiles -->"


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


@click.command(cls=Verb, epilog="Example: python benchmarks/profile_index.py profiles")
@click.argument("folder", type=click.Path(path_type=Path))
def main(folder: Path) -> None:
    """Rewrite the table of profiles in FOLDER/README.md."""
    page = folder / PAGE
    if not page.is_file():
        raise InputError(f"{page} does not exist")
    lines = index_lines(folder)
    write_whole(page, indexed(page.read_text(encoding="utf-8"), lines, page))
    finish({"page": page.as_posix(), "profiles": len(lines) - 2}, [page.as_posix()], as_json=False)


if __name__ == "__main__":
    run(main, "python benchmarks/profile_index.py")
