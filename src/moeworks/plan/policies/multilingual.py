"""Multilingual routing: turn task experts up in the middle layers, softly by part of the logits' spread, or hard.

Source: Multilingual Routing in Mixture-of-Experts (arXiv 2510.04694), interventions on the logits before the softmax:
soft z[e] += lambda × std over experts of z; hard z[e] = max z + N(0, 1e-6), or min z for suppression. The formulas
are known from an independent implementation that cites the paper's equations, the windows and the numbers from a
review of it, not from the paper's own text.

Differences. Experts that are set to the maximum are chosen for certain here (and to the minimum, never); the paper adds
noise of 1e-6 to break ties with the token's best, which leaves to chance whether they are chosen. The paper's windows
are 8-35 of 48 layers (Qwen3-30B-A3B), 8-17 of 32 (Phi-3.5-MoE) and 4-19 of 24 (gpt-oss-20b), whether counted from 0
or 1 is not certain; without `layers` the middle half of the layers is taken, which is a rule of ours. The paper takes
every expert above a threshold tau: `promote="all", threshold=tau`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from moeworks.errors import BadPlan
from moeworks.plan.policies.base import POLICIES, Chosen, Manner, Wanted, acts
from moeworks.plan.policies.risk_difference import risk_difference

if TYPE_CHECKING:
    from moeworks.find import Scores

__all__ = ["middle_layers", "multilingual_hard", "multilingual_soft"]

STABLE = 1.0  # largest |lambda| that the paper calls stable


def middle_layers(layers: Sequence[int]) -> list[int]:
    """Return the middle half of a model's layers with experts: those from a quarter to three quarters of the depth."""
    count = len(layers)
    return list(layers[count // 4 : max(count - count // 4, count // 4 + 1)])


@POLICIES.register("multilingual_soft")
@acts(Manner(op="add", strength=0.5, unit="std", source="arXiv 2510.04694, soft"))
def multilingual_soft(
    scores: Scores,
    wanted: Wanted,
    *,
    only_passing: bool = True,
    layers: Sequence[int] | None = None,
    threshold: float = 0.0,
    beyond_stable: bool = False,
) -> Chosen:
    """Add lambda (the strength, 0.5) times the token's standard deviation over experts to the experts' logits.

    Args:
        scores: from `find`; the paper's are `frequency_difference` with the macro average.
        wanted: how many.
        only_passing: only experts that pass the false discovery rate; the paper has no test.
        layers: the window; None for the middle half of the layers.
        threshold: tau, the score above which an expert counts.
        beyond_stable: allow |lambda| above 1, where the paper saw models break.

    Raises:
        BadPlan: lambda is above 1, or fewer experts are eligible than asked for.
    """
    if wanted.strength is not None and abs(wanted.strength) > STABLE and not beyond_stable:
        raise BadPlan(
            f"a lambda of {wanted.strength:g} standard deviations is outside of what is known to be stable (1 and "
            "below, arXiv 2510.04694); lower the strength, or set the policy's option beyond_stable=true."
        )
    return risk_difference(
        scores, wanted, only_passing=only_passing, layers=_window(layers, wanted), threshold=threshold
    )


@POLICIES.register("multilingual_hard")
@acts(Manner(op="demote", margin=0.0, source="arXiv 2510.04694, hard"))
def multilingual_hard(
    scores: Scores,
    wanted: Wanted,
    *,
    only_passing: bool = True,
    layers: Sequence[int] | None = None,
    threshold: float = 0.0,
) -> Chosen:
    """Set the experts' logits to the token's maximum (up) or minimum (down), in a window of layers.

    Args and errors are those of `multilingual_soft`; there is no lambda.
    """
    return risk_difference(
        scores, wanted, only_passing=only_passing, layers=_window(layers, wanted), threshold=threshold
    )


def _window(layers: Sequence[int] | None, wanted: Wanted) -> Sequence[int]:
    return middle_layers(wanted.layers) if layers is None else layers
