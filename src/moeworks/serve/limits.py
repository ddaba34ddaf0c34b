"""What one server takes at most, so that no request can hurt the others."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of a server; every one has its option in `moeworks serve`.

    Attributes:
        body_bytes: of a request.
        waiting: requests at once, the running one included; more are turned away with 503.
        new_tokens: that one choice may generate; 0: as many as the context has room for.
        choices: continuations in one answer, over all its prompts.
        plans: that the server knows by name at once.
        plan_operations: of a plan that comes by request.
        record_bytes: of base64 that the routes in one answer may take.
        trace_bytes: that the traces of the last requests may take in memory.
        seconds: from the arrival of a request to its last token, waiting included.
        body_seconds: within which a request's body must be here.
        grace_seconds: that running requests get when the server is stopped.
    """

    body_bytes: int = 4 * 2**20
    waiting: int = 256
    new_tokens: int = 0
    choices: int = 16
    plans: int = 64
    plan_operations: int = 256
    record_bytes: int = 16 * 2**20
    trace_bytes: int = 256 * 2**20
    seconds: float = 600.0
    body_seconds: float = 30.0
    grace_seconds: float = 10.0
