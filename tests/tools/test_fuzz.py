"""Few of the fuzzer's cases of each reader that needs no long export: each ends in the project's own error or a right answer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from fuzz.__main__ import case, lines
from fuzz.mutation import damage, damaged_record
from fuzz.readers import READERS, Reader, can_be_made, rehash
from fuzz.seeds import make_files

from ptsr_edge.bundle import check_files, read_bundle
from ptsr_edge.core.errors import InputError

pytestmark = pytest.mark.slow

CASES = 25
SHORT = ("manifest", "onnx", "onnx-weights", "checkpoint", "foreign-vit", "recipe", "sheet", "sheet-csv", "own-clips",
         "image", "video", "cache", "signature", "key", "state", "history", "fold", "plan", "plan-record", "plan-manifest",
         "build-on-device", "raw-pipe", "video-pipe", "face-model", "fleet", "acknowledged")  # fmt: skip
"""Without the readers of OpenVINO's files and of profiles, which take longer."""


@pytest.fixture(scope="module")
def seeds(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeds")
    make_files(folder)
    shutil.copytree(tiny_bundle, folder / "bundle")
    return folder


@pytest.mark.parametrize("name", SHORT)
def test_damage_ends_in_an_error_of_the_project_or_a_right_answer(
    name: str, seeds: Path, tmp_path: Path
) -> None:
    if not can_be_made(READERS[name]):
        pytest.skip(f"{READERS[name].needs} is missing")
    ends = [case(name, seeds, number, tmp_path / str(number)) for number in range(CASES)]
    assert [end for end in ends if end["end"] not in ("refused", "right")] == []


def test_a_reader_that_raises_what_is_not_the_projects_is_found(
    seeds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(_: Path) -> None:
        raise ZeroDivisionError("here")

    monkeypatch.setitem(READERS, "image", Reader("images", ("*",), "bytes", breaks))
    found = case("image", seeds, 0, tmp_path / "copy")
    assert found["end"] == "raw"
    assert found["said"].startswith("ZeroDivisionError: here at test_fuzz.py:")


def test_a_case_damages_the_same_way_again_and_no_sound_file(seeds: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in seeds.rglob("*") if path.is_file()}
    for number in range(10):
        for place in ("a", "b"):
            case("onnx-weights", seeds, number, tmp_path / place / str(number))
        again = [
            {path.name: path.read_bytes() for path in (tmp_path / place / str(number)).iterdir()}
            for place in "ab"
        ]
        assert again[0] == again[1]
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("kind", ["bytes", "json", "zip", "safetensors"])
def test_every_kind_of_damage_changes_something(kind: str, seeds: Path) -> None:
    name = {"bytes": "images/face.png", "json": "bundle/bundle.json", "zip": "casme2/CASME2-coding-20140508.xlsx",
            "safetensors": "checkpoint/ptsr-nano.safetensors"}[kind]  # fmt: skip
    content = (seeds / name).read_bytes()
    damaged = {damage(content, kind, np.random.default_rng(number)) for number in range(40)}
    assert len(damaged - {content}) > 30


def test_a_record_stays_itself_when_a_copy_is_damaged() -> None:
    record = {"a": [1, {"b": 2}], "c": "x"}
    others = [damaged_record(record, np.random.default_rng(number)) for number in range(50)]
    assert record == {"a": [1, {"b": 2}], "c": "x"}
    assert sum(other != record for other in others) > 40


def test_hashes_that_are_made_right_pass(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    variant = read_bundle(folder).variants[0]
    (folder / variant.artifact).write_bytes(b"other")
    with pytest.raises(InputError, match="has changed"):
        check_files(folder, variant)
    rehash(folder)
    check_files(folder, read_bundle(folder).variants[0])


def test_counts_are_a_table() -> None:
    record = {
        "readers": {"onnx": {"ends": {"refused": 1900, "right": 99, "raw": 1}, "wrong": [{}], "next": 2000}}
    }
    assert lines(json.loads(json.dumps(record)))[-1] == "| onnx | 2,000 | 1,900 | 99 | 1 |"
