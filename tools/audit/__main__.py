"""Looks the pinned packages up among the known vulnerabilities, and holds the licences of the installed ones against a list.

    make audit

Both parts always run. Exit code 1 where one finds something, or the first one cannot ask.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import click
from license_expression import ExpressionError, get_spdx_licensing

from ptsr_edge.core.console import Verb, finish, run
from ptsr_edge.core.errors import JobError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]

LICENCES: dict[str, Any] = tomllib.loads(
    Path(__file__).with_name("licences.toml").read_text(encoding="utf-8")
)

SPDX = get_spdx_licensing()

LIMIT_S = 600.0
"""For all questions to the service."""


def canonical(name: str) -> str:
    """Returns a package's name in the one form that names are compared in (PyPA, "Package name normalization")."""
    return re.sub(r"[-_.]+", "-", name).lower()


def licence_of(package: metadata.PackageMetadata) -> str:
    """Returns the licence that a package says to have, as an SPDX expression where that can be told; empty: it says none."""
    name = canonical(package["Name"])
    if told := LICENCES["packages"].get(name) or package.get("License-Expression"):
        return str(told)
    prefix = "License :: "
    classified = [entry for entry in package.get_all("Classifier") or [] if entry.startswith(prefix)]
    said = [entry.rpartition(" :: ")[2] for entry in classified if entry != f"{prefix}OSI Approved"]
    said = said or [(package.get("License") or "").strip().partition("\n")[0]]
    return " AND ".join(LICENCES["said"].get(one, one) for one in said)


def is_accepted(licence: str) -> bool:
    """Tells whether an SPDX expression holds with the accepted licences alone."""
    try:
        parsed = SPDX.parse(licence, validate=True)
    except ExpressionError:
        return False
    if parsed is None:
        return False
    symbols = SPDX.license_symbols(parsed, unique=True, decompose=False)
    taken = {one: SPDX.TRUE if str(one) in LICENCES["accepted"] else SPDX.FALSE for one in symbols}
    return bool(parsed.subs(taken).simplify() == SPDX.TRUE)


def installed() -> list[metadata.Distribution]:
    """Returns the packages of this environment, without what some carry inside of themselves, as setuptools does."""
    places = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    return list(metadata.distributions(path=sorted(places)))


def audit_licences(packages: Iterable[metadata.Distribution]) -> tuple[list[str], list[str]]:
    """Returns what is wrong with the licences of packages, and what should be known of others; a line each."""
    faults, notes = {}, {}
    for package in packages:
        name = canonical(package.metadata["Name"])
        where = f"{name} {package.version}"
        if name in LICENCES["proprietary"]:
            notes[name] = f"{where} is proprietary: {LICENCES['proprietary'][name]}"
        elif not is_accepted(licence := licence_of(package.metadata)):
            faults[name] = f"{where} has a licence that is not accepted: {licence or 'it says none'}"
        if name in LICENCES["brings"]:
            notes[name] = f"{where} brings {LICENCES['brings'][name]}"
    return [faults[name] for name in sorted(faults)], [notes[name] for name in sorted(notes)]


def ask_service(pins: Path) -> list[dict[str, Any]]:
    """Asks pip-audit for the known vulnerabilities of pinned packages.

    Raises:
        JobError: it is not installed, or the service cannot be asked.
    """
    call = [sys.executable, "-m", "pip_audit", "--progress-spinner", "off", "--format", "json",
            "--no-deps", "--disable-pip", "--requirement", str(pins)]  # fmt: skip
    try:
        done = subprocess.run(
            call, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=LIMIT_S, check=False
        )
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        raise JobError(f"the service of known vulnerabilities did not answer within {LIMIT_S:g} s") from None
    except (ValueError, KeyError):
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise JobError(f"the service of known vulnerabilities cannot be asked: {last[:160]}") from None
    return found


def audit_vulnerabilities(answers: Iterable[Mapping[str, Any]]) -> list[str]:
    """Returns the known vulnerabilities, a line each, and in one line which packages the service could not tell of.

    pip-audit itself is content where it could look nothing up.
    """
    lines, unknown, known = [], [], 0
    for answer in answers:
        if "skip_reason" in answer:
            unknown.append(str(answer["name"]))
            continue
        known += 1
        for fault in answer["vulns"]:
            mended = ", ".join(fault.get("fix_versions") or []) or "no version"
            lines.append(f"{answer['name']} {answer['version']}: {fault['id']}, mended in {mended}")
    if not known:
        return [
            "the service of known vulnerabilities knows none of the packages from here: nothing can be said"
        ]
    if unknown:
        lines.append(f"not known to the service of vulnerabilities: {', '.join(sorted(unknown))}")
    return lines


@click.command(cls=Verb, epilog="Example: python -m audit")
@click.option("--json", "as_json", is_flag=True, help="Print the record.")
def main(as_json: bool) -> None:
    """Audit the dependencies: known vulnerabilities and licences."""
    try:
        dangers = audit_vulnerabilities(ask_service(ROOT / "constraints.txt"))
    except JobError as error:
        dangers = [str(error)]
    packages = installed()
    faults, notes = audit_licences(packages)
    record = {"vulnerabilities": dangers, "licences": faults, "notes": notes}
    count = len({canonical(one.metadata["Name"]) for one in packages})
    lines = [f"vulnerability  {line}" for line in dangers or ["none is known"]]
    lines += [f"licence        {line}" for line in faults or [f"{count} packages, all accepted"]]
    finish(record, [*lines, *(f"to be known    {line}" for line in notes)], as_json)
    wrong = [part for part, found in (("vulnerabilities", dangers), ("licences", faults)) if found]
    if wrong:
        raise JobError(f"look into the {' and the '.join(wrong)} above")


if __name__ == "__main__":
    run(main, "python -m audit")
