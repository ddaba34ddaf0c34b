"""Dominance: which experts belong to one value of a label, because no other value uses them half as much (Monet)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeworks.address import Address
from moeworks.errors import BadData
from moeworks.find.scores.base import GROUP_SCORES, Groups, Report, reads

if TYPE_CHECKING:
    from moeworks.find.artefact import Scores

__all__ = ["dominance"]

Array = NDArray[Any]


def _admits(score: Array, *, ratio: float = 2.0) -> Array:
    if not ratio >= 1:
        raise BadData(f"a ratio of {ratio} is no dominance; it is 1 or more, 2 in the paper.")
    return np.asarray((score > 0) & (score >= (ratio - 1) / (ratio + 1) - 1e-12))


def _report(scores: Scores, rates: Array, names: tuple[str, ...], options: dict[str, Any]) -> Report:
    """Say how many experts each value has by the ratio alone, and how many of them pass the null too."""
    ratio = options.get("ratio", 2.0)
    ranked = np.sort(rates, axis=0)  # (g, experts)
    dominant = (ranked[-1] > 0) & (ranked[-1] >= ratio * ranked[-2] * (1 - 1e-12))
    own = rates.argmax(0)  # (experts,)
    passes = scores.column("passes")
    addresses = [
        str(Address(int(a), int(b))) for a, b in zip(scores.column("layer"), scores.column("expert"), strict=True)
    ]
    facts: dict[str, Any] = {"ratio": ratio, "by_ratio": {}, "experts": {}}
    words = []
    for place, name in enumerate(names):
        mine = np.flatnonzero(dominant & (own == place))
        facts["by_ratio"][name] = [addresses[row] for row in mine]
        facts["experts"][name] = [addresses[row] for row in mine if passes[row]]
        words.append(f"{name} {len(mine)} ({len(facts['experts'][name])})")
    note = f"Experts whose mass is {ratio:g} times the second value's, of them passing the null: {', '.join(words)}."
    return Report(facts, (note,))


@GROUP_SCORES.register("dominance")
@reads("weights", tail="upper", admits=_admits, report=_report)
def dominance(groups: Groups, *, ratio: float = 2.0) -> Array:
    """Return how far one value's routing mass stands above all others', (b, experts), from -1 to 1.

    With m the mean combine weight of an expert over a value's tokens, the score is (m1 - m2) / (m1 + m2) for the
    largest and the second largest value or, if one value is asked for, for it and the largest of the others. An
    expert belongs to a value if its mass is `ratio` times the second's: a score of (ratio - 1) / (ratio + 1), 1/3 for
    the paper's 2. An expert passes if it does and stands the null, in which documents change their values. The ratio
    itself is not the score because it is infinite for experts of one value.

    Source: Monet (arXiv 2412.04139, section 5; no script for it was released). On ordinary mixtures expect none:
    by this rule OLMoE has no domain expert.
    """
    rates = groups.rates  # (b, g, experts)
    if groups.target is None:
        ranked = np.partition(rates, -2, axis=1)
        first, second = ranked[:, -1], ranked[:, -2]
    else:
        first = rates[:, groups.target]
        second = np.delete(rates, groups.target, axis=1).max(1)
    total = first + second
    return np.asarray(np.divide(first - second, total, out=np.zeros_like(total), where=total > 0))
