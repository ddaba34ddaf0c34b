"""Edit plans on disk: laid out for review, written whole or not at all, read with every problem named, hashed."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from moeworks import __version__
from moeworks.artefact import problems_of, replace_file
from moeworks.edit.plan import FORMAT, VERSION, EditPlan
from moeworks.errors import BadPlan, MoeworksError

__all__ = ["edit_plan_hash", "load_edit_plan", "save_edit_plan"]

_DOES = {"layers", "transform", "transform_options", "extra_layers"}


def edit_plan_hash(plan: EditPlan) -> str:
    """Return the hash of what a plan does (layers without orders, transform, extra layers), not what is said of it."""
    document = plan.model_dump(mode="json", include=_DOES)
    for layer in document["layers"]:
        del layer["order"]
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def save_edit_plan(plan: EditPlan, path: str | Path) -> None:
    """Write a plan as JSON, or print it when `path` is `-`: a line for each list, the header last.

    Raises:
        BadPlan: the plan holds something that JSON does not; nothing is written.
        MoeworksError: the disk refuses; an older file of that name stays as it was.
    """
    document = plan.model_dump(mode="json", exclude_none=True)
    for name in ("layers", "evidence", "header"):  # to the end
        if name in document:
            document[name] = document.pop(name)
    for layer in document["layers"]:
        if not layer["order"]:
            del layer["order"]
    text = _pretty(document) + "\n"
    if _parse(text, "the plan") != plan:
        raise BadPlan("the plan holds values that do not survive in a file, such as a tuple among its options.")
    if str(path) == "-":
        sys.stdout.write(text)
        return
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def load_edit_plan(path: str | Path) -> EditPlan:
    """Read a plan from a file, or from standard input when `path` is `-`.

    Raises:
        BadPlan: not an edit plan, of an unknown version, or malformed; the message has every problem.
        MoeworksError: the file cannot be read.
    """
    if str(path) == "-":
        return _parse(sys.stdin.read(), "the plan on standard input")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise MoeworksError(f"cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError:
        raise BadPlan(f"{path} is not an edit plan: it is not UTF-8 text.") from None
    return _parse(text, str(path))


def _parse(text: str, name: str) -> EditPlan:
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadPlan(f"{name} is not JSON: {error.msg} in line {error.lineno}, column {error.colno}.") from None
    header = document.get("header") if isinstance(document, dict) else None
    if not isinstance(header, dict):
        raise BadPlan(f"{name} is not an edit plan: a plan is an object with a header.")
    if header.get("format") == "moeworks.plan":
        raise BadPlan(
            f"{name} is a plan that steers a model, not an edit plan; edit plans come from `moeworks edit plan`."
        )
    if header.get("format") != FORMAT:
        raise BadPlan(f"{name} is not an edit plan: its header says format '{header.get('format')}', not '{FORMAT}'.")
    if header.get("version", VERSION) != VERSION:
        raise BadPlan(
            f"{name} is an edit plan of version {header['version']}; moeworks {__version__} reads version {VERSION}. "
            "Install the version that wrote it, or a newer one."
        )
    try:
        return EditPlan.model_validate_json(text)
    except (ValidationError, MoeworksError) as error:
        reason = problems_of(error) if isinstance(error, ValidationError) else str(error)
        raise BadPlan(f"{name} is not a valid edit plan: {reason}") from None


def _pretty(value: Any, indent: int = 0) -> str:
    """Return JSON that is good to review: what fits into a line stands in one, and so does each list of numbers."""
    line = json.dumps(value, ensure_ascii=False)
    flat = isinstance(value, list) and not any(isinstance(child, dict) for child in value)
    if len(line) + indent <= 110 or flat or indent >= 8 or not isinstance(value, (dict, list)):
        return line
    deeper = " " * (indent + 2)
    if isinstance(value, dict):
        inner = [f"{deeper}{json.dumps(key)}: {_pretty(child, indent + 2)}" for key, child in value.items()]
    else:
        inner = [f"{deeper}{_pretty(child, indent + 2)}" for child in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return opening + "\n" + ",\n".join(inner) + "\n" + " " * indent + closing
