from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.core import ParameterSource
from click.testing import CliRunner

from ptsr_edge.__main__ import main
from ptsr_edge.core.console import VERBS, load_verb
from ptsr_edge.core.errors import install_line


def call(*arguments: str, program: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    start = ["-m", "ptsr_edge"]
    if program:  # as its entry point is called
        start = ["-c", f"from ptsr_edge.__main__ import main; main(prog_name={program!r})"]
    return subprocess.run(
        [sys.executable, *start, *arguments],
        capture_output=True, text=True, timeout=120, check=False, env=os.environ | environment,
    )  # fmt: skip


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_is_the_command_of_its_module_and_shows_an_example(name: str) -> None:
    verb = load_verb(name)
    assert verb.get_short_help_str(limit=1000) == VERBS[name].line, "the list of verbs says something else"
    assert f"ptsr_edge.{name}" in (verb.epilog or "") or f"ptsr-edge {name}" in (verb.epilog or "")
    options = {option for parameter in verb.params for option in parameter.opts}
    assert {"--json", "--debug", "-v", "-q"} <= options


def test_help_lists_every_verb_and_imports_none() -> None:
    program = (
        "import sys\nfrom ptsr_edge.__main__ import VERBS, main\n"
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
def test_a_missing_package_is_one_line_with_the_install_command(name: str, tmp_path: Path) -> None:
    """As on a device: torch cannot be imported (Python refuses a module that is None in sys.modules)."""
    program = (
        "import sys\nsys.modules['torch'] = None\nfrom ptsr_edge.__main__ import main\n"
        f"main([{name!r}, '--out', {str(tmp_path / 'x.safetensors')!r}], prog_name='ptsr-edge')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"ptsr-edge {name}: {name} needs the package 'torch'")
    assert done.stderr.endswith(f"{install_line('train')}\n")


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
        "import sys\nsys.modules['torch'] = None\nfrom ptsr_edge.__main__ import VERBS, load_verb\n"
        "for name in VERBS: load_verb(name)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


HEAVY = (
    "torch",
    "onnx",
    "onnxruntime",
    "openvino",
    "nncf",
    "tensorrt_rtx",
    "cv2",
    "matplotlib",
    "scipy",
    "joblib",
    "dask",
)


@pytest.mark.parametrize(
    "arguments",
    [*([name, "--help"] for name in VERBS), ["export", "--budgets", "2"], ["export", "--precision", "int3"],
     ["export", "--target", "trt", "--layout", "ovms"], ["train", "--model", "none", "--out", "x.safetensors"]],
    ids=" ".join,
)  # fmt: skip
def test_help_and_wrong_calls_load_nothing_heavy(arguments: list[str]) -> None:
    """That is what makes them quick; counted, not timed."""
    program = (
        "import json, sys\nfrom ptsr_edge.__main__ import main\n"
        "try:\n    main(json.loads(sys.argv[1]), prog_name='ptsr-edge')\n"
        "except SystemExit as end:\n    print(json.dumps([end.code, sorted(sys.modules)]))"
    )
    call = [sys.executable, "-c", program, json.dumps(arguments)]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    code, loaded = json.loads(done.stdout.splitlines()[-1])
    assert code == (0 if "--help" in arguments else 2), done.stderr
    assert not {name.partition(".")[0] for name in loaded} & set(HEAVY)


def test_the_list_of_verbs_loads_click_and_nothing_else_of_others() -> None:
    program = (
        "import json, sys\nbefore = set(sys.modules)\nfrom ptsr_edge.__main__ import main\n"
        "main(['--help'], standalone_mode=False)\nprint(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}
    assert loaded - sys.stdlib_module_names - {"_sysconfigdata"} <= {"ptsr_edge", "click", "colorama"}


OPTIONS = [
    pytest.param(name, option, id=f"{name}-{max(option.opts, key=len)}")
    for name in VERBS
    for option in load_verb(name).params
    if isinstance(option, click.Option)
]


def value_of(option: click.Option) -> str:
    """A text that an option accepts."""
    known = {"--budgets": "0.5", "--face-box": "1,2,30,40", "--size": "640x360"}
    flag = max(option.opts, key=len)
    if flag in known:
        return known[flag]
    if option.is_flag:
        return "1"
    if isinstance(option.type, click.Choice):
        return str(list(option.type.choices)[-1])
    if isinstance(option.type, click.IntRange | click.FloatRange):
        low, high = option.type.min or 0, option.type.max
        inside = low + 1 if high is None else (low + high) / 2
        return str(int(inside) if isinstance(option.type, click.IntRange) else inside)
    return "7"


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_every_option_can_come_from_the_environment_and_a_flag_beats_it(
    name: str, option: click.Option, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag, value = max(option.opts, key=len), value_of(option)
    variable = f"PTSR_EDGE_{name}_{flag.lstrip('-')}".upper().replace("-", "_")
    verb = load_verb(name)
    required = [
        word
        for other in verb.params
        if other.required and other is not option
        for word in ([max(other.opts, key=len), "7"] if isinstance(other, click.Option) else ["check"])
    ]
    monkeypatch.setenv(variable, value)
    taken = verb.make_context(name, list(required), resilient_parsing=False)
    assert option.name is not None
    assert taken.get_parameter_source(option.name) is ParameterSource.ENVIRONMENT
    given = verb.make_context(name, [*required, flag, *([] if option.is_flag else [value])])
    assert given.get_parameter_source(option.name) is ParameterSource.COMMANDLINE


def test_a_variable_that_names_no_option_is_refused() -> None:
    done = call("doctor", PTSR_EDGE_DOCTOR_LIMITS="1")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "python -m ptsr_edge doctor: unknown environment variable PTSR_EDGE_DOCTOR_LIMITS; "
        "the nearest known is PTSR_EDGE_DOCTOR_LIMIT_S"
    ]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("ptsr-edge exp", "plain,export"),
        ("ptsr-edge export --dev", "plain,--device"),
        ("ptsr-edge exprot --dev", ""),
    ],
)
def test_a_shell_completes_verbs_and_options(words: str, offered: str) -> None:
    count = str(len(words.split()) - 1)
    done = call(_PTSR_EDGE_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=count, program="ptsr-edge")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == offered


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="the system does not list threads")
def test_a_verb_keeps_numpy_from_threads_that_wait_for_cores() -> None:
    program = (
        "import os\nfrom ptsr_edge.__main__ import load_verb\nload_verb('export')\nimport numpy as np\n"
        "np.ones((500, 500), 'f') @ np.ones((500, 500), 'f')\nprint(len(os.listdir('/proc/self/task')))"
    )
    around = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=around, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == 1


def test_an_error_inside_a_module_of_ptsr_edge_is_not_taken_for_a_missing_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ptsr_edge.doctor", None)
    with pytest.raises(ImportError) as caught:
        load_verb("doctor")
    assert type(caught.value) is ModuleNotFoundError


def test_the_entry_point_of_the_package_is_this_group() -> None:
    assert isinstance(main, click.Group)
    answer = CliRunner().invoke(main, ["-V"], prog_name="ptsr-edge")
    assert re.fullmatch(r"ptsr-edge, version \d+\.\d+\.\d+\n", answer.stdout)
