"""The small budget first, the full one only where the small one's answer is close.

The margin below which the full budget is asked is calibrated at export (`cascade_calibration`) and lies in the
manifest, one for each target and precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ptsr_edge.bundle import Bundle, Cascade, Variant
from ptsr_edge.core.errors import InputError


def probability_margin(probabilities: Mapping[str, float] | Sequence[float]) -> float:
    """The most probable class's lead over the second, in [0, 1]."""
    values = probabilities.values() if isinstance(probabilities, Mapping) else probabilities
    first, second = sorted(values, reverse=True)[:2]
    return float(first - second)


def goes_on(rule: Cascade, margin: float) -> bool:
    """Whether the full budget is to be asked after a small one that answered with this margin."""
    return margin < rule.margin


def cascade_of(bundle: Bundle, variant: Variant) -> Cascade:
    """The bundle's cascade for a variant's target and precision.

    Raises:
        InputError: it has none; the message says how to get one.
    """
    for rule in bundle.cascades:
        if (rule.target, rule.precision) == (variant.target, variant.precision):
            return rule
    have = ", ".join(f"{rule.target}/{rule.precision}" for rule in bundle.cascades) or "none"
    raise InputError(
        f"the bundle has no calibrated cascade for {variant.target}/{variant.precision} (it has {have}): "
        "export it with --cascade-loss, such as 0.05, the drop of UAR to allow"
    )
