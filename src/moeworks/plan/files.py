"""Plans on disk: written whole or not at all, read with every problem named at once, hashed by what they do."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from moeworks import __version__
from moeworks.artefact import Header, ModelIdentity, problems_of, replace_file
from moeworks.errors import BadPlan, MoeworksError
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
    text = _pretty(document) + "\n"
    if parse_plan(text, "the plan") != plan:
        raise BadPlan("the plan holds values that do not survive in a file, such as NaN or a tuple among its options.")
    if str(path) == "-":
        sys.stdout.write(text)
        return
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def load_plan(path: str | Path) -> Plan:
    """Read a plan from a file, or from standard input when `path` is `-`.

    Raises:
        BadPlan: not a plan, of an unknown version, or malformed; the message has every problem.
        MoeworksError: the file cannot be read.
    """
    if str(path) == "-":
        return parse_plan(sys.stdin.read(), "the plan on standard input")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise MoeworksError(f"cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError:
        raise BadPlan(f"{path} is not a plan: it is not UTF-8 text.") from None
    return parse_plan(text, str(path))


def parse_plan(text: str, name: str) -> Plan:
    """Read a plan from its JSON text; `name` is what errors call it.

    Raises:
        BadPlan: not a plan, of an unknown version, or malformed; the message has every problem.
    """
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadPlan(f"{name} is not JSON: {error.msg} in line {error.lineno}, column {error.colno}.") from None
    header = document.get("header") if isinstance(document, dict) else None
    if not isinstance(header, dict):
        raise BadPlan(f"{name} is not a plan: a plan is an object with a header.")
    if header.get("format") != FORMAT:
        raise BadPlan(f"{name} is not a plan: its header says format '{header.get('format')}', not '{FORMAT}'.")
    if header.get("version", VERSION) != VERSION:
        raise BadPlan(
            f"{name} is a plan of version {header['version']}; moeworks {__version__} reads version {VERSION}. "
            "Install the version that wrote it, or a newer one."
        )
    try:
        return Plan.model_validate_json(text)
    except (ValidationError, MoeworksError) as error:
        reason = problems_of(error) if isinstance(error, ValidationError) else str(error)
        raise BadPlan(f"{name} is not a valid plan: {reason}") from None


def _without_empty_clause(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name != "where" or value != {"labels": {}}}


def _pretty(value: Any, indent: int = 0) -> str:
    """Return JSON that is good to review: what fits into a line stands in one, and so does each layer of the model."""
    line = json.dumps(value, ensure_ascii=False)
    if len(line) + indent <= 110 or indent >= 8 or not isinstance(value, (dict, list)):
        return line
    deeper = " " * (indent + 2)
    if isinstance(value, dict):
        inner = [f"{deeper}{json.dumps(key)}: {_pretty(child, indent + 2)}" for key, child in value.items()]
    else:
        inner = [f"{deeper}{_pretty(child, indent + 2)}" for child in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return opening + "\n" + ",\n".join(inner) + "\n" + " " * indent + closing
