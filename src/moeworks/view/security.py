"""What keeps the page to itself: host names, foreign origins, response headers, the content security policy.

The key is checked at the door of the server (`moeworks.serve.door`); this is what a browser needs besides.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from moeworks.serve.errors import error_response

__all__ = ["LOOPBACK_NAMES", "REPORT_POLICY", "Guard", "content_policy", "script_hashes", "sign", "signed"]

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
INLINE = re.compile(r"<script\b(?![^>]*\ssrc=)[^>]*>(.*?)</script>", re.DOTALL | re.IGNORECASE)

# A study's report is one file with inline styles and pictures and no scripts; it gets an origin of its own, and only
# the page may frame it.
REPORT_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'"
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)


def script_hashes(page: str) -> list[str]:
    """Return the CSP source of every inline script of a page, such as its import map, in their order."""
    return [
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in INLINE.findall(page)
    ]


def content_policy(hashes: Iterable[str] = ()) -> str:
    """Return the content security policy of the page; `hashes` are those of its inline scripts."""
    scripts = " ".join(["'self'", *hashes])
    return (
        f"default-src 'none'; script-src {scripts}; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "font-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def sign(key: str, what: str) -> str:
    """Return the word that opens one address without the key: a link in a browser cannot send a header."""
    return hmac.new(key.encode(), what.encode(), hashlib.sha256).hexdigest()[:32]


def signed(key: str, what: str, word: str) -> bool:
    """Whether `word` opens `what`; without a key everything is open."""
    return not key or hmac.compare_digest(sign(key, what).encode(), word.encode())


class Guard:
    """ASGI middleware: refuses foreign host names and origins, and adds the headers that every answer carries.

    A page of another site may reach a server on loopback: under a name of its own that it lets point there, or by
    sending requests whose answers it cannot read. Both are turned away here.

    Args:
        app: what is guarded.
        hosts: names that a request may call this server by; None: any (where a key is needed, it is no secret).
    """

    def __init__(self, app: Any, *, hosts: Iterable[str] | None = LOOPBACK_NAMES) -> None:
        self.app = app
        self.hosts = None if hosts is None else frozenset(hosts)
        self.policy = content_policy()

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        """Serve one connection's request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                present = {name.lower() for name, _ in headers}
                more = (*HEADERS, (b"content-security-policy", self.policy.encode()))
                message["headers"] = [*headers, *(pair for pair in more if pair[0] not in present)]
            await send(message)

        if problem := self._problem(scope):
            await error_response(403, problem, headers={"connection": "close"})(scope, receive, guarded)
            return
        await self.app(scope, receive, guarded)

    def _problem(self, scope: Any) -> str:
        given = dict(scope["headers"])
        host = given.get(b"host", b"").decode("latin-1").lower()
        if self.hosts is not None and re.sub(r":\d+$", "", host) not in self.hosts:
            return (
                f"this server is not called '{host[:80]}'; open it as {', '.join(sorted(self.hosts))}, or start it "
                "with --host and a key."
            )
        origin = given.get(b"origin", b"").decode("latin-1").lower()
        foreign = origin and urlsplit(origin).netloc != host
        if scope["method"] not in ("GET", "HEAD", "OPTIONS") and (
            foreign or given.get(b"sec-fetch-site", b"same-origin") not in (b"same-origin", b"none")
        ):
            return "a page of another site may ask nothing of this server."
        return ""
