"""Verbs that are killed at any moment: the older result stays or the new one is whole, and the next run is as if nothing had been."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

from damage.trial import Outcome, Scene, end, left_alive, program, start
from damage.work import OUT, WORKS, compare, leftovers, prepare, sound, spoiled, state


def run(scene: Scene) -> Iterator[Outcome]:
    """Kills one verb, by the case's number, at a moment that is drawn evenly over its length; an older result lies there every
    other time."""
    name = list(WORKS)[scene.number % len(WORKS)]
    is_over_old = scene.number // len(WORKS) % 2 == 1
    work, new, place = WORKS[name], sound(name, 1, scene.material), scene.scratch / "place"
    prepare(work, scene.material, place)
    accepted = {"nothing yet": {}, "new": new.state}
    if is_over_old:
        old = sound(name, 0, scene.material)
        shutil.copytree(old.folder, place / OUT, dirs_exist_ok=True)
        accepted = {"old": old.state, "new": new.state}
    call = work.call(scene.material, 1)
    after_s = float(scene.draw.uniform(0, new.took_s))
    process = start(call, place)
    try:
        process.communicate(timeout=after_s)
        had_ended = True
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        had_ended = False
    wrong = [f"process {one} lives on" for one in left_alive(process.pid)]
    found, odd = compare(work, state(work, place / OUT), accepted)
    wrong += odd + [f"spoiled in the cache: {one}" for one in spoiled(place / "cache")]
    done = end(start(call, place))
    if done.code:
        wrong.append(f"the next run fails: {done.said.strip()[-300:]}")
    after = {path: facts for path, facts in state(work, place / OUT).items() if path in new.state}
    if after != new.state:
        wrong.append("the next run makes another result")
    wrong += [f"left after the next run: {one}" for one in leftovers(place, new)]
    at = f"killed after {after_s:.2f} s of {program(call)}: "
    yield Outcome(
        f"SIGKILL of {name}", "had ended" if had_ended else f"{found} after it",
        [at + one for one in wrong], figures={"run_s": new.took_s},
    )  # fmt: skip
