"""Edit plans on disk: laid out for review, written whole or not at all, read with every problem named, hashed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from moeworks.edit.plan import FORMAT, VERSION, EditPlan
from moeworks.plan.document import parse_document, read_document, write_document

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
    write_document(document, path, same=lambda text: _parse(text, "the plan") == plan)


def load_edit_plan(path: str | Path) -> EditPlan:
    """Read a plan from a file, or from standard input when `path` is `-`.

    Raises:
        BadPlan: not an edit plan, of an unknown version, or malformed; the message has every problem.
        MoeworksError: the file cannot be read.
    """
    return read_document(path, _parse, kind="an edit plan")


def _parse(text: str, name: str) -> EditPlan:
    others = {"moeworks.plan": "a plan that steers a model, not an edit plan; those come from `moeworks edit plan`."}
    return parse_document(text, name, EditPlan, kind="an edit plan", format=FORMAT, version=VERSION, others=others)
