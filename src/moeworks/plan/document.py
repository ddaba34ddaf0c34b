"""JSON documents that people review: laid out to be read, written whole or not at all, every problem named at once."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from moeworks import __version__
from moeworks.artefact import problems_of, replace_file
from moeworks.errors import BadPlan, MoeworksError

__all__ = ["parse_document", "pretty", "read_document", "write_document"]

Model = TypeVar("Model", bound=BaseModel)


def read_document(path: str | Path, parse: Callable[[str, str], Model], *, kind: str) -> Model:
    """Read a document from a file, or from standard input when `path` is `-`.

    Raises:
        BadPlan: it is not UTF-8 text, or what `parse(text, name)` refuses it with. MoeworksError: it cannot be read.
    """
    if str(path) == "-":
        return parse(sys.stdin.read(), "the plan on standard input")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise MoeworksError(f"cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError:
        raise BadPlan(f"{path} is not {kind}: it is not UTF-8 text.") from None
    return parse(text, str(path))


def parse_document(
    text: str,
    name: str,
    model: type[Model],
    *,
    kind: str,
    format: str,
    version: int,
    others: dict[str, str] | None = None,
) -> Model:
    """Return the document in a text.

    Args:
        text: JSON.
        name: what errors call it.
        model: what it is validated as.
        kind: with its article, as in `an edit plan`.
        format, version: of its header.
        others: other formats that people take for this one → what it is, and where the right one comes from.

    Raises:
        BadPlan: not such a document, of an unknown version, or malformed; the message has every problem.
    """
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadPlan(f"{name} is not JSON: {error.msg} in line {error.lineno}, column {error.colno}.") from None
    header = document.get("header") if isinstance(document, dict) else None
    if not isinstance(header, dict):
        raise BadPlan(f"{name} is not {kind}: a plan is an object with a header.")
    found = header.get("format")
    if isinstance(found, str) and found in (others or {}):
        raise BadPlan(f"{name} is {(others or {})[found]}")
    if found != format:
        raise BadPlan(f"{name} is not {kind}: its header says format '{found}', not '{format}'.")
    if header.get("version", version) != version:
        raise BadPlan(
            f"{name} is {kind} of version {header['version']}; moeworks {__version__} reads version {version}. "
            "Install the version that wrote it, or a newer one."
        )
    try:
        return model.model_validate_json(text)
    except (ValidationError, MoeworksError) as error:
        reason = problems_of(error) if isinstance(error, ValidationError) else str(error)
        raise BadPlan(f"{name} is not a valid {kind.partition(' ')[2]}: {reason}") from None


def write_document(document: dict[str, Any], path: str | Path, *, same: Callable[[str], bool]) -> None:
    """Write a document, or print it when `path` is `-`.

    Args:
        document: as JSON holds it.
        path: the file.
        same: whether the text, read again, is what was to be written.

    Raises:
        BadPlan: it is not; nothing is written. MoeworksError: the disk refuses; an older file stays as it was.
    """
    text = pretty(document) + "\n"
    if not same(text):
        raise BadPlan("the plan holds values that do not survive in a file, such as NaN or a tuple among its options.")
    if str(path) == "-":
        sys.stdout.write(text)
        return
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def pretty(value: Any, indent: int = 0) -> str:
    """Return JSON that is good to review: what fits into a line stands in one, and so does each layer of the model."""
    line = json.dumps(value, ensure_ascii=False)
    flat = isinstance(value, list) and not any(isinstance(child, (dict, str)) for child in value)  # numbers
    if len(line) + indent <= 110 or flat or indent >= 8 or not isinstance(value, (dict, list)):
        return line
    deeper = " " * (indent + 2)
    if isinstance(value, dict):
        inner = [f"{deeper}{json.dumps(key)}: {pretty(child, indent + 2)}" for key, child in value.items()]
    else:
        inner = [f"{deeper}{pretty(child, indent + 2)}" for child in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return opening + "\n" + ",\n".join(inner) + "\n" + " " * indent + closing
