"""The command line's common part: the table of verbs, one-line errors and exit codes, progress on stderr, results on
stdout.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import click

from ptsr_edge.core.errors import InputError, MissingExtraError, PtsrError
from ptsr_edge.core.records import nearest

T = TypeVar("T")

VERBS = {
    "data": "Check what a folder holds of a data set: found, missing, odd, and counts beside the published ones.",
    "train": "Train PTSR or its full-token baseline and write a checkpoint.",
    "evaluate": "Judge a bundle's artifacts, a checkpoint, or a model trained afresh in each fold.",
    "export": "Turn a checkpoint into a bundle of proven, static token-budget variants.",
    "info": "Say what a bundle holds, what of it runs here and is taken by default, and what it was trained on.",
    "predict": "Classify what moved between two pictures of a face, or two moments of a clip.",
    "profile": "Measure MACs, latency, memory, size and accuracy of every variant beside the full-token ViT.",
    "report": "Turn profiles into a page, a Markdown file, a JSON record and charts, and chooses a variant.",
    "camera": "Turn frames of cameras or files into events, one JSON line each.",
    "doctor": "Say what is installed, and which targets can be built and run here.",
}
"""All verbs, in the order in which they are used, with their lines in `--help`."""


class Verb(click.Command):
    """A subcommand with `--debug`, which turns a `PtsrError` into one line and an exit code.

    Exit codes: 0 done, 1 the job failed, 2 the call was wrong.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(
                ["--debug"],
                is_flag=True,
                expose_value=False,
                is_eager=True,
                callback=_remember_debug,
                help="Show the full traceback of an error.",
            )
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            give_up(ctx, error.format_message(), error.exit_code)
        except PtsrError as error:
            give_up(ctx, str(error), error.exit_code)

    def invoke(self, ctx: click.Context) -> Any:
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
        try:
            return super().invoke(ctx)
        except PtsrError as error:
            give_up(ctx, str(error), error.exit_code)


def give_up(ctx: click.Context, message: str, exit_code: int) -> NoReturn:
    """Ends the process with one line on stderr; with `--debug`, after the traceback."""
    if ctx.meta.get("ptsr_edge.debug"):
        traceback.print_exc()
    click.echo(f"{ctx.command_path}: {' '.join(message.split())}", err=True)
    sys.exit(exit_code)


def _remember_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.meta["ptsr_edge.debug"] = value


def run(verb: click.Command, name: str) -> None:
    """Runs a command that is called `name` in its messages."""
    verb.main(prog_name=name)


def run_verb(name: str) -> None:
    """Runs the verb `name` as `python -m ptsr_edge.NAME`; a missing package is one line and exit code 1."""
    program = f"python -m ptsr_edge.{name}"
    try:
        verb = load_verb(name)
    except PtsrError as error:
        click.echo(f"{program}: {error}", err=True)
        sys.exit(error.exit_code)
    run(verb, program)


def say(text: str) -> None:
    """Prints one line of progress on stderr."""
    click.echo(text, err=True)


def finish(record: dict[str, Any], lines: Iterable[str], as_json: bool) -> None:
    """Prints the result on stdout: the lines, of which the last is the path of what was made, or the record as JSON."""
    if as_json:
        click.echo(json.dumps(record, indent=2, ensure_ascii=False))
        return
    for line in lines:
        click.echo(line)


def progress(items: Iterable[T], label: str, length: int | None = None) -> Iterator[T]:
    """Yields the items behind a progress bar on stderr; silent where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield from items
        return
    with click.progressbar(items, length=length, label=label, file=sys.stderr) as bar:
        yield from bar


def comma_separated(parse: Callable[[str], T], what: str) -> Callable[..., list[T] | None]:
    """Returns a click callback that reads lists such as `1.0,0.5,0.25`, each entry by `parse`.

    The callback raises InputError for an entry that cannot be read, and names the option `what` and the entry.
    """

    def callback(_ctx: click.Context, _param: click.Parameter, value: str | None) -> list[T] | None:
        if value is None:
            return None
        entries = []
        for text in value.split(","):
            try:
                entries.append(parse(text.strip()))
            except InputError:
                raise
            except ValueError as error:
                raise InputError(f"{what}: cannot read {text.strip()!r} in {value!r}") from error
        return entries

    return callback


def load_verb(name: str) -> click.Command:
    """Imports the module of a verb and returns its command.

    Raises:
        InputError: there is no such verb; the message names the nearest.
        MissingExtraError: a package that its module imports is not installed.
    """
    if name not in VERBS:
        raise InputError(f"unknown verb {name!r}; nearest: {nearest(name, VERBS)}; known: {', '.join(VERBS)}")
    module = f"ptsr_edge.{name}" if name in ("doctor", "info", "predict") else f"ptsr_edge.{name}.cli"
    with explained_imports(name):
        command: click.Command = importlib.import_module(module).main
    return command


@contextmanager
def explained_imports(name: str) -> Iterator[None]:
    """Lets the block import the modules of the command `name`.

    Raises:
        MissingExtraError: a package is not installed. A missing module of ptsr-edge itself raises what Python raises.
    """
    try:
        yield
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if isinstance(error, PtsrError) or package in ("", "ptsr_edge"):
            raise
        # Runtimes and drawing are imported late, with a message of their own: any other package comes with `train`.
        raise MissingExtraError(
            f"{name} needs the package {package!r}, which is not installed ({error}): "
            "pip install 'ptsr-edge[train]'"
        ) from error
