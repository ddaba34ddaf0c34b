"""Plans on disk: written whole or not at all, read with every problem named at once, hashed by what they do."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from moeworks import __version__
from moeworks.artefact import Header, ModelIdentity
from moeworks.plan.document import parse_document, read_document, write_document
from moeworks.plan.protected import Protect, protection
from moeworks.plan.schema import Plan

__all__ = ["FORMAT", "VERSION", "empty_plan", "load_plan", "parse_plan", "plan_hash", "plan_header", "save_plan"]

FORMAT = "moeworks.plan"
VERSION = 1


def plan_header(identity: ModelIdentity | None, **fields: Any) -> Header:
    """Return the header of a new plan for a model; `fields` are others of `Header`, such as seed."""
    return Header(format=FORMAT, version=VERSION, moeworks=__version__, model=identity, **fields)


def empty_plan(identity: ModelIdentity, *, description: str = "", protect: Protect = "super") -> Plan:
    """Return the plan that changes nothing, as a start for one's own; `protect` is as in `steer`."""
    return Plan(header=plan_header(identity), description=description, protected=protection(identity, protect)[0])


def plan_hash(plan: Plan) -> str:
    """Return the hash of what a plan does: operations, clause, gate, protected experts; not what is said of it."""
    document = plan.model_dump(mode="json", include={"operations", "where", "protected"})
    if plan.gate is not None:
        document["gate"] = plan.gate.model_dump(mode="json", exclude={"provenance"})
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def save_plan(plan: Plan, path: str | Path) -> None:
    """Write a plan as JSON, or print it when `path` is `-`; operations first, the header last.

    Raises:
        BadPlan: the plan holds something that JSON does not; nothing is written.
        MoeworksError: the disk refuses; an older file of that name stays as it was.
    """
    document = plan.model_dump(mode="json", exclude_none=True)
    document["operations"] = [
        {"op": fields["op"], **_without_empty_clause(fields)} for fields in document["operations"]
    ]
    document = _without_empty_clause(document)
    for name in ("evidence", "header"):  # to the end
        if name in document:
            document[name] = document.pop(name)
    write_document(document, path, same=lambda text: parse_plan(text, "the plan") == plan)


def load_plan(path: str | Path) -> Plan:
    """Read a plan from a file, or from standard input when `path` is `-`.

    Raises:
        BadPlan: not a plan, of an unknown version, or malformed; the message has every problem.
        MoeworksError: the file cannot be read.
    """
    return read_document(path, parse_plan, kind="a plan")


def parse_plan(text: str, name: str) -> Plan:
    """Read a plan from its JSON text; `name` is what errors call it.

    Raises:
        BadPlan: not a plan, of an unknown version, or malformed; the message has every problem.
    """
    return parse_document(text, name, Plan, kind="a plan", format=FORMAT, version=VERSION)


def _without_empty_clause(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name != "where" or value != {"labels": {}}}
