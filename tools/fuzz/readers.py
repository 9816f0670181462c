"""Every reader of outside data: real files that it reads, which of them is damaged how, and what is done with them.

A reader ends in the project's own error or in a right answer; a `call` asserts what a right answer is. One reader is one
entry of `READERS`.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ptsr_edge.bundle import MANIFEST, SIGNATURE, check_files, describe_file, read_bundle
from ptsr_edge.core.errors import JobError, PtsrError
from ptsr_edge.core.files import link_file
from ptsr_edge.evaluate.executor import Task
from ptsr_edge.profile.schema import FLEET
from ptsr_edge.report.history import ACKNOWLEDGED
from ptsr_edge.train.trainer import Epoch, TrainConfig


@dataclass(frozen=True)
class Reader:
    """A reader and what it is given.

    Attributes:
        seeds: folder of its sound files, below that of all seeds.
        files: patterns of those that are damaged, one of them in each case.
        kind: of the damage, see `mutation.damage`.
        call: reads the copy in a folder.
        rehash: whether the manifest's sizes and hashes are made right after the damage, so that it passes for what was
            exported.
        needs: a package that its sound files cannot be made without; empty where all of it is there.
    """

    seeds: str
    files: tuple[str, ...]
    kind: str
    call: Callable[[Path], None]
    rehash: bool = False
    needs: str = ""


def can_be_made(reader: Reader) -> bool:
    """Tells whether its sound files can be made here."""
    return not reader.needs or find_spec(reader.needs) is not None


def prepare(folder: Path, reader: Reader, seeds: Path) -> Path:
    """Gives a reader's sound files a second name below a new folder: they are many, and one is damaged."""
    return Path(shutil.copytree(seeds / reader.seeds, folder, copy_function=link_file_of))


def link_file_of(source: str, target: str) -> None:
    """As `shutil.copy` is called."""
    link_file(Path(source), Path(target))


def targets(folder: Path, reader: Reader) -> list[Path]:
    """Returns the files of which one is damaged."""
    return sorted(path for pattern in reader.files for path in folder.glob(pattern) if path.is_file())


def rehash(folder: Path) -> None:
    """Makes sizes and hashes of a manifest those of the files beside it."""
    path = folder / MANIFEST
    record = json.loads(path.read_text(encoding="utf-8"))
    for variant in record["variants"]:
        for entry in variant["files"]:
            if (folder / entry["path"]).is_file():
                entry |= describe_file(folder, folder / entry["path"]).model_dump()
    path.unlink()  # a second name of the sound one
    path.write_text(json.dumps(record), encoding="utf-8")


def _open(folder: Path, target: str | None = None, precision: str | None = None) -> None:
    from ptsr_edge import Session

    budget = None
    if target is None:
        first = read_bundle(folder).variants[0]
        target, precision, budget = first.target, first.precision, first.keep_rate
    with Session.open(folder, threads=1, target=target, precision=precision, budget=budget) as session:
        side = session.bundle.preprocess.image_size
        flow = np.random.default_rng(0).normal(size=(side, side, 3)).astype(np.float32)
        found = session.predict(flow)
    assert found.label in session.labels
    assert abs(sum(found.probabilities.values()) - 1) < 1e-6
    assert np.isfinite(found.logits).all()
    kept = found.kept_tokens
    assert ((kept >= 0) & (kept < session.bundle.model.patches)).all(), "a token outside of the grid"
    assert len(set(kept.tolist())) == len(kept) == session.variant.tokens


def _manifest(folder: Path) -> None:
    _open(folder)
    from ptsr_edge.info import describe

    json.dumps(describe(folder), allow_nan=False)


def _artifact(target: str, precision: str) -> Callable[[Path], None]:
    return lambda folder: _open(folder, target, precision)


def _plan(folder: Path) -> None:
    """Without a GPU no plan is opened: what is read of one before that is to be right."""
    from ptsr_edge.info import describe
    from ptsr_edge.runtimes.build_on_device import cuda_devices
    from ptsr_edge.runtimes.tensorrt import TAGS, read_plan

    json.dumps(describe(folder), allow_nan=False)
    try:
        _open(folder)
    except JobError:
        if cuda_devices():
            raise
        (variant,) = read_bundle(folder).variants
        found = read_plan(folder / variant.artifact)
        assert found.flavour in TAGS.values()
        assert all(re.fullmatch(r"SM\d{2,3}", name) for name in found.capabilities), found.capabilities


def _build(folder: Path) -> None:
    from ptsr_edge.runtimes import build_on_device

    said, was_bundle = io.StringIO(), _is_bundle(folder)
    with contextlib.redirect_stderr(said):
        code = build_on_device.main([str(folder), "--compute-capability", "SM86"])
    lines = said.getvalue().splitlines()
    assert (code, len(lines)) in ((0, 0), (1, 1)), f"exit code {code} after {len(lines)} lines: {lines[-1:]}"
    assert len(said.getvalue()) < 800, "a whole file in a line"
    if code:
        raise JobError(lines[0])
    assert _is_bundle(folder) or not was_bundle, "a sound manifest was spoilt"
    for variant in read_bundle(folder).variants:
        check_files(folder, variant)


def _is_bundle(folder: Path) -> bool:
    try:
        read_bundle(folder)
    except PtsrError:
        return False
    return True


def _raw_pipe(folder: Path) -> None:
    from ptsr_edge.camera.sources import RawSource, SourceSettings

    (path,) = folder.glob("*.raw")
    sent, size = path.read_bytes(), (64, 48)
    with _piped(sent) as reading:
        source = RawSource(reading, SourceSettings(stall_s=2, size=size, fps=30))
        got = b"".join(frame.image.tobytes() for frame in source.frames(threading.Event()))
    assert got == sent[: len(got)]
    assert len(got) == len(sent) - len(sent) % (3 * size[0] * size[1]), "a whole frame was left out"
    assert source.damaged == (len(got) < len(sent))


def _video_pipe(folder: Path) -> None:
    from ptsr_edge.camera.sources import InputPipe, SourceSettings, VideoSource, parse_source

    (path,) = folder.glob("*.nut")
    stop = threading.Event()
    with _piped(path.read_bytes()) as reading:
        source = VideoSource(parse_source("-"), SourceSettings(stall_s=2), InputPipe(reading, stop, 2))
        for frame in source.frames(stop):
            assert frame.image.ndim == 3


@contextlib.contextmanager
def _piped(content: bytes) -> Iterator[int]:
    """Yields the reading end of a pipe that a thread writes to, in pieces that are no frames."""
    reading, writing = os.pipe()

    def write() -> None:
        with contextlib.suppress(BrokenPipeError), os.fdopen(writing, "wb", buffering=0) as stream:
            for start in range(0, len(content), 5000):
                stream.write(content[start : start + 5000])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield reading
    finally:
        os.close(reading)
        writer.join()


def _face_model(folder: Path) -> None:
    from ptsr_edge.data.morphable_face import read_morphable_face, render_people

    flows, _, _ = render_people(read_morphable_face(folder), [0], 2, 28, "close")
    assert np.isfinite(flows).all()


def _signed(folder: Path) -> None:
    from ptsr_edge.sign import read_verified

    assert read_verified(folder, folder / "key.pub").model.name == "ptsr-test", (
        "a changed manifest passed for signed"
    )


def _state(folder: Path) -> None:
    from ptsr_edge.core.config import named_model
    from ptsr_edge.train.trainer import digest_weights, fit

    model = fit(named_model("vit-nano"), clips(), RUN, 0, state_file=folder / "run.state", resume=True)
    assert digest_weights(model) == (folder / "digest").read_text(), (
        "another model than that of an undisturbed run"
    )


def _history(folder: Path) -> None:
    from ptsr_edge.core.config import named_model
    from ptsr_edge.models.ptsr import build_model
    from ptsr_edge.train.cli import History

    (path,) = folder.iterdir()
    History(path, None).add(Epoch(3, 3, 0.5, build_model(named_model("vit-nano"))))
    with path.open(newline="", encoding="utf-8") as stream:
        epochs = [row["epoch"] for row in csv.DictReader(stream)]
    assert epochs[-1] == "3"
    assert all(int(epoch) < 3 for epoch in epochs[:-1])


def _fold(folder: Path) -> None:
    from ptsr_edge.evaluate.executor import run_tasks

    (found,) = run_tasks(squares, [TASK], shared=3, folder=folder, resume=True)
    assert (found["squares"] == np.arange(40) ** 2 + 3).all(), "another result than that of the task"


def clips() -> Any:
    """Returns a few flows that are told apart by where they move, as data to train on."""
    from ptsr_edge.core.config import LABELS, Preprocess
    from ptsr_edge.data.datasets import FlowDataset

    flows = np.random.default_rng(0).normal(0, 0.1, (6, 28, 28, 3)).astype(np.float32)
    labels = np.arange(6) % 3
    for flow, label in zip(flows, labels, strict=True):
        flow[9 * label : 9 * label + 9] += 1
    names = [str(number) for number in range(6)]
    return FlowDataset(flows, labels, np.array(names), names, LABELS, Preprocess(image_size=28), "fuzzed")


RUN = TrainConfig(epochs=2, batch_size=6)

TASK = Task("squares", {"count": 40}, 40)


def squares(shared: int, count: int) -> dict[str, Any]:
    """A task whose result is kept."""
    return {"squares": np.arange(count) ** 2 + shared}


def _checkpoint(folder: Path) -> None:
    from ptsr_edge.models.checkpoint import load_checkpoint, predict_logits

    (path,) = folder.glob("*.safetensors")
    model, info = load_checkpoint(path)
    side = info.model.image_size
    flows = np.random.default_rng(0).normal(size=(1, side, side, 3)).astype(np.float32)
    logits, _ = predict_logits(model, flows)
    assert logits.shape == (1, len(info.labels))


def _foreign_vit(folder: Path) -> None:
    from ptsr_edge.core.config import named_model
    from ptsr_edge.models.checkpoint import load_vit
    from ptsr_edge.models.ptsr import Vit, build_model

    model = build_model(named_model("vit-nano"))
    assert isinstance(model, Vit)
    (path,) = folder.glob("*.safetensors")
    load_vit(model, path)


def _recipe(folder: Path) -> None:
    from ptsr_edge.export.config import read_recipe

    (path,) = folder.iterdir()
    read_recipe(path)


def _recorded(name: str) -> Callable[[Path], None]:
    def call(folder: Path) -> None:
        from ptsr_edge.data.recorded import read_recorded

        found = read_recorded(name, folder)
        assert len(found.clips) + sum(found.dropped.values()) + len(found.unfit) == found.rows

    return call


def _own(folder: Path) -> None:
    from ptsr_edge.data.cli import examine

    json.dumps(examine("folder", folder, skip_bad=True), allow_nan=False)


def _image(folder: Path) -> None:
    from ptsr_edge.data.annotations import RowFault
    from ptsr_edge.data.extraction import decode_image, read_file

    for path in sorted(folder.iterdir()):
        try:
            image = decode_image(read_file(path), path)
        except RowFault as fault:
            raise JobError(fault.message) from None
        assert image.dtype == np.uint8


def _video(folder: Path) -> None:
    from ptsr_edge.camera.sources import SourceSettings, VideoSource, parse_source

    for path in sorted(folder.iterdir()):
        source = VideoSource(parse_source(str(path)), SourceSettings(stall_s=2))
        source.check()
        for frame in source.frames(threading.Event()):
            assert frame.image.ndim == 3


def _profile(folder: Path) -> None:
    from ptsr_edge.report.cli import write_report

    write_report([folder], folder / "report")


def _fleet(folder: Path) -> None:
    from ptsr_edge.report.cli import finish_fleet

    finish_fleet(folder, folder / "report", limit_ms=8.0, as_json=True)


def _acknowledged(folder: Path) -> None:
    from ptsr_edge.report.cli import write_history

    write_history([folder], folder / "report", folder / ACKNOWLEDGED)


def _cache(folder: Path) -> None:
    from ptsr_edge.core.files import DiskCache

    cache = DiskCache("fuzzed", folder)
    (key,) = {path.stem for path in folder.glob("*/*.entry")}
    found = cache.fetch(key, lambda stream: stream.read())
    assert found in (None, b"what was stored" * 100)


READERS: dict[str, Reader] = {
    "manifest": Reader("bundle", (MANIFEST,), "json", _manifest),
    "onnx": Reader("bundle", ("*-cpu-fp32-*.onnx",), "bytes", _artifact("cpu", "fp32"), rehash=True),
    "onnx-weights": Reader("bundle", ("weights-cpu-fp32*.bin",), "bytes", _artifact("cpu", "fp32"), rehash=True),
    "onnx-int8": Reader("bundle", ("*-cpu-int8-*.onnx", "weights-cpu-int8*.bin"), "bytes", _artifact("cpu", "int8"), rehash=True),
    "ir": Reader("bundle", ("*-openvino-fp32-*.xml",), "bytes", _artifact("openvino", "fp32"), rehash=True),
    "ir-weights": Reader("bundle", ("*-openvino-fp32*.bin",), "bytes", _artifact("openvino", "fp32"), rehash=True),
    "ir-int8": Reader("bundle", ("*-openvino-int8*.xml", "*-openvino-int8*.bin"), "bytes", _artifact("openvino", "int8"), rehash=True),
    "plan": Reader("trt", ("*.plan",), "bytes", _plan, rehash=True, needs="tensorrt_rtx"),
    "plan-record": Reader("trt", ("*.build.json",), "json", _plan, rehash=True, needs="tensorrt_rtx"),
    "plan-manifest": Reader("trt", (MANIFEST,), "json", _plan, needs="tensorrt_rtx"),
    "build-on-device": Reader("trt", (MANIFEST, "*.build.json"), "json", _build, needs="tensorrt_rtx"),
    "signature": Reader("signed", (MANIFEST, SIGNATURE), "json", _signed),
    "key": Reader("signed", ("key.pub",), "bytes", _signed),
    "checkpoint": Reader("checkpoint", ("*.safetensors",), "safetensors", _checkpoint),
    "foreign-vit": Reader("foreign", ("*.safetensors",), "safetensors", _foreign_vit),
    "recipe": Reader("recipe", ("*",), "bytes", _recipe),
    "sheet": Reader("casme2", ("*.xlsx",), "zip", _recorded("casme2")),
    "sheet-csv": Reader("casme3", ("annotation/*.csv",), "bytes", _recorded("casme3")),
    "own-clips": Reader("own", ("clips.csv", "dataset.toml"), "bytes", _own),
    "image": Reader("images", ("*",), "bytes", _image),
    "video": Reader("videos", ("*",), "bytes", _video),
    "raw-pipe": Reader("pipe", ("*.raw",), "bytes", _raw_pipe),
    "video-pipe": Reader("pipe", ("*.nut",), "bytes", _video_pipe),
    "face-model": Reader("face-model", ("*.npz",), "zip", _face_model),
    "profile": Reader("profile", ("profile.json",), "json", _profile),
    "samples": Reader("profile", ("samples/*.npz",), "zip", _profile),
    "fleet": Reader("fleet", (FLEET,), "json", _fleet),
    "acknowledged": Reader("acknowledged", (ACKNOWLEDGED,), "json", _acknowledged),
    "state": Reader("state", ("run.state",), "safetensors", _state),
    "history": Reader("history", ("*.csv",), "bytes", _history),
    "fold": Reader("fold", ("*.npz",), "zip", _fold),
    "cache": Reader("cache", ("*/*.entry",), "bytes", _cache),
}  # fmt: skip
