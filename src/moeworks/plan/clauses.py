"""Algebra of where clauses: the exact intersection of two, whether two can meet, and a plan's clause pushed down.

A token belongs to one phase, one position, one id and one chat turn, and its request has one value for each label,
so that these fields intersect as sets. It may lie in several named spans, so that those do not.
"""

from __future__ import annotations

from typing import Any

from moeworks.address import Address, NeuronAddress
from moeworks.errors import BadPlan
from moeworks.plan.schema import Neurons, Operation, Plan, Replay, TopK
from moeworks.where import Where

__all__ = ["can_meet", "intersect", "listed", "narrow", "narrowed", "token_part", "touches", "units"]

_SETS = ("phase", "role", "token", "layer")


def intersect(first: Where, second: Where) -> Where | None:
    """Return the one clause that selects what both select; None where nothing can be in both.

    Raises:
        BadPlan: no single clause says it: two different lists of spans, a window from the start with one from the
            end of the prompt, or two exclusions of different kinds.
    """
    fields: dict[str, Any] = {}
    for name in _SETS:
        fields[name] = _common(getattr(first, name), getattr(second, name))
    labels = {**first.labels, **second.labels}
    fields["labels"] = {name: _common(first.labels.get(name), second.labels.get(name)) for name in labels}
    if () in fields.values() or () in fields["labels"].values():
        return None
    fields["span"] = _spans(first.span, second.span)
    window = _window(first.position, second.position)
    if window == "empty":
        return None
    fields["position"] = window
    fields["exclude"] = _either(first.exclude, second.exclude)
    return Where(**fields)


def can_meet(first: Where, second: Where) -> bool:
    """Whether a token may be selected by both clauses, as far as the clauses alone can tell."""
    try:
        return intersect(first, second) is not None
    except BadPlan:
        return True


def token_part(where: Where) -> Where:
    """Return the clause without its layers: what `Where.mask` looks at."""
    exclude = None if where.exclude is None else where.exclude.model_copy(update={"layer": None})
    return where.model_copy(update={"layer": None, "exclude": None if exclude == Where() else exclude})


def listed(operation: Operation) -> tuple[Address, ...]:
    """Return the experts that an operation lists or whose neurons it lists; none if it holds for whole layers."""
    return () if isinstance(operation, (TopK, Replay)) else operation.experts


def units(operation: Operation) -> tuple[Address, ...] | tuple[NeuronAddress, ...]:
    """Return what an operation lists, experts or neurons, in its own order; none if it holds for whole layers."""
    return operation.neurons if isinstance(operation, Neurons) else listed(operation)


def touches(operation: Operation, layer: int) -> bool:
    """Whether an operation does anything in a layer, by its clause and its experts."""
    if not operation.where.takes_layer(layer):
        return False
    return isinstance(operation, (TopK, Replay)) or any(address.layer == layer for address in operation.experts)


def narrow(operation: Operation, where: Where) -> Operation:
    """Return the operation with another clause, such as the whole plan's, pushed down into its own.

    Raises:
        BadPlan: the two clauses exclude each other or have no common clause.
    """
    common = intersect(where, operation.where)
    if common is None:
        raise BadPlan(f"touches nothing: its clause '{operation.where}' lies outside of the plan's '{where}'.")
    return operation.model_copy(update={"where": common})


def narrowed(plan: Plan) -> list[Operation]:
    """Return the plan's operations, each with the plan's own clause pushed down into it; BadPlan as in `narrow`."""
    return [narrow(operation, plan.where) for operation in plan.operations]


def _common(first: tuple[Any, ...] | None, second: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
    if first is None or second is None:
        return second if first is None else first
    return tuple(value for value in first if value in second)


def _spans(first: tuple[str, ...] | None, second: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if first is None or second is None:
        return second if first is None else first
    if set(first) <= set(second):
        return first
    if set(second) <= set(first):
        return second
    raise BadPlan(
        f"span={','.join(first)} together with span={','.join(second)} is not one clause; name the spans in one place."
    )


def _window(
    first: tuple[int | None, int | None] | None, second: tuple[int | None, int | None] | None
) -> tuple[int | None, int | None] | str | None:
    """Return the common window, or 'empty'."""
    if first is None or second is None:
        return second if first is None else first
    ends: list[int | None] = []
    for one, other, tighter in ((first[0], second[0], max), (first[1], second[1], min)):
        if one is None or other is None:
            ends.append(other if one is None else one)
        elif (one < 0) == (other < 0):
            ends.append(tighter(one, other))
        else:
            raise BadPlan(
                f"windows that count from the start ({max(one, other)}) and from the end of the prompt "
                f"({min(one, other)}) have no common window; use one kind."
            )
    start, stop = ends
    begin = 0 if start is None else start
    if stop is not None and (begin < 0) == (stop < 0) and begin >= stop:
        return "empty"
    return start, stop


def _either(first: Where | None, second: Where | None) -> Where | None:
    """Return one exclusion for both; layers and tokens are excluded independently of each other."""
    if first is None or second is None:
        return second if first is None else first
    layers = (*(first.layer or ()), *(second.layer or ()))
    tokens = _either_tokens(first.model_copy(update={"layer": None}), second.model_copy(update={"layer": None}))
    return tokens.model_copy(update={"layer": tuple(dict.fromkeys(layers)) or None})


def _either_tokens(first: Where, second: Where) -> Where:
    if first.everything or first == second:  # an exclusion that names no token excludes none
        return second
    if second.everything:
        return first
    one, other = _flat(first), _flat(second)
    if one.keys() == other.keys():
        different = [name for name in one if one[name] != other[name]]
        if len(different) == 1 and different[0] not in ("position", "exclude"):
            name = different[0]
            union = tuple(dict.fromkeys((*one[name], *other[name])))
            if name.startswith("label "):
                return first.model_copy(update={"labels": {**first.labels, name.removeprefix("label "): union}})
            return first.model_copy(update={name: union})
    raise BadPlan(f"two exclusions, '{first}' and '{second}', do not fit into one clause; write one of them.")


def _flat(where: Where) -> dict[str, Any]:
    fields = {name: getattr(where, name) for name in ("phase", "role", "span", "token", "position", "exclude")}
    fields.update({f"label {name}": values for name, values in where.labels.items()})
    return {name: value for name, value in fields.items() if value is not None}
