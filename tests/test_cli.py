from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ptsr_edge.cli import main
from ptsr_edge.core.console import VERBS, load_verb


def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ptsr_edge", *arguments],
        capture_output=True, text=True, timeout=120, check=False, env=os.environ | environment,
    )  # fmt: skip


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_is_the_command_of_its_module_and_shows_an_example(name: str) -> None:
    verb = load_verb(name)
    assert verb.get_short_help_str(limit=1000) == VERBS[name], "the list of verbs says something else"
    assert f"ptsr_edge.{name}" in (verb.epilog or "") or f"ptsr-edge {name}" in (verb.epilog or "")
    options = {option for parameter in verb.params for option in parameter.opts}
    assert {"--json", "--debug"} <= options


def test_help_lists_every_verb_and_imports_none() -> None:
    program = (
        "import sys\nfrom ptsr_edge.cli import VERBS, main\n"
        "main(['--help'], standalone_mode=False)\n"
        "loaded = [name for name in (*VERBS, 'torch', 'onnxruntime') if name in sys.modules "
        "or f'ptsr_edge.{name}' in sys.modules]\n"
        "sys.exit(str(loaded) if loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in VERBS:
        assert re.search(rf"^  {name} ", done.stdout, re.MULTILINE)


def test_an_unknown_verb_is_a_wrong_call_that_names_the_nearest() -> None:
    done = call("exprot")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"python -m ptsr_edge: unknown verb 'exprot'; nearest: export; known: {', '.join(VERBS)}"
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["doctor", "--limit-s", "0"], "--limit-s"),
        (["doctor", "--jsno"], "--json"),
        (["export", "--budgets", "2"], r"keep rate in \(0, 1\]"),
    ],
)
def test_a_wrong_call_of_a_verb_is_one_line_and_exit_code_2(arguments: list[str], said: str) -> None:
    answer = CliRunner().invoke(main, arguments, prog_name="ptsr-edge")
    assert answer.exit_code == 2
    assert answer.stdout == ""
    assert len(answer.stderr.splitlines()) == 1
    assert answer.stderr.startswith(f"ptsr-edge {arguments[0]}: ")
    assert re.search(said, answer.stderr)


def test_options_that_are_not_given_come_from_the_environment() -> None:
    done = call("doctor", PTSR_EDGE_DOCTOR_LIMIT_S="-1")
    assert done.returncode == 2
    assert "-1" in done.stderr


@pytest.mark.parametrize("name", ["train", "export"])
def test_a_missing_package_is_one_line_with_the_install_command(name: str) -> None:
    """As on a device: torch cannot be imported (Python refuses a module that is None in sys.modules)."""
    program = (
        "import sys\nsys.modules['torch'] = None\nfrom ptsr_edge.cli import main\n"
        f"main([{name!r}, '--help'], prog_name='ptsr-edge')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"ptsr-edge: {name} needs the package 'torch'")
    assert done.stderr.endswith("pip install 'ptsr-edge[train]'\n")


@pytest.mark.parametrize(("module", "said"), [("export", "export"), ("demo", "the demo")])
def test_a_module_run_without_its_packages_is_one_line_as_well(
    module: str, said: str, tmp_path: Path
) -> None:
    program = (
        f"import runpy, sys\nsys.modules['torch'] = None\nsys.argv[1:] = ['--out', {str(tmp_path / 'out')!r}]\n"
        f"runpy.run_module('ptsr_edge.{module}', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"python -m ptsr_edge.{module}: {said} needs the package 'torch'")
    assert len(done.stderr.splitlines()) == 1


def test_the_verbs_of_a_device_load_without_torch() -> None:
    program = (
        "import sys\nsys.modules['torch'] = None\nfrom ptsr_edge.cli import load_verb\n"
        "for name in ('evaluate', 'profile', 'report', 'doctor'): load_verb(name)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_error_inside_a_module_of_ptsr_edge_is_not_taken_for_a_missing_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ptsr_edge.doctor", None)
    with pytest.raises(ImportError) as caught:
        load_verb("doctor")
    assert type(caught.value) is ModuleNotFoundError


def test_the_entry_point_of_the_package_is_this_group() -> None:
    assert isinstance(main, click.Group)
    answer = CliRunner().invoke(main, ["--version"], prog_name="ptsr-edge")
    assert re.fullmatch(r"ptsr-edge, version \d+\.\d+\.\d+\n", answer.stdout)
