"""The verbs that are damaged at work: what they are called with, and whether what they made is whole.

Each has two versions that make different results: one lies there from before when the other is damaged. What a version makes is
the same in every run; of what cannot be, such as measured times, `facts` tells what is.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from damage.trial import end, start
from ptsr_edge.core.console import say
from ptsr_edge.core.files import DIGEST_BYTES, ENTRY_SUFFIX, code_digest, link_file, sha256_of, staged_folder

MODEL = "ptsr-nano"
OUT = "out"
"""Where all of them write, below the folder that they are called in."""


@dataclass(frozen=True)
class Work:
    """A verb at work.

    Attributes:
        call: of the material and the version, 0 or 1, makes the arguments.
        is_folder: what it makes is one folder below `OUT`, which appears as a whole; else each file does.
        cache: what lies in its cache at the start, by its folder in the material.
        facts: what is the same of a file in each run.
    """

    call: Callable[[Path, int], list[str]]
    is_folder: bool = False
    cache: str = "cache"
    facts: Callable[[Path], str] = sha256_of


def _export(_material: Path, version: int) -> list[str]:
    return ["export", "--model", MODEL, "--budgets", ("0.5", "0.25")[version], "--precision", "fp32",
            "--out", f"{OUT}/bundle"]  # fmt: skip


def _profile_facts(path: Path) -> str:
    from ptsr_edge.profile.schema import read_profile

    if path.suffix == ".npz":  # times, never twice the same
        with np.load(path) as arrays:
            return json.dumps(sorted(name for name in arrays.files if arrays[name].size))
    rows = read_profile(path.parent).variants
    return json.dumps([[row.id, row.macs, row.parameters, row.size_bytes, row.files_sha256] for row in rows])


def _video_facts(path: Path) -> str:
    import av

    digest = hashlib.sha256()
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            digest.update(frame.to_ndarray(format="gray").tobytes())
    return digest.hexdigest()


WORKS: dict[str, Work] = {
    "export": Work(_export, is_folder=True),
    "export from the cache": Work(_export, is_folder=True, cache="full-cache"),
    "train": Work(lambda material, version: [
        "train", "--data", "megc-flow", "--root", str(material / "megc"), "--model", MODEL,
        "--epochs", "1", "--seed", str(version), "--out", f"{OUT}/{MODEL}.safetensors"]),
    "profile": Work(lambda material, version: [
        "profile", "--bundle", str(material / f"pair{version}" / "ptsr"), "--baseline", str(material / f"pair{version}" / "vit"),
        "--quick", "--duration-s", "0.1", "--processes", "2", "--out", f"{OUT}/profile"], is_folder=True, facts=_profile_facts),
    "report": Work(lambda material, version: [
        "report", "--profile", str(material / "profile"), "--max-latency-ms", str(100 + version), "--out", f"{OUT}/report"]),
    "evaluate": Work(lambda material, version: [
        "evaluate", "--data", "megc-flow", "--root", str(material / "megc"), "--model", MODEL, "--protocol", "groups",
        "--groups", "3", "--epochs", str(version + 1), "--run-folder", f"{OUT}/run", "--resume", "--out", f"{OUT}/record.json"]),
    "evaluate from frames": Work(lambda material, version: [
        "evaluate", "--data", "casme2", "--root", str(material / "casme2"), "--checkpoint", str(material / f"{MODEL}.safetensors"),
        "--budgets", ("0.5", "0.25")[version], "--out", f"{OUT}/record.json"]),
    "camera": Work(lambda material, version: [
        "camera", "--bundle", str(material / "pair1" / "ptsr"), "--source", str(material / "face.mkv"), "--face", "crop",
        "--budget", ("1", "0.5")[version], "--record", f"{OUT}/seen.mkv"], facts=_video_facts),
}  # fmt: skip

State = Mapping[str, str]
"""Of what was made: facts by path below `OUT`."""


def make(material: Path) -> None:
    """Makes the sound files where they are not there; the cache has the rendered faces that an export is proven on."""
    if material.is_dir():
        return
    say("making sound files")
    with staged_folder(material) as stage:
        make_files(stage)
        for version in (0, 1):
            done = end(start(_export(stage, version), stage, stage / "full-cache"))
            assert done.code == 0, done.said
        shutil.copytree(stage / "full-cache" / "rendered", stage / "cache" / "rendered")
        shutil.rmtree(stage / OUT)


def make_files(folder: Path) -> None:
    """Makes all but what takes an export."""
    import recorded_trees
    from bundle_data import write_pair, write_tiny_bundle
    from camera_data import scene, with_face
    from megc_data import write_megc
    from report_data import make_profile
    from video_files import write_video

    from ptsr_edge.models.checkpoint import EMBEDDED

    for version in (0, 1):
        write_pair(folder / f"pair{version}")
    write_tiny_bundle(folder / "pair0" / "ptsr", width=12)
    write_megc(folder / "megc")
    recorded_trees.casme2(folder / "casme2")
    make_profile(folder / "profile")
    shutil.copy(EMBEDDED / f"{MODEL}.safetensors", folder)
    images = [with_face(scene(), 60 + number % 5, 40) for number in range(60)]
    write_video(folder / "face.mkv", [33 * number for number in range(60)], images, (320, 240))
    for cache in ("cache", "full-cache"):
        (folder / cache).mkdir()


def prepare(work: Work, material: Path, place: Path) -> None:
    """Makes the folder that a verb is called in, with the cache that it starts with and a folder for what it makes."""
    shutil.copytree(material / work.cache, place / "cache", copy_function=_link)
    (place / OUT).mkdir()


def _link(source: str, target: str) -> None:
    link_file(Path(source), Path(target))


@dataclass(frozen=True)
class Sound:
    """What a version of a verb makes when nobody disturbs it: the folder, its state, and how long it took."""

    folder: Path
    state: State
    took_s: float


def sound(name: str, version: int, material: Path) -> Sound:
    """Returns what a version makes, from the material where an earlier case of the same code made it."""
    work = WORKS[name]
    kept = material / "sound" / code_digest()[:16] / f"{name}-{version}".replace(" ", "-")
    if not kept.is_dir():
        with staged_folder(kept) as stage:
            prepare(work, material, stage)
            started = time.monotonic()
            done = end(start(work.call(material, version), stage))
            took_s = time.monotonic() - started
            if done.code:
                raise RuntimeError(f"{name} fails undisturbed: {done.said}")
            (stage / "took_s").write_text(str(took_s))
    return Sound(kept / OUT, state(work, kept / OUT), float((kept / "took_s").read_text()))


def state(work: Work, out: Path) -> State:
    """Returns the facts of every file that shows itself; of one that cannot be read, why."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            try:
                found[name.as_posix()] = work.facts(path)
            except Exception as error:  # noqa: BLE001 half a file may fail in any way
                found[name.as_posix()] = f"unreadable: {error}"
    return found


def compare(work: Work, found: State, accepted: Mapping[str, State]) -> tuple[str, list[str]]:
    """Returns which of the accepted states was found, and what is wrong where it is none of them.

    Where files appear one by one, each has to be that of one of the states, and "mixed" is a state as well.
    """
    for name, one in accepted.items():
        if found == one:
            return name, []
    if not work.is_folder:
        whole = {(path, facts) for one in accepted.values() for path, facts in one.items()}
        odd = [path for path, facts in found.items() if (path, facts) not in whole]
        return ("mixed", []) if not odd else ("half made", [f"neither old nor new: {', '.join(odd)}"])
    return "half made", [f"neither {' nor '.join(accepted)}: {', '.join(found) or 'nothing'}"]


def hidden(folder: Path) -> list[str]:
    """Returns what lies below a folder under a name that begins with a dot: what is being written, or was left."""
    return [path.relative_to(folder).as_posix() for path in sorted(folder.rglob(".*"))]


def leftovers(place: Path, undisturbed: Sound) -> list[str]:
    """Returns what a run that has ended should not have left: hidden files, and temporary ones that it does not leave as a rule,
    as torch does.
    """
    left = [f"{part}/{name}" for part in (OUT, "cache") for name in hidden(place / part)]
    usual = {path.name for path in (undisturbed.folder.parent / "tmp").iterdir()}
    return left + [f"tmp/{path.name}" for path in sorted((place / "tmp").iterdir()) if path.name not in usual]


def spoiled(cache: Path) -> list[str]:
    """Returns the entries of a cache whose content is not what their digest says."""
    found = []
    for path in sorted(cache.rglob(f"*{ENTRY_SUFFIX}")):
        content = path.read_bytes()
        whole = hashlib.sha256(content[DIGEST_BYTES:]).digest() == content[:DIGEST_BYTES]
        if not path.name.startswith(".") and not whole:
            found.append(path.name)
    return found
