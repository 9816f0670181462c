"""A dependency whose licence is not on the list is a fault, and so is a service that could not be asked."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

pytest.importorskip("license_expression", reason="license-expression is missing: the extra dev brings it")
from audit.__main__ import LICENCES, ROOT, audit_licences, audit_vulnerabilities, canonical, installed, main

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.fixture
def package(tmp_path: Path) -> Callable[..., list[metadata.Distribution]]:
    """Makes an installed package that says this of its licence."""

    def make(*says: str, name: str = "odd") -> list[metadata.Distribution]:
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        lines = ["Metadata-Version: 2.4", f"Name: {name}", "Version: 1.0", *says]
        (folder / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return list(metadata.distributions(path=[str(tmp_path)]))

    return make


@pytest.mark.parametrize(
    "says",
    [
        ["License-Expression: MIT"],
        ["License-Expression: MIT OR GPL-3.0-only"],
        ["License-Expression: Apache-2.0 WITH LLVM-exception AND Zlib"],
        ["License: UNKNOWN", "Classifier: License :: OSI Approved :: Apache Software License"],
        ["License: Apache 2.0"],
    ],
)
def test_a_licence_on_the_list_is_accepted(package: Callable[..., Any], says: list[str]) -> None:
    assert audit_licences(package(*says)) == ([], [])


@pytest.mark.parametrize(
    ("says", "found"),
    [
        ([], "it says none"),
        (["License-Expression: GPL-3.0-only"], "GPL-3.0-only"),
        (["License-Expression: MIT AND GPL-3.0-only"], "MIT AND GPL-3.0-only"),
        (["License-Expression: Apache-2.0 WITH GPL-CC-1.0"], "Apache-2.0 WITH GPL-CC-1.0"),
        (["License-Expression: LicenseRef-Ours"], "LicenseRef-Ours"),
        (["License: do what I say"], "do what I say"),
        (["License: MIT", "Classifier: License :: Other/Proprietary License"], "Other/Proprietary License"),
        (
            ["Classifier: License :: OSI Approved :: BSD License", "Classifier: License :: OSI Approved :: GNU General Public License (GPL)"],
            "BSD-3-Clause AND GNU General Public License (GPL)",
        ),
    ],
)  # fmt: skip
def test_a_licence_that_is_not_is_told(package: Callable[..., Any], says: list[str], found: str) -> None:
    assert audit_licences(package(*says))[0] == [f"odd 1.0 has a licence that is not accepted: {found}"]


def test_what_is_installed_here_is_accepted() -> None:
    assert audit_licences(installed())[0] == []


def test_what_is_proprietary_is_told_and_in_no_extra_of_all(package: Callable[..., Any]) -> None:
    assert audit_licences(package("License: Proprietary", name="tensorrt_rtx_cu13"))[1] == [
        "tensorrt-rtx-cu13 1.0 is proprietary: NVIDIA's Software License Agreement"
    ]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    waiting, taken = ["all"], set[str]()
    while waiting:
        for rule in extras[waiting.pop()]:
            if inner := re.match(r"ptsr-edge\[([\w,-]+)\]", rule):
                waiting += inner[1].split(",")
            else:
                taken.add(canonical(re.split(r"[^\w.-]", rule)[0]))
    assert len(taken) > 15
    assert not taken & LICENCES["proprietary"].keys()
    assert {canonical(re.split(r"[^\w.-]", rule)[0]) for rule in extras["trt-rtx"]} & LICENCES[
        "proprietary"
    ].keys()


def test_every_exception_is_of_a_package_that_is_pinned() -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = {canonical(name) for name in re.findall(r"^([\w.-]+)==", pins, re.MULTILINE)}
    for table in ("packages", "proprietary", "brings"):
        assert LICENCES[table].keys() <= pinned, table


def test_known_vulnerabilities_are_told_and_what_the_service_does_not_know() -> None:
    """Answers as pip-audit writes them."""
    mended = {"id": "PYSEC-1", "fix_versions": ["1.1", "2.0"], "aliases": [], "description": ""}
    good: dict[str, Any] = {"name": "good", "version": "1", "vulns": []}
    bad = {"name": "bad", "version": "1.0", "vulns": [mended, mended | {"id": "PYSEC-2", "fix_versions": []}]}
    absent = {"name": "absent", "skip_reason": "not found"}
    assert audit_vulnerabilities([good]) == []
    assert audit_vulnerabilities([good, bad, absent]) == [
        "bad 1.0: PYSEC-1, mended in 1.1, 2.0",
        "bad 1.0: PYSEC-2, mended in no version",
        "not known to the service of vulnerabilities: absent",
    ]
    # Of this pip-audit says that no vulnerability was found, and ends well.
    (line,) = audit_vulnerabilities([absent])
    assert line.endswith("knows none of the packages from here: nothing can be said")


def test_a_service_that_is_not_reached_fails_and_licences_are_told_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("pip_audit", reason="pip-audit is missing: the extra dev brings it")
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody listens
    done = CliRunner().invoke(main, ["--json"])
    record = json.loads(done.stdout)
    (line,) = record["vulnerabilities"]
    assert line.startswith("the service of known vulnerabilities cannot be asked: ")
    assert record["licences"] == []
    assert done.exit_code == 1
    assert done.stderr.endswith("look into the vulnerabilities above\n")
