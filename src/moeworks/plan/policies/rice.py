"""RICE: multiply the combine weights of the few strongest experts wherever the router chose them.

Source: RICE (arXiv 2505.14681); abstract read, the steering known from summaries: the top l experts of the whole model
(2, tried 1 to 5) by signed nPMI; wherever one is selected already its weight is multiplied by beta (swept 2 to 512; one
summary says 64); the others stay. Whether weights are renormalised afterwards is not known. It matters: of weights .6
and .4, with beta 64 on the second, renormalising leaves .023 and .977, and not renormalising multiplies what the second
writes by 64. Not renormalised here unless asked for; `moeworks.prove.residual_norms` shows what it does to the
residual stream, and `evaluate` reports it for plans that scale up on engines that can measure it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from moeworks.plan.policies.base import POLICIES, Chosen, Manner, Wanted, acts
from moeworks.plan.policies.risk_difference import risk_difference

if TYPE_CHECKING:
    from moeworks.find import Scores

__all__ = ["rice"]


@POLICIES.register("rice")
@acts(Manner(op="scale", strength=64.0, turns="up", source="arXiv 2505.14681"))
def rice(
    scores: Scores,
    wanted: Wanted,
    *,
    only_passing: bool = True,
    layers: Sequence[int] | None = None,
    threshold: float = 0.0,
) -> Chosen:
    """Scale the weights of the top l experts by beta (the strength, 64), wherever they are chosen.

    Options and errors are those of `risk_difference`.
    """
    return risk_difference(scores, wanted, only_passing=only_passing, layers=layers, threshold=threshold)
