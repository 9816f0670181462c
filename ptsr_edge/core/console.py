"""The command line's common part: the table of verbs, one-line errors and exit codes, options from the environment,
progress on stderr, results on stdout, and an end by Ctrl-C or SIGTERM that says how to go on.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar
from unicodedata import category

import click
from click.core import ParameterSource

from ptsr_edge.core.errors import InputError, JobError, MissingExtraError, PtsrError, install_line
from ptsr_edge.core.system import MOST_THREADS

log = logging.getLogger("ptsr_edge")

T = TypeVar("T")


class VerbEntry(NamedTuple):
    """Where a verb's click command `main` is, and its line in `--help`."""

    module: str
    line: str


VERBS = {
    "demo": VerbEntry("ptsr_edge.demo", "Export the embedded default for the CPU, profile it against its full-token ViT, and report."),
    "data": VerbEntry("ptsr_edge.data.cli", "Check what a folder holds of a data set: found, missing, odd, and counts beside the published ones."),
    "train": VerbEntry("ptsr_edge.train.cli", "Train PTSR or its full-token baseline and write a checkpoint."),
    "evaluate": VerbEntry("ptsr_edge.evaluate.cli", "Judge a bundle's artifacts, a checkpoint, or a model trained afresh in each fold."),
    "export": VerbEntry("ptsr_edge.export.cli", "Turn a checkpoint into a bundle of proven, static token-budget variants."),
    "tune": VerbEntry("ptsr_edge.tune", "Search the runtime's parameters on this device and record in the bundle what is faster and answers the same."),
    "sign": VerbEntry("ptsr_edge.sign", "Sign a bundle, so that devices can tell who made it and that it is not an older one."),
    "info": VerbEntry("ptsr_edge.info", "Say what a bundle holds, what of it runs here and is taken by default, and what it was trained on."),
    "predict": VerbEntry("ptsr_edge.predict", "Classify what moved between two pictures of a face, or two moments of a clip."),
    "profile": VerbEntry("ptsr_edge.profile.cli", "Measure MACs, latency, memory, size and accuracy of every variant beside the full-token ViT."),
    "report": VerbEntry("ptsr_edge.report.cli", "Turn profiles into a page, a Markdown file, a JSON record and charts, and choose a variant."),
    "camera": VerbEntry("ptsr_edge.camera.cli", "Turn frames of cameras or files into events, one JSON line each."),
    "doctor": VerbEntry("ptsr_edge.doctor", "Say what is installed, and which targets can be built and run here."),
}  # fmt: skip
"""All verbs, in the order in which they are used."""


MOST = 1e9
"""Of an option's number, unless its type has a limit of its own: no timer and no counter of a runtime takes more."""

THREADS = click.IntRange(1, MOST_THREADS)


class Printing(click.Command):
    """A command whose help is written as results are (`put`), and that ends in one line where that cannot be."""

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        option = super().get_help_option(ctx)
        if option is not None:
            option.callback = printing(click.Context.get_help)
        return option

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # A file that is opened next gets the number of a closed stream, and with it what a runtime writes there.
        sys.stderr = sys.stderr or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 it is not closed
        try:
            if sys.stdout is None:
                raise JobError("standard output cannot be written: it is closed")
            return super().parse_args(ctx, args)
        except PtsrError as error:
            give_up(ctx, str(error), error.exit_code)


def printing(text: Callable[[click.Context], str]) -> Callable[[click.Context, click.Parameter, bool], None]:
    """Returns the callback of an option that prints a text and ends the command."""

    def callback(ctx: click.Context, _option: click.Parameter, asked: bool) -> None:
        if asked and not ctx.resilient_parsing:
            put(text(ctx))
            ctx.exit()

    return callback


class Verb(Printing):
    """A subcommand with `--debug`, `-v` and `-q`, which turns a `PtsrError` into one line and an exit code.

    Exit codes: 0 done, 1 the job failed, 2 the call was wrong, 130 ended by Ctrl-C, 143 ended by SIGTERM.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += [
            _switch("--debug", help="Show the full traceback of an error."),
            _switch("--verbose", "-v", help="Tell each step with its duration."),
            _switch("--quiet", "-q", help="Tell warnings and errors only."),
        ]
        for option in self.params:
            option.callback = _bounded(option.callback)
        self.variables = ""

    def take_variables(self, verb: str) -> None:
        """Lets every option that is not given be taken from `PTSR_EDGE_VERB_OPTION`, named by its longest flag."""
        self.variables = f"PTSR_EDGE_{verb.upper()}_"
        for option in self.params:
            if isinstance(option, click.Option):
                flag = max(option.opts, key=len)
                option.envvar = self.variables + flag.strip("-").replace("-", "_").upper()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            rest = super().parse_args(ctx, args)
            self._refuse_unknown_variables()
        except click.UsageError as error:
            give_up(ctx, error.format_message(), error.exit_code)
        except PtsrError as error:
            give_up(ctx, str(error), error.exit_code)
        return rest

    def _refuse_unknown_variables(self) -> None:
        known = [str(option.envvar) for option in self.params if option.envvar]
        for name in os.environ:
            if self.variables and name.startswith(self.variables) and name not in known:
                raise InputError(
                    f"unknown environment variable {name}; the nearest known is {_nearest(name, known)}"
                )

    def invoke(self, ctx: click.Context) -> Any:
        said = ctx.meta
        if said.get("ptsr_edge.quiet") and said.get("ptsr_edge.verbose"):
            give_up(ctx, "--quiet and --verbose exclude one another", InputError.exit_code)
        quiet, verbose = bool(said.get("ptsr_edge.quiet")), bool(said.get("ptsr_edge.verbose"))
        with _telling(quiet, verbose), _ended_from_outside() as came:
            try:
                return super().invoke(ctx)
            except KeyboardInterrupt as error:
                give_up_interrupted(ctx, error)
            except Exception as error:
                if came:  # a runtime made an error of its own of what the signal raised in a call from there
                    give_up(ctx, f"ended by {came[0].name}: {error}", 128 + came[0])
                if isinstance(error, PtsrError):
                    give_up(ctx, str(error), error.exit_code)
                raise


def _bounded(callback: Callable[..., Any] | None) -> Callable[..., Any]:
    """Returns a callback that refuses numbers that are not finite, which pass every range of click's, or too large."""

    def check(ctx: click.Context, option: click.Parameter, value: Any) -> Any:
        if callback is not None:
            value = callback(ctx, option, value)
        most = getattr(option.type, "max", None) or MOST
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, int | float) and not -most <= number <= most:  # NaN is not, either
                raise click.BadParameter(
                    f"{number!s:.40} is not a finite number up to {most:g}.", ctx, option
                )
        return value

    return check


def _switch(*names: str, help: str) -> click.Option:
    def remember(ctx: click.Context, option: click.Parameter, value: bool) -> None:
        ctx.meta[f"ptsr_edge.{option.name}"] = value

    return click.Option(names, is_flag=True, expose_value=False, is_eager=True, callback=remember, help=help)


def give_up(ctx: click.Context, message: str, exit_code: int) -> NoReturn:
    """Ends the process with one line on stderr; with `--debug`, after the traceback."""
    if ctx.meta.get("ptsr_edge.debug"):
        click.echo(printable(traceback.format_exc()), err=True, nl=False)
    click.echo(f"{ctx.command_path}: {printable(' '.join(message.split()))}", err=True)
    sys.exit(exit_code)


def printable(text: str) -> str:
    """Escapes what moves a terminal's cursor, changes its colours or turns the direction of writing, as JSON does.

    Names of files, classes and models and the cards of models are anybody's. Line breaks and tabs stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        json.dumps(sign)[1:-1] if category(sign) in _UNPRINTABLE and sign not in "\n\t" else sign
        for sign in text
    )


_UNPRINTABLE = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of control and format characters, lone surrogates, and its breaks of lines and paragraphs."""


class PrintableFormatter(logging.Formatter):
    """Messages of the log as a terminal may show them."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


# ---------------------------------------------------------------------------------------------
# An end from outside


class TerminatedError(KeyboardInterrupt):
    """SIGTERM came. Whatever cleans up at Ctrl-C cleans up at this as well."""


@contextmanager
def if_interrupted(advice: Callable[[], str]) -> Iterator[None]:
    """Lets `advice` say, where the block is ended from outside, what is left on disk and how to go on."""
    try:
        yield
    except KeyboardInterrupt as error:
        error.args = error.args or (advice(),)
        raise


def give_up_interrupted(ctx: click.Context, error: KeyboardInterrupt) -> NoReturn:
    """Ends the process as a shell expects after a signal, with one line that says how to go on."""
    number = signal.SIGTERM if isinstance(error, TerminatedError) else signal.SIGINT
    advice = str(error) or "nothing was written; the same command starts anew"
    give_up(ctx, f"ended by {number.name}: {advice}", 128 + number)


@contextmanager
def _ended_from_outside() -> Iterator[list[signal.Signals]]:
    """Lets SIGTERM end the block as Ctrl-C does; yields the signals that came."""
    came: list[signal.Signals] = []
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield came
        return

    def end(number: int, _frame: Any) -> NoReturn:
        came.append(signal.Signals(number))
        raise TerminatedError if number == signal.SIGTERM else KeyboardInterrupt

    ours = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else a shell lets us ignore it
        ours.append(signal.SIGINT)
    before = {number: signal.signal(number, end) for number in ours}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---------------------------------------------------------------------------------------------
# What is told while a verb works

EVERY_S = 10.0
"""Without a terminal, so often a line says what is being done."""

clock = time.monotonic

_is_quiet = False


@dataclass
class Step:
    """What is being done: `done` of `length` parts, since `started` on `clock`."""

    label: str
    length: int | None
    started: float
    done: int = 0

    def __str__(self) -> str:
        counted = "" if self.length is None else f" {self.done} of {self.length},"
        return f"{self.label}:{counted} {clock() - self.started:.0f} s"


_steps: list[Step] = []


@contextmanager
def doing(label: str, length: int | None = None) -> Iterator[Step]:
    """Names what the block does, for the lines that `tell_steps` writes and for `--verbose`."""
    step = Step(label, length, clock())
    _steps.append(step)
    log.debug("%s ...", label)
    try:
        yield step
    finally:
        _steps.remove(step)
        log.debug("%s: %.1f s", label, clock() - step.started)


def progress(items: Iterable[T], label: str, length: int | None = None) -> Iterator[T]:
    """Yields the items behind a progress bar on stderr; where that is no terminal, as a step of `tell_steps`."""
    if length is None and isinstance(items, Sized):
        length = len(items)
    with doing(label, length) as step:
        if _is_quiet or not sys.stderr.isatty():
            for item in items:
                yield item
                step.done += 1
            return
        with click.progressbar(items, length=length, label=label, file=sys.stderr) as bar:
            yield from bar


def tell_steps(wait: Callable[[float], bool]) -> None:
    """Says every ten seconds what is being done, until `wait` (for so many seconds) returns True."""
    while not wait(EVERY_S):
        if _steps:
            say(str(_steps[-1]))


@contextmanager
def _telling(quiet: bool, verbose: bool) -> Iterator[None]:
    """Sets how much is told while the block runs."""
    global _is_quiet
    before = _is_quiet, log.level
    _is_quiet = quiet
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter("%(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    if quiet or verbose:
        log.setLevel(logging.WARNING if quiet else logging.DEBUG)
    over = threading.Event()
    teller = threading.Thread(target=tell_steps, args=(over.wait,), daemon=True, name="ptsr-edge-steps")
    if not quiet and not sys.stderr.isatty():
        teller.start()
    try:
        yield
    finally:
        over.set()
        if teller.is_alive():
            teller.join()
        _is_quiet = before[0]
        log.setLevel(before[1])


def say(text: str) -> None:
    """Prints one line of progress on stderr, unless `--quiet` was given."""
    if not _is_quiet:
        text = printable(text)
        # On a terminal a progress bar may stand in this line; it is drawn again at its next step.
        click.echo(f"\r\033[2K{text}" if _steps and sys.stderr.isatty() else text, err=True)


def finish(record: dict[str, Any], lines: Iterable[str], as_json: bool) -> None:
    """Prints the result on stdout: the lines, of which the last is the path of what was made, or the record as JSON."""
    if as_json:
        lines = [json.dumps(record, indent=2, ensure_ascii=False)]
    for line in lines:
        put(line)


def put(line: str) -> None:
    """Prints a line on stdout.

    Raises:
        BrokenPipeError: nobody reads it any more, which ends the process in silence and with exit code 1.
        JobError: it cannot be written, as on a full disk.
    """
    try:
        click.echo(printable(line))
    except BrokenPipeError:
        raise
    except OSError as error:
        discard_stdout()
        raise JobError(f"standard output cannot be written: {error.strerror}") from error


def discard_stdout() -> None:
    """Lets stdout lead nowhere: what is left in its buffer would raise again when Python ends."""
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


# ---------------------------------------------------------------------------------------------
# Options and verbs


def is_given(name: str) -> bool:
    """Tells whether an option of this call was given, on the command line or by its variable."""
    source = click.get_current_context().get_parameter_source(name)
    return source not in (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)


def comma_separated(
    parse: Callable[[str], T], what: str, *, repeats: bool = False
) -> Callable[..., list[T] | None]:
    """Returns a click callback that reads lists such as `1.0,0.5,0.25`, each entry by `parse`.

    The callback raises InputError for an entry that cannot be read or, unless it `repeats`, is there twice, and names
    the option `what` and the entry.
    """

    def callback(_ctx: click.Context, _param: click.Parameter, value: str | None) -> list[T] | None:
        if value is None:
            return None
        entries: list[T] = []
        for text in value.split(","):
            try:
                entry = parse(text.strip())
            except InputError:
                raise
            except ValueError as error:
                raise InputError(f"{what}: cannot read {text.strip()!r} in {value!r}") from error
            if entry in entries and not repeats:
                raise InputError(f"{what}: {text.strip()} is there twice in {value!r}")
            entries.append(entry)
        return entries

    return callback


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


def load_verb(name: str) -> click.Command:
    """Imports the module of a verb and returns its command.

    Raises:
        InputError: there is no such verb; the message names the nearest.
        MissingExtraError: a package that its module imports is not installed.
    """
    if name not in VERBS:
        raise InputError(
            f"unknown verb {name!r}; nearest: {_nearest(name, VERBS)}; known: {', '.join(VERBS)}"
        )
    # NumPy's OpenBLAS reads it when a verb's module loads NumPy. Its threads spin for a core: the products of a frame are no
    # faster by them, and on a busy machine rendering took ten times the processor time.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with explained_imports(name):
        command: click.Command = importlib.import_module(VERBS[name].module).main
    if isinstance(command, Verb):
        command.take_variables(name)
    return command


def _nearest(name: str, known: Iterable[str]) -> str:
    from ptsr_edge.core.config import nearest  # loads pydantic, which `--help` can do without

    return nearest(name, known)


@contextmanager
def explained_imports(name: str) -> Iterator[None]:
    """Lets the block import the modules of the command `name`.

    Raises:
        MissingExtraError: a package is not installed. A missing module of ptsr-edge itself raises what Python raises.
    """
    try:
        with doing(f"loading what {name} needs"):
            yield
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if isinstance(error, PtsrError) or package in ("", "ptsr_edge"):
            raise
        # Runtimes and drawing are imported late, with a message of their own: any other package comes with `train`.
        raise MissingExtraError(
            f"{name} needs the package {package!r}, which is not installed ({error}): {install_line('train')}"
        ) from error
