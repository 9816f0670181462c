"""What every command shares: one line for what went wrong, exit codes, stdout for results only."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ptsr_edge.core import console
from ptsr_edge.core.console import (
    EVERY_S,
    VERBS,
    Verb,
    comma_separated,
    doing,
    finish,
    load_verb,
    progress,
    say,
    tell_steps,
)
from ptsr_edge.core.errors import InputError, JobError

NUMBERS = (click.types.IntParamType, click.types.FloatParamType)


@click.command(cls=Verb)
@click.option("--fail")
@click.option("--count", type=click.IntRange(min=1))
@click.option("--rates", callback=comma_separated(float, "--rates"))
@click.option("--json", "as_json", is_flag=True)
def verb(fail: str | None, count: int | None, rates: list[float] | None, as_json: bool) -> None:
    say("working")
    if fail == "input":
        raise InputError("the call\n  was wrong")
    if fail == "job":
        raise JobError("the job failed")
    if fail == "bug":
        raise ZeroDivisionError
    finish({"rates": rates, "count": count}, ["a line", "out/made"], as_json)


def test_a_result_is_on_stdout_and_its_last_line_is_the_path() -> None:
    result = CliRunner().invoke(verb, [])
    assert result.exit_code == 0
    assert result.stdout == "a line\nout/made\n"
    assert result.stderr == "working\n"


def test_json_prints_the_record_instead() -> None:
    result = CliRunner().invoke(verb, ["--json", "--rates", "1, 0.5"])
    assert json.loads(result.stdout) == {"rates": [1.0, 0.5], "count": None}


@pytest.mark.parametrize(("kind", "code"), [("input", 2), ("job", 1)])
def test_an_error_is_one_line_and_an_exit_code(kind: str, code: int) -> None:
    result = CliRunner().invoke(verb, ["--fail", kind], prog_name="ptsr-edge verb")
    said = {"input": "the call was wrong", "job": "the job failed"}[kind]
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr == f"working\nptsr-edge verb: {said}\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--rates", "1,x"], "ptsr-edge verb: --rates: cannot read 'x' in '1,x'"),
        (["--rates", ""], "ptsr-edge verb: --rates: cannot read '' in ''"),
        (["--count", "0"], "ptsr-edge verb: Invalid value for '--count': 0 is not in the range x>=1."),
        (["--nonesuch"], "ptsr-edge verb: No such option '--nonesuch'"),
        (["extra"], "ptsr-edge verb: Got unexpected extra argument"),
    ],
)
def test_arguments_that_cannot_be_read_are_one_line_too(arguments: list[str], says: str) -> None:
    result = CliRunner().invoke(verb, arguments, prog_name="ptsr-edge verb")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(says)
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--debug", "--rates", "x"], ["--fail", "job", "--debug"]])
def test_debug_shows_the_traceback_before_the_line(arguments: list[str]) -> None:
    result = CliRunner().invoke(verb, arguments)
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("verb: ")


def test_a_bug_is_not_dressed_up_as_a_message() -> None:
    assert isinstance(CliRunner().invoke(verb, ["--fail", "bug"]).exception, ZeroDivisionError)


def test_help_is_no_error() -> None:
    result = CliRunner().invoke(verb, ["--help"])
    assert result.exit_code == 0
    assert "--debug" in result.stdout


@pytest.mark.parametrize("name", VERBS)
def test_every_number_of_every_verb_is_finite_and_bounded(name: str) -> None:
    command = load_verb(name)
    options = [
        one for one in command.params if isinstance(one.type, NUMBERS) and isinstance(one, click.Option)
    ]
    for option in options:
        for text in ("nan", "inf", "-inf", "1e300", "-1e300", str(10**18), "1" + "0" * 400):
            with pytest.raises(click.BadParameter) as caught:
                option.process_value(click.Context(command), text)
            assert option.opts[-1] in caught.value.format_message()


def test_a_number_that_is_none_is_one_line_and_a_good_one_passes() -> None:
    result = CliRunner().invoke(verb, ["--rates", "0.5,nan"], prog_name="ptsr-edge verb")
    said = "ptsr-edge verb: Invalid value for '--rates': nan is not a finite number up to 1e+09.\n"
    assert (result.exit_code, result.stderr) == (2, said)
    assert CliRunner().invoke(verb, ["--count", "1000000000"]).exit_code == 0


PRINTING = """
import click
from ptsr_edge.core.console import Verb, finish

@click.command(cls=Verb)
@click.option("--json", "as_json", is_flag=True)
def verb(as_json):
    finish({"a": 1}, ["a line", "out/made"], as_json)

verb(prog_name="ptsr-edge verb")
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("arguments", [[], ["--json"], ["--help"]])
def test_a_stdout_that_cannot_be_written_is_one_line_and_a_closed_pipe_is_none(arguments: list[str]) -> None:
    call = [sys.executable, "-c", PRINTING, *arguments]
    check_stdout(call, "ptsr-edge verb")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["doctor", "--help"]])
def test_help_that_cannot_be_written_is_one_line(arguments: list[str]) -> None:
    name = " ".join(["python -m ptsr_edge", *arguments[:-1]])
    check_stdout([sys.executable, "-m", "ptsr_edge", *arguments], name)


def check_stdout(call: list[str], name: str) -> None:
    with Path("/dev/full").open("wb") as full:
        ran = subprocess.run(call, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    said = f"{name}: standard output cannot be written: No space left on device\n"
    assert (ran.returncode, ran.stderr) == (1, said)
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        ran = subprocess.run(call, stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (1, "")


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_a_closed_stdout_is_one_line_and_a_closed_stderr_is_nothing(arguments: list[str]) -> None:
    call = shlex.join([sys.executable, "-c", PRINTING, *arguments])
    ran = subprocess.run(f"{call} >&-", shell=True, capture_output=True, text=True, check=False)
    said = "ptsr-edge verb: standard output cannot be written: it is closed\n"
    assert (ran.returncode, ran.stderr) == (1, said)
    ran = subprocess.run(f"{call} 2>&-", shell=True, capture_output=True, text=True, check=False)
    assert ran.returncode == 0
    assert ran.stdout


EVIL = "a\x1b]0;title\x07\x9b31m\u202eb\udcff"
SHOWN = r"a\u001b]0;title\u0007\u009b31m\u202eb\udcff"


@pytest.mark.parametrize("way", ["result", "record", "error", "debug", "progress", "log"])
def test_what_would_steer_a_terminal_is_shown_escaped(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command(cls=Verb)
    @click.option("--json", "as_json", is_flag=True)
    def evil(as_json: bool) -> None:
        if way in ("error", "debug"):
            raise JobError(EVIL)
        if way == "log":
            logging.getLogger("ptsr_edge").warning(EVIL)
        if way == "progress":
            say(EVIL)
        finish({"card": EVIL}, [EVIL, "größer\tline"], as_json)

    monkeypatch.setattr(logging.root, "handlers", [])  # those of pytest
    result = CliRunner().invoke(evil, {"record": ["--json"], "debug": ["--debug"]}.get(way, []))
    said = {"result": result.stdout, "record": result.stdout}.get(way, result.stderr)
    assert SHOWN in said
    assert all(sign.isprintable() or sign in "\n\t" for sign in result.stdout + result.stderr)
    if way == "record":
        assert json.loads(said) == {"card": EVIL}
    if way == "result":
        assert said == f"{SHOWN}\ngrößer\tline\n"


class Clock:
    """Time that passes only by waiting, for a number of waits."""

    def __init__(self, waits: int) -> None:
        self.now, self.left = 0.0, waits

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        """What `threading.Event.wait` returns: False until it is over."""
        self.now, self.left = self.now + seconds, self.left - 1
        return self.left < 0


def test_every_ten_seconds_a_line_says_what_is_being_done(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(waits=3)
    monkeypatch.setattr(console, "clock", clock)
    items = progress(range(5), "counting")
    next(items), next(items)
    tell_steps(clock.wait)
    assert (clock.now, EVERY_S) == (40, 10)
    assert capsys.readouterr() == (
        "",
        "counting: 1 of 5, 10 s\ncounting: 1 of 5, 20 s\ncounting: 1 of 5, 30 s\n",
    )
    with doing("carrying over"):  # the innermost step is the one that is told
        clock.left = 1
        tell_steps(clock.wait)
    assert list(items) == [2, 3, 4]
    clock.left = 1
    tell_steps(clock.wait)  # nothing is being done any more
    assert capsys.readouterr() == ("", "carrying over: 10 s\n")


def test_a_verb_that_works_for_long_tells_it_without_a_terminal_and_not_when_quiet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(console, "EVERY_S", 0.01)

    @click.command(cls=Verb)
    def slow() -> None:
        with doing("waiting"):
            assert over.wait(60 if told else 0.1) is told
        say("done")

    def sees_it(text: str) -> None:
        if text.startswith("waiting: "):
            over.set()
        said.append(text)

    for told, flags in ((True, []), (False, ["--quiet"])):
        said, over = list[str](), threading.Event()
        monkeypatch.setattr(console.click, "echo", lambda text, **_: sees_it(text))
        assert CliRunner().invoke(slow, flags).exit_code == 0
        assert bool(said) is told


def test_verbose_tells_steps_and_quiet_tells_nothing_but_the_result() -> None:
    program = (
        "import click\nfrom ptsr_edge.core.console import Verb, finish, progress, say\n"
        "@click.command(cls=Verb)\ndef verb():\n    say('working')\n    list(progress('abc', 'counting'))\n"
        "    finish({}, ['out/made'], False)\nverb()"
    )

    def told(*flags: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-c", program, *flags], capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout, done.stderr

    assert told() == (0, "out/made\n", "working\n")
    assert told("-q") == (0, "out/made\n", "")
    code, result, said = told("-v")
    assert (code, result) == (0, "out/made\n")
    assert re.fullmatch(r"working\ncounting \.\.\.\ncounting: \d+\.\d s\n", said)
    assert told("-v", "-q")[0] == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("advice", ["", "x is left; --resume goes on"])
def test_a_signal_is_one_line_and_the_exit_code_of_a_shell(number: signal.Signals, advice: str) -> None:
    program = (
        "import signal, click\nfrom ptsr_edge.core.console import Verb, if_interrupted\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n@click.command(cls=Verb)\ndef verb():\n"
        f"    with if_interrupted(lambda: {advice!r}):\n        signal.raise_signal({int(number)})\n"
        "verb(prog_name='ptsr-edge verb')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    said = advice or "nothing was written; the same command starts anew"
    assert (done.returncode, done.stdout) == (128 + number, "")
    assert done.stderr == f"ptsr-edge verb: ended by {number.name}: {said}\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_a_runtime_makes_an_error_of_its_own_of_ends_alike(number: signal.Signals) -> None:
    program = (
        "import signal, click\nfrom ptsr_edge.core.console import Verb\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n@click.command(cls=Verb)\ndef verb():\n"
        f"    try:\n        signal.raise_signal({int(number)})\n"
        "    except KeyboardInterrupt:\n        raise RuntimeError('in a callback') from None\n"
        "verb(prog_name='ptsr-edge verb')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 128 + number
    assert done.stderr == f"ptsr-edge verb: ended by {number.name}: in a callback\n"


def test_a_verb_can_be_called_in_a_thread_which_may_set_no_handlers() -> None:
    found = []
    thread = threading.Thread(target=lambda: found.append(CliRunner().invoke(verb, [])))
    thread.start()
    thread.join()
    assert found[0].exit_code == 0, found[0].output


def test_handlers_are_there_for_the_verb_only() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    assert CliRunner().invoke(verb, []).exit_code == 0
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_quiet_and_verbose_exclude_one_another() -> None:
    result = CliRunner().invoke(verb, ["-q", "-v"], prog_name="ptsr-edge verb")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "ptsr-edge verb: --quiet and --verbose exclude one another\n"


def test_a_verb_that_does_not_exist_is_told_with_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown verb 'exprot'; nearest: export; known: "):
        load_verb("exprot")


def test_a_variable_of_a_verb_that_names_no_option_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTSR_EDGE_DOCTOR_JASON", "1")
    result = CliRunner().invoke(load_verb("doctor"), [])
    assert result.exit_code == 2
    assert (
        "unknown environment variable PTSR_EDGE_DOCTOR_JASON; the nearest known is PTSR_EDGE_DOCTOR_JSON"
        in result.stderr
    )


def test_what_is_given_twice_is_refused_unless_it_may_be() -> None:
    result = CliRunner().invoke(verb, ["--rates", "1,0.5,1.0"])
    assert result.exit_code == 2
    assert "--rates: 1.0 is there twice in '1,0.5,1.0'" in result.stderr
    box = comma_separated(float, "--box", repeats=True)
    assert box(click.Context(verb), verb.params[0], "5,5,9,9") == [5, 5, 9, 9]
