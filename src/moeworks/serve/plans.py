"""The plans that a server knows: read and checked at the door, found by name, resolved for one request."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from moeworks.artefact import ModelIdentity
from moeworks.errors import BadData, BadPlan, MoeworksError, did_you_mean
from moeworks.plan.files import parse_plan, plan_hash
from moeworks.plan.guards import problems
from moeworks.plan.schema import Plan, Replay
from moeworks.plan.strength import with_strength
from moeworks.serve.fields import MoeworksField
from moeworks.serve.limits import Limits
from moeworks.where import Where

__all__ = ["BASE", "Chosen", "PlanBook", "UnknownName", "check_served", "needs_roles", "plan_of", "served_problems"]

BASE = "base"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
CLAUSES = 32  # different where clauses in one plan: which of them meet is decided by comparing them all


class UnknownName(MoeworksError):
    """No plan of this server is called so."""


@dataclass(frozen=True)
class Chosen:
    """What one request runs under: a plan at its strength, or the model as it is."""

    plan: Plan | None
    hash: str = ""  # of the plan as it runs; empty without one
    name: str = BASE


class PlanBook:
    """The named plans of one server, for one model."""

    def __init__(self, identity: ModelIdentity, *, limits: Limits | None = None, model_name: str = "") -> None:
        self.identity = identity
        self.limits = limits or Limits()
        self.base_names = (BASE, *([model_name] if model_name and model_name != BASE else []))
        self._plans: dict[str, tuple[Plan, str]] = {}

    def __iter__(self) -> Iterator[tuple[str, Plan, str]]:
        """Yield (name, plan, hash), in the order in which they were added."""
        return iter([(name, plan, digest) for name, (plan, digest) in self._plans.items()])

    def __len__(self) -> int:
        return len(self._plans)

    def add(self, name: str, plan: Plan) -> str:
        """Take a plan under a name and return its hash; the same plan under the same name again changes nothing.

        Raises:
            BadData: a name that cannot be one, is taken, or there are too many plans.
            BadPlan: the plan cannot be served on this model; with every problem.
        """
        if not NAME.fullmatch(name):
            raise BadData(f"'{name[:80]}' cannot name a plan: take up to 64 letters, digits, dots, - and _.")
        if name in self.base_names:
            raise BadData(f"'{name}' is the model without a plan; choose another name.")
        check_served(plan, self.identity)
        digest = plan_hash(plan)
        if name in self._plans:
            if self._plans[name][1] == digest:
                return digest
            raise BadData(f"a plan called '{name}' is here already; remove it first, or choose another name.")
        if len(self._plans) >= self.limits.plans:
            raise BadData(f"this server keeps at most {self.limits.plans} plans; remove one first.")
        self._plans[name] = (plan, digest)
        return digest

    def remove(self, name: str) -> None:
        """Forget a plan; requests that run under it go on.

        Raises:
            UnknownName: there is none of that name.
        """
        self.get(name)
        del self._plans[name]

    def get(self, name: str) -> Plan:
        """Return a plan by its name.

        Raises:
            UnknownName: there is none.
        """
        if name not in self._plans:
            raise UnknownName(f"no plan is called '{name[:80]}'; {did_you_mean(name[:80], self._plans)}")
        return self._plans[name][0]

    def resolve(self, model: str | None, field: MoeworksField) -> Chosen:
        """Return what a request runs under.

        Args:
            model: the request's model: the base, a plan, or nothing.
            field: its `moeworks` field.

        Raises:
            UnknownName: no model or plan is called so.
            BadData: two plans are asked for, or a strength of no plan.
            BadPlan: the plan does not fit the model or has no such strength.
        """
        name, plan = BASE, None
        if model is not None and model not in self.base_names:
            if model not in self._plans:
                known = [*self.base_names, *self._plans]
                raise UnknownName(f"no model or plan is called '{model[:80]}'; {did_you_mean(model[:80], known)}")
            name, plan = model, self.get(model)
        if isinstance(field.plan, str):
            if plan is not None and field.plan != name:
                raise BadData(f"model asks for the plan '{name}', moeworks.plan for '{field.plan}'; ask for one.")
            name, plan = field.plan, self.get(field.plan)
        elif field.plan is not None:
            if plan is not None:
                raise BadData(f"model asks for the plan '{name}', moeworks.plan gives another; ask for one.")
            name, plan = "", plan_of(field.plan, self.limits)
            check_served(plan, self.identity)
        if plan is None:
            if field.strength != 1:
                raise BadData("moeworks.strength turns a plan; name one in model or in moeworks.plan.")
            return Chosen(None)
        turned = with_strength(plan, field.strength)
        if turned is not plan and turned.operations:
            check_served(turned, self.identity)
        return Chosen(turned, plan_hash(turned), name)


def plan_of(document: Mapping[str, Any], limits: Limits) -> Plan:
    """Return a plan that came in a request.

    Raises:
        BadPlan: it is none, with every problem, or is larger than the server takes.
    """
    operations = document.get("operations")
    if isinstance(operations, list) and len(operations) > limits.plan_operations:
        raise BadPlan(f"the plan has {len(operations)} operations; this server takes {limits.plan_operations}.")
    try:
        return parse_plan(json.dumps(document), "the plan")
    except RecursionError:
        raise BadPlan("the plan is nested too deeply.") from None


def check_served(plan: Plan, identity: ModelIdentity) -> None:
    """Refuse a plan that cannot be served exactly.

    Raises:
        BadPlan: with every problem.
    """
    if found := served_problems(plan, identity):
        count = "1 problem" if len(found) == 1 else f"{len(found)} problems"
        raise BadPlan(f"the plan cannot be served on {identity.name}, {count}: {' '.join(found)}")


def served_problems(plan: Plan, identity: ModelIdentity) -> list[str]:
    """Return all that speaks against serving a plan, one sentence each."""
    found = []
    clauses = list(_clauses(plan))
    if any(isinstance(operation, Replay) for operation in plan.operations):
        found.append("replay reads decisions of a trace by request number, which requests of a server do not have.")
    if labels := sorted({label for clause in clauses for label in clause.labels}):
        found.append(f"A clause asks for the label {', '.join(labels[:20])}, and requests of a server carry none.")
    if spans := sorted({span for clause in clauses for span in clause.span or ()}):
        found.append(f"A clause asks for the span {', '.join(spans[:20])}, and requests of a server mark none.")
    if len({clause.model_dump_json() for clause in clauses}) > CLAUSES:
        return [*found, f"It has more than {CLAUSES} different where clauses; make several plans of it."]
    return found + problems(plan, identity)


def needs_roles(plan: Plan | None) -> bool:
    """Whether some clause asks who said a token."""
    return plan is not None and any(clause.role for clause in _clauses(plan))


def _clauses(plan: Plan) -> Iterator[Where]:
    for where in (plan.where, *(operation.where for operation in plan.operations)):
        clause: Where | None = where
        while clause is not None:
            yield clause
            clause = clause.exclude
