"""A plan as a dial: the same plan at another strength, where its operations have one."""

from __future__ import annotations

import math

from moeworks.errors import BadPlan
from moeworks.plan.schema import Add, Neurons, Operation, Plan, Scale

__all__ = ["with_strength"]


def with_strength(plan: Plan, strength: float) -> Plan:
    """Return the plan at a strength: 0 does nothing, 1 is the plan itself, in between and beyond it is turned.

    `add` adds strength times as much; a factor f of `scale`, and of neurons that are scaled, becomes
    1 + strength (f - 1), so that 0 leaves weights alone. Other operations are on or off: a strength other than 0 and 1
    is refused for them. The evidence of the plan is left out where the strength is another: it was not measured so.

    Raises:
        BadPlan: a strength that is negative or no number, an operation that has no strength, or a factor that would
            turn negative and so mean something else.
    """
    if not math.isfinite(strength) or strength < 0:
        raise BadPlan(f"a strength is a number from 0 on, not {strength}.")
    if strength == 1:
        return plan
    if strength == 0:
        return plan.model_copy(update={"operations": (), "evidence": None})
    turned = tuple(_turned(number, operation, strength) for number, operation in enumerate(plan.operations, 1))
    return plan.model_copy(update={"operations": turned, "evidence": None})


def _turned(number: int, operation: Operation, strength: float) -> Operation:
    place = f"operation {number} ({operation.op})"
    if isinstance(operation, Add):
        return operation.model_copy(update={"strength": operation.strength * strength})
    if isinstance(operation, Scale):
        return operation.model_copy(update={"factor": _factor(operation.factor, strength, place)})
    if isinstance(operation, Neurons) and operation.action == "scale":
        given = operation.factor
        assert given is not None
        factor = tuple(_factor(f, strength, place) for f in given) if isinstance(given, tuple) else None
        return operation.model_copy(update={"factor": factor or _factor(float(given), strength, place)})  # type: ignore[arg-type]
    raise BadPlan(
        f"{place} is on or off: it has no strength {strength:g}; use 0 or 1, or a plan made of add or scale operations."
    )


def _factor(factor: float, strength: float, place: str) -> float:
    turned = 1 + strength * (factor - 1)
    if turned < 0 <= factor:
        raise BadPlan(f"{place}: strength {strength:g} would turn its factor {factor:g} into {turned:g}, below 0.")
    return turned
