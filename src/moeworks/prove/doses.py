"""Doses of a plan: prefixes of its ranking, and longer plans where the scores are at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from moeworks.address import Address
from moeworks.plan import Plan, Replay, TopK, with_amount
from moeworks.plan.clauses import units
from moeworks.plan.guards import problems
from moeworks.plan.schema import Neurons, Operation

if TYPE_CHECKING:
    from moeworks.artefact import ModelIdentity
    from moeworks.find import Scores

__all__ = ["amounts_of", "at_amount", "listed_experts"]


def listed_experts(plan: Plan) -> int:
    """Return how many experts and neurons the plan's operations list, those listed twice counted twice."""
    return sum(len(units(operation)) for operation in plan.operations)


def amounts_of(plan: Plan, doses: Sequence[float], *, longer: bool) -> list[int]:
    """Return the numbers of experts at the doses, ascending; `longer` says whether doses above 1 are possible."""
    experts = listed_experts(plan)
    amounts = {max(1, round(dose * experts)) for dose in doses if dose <= 1 or longer} if experts else set()
    return sorted(amounts)


def at_amount(plan: Plan, amount: int, identity: ModelIdentity, scores: Scores | None = None) -> Plan | None:
    """Return the plan with so many experts: a prefix of its ranking, or the ranking carried on by the scores.

    None where the scores have too few further experts that fit.
    """
    have = listed_experts(plan)
    if amount <= have:
        return with_amount(plan, experts=amount)
    if scores is None:
        return None
    while have < amount:
        longer = _one_more(plan, scores, identity)
        if longer is None:
            return None
        plan, have = longer, have + 1
    return plan


def _one_more(plan: Plan, scores: Scores, identity: ModelIdentity) -> Plan | None:
    """Give the operation that grew least its next expert: the strongest with the sign of those that it lists.

    Operations on neurons do not grow: None where there is one.
    """
    if any(isinstance(operation, Neurons) for operation in plan.operations):
        return None
    score = {
        Address(int(layer), int(expert)): float(value)
        for layer, expert, value in zip(
            scores.column("layer"), scores.column("expert"), scores.column("score"), strict=True
        )
    }
    listing = [o for o in plan.operations if not isinstance(o, (TopK, Replay, Neurons))]
    taken = {address for operation in listing for address in operation.experts} | set(plan.protected)
    for operation in sorted(listing, key=lambda o: len(o.experts)):
        sign = np.sign(np.median([score.get(address, 0.0) for address in operation.experts]))
        further = [address for address, value in score.items() if value * sign > 0 and address not in taken]
        for address in sorted(further, key=lambda a: (-abs(score[a]), a)):
            longer = _with_expert(plan, operation, address)
            if not problems(longer, identity):
                return longer
    return None


def _with_expert(plan: Plan, operation: Operation, address: Address) -> Plan:
    if isinstance(operation, (TopK, Replay, Neurons)):
        return plan
    grown = operation.model_copy(update={"experts": (*operation.experts, address)})
    operations = tuple(grown if o is operation else o for o in plan.operations)
    return plan.model_copy(update={"operations": operations, "evidence": None})
