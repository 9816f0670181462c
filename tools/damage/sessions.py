"""One session for many threads, and sessions that are opened and let go again and again."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from damage.bundles import bundle_of, flows, targets
from damage.numbers import answers
from damage.trial import Outcome, Scene, resident_bytes
from ptsr_edge import Session

THREADS = 16
KEPT_BYTES = 8e6
"""What the later half of all cycles may add to memory together: 1.6 kB for each of five thousand."""


def run(scene: Scene) -> Iterator[Outcome]:
    """Makes one check with one target, both by the case's number."""
    here = targets()
    name = list(CHECKS)[scene.number % len(CHECKS)]
    target = here[scene.number // len(CHECKS) % len(here)]
    yield CHECKS[name](scene, bundle_of(target, scene.material), f"{name} ({target})")


def _threads(scene: Scene, folder: Path, fault: str) -> Outcome:
    """Sixteen threads get what one gets, answer by answer."""
    with Session.open(folder, threads=1) as session:
        samples = flows(scene.draw, 12, session.bundle.preprocess.image_size)
        alone = answers(session, samples)
        begin = threading.Barrier(THREADS)

        def ask(number: int) -> list[str]:
            begin.wait()
            order = np.random.default_rng(number).permutation(len(samples))
            return [
                f"thread {number}: another answer to sample {place}"
                for place in order
                if session.predict(samples[place]).logits.tolist() != alone[place]
            ]

        rounds = max(1, scene.effort.cycles // 100)
        with ThreadPoolExecutor(THREADS) as pool:
            wrong = [odd for _ in range(rounds) for found in pool.map(ask, range(THREADS)) for odd in found]
    return Outcome(fault, "same" if not wrong else "another", wrong[:3], rounds * THREADS * len(samples))


def _close(folder: Path) -> None:
    with Session.open(folder, threads=1) as session:
        session.predict(flows(np.random.default_rng(0), 1, session.bundle.preprocess.image_size)[0])


def _let_go(folder: Path) -> None:
    session = Session.open(folder, threads=1)
    session.predict(flows(np.random.default_rng(0), 1, session.bundle.preprocess.image_size)[0])
    del session


def cycles(scene: Scene, once: Callable[[], None], fault: str) -> Outcome:
    """Repeats and looks at what is held: threads and files may not become more at all, memory not after the first half."""
    for _ in range(3):
        once()
    held, half = _held(), 0.0
    for number in range(scene.effort.cycles):
        once()
        if number == scene.effort.cycles // 2:
            gc.collect()
            half = resident_bytes()
    gc.collect()
    now, grown = _held(), resident_bytes() - half
    wrong = [f"{what}: {held[what]} before, {now[what]} after" for what in held if now[what] > held[what]]
    if scene.effort.judges and grown > KEPT_BYTES:
        wrong.append(f"memory grew by {grown / 1e6:.1f} MB in the later half")
    return Outcome(
        fault, "nothing kept" if not wrong else "grew", wrong, scene.effort.cycles, {"grown_mb": grown / 1e6}
    )


def _held() -> dict[str, int]:
    """Returns how many threads and open files this process has."""
    return {
        what: sum(1 for _ in Path(f"/proc/self/{place}").iterdir())
        for what, place in (("threads", "task"), ("files", "fd"))
    }


CHECKS: dict[str, Callable[[Scene, Path, str], Outcome]] = {
    f"{THREADS} threads on one session": _threads,
    "opened and closed": lambda scene, folder, fault: cycles(scene, lambda: _close(folder), fault),
    "opened and let go": lambda scene, folder, fault: cycles(scene, lambda: _let_go(folder), fault),
}
"""What is checked, by name."""
