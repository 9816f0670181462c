"""`profile.json`: what is written can be read again, and nothing that is wrong can."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bundle_data import check_reasons
from report_data import make_profile, write_profile

from ptsr_edge.core.errors import InputError
from ptsr_edge.core.files import write_json
from ptsr_edge.profile.schema import PROFILE, Measured, Profile, needs_gpu, read_profile
from ptsr_edge.stats.latency import Latency


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_profile(tmp_path, rates=(1.0, 0.25), samples=20, raw="none")
    return tmp_path


def change(folder: Path, *path: str | int, to: Any) -> None:
    """Replaces one value of the file, or with `...` removes it."""
    record = json.loads((folder / PROFILE).read_text(encoding="utf-8"))
    place = record
    for part in path[:-1]:
        place = place[part]
    if to is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    (folder / PROFILE).write_text(json.dumps(record), encoding="utf-8")


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    written = make_profile(tmp_path, samples=20, raw="none", schema=2)
    found = read_profile(tmp_path)
    assert found == written
    assert json.loads((tmp_path / PROFILE).read_text(encoding="utf-8"))["schema"] == 2
    assert found.baseline in {row.id for row in found.variants}


def test_what_was_not_measured_is_null_and_no_zero(tmp_path: Path) -> None:
    unmeasured = Measured(
        id="a", bundle=None, target="cpu", precision="fp32", keep_rate=1.0, tokens=4, macs=1, parameters=1,
        size_bytes=1,
    )  # fmt: skip
    profile = make_profile(tmp_path, samples=20, raw="none", schema=2).model_copy(
        update={"variants": [unmeasured], "baseline": "a", "kept_patches": None}
    )
    write_json(tmp_path / PROFILE, profile.model_dump(mode="json", by_alias=True))
    row = json.loads((tmp_path / PROFILE).read_text(encoding="utf-8"))["variants"][0]
    results = ("load_ms", "first_ms", "latency_ms", "ratio", "peak_rss_bytes", "throughput_per_s", "accuracy")
    assert [row[name] for name in results] == [None] * len(results)
    assert read_profile(tmp_path).variants == [unmeasured]


def test_a_result_that_is_no_number_becomes_null() -> None:
    row = Latency(p50=1, p90=1, p95=1, p99=1, min=1, mean=1, cv=float("nan"), n=1)
    assert json.loads(row.model_dump_json())["cv"] is None  # NaN is no JSON


@pytest.mark.parametrize(
    ("path", "to", "said"),
    [
        pytest.param(("schema",), 3, "schema: ", id="another schema"),
        pytest.param(("variants",), [], "variants: ", id="no variant"),
        pytest.param(("variants", 0, "latency_ms", "n"), 0, r"variants\.0\.latency_ms\.n: ", id="no sample"),
        pytest.param(("variants", 1, "macs"), "many", r"variants\.1\.macs: .*'many'", id="no number"),
        pytest.param(("command",), ..., "command: ", id="a missing key"),
        pytest.param(
            ("variants", 0, "size_byte"), 3, "the nearest known key is 'size_bytes'", id="unknown key"
        ),
        pytest.param(("kept_patches", "gird"), 3, "the nearest known key is 'grid'", id="unknown key inside"),
    ],
)
def test_a_profile_that_is_none(folder: Path, path: tuple[str | int, ...], to: Any, said: str) -> None:
    change(folder, *path, to=to)
    with pytest.raises(InputError, match=said) as caught:
        read_profile(folder)
    assert str(folder / PROFILE) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"profile\.json does not exist"):
        read_profile(tmp_path)
    (tmp_path / PROFILE).write_text('{"schema": 1', encoding="utf-8")
    with pytest.raises(InputError, match=r"profile\.json is not a readable JSON file"):
        read_profile(tmp_path)


def test_a_record_cannot_be_edited_after_the_fact(folder: Path) -> None:
    profile = read_profile(folder)
    assert isinstance(profile, Profile)
    with pytest.raises(ValueError, match="frozen"):
        profile.variants[0].macs = 1


def test_a_record_of_schema_1_gets_its_reasons_from_facts(tmp_path: Path) -> None:
    written = make_profile(tmp_path, rates=(1.0, 0.25), samples=20, raw="none", schema=1)
    # A record of schema 1 has no reasons.
    baseline, full, quarter = (row.model_copy(update={"missing": {}}) for row in written.variants)
    unrun = dict.fromkeys(("latency_ms", "load_ms", "stages", "accuracy", "macs_by_operator"))
    engine = quarter.model_copy(update=unrun | {"id": "engine", "target": "trt", "ratio": None})
    broken = engine.model_copy(update={"id": "broken", "target": "gone"})
    rows = [baseline, full.model_copy(update={"peak_rss_bytes": None}), engine, broken]
    write_profile(tmp_path, written.model_copy(update={"variants": rows}))
    found = read_profile(tmp_path).variants
    assert found[0].model_copy(update={"missing": {}}) == baseline
    for row in found:
        check_reasons(row)
    assert found[0].missing["ratio"].kind == "not_applicable"
    assert found[1].missing["peak_rss_bytes"].kind == "not_asked"
    for row, kind in zip(found[2:], ("no_device", "failed"), strict=True):
        assert {row.missing[name].kind for name in ("latency_ms", "ratio", "stages", "accuracy")} == {kind}
        assert row.missing["macs_by_operator"].kind == "not_asked"


def test_committed_profiles_have_a_reason_for_each_result_that_is_null() -> None:
    found = sorted((Path(__file__).parents[2] / "profiles").rglob(PROFILE))
    assert found
    for path in found:
        for row in read_profile(path.parent).variants:
            check_reasons(row)


def test_a_target_that_is_not_known_here_needs_no_gpu() -> None:
    assert needs_gpu("trt")
    assert not needs_gpu("cpu")
    assert not needs_gpu("toy")
