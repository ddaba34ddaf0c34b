"""The door of a server: the key, bounds on bodies and on waiting requests, and what ends a request before its time.

It stands before the whole app as plain ASGI, so that it sees a client leave whatever the app is doing.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from typing import Any

from moeworks.serve.errors import error_response
from moeworks.serve.limits import Limits

__all__ = ["TICKET", "Door", "Ticket"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
PUBLIC = ("/health",)
STOPPING = "the server is stopping"


class Ticket:
    """One request on its way; whatever ends it early is said here, and the model stops within a token."""

    def __init__(self) -> None:
        self.reason = ""  # why it was ended; empty while it may go on. Read by the inference thread
        self.status = 0  # of the answer, where there still is somebody to answer
        self._told: list[Callable[[], None]] = []

    def cancel(self, reason: str, status: int) -> None:
        """End the request; on the event loop's thread."""
        if self.reason:
            return
        self.reason, self.status = reason, status
        for tell in self._told:
            tell()

    def tell(self, callback: Callable[[], None]) -> None:
        """Call `callback` when the request is ended early, or now if it was."""
        self._told.append(callback)
        if self.reason:
            callback()


TICKET: ContextVar[Ticket] = ContextVar("ticket")


class Door:
    """ASGI middleware; see the module."""

    def __init__(self, app: Any, *, limits: Limits, key: str = "") -> None:
        self.app = app
        self.public: Callable[[str], bool] = PUBLIC.__contains__  # paths that need no key
        self.works: tuple[str, ...] = ("/v1/",)  # where a POST is work: counted, and ended when the server stops
        self.limits = limits
        self.key = key.encode()
        self.stopping = False
        self.counts: Callable[[str, int], None] = lambda path, status: None
        self.tickets: set[Ticket] = set()

    def drain(self) -> None:
        """Take no more requests, and end those that still run when their time of grace is over."""
        self.stopping = True
        asyncio.get_running_loop().call_later(self.limits.grace_seconds, self._end_all)

    def _end_all(self) -> None:
        for ticket in list(self.tickets):
            ticket.cancel(f"{STOPPING}; ask again later", 503)

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve one connection's request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        sent = 0

        async def counted(message: Message) -> None:
            nonlocal sent
            if message["type"] == "http.response.start":
                sent = message["status"]
            await send(message)

        try:
            await self._admit(scope, receive, counted)
        finally:
            self.counts(scope["path"], sent)

    async def _admit(self, scope: Any, receive: Receive, send: Send) -> None:
        async def refuse(status: int, message: str, **more: Any) -> None:
            await error_response(status, message, headers={"connection": "close"}, **more)(scope, receive, send)

        path = scope["path"]
        if path not in PUBLIC:
            if not self.public(path) and not self._knows_key(scope):
                await refuse(401, "this server wants its key: send the header `Authorization: Bearer KEY`.")
                return
            if self.stopping:
                await refuse(503, f"{STOPPING} and takes no more requests.")
                return
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                body = await self._body(scope, receive)
        except TimeoutError:
            await refuse(408, f"the body did not arrive within {self.limits.body_seconds:g} s.")
            return
        if body is None:
            await refuse(413, f"the body is larger than the {self.limits.body_bytes} bytes that this server takes.")
            return
        if scope["method"] == "POST" and (problem := problem_of(body)):
            await refuse(400, problem)
            return
        works = path.startswith(self.works) and scope["method"] == "POST"
        if works and len(self.tickets) >= self.limits.waiting:
            await refuse(503, f"{self.limits.waiting} requests are waiting already; ask again later.")
            return
        await self._run(scope, body, receive, send, works)

    async def _run(self, scope: Any, body: bytes, receive: Receive, send: Send, works: bool) -> None:
        """Let the app answer; a client that leaves, or time that runs out, ends the ticket."""
        ticket, gone, given = Ticket(), asyncio.Event(), False

        async def replay() -> Message:
            nonlocal given
            if given:
                await gone.wait()
                return {"type": "http.disconnect"}
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            ticket.cancel("the client went away", 499)
            gone.set()

        watcher = asyncio.create_task(watch())
        seconds = self.limits.seconds
        late = f"the request took longer than the {seconds:g} s that this server gives one"
        timer = asyncio.get_running_loop().call_later(seconds, ticket.cancel, late, 504)
        token = TICKET.set(ticket)
        if works:
            self.tickets.add(ticket)
        try:
            await self.app(scope, replay, send)
        finally:
            TICKET.reset(token)
            self.tickets.discard(ticket)
            timer.cancel()
            watcher.cancel()
            ticket.cancel("answered", 499)  # nothing may run on for a request that is over

    def _knows_key(self, scope: Any) -> bool:
        if not self.key:
            return True
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        kind, _, word = given.partition(b" ")
        return kind.lower() == b"bearer" and hmac.compare_digest(word.strip(), self.key)

    async def _body(self, scope: Any, receive: Receive) -> bytes | None:
        """Return the whole body, or None where it is too large."""
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if length.isdigit() and int(length) > self.limits.body_bytes:
            return None
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return b"".join(parts)
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.limits.body_bytes:
                return None
            if not message.get("more_body", False):
                return b"".join(parts)


def problem_of(body: bytes) -> str:
    """Return what keeps a body from being a JSON object of text that can be encoded; empty where nothing does."""
    try:
        value = json.loads(body.decode())
    except UnicodeDecodeError:
        return "the body is not UTF-8 text."
    except RecursionError:
        return "the body is nested too deeply."
    except ValueError as error:
        return f"the body is not JSON: {str(error)[:200]}."
    if not isinstance(value, dict):
        return f"the body is a JSON {type(value).__name__}, not an object."
    if b"\\u" in body:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return "the body holds half of a surrogate pair (\\ud800 to \\udfff), which is no text."
    return ""
