"""Answers that have to be the same everywhere, and inputs that are sought to make them infinite.

What a session takes is any finite flow. Inputs that break the arithmetic are looked for by ascent: along the model's gradient, and
by climbing on what an artifact answers, from a new start whenever nothing higher is found.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from damage.bundles import bundle_of, flows, targets
from damage.trial import LIMIT_S, Outcome, Scene
from damage.work import MODEL
from ptsr_edge import Session
from ptsr_edge.bundle import Bundle, Variant, read_bundle
from ptsr_edge.core.errors import InputError, PtsrError
from ptsr_edge.session import Prediction, open_variant

if TYPE_CHECKING:
    import torch

Logits = list[list[float]]

LARGEST = {"fp16": 65504.0, "bf16": 3.38953139e38}
"""Finite numbers of each type; IEEE 754-2019, table 3.5, and bfloat16's 8 bits of fraction."""

WORST = ("all values zero", "one value of 3e38", "values of 1e-38", "one pixel", "values of 1e30 beside 1")
"""Flows at the borders of what is taken."""


def run(scene: Scene) -> Iterator[Outcome]:
    """Makes one check of one target's bundle, both by the case's number."""
    name = list(CHECKS)[scene.number % len(CHECKS)]
    here = targets()
    target = here[scene.number // len(CHECKS) % len(here)]
    yield from CHECKS[name](scene, bundle_of(target, scene.material), f"{name} ({target})")


def answers(session: Session, samples: NDArray[np.float32]) -> Logits:
    """Returns the logits of every sample."""
    return [session.predict(flow).logits.tolist() for flow in samples]


def _samples(scene: Scene, folder: Path, count: int = 8) -> NDArray[np.float32]:
    return flows(scene.draw, count, read_bundle(folder).preprocess.image_size)


def _threads(scene: Scene, folder: Path, fault: str) -> Iterator[Outcome]:
    """Two threads may add up in another order: the answers stay within what the proof allows."""
    samples = _samples(scene, folder)
    for variant in read_bundle(folder).variants:
        found = []
        for threads in (1, 2):
            with open_variant(folder, variant, threads) as session:
                found.append(np.array(answers(session, samples)))
        apart = float(np.abs(found[0] - found[1]).max())
        limit = variant.parity.limit if variant.parity else 0.0
        same = bool((found[0].argmax(axis=1) == found[1].argmax(axis=1)).all())
        wrong = [] if apart <= limit and same else [f"{variant.id}: logits {apart:.3g} apart, labels {same=}"]
        yield Outcome(
            fault, "same" if not apart else "within the proof's limit", wrong, len(samples), {"apart": apart}
        )


def _switches(scene: Scene, folder: Path, fault: str) -> Iterator[Outcome]:
    """After many switches of the budget each budget answers as when it was opened."""
    samples = _samples(scene, folder)
    for first in _largest(read_bundle(folder)):
        with open_variant(folder, first, 1) as session:
            rates = [one.keep_rate for one in session.bundle.variants if _kind(one) == _kind(first)]
            fresh = {}
            for rate in rates:
                with Session.open(
                    folder, budget=rate, target=first.target, precision=first.precision, threads=1
                ) as own:
                    fresh[rate] = answers(own, samples)
            wrong = []
            for number in range(scene.effort.steps):
                rate = rates[int(scene.draw.integers(len(rates)))]
                session.switch(rate)
                place = number % len(samples)
                if session.predict(samples[place]).logits.tolist() != fresh[rate][place]:
                    wrong.append(f"{_kind(first)} at {rate:g}: another answer after {number} switches")
        yield Outcome(fault, "same" if not wrong else "another", wrong[:3], scene.effort.steps)


PROGRAM = """
import json, sys
import numpy as np
from ptsr_edge.bundle import read_bundle
from ptsr_edge.session import open_variant
from pathlib import Path
folder, samples = Path(sys.argv[1]), np.load(sys.argv[2])
found = {}
for variant in read_bundle(folder).variants:
    with open_variant(folder, variant, 1) as session:
        found[variant.id] = [session.predict(flow).logits.tolist() for flow in samples]
print(json.dumps(found))
"""


def _processes(scene: Scene, folder: Path, fault: str) -> Iterator[Outcome]:
    """Another process answers the same, to the last bit."""
    samples = _samples(scene, folder)
    np.save(scene.scratch / "samples.npy", samples)
    call = [sys.executable, "-c", PROGRAM, str(folder), str(scene.scratch / "samples.npy")]
    done = subprocess.run(call, capture_output=True, text=True, check=True, timeout=LIMIT_S)
    other: Mapping[str, Logits] = json.loads(done.stdout)
    for variant in read_bundle(folder).variants:
        with open_variant(folder, variant, 1) as session:
            same = answers(session, samples) == other[variant.id]
        yield Outcome(
            fault,
            "same" if same else "another",
            [] if same else [f"{variant.id}: another answer"],
            len(samples),
        )


def _not_finite(scene: Scene, folder: Path, fault: str) -> Iterator[Outcome]:
    """One value that is NaN or infinite, anywhere, is refused."""
    for variant in _largest(read_bundle(folder)):
        wrong = []
        with open_variant(folder, variant, 1) as session:
            for flow in _samples(scene, folder, 24):
                place = tuple(int(scene.draw.integers(size)) for size in flow.shape)
                flow[place] = scene.draw.choice([np.nan, np.inf, -np.inf])
                try:
                    found = session.predict(flow)
                except InputError:
                    continue
                wrong.append(f"{variant.id}: {flow[place]} at {place} is classified: {found.label}")
        yield Outcome(fault, "refused" if not wrong else "classified", wrong[:3], 24)


def probe(session: Session, flow: NDArray[np.float32]) -> tuple[float, str]:
    """Returns the largest magnitude among the logits, and what is wrong with the answer."""
    try:
        found: Prediction = session.predict(flow)
    except PtsrError as error:  # a session refuses to tell what is not finite
        return np.inf, f"{session.variant.id}: {error}"
    total = sum(found.probabilities.values())
    odd = "" if abs(total - 1) < 1e-6 else f"{session.variant.id}: probabilities add up to {total}"
    return float(np.abs(found.logits).max()), odd


def edge(name: str, draw: np.random.Generator, side: int) -> NDArray[np.float32]:
    """Draws one of the flows of `WORST`."""
    flow: NDArray[np.float32] = flows(draw, 1, side)[0]
    place = (*draw.integers(side, size=2), int(draw.integers(3)))
    if name == "all values zero":
        flow[:] = 0
    elif name == "one value of 3e38":
        flow[place] = 3e38
    elif name == "values of 1e-38":
        flow *= np.float32(1e-38)
    elif name == "one pixel":
        flow[:] = 0
        flow[place[:2]] = 1
    else:
        flow[: side // 2] *= np.float32(1e30)
    return flow


def _climb(scene: Scene, folder: Path, fault: str) -> Iterator[Outcome]:
    """Climbs from random flows and from the borders to ever larger logits of every variant, and watches for what is not finite."""
    bundle = read_bundle(folder)
    for variant in bundle.variants:
        with open_variant(folder, variant, 1) as session:
            side = bundle.preprocess.image_size
            wrong, highest = climb(partial(probe, session), scene.draw, side, scene.effort.steps)
        yield Outcome(f"{fault} {variant.precision}", "finite" if not wrong else "not finite", wrong[:3],
                      scene.effort.steps, {"largest_logit": highest})  # fmt: skip


def climb(
    answer: Callable[[NDArray[np.float32]], tuple[float, str]],
    draw: np.random.Generator,
    side: int,
    steps: int,
) -> tuple[list[str], float]:
    """Returns what was wrong, and the largest logit that was reached.

    A step changes a block of the flow; one that leads higher is kept, and after twenty that do not the climb starts anew.
    """
    starts = [edge(name, draw, side) for name in WORST]
    flow: NDArray[np.float32] | None = None
    wrong, highest, best, failed = list[str](), 0.0, 0.0, 0
    for _ in range(steps):
        if flow is not None:
            trial = changed(flow, draw)
        else:
            trial = starts.pop() if starts else flows(draw, 1, side)[0]
        height, odd = answer(trial)
        if odd:
            wrong.append(odd)
        elif flow is None or height > best:
            flow, best, failed = trial, height, 0
            highest = max(highest, best)
            continue
        failed += 1
        if failed > 20:
            flow = None
    return wrong, highest


def changed(flow: NDArray[np.float32], draw: np.random.Generator) -> NDArray[np.float32]:
    """Returns a flow with one block changed, by noise or by a factor from a thousandth to a thousand."""
    side = len(flow)
    y, x = draw.integers(side, size=2)
    block = np.s_[y : y + 1 + side // 4, x : x + 1 + side // 4]
    wide = flow.astype(np.float64)
    if draw.random() < 0.5:
        wide[block] += draw.normal(0, 1 + np.abs(wide).mean(), wide[block].shape)
    else:
        wide[block] *= 10 ** draw.uniform(-3, 3)
    wide[..., 2] = np.abs(wide[..., 2])
    return np.clip(wide, -3e38, 3e38).astype(np.float32)


def ascend(draw: np.random.Generator, steps: int) -> tuple[list[NDArray[np.float32]], dict[str, float]]:
    """Ascends in torch from random flows; returns the flows that were reached and the largest logit and activation met.

    In turn the magnitude of the logits is raised and that of the largest activation of any layer. The flow is normalised within
    the graph, so that no step leaves what a session makes of a flow.
    """
    import torch

    from ptsr_edge.models.checkpoint import EMBEDDED, load_checkpoint

    model, info = load_checkpoint(EMBEDDED / f"{MODEL}.safetensors")
    model.eval()
    peaks: list[torch.Tensor] = []
    for layer in model.modules():
        layer.register_forward_hook(lambda _layer, _inputs, output: peaks.extend(
            one.abs().max() for one in (output if isinstance(output, tuple) else [output])
            if isinstance(one, torch.Tensor) and one.is_floating_point()))  # fmt: skip
    reached, largest, side = [], {"largest_logit": 0.0, "largest_activation": 0.0}, info.model.image_size
    rounds = 4
    for number in range(rounds):
        flow = torch.from_numpy(flows(draw, 1, side)).permute(0, 3, 1, 2).clone().requires_grad_()
        for _ in range(max(1, steps // rounds)):
            peaks.clear()
            logits = model(normalised(flow), None).logits
            peak = torch.stack(peaks).max()
            largest["largest_logit"] = max(largest["largest_logit"], float(logits.detach().abs().max()))
            largest["largest_activation"] = max(largest["largest_activation"], float(peak.detach()))
            goal = logits.abs().max() if number % 2 == 0 else peak
            (slope,) = torch.autograd.grad(goal, flow)
            with torch.no_grad():
                flow += 0.2 * float(flow.std()) * slope / slope.std().clamp_min(1e-20)
                flow[:, 2] = flow[:, 2].abs()
        reached.append(flow.detach().permute(0, 2, 3, 1)[0].contiguous().numpy().astype(np.float32))
    return reached, largest


def normalised(flow: torch.Tensor) -> torch.Tensor:
    """As `vision.flow.normalise` of (1, 3, H, W), with a gradient."""
    import torch

    planes = flow.flatten(2).double()
    middle = planes[:, :2].median(dim=-1, keepdim=True).values
    planes = torch.cat([planes[:, :2] - middle, planes[:, 2:]], dim=1)
    spread = planes.var(dim=-1, unbiased=False)
    both = spread[:, :2].mean(dim=1, keepdim=True).expand(-1, 2)
    spread = torch.cat([both, spread[:, 2:]], dim=1).sqrt().clamp_min(1e-12)
    return (planes / spread[..., None]).float().view_as(flow)


def _gradient(scene: Scene, folder: Path, fault: str) -> Iterator[Outcome]:
    """Sends what the ascent reached through every variant."""
    reached, largest = ascend(scene.draw, scene.effort.steps)
    for variant in read_bundle(folder).variants:
        with open_variant(folder, variant, 1) as session:
            found = [probe(session, flow) for flow in reached]
        wrong = [odd for _, odd in found if odd]
        limit = LARGEST.get(variant.precision, np.inf)
        if largest["largest_activation"] > limit:
            wrong.append(
                f"an activation of {largest['largest_activation']:.3g} does not fit {variant.precision}"
            )
        figures = largest | {
            "logit_through_artifact": max((height for height, _ in found if np.isfinite(height)), default=0.0)
        }
        yield Outcome(
            f"{fault} {variant.precision}",
            "finite" if not wrong else "not finite",
            wrong[:3],
            scene.effort.steps,
            figures,
        )


def _kind(variant: Variant) -> tuple[str, str]:
    return variant.target, variant.precision


def _largest(bundle: Bundle) -> list[Variant]:
    """Returns a variant of each precision."""
    return list({_kind(variant): variant for variant in bundle.variants}.values())


CHECKS: dict[str, Callable[[Scene, Path, str], Iterator[Outcome]]] = {
    "NaN or infinity in": _not_finite,
    "another number of threads": _threads,
    "switches of the budget": _switches,
    "another process": _processes,
    "climb": _climb,
    "gradient ascent": _gradient,
}
"""What is checked of a bundle, by name."""
