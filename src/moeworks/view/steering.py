"""A plan from experts that were picked on the page: as a document, in words, with what speaks against it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field

from moeworks.errors import BadData
from moeworks.plan import Plan, dry_run, empty_plan, expected_touch, explain, plan_hash
from moeworks.plan.files import parse_plan
from moeworks.plan.guards import problems
from moeworks.serve.plans import served_problems
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.artefact import ModelIdentity
    from moeworks.view.sources import Sources

__all__ = ["Pick", "add_steering", "explained", "plan_from_picks"]

Word = Annotated[str, Field(max_length=40)]
MOST_PICKS, MOST_EXPERTS = 64, 4096  # operations of a plan, experts of an operation


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Pick(_Body):
    """One thing that is done to some experts."""

    op: Literal["promote", "demote", "mask", "add", "scale"]
    experts: Annotated[tuple[Word, ...], Field(min_length=1, max_length=MOST_EXPERTS)]
    strength: float | None = Field(None, description="of add; 1 without")
    unit: Literal["logit", "std", "spread"] | None = Field(None, description="of add's strength; std without")
    factor: float | None = Field(None, description="of scale; 0 without")
    refill: bool | None = Field(None, description="of mask: whether the router picks replacements")

    def operation(self) -> dict[str, Any]:
        """Return the operation as a plan's document holds it."""
        mine: dict[str, tuple[str, ...]] = {"add": ("strength", "unit"), "scale": ("factor",), "mask": ("refill",)}
        given = self.model_dump(exclude_none=True, exclude={"op", "experts"})
        if wrong := [name for name in given if name not in mine.get(self.op, ())]:
            raise BadData(f"{self.op} has no {wrong[0]}.")
        usual: dict[str, Any] = {"add": {"strength": 1.0}, "scale": {"factor": 0.0}}.get(self.op, {})
        return {"op": self.op, "experts": list(self.experts), **usual, **given}


class PicksBody(_Body):
    """What is sent to `api/plan`."""

    operations: Annotated[tuple[Pick, ...], Field(max_length=MOST_PICKS)]
    where: Where = Where()
    description: Annotated[str, Field(max_length=2000)] = ""
    allow_protected: bool = False
    trace: str = Field("", description="count on this trace which decisions would change; its model, without an engine")


def plan_from_picks(
    picks: Sequence[Pick],
    identity: ModelIdentity,
    *,
    where: Where = Where(),
    description: str = "",
    allow_protected: bool = False,
) -> Plan:
    """Return the plan that does to the picked experts what was asked for; the model's super experts are protected.

    Raises:
        BadPlan: an address is none; with every problem.
    """
    start = empty_plan(identity, description=description)
    document = start.model_copy(update={"where": where, "allow_protected": allow_protected}).model_dump(mode="json")
    document["operations"] = [pick.operation() for pick in picks]
    return parse_plan(json.dumps(document), "the choice of experts")


def explained(plan: Plan, identity: ModelIdentity, *, served: bool) -> dict[str, Any]:
    """Return a plan as the page shows it.

    Args:
        plan: the plan.
        identity: the model that it would run on.
        served: whether it is to run in the server, which takes fewer plans than the engine.
    """
    found = (served_problems if served else problems)(plan, identity)
    touched = {} if found else expected_touch(plan, identity)
    return {
        "plan": plan.model_dump(mode="json", exclude_none=True),
        "hash": plan_hash(plan),
        "explanation": explain(plan).splitlines(),
        "touched": sum(map(len, touched.values())),
        "layers": {str(layer): len(experts) for layer, experts in touched.items()},
        "of": identity.experts,
        "problems": found,
        "command": "moeworks plan explain plan.json",
    }


def add_steering(app: FastAPI, sources: Sources) -> None:
    """Add `api/plan`."""

    @app.post("/view/api/plan")
    def make_plan(body: PicksBody) -> dict[str, Any]:
        """Make a plan of picked experts; nothing runs."""
        trace = sources.trace(body.trace) if body.trace else None
        model = sources.engine.identity if sources.engine is not None else trace.header.model if trace else None
        if model is None:
            raise BadData("a plan is for a model: open one beside the traces, or say of which trace the experts are.")
        plan = plan_from_picks(
            body.operations,
            model,
            where=body.where,
            description=body.description,
            allow_protected=body.allow_protected,
        )
        answer = explained(plan, model, served=sources.engine is not None)
        if trace is not None and not answer["problems"]:
            layers = dry_run(plan, trace).layers
            answer["changed"] = [{"layer": one.layer, "rows": one.rows, "changed": one.changed} for one in layers]
        return answer
