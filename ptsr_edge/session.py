"""What an application calls: a bundle in, predictions out. Needs numpy and one runtime.

session = Session.open("bundle")
prediction = session.predict(flow)  # or predict_frames(onset, apex), which needs OpenCV as well
"""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.bundle import Bundle, Variant, files_digest, find_variant, private_copy
from ptsr_edge.core.errors import InputError, JobError, MissingExtraError, PtsrError, require
from ptsr_edge.core.system import MOST_THREADS, describe_cpu
from ptsr_edge.runtimes.base import RUNTIMES, Runner, Value, find_parameters, find_runner, find_runtime
from ptsr_edge.sign import read_verified
from ptsr_edge.vision.face_tracking import Region, crop_side, cut
from ptsr_edge.vision.flow import check_flow, check_frame, flow_sample, shown, to_input

log = logging.getLogger("ptsr_edge")


@dataclass(frozen=True, repr=False)
class Prediction:
    """The answer for one flow sample.

    Attributes:
        label: the most probable class.
        probabilities: softmax over the logits, by label.
        kept_tokens: (K,) row-major indices of the patches that the answer was read from.
        logits: (k,) float32.
        budget: keep rate of the variant that answered.
        grid: patches along one side of the input.
        flow: (S, S, 3) float32: u, v in pixels and strain, that was classified; None where only the network was run.
        apex: (H, W) uint8, gray: the crop of the apex frame; None where no frames were given.
    """

    label: str
    probabilities: dict[str, float]
    kept_tokens: NDArray[np.int64]
    logits: NDArray[np.float32]
    budget: float
    grid: int
    flow: NDArray[np.float32] | None = None
    apex: NDArray[np.uint8] | None = None

    def __repr__(self) -> str:
        return (
            f"Prediction({self.label} {self.probabilities[self.label]:.1%}, budget {self.budget:g}, "
            f"{len(self.kept_tokens)} of {self.grid**2} tokens kept)"
        )

    def plot(self) -> Any:
        """Draws the kept patches on the apex frame, flow and strain, and the probabilities.

        What the prediction does not hold, frames or flow, is left out.

        Returns:
            A `matplotlib.figure.Figure`, which no window shows: save it with its `savefig`.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        return _draw(self)

    def to_png(self) -> bytes:
        """Returns the picture of `plot` as the bytes of a PNG file.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        content = io.BytesIO()
        self.plot().savefig(content, format="png", dpi=120)
        return content.getvalue()

    def _repr_png_(self) -> bytes | None:
        """Shows the picture in a notebook; its text where matplotlib is not installed."""
        try:
            return self.to_png()
        except MissingExtraError:
            return None


class Session:
    """A bundle, one of its variants at work.

    Budgets can be switched without loading again: each variant is loaded once and kept. Threads may predict with one
    session; a switch counts for all of them. `close`, or leaving a `with` block, gives back what the runtime holds.
    """

    def __init__(
        self, bundle: Bundle, folder: Path, variant: Variant, threads: int | None, share_weights: bool
    ) -> None:
        """Use `Session.open`."""
        self.bundle = bundle
        self._folder = folder
        self._threads = threads
        self._share_weights = share_weights
        self._loaded: dict[str, Runner] = {}
        self._settings: dict[str, Mapping[str, Value]] = {}
        self._runner: Runner | None = None
        self._closed = False
        self.variant = variant
        self.switch(variant.keep_rate)

    def close(self) -> None:
        """Gives back what the runtime holds; the session answers no more. Closing it again does nothing."""
        for runner in self._loaded.values():
            getattr(runner, "close", lambda: None)()
        self._loaded.clear()
        self._runner, self._closed = None, True

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        variant = self.variant
        return (
            f"Session({self.bundle.name}, {variant.target}/{variant.precision}, budget {self.budget:g}: "
            f"{variant.tokens} of {self.bundle.model.patches} tokens, {', '.join(self.labels)})"
        )

    @property
    def labels(self) -> list[str]:
        """The classes, in the order of the logits."""
        return list(self.bundle.labels)

    @property
    def budget(self) -> float:
        """Keep rate of the variant that answers."""
        return self.variant.keep_rate

    @property
    def precision(self) -> str:
        """Precision of the variant that answers."""
        return self.variant.precision

    @property
    def settings(self) -> dict[str, Value]:
        """The runtime's parameters that the variant runs with as `ptsr-edge tune` recorded them; empty: its defaults."""
        return dict(self._settings[self.variant.id])

    @property
    def runtime(self) -> str:
        """Name and version of the package that runs the variant."""
        for name in find_runtime(self.variant.target).packages:
            if (module := sys.modules.get(name)) is not None:
                return f"{name} {getattr(module, '__version__', '')}".strip()
        return self.variant.target

    @classmethod
    def open(
        cls,
        bundle: str | Path,
        *,
        budget: float | None = None,
        target: str | None = None,
        precision: str | None = None,
        threads: int | None = None,
        share_weights: bool = False,
        verify: str | Path | None = None,
    ) -> Session:
        """Opens a bundle's variant; the log (`ptsr_edge`, INFO) says which, where something was left open.

        The variant that the manifest recommends is taken wherever it is one of those asked for and can run here.
        Else what was left open is:

        Args:
            bundle: a folder that `ptsr-edge export` made.
            budget: keep rate; by default the recommended variant's, or the largest where none is recommended.
            target: by default the last of `runtimes.base.RUNTIMES` that can run here.
            precision: by default int8 where its accuracy was judged at the export (`--max-uar-drop`), else
                the first that the bundle has for the target.
            threads: of one operator; by default what the export's recipe said, else the runtime's choice.
            share_weights: load all budgets at once, so that they compute on one copy of the weights. ONNX Runtime and
                OpenVINO can; the first takes more time for an inference then, the second for the start, and OpenVINO's
                int8 answers move by as much as they depart from float32 at most.
            verify: the public key that the bundle must be signed with (`ptsr-edge sign`); by default that of
                $PTSR_EDGE_VERIFY, where it is set, else no signature is asked for.

        Raises:
            InputError: no bundle there, a signature that is refused, a file that has changed, or no such variant.
            MissingExtraError: the runtime is not installed.
            JobError: the runtime refuses the artifact, or none of several can run here.
        """
        if threads is not None and not 1 <= threads <= MOST_THREADS:
            raise InputError(f"threads must be 1 to {MOST_THREADS}, got {threads}")
        folder = Path(bundle)
        manifest = read_verified(folder, None if verify is None else Path(verify))
        variant = choose_variant(manifest, folder, budget, target, precision)
        session = cls(manifest, folder, variant, threads, share_weights)
        if None in (budget, target, precision):
            log.info("%s", session._chosen())
        return session

    def _chosen(self) -> str:
        """Says in one line what runs, and why that."""
        choice = self.bundle.recommended
        why = ""
        if choice is not None and choice.variant == self.variant.id:
            why = f": {choice.reason}"
        elif choice is not None:
            wanted = find_variant(self.bundle, choice.variant)
            reason = _hindrance(wanted, self._folder) or "something else was asked for"
            why = f"; {choice.variant} is recommended ({reason})"
        return f"{self.variant.id} runs on {self.runtime}{why}"

    def switch(self, budget: float) -> None:
        """Answers at another budget from now on, in the same target and precision.

        The first switch to a budget loads its graph, unless `load` has; later ones cost nothing.

        Raises:
            InputError: the bundle has no such variant.
        """
        variant = self._at(budget)
        self.load(budget)
        self.variant, self._runner = variant, self._loaded[variant.id]

    def load(self, budget: float) -> None:
        """Loads the graph of another budget ahead of a `switch` to it.

        Raises:
            InputError: the bundle has no such variant, a file has changed, or the session is closed.
            JobError: the runtime refuses the artifact.
        """
        if self._closed:
            raise InputError(f"the session of {self.bundle.name} is closed")
        variant = self._at(budget)
        if variant.id in self._loaded:
            return
        together = [variant]
        if self._share_weights:
            kind = variant.target, variant.precision
            together = [other for other in self.bundle.variants if (other.target, other.precision) == kind]
        runners = open_artifacts(together, self._folder, self._threads)
        for one in together:
            self._settings[one.id] = tuned_settings(one, self._threads) if len(together) == 1 else {}
            self._tell_tuning(one)
        self._loaded |= {one.id: runner for one, runner in zip(together, runners, strict=True)}

    def _tell_tuning(self, variant: Variant) -> None:
        if variant.tuned is None or not variant.tuned.settings:
            return
        if settings := self._settings[variant.id]:
            log.info("%s runs with tuned settings: %s", variant.id, settings_text(settings))
        else:
            why = (
                why_not_tuned(variant, self._threads) or "budgets that share their weights take the defaults"
            )
            log.info("%s runs without its tuned settings: %s", variant.id, why)

    def _at(self, budget: float) -> Variant:
        return choose_variant(self.bundle, self._folder, budget, self.variant.target, self.variant.precision)

    def predict(self, flow: NDArray[np.float32]) -> Prediction:
        """Classifies one sample.

        Args:
            flow: (H, W, 3) float32: u, v in pixels and strain, before normalisation.

        Raises:
            InputError: wrong shape or type, or NaN or infinite values.
            JobError: the runtime gave an answer that is not finite.
        """
        check_flow(flow, self.bundle.preprocess.image_size)
        return replace(self.answer(*self.infer(to_input(flow))), flow=flow)

    def predict_frames(self, onset: NDArray[np.uint8], apex: NDArray[np.uint8]) -> Prediction:
        """Classifies what moved between two pictures of a face, with the preprocessing of training and camera.

        Args:
            onset: (H, W, 3) uint8 BGR or (H, W) uint8 gray, a face crop, before the movement.
            apex: where it is strongest; cropped alike, of the same size.

        Raises:
            InputError: no two such frames, or the model was trained on flow fields that came ready-made.
            MissingExtraError: OpenCV is not installed.
            JobError: the runtime gave an answer that is not finite.
        """
        first, second = check_frame(onset), check_frame(apex)
        if first.shape[:2] != second.shape[:2]:
            raise InputError(
                f"onset and apex must be of one size; found {first.shape[:2]} and {second.shape[:2]}"
            )
        height, width = first.shape[:2]
        preprocess = self.bundle.preprocess
        whole, side = Region(0, 0, width, height), crop_side(preprocess)
        crops = cut(first, whole, side), cut(second, whole, side)
        return replace(self.predict(flow_sample(*crops, preprocess)), apex=shown(crops[1], preprocess.crop))

    def answer(self, logits: NDArray[np.float32], kept: NDArray[np.int64]) -> Prediction:
        """Makes a prediction of what `infer` found: logits (k,), kept patches (K,).

        Raises:
            JobError: the logits are not finite or not one a class, or a patch is outside of the grid.
        """
        if len(logits) != len(self.bundle.labels) or not np.isfinite(logits).all():
            raise JobError(
                f"{self.variant.id} answered {logits.tolist()}: not finite, or not {len(self.bundle.labels)}"
            )
        if kept.size and not 0 <= kept.min() <= kept.max() < self.bundle.model.patches:
            raise JobError(
                f"{self.variant.id} kept patches outside of the {self.bundle.model.patches} that there are"
            )
        weights = np.exp(logits.astype(np.float64) - logits.max())
        shares = weights / weights.sum()
        labels = self.bundle.labels
        return Prediction(
            label=labels[int(logits.argmax())],
            probabilities={label: float(share) for label, share in zip(labels, shares, strict=True)},
            kept_tokens=kept,
            logits=logits,
            budget=self.variant.keep_rate,
            grid=self.bundle.model.grid,
        )

    def infer(self, flow: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Runs the network alone: normalised (1, 3, H, W) float32 -> logits (k,), kept patches (K,).

        Raises:
            InputError: the session is closed.
        """
        runner = self._runner
        if runner is None:
            raise InputError(f"the session of {self.bundle.name} is closed")
        logits, kept = runner.run(flow)
        return logits, np.arange(self.bundle.model.patches) if kept is None else kept


def open_artifact(
    variant: Variant, folder: Path, threads: int | None, settings: Mapping[str, Value] | None = None
) -> Runner:
    """Loads a variant by the runtime of its target, from a copy that holds nothing but what was proven.

    Args:
        variant: of the bundle.
        folder: of the bundle.
        threads: of one operator; None: those that the bundle names.
        settings: values of the runtime's parameters; None: those that were tuned (see `tuned_settings`).

    Raises:
        InputError: a target that this version does not know, or a file that is missing or has changed.
        MissingExtraError: the runtime is not installed.
        JobError: the runtime refuses the artifact.
    """
    more: dict[str, Any] = {}
    # What is only tried is not kept for the next start.
    if settings is None and find_runtime(variant.target).keeps_compiled:
        more["digest"] = files_digest(variant)
    own = dict(tuned_settings(variant, threads) if settings is None else settings)
    threads = cast("int | None", own.pop("threads", _threads(variant, threads)))
    if own:
        more["settings"] = own
    runner = find_runner(variant.target)
    with private_copy(folder, [variant]) as place:
        return runner(place / variant.artifact, threads, **more)


def tuned_settings(variant: Variant, threads: int | None) -> dict[str, Value]:
    """Returns the settings that `ptsr-edge tune` recorded for a variant, where they hold here (see `why_not_tuned`); else none.

    Raises:
        MissingExtraError: the runtime is not installed.
    """
    if variant.tuned is None or why_not_tuned(variant, threads):
        return {}
    return dict(variant.tuned.settings)


def why_not_tuned(variant: Variant, threads: int | None) -> str:
    """Returns why the settings that were recorded for a variant do not hold here; empty where they do, or there are none.

    They hold for the CPU, the cores and the runtime that they were found with, and for the number of threads that the search
    was held to or chose.

    Args:
        variant: of a bundle.
        threads: that were asked for; None: none were.

    Raises:
        MissingExtraError: the runtime is not installed; its version has to be known.
    """
    record = variant.tuned
    if record is None or not record.settings:
        return ""
    facts = tuning_facts(variant.target)
    gaps = [
        f"{name} was {found}, here it is {here}"
        for name, found, here in (
            ("the CPU", record.cpu, facts.cpu),
            ("the number of cores", record.cores, facts.cores),
            ("the runtime", record.runtime, facts.runtime),
        )
        if found != here
    ]
    known = {one.name: one.values for one in find_parameters(variant.target)}
    for name, value in record.settings.items():
        if value not in known.get(name, ()) and name != "threads":
            gaps.append(f"{settings_text({name: value})} is no setting that this version knows")
    asked, chosen = _threads(variant, threads), record.settings.get("threads", record.threads)
    if asked not in (record.threads, chosen):
        left = "left to the runtime"
        gaps.append(f"the number of threads was {chosen or left}, here it is {asked or left}")
    return "; ".join(gaps)


class TuningFacts(NamedTuple):
    """What tuned settings depend on: the processor's name, the cores that may be used, the runtime's name and version."""

    cpu: str
    cores: int
    runtime: str


def tuning_facts(target: str) -> TuningFacts:
    """Returns what tuned settings of a target depend on here.

    Raises:
        MissingExtraError: the runtime is not installed.
    """
    cpu = describe_cpu()
    version = getattr(find_runner(target), "version", lambda: target)
    return TuningFacts(cpu["model"] or cpu["architecture"], cpu["cores_visible"], version())


def settings_text(settings: Mapping[str, Value]) -> str:
    """Writes settings in a line, values as JSON has them."""
    return ", ".join(f"{name}={json.dumps(value)}" for name, value in settings.items())


def open_artifacts(variants: Sequence[Variant], folder: Path, threads: int | None) -> Sequence[Runner]:
    """Loads variants of one target and precision, sharing their weights where there are several and the runtime can.

    Raises:
        InputError, MissingExtraError, JobError: as `open_artifact`.
    """
    open_sharing = getattr(find_runner(variants[0].target), "open_sharing", None)
    if len(variants) == 1 or open_sharing is None:
        return [open_artifact(variant, folder, threads) for variant in variants]
    with private_copy(folder, variants) as place:
        runners: Sequence[Runner] = open_sharing(
            [place / variant.artifact for variant in variants], _threads(variants[0], threads)
        )
    return runners


def _threads(variant: Variant, asked: int | None) -> int | None:
    return variant.runs_on.get("threads") if asked is None else asked


def why_not_here(variant: Variant, folder: Path) -> str:
    """Returns what keeps a variant from running here and what mends it; empty where nothing does.

    Raises:
        InputError: a target that this version does not know.
    """
    return find_runner(variant.target).why_not_here(folder / variant.artifact, variant.runs_on)


def choose_variant(
    bundle: Bundle, folder: Path, budget: float | None, target: str | None, precision: str | None
) -> Variant:
    """Returns the variant that was asked for; see `Session.open` for what is taken where something is left open.

    Raises:
        InputError: there is none; the message lists what the bundle has.
        JobError: several targets would do and none can run here; the message says why for each.
    """
    fits = [
        variant
        for variant in bundle.variants
        if target in (None, variant.target) and precision in (None, variant.precision)
    ]
    if budget is not None:
        if not 0 < budget <= 1:
            raise InputError(f"a budget is a keep rate in (0, 1], got {budget:g}")
        tokens = bundle.model.tokens_at(budget)
        fits = [variant for variant in fits if variant.tokens == tokens]
    if not fits:
        asked = f"target {target or 'any'}, precision {precision or 'any'}, budget {budget or 'any'}"
        have = ", ".join(f"{v.target}/{v.precision}/{v.keep_rate:g}" for v in bundle.variants)
        raise InputError(f"the bundle has no variant with {asked}; it has {have}")
    if len(fits) == 1:
        return fits[0]
    if bundle.recommended is not None:
        wanted = find_variant(bundle, bundle.recommended.variant)
        if wanted in fits and not _hindrance(wanted, folder):
            return wanted
        if budget is None:
            fits = [variant for variant in fits if variant.tokens == wanted.tokens] or fits
    best = [default_variant([v for v in fits if v.target == name]) for name in preferred_targets(fits)]
    if len(best) == 1:
        return best[0]
    reasons = []
    for variant in best:
        reason = _hindrance(variant, folder)
        if not reason:
            return variant
        reasons.append(f"{variant.target}: {reason}")
    raise JobError(f"nothing of the bundle can run here: {'; '.join(reasons)}")


def _hindrance(variant: Variant, folder: Path) -> str:
    """Returns what `why_not_here` says; of a target that is not known here or is broken, that."""
    try:
        return why_not_here(variant, folder)
    except PtsrError as error:
        return str(error)


def preferred_targets(variants: Sequence[Variant]) -> list[str]:
    """Returns the targets of some variants in the order in which they are tried; those of other packages come last."""
    order = [*reversed(RUNTIMES)]
    return sorted(
        {v.target: None for v in variants},
        key=lambda name: order.index(name) if name in order else len(order),
    )


def default_variant(variants: Sequence[Variant]) -> Variant:
    """Returns the largest budget in the default precision of one target's variants."""
    judged = any(v.precision == "int8" and "accuracy" in v.built_with for v in variants)
    precision = "int8" if judged else variants[0].precision
    return max((v for v in variants if v.precision == precision), key=lambda v: v.tokens)


def open_variant(folder: Path, variant: Variant, threads: int) -> Session:
    """Opens a session of exactly this variant of a bundle.

    Raises:
        InputError: the bundle's files have changed.
        JobError: the runtime refuses the artifact, or the bundle has two variants of one kind.
    """
    session = Session.open(
        folder,
        budget=variant.keep_rate,
        target=variant.target,
        precision=variant.precision,
        threads=threads,
    )
    if session.variant.id != variant.id:
        raise JobError(
            f"asked for {variant.id}, the session opened {session.variant.id}: the bundle has two variants "
            "of one target, precision and budget"
        )
    return session


_INK, _KEPT = "#1f2937", "#2563eb"

_ARROWS = 14
"""Arrows of the flow along one side."""


def _draw(prediction: Prediction) -> Any:
    """Draws a prediction: up to three panels side by side."""
    figure_class = require("matplotlib.figure", "report", "drawing a prediction").Figure
    picture: NDArray[Any] | None = prediction.apex
    if picture is None and prediction.flow is not None:
        picture = prediction.flow[..., 2]
    panels = 1 + (picture is not None) + (prediction.flow is not None)
    figure = figure_class(figsize=(3.4 * panels, 3.6), layout="constrained")
    axes = list(np.atleast_1d(figure.subplots(1, panels)))
    figure.suptitle(repr(prediction)[len("Prediction(") : -1], color=_INK, fontsize=11)
    if picture is not None:
        panel = axes.pop(0)
        _draw_kept(panel, picture, prediction)
        panel.set_title("apex frame" if prediction.apex is not None else "strain", fontsize=9)
        panel.set_xlabel("blue: kept patches", fontsize=8)
    if prediction.flow is not None:
        _draw_flow(axes.pop(0), prediction.flow)
    bars = axes.pop(0)
    labels = list(prediction.probabilities)
    shares = [prediction.probabilities[label] for label in labels]
    drawn = bars.barh(
        labels, shares, color=[_KEPT if one == prediction.label else "#cbd5e1" for one in labels]
    )
    bars.bar_label(drawn, [f"{share:.1%}" for share in shares], padding=3, fontsize=8)
    bars.invert_yaxis()
    bars.set(xlim=(0, 1.25), xticks=[0, 0.5, 1])
    bars.set_title("probability", fontsize=9)
    bars.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_kept(axes: Any, picture: NDArray[Any], prediction: Prediction) -> None:
    """Draws a picture (H, W) whose dropped patches are dimmed and whose kept patches have a frame."""
    grid = prediction.grid
    kept = np.zeros(grid * grid, dtype=bool)
    kept[prediction.kept_tokens] = True
    extent = (0, grid, grid, 0)  # in patches: the same for pictures of any size
    axes.imshow(picture, cmap="gray", extent=extent)
    dimmed = np.zeros((grid, grid, 4))
    dimmed[..., 3] = np.where(kept.reshape(grid, grid), 0, 0.6)
    axes.imshow(dimmed, extent=extent, interpolation="nearest")
    rows, columns = np.divmod(np.flatnonzero(kept), grid)
    for row, column in zip(rows, columns, strict=True):
        corners = [column, column + 1, column + 1, column, column], [row, row, row + 1, row + 1, row]
        axes.plot(*corners, color=_KEPT, linewidth=0.8)
    axes.set(xticks=[], yticks=[])


def _draw_flow(axes: Any, flow: NDArray[np.float32]) -> None:
    """Draws strain as brightness and flow as arrows; the longest is two steps of their grid long."""
    side = flow.shape[0]
    axes.imshow(flow[..., 2], cmap="magma")
    step = max(1, side // _ARROWS)
    places = np.arange(step // 2, side, step)
    u, v = (flow[np.ix_(places, places)][..., channel] for channel in (0, 1))
    longest = float(np.hypot(u, v).max())
    if longest > 0:
        axes.quiver(
            places, places, u, v, color="white", width=0.006, angles="xy", scale_units="xy",
            scale=longest / (2 * step),
        )  # fmt: skip
    axes.set(xticks=[], yticks=[], xlim=(-0.5, side - 0.5), ylim=(side - 0.5, -0.5))
    axes.set_title("flow on strain", fontsize=9)
    axes.set_xlabel(f"longest arrow: {longest:.2f} pixels", fontsize=8)
