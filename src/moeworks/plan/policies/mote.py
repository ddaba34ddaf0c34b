"""MoTE: switch a behaviour's experts off without a replacement, or force them on.

Source: MoTE (arXiv 2502.11096); the operations are known from summaries only: off sets the expert's combine weight to 0
and renormalises the others that were selected, so that fewer than k run; on forces it into the selected set. Its
scores are the functional resonance map (`frequency_map`), of which it takes the top 10.

Difference: with which weight an expert is forced on is not said. Here it gets the logit of the token's best expert
(`promote` with a margin of 0), the weights of all follow from the router's rule, and the weakest choice gives way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from moeworks.plan.policies.base import POLICIES, Chosen, Manner, Wanted, acts
from moeworks.plan.policies.risk_difference import risk_difference

if TYPE_CHECKING:
    from moeworks.find import Scores

__all__ = ["mote_off", "mote_on"]


@POLICIES.register("mote_off")
@acts(Manner(op="mask", refill=False, renormalise=True, turns="down", source="arXiv 2502.11096, off"))
def mote_off(
    scores: Scores,
    wanted: Wanted,
    *,
    only_passing: bool = True,
    layers: Sequence[int] | None = None,
    threshold: float = 0.0,
) -> Chosen:
    """Set the experts' weights to 0 after the choice; the others grow to the token's former total, nothing refills.

    Options and errors are those of `risk_difference`.
    """
    return risk_difference(scores, wanted, only_passing=only_passing, layers=layers, threshold=threshold)


@POLICIES.register("mote_on")
@acts(Manner(op="demote", margin=0.0, turns="up", source="arXiv 2502.11096, on"))
def mote_on(
    scores: Scores,
    wanted: Wanted,
    *,
    only_passing: bool = True,
    layers: Sequence[int] | None = None,
    threshold: float = 0.0,
) -> Chosen:
    """Force the experts into every token's choice, with the logit of the token's best.

    Options and errors are those of `risk_difference`; at most k of a layer fit.
    """
    return risk_difference(scores, wanted, only_passing=only_passing, layers=layers, threshold=threshold)
