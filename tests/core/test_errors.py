"""The error tree, and the one place where a package that is not installed is met."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import pytest

from ptsr_edge.core.errors import InputError, JobError, MissingExtraError, ParityError, PtsrError, require


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
    assert message.endswith("pip install 'ptsr-edge[ort]'")
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
