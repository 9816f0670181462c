"""Places that fail while a verb writes: full disks, read-only folders, folders that vanish, others who write to the same place."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from damage.trial import Done, Outcome, Scene, end, program, start
from damage.work import OUT, WORKS, State, compare, leftovers, prepare, sound, spoiled, state

PAGE = 4096
"""What a tmpfs gives out at a time."""


def may_mount() -> bool:
    """Tells whether this process may mount file systems."""
    return hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("mount") is not None


@contextmanager
def mounted(place: Path, size_bytes: int) -> Iterator[None]:
    """Puts a file system of so many bytes in the place of a folder, whose files move into it."""
    inside = list(place.iterdir())
    aside = place.with_name(f"{place.name}-before")
    aside.mkdir()
    for path in inside:
        path.rename(aside / path.name)
    _call("mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(place))
    try:
        shutil.copytree(aside, place, dirs_exist_ok=True)
        yield
    finally:
        # Of what is there when it goes, nothing is looked at afterwards.
        _call("umount", "--lazy", str(place))


def read_only(place: Path) -> None:
    """Lets nobody write into what `mounted` put there."""
    _call("mount", "-o", "remount,ro", str(place))


def _call(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")


def run(scene: Scene) -> Iterator[Outcome]:
    """Lets one place fail for one verb, both by the case's number."""
    fault = list(FAULTS)[scene.number % len(FAULTS)]
    name = list(WORKS)[scene.number // len(FAULTS) % len(WORKS)]
    if fault in NEED_MOUNT and not may_mount():
        yield Outcome(f"{fault}: {name}", "skipped: only root may mount a small disk")
        return
    place = scene.scratch / "place"
    prepare(WORKS[name], scene.material, place)
    ended, wrong = FAULTS[fault](scene, name, place)
    yield Outcome(
        f"{fault}: {name}", ended, [f"{program(WORKS[name].call(scene.material, 1))}: {one}" for one in wrong]
    )


def judge(scene: Scene, name: str, place: Path, done: Done, before: State) -> tuple[str, list[str]]:
    """Judges a run at a place that failed: it made its whole result, or said in one line that it could not and changed nothing."""
    work, new = WORKS[name], sound(name, 1, scene.material)
    accepted = {"made": new.state} if done.code == 0 else {"refused": before}
    if done.code and not work.is_folder:
        accepted["all but the end"] = new.state  # each file that was made before the fault is whole
    there = state(work, place / OUT)
    if done.code == 0 and not work.is_folder:  # an older file under another name is left as it was
        there = {
            path: facts for path, facts in there.items() if path in new.state or before.get(path) != facts
        }
    found, wrong = compare(work, there, accepted)
    if done.code:
        wrong += done.faults(program(work.call(scene.material, 1)))
    wrong += [f"spoiled in the cache: {one}" for one in spoiled(place / "cache")]
    return found, wrong + [f"left: {one}" for one in leftovers(place, new)]


def _full(part: str, scene: Scene, name: str, place: Path) -> tuple[str, list[str]]:
    """Runs with one of the folders on a disk that has up to one and a half times the room that is needed."""
    new = sound(name, 1, scene.material)
    needs = sum(path.stat().st_size for path in (new.folder.parent / part).rglob("*") if path.is_file())
    there = sum(path.stat().st_size + PAGE for path in (place / part).rglob("*") if path.is_file())
    room = PAGE * (1 + there // PAGE + int(scene.draw.uniform(0, 1.5) * max(needs - there, 0)) // PAGE)
    before: Mapping[str, str] = {}
    if part == OUT and scene.draw.random() < 0.5:
        old = sound(name, 0, scene.material)
        shutil.copytree(old.folder, place / OUT, dirs_exist_ok=True)
        before, room = old.state, room + sum(path.stat().st_size + PAGE for path in old.folder.rglob("*"))
    with mounted(place / part, room):
        done = end(start(WORKS[name].call(scene.material, 1), place))
        found, wrong = judge(scene, name, place, done, before)
    if part == "cache" and done.code:
        wrong.append(f"fails for want of a cache: {done.said.strip()[-300:]}")
    return found, [f"with {room} bytes: {one}" for one in wrong]


def _full_out(scene: Scene, name: str, place: Path) -> tuple[str, list[str]]:
    return _full(OUT, scene, name, place)


def _full_cache(scene: Scene, name: str, place: Path) -> tuple[str, list[str]]:
    return _full("cache", scene, name, place)


def _read_only(scene: Scene, name: str, place: Path) -> tuple[str, list[str]]:
    old = sound(name, 0, scene.material)
    shutil.copytree(old.folder, place / OUT, dirs_exist_ok=True)
    with mounted(place / OUT, 1 << 26):
        read_only(place / OUT)
        done = end(start(WORKS[name].call(scene.material, 1), place))
        if done.code == 0:
            return "made", ["it says that it wrote into a folder that nobody may write into"]
        return judge(scene, name, place, done, old.state)


def _vanishes(scene: Scene, name: str, place: Path) -> tuple[str, list[str]]:
    """Takes the folder away, with what is being written, at a moment that is drawn evenly over the run."""
    new = sound(name, 1, scene.material)
    timer = threading.Timer(
        float(scene.draw.uniform(0, new.took_s)), lambda: (place / OUT).rename(place / "gone")
    )
    process = start(WORKS[name].call(scene.material, 1), place)
    timer.start()
    done = end(process)
    timer.join()
    (place / OUT).mkdir(exist_ok=True)  # nobody has made it anew
    work, found = WORKS[name], state(WORKS[name], place / OUT)
    if done.code == 0 and work.is_folder and not found:
        return "made, then gone", []
    if done.code == 0:
        # What was written before the folder went is in neither place of the result: what is there has to be whole.
        return compare(work, found, {"made": new.state, "made, then gone": {}})
    ended, wrong = compare(work, found, {"refused": {}})
    return ended, wrong + done.faults(program(work.call(scene.material, 1)))


def _two_writers(scene: Scene, name: str, place: Path) -> tuple[str, list[str]]:
    """Lets both versions write to one place at once."""
    work = WORKS[name]
    both = [start(work.call(scene.material, version), place) for version in (0, 1)]
    ended = [end(process) for process in both]
    states = {f"that of version {version}": sound(name, version, scene.material).state for version in (0, 1)}
    found, wrong = compare(work, state(work, place / OUT), states)
    for done in ended:
        wrong += done.faults(program(work.call(scene.material, 1))) if done.code else []
    if all(done.code for done in ended):
        wrong.append("neither of two writers could write")
    wrong += [f"spoiled in the cache: {one}" for one in spoiled(place / "cache")]
    return found, wrong + [f"left: {one}" for one in leftovers(place, sound(name, 1, scene.material))]


def _one_cache(scene: Scene, name: str, place: Path) -> tuple[str, list[str]]:
    """Lets two processes with folders of their own fill one cache."""
    work, other, wrong = WORKS[name], scene.scratch / "other", list[str]()
    (other / OUT).mkdir(parents=True)
    homes = (place, other)
    both = [start(work.call(scene.material, 1), home, place / "cache") for home in homes]
    for home, process in zip(homes, both, strict=True):
        done = end(process)
        if done.code:
            wrong.append(f"one of two fails: {done.said.strip()[-300:]}")
        wrong += compare(work, state(work, home / OUT), {"made": sound(name, 1, scene.material).state})[1]
    wrong += [f"spoiled in the cache: {one}" for one in spoiled(place / "cache")]
    return "both made", wrong + [f"left: {one}" for one in leftovers(place, sound(name, 1, scene.material))]


FAULTS: Mapping[str, Callable[[Scene, str, Path], tuple[str, list[str]]]] = {
    "full disk": _full_out,
    "full cache": _full_cache,
    "read-only folder": _read_only,
    "folder that vanishes": _vanishes,
    "two writers": _two_writers,
    "one cache": _one_cache,
}
"""What happens to the places of a verb, by name; each returns how it ended and what is wrong."""

NEED_MOUNT = ("full disk", "full cache", "read-only folder")
