"""Several plans as one, and the difference between two."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

from moeworks.errors import BadPlan
from moeworks.plan.clauses import narrowed, units
from moeworks.plan.files import plan_hash, plan_header
from moeworks.plan.guards import check
from moeworks.plan.schema import Operation, Plan, Provenance
from moeworks.plan.words import in_short

__all__ = ["Change", "PlanDifference", "compose", "diff"]


def compose(*plans: Plan) -> Plan:
    """Return one plan that does what all of them do; each plan's clause goes into its operations.

    A gate decides about a whole plan, so that all plans must have the same one, or none. What is protected in one is
    protected in all, and may be turned down only if every plan that protects something
    allows it. Evidence does not carry over: the whole has not been measured.

    Raises:
        BadPlan: no plan, plans for different models or with different gates, clauses that have no intersection, or a
            whole that the model cannot run.
    """
    if not plans:
        raise BadPlan("there is no plan to compose.")
    model = plans[0].header.model
    operations: list[Operation] = []
    for number, plan in enumerate(plans, 1):
        other = plan.header.model
        if model is None or other is None:
            raise BadPlan(f"plan {number if other is None else 1} does not say which model it is for.")
        if (other.shape, other.weight_hash) != (model.shape, model.weight_hash):
            raise BadPlan(
                f"plan 1 is for {model.name} (weights {model.weight_hash}), plan {number} for {other.name} (weights "
                f"{other.weight_hash}); only plans for one model can be composed."
            )
        if plan.gate != plans[0].gate:
            raise BadPlan(f"plans 1 and {number} have different gates; a plan has one gate for all its operations.")
        try:
            operations += narrowed(plan)
        except BadPlan as error:
            raise BadPlan(f"plan {number}: {error}") from None
    protecting = [plan for plan in plans if plan.protected]
    whole = Plan(
        header=plan_header(model),
        description=" + ".join(plan.description for plan in plans if plan.description),
        operations=tuple(operations),
        gate=plans[0].gate,
        protected=tuple(sorted({address for plan in plans for address in plan.protected})),
        allow_protected=bool(protecting) and all(plan.allow_protected for plan in protecting),
        weakens_safety=any(plan.weakens_safety for plan in plans),
        provenance=Provenance(
            method="compose",
            options={
                "plans": [{"hash": plan_hash(plan), **plan.provenance.model_dump(mode="json")} for plan in plans],
            },
        ),
    )
    assert model is not None
    check(whole, model)
    return whole


class Change(NamedTuple):
    """What one plan does to an expert or neuron on some tokens and another does not; empty where it does nothing."""

    subject: str  # an address of an expert or neuron, `all experts`, or the name of a setting of the plan
    where: str  # clause of the tokens, empty for all
    before: str
    after: str

    def __str__(self) -> str:
        place = f"{self.subject} where {self.where}" if self.where else self.subject
        if self.before and self.after:
            return f"~ {place}: {self.before} → {self.after}"
        return f"+ {place}: {self.after}" if self.after else f"- {place}: {self.before}"


@dataclass(frozen=True)
class PlanDifference:
    """What changes from one plan to another; its text has one line a change. False where they do the same."""

    added: tuple[Change, ...]
    removed: tuple[Change, ...]
    changed: tuple[Change, ...]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    def __str__(self) -> str:
        if not self:
            return "Both plans do the same."
        return "\n".join(map(str, (*self.removed, *self.added, *self.changed)))


def diff(before: Plan, after: Plan) -> PlanDifference:
    """Return which experts another plan treats differently, by expert and clause, and which settings differ."""
    old, new = _effects(before), _effects(after)
    changes = [Change(*key, old.get(key, ""), new.get(key, "")) for key in dict.fromkeys((*old, *new))]
    changes = [change for change in changes if change.before != change.after]
    return PlanDifference(
        added=tuple(change for change in changes if not change.before),
        removed=tuple(change for change in changes if not change.after),
        changed=tuple(change for change in changes if change.before and change.after),
    )


def _gate(plan: Plan) -> str:
    """Return the gate in a few words, with a hash of its numbers: two that differ in these only are told apart."""
    if plan.gate is None:
        return ""
    numbers = plan.gate.model_dump_json(exclude={"provenance"})
    return f"{plan.gate.kind}, numbers {hashlib.blake2b(numbers.encode(), digest_size=4).hexdigest()}"


def _effects(plan: Plan) -> dict[tuple[str, str], str]:
    """Return (subject, clause) → what is done, for each expert and for the plan's settings."""
    found: dict[tuple[str, str], list[str]] = {}
    for operation in narrowed(plan):
        for subject in map(str, units(operation) or ("all experts",)):
            found.setdefault((subject, str(operation.where)), []).append(in_short(operation))
    effects = {key: "; ".join(sorted(done)) for key, done in found.items()}
    model = plan.header.model
    settings = {
        "model": f"{model.name}, weights {model.weight_hash}" if model else "",
        "gate": _gate(plan),
        "protected": ", ".join(map(str, sorted(plan.protected))),
        "allow_protected": "yes" if plan.allow_protected else "",
        "weakens_safety": "yes" if plan.weakens_safety else "",
    }
    return effects | {(name, ""): value for name, value in settings.items() if value}
