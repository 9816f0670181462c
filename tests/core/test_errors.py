"""The error tree, and the one place where a package that is not installed is met."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import pytest

from ptsr_edge.core.errors import (
    InputError,
    JobError,
    MissingExtraError,
    ParityError,
    PtsrError,
    install_line,
    line_for,
    require,
)


@pytest.mark.parametrize(
    ("kind", "also", "code"),
    # The tree at the top of the module, and the built-in errors that a caller may already catch.
    [
        (InputError, (PtsrError, ValueError), 2),
        (JobError, (PtsrError, RuntimeError), 1),
        (ParityError, (JobError,), 1),
        (MissingExtraError, (JobError, ImportError), 1),
    ],
)
def test_the_tree(kind: type[PtsrError], also: tuple[type[Exception], ...], code: int) -> None:
    assert issubclass(kind, also)
    assert kind.exit_code == code
    assert str(kind("one line")) == "one line"


@pytest.mark.parametrize("kind", [InputError, ParityError, MissingExtraError])
def test_an_error_crosses_a_process(kind: type[PtsrError]) -> None:
    again = pickle.loads(pickle.dumps(kind("k4 departs")))
    assert (type(again), str(again)) == (kind, "k4 departs")


def test_what_is_installed_is_imported() -> None:
    assert require("json", "ort", "reading") is json
    assert require("importlib.metadata", "ort", "reading") is sys.modules["importlib.metadata"]


def test_what_is_missing_is_answered_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # Python refuses a module that is None in sys.modules, as if it were not installed.
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError) as caught:
        require("onnxruntime", "ort", "running a bundle of target cpu")
    message = str(caught.value)
    assert message.startswith("running a bundle of target cpu needs the package 'onnxruntime'")
    assert message.endswith(install_line("ort"))
    assert "\n" not in message
    assert isinstance(caught.value.__cause__, ImportError)


def test_the_package_is_named_and_not_the_module_in_it() -> None:
    with pytest.raises(MissingExtraError, match="needs the package 'ptsr_edge_has_no_such', which"):
        require("ptsr_edge_has_no_such.inner.most", "report", "drawing")


def test_a_package_that_breaks_for_another_reason_shows_that_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ptsr_broken_package.py").write_text("raise OSError('libfoo.so is truncated')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(OSError, match="truncated"):
        require("ptsr_broken_package", "ort", "running")


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("origin", "line"),
    [
        pytest.param(None, "pip install 'ptsr-edge[ort]'", id="by its name"),
        pytest.param(
            {"url": "file:///data/my%20wheels/ptsr_edge-0.1.0-py3-none-any.whl", "archive_info": {}},
            "pip install '/data/my wheels/ptsr_edge-0.1.0-py3-none-any.whl[ort]'",
            id="a wheel file",
        ),
        pytest.param(
            {"url": "file:///data/clone", "dir_info": {}}, "pip install '/data/clone[ort]'", id="a folder"
        ),
        pytest.param(
            {"url": "https://example.org/edge.git", "vcs_info": {"vcs": "git", "commit_id": COMMIT}},
            f"pip install 'ptsr-edge[ort] @ git+https://example.org/edge.git@{COMMIT}'",
            id="a git address",
        ),
        pytest.param(
            {
                "url": "file:///data/edge.git",
                "subdirectory": "a",
                "vcs_info": {"vcs": "git", "commit_id": COMMIT},
            },
            f"pip install 'ptsr-edge[ort] @ git+file:///data/edge.git@{COMMIT}#subdirectory=a'",
            id="a folder of a local repository",
        ),
        pytest.param(
            {"url": "https://example.org/ptsr_edge-0.1.0-py3-none-any.whl", "archive_info": {}},
            "pip install 'ptsr-edge[ort] @ https://example.org/ptsr_edge-0.1.0-py3-none-any.whl'",
            id="a wheel at an address",
        ),
    ],
)
def test_an_extra_is_installed_from_where_the_package_came(
    origin: dict[str, object] | None, line: str
) -> None:
    assert line_for("ort", None, origin) == line


def test_a_clone_is_named_from_inside_and_from_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert line_for("ort", tmp_path, None) == f"pip install -e '{tmp_path}[ort]'"
    monkeypatch.chdir(tmp_path)
    assert line_for("ort", tmp_path, None) == "pip install -e '.[ort]'"
    assert (
        install_line("ort") == f"pip install -e '{Path(__file__).parents[2]}[ort]'"
    )  # these tests run from a clone
