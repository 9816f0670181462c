"""What the numbers of a report do not say."""

from __future__ import annotations

from ptsr_edge.report.comparison import Comparison
from ptsr_edge.stats.latency import CV_LIMIT

TAIL_SAMPLES = 24_576
"""Samples that MLPerf asks for before it trusts a 90th percentile at 99 % confidence."""


def instability(comparison: Comparison) -> list[str]:
    """A sentence for each profile whose last attempt was unstable: what disturbed it, and how often it was tried."""
    texts = []
    for source in comparison.sources:
        attempts = source.profile.attempts
        if attempts and attempts[-1].unstable:
            which = f"The profile {source.name} is" if len(comparison.sources) > 1 else "This profile is"
            times = "once" if len(attempts) == 1 else f"{len(attempts)} times"
            texts.append(
                f"{which} unstable: {attempts[-1].unstable}. It was measured {times}; times and ratios are to be "
                "taken with care until a quiet machine repeats them."
            )
    return texts


def caveats(comparison: Comparison) -> list[str]:
    """What the numbers do not say, in sentences."""
    rows = comparison.rows
    texts = [
        "The latencies are those of the machine, versions and thread count under Environment, at batch 1. "
        "Another device needs a profile of its own.",
        "What is timed is what Method says; finding the face and measuring the optical flow are not part "
        "of it unless Method names them.",
        "One multiply-add counts as one MAC. MACs bound what a budget can gain, they do not promise it.",
    ]
    counts = [row.measured.latency_ms.n for row in rows if row.measured.latency_ms]
    if counts and min(counts) < TAIL_SAMPLES:
        texts.append(
            f"The tail percentiles rest on {min(counts):,} samples and more. MLPerf asks for "
            f"{TAIL_SAMPLES:,} before it trusts a 90th percentile: read p99 as an impression."
        )
    spreads = [row.measured.latency_ms.cv for row in rows if row.measured.latency_ms]
    restless = sum(spread > CV_LIMIT for spread in spreads)
    if restless:
        texts.append(
            f"The latency of {restless} of {len(spreads)} variants varied by more than "
            f"{100 * CV_LIMIT:g} % (coefficient of variation, up to {100 * max(spreads):.0f} %): the machine "
            "was not quiet."
        )
    if len(comparison.sources) > 1:
        texts.append(
            "The profiles are separate runs. A ratio holds within its own profile, and the dashed line of "
            "the first picture joins points of one profile only."
        )
    trained = {str(source.profile.method.get("baseline_trained", "")) for source in comparison.sources}
    texts += [
        f"The baseline was trained {text}: what its accuracy differs by is not the architecture's alone."
        for text in sorted(trained)
        if text.startswith("otherwise")
    ]
    data = sorted({row.measured.accuracy.data for row in rows if row.measured.accuracy})
    if data:
        texts.append(
            "Accuracy is that of one set of weights on one set of samples. Another training seed moves it, "
            "and a difference of a hundredth is not evidence."
        )
    if "synthetic" in data:
        texts.append(
            "Accuracy on synthetic data shows what a smaller budget or precision keeps of what the "
            "checkpoint learnt. It is no evidence about people."
        )
    texts += [
        "The weights that ship with ptsr-edge were trained on the project's own synthetic data. They are "
        "for trying the toolkit, not for judging people.",
        "PTSR is a documented reconstruction from the publication's abstract and published building "
        "blocks, not its authors' code. A class is a pattern of movement, not what somebody feels.",
    ]
    return texts
