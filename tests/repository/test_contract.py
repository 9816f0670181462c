"""docs/CONTRACT.md says what the code does: names of verbs, options, models, data and keys of files."""

from __future__ import annotations

import dataclasses
import pkgutil
import re
from pathlib import Path
from typing import get_args

import pytest

from ptsr_edge import bundle as manifest
from ptsr_edge.core.config import MODELS, Preprocess, Record
from ptsr_edge.core.console import VERBS, load_verb
from ptsr_edge.data.datasets import DATASETS
from ptsr_edge.evaluate.evaluation import PROTOCOLS
from ptsr_edge.export.config import recipe_folder
from ptsr_edge.models.checkpoint import CheckpointInfo
from ptsr_edge.profile import schema as profile_record
from ptsr_edge.runtimes.base import RUNTIMES
from ptsr_edge.session import Prediction
from ptsr_edge.sign import Signature

TEXT = (Path(__file__).parents[2] / "docs" / "CONTRACT.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """From a heading that starts with `title` to the next heading."""
    found = re.search(rf"^#+ {re.escape(title)}.*?(?=^#)", f"{TEXT}\n#", re.MULTILINE | re.DOTALL)
    assert found, f"docs/CONTRACT.md has no section {title!r}"
    return found[0]


def quoted(text: str) -> set[str]:
    """The single words in backquotes."""
    return set(re.findall(r"`([\w.-]+)`", text))


def keys_of(kind: type[Record]) -> set[str]:
    return {field.alias or name for name, field in kind.model_fields.items()}


def test_every_verb_is_there_with_options_that_exist() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \|(.*)\|$", section("Commands"), re.MULTILINE))
    assert list(rows) == list(VERBS)
    for name, row in rows.items():
        known = {option for parameter in load_verb(name).params for option in parameter.opts}
        assert set(re.findall(r"--[a-z][a-z-]+", row)) <= known, f"{name} has not all of these options"


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("Data names", tuple(DATASETS)),
        ("Targets", RUNTIMES),
        ("Protocols", PROTOCOLS),
        ("Models", MODELS),
        ("Recipes by name", [path.stem for path in recipe_folder().glob("*.toml")]),
    ],
    ids=["data", "targets", "protocols", "models", "recipes"],
)
def test_names_are_those_that_are_accepted(line: str, names: tuple[str, ...]) -> None:
    (found,) = re.findall(rf"^- {line}: (.*)$", section("Commands"), re.MULTILINE)
    assert quoted(found) == set(names)


@pytest.mark.parametrize(
    ("title", "kinds"),
    [
        (
            "`bundle.json`",
            [
                manifest.Bundle,
                manifest.Variant,
                manifest.BundleFile,
                manifest.Parity,
                manifest.VerifiedOn,
                manifest.Tuned,
                manifest.Trial,
                manifest.Speedup,
                manifest.Cascade,
                manifest.BundleIO,
                manifest.TensorSpec,
                manifest.Normalisation,
                manifest.RecommendedVariant,
                Preprocess,
            ],
        ),
        (
            "`profile.json`",
            [
                profile_record.Profile,
                profile_record.Measured,
                profile_record.Missing,
                profile_record.Latency,
                profile_record.Ratio,
                profile_record.Stages,
                profile_record.Ceiling,
                profile_record.Attempt,
                profile_record.Accuracy,
                profile_record.KeptPatches,
                profile_record.Judged,
                profile_record.Control,
                profile_record.Dynamic,
            ],
        ),
        (
            "`fleet.json`",
            [
                profile_record.Fleet,
                profile_record.FleetBundle,
                profile_record.FleetDevice,
                profile_record.FleetVariant,
                profile_record.Machine,
                profile_record.DeviceMissing,
            ],
        ),
        ("Checkpoints", [CheckpointInfo]),
        ("`bundle.sig`", [Signature]),
    ],
    ids=["bundle", "profile", "fleet", "checkpoint", "signature"],
)
def test_every_key_of_a_file_is_there_and_no_other(title: str, kinds: list[type[Record]]) -> None:
    known = set().union(*(keys_of(kind) for kind in kinds))
    named = quoted(section(title)) - {
        "bundle.json",
        "bundle.sig",
        "profile.json",
        "profile",
        "ptsr_edge",
        ".safetensors",
    }
    named -= {"predict", "stages.flow_ms", "fleet.json"}
    for kinds_of_reasons in (
        profile_record.MissingKind, profile_record.FaultKind, profile_record.DeviceMissingKind,
    ):  # fmt: skip
        named -= set(get_args(kinds_of_reasons))
    assert named == known


def test_every_field_of_a_prediction_is_there() -> None:
    named = set(re.findall(r"prediction\.(\w+)", section("Calls")))
    assert named == {field.name for field in dataclasses.fields(Prediction)}


def test_every_name_of_the_package_can_be_imported() -> None:
    names = set(re.findall(r"\bptsr_edge(?:\.\w+)+", TEXT)) - {"ptsr_edge.VERB", "ptsr_edge.targets"}
    assert len(names) > 3
    for name in names:
        assert pkgutil.resolve_name(name)
