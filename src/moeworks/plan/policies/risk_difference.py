"""The strongest experts of each sign over the whole model: SteerMoE's rule, and the ranking that other policies use.

Source: SteerMoE (arXiv 2509.09660, section 3): rank by |score| over all layers, take the first n of either sign, let
no layer have more than k activated. Registered twice, as `risk_difference` and as `steermoe`: the two are one function.
The plan's operations are the paper's too: `promote` and `demote` with a margin of 0.01 above and below the token's
extremes before any edit. What differs, and why:

- `only_passing=True` is ours: the paper has no test of significance. `only_passing=False` is the paper.
- The paper adds the margin to log softmax and softmaxes again, which for softmax routers is the same as adding it to
  the logits; for other routers it is not the identity even with no expert listed, so that the contract's own selection
  scores are edited here.
- In the paper nothing caps deactivations, and E - k + 1 of them tie at the bottom and run all the same. Here a layer
  takes at most E - k.
- In the paper an expert on both lists is deactivated, since that is written last. Here such a plan is refused; scores
  of one sign cannot give one.
- Both count what a layer could not take; the paper drops it without a word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from moeworks.address import Address
from moeworks.errors import BadPlan
from moeworks.plan.policies.base import POLICIES, Chosen, Count, Wanted

if TYPE_CHECKING:
    from moeworks.find import Scores

__all__ = ["STEERMOE_COUNTS", "risk_difference"]

# Experts that the paper activates and deactivates (its table A.2, by grid search on task score and fluency), for
# comparison; the ones that weaken a safety behaviour are left out.
STEERMOE_COUNTS: Mapping[str, Mapping[str, tuple[int, int]]] = {
    "gpt-oss-120b": {"faithful": (5, 100), "safe": (5, 0)},
    "gpt-oss-20b": {"faithful": (10, 50), "safe": (5, 0)},
    "Mixtral-8x7B-Instruct": {"faithful": (10, 100), "safe": (20, 0)},
    "OLMoE-0125-Instruct": {"faithful": (0, 50), "safe": (5, 0)},
    "Phi-3.5-MoE": {"faithful": (10, 75), "safe": (5, 0)},
    "Qwen3-30B-A3B": {"faithful": (0, 500), "safe": (15, 0)},
}


@POLICIES.register("steermoe")
@POLICIES.register("risk_difference")
def risk_difference(
    scores: Scores,
    wanted: Wanted,
    *,
    only_passing: bool = True,
    layers: Sequence[int] | None = None,
    threshold: float = 0.0,
) -> Chosen:
    """Take the experts with the largest scores of each sign, over the whole model (SteerMoE, arXiv 2509.09660).

    The first n of the ranking are taken. Those that a layer cannot take, because it already has k promoted for
    instance, are passed over and not replaced, as in the paper; unlike there, they are counted.

    Args:
        scores: from `find`; ties go to the earlier layer, then to the smaller expert.
        wanted: how many of which sign.
        only_passing: only experts that pass the false discovery rate.
        layers: only these layers, such as a window in the middle (arXiv 2510.04694); None for all.
        threshold: only experts whose absolute score is above this, in the score's unit.

    Raises:
        BadPlan: fewer experts are eligible than asked for.
    """
    table = {name: np.asarray(scores.table[name].to_numpy()) for name in ("layer", "expert", "score", "passes")}
    addresses = [Address(*map(int, pair)) for pair in zip(table["layer"], table["expert"], strict=True)]
    strong = np.abs(table["score"]) > threshold  # False for NaN
    if layers is not None:
        strong &= np.isin(table["layer"], list(layers))
    eligible = strong & table["passes"] if only_passing else strong

    def ranked(count: Count, sign: int, spared: frozenset[Address], verb: str) -> list[Address]:
        value = table["score"] * sign
        order = [i for i in np.lexsort((table["expert"], table["layer"], -value)) if value[i] > 0]
        names = [addresses[i] for i in order if eligible[i] and addresses[i] not in spared]
        if (len(names) < count) if count != "all" else not names:
            others = sum(1 for i in order if strong[i] and addresses[i] not in spared)
            raise BadPlan(_too_few(count, len(names), others, verb, only_passing))
        return names if count == "all" else names[:count]

    up: list[Address] = []
    down: list[Address] = []
    passed_over: dict[str, int] = {}
    for verb, target, count, sign, spared in (
        ("promote", up, wanted.promote, wanted.sign, frozenset[Address]()),
        ("demote", down, wanted.demote, -wanted.sign, wanted.protected),
    ):
        for address in ranked(count, sign, spared, verb) if count else []:
            target.append(address)
            if not wanted.fits(*([a for a in chosen if a.layer == address.layer] for chosen in (up, down))):
                target.pop()
                reason = f"{verb}: the layer takes no more"
                passed_over[reason] = passed_over.get(reason, 0) + 1
    return Chosen(promoted=tuple(up), demoted=tuple(down), passed_over=passed_over)


def _too_few(count: Count, found: int, strong: int, verb: str, only_passing: bool) -> str:
    asked = "Experts" if count == "all" else f"{count} experts"
    if not only_passing:
        return f"{asked} to {verb} were asked for, {found} have a score of that sign in these limits; ask for fewer."
    if not found:
        return (
            f"{asked} to {verb} were asked for, but no expert passes the false discovery rate: there is nothing to "
            f"steer by; only_passing=False takes them from the {strong} that may be chance."
        )
    return (
        f"{asked} to {verb} were asked for, {found} pass the false discovery rate; ask for fewer, or set "
        f"only_passing=False to take others of the {strong} that may be chance."
    )
