"""Every reader of outside data: real files that it reads, which of them is damaged how, and what is done with them.

A reader ends in the project's own error or in a right answer; a `call` asserts what a right answer is. One reader is one
entry of `READERS`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ptsr_edge.bundle import MANIFEST, describe_file, read_bundle
from ptsr_edge.core.errors import JobError
from ptsr_edge.core.files import link_file
from ptsr_edge.evaluate.executor import Task
from ptsr_edge.sign import SIGNATURE
from ptsr_edge.train.trainer import TrainConfig


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
    """

    seeds: str
    files: tuple[str, ...]
    kind: str
    call: Callable[[Path], None]
    rehash: bool = False


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

    for variant in read_bundle(folder).variants[:1] if target is None else ({},):
        asked = (
            dict(target=variant.target, precision=variant.precision, budget=variant.keep_rate)
            if variant
            else {}
        )
        with Session.open(
            folder, threads=1, **(asked or dict(target=target, precision=precision))
        ) as session:
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
    import threading

    from ptsr_edge.camera.sources import SourceSettings, VideoSource, parse_source

    for path in sorted(folder.iterdir()):
        source = VideoSource(parse_source(str(path)), SourceSettings(stall_s=2))
        source.check()
        for frame in source.frames(threading.Event()):
            assert frame.image.ndim == 3


def _profile(folder: Path) -> None:
    from ptsr_edge.report.cli import write_report

    write_report([folder], folder / "report")


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
    "profile": Reader("profile", ("profile.json",), "json", _profile),
    "samples": Reader("profile", ("samples/*.npz",), "zip", _profile),
    "state": Reader("state", ("run.state",), "safetensors", _state),
    "fold": Reader("fold", ("*.npz",), "zip", _fold),
    "cache": Reader("cache", ("*/*.entry",), "bytes", _cache),
}  # fmt: skip


def names(chosen: Sequence[str]) -> list[str]:
    """Returns the readers that are asked for; all where none is."""
    return list(chosen) or list(READERS)


def facts() -> dict[str, Any]:
    """What a table says of each reader."""
    return {
        name: {"files": list(one.files), "hashes_made_right": one.rehash} for name, one in READERS.items()
    }
