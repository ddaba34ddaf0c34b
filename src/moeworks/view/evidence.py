"""Evidence while it is gathered: `moeworks evaluate` on the server's model, told to the page step by step."""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from moeworks.errors import BadData, did_you_mean
from moeworks.probes import load_probe
from moeworks.prove import evaluate
from moeworks.serve.plans import check_served, plan_of
from moeworks.view.answers import json_bytes
from moeworks.view.working import Step, stream_work

if TYPE_CHECKING:
    from moeworks.plan import Plan
    from moeworks.plan.evidence import Evidence
    from moeworks.serve.base import Serving
    from moeworks.view.sources import Sources

__all__ = ["add_evidence", "evidence_json"]


class EvidenceBody(BaseModel):
    """What is sent to `api/evidence`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    plan: dict[str, Any] | Annotated[str, Field(max_length=200)] = Field(description="a plan, or the name of one")
    probe: Annotated[str, Field(max_length=200)]
    limit: int | None = Field(24, ge=1, le=100_000, description="items at most")
    controls: int = Field(3, ge=1, le=100, description="random plans to compare with")


def evidence_json(evidence: Evidence, *, model: str, limit: int | None, controls: int) -> dict[str, Any]:
    """Return evidence as the page shows it, with the command that gives the same numbers."""
    words = ["moeworks", "evaluate", model, "--plan", "plan.json", "--probe", evidence.probe]
    words += ["--controls", str(controls), *([] if limit is None else ["--limit", str(limit)])]
    whole = evidence.model_dump(mode="json")
    return {
        **{name: whole[name] for name in ("metric", "items", "documents", "before", "after", "expected", "effect")},
        "interval": [evidence.effect.low, evidence.effect.high],
        "random": [control.effect for control in evidence.controls if control.name == "random"],
        **{name: whole[name] for name in ("excess", "damage", "mechanism", "doses", "verdict", "reasons")},
        "evidence": whole,
        "command": shlex.join(words),
    }


def add_evidence(app: FastAPI, sources: Sources, serving: Serving) -> None:
    """Add `api/evidence`: server-sent events with how far it is, and the result as the last one."""

    @app.post("/view/api/evidence")
    async def gather(body: EvidenceBody) -> StreamingResponse:
        """Measure a plan on a probe's held-out items; leaving ends it before the next forward pass."""
        known = sources.as_json()["probes"]
        if body.probe not in known:
            raise BadData(f"no probe is called '{body.probe[:80]}'; {did_you_mean(body.probe[:80], known)}")
        plan = serving.plans.get(body.plan) if isinstance(body.plan, str) else plan_of(body.plan, serving.limits)
        check_served(plan, serving.engine.identity)
        if not plan.operations:
            raise BadData("the plan is empty: there is nothing to prove; pick experts first.")
        events = stream_work(serving, lambda tell: _measure(serving, plan, body, tell))
        return StreamingResponse(_sent(events), media_type="text/event-stream", headers={"cache-control": "no-store"})


def _measure(serving: Serving, plan: Plan, body: EvidenceBody, tell: Step) -> dict[str, Any]:
    def advance(done: int, total: int | None) -> None:
        tell({"done": done, "total": total or 0, "what": "measuring the plan, random experts, doses and damage"})

    evidence = evaluate(
        serving.engine,
        plan,
        load_probe(body.probe),
        controls=body.controls,
        limit=body.limit,
        progress=advance,
    )
    name = serving.engine.identity.name
    return {"result": evidence_json(evidence, model=name, limit=body.limit, controls=body.controls)}


async def _sent(events: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    async for event in events:
        yield b"data: " + json_bytes(event) + b"\n\n"
