"""Answers of the page's endpoints: JSON and Arrow with a tag, so that a browser asks twice and loads once."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from fastapi.responses import Response

from moeworks import __version__

if TYPE_CHECKING:
    from fastapi import Request

__all__ = ["ARROW", "arrow_bytes", "json_bytes", "tagged"]

ARROW = "application/vnd.apache.arrow.stream"
PRIVATE = "private, no-cache"  # a trace is as private as its text; the tag says whether it is still the same


def json_bytes(value: Any) -> bytes:
    """Return JSON that every browser reads: numbers that are none (NaN, infinity) become null."""
    return json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def arrow_bytes(table: pa.Table) -> bytes:
    """Return a table as an Arrow IPC stream, in one batch."""
    sink = pa.BufferOutputStream()
    whole = table.combine_chunks()
    with pa.ipc.new_stream(sink, whole.schema) as stream:
        stream.write_table(whole)
    return bytes(sink.getvalue())


def tagged(request: Request, what: str, make: Callable[[], Any]) -> Response:
    """Answer with what `make` gives, or that nothing changed.

    Args:
        request: its address and query are part of the tag.
        what: hash of all that the answer depends on besides; empty: it has no tag and is made every time.
        make: returns an Arrow table, or anything that is JSON.
    """
    headers = {"cache-control": PRIVATE}
    if what:
        told = f"{__version__}\x1e{what}\x1e{request.url.path}\x1e{request.url.query}"
        headers["etag"] = tag = f'"{hashlib.blake2b(told.encode(), digest_size=16).hexdigest()}"'
        if tag in [one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")]:
            return Response(status_code=304, headers=headers)
    value = make()
    if isinstance(value, pa.Table):
        return Response(arrow_bytes(value), media_type=ARROW, headers=headers)
    return Response(json_bytes(value), media_type="application/json", headers=headers)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, (str, int, bool)):
        return value
    if hasattr(value, "model_dump"):
        return _plain(value.model_dump(mode="json"))
    if hasattr(value, "tolist"):  # numpy
        return _plain(value.tolist())
    return str(value)
