"""The demo: one command from weights to a report. Run once, on the smallest model and very briefly."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ptsr_edge.bundle import read_bundle
from ptsr_edge.core.config import DEFAULT_MODEL, named_model
from ptsr_edge.demo import BUDGETS, main
from ptsr_edge.profile.schema import read_profile

pytestmark = pytest.mark.slow

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

SMALLEST = "ptsr-nano"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "out"


@pytest.fixture(scope="module")
def done(folder: Path) -> Result:
    """The real demo, but for the model's size and the duration of each measurement."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ptsr_edge.demo.DEFAULT_MODEL", SMALLEST)
        return CliRunner().invoke(main, ["--out", str(folder), "--duration-s", "0.05", "--json"])


def test_it_ends_well_and_names_the_report(done: Result, folder: Path) -> None:
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert record["report"] == str(folder / "report.html")
    assert set(record) == {"report", "profile"}
    assert (folder / "report.html").read_text(encoding="utf-8").startswith("<!")


def test_its_steps_are_told_on_stderr(done: Result) -> None:
    steps = [line.split()[0] for line in done.stderr.splitlines() if line[:2] in ("1/", "2/", "3/")]
    assert steps == ["1/3", "2/3", "3/3"]


@pytest.mark.usefixtures("done")
def test_the_bundle_has_every_budget_of_the_demo(folder: Path) -> None:
    bundle = read_bundle(folder / "bundle")
    config = named_model(SMALLEST)
    assert {variant.tokens for variant in bundle.variants} == {config.tokens_at(rate) for rate in BUDGETS}
    assert {variant.target for variant in bundle.variants} == {"cpu"}
    assert all(variant.parity is not None for variant in bundle.variants), "every variant is proven"


@pytest.mark.usefixtures("done")
def test_the_profile_compares_every_variant_with_the_full_token_vit(folder: Path) -> None:
    profile = read_profile(folder / "profile")
    bundle = read_bundle(folder / "bundle")
    baseline, *others = profile.variants
    assert baseline.id == profile.baseline
    assert baseline.id.startswith("vit-nano")
    # The ViT's int8 stands beside its fp32: the fair reference of the bundle's int8.
    assert [row.id for row in others if row.id.startswith("vit")] == ["vit-nano-cpu-int8-k49"]
    assert len(others) - 1 == len(bundle.variants)
    for row in profile.variants:
        assert row.latency_ms is not None
        assert row.latency_ms.n >= 100, "as many runs as a profile takes at the least"
    for row in others:
        if row.ratio is None:
            assert row.missing["ratio"].kind == "disturbed", "beside other processes a ratio may be withheld"
        else:
            assert row.ratio.against == baseline.id


@pytest.mark.usefixtures("done")
def test_every_variant_is_judged_and_the_card_says_what_the_weights_know(folder: Path) -> None:
    profile = read_profile(folder / "profile")
    assert "faces of ICT-FaceKit" in profile.model_card
    assert all(row.accuracy is not None for row in profile.variants)
    assert "ICT-FaceKit" in (folder / "report.md").read_text(encoding="utf-8")


def test_the_demo_is_about_the_default_model_and_takes_little_time_by_default() -> None:
    options = {parameter.name: parameter for parameter in main.params}
    assert options["duration_s"].default <= 5
    assert options["out"].default == Path("out/demo")
    assert named_model(DEFAULT_MODEL).kind == "ptsr"


def test_make_demo_says_the_next_line() -> None:
    call = ["make", "--dry-run", "--silent", "demo"]
    done = subprocess.run(call, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    assert ". .venv/bin/activate" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--duration-s", "0"], "--duration-s"),
        (["--duration-s", "long"], "--duration-s"),
        (["--model", "x"], "--model"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(arguments: list[str], said: str) -> None:
    answer = CliRunner().invoke(main, arguments)
    assert answer.exit_code == 2
    assert len(answer.stderr.splitlines()) == 1
    assert said in answer.stderr


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "thesis.txt").write_text("work", encoding="utf-8")
    answer = CliRunner().invoke(main, ["--out", str(tmp_path), "--duration-s", "0.05"])
    assert answer.exit_code == 2
    assert "a folder that is no bundle" in answer.stderr
    assert (tmp_path / "bundle" / "thesis.txt").read_text(encoding="utf-8") == "work"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
