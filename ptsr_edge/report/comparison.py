"""Profiles side by side: the variants of a report, under names that tell them apart, and how numbers are written.

A latency is compared only within the profile it was measured in; an accuracy only with others on the
same data under the same protocol.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ptsr_edge.core.errors import InputError
from ptsr_edge.core.files import DAMAGED_ARRAYS, read_arrays
from ptsr_edge.profile.schema import PROFILE, Measured, Missing, Profile, read_profile
from ptsr_edge.stats.classification import uar_half_width, uar_interval
from ptsr_edge.stats.latency import Ratio, process_interval

_PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "fp8", "int8", "int4")


@dataclass(frozen=True)
class Source:
    """A profile, the folder it lies in, and a name for it that no other source has."""

    name: str
    folder: Path
    profile: Profile


@dataclass(frozen=True, eq=False)
class ComparedVariant:
    """One variant of one profile; `name` tells it from every other one in as few words as will do."""

    name: str
    source: Source
    measured: Measured
    is_baseline: bool

    @property
    def p50_ms(self) -> float | None:
        """The median latency, or None where it was not measured."""
        return self.measured.latency_ms.p50 if self.measured.latency_ms else None

    @property
    def uar(self) -> float | None:
        """The unweighted average recall, or None where it was not measured."""
        return self.measured.accuracy.uar if self.measured.accuracy else None

    @property
    def uar_drop(self) -> float | None:
        """The baseline's UAR minus this one's, or None where it was not measured."""
        return self.measured.accuracy.uar_drop if self.measured.accuracy else None

    def why_missing(self, field: str) -> Missing | None:
        """Returns why a field such as `stages.flow_ms` is null: its own entry, or that of what it lies in."""
        while field and field not in self.measured.missing:
            field = field.rpartition(".")[0]
        return self.measured.missing.get(field)


@dataclass(frozen=True)
class Comparison:
    """The rows of all sources: sources in the order given, baselines first, then by falling budget."""

    sources: tuple[Source, ...]
    rows: tuple[ComparedVariant, ...]

    @property
    def model(self) -> str:
        """The model that all sources are of."""
        return self.sources[0].profile.model

    @property
    def labels(self) -> list[str]:
        """The classes, in the order of the confusion matrices."""
        return self.sources[0].profile.labels

    def reference(self, row: ComparedVariant) -> ComparedVariant | None:
        """Returns the full-token baseline that `row` was measured against, if it is among the rows."""
        ratio = row.measured.ratio
        wanted = (ratio.against if ratio else None, row.source.profile.baseline)
        near = [other for other in self.rows if other.source is row.source and other.is_baseline]
        for name in wanted:
            for other in near:
                if other.measured.id == name:
                    return other
        return near[0] if len(near) == 1 else None

    def comparable(self) -> list[ComparedVariant]:
        """Returns the rows whose accuracy is on the same data under the same protocol: the largest group."""
        judged = [row for row in self.rows if row.measured.accuracy]
        groups = Counter(accuracy_key(row) for row in judged)
        if not groups:
            return []
        chosen = groups.most_common(1)[0][0]
        return [row for row in judged if accuracy_key(row) == chosen]


def read_sources(folders: Sequence[Path]) -> list[Source]:
    """Reads profiles that may stand in one report, under names that differ.

    Raises:
        InputError: none, the same twice, one that cannot be read, or profiles of different models.
    """
    if not folders:
        raise InputError("no profile given: --profile DIR names a folder that `ptsr-edge profile` wrote")
    seen: set[Path] = set()
    sources: list[Source] = []
    for folder in folders:
        place = folder.resolve()
        if place in seen:
            raise InputError(f"{folder} was given twice")
        seen.add(place)
        profile = read_profile(folder)
        _check_numbers(profile, folder)
        stem = place.name or "profile"
        taken = {source.name for source in sources}
        names = [stem, *(f"{stem}-{number}" for number in range(2, len(folders) + 2))]
        sources.append(Source(next(name for name in names if name not in taken), folder, profile))
    first = sources[0]
    for source in sources[1:]:
        if source.profile.model != first.profile.model:
            raise InputError(
                f"{source.folder} profiles {source.profile.model!r} and {first.folder} "
                f"{first.profile.model!r}: one report is about one model"
            )
        if source.profile.labels != first.profile.labels:
            raise InputError(
                f"{source.folder} has the classes {', '.join(source.profile.labels)} and {first.folder} "
                f"{', '.join(first.profile.labels)}: they cannot stand in one report"
            )
    return sources


def _check_numbers(profile: Profile, folder: Path) -> None:
    """Refuses values that no measurement can give: they would make charts that nobody can trust."""
    for place, number in _floats(profile.model_dump(mode="python"), ""):
        if not math.isfinite(number):
            raise InputError(f"{folder / PROFILE}: {place} must be a finite number, got {number}")
    for variant in profile.variants:
        matrix = variant.accuracy.confusion if variant.accuracy else None
        size = len(profile.labels)
        if matrix is not None and (len(matrix) != size or any(len(line) != size for line in matrix)):
            raise InputError(
                f"{folder / PROFILE}: the confusion matrix of {variant.id} must be "
                f"{size} x {size}, one line for each of {', '.join(profile.labels)}"
            )
    _check_patches(profile, folder)


def _check_patches(profile: Profile, folder: Path) -> None:
    patches = profile.kept_patches
    if patches is None:
        return
    count = len(patches.strain)
    lengths = [len(patches.names), len(patches.labels), *map(len, patches.kept.values())]
    square = all({len(line) for line in image} == {len(image)} for image in patches.strain)
    inside = all(
        0 <= index < patches.grid**2 for budget in patches.kept.values() for kept in budget for index in kept
    )
    if any(length != count for length in lengths) or not square or not inside:
        raise InputError(
            f"{folder / PROFILE}: kept_patches must have one name, one label, one square image and "
            f"one list of patches below {patches.grid**2} for each of its samples"
        )


def _floats(data: Any, place: str) -> Iterator[tuple[str, float]]:
    if isinstance(data, float):
        yield place, data
    elif isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from _floats(value, f"{place}.{key}" if place else str(key))


def compare(sources: Sequence[Source]) -> Comparison:
    """Puts the variants of all sources side by side under short names that differ."""
    rows = [
        ComparedVariant("", source, measured, _is_baseline(source.profile, measured))
        for source in sources
        for measured in source.profile.variants
    ]
    order = {source.name: place for place, source in enumerate(sources)}
    rows.sort(
        key=lambda row: (
            order[row.source.name],
            not row.is_baseline,
            -row.measured.tokens,
            precision_rank(row.measured.precision),
            row.measured.target,
            row.measured.id,
        )
    )
    return Comparison(tuple(sources), tuple(_named(rows)))


def precision_rank(precision: str) -> tuple[int, str]:
    """Sorts precisions from wide to narrow, unknown ones last."""
    known = precision in _PRECISIONS
    return (_PRECISIONS.index(precision) if known else len(_PRECISIONS), precision)


def pareto(rows: Iterable[ComparedVariant]) -> list[ComparedVariant]:
    """Returns the rows that no other row beats in both latency (p50) and UAR, by rising latency."""
    known = [(row.p50_ms, -row.uar, row) for row in rows if row.p50_ms is not None and row.uar is not None]
    front: list[ComparedVariant] = []
    best = float("inf")
    for _, loss, row in sorted(known, key=lambda entry: entry[:2]):
        if loss < best:
            front.append(row)
            best = loss
    return front


def undominated(rows: Sequence[ComparedVariant]) -> list[ComparedVariant]:
    """Returns the rows beside which no other is as good in latency (p50), UAR and size, and better in one."""

    def costs(row: ComparedVariant) -> tuple[float, float, float]:
        return (row.p50_ms or 0.0, -(row.uar or 0.0), row.measured.size_bytes)

    def beats(one: ComparedVariant, other: ComparedVariant) -> bool:
        mine, its = costs(one), costs(other)
        return mine != its and all(a <= b for a, b in zip(mine, its, strict=True))

    return [row for row in rows if not any(beats(other, row) for other in rows)]


def uar_bounds(row: ComparedVariant) -> tuple[float, float] | None:
    """Returns the 95 % interval of a row's UAR: over subjects where the answers were recorded, else binomial."""
    accuracy, judged = row.measured.accuracy, row.source.profile.judged
    if accuracy is None:
        return None
    if judged is not None and accuracy.predicted is not None:
        return uar_interval(judged.truth, accuracy.predicted, judged.subject)
    half = uar_half_width([accuracy.confusion], added=2) if accuracy.confusion else 0.0
    return (accuracy.uar - half, accuracy.uar + half) if half else None


@dataclass(frozen=True)
class Step:
    """One of the effects that a variant's speed is made of: `what` took the place of something slower, `times` as fast.

    `low` and `high` are the 95 % interval, None where it is not known.
    """

    kind: Literal["runtime", "precision", "runtime and precision", "selection"]
    what: str
    times: float
    low: float | None
    high: float | None

    @property
    def told(self) -> str:
        """The step in a clause: `int8: 1.9x`."""
        return f"{self.what}: {times_text(self.times, self.low, self.high, interval=False)}"


def steps_of(row: ComparedVariant, comparison: Comparison) -> list[Step] | None:
    """Returns what makes a variant faster than its baseline, in the order runtime, precision, selection.

    A step that changes nothing is left out. They are ratios of the full-token ViT built as the baseline, in the variant's
    runtime, in its precision too, and of the variant against the last of these; their product is `ratio`, up to noise.

    Returns:
        The steps; None where one of the ratios was not measured.
    """
    base, selection = comparison.reference(row), row.measured.ratio_same_precision
    if row.is_baseline or base is None or row.measured.ratio is None or selection is None:
        return None
    target, precision = row.measured.target, row.measured.precision
    vits = {
        (other.measured.target, other.measured.precision): other
        for other in comparison.rows
        if other.is_baseline and other.source is row.source
    }
    alike, plain = vits.get((target, precision)), vits.get((target, base.measured.precision))
    same_target, same_precision = target == base.measured.target, precision == base.measured.precision
    steps = []
    if alike is None:
        return None
    if alike is not base:
        whole, runtime = alike.measured.ratio, None if plain is None else plain.measured.ratio
        if whole is None:
            return None
        if same_target or same_precision:
            steps.append(
                _step("precision" if same_target else "runtime", precision if same_target else target, whole)
            )
        elif runtime is None:
            steps.append(_step("runtime and precision", f"{target} with {precision}", whole))
        else:
            steps += [_step("runtime", target, runtime), _quotient("precision", precision, whole, runtime)]
    return [*steps, _step("selection", f"{budget_text(row.measured.keep_rate)} of the tokens", selection)]


def _step(kind: Any, what: str, ratio: Ratio) -> Step:
    return Step(kind, what, ratio.median, ratio.low, ratio.high)


def _quotient(kind: Any, what: str, whole: Ratio, part: Ratio) -> Step:
    """Returns the step from `part` to `whole`, with an interval where both were taken from the same starts of processes."""
    each, others = whole.per_process, part.per_process
    if len(each) < 2 or len(each) != len(others):
        return Step(kind, what, whole.median / part.median, None, None)
    return Step(kind, what, *process_interval([one / other for one, other in zip(each, others, strict=True)]))


def raw_samples(row: ComparedVariant) -> tuple[NDArray[np.float64] | None, str]:
    """Returns the latency samples of a row in milliseconds, or None and the reason why there are none.

    Samples whose median is not the recorded p50 (within 2 %) are not those of the record, or are in
    another unit: they are refused.
    """
    stored = row.measured.raw_samples
    if stored is None or row.measured.latency_ms is None:
        return None, "no raw samples were recorded"
    path = (row.source.folder / stored).resolve()
    if not path.is_relative_to(row.source.folder.resolve()):
        return None, f"{stored} lies outside the profile's folder"
    if not path.is_file():
        return None, f"{stored} is not beside profile.json"
    try:
        samples = _read_samples(path, row.measured.id)
    except DAMAGED_ARRAYS as error:
        return None, f"{stored} cannot be read ({error})"
    p50 = row.measured.latency_ms.p50
    if samples.size == 0 or not np.all(samples > 0) or abs(np.median(samples) / p50 - 1) > 0.02:
        return None, f"{stored} does not hold the samples of the record: their median is not its p50"
    return samples, ""


def accuracy_key(row: ComparedVariant) -> tuple[str, str] | None:
    """Returns what an accuracy shares with those that it may be compared with: data and protocol."""
    accuracy = row.measured.accuracy
    return (accuracy.data, accuracy.protocol) if accuracy else None


def _is_baseline(profile: Profile, measured: Measured) -> bool:
    ratios = [ratio for other in profile.variants for ratio in (other.ratio, other.ratio_same_precision)]
    against = {ratio.against for ratio in ratios if ratio}
    return measured.bundle is None or measured.id == profile.baseline or measured.id in against


def _named(rows: list[ComparedVariant]) -> list[ComparedVariant]:
    def differ(values: Iterable[object]) -> bool:
        return len(set(values)) > 1

    precisions = differ(row.measured.precision for row in rows)
    targets = differ(row.measured.target for row in rows)
    bundles = differ(row.measured.bundle for row in rows if not row.is_baseline)
    sources = differ(row.source.name for row in rows)
    names = []
    for row in rows:
        measured = row.measured
        parts = ["full ViT" if row.is_baseline else budget_text(measured.keep_rate)]
        parts += [measured.precision] if precisions else []
        parts += [measured.target] if targets else []
        parts += [PurePath(measured.bundle).name] if bundles and measured.bundle else []
        parts += [row.source.name] if sources else []
        names.append(" ".join(parts))
    twice = {name for name, count in Counter(names).items() if count > 1}
    return [
        replace(row, name=f"{name} ({row.measured.id})" if name in twice else name)
        for row, name in zip(rows, names, strict=True)
    ]


def _read_samples(path: Path, variant: str) -> NDArray[np.float64]:
    """Reads milliseconds from an array of them or from an archive, where a name ending in `_ns` tells the unit."""
    stored = read_arrays(path)
    key = next((name for name in ("", variant, "samples_ns", "samples_ms") if name in stored), None)
    if key is None:
        raise ValueError(f"it holds none of the arrays {', '.join((variant, 'samples_ns', 'samples_ms'))}")
    samples = np.asarray(stored[key], dtype=np.float64).ravel()
    return samples / 1e6 if key.endswith("_ns") else samples


# ---------------------------------------------------------------------------------------------
# How numbers are written


def budget_text(keep_rate: float) -> str:
    """Writes a keep rate as a share of the tokens: `25 %`."""
    return f"{round(100 * keep_rate, 1):g} %"


def ratio_text(ratio: Ratio) -> str:
    """Writes a ratio with its interval, in as many decimals as its width deserves: `2.6x [2.5, 2.7]`."""
    return times_text(ratio.median, ratio.low, ratio.high)


def times_text(middle: float, low: float | None, high: float | None, *, interval: bool = True) -> str:
    """Writes how many times as fast something is, with its interval where that is known and asked for."""
    known = low is not None and high is not None
    places = 1 if middle >= 1.5 and (not known or high - low >= 0.1) else 2  # type: ignore[operator]
    text = f"{middle:.{places}f}x"
    return f"{text} [{low:.{places}f}, {high:.{places}f}]" if known and interval else text


def three_digits(value: float) -> str:
    """Writes a number with three digits, all of them: `3.10`, `12.0`, `120`, `1,234`."""
    places = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:#.3g}" if 0 < value < 0.9995 else f"{value:,.{places}f}"


def short_ms(value: float) -> str:
    """Writes milliseconds for a sentence, where two digits are enough: `0.53`, `3.1`, `120`."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def quantity(count: float) -> str:
    """Writes a count with three digits and a decimal prefix: `1.23 G`."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= 0.9995 * size:
            return f"{count / size:.3g} {prefix}"
    return f"{count:.3g}"


def bytes_text(count: float) -> str:
    """Writes a size with three digits: `10.9 MB`."""
    return f"{quantity(count)}B" if count >= 999.5 else f"{count:g} B"


def percent(share: float, places: int = 0) -> str:
    """Writes a share: `34 %`."""
    return f"{100 * share:.{places}f} %"


def signed(value: float) -> str:
    """Writes a difference with three decimals and its sign: `+0.012`, and `0.000` for none."""
    return f"{value:+.3f}" if round(value, 3) else "0.000"


def interval_text(low: float, high: float) -> str:
    """Writes the interval of a difference: `[-0.010, +0.050]`."""
    return f"[{signed(low)}, {signed(high)}]"


def difference_text(value: float, low: float, high: float) -> str:
    """Writes a difference with its interval; called `none` where the interval holds zero."""
    return f"{'none' if low <= 0 <= high else signed(value)} {interval_text(low, high)}"


def rounded_up(value: float) -> str:
    """Writes a bound with three decimals, rounded up: the rounded one holds too."""
    return f"{math.ceil(1000 * value - 1e-9) / 1000:.3f}"


def sentence(text: str) -> str:
    """Makes a sentence of a clause: a capital letter in front, a full stop behind."""
    first = text[:1].upper() if text[1:3].lstrip()[:1].islower() else text[:1]
    return f"{first}{text[1:].removesuffix('.')}."
