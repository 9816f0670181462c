"""Sound files that are damaged: all of them made here, none recorded."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
import recorded_trees
from bundle_data import write_tiny_bundle
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from face_model import write_packed_face
from fleet_data import LOST, device, fleet
from own_folder import fill_in, write_frames
from report_data import make_profile
from safetensors.torch import save_file
from typed_graphs import CONFIG, TOKENS, request
from video_files import stripes, write_video

from fuzz.readers import READERS, RUN, TASK, can_be_made, clips, squares
from ptsr_edge.bundle import Bundle, Variant, describe_file, write_bundle
from ptsr_edge.core.config import LABELS, Preprocess, named_model
from ptsr_edge.core.console import say
from ptsr_edge.core.files import DiskCache, staged_folder, write_json
from ptsr_edge.data.own_clips import write_template
from ptsr_edge.evaluate.executor import run_tasks
from ptsr_edge.export.exporter import export_bundle
from ptsr_edge.export.targets.tensorrt import TrtTarget
from ptsr_edge.models.checkpoint import EMBEDDED
from ptsr_edge.models.ptsr import build_model
from ptsr_edge.profile.schema import FLEET
from ptsr_edge.report.history import ACKNOWLEDGED, Acknowledged, Acknowledgement
from ptsr_edge.sign import sign_bundle
from ptsr_edge.train.trainer import Epoch, digest_weights, fit

MODEL = "ptsr-nano"


def make(seeds: Path) -> None:
    """Makes what is not there; the longest, a bundle for two runtimes in two precisions, takes a minute."""
    if all((seeds / reader.seeds).is_dir() for reader in READERS.values() if can_be_made(reader)):
        return
    say("making sound files")
    with staged_folder(seeds) as stage:
        export_bundle(
            out=stage / "bundle", model=MODEL, target=["cpu", "openvino"], budgets=(0.25,), precisions=("fp32", "int8"),
            cache=True,
        )  # fmt: skip
        make_files(stage)


def make_files(folder: Path) -> None:
    """Makes all but the bundle."""
    for name in ("checkpoint", "foreign", "recipe", "images", "videos"):
        (folder / name).mkdir()
    shutil.copy(EMBEDDED / f"{MODEL}.safetensors", folder / "checkpoint")
    save_file(build_model(named_model("vit-nano")).state_dict(), folder / "foreign" / "timm.safetensors")
    shutil.copy(Path(__file__).parents[2] / "export" / "cpu.toml", folder / "recipe")
    recorded_trees.casme2(folder / "casme2")
    recorded_trees.casme3(folder / "casme3")
    (workbook,) = (folder / "casme3").rglob("*.xlsx")
    with workbook.with_suffix(".csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([recorded_trees.CASME3_HEADING, *recorded_trees.CASME3_ROWS])
    workbook.unlink()
    write_frames(folder / "own")
    write_template(folder / "own")
    fill_in(folder / "own" / "clips.csv")
    onset, _ = recorded_trees.faces(0, 64)
    for suffix in ("png", "jpg", "bmp", "tif"):
        cv2.imwrite(str(folder / "images" / f"face.{suffix}"), onset)
    for suffix in ("mp4", "mkv"):
        write_video(folder / "videos" / f"stripes.{suffix}", [0, 40, 80])
    (folder / "pipe").mkdir()
    np.stack(stripes(5)).tofile(folder / "pipe" / "frames.raw")
    write_video(folder / "pipe" / "frames.nut", [0, 40, 80])
    write_packed_face(folder / "face-model")
    if can_be_made(READERS["plan"]):
        write_trt(folder / "trt")
    make_profile(folder / "profile")
    write_acknowledged(folder / "acknowledged")
    fleet_record = fleet(device("kitchen", 2.5, without="int8"), LOST)
    write_json(folder / "fleet" / FLEET, fleet_record.model_dump(mode="json", by_alias=True))
    write_signed(folder / "signed")
    write_state(folder / "state")
    (folder / "history").mkdir()
    (folder / "history" / "nano.history.csv").write_text("epoch,loss,uf1,uar\n1,0.9,0.4,0.5\n2,0.7,0.5,0.6\n")
    run_tasks(squares, [TASK], shared=3, folder=folder / "fold")
    DiskCache("fuzzed", folder / "cache").store("ab" * 32, write_stored)


def write_stored(stream: BinaryIO) -> None:
    stream.write(b"what was stored" * 100)


def write_acknowledged(folder: Path) -> None:
    """Writes a profile and a list of accepted changes that has one for each of its variants."""
    profile = make_profile(folder)
    entries = [
        Acknowledgement(
            machine="Test",
            variant=row.id,
            created=profile.created,
            results=["time"],
            reason="a newer runtime",
        )
        for row in profile.variants
    ]
    write_json(folder / ACKNOWLEDGED, Acknowledged(entries=entries).model_dump(mode="json", by_alias=True))


def write_trt(folder: Path) -> None:
    """Writes a bundle with the engine of a small graph."""
    made = TrtTarget().build(
        request(folder, "fp16", flavour="tensorrt-rtx", compute_capabilities=["8.6", "8.9"])
    )
    (folder.parent / f"{CONFIG.name}.onnx").unlink()  # the graph that it was built from
    plan = made[TOKENS]
    variant = Variant(
        id=plan.path.stem, target="trt", keep_rate=TOKENS / CONFIG.patches, tokens=TOKENS, precision="fp16",
        artifact=plan.path.name, files=[describe_file(folder, path) for path in plan.files], macs=1, parameters=1,
        parity=None, built_with=plan.built_with, runs_on=plan.runs_on,
    )  # fmt: skip
    write_bundle(
        folder,
        Bundle(schema=1, name=CONFIG.name, target="trt", model=CONFIG, labels=list(LABELS),
               preprocess=Preprocess(image_size=CONFIG.image_size), provenance={}, variants=[variant]),
    )  # fmt: skip


def write_signed(folder: Path) -> None:
    """Writes a signed bundle, and the key that fits its signature."""
    write_tiny_bundle(folder)
    key = Ed25519PrivateKey.generate()
    sign_bundle(folder, key)
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "key.pub").write_bytes(pem)


def write_state(folder: Path) -> None:
    """Writes the state that training leaves after the first of its two epochs, and the digest of what comes of it."""
    folder.mkdir()

    def copy(epoch: Epoch) -> None:
        if epoch.number == 2:  # what was kept after the first
            shutil.copy(folder / "kept", folder / "run.state")

    model = fit(named_model("vit-nano"), clips(), RUN, 0, state_file=folder / "kept", on_epoch=copy)
    (folder / "kept").unlink()
    (folder / "digest").write_text(digest_weights(model))
