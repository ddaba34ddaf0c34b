"""From scores to a plan: `steer` picks experts by a policy and writes the operations, `with_amount` gives its doses."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from moeworks.address import Address
from moeworks.errors import BadData, BadPlan, did_you_mean
from moeworks.plan.clauses import units
from moeworks.plan.files import plan_header
from moeworks.plan.guards import check
from moeworks.plan.limits import selection_problems
from moeworks.plan.policies.base import POLICIES, Count, Manner, Op, Unit, Wanted, manner_of
from moeworks.plan.protected import Protect, protection
from moeworks.plan.schema import (
    Add,
    Demote,
    Mask,
    Neurons,
    Operation,
    Plan,
    Promote,
    Provenance,
    Replay,
    Scale,
    TopK,
)
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.find import Scores

__all__ = ["steer", "with_amount"]


def steer(
    scores: Scores,
    *,
    promote: Count = 0,
    demote: Count = 0,
    policy: str = "risk_difference",
    direction: Literal["up", "down"] | None = None,
    op: Op | None = None,
    strength: float | None = None,
    unit: Unit | None = None,
    refill: bool | None = None,
    renormalise: bool | None = None,
    where: Where | str = Where(),
    protect: Protect = "super",
    protected: Iterable[Address] = (),
    weakens_safety: bool = False,
    command: str = "",
    **options: Any,
) -> Plan:
    """Return a plan that turns the contrasted behaviour of some scores up or down.

    Args:
        scores: from `find`; a positive score marks an expert of the contrast side.
        promote, demote: how many experts to turn up and down, in rank order; "all" for every eligible one.
        policy: registered name of the rule that picks them; its `options` are passed on. Published policies also fix
            what is done (`op`, `refill` and so on): leave out what they fix.
        direction: `down` demotes experts of the contrast side and promotes those of the other; `up` the reverse.
            Left out: `down` if anything is demoted, else `up`.
        op: what is done, `demote` unless the policy says otherwise. With `demote` and `mask` the experts to turn up
            get `promote`; `add` adds and subtracts `strength` × `unit`; `scale` multiplies weights by `strength`.
        strength: for `add` (default 0.5) and `scale` only.
        unit: of the strength of `add`; `std` unless given.
        refill, renormalise: as in the `mask` (refilled unless given) and `scale` operations.
        where: tokens that the plan applies to.
        protect: experts that are never turned down, left out of the ranking for it: `super`, the super experts that
            are known of the model (see `moeworks.find.super_experts`), `none`, or addresses.
        protected: more such experts.
        weakens_safety: says that the plan is meant to weaken a safety behaviour.

    Raises:
        BadData: the arguments contradict each other.
        BadPlan: fewer experts are eligible than asked for, or none fits.
    """
    model = scores.header.model
    if model is None:
        raise BadData("the scores do not say which model they are of; make them again with: moeworks find.")
    if scores.header.unit == "neuron":
        raise BadData(
            "the scores are of neurons, and this turns experts; for them: moeworks steer --neurons N, in Python "
            "moeworks.plan.steer_neurons."
        )
    for name, count in (("promote", promote), ("demote", demote)):
        if count != "all" and count < 0:
            raise BadData(f"{name} is a number of experts or 'all', not {count}.")
    if not promote and not demote:
        raise BadData("say how many experts to promote or to demote.")
    direction = direction or ("down" if demote else "up")
    rule = POLICIES.get(policy)
    manner = _manner(manner_of(rule), policy, op, strength, unit, refill, renormalise, bool(promote), bool(demote))
    clause = Where.parse(where) if isinstance(where, str) else where

    def operations(up: Sequence[Address], down: Sequence[Address]) -> tuple[Operation, ...]:
        made: list[Operation] = []
        if up:
            made.append(_turn_up(tuple(up), manner))
        if down:
            made.append(_turn_down(tuple(down), manner))
        return tuple(made)

    def fits(up: Sequence[Address], down: Sequence[Address]) -> bool:
        return not any(selection_problems(operations(up, down), model.layer((*up, *down)[0].layer)))

    known = POLICIES.options(policy)
    for name in options:
        if name not in known:
            raise BadData(f"policy '{policy}' has no option '{name}'; {did_you_mean(name, known)}")
    spared, how = protection(model, protect)
    wanted = Wanted(
        promote=promote,
        demote=demote,
        sign=1 if direction == "up" else -1,
        protected=frozenset((*spared, *protected)),
        fits=fits,
        strength=manner.strength,
        layers=tuple(shape.layer for shape in model.layers),
    )
    options = {name: list(value) if isinstance(value, (tuple, range)) else value for name, value in options.items()}
    chosen = rule(scores, wanted, **options)
    if not chosen.promoted and not chosen.demoted:
        raise BadPlan("no expert that was asked for fits into its layer; ask for others.")
    asked: dict[str, Any] = {"promote": promote, "demote": demote, "direction": direction, "op": manner.op}
    asked |= {} if manner.strength is None else {"strength": manner.strength}
    asked["protect"] = how
    plan = Plan(
        header=plan_header(model, command=command, text_hash=scores.header.text_hash),
        description=_description(scores, direction, len(chosen.promoted), len(chosen.demoted), chosen.passed_over),
        operations=operations(chosen.promoted, chosen.demoted),
        where=clause,
        protected=tuple(sorted(wanted.protected)),
        weakens_safety=weakens_safety,
        provenance=Provenance(
            method=f"{scores.header.method}, policy {policy}",
            options={**asked, **known, **options, "passed_over": chosen.passed_over},
            contrast=scores.header.contrast,
            against=scores.header.against,
            scores_hash=scores.header.hash,
            text_hash=scores.header.text_hash,
        ),
    )
    check(plan, model)
    return plan


def with_amount(plan: Plan, *, experts: int | None = None, strength: float | None = None) -> Plan:
    """Return the same plan at another dose.

    Args:
        plan: whose operations list experts, or neurons, in rank order, as those of `steer` do.
        experts: how many experts (of operations on neurons: neurons) stay: prefixes of the rankings, nested from dose
            to dose, in proportion where several operations list experts.
        strength: the new absolute strength of every `add`, and factor of every `scale`, that of neurons included.

    Raises:
        BadData: there are fewer experts, or nothing has a strength.
    """
    operations: list[Operation] = list(plan.operations)
    if experts is not None:
        places = sorted(
            ((rank + 0.5) / len(units(operation)), index)
            for index, operation in enumerate(operations)
            for rank in range(len(units(operation)))
        )
        if not 0 <= experts <= len(places):
            raise BadData(f"the plan lists {len(places)} experts; {experts} of them is not possible.")
        kept = Counter(index for _, index in places[:experts])
        operations = [_first(operation, kept[index]) for index, operation in enumerate(operations)]
        operations = [o for o in operations if isinstance(o, (TopK, Replay)) or units(o)]
    if strength is not None:
        if not math.isfinite(strength):
            raise BadData(f"a strength of {strength} is not finite.")
        if not any(_has_strength(operation) for operation in operations):
            raise BadData("no operation of the plan has a strength; vary the number of experts.")
        operations = [_with_strength(operation, strength) for operation in operations]
    return plan.model_copy(update={"operations": tuple(operations), "evidence": None})


def _first(operation: Operation, count: int) -> Operation:
    if isinstance(operation, Neurons):
        return operation.keep(range(count))
    return operation.model_copy(update={"experts": units(operation)[:count]} if units(operation) else {})


def _has_strength(operation: Operation) -> bool:
    return isinstance(operation, (Add, Scale)) or (isinstance(operation, Neurons) and operation.action == "scale")


def _with_strength(operation: Operation, strength: float) -> Operation:
    match operation:
        case Add():
            return Add(**{**dict(operation), "strength": -strength if operation.strength < 0 else strength})
        case Scale():
            return Scale(**{**dict(operation), "factor": strength})
        case Neurons(action="scale"):
            return operation.model_copy(update={"factor": strength})
        case _:
            return operation


class _Done(NamedTuple):
    """What is done to the experts, all settled."""

    op: Op
    strength: float | None
    unit: Unit
    margin: float | None
    refill: bool
    renormalise: bool


def _manner(
    fixed: Manner,
    policy: str,
    op: Op | None,
    strength: float | None,
    unit: Unit | None,
    refill: bool | None,
    renormalise: bool | None,
    up: bool,
    down: bool,
) -> _Done:
    """Join what the caller asks for with what the policy fixes."""
    asked = {"op": op, "unit": unit, "refill": refill, "renormalise": renormalise}
    for name, value in asked.items():
        rule = getattr(fixed, name)
        if rule is not None and value not in (None, rule):
            raise BadData(f"policy '{policy}' ({fixed.source}) sets {name} to {rule}; leave it out, not {value}.")
    wrong_way = (up and fixed.turns == "down") or (down and fixed.turns == "up")
    if wrong_way:
        raise BadData(f"policy '{policy}' ({fixed.source}) only turns experts {fixed.turns}; ask for nothing else.")
    chosen: Op = op or fixed.op or "demote"
    if fixed.strength is not None and strength is None:
        strength = fixed.strength
    return _Done(
        op=chosen,
        strength=_strength(chosen, strength, up, down),
        unit=unit or fixed.unit or "std",
        margin=fixed.margin,
        refill=next(value for value in (refill, fixed.refill, True) if value is not None),
        renormalise=next(value for value in (renormalise, fixed.renormalise, False) if value is not None),
    )


def _strength(op: Op, strength: float | None, up: bool, down: bool) -> float | None:
    if op in ("demote", "mask"):
        if strength is not None:
            raise BadData(f"'{op}' has no strength; use op='add' or op='scale' for one.")
        return None
    if op == "add":
        strength = 0.5 if strength is None else strength
        if not 0 < strength < math.inf:
            raise BadData(f"a strength of {strength} is not positive and finite; promote adds it, demote subtracts it.")
        return strength
    if op != "scale":
        raise BadData(f"no operation is called '{op}'; {did_you_mean(op, ('demote', 'mask', 'add', 'scale'))}")
    if strength is None or (up and not 1 < strength < math.inf) or (down and not 0 <= strength < 1):
        raise BadData("'scale' needs a strength: above 1 to turn experts up, from 0 to below 1 to turn them down.")
    return strength


def _turn_up(experts: tuple[Address, ...], done: _Done) -> Operation:
    match done.op:
        case "add":
            return Add(experts=experts, strength=done.strength or 0.0, unit=done.unit)
        case "scale":
            return Scale(experts=experts, factor=_factor(done), renormalise=done.renormalise)
        case _:
            return Promote(experts=experts, **_margin(done))


def _turn_down(experts: tuple[Address, ...], done: _Done) -> Operation:
    match done.op:
        case "mask":
            return Mask(experts=experts, refill=done.refill, renormalise=done.renormalise)
        case "add":
            return Add(experts=experts, strength=-(done.strength or 0.0), unit=done.unit)
        case "scale":
            return Scale(experts=experts, factor=_factor(done), renormalise=done.renormalise)
        case _:
            return Demote(experts=experts, **_margin(done))


def _factor(done: _Done) -> float:
    assert done.strength is not None  # _strength has seen to it
    return done.strength


def _margin(done: _Done) -> dict[str, float]:
    return {} if done.margin is None else {"margin": done.margin}


def _description(scores: Scores, direction: str, up: int, down: int, passed_over: dict[str, int]) -> str:
    counts = [
        f"{number} expert{'s' * (number > 1)} {verb}"
        for number, verb in ((up, "turned up"), (down, "turned down"))
        if number
    ]
    text = f"Turn {direction} what sets '{scores.header.contrast}' apart from '{scores.header.against}': "
    text += " and ".join(counts)
    over = sum(passed_over.values())
    return f"{text}; {over} passed over, their layers take no more." if over else f"{text}."
