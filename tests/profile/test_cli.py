"""The command `profile` on small real graphs: what it prints, writes and refuses. No test looks at a time."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bundle_data import check_reasons, write_tiny_bundle
from click.testing import CliRunner, Result
from signalled import signalled

from ptsr_edge.bundle import read_bundle
from ptsr_edge.profile.cli import main, table
from ptsr_edge.profile.profiler import record_text
from ptsr_edge.profile.schema import Missing, Profile, read_profile
from ptsr_edge.profile.timing import MIN_ROUNDS

pytestmark = pytest.mark.usefixtures("short_runs")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in arguments], prog_name="ptsr-edge profile")


@pytest.fixture(scope="module")
def profiled(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """One real run of the command: what it said and where its record lies."""
    bundle, baseline = folders
    here = tmp_path_factory.mktemp("profiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        result = run(
            "--bundle",
            bundle,
            "--baseline",
            baseline,
            "--duration-s",
            0.05,
            "--min-runs",
            30,
            "--processes",
            2,
            "--attempts",
            1,
            "--streams",
            2,
            "--out",
            "p",
        )
    return result, here / "p"


def test_the_command_prints_a_table_and_the_path(profiled: tuple[Result, Path]) -> None:
    result, out = profiled
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split()[:3] == ["variant", "tokens", "MMACs"]
    names = ["vit-test-cpu-fp32-k16", "ptsr-test-cpu-fp32-k16", "ptsr-test-cpu-fp32-k8"]
    assert [line.split()[0] for line in lines[1:4]] == names
    assert "baseline" in lines[1]
    assert lines[-1] == "p/profile.json"
    assert (out / "profile.json").is_file()


def test_an_engine_that_did_not_run_says_so_in_the_table(profiled: tuple[Result, Path]) -> None:
    record = read_profile(profiled[1])
    last = record.variants[-1]
    why = Missing(kind="no_device", reason="built, not run here: no GPU")
    gone = last.model_copy(update={"latency_ms": None, "ratio": None, "missing": {"latency_ms": why}})
    lines = table(record.model_copy(update={"variants": [*record.variants[:-1], gone]}))
    assert "built, not run here" in lines[-1]
    assert not any("built" in line for line in lines[:-1])


def test_every_variant_stands_beside_the_baseline(
    folders: tuple[Path, Path], profiled: tuple[Result, Path]
) -> None:
    record = read_profile(profiled[1])
    assert record.baseline == "vit-test-cpu-fp32-k16"
    assert [row.tokens for row in record.variants] == [16, 16, 8]
    assert record.variants[0].ratio is None
    for row in record.variants:
        assert row.latency_ms is not None
        assert row.latency_ms.n >= 30
        assert 0 < row.latency_ms.min <= row.latency_ms.p50 <= row.latency_ms.p99
        assert row.load_ms is not None
        assert row.first_ms is not None
        assert row.peak_rss_bytes is not None
        # The hand count of the graph: (1, 768) x (768, 8) and (1, 8) x (8, 3).
        assert row.macs == sum((row.macs_by_operator or {}).values()) == 768 * 8 + 8 * 3
        assert row.size_bytes == sum(
            file.bytes
            for folder in folders
            for variant in read_bundle(folder).variants
            if variant.id == row.id
            for file in variant.files
        )
        assert row.accuracy is None
        check_reasons(row)
        assert row.missing["accuracy"].kind == "not_asked"
        assert row.throughput_per_s is not None
        assert row.throughput_per_s > 0
        assert row.streams == 2
        assert row.stages is not None
        assert row.stages.inference_ms > 0
        assert sum((row.stages.operators or {}).values()) == pytest.approx(1)
        assert row.ceiling is not None
        assert row.ceiling.share is not None
        assert row.ceiling.share > 0
        assert any("samples beyond it" in note for note in row.notes)
    assert len(record.attempts) == 1
    for row in record.variants[1:]:
        assert row.ratio is not None
        assert len(row.ratio.per_process) == 2
        assert row.ratio.against == record.baseline
        assert row.ratio.low <= row.ratio.median <= row.ratio.high


def test_raw_samples_are_those_of_the_record(profiled: tuple[Result, Path]) -> None:
    record = read_profile(profiled[1])
    for row in record.variants:
        assert row.raw_samples is not None
        assert row.latency_ms is not None
        with np.load(profiled[1] / row.raw_samples) as stored:
            samples, rounds = stored["samples_ns"], stored["round"]
        assert samples.dtype == np.int64
        assert len(samples) == len(rounds) == row.latency_ms.n
        assert np.median(samples) / 1e6 == pytest.approx(row.latency_ms.p50)
        assert samples.min() / 1e6 == pytest.approx(row.latency_ms.min)
        assert (np.diff(rounds) >= 0).all()
        assert len(np.unique(rounds)) >= MIN_ROUNDS
        assert record.method["interleaving"].startswith(f"{rounds[-1] + 1} rounds;")


def test_the_record_names_no_machine_and_no_path(
    folders: tuple[Path, Path], profiled: tuple[Result, Path]
) -> None:
    text = (profiled[1] / "profile.json").read_text()
    assert str(profiled[1].parent) not in text
    assert str(folders[0].parent) not in text
    assert json.loads(text)["command"] == (
        "python -m ptsr_edge.profile --bundle ptsr --baseline vit --duration-s 0.05 --min-runs 30 "
        "--threads 1 --seed 0 --processes 2 --attempts 1 --streams 2 --out p"
    )


def test_lists_of_numbers_stand_on_one_line(profiled: tuple[Result, Path]) -> None:
    record = read_profile(profiled[1])
    odd = record.model_copy(update={"model_card": 'a "[\n1, 2\n]" in a string', "labels": ["[1, 2]"]})
    text = record_text(odd)
    assert Profile.model_validate_json(text) == odd
    load = json.dumps(record.environment["load_average"], separators=(",", ":"))
    assert f'"load_average": {load}' in text


def test_an_earlier_profile_is_replaced_as_a_whole_and_json_is_the_record(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "ptsr", [0.5])
    write_tiny_bundle(tmp_path / "vit", [1.0], kind="vit")
    earlier = tmp_path / "p"
    earlier.mkdir()
    (earlier / "profile.json").write_text("{}")
    (earlier / "left-over").write_text("old")
    result = run(
        "--bundle", tmp_path / "ptsr", "--baseline", tmp_path / "vit", "--duration-s", 0.05, "--out", earlier,
        "--json", "--processes", 1, "--attempts", 1,
    )  # fmt: skip
    assert Profile.model_validate(json.loads(result.stdout)) == read_profile(earlier)
    assert sorted(path.name for path in earlier.iterdir()) == ["profile.json", "samples"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_profile_with_its_processes(
    folders: tuple[Path, Path], number: signal.Signals, tmp_path: Path
) -> None:
    ended = signalled(
        "profile", "--bundle", folders[0], "--baseline", folders[1], "--duration-s", 60, "--processes", 2,
        "--out", "p", after="timing 1/2 ...", number=number, folder=tmp_path,
    )  # fmt: skip
    assert (ended.code, ended.stdout, ended.left) == (128 + number, "", [])
    assert ended.line == (
        f"python -m ptsr_edge profile: ended by {number.name}: p is not written; the same command starts anew"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["scratch"]


@pytest.fixture(scope="module")
def quick(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """A real quick run of the command, which judges nothing."""
    out = tmp_path_factory.mktemp("quick") / "p"
    return run(
        "--bundle", folders[0], "--baseline", folders[1], "--quick", "--duration-s", 0.01, "--out", out
    ), out  # fmt: skip


def test_a_quick_run_says_what_it_left_out(quick: tuple[Result, Path]) -> None:
    result, out = quick
    assert result.exit_code == 0, result.output
    told = result.stdout.splitlines()[-2]
    assert told.startswith("a quick run, for a first look: 12 rounds; left out: time by stage, ")
    record = read_profile(out)
    assert record.method["quick"] is True
    assert record.method["left_out"] in told
    assert " --quick " in record.command
    for row in record.variants:
        check_reasons(row)
        for name in ("stages", "ceiling", "energy_mj", "throughput_per_s"):
            assert row.missing[name].kind == "not_asked"
            assert row.missing[name].reason.endswith("left out of a quick run")
    for row in record.variants[1:]:
        assert row.ratio is not None
        assert len(row.ratio.per_process) == 3


def test_the_page_of_a_quick_run_says_so(quick: tuple[Result, Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from ptsr_edge.report.cli import write_report

    page = write_report([quick[1]], tmp_path / "r").page
    for path in (page, page.with_suffix(".md")):
        text = path.read_text(encoding="utf-8")
        assert "left out of a quick run" in text
        assert str(read_profile(quick[1]).method["left_out"]) in text


def test_a_full_run_is_not_called_quick(profiled: tuple[Result, Path]) -> None:
    assert "quick" not in profiled[0].stdout
    assert read_profile(profiled[1]).method["quick"] is False


@pytest.mark.slow
def test_on_a_device_the_baseline_of_the_export_is_taken_without_torch(tmp_path: Path) -> None:
    from ptsr_edge.export.cli import main as export

    done = CliRunner().invoke(
        export,
        ["--model", "ptsr-nano", "--target", "cpu", "--budgets", "0.25", "--calibration-samples", "16",
         "--with-baseline", "--out", str(tmp_path / "nano")],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    program = (
        "import sys; sys.modules['torch'] = None\nfrom ptsr_edge.__main__ import main\n"
        "main(['profile', '--bundle', 'nano', '--quick', '--processes', '1', '--duration-s', '0.01'], prog_name='ptsr-edge')"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    record = read_profile(tmp_path / "out" / "profile")
    assert [(row.bundle, row.id) for row in record.variants] == [
        ("nano-baseline", "vit-nano-cpu-fp32-k49"),
        ("nano-baseline", "vit-nano-cpu-int8-k49"),
        ("nano", "ptsr-nano-cpu-fp32-k13"),
        ("nano", "ptsr-nano-cpu-int8-k13"),
    ]
    assert all(row.ratio_same_precision is not None for row in record.variants[2:])
    # Without it there, the line says how to get it there.
    (tmp_path / "nano-baseline").rename(tmp_path / "elsewhere")
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1
    assert "export --with-baseline" in ran.stderr.splitlines()[-1]


def test_help_has_an_example() -> None:
    assert "Example: python -m ptsr_edge.profile --bundle" in " ".join(run("--help").output.split())


Prepare = Callable[[Path], list[object]]


def _no_bundle(place: Path) -> list[object]:
    (place / "empty").mkdir()
    return ["--bundle", place / "empty"]


def _other_model(place: Path) -> list[object]:
    write_tiny_bundle(place / "other", name="ptsr-other")
    return ["--bundle", place / "ptsr", "--bundle", place / "other"]


def _other_labels(place: Path) -> list[object]:
    write_tiny_bundle(place / "other", labels=["negative", "positive", "neutral"])
    return ["--bundle", place / "ptsr", "--bundle", place / "other"]


def _other_weights(place: Path) -> list[object]:
    write_tiny_bundle(place / "other", provenance={"checkpoint_sha256": "abc"})
    return ["--bundle", place / "ptsr", "--bundle", place / "other"]


def _no_baseline(place: Path) -> list[object]:
    return ["--bundle", place / "ptsr", "--baseline", place / "ptsr"]


def _baseline_labels(place: Path) -> list[object]:
    write_tiny_bundle(place / "other", [1.0], kind="vit", labels=["a", "b", "c"])
    return ["--bundle", place / "ptsr", "--baseline", place / "other"]


def _full_out(place: Path) -> list[object]:
    (place / "full").mkdir()
    (place / "full" / "thesis.tex").write_text("years of work")
    return ["--bundle", place / "ptsr", "--baseline", place / "vit", "--out", place / "full"]


def _random_weights_on_unknown_data(place: Path) -> list[object]:
    write_tiny_bundle(place / "random", provenance={"kind": "random"})
    return ["--bundle", place / "random", "--baseline", place / "vit", "--data", "nosuch"]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda _: [], "no bundle given: --bundle DIR"),
        (lambda place: ["--bundle", place / "nowhere"], "nowhere is not a folder"),
        (_no_bundle, "holds no bundle.json"),
        (_other_model, "differ in their model: ptsr-test and ptsr-other"),
        (_other_labels, "differ in their labels"),
        (_other_weights, "differ in their weights: None and abc"),
        (lambda place: ["--bundle", place / "ptsr", "--bundle", place / "vit"], "differ in their model"),
        (_no_baseline, "the baseline of ptsr-test is vit-test, the full-token ViT"),
        (_baseline_labels, "answers a, b, c; ptsr-test answers negative"),
        (lambda place: ["--bundle", place / "ptsr", "--duration-s", 0], "positive number of seconds, got 0"),
        (lambda place: ["--bundle", place / "ptsr", "--threads", 0], "threads must be at least 1, got 0"),
        (lambda place: ["--bundle", place / "ptsr", "--streams", 1025], "streams must be at most 1024, got 1025"),
        (lambda place: ["--bundle", place / "ptsr", "--threads", 999, "--pin"], "cannot pin 999 threads"),
        (lambda place: ["--bundle", place / "ptsr", "--control-seeds", -1], "number of draws, 0 for no"),
        (lambda place: ["--bundle", place / "ptsr", "--root", place], "--root is the folder of the data"),
        (lambda place: ["--bundle", place / "ptsr", "--quick", "--streams", 2], "--quick leaves out what --streams 2"),
        (
            lambda place: ["--bundle", place / "ptsr", "--quick", "--control-seeds", 1],
            "--quick leaves out what --control-seeds 1 asks for",
        ),
        (
            lambda place: ["--bundle", place / "ptsr", "--data", "synthetic", "--subjects", 0],
            "at least 1, and goes with --data synthetic, got 0",
        ),
        (lambda place: ["--bundle", place / "ptsr", "--subjects", 9], "got 9 without --data"),
        (
            lambda place: [
                *("--bundle", place / "ptsr", "--baseline", place / "vit"),
                *("--data", "casme2", "--subjects", 9),
            ],
            "which data casme2 cannot; accepted: synthetic",
        ),
        (_full_out, "holds other files and would be replaced"),
        (
            lambda place: ["--bundle", place / "ptsr", "--baseline", place / "vit", "--data", "synthetik"],
            "unknown data 'synthetik'",
        ),
        (_random_weights_on_unknown_data, "unknown data 'nosuch'; known: synthetic"),
    ],
)  # fmt: skip
def test_wrong_calls_give_one_line_and_exit_code_2(tmp_path: Path, prepare: Prepare, message: str) -> None:
    write_tiny_bundle(tmp_path / "ptsr")
    write_tiny_bundle(tmp_path / "vit", [1.0], kind="vit")
    arguments = prepare(tmp_path)
    if "--out" not in arguments:
        arguments = [*arguments, "--out", tmp_path / "p"]
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    last = result.stderr.splitlines()[-1]
    assert last.startswith("ptsr-edge profile: ")
    assert message in last
    assert not (tmp_path / "p").exists()
    if prepare is _full_out:
        assert (tmp_path / "full" / "thesis.tex").read_text() == "years of work"
