"""A checkpoint becomes a bundle, or nothing at all and one line that says why."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from signalled import signalled

from ptsr_edge import Session
from ptsr_edge.bundle import MANIFEST, Bundle, baseline_place, check_files, read_bundle
from ptsr_edge.core.config import LABELS, Preprocess, named_model, parse
from ptsr_edge.core.errors import InputError, JobError, install_line
from ptsr_edge.core.files import sha256_of
from ptsr_edge.data.recorded import MEGC_FOLDER, MEGC_TABLE
from ptsr_edge.export import exporter, parity
from ptsr_edge.export.cli import main
from ptsr_edge.export.static_model import to_static
from ptsr_edge.models.checkpoint import CheckpointInfo, random_info, read_info, save_checkpoint
from ptsr_edge.models.macs import count_macs
from ptsr_edge.models.ptsr import count_parameters
from ptsr_edge.runtimes.base import Parameter
from ptsr_edge.runtimes.onnxruntime import OrtRunner
from ptsr_edge.runtimes.tensorrt import choose_version
from ptsr_edge.sign import read_verified

pytestmark = pytest.mark.slow


def assert_one_line(result: Result, exit_code: int, says: str) -> None:
    assert result.exit_code == exit_code, result.stderr
    assert result.stdout == ""
    assert result.stderr.startswith("ptsr-edge export: ")
    assert result.stderr.count("\n") == 1
    assert says in result.stderr


def digest_of(folder: Path) -> dict[str, str]:
    """Every file below a folder with its hash."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def export(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="ptsr-edge export")


@pytest.fixture(scope="module")
def pocket(ptsr_config: Any, randomised: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 4 patches and one block, which is exported in a second."""
    config = ptsr_config(name="ptsr-pocket", image_size=16, dim=8, depth=1, score="strain")
    info = CheckpointInfo(
        schema=1,
        model=config,
        preprocess=Preprocess(image_size=16, flow="published", global_motion="none"),
        labels=list(LABELS),
        provenance={
            "kind": "trained",
            "data": "megc-flow",
            "train_subjects": ["casme2/sub03"],
            "card": "a card",
        },
    )
    path = tmp_path_factory.mktemp("pocket") / "pocket.safetensors"
    save_checkpoint(path, randomised(config), info)
    return path


def test_a_bundle_says_what_it_is_and_where_it_comes_from(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    bundle = read_bundle(tiny_bundle)
    info = read_info(tiny_checkpoint)
    assert (bundle.name, bundle.target, bundle.labels) == ("ptsr-test", "cpu", list(LABELS))
    assert (bundle.model, bundle.preprocess) == (info.model, info.preprocess)
    assert bundle.provenance["checkpoint_sha256"] == sha256_of(tiny_checkpoint)
    assert info.provenance.items() <= bundle.provenance.items()
    calibration = bundle.provenance["calibration"]
    assert calibration["data"] == "megc-flow"
    # From the training side only: what accuracy is reported on must not be calibrated on.
    assert set(calibration["subjects"]) <= set(info.provenance["train_subjects"])
    assert [(v.tokens, v.keep_rate) for v in bundle.variants] == [(16, 1.0), (8, 0.5), (4, 0.25)]
    for variant in bundle.variants:
        check_files(tiny_bundle, variant)
        assert variant.id == f"ptsr-test-cpu-fp32-k{variant.tokens}"
        assert variant.parity is not None
        assert variant.parity.samples == calibration["samples"] > 0
        assert {"torch", "onnx", "onnxruntime", "opset"} <= set(variant.built_with)
        assert variant.runs_on["runtime"] == "onnxruntime"


def test_costs_are_those_of_the_graph(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    import torch

    from ptsr_edge.models.checkpoint import load_checkpoint

    model, _ = load_checkpoint(tiny_checkpoint)
    for variant in read_bundle(tiny_bundle).variants:
        assert variant.parameters == count_parameters(model)
        static = to_static(model, variant.tokens)
        assert variant.macs == count_macs(static, (torch.zeros(1, 3, 32, 32),)).total
    macs = [variant.macs for variant in read_bundle(tiny_bundle).variants]
    assert macs == sorted(macs, reverse=True)


def test_a_bundle_holds_its_files_and_no_other(tiny_bundle: Path) -> None:
    listed = {entry.path for variant in read_bundle(tiny_bundle).variants for entry in variant.files}
    assert set(digest_of(tiny_bundle)) == listed | {MANIFEST}


def test_nothing_of_this_machine_is_in_the_manifest(
    tiny_bundle: Path, tiny_checkpoint: Path, megc_folder: Path
) -> None:
    text = (tiny_bundle / MANIFEST).read_text(encoding="utf-8")
    places = [tiny_bundle, tiny_checkpoint.parent, megc_folder, Path.home(), Path(__file__).parents[2]]
    assert [place for place in places if str(place) in text] == []


def test_the_command_makes_a_bundle_and_then_replaces_it(
    pocket: Path, megc_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "bundle"
    call = ("--checkpoint", pocket, "--precision", "fp32", "--calibration", megc_folder, "--out", out)
    result = export(*call, "--budgets", "0.5, 1.0,0.49")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[-1] == str(out)
    # .5 and .49 of 4 patches are both 2 tokens: one variant.
    assert [line.split()[0] for line in lines[:-1]] == ["ptsr-pocket-cpu-fp32-k4", "ptsr-pocket-cpu-fp32-k2"]
    assert "a card" in result.stderr
    flow = np.random.default_rng(0).normal(size=(16, 16, 3)).astype(np.float32)
    assert len(Session.open(out, budget=0.5).predict(flow).kept_tokens) == 2

    again = export(*call, "--budgets", "0.25", "--json")
    assert again.exit_code == 0, again.stderr
    gone = "ptsr-pocket-cpu-fp32-k2, ptsr-pocket-cpu-fp32-k4"
    assert f"{out} was replaced and no longer has {gone}" in again.stderr.splitlines()
    bundle = parse(Bundle, json.loads(again.stdout), "stdout")
    assert bundle == read_bundle(out)
    assert [variant.tokens for variant in bundle.variants] == [1]
    assert set(digest_of(out)) == {entry.path for entry in bundle.variants[0].files} | {MANIFEST}
    assert [path.name for path in out.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--target", "tpu"], "unknown target 'tpu'; accepted: cpu"),
        (["--budgets", "0"], "a budget is a keep rate in (0, 1], got 0"),
        (
            ["--budgets", "1.0,steps"],
            "--budgets takes keep rates in (0, 1] or one of auto; steps; auto,steps, not both",
        ),
        (["--budgets", "0.5,half"], "--budgets: cannot read 'half' in '0.5,half'"),
        (["--checkpoint", "none.safetensors"], "there is no checkpoint at none.safetensors"),
        (["--model", "ptsr-tiny"], "pocket.safetensors is a checkpoint of ptsr-pocket, not of ptsr-tiny"),
        (["--precision", "int3"], "no such precision: 'int3'; target cpu has fp32, int8"),
        (["--calibration", "nowhere"], "nowhere is no megc-flow: no such folder; accepted: a folder with"),
        (["--calibration", "."], ". is no megc-flow: no combined_3_class2_for_optical_flow.csv and no"),
        (["--calibration-data", "casme"], "unknown data 'casme'; known: synthetic, ict-face, faces"),
        (["--calibration-data", "synthetic"], "data 'synthetic' is rendered and lies in no folder, got "),
        (["--budgest", "1"], "No such option '--budgest'"),
        (["--threads", "0"], "Invalid value for '--threads'"),
        (["--int8-scheme", "static", "--target", "openvino"], "openvino has no option 'int8_scheme'"),
        (["--target", "trt", "--compute-capability", "abc"], "unknown compute capability 'abc'"),
        (["--out", "."], ". is the folder that you are in, or around it"),
        (["--max-uar-drop", "0.1", "--calibration-samples", "99"], "calibration takes all 6 clips of the"),
        (["--recipe", "none.toml"], "there is no recipe at none.toml"),
        (["--recipe", "raspberry-pi5"], "(nearest: raspberry-pi-5)"),
        (["--device", "none"], "there is no recipe 'none'; give a .toml file, or one of cpu, intel-n100, "),
        (["--recipe", "cpu", "--device", "cpu"], "--recipe and --device exclude one another"),
        (["--budgets", "0.25,0.25"], "--budgets: 0.25 is there twice in '0.25,0.25'"),
        (
            ["--precision", "fp32", "--max-uar-drop", "0.1"],
            "--max-uar-drop judges int8, and no int8 is asked for",
        ),
        (["--target", "trt", "--layout", "ovms"], "layout ovms cannot serve target trt"),
        (
            ["--target", "trt", "--layout", "triton", "--onnx-only"],
            "layout triton serves engines, and --onnx-only",
        ),
        (["--target", "trt", "--layout", "triton", "--flavour", "tensorrt-rtx"], "not of TensorRT-RTX"),
    ],
)
def test_a_wrong_call_is_one_line_and_writes_nothing(
    pocket: Path, megc_folder: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], says: str,
) -> None:  # fmt: skip
    out = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    before = digest_of(tmp_path)
    result = export("--checkpoint", pocket, "--calibration", megc_folder, "--out", out, *arguments)
    assert_one_line(result, 2, says)
    assert digest_of(tmp_path) == before


@pytest.mark.parametrize("out", ["file/bundle", "file/deep/bundle"])
def test_nothing_can_be_made_inside_a_file(pocket: Path, megc_folder: Path, tmp_path: Path, out: str) -> None:
    (tmp_path / "file").write_text("years of work", encoding="utf-8")
    result = export("--checkpoint", pocket, "--calibration", megc_folder, "--out", tmp_path / out)
    assert_one_line(result, 2, f"cannot be written: {tmp_path / 'file'} is no folder")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "years of work"


def test_a_recipe_with_an_unknown_key_is_answered_with_the_nearest(
    pocket: Path, megc_folder: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "own.toml"
    recipe.write_text('description = "x"\ntarget = "cpu"\nthread = 2\n', encoding="utf-8")
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    before = digest_of(tmp_path)
    result = export("--recipe", recipe, "--checkpoint", pocket, "--calibration", megc_folder,
                    "--out", tmp_path / "bundle")  # fmt: skip
    assert_one_line(result, 2, "target cpu has no option 'thread'; the nearest known is 'threads'")
    assert digest_of(tmp_path) == before


@pytest.mark.parametrize("spoil", ["garbage", "cut short", "empty", "unreadable"])
def test_one_clip_that_cannot_be_read_is_named(
    pocket: Path, megc_folder: Path, tiny_bundle: Path, tmp_path: Path, spoil: str
) -> None:
    folder = shutil.copytree(megc_folder, tmp_path / "clips")
    image = next((folder / MEGC_FOLDER).glob("sub03_clip4*"))
    content = image.read_bytes()
    image.unlink()
    if spoil == "unreadable":
        if not Path("/proc/self/mem").exists():
            pytest.skip("no /proc: a file that even root cannot read is not to be had")
        image.symlink_to("/proc/self/mem")  # its first byte is mapped nowhere: an I/O error for everybody
    else:
        image.write_bytes({"garbage": content[::-1], "cut short": content[:-40], "empty": b""}[spoil])
    out = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    before = digest_of(out)
    result = export("--checkpoint", pocket, "--calibration", folder, "--out", out)
    assert_one_line(result, 2, f"{MEGC_TABLE}, row 24")
    assert str(image) in result.stderr
    says = {"garbage": "it is no JPEG, PNG, BMP or TIFF", "unreadable": "cannot be read: Input/output error",
            "cut short": f"cut short after {len(content) - 40} bytes"}.get(spoil, "it is empty")  # fmt: skip
    assert says in result.stderr
    assert digest_of(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "clips"]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        ("cut short", "is not a safetensors file"),
        ("a label less", "labels must be 3 different names, one a class, got ['negative', 'positive']"),
        (
            "other classes",
            "data megc-flow has the classes negative, positive, surprise, ptsr-pocket answers a",
        ),
        ("another width", "does not fit ptsr-pocket: cls_token is (1, 1, 8), wanted (1, 1, 16)"),
        ("another size", "samples are made of 32 pixels, the model takes 16"),
        ("no width at all", "model.dim: Input should be less than or equal to 4096 (found 1000000000)"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    pocket: Path, megc_folder: Path, tiny_bundle: Path, tmp_path: Path, spoil: str, says: str
) -> None:
    changes: dict[str, Any] = {
        "a label less": {"labels": list(LABELS[:2])},
        "other classes": {"labels": ["a", "b", "c"]},
        "another width": {"model": {"dim": 16}},
        "another size": {"preprocess": {"image_size": 32}},
        "no width at all": {"model": {"dim": 10**9}},
    }.get(spoil, {})
    content = pocket.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    said = json.loads(header["__metadata__"]["ptsr_edge"])
    for key, value in changes.items():
        said[key] = said[key] | value if isinstance(value, dict) else value
    header["__metadata__"]["ptsr_edge"] = json.dumps(said)
    text = json.dumps(header).encode()
    rest = content[8 + length :]
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(
        len(text).to_bytes(8, "little") + text + (rest[:-10] if spoil == "cut short" else rest)
    )
    out = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    before = digest_of(tmp_path)
    result = export("--checkpoint", broken, "--calibration", megc_folder, "--max-uar-drop", "0.5",
                    "--calibration-samples", "6", "--out", out)  # fmt: skip
    assert_one_line(result, 2, says)
    assert digest_of(tmp_path) == before


def test_an_unknown_model_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    result = export("--model", "ptsr-tinny", "--out", tmp_path / "bundle")
    assert result.exit_code == 2
    assert "unknown model 'ptsr-tinny'; known: ptsr-nano, " in result.stderr
    assert "nearest: ptsr-tiny" in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_is_no_bundle_is_never_replaced(
    pocket: Path, megc_folder: Path, tmp_path: Path, what: str
) -> None:
    out = tmp_path / "thesis"
    if what == "file":
        out.write_text("years of work", encoding="utf-8")
    else:
        out.mkdir()
        (out / "chapter1.tex").write_text("years of work", encoding="utf-8")
    before = digest_of(tmp_path)
    result = export("--checkpoint", pocket, "--calibration", megc_folder, "--out", out)
    assert result.exit_code == 2
    assert f"thesis is a {what}" in result.stderr
    assert result.stderr.count("\n") == 1
    assert digest_of(tmp_path) == before


@pytest.mark.parametrize("cause", ["parity", "disk"])
def test_a_failed_export_leaves_the_older_bundle(
    pocket: Path,
    megc_folder: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cause: str,
) -> None:
    out = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, out)
    before = digest_of(tmp_path)

    def no_room(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if cause == "parity":
        monkeypatch.setitem(parity.LIMITS, "fp32", 0.0)
    else:
        monkeypatch.setattr(os, "fsync", no_room)
    result = export(
        "--checkpoint", pocket, "--calibration", megc_folder, "--budgets", "0.5", "--precision", "fp32",
        "--out", out,
    )  # fmt: skip
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    if cause == "parity":
        assert "ptsr-pocket-cpu-fp32-k2 departs from eager fp32" in result.stderr
        assert "limit 0; the smallest limit that would pass is" in result.stderr
        assert "nothing was written" in result.stderr
    else:
        assert "No space left on device" in result.stderr
    assert digest_of(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """No file may grow larger, of this process or of one that it starts: a disk without room, near enough."""
    resource = pytest.importorskip("resource", reason="limits of a process's files are POSIX's")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("target", "packages", "size_bytes", "says"),
    [
        pytest.param("cpu", [], 4_000, "weights.bin: File too large", id="in the temporary folder"),
        pytest.param("openvino", ["openvino"], 50_000, ".xml", id="when OpenVINO writes"),
        pytest.param("trt", ["tensorrt_rtx"], 50_000, ".plan: File too large", id="in a builder's process"),
    ],
)
def test_a_disk_without_room_is_one_line_and_leaves_the_older_bundle(
    pocket: Path, megc_folder: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    target: str, packages: list[str], size_bytes: int, says: str,
) -> None:  # fmt: skip
    for package in packages:
        pytest.importorskip(package, reason=f"{package} is missing: the extra all brings it")
    out = shutil.copytree(tiny_bundle, tmp_path / "out" / "bundle")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    before = digest_of(out)
    with largest_file(size_bytes):
        result = export("--checkpoint", pocket, "--calibration", megc_folder, "--target", target, "--precision",
                        "fp32", "--budgets", "1", "--calibration-samples", "6", "--no-cache", "--out", out)  # fmt: skip
    assert_one_line(result, 1, "cannot write ")
    assert says in result.stderr
    assert digest_of(out) == before
    assert [path.name for path in out.parent.iterdir()] == ["bundle"]
    assert list(scratch.iterdir()) == []


ORT = ("cpu", "onnxruntime", "cpu int8 ...")
OV = ("openvino", "openvino", "openvino fp16 ...")
"""fp32 has been built and run by then: a handler of signals meets what OpenVINO's threads and kernels leave."""


@pytest.mark.parametrize(
    ("target", "package", "after", "number", "older"),
    [
        # Each signal with each target, each with and without an older bundle.
        (*ORT, signal.SIGINT, False),
        (*ORT, signal.SIGTERM, True),
        (*OV, signal.SIGINT, True),
        (*OV, signal.SIGTERM, False),
    ],
)
def test_a_signal_ends_an_export_and_leaves_nothing_half_written(
    pocket: Path, megc_folder: Path, tiny_bundle: Path, tmp_path: Path,
    target: str, package: str, after: str, number: signal.Signals, older: bool,
) -> None:  # fmt: skip
    pytest.importorskip(package)
    out = tmp_path / "bundle"
    if older:
        shutil.copytree(tiny_bundle, out)
    before = digest_of(tmp_path)
    ended = signalled(
        "export", "--target", target, "--precision", "fp32,int8" if target == "cpu" else "fp32,fp16",
        "--checkpoint", pocket, "--calibration", megc_folder, "--calibration-samples", 6,
        "--out", "bundle", after=after, number=number, folder=tmp_path,
    )  # fmt: skip
    assert (ended.code, ended.stdout, ended.left) == (128 + number, "", []), ended.line
    how = "as it was" if older else "not written"
    assert ended.line == (
        f"python -m ptsr_edge export: ended by {number.name}: bundle is {how}; the same command starts anew"
    )
    assert digest_of(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [*["bundle"] * older, "scratch"]


@pytest.mark.parametrize("exchanges", [True, False], ids=["in one step", "in two"])
def test_an_interrupt_of_the_swap_leaves_one_of_both_bundles(
    pocket: Path,
    megc_folder: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    exchanges: bool,
) -> None:
    out = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    before = digest_of(tmp_path)
    rename = Path.rename

    def interrupted(path: Path, to: Path) -> Path:
        if to == out and not path.name.endswith(".old"):
            raise KeyboardInterrupt  # the older one has been moved aside by then
        return rename(path, to)

    def exchange(*_: Path) -> bool:
        if exchanges:
            raise KeyboardInterrupt
        return False  # as on a file system without that call

    monkeypatch.setattr("ptsr_edge.core.files._exchange", exchange)
    monkeypatch.setattr(Path, "rename", interrupted)
    result = export("--checkpoint", pocket, "--calibration", megc_folder, "--budgets", "1", "--precision", "fp32",
                    "--no-cache", "--calibration-samples", "6", "--out", out)  # fmt: skip
    assert result.exit_code == 130
    assert digest_of(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_threads_of_a_recipe_or_a_call_are_for_the_device(
    pocket: Path, megc_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are in the manifest, and another number of threads is another bundle to the cache."""
    monkeypatch.setenv("PTSR_EDGE_CACHE", str(tmp_path / "cache"))
    recipe = tmp_path / "own.toml"
    call = ("--checkpoint", pocket, "--calibration", megc_folder, "--budgets", "1", "--precision", "fp32")

    def threads_of(*more: object) -> tuple[Any, bool]:
        result = export("--recipe", recipe, *call, "--out", tmp_path / "bundle", *more)
        assert result.exit_code == 0, result.stderr
        (variant,) = read_bundle(tmp_path / "bundle").variants
        return variant.runs_on.get("threads"), "served from the cache" in result.stderr

    recipe.write_text('description = "x"\ntarget = "cpu"\nthreads = 2\n', encoding="utf-8")
    assert threads_of() == (2, False)
    assert threads_of() == (2, True)
    assert threads_of("--threads", 3) == (3, False)  # a call comes before its recipe
    recipe.write_text('description = "x"\ntarget = "cpu"\nthreads = 4\n', encoding="utf-8")
    assert threads_of() == (4, False)
    recipe.write_text('description = "x"\ntarget = "cpu"\n', encoding="utf-8")
    assert threads_of() == (None, False)
    # What changes no variant is no other bundle.
    recipe.write_text('description = "y"\ntarget = "cpu"\n', encoding="utf-8")
    assert threads_of() == (None, True)


def test_a_server_whose_engines_cannot_be_built_here_is_told_before_the_export(tmp_path: Path) -> None:
    try:
        choose_version("tensorrt")
    except JobError:
        pass
    else:
        pytest.skip("TensorRT can build here")
    result = export("--target", "trt", "--layout", "triton", "--out", tmp_path / "bundle")
    assert_one_line(result, 1, "layout triton needs an engine of TensorRT: no TensorRT can build here: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("package", "extra"), [("openvino", "openvino"), ("nncf", "openvino-build")])
def test_a_tool_chain_that_is_missing_is_told_before_anything_is_traced(
    pocket: Path, megc_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(exporter, "trace_budgets", lambda *_: pytest.fail("tracing was begun"))
    result = export("--target", "openvino", "--checkpoint", pocket, "--calibration", megc_folder, "--no-cache",
                    "--out", tmp_path / "bundle")  # fmt: skip
    assert_one_line(result, 1, f"needs the package {package!r}, which is not installed")
    assert result.stderr.endswith(f"{install_line(extra)}\n")


@pytest.mark.parametrize("option", ["--recipe", "--device"])
def test_a_recipe_is_called_by_its_name_from_anywhere(
    pocket: Path, megc_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = export(option, "raspberry-pi-5", "--precision", "fp32", "--checkpoint", pocket,
                    "--calibration", megc_folder)  # fmt: skip
    assert result.exit_code == 0, result.stderr
    variants = read_bundle(tmp_path / "out" / "pocket-raspberry-pi-5").variants
    assert [(v.keep_rate, v.runs_on["threads"]) for v in variants] == [(0.5, 2), (0.25, 2)]


def test_a_repository_that_cannot_be_written_is_found_before_the_export(
    pocket: Path, megc_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "bundle-triton").mkdir()
    (tmp_path / "bundle-triton" / "thesis.tex").write_text("years of work", encoding="utf-8")
    result = export("--checkpoint", pocket, "--calibration", megc_folder, "--layout", "triton",
                    "--out", tmp_path / "bundle")  # fmt: skip
    assert_one_line(result, 2, "holds something else than a triton repository")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("package", ["torch", "onnx", "safetensors"])
def test_as_a_module_it_names_a_package_that_is_missing(package: str, tmp_path: Path) -> None:
    program = (
        "import runpy, sys\nsys.modules[sys.argv.pop(1)] = None\n"
        "runpy.run_module('ptsr_edge.export', run_name='__main__', alter_sys=True)"
    )
    call = [sys.executable, "-c", program, package, "--out", str(tmp_path / "x.safetensors")]
    result = subprocess.run(call, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    says = f"python -m ptsr_edge.export: export needs the package {package!r}, which is not installed"
    assert result.stderr.startswith(says)
    assert result.stderr.endswith(f"{install_line('train')}\n")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_as_a_module_it_ends_with_the_exit_code(tmp_path: Path) -> None:
    call = [sys.executable, "-m", "ptsr_edge.export", "--budgets", "1.5", "--out", str(tmp_path / "bundle")]
    result = subprocess.run(call, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == "python -m ptsr_edge.export: a budget is a keep rate in (0, 1], got 1.5\n"
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_baseline_is_put_beside_the_bundle(pocket: Path, megc_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "pocket"
    done = export(
        "--checkpoint", pocket, "--calibration", megc_folder, "--precision", "int8", "--with-baseline",
        "--out", out,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-2:] == [f"{out}-baseline", str(out)]
    baseline = read_bundle(tmp_path / "pocket-baseline")
    # fp32 is what all ratios are against; the geometry has no named model, hence no weights that were trained.
    assert [(one.precision, one.tokens) for one in baseline.variants] == [("fp32", 4), ("int8", 4)]
    assert (baseline.name, baseline.model.kind) == ("vit-pocket", "vit")
    assert baseline.provenance["kind"] == "random"
    assert baseline.recommended is not None
    assert baseline.recommended.reason.endswith(
        "none was judged: a full-token ViT is there to be compared with"
    )
    for variant in baseline.variants:
        check_files(tmp_path / "pocket-baseline", variant)


def test_bundle_and_baseline_are_tuned_where_that_is_asked_for(
    pocket: Path, megc_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OrtRunner, "parameters", (Parameter("enable_mem_pattern", (False,)),))
    out = tmp_path / "pocket"
    done = export(
        "--checkpoint", pocket, "--calibration", megc_folder, "--precision", "fp32", "--budgets", "1.0",
        "--threads", "1", "--with-baseline", "--tune", "--out", out,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == str(out)
    for place in (out, baseline_place(out)):
        [variant] = read_bundle(place).variants
        assert variant.tuned is not None
        assert variant.tuned.threads == 1
        assert [trial.parameter for trial in variant.tuned.trials] == ["enable_mem_pattern"]
        assert (
            sum(line.startswith(f"{variant.id} ") and " tuned: " in line for line in done.stdout.splitlines())
            == 1
        )


def test_a_bundle_that_cannot_be_tuned_here_is_made_all_the_same(
    pocket: Path, megc_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OrtRunner, "parameters", ())
    out = tmp_path / "pocket"
    done = export(
        "--checkpoint", pocket, "--calibration", megc_folder, "--precision", "fp32", "--tune", "--out", out
    )
    assert done.exit_code == 0, done.output
    assert f"{out} is not tuned: nothing can be tuned here: the runtime of target cpu" in done.stderr
    assert all(variant.tuned is None for variant in read_bundle(out).variants)


def test_a_baseline_has_the_embedded_weights_where_there_are_some(tmp_path: Path) -> None:
    tiny = read_info(Path(exporter.__file__).parents[1] / "weights" / "vit-tiny.safetensors")
    bundle = Bundle.model_construct(
        model=tiny.model.model_copy(update={"kind": "ptsr", "name": "ptsr-tiny"}), labels=tiny.labels
    )
    found = exporter.export_baseline(bundle, tmp_path / "vit", target="cpu", precisions=["fp32"])
    assert found.provenance["kind"] == "trained"
    assert found.model == tiny.model


@pytest.mark.parametrize("how", ["named", "checkpoint"])
def test_a_baseline_has_no_baseline(how: str, randomised: Any, tmp_path: Path) -> None:
    config = named_model("vit-nano")
    path = tmp_path / "own.safetensors"
    save_checkpoint(path, randomised(config), random_info(config, LABELS))
    which = ("--model", "vit-nano") if how == "named" else ("--checkpoint", path)
    result = export(*which, "--with-baseline", "--out", tmp_path / "b")
    assert_one_line(result, 2, "--with-baseline goes with a PTSR: vit-nano is a full-token ViT itself")
    assert [one.name for one in tmp_path.iterdir()] == ["own.safetensors"]


def test_what_is_exported_is_signed_with_its_baseline(
    pocket: Path, megc_folder: Path, tmp_path: Path
) -> None:
    ed25519 = pytest.importorskip(
        "cryptography.hazmat.primitives.asymmetric.ed25519", reason="it needs the extra sign"
    )
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    out, key, public = tmp_path / "pocket", tmp_path / "key.pem", tmp_path / "public.pem"
    asked = (
        "--checkpoint",
        pocket,
        "--calibration",
        megc_folder,
        "--precision",
        "fp32",
        "--with-baseline",
        "--out",
        out,
    )
    assert_one_line(export(*asked, "--sign", key), 2, f"the private key {key} cannot be read")
    assert not out.exists()
    pair = ed25519.Ed25519PrivateKey.generate()
    key.write_bytes(pair.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(pair.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    done = export(*asked, "--sign", key)
    assert done.exit_code == 0, done.output
    for place in (out, baseline_place(out)):
        read_verified(place, public)
    # The same bundle out of the cache, without a key: nobody has signed that.
    assert export(*asked).exit_code == 0
    with pytest.raises(InputError, match="is not signed"):
        read_verified(out, public)


def test_the_place_of_a_baseline_must_be_free_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "b-baseline").mkdir()
    (tmp_path / "b-baseline" / "notes.txt").write_text("mine")
    result = export("--model", "ptsr-nano", "--with-baseline", "--out", tmp_path / "b")
    assert_one_line(result, 2, "b-baseline is a folder that is no bundle")
    assert not (tmp_path / "b").exists()


def test_a_baseline_that_fails_leaves_the_bundle_and_says_so(
    pocket: Path, megc_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Bundle:
        raise JobError("no room")

    monkeypatch.setattr(exporter, "export_baseline", fail)
    out = tmp_path / "pocket"
    result = export(
        "--checkpoint", pocket, "--calibration", megc_folder, "--precision", "fp32", "--with-baseline",
        "--out", out,
    )  # fmt: skip
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1] == (
        f"ptsr-edge export: {out} is written, its baseline is not: no room"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["pocket"]
