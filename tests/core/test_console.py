"""What every command shares: one line for what went wrong, exit codes, stdout for results only."""

from __future__ import annotations

import json

import click
import pytest
from click.testing import CliRunner

from ptsr_edge.core.console import Verb, comma_separated, finish, progress, say
from ptsr_edge.core.errors import InputError, JobError


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


def test_progress_is_silent_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(range(3), "counting")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")
