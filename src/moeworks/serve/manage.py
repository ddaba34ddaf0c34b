"""The endpoints beside OpenAI's: plans at run time, health statistics, the trace of the last requests."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from moeworks.errors import BadPlan
from moeworks.plan.files import plan_hash
from moeworks.plan.schema import Plan
from moeworks.plan.words import explain
from moeworks.serve.base import Serving, in_thread
from moeworks.serve.door import Door
from moeworks.serve.errors import Refused
from moeworks.serve.plans import BASE, plan_of, served_problems

__all__ = ["add_management", "add_models"]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NamedPlan(_Body):
    """A plan and the name it is to have."""

    name: str = Field(max_length=200)
    plan: dict[str, Any]


class PlanOrName(_Body):
    """A plan, or the name of one that the server knows."""

    plan: dict[str, Any] | str


def verdict_of(plan: Plan) -> str:
    """Return what is known of a plan, in a word or two."""
    return "not measured" if plan.evidence is None else str(plan.evidence.verdict)


def described(name: str, plan: Plan, digest: str) -> dict[str, Any]:
    """Return a plan as lists of plans show it."""
    return {
        "name": name,
        "hash": digest,
        "verdict": verdict_of(plan),
        "description": plan.description,
        "operations": len(plan.operations),
        "gate": plan.gate is not None,
        "weakens_safety": plan.weakens_safety,
    }


def add_models(app: FastAPI, serving: Serving, door: Door, name: str) -> None:
    """Add `/v1/models` and `/health`."""
    identity = serving.engine.identity

    def card(model: str, about: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {
            "id": model,
            "object": "model",
            "created": serving.started,
            "owned_by": "moeworks",
            "root": name,
            **more,
            "max_model_len": serving.engine.context,
            "moeworks": about,
        }

    def cards() -> list[dict[str, Any]]:
        own = {"hash": None, "verdict": None, "weights": identity.weight_hash}
        plans = [card(n, described(n, plan, digest), parent=BASE) for n, plan, digest in serving.plans]
        return [card(BASE, own, parent=None), *plans]

    @app.get("/v1/models")
    def list_models() -> dict[str, Any]:
        """List the model as it is, and each plan."""
        return {"object": "list", "data": cards()}

    @app.get("/v1/models/{model}")
    def one_model(model: str) -> dict[str, Any]:
        """Describe one of them."""
        wanted = BASE if model in serving.plans.base_names else model
        found = next((one for one in cards() if one["id"] == wanted), None)
        if found is None:
            serving.plans.get(model)  # raises, with the nearest name
            raise Refused(404, f"no model is called '{model}'.")
        return found

    @app.get("/health")
    def health() -> Response:
        """Say that requests are taken, or that the server is stopping."""
        if door.stopping:
            return JSONResponse({"status": "stopping"}, status_code=503)
        return JSONResponse({"status": "ok"})


def add_management(app: FastAPI, serving: Serving) -> None:
    """Add everything below `/moeworks`."""
    plans = serving.plans

    @app.get("/moeworks/plans")
    def list_plans() -> dict[str, Any]:
        """List the plans that the server knows by name."""
        return {"plans": [described(*one) for one in plans]}

    @app.get("/moeworks/plans/{name}")
    def show_plan(name: str) -> dict[str, Any]:
        """Give a plan as a document."""
        return plans.get(name).model_dump(mode="json", exclude_none=True)

    @app.post("/moeworks/plans", status_code=201)
    async def add_plan(body: NamedPlan) -> dict[str, Any]:
        """Check a plan and take it under a name."""
        plan = await in_thread(plan_of, body.plan, serving.limits)
        digest = await in_thread(plans.add, body.name, plan)
        return described(body.name, plan, digest)

    @app.delete("/moeworks/plans/{name}")
    def remove_plan(name: str) -> dict[str, Any]:
        """Forget a plan; requests that run under it go on."""
        plans.remove(name)
        return {"removed": name}

    @app.post("/moeworks/plans/validate")
    async def validate_plan(body: PlanOrName) -> dict[str, Any]:
        """Say all that speaks against serving a plan here."""

        def look() -> dict[str, Any]:
            try:
                plan = plans.get(body.plan) if isinstance(body.plan, str) else plan_of(body.plan, serving.limits)
            except BadPlan as error:
                return {"valid": False, "problems": [str(error)], "hash": None}
            found = served_problems(plan, plans.identity)
            return {"valid": not found, "problems": found, "hash": plan_hash(plan)}

        result: dict[str, Any] = await in_thread(look)
        return result

    @app.post("/moeworks/plans/explain")
    async def explain_plan(body: PlanOrName) -> dict[str, Any]:
        """Say in words what a plan does."""

        def look() -> dict[str, Any]:
            plan = plans.get(body.plan) if isinstance(body.plan, str) else plan_of(body.plan, serving.limits)
            return {"hash": plan_hash(plan), "verdict": verdict_of(plan), "text": explain(plan)}

        result: dict[str, Any] = await in_thread(look)
        return result

    @app.get("/moeworks/metrics")
    def metrics() -> Response:
        """Give routing readings and counters as Prometheus text."""
        return Response(serving.worker.meter.text(), media_type="text/plain; version=0.0.4")

    @app.get("/moeworks/trace")
    async def trace() -> Response:
        """Give the trace of the last requests as a tar file."""
        kept = serving.worker.kept
        if kept is None:
            raise Refused(
                404, "this server keeps no traces; start it with --keep-traces N (traces are private as text)."
            )
        return Response(
            await in_thread(kept.tar),
            media_type="application/x-tar",
            headers={"content-disposition": 'attachment; filename="moeworks-trace.tar"'},
        )
