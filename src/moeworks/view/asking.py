"""Asks the page's own endpoints without a server, so that a file holds just what a browser would be sent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from moeworks.errors import RunFailed

if TYPE_CHECKING:
    from moeworks.view.sources import Sources

__all__ = ["Get", "ask", "asking"]

Get = Callable[[str], bytes | None]  # address below /view/ → the answer; None where it is refused, with a reason


@contextmanager
def asking(sources: Sources) -> Iterator[Get]:
    """Yield a function that asks for an address such as `api/sources`; a server's failure is an error.

    Args:
        sources: what the page shows; nothing runs on its engine.
    """
    from moeworks.serve.limits import Limits
    from moeworks.view.app import lone_app
    from moeworks.view.routes import add_page

    app = lone_app(Limits(), key="")
    add_page(app, sources)
    with ThreadPoolExecutor(1) as thread:  # there may be an event loop in this one already, as in notebooks

        def get(url: str) -> bytes | None:
            status, body = thread.submit(lambda: asyncio.run(ask(app, url))).result()
            if status >= 500:
                raise RunFailed(f"{url}: {json.loads(body)['error']['message']}")
            return body if status == 200 else None

        yield get


async def ask(app: Any, url: str) -> tuple[int, bytes]:
    """Return status and body of an app's answer to a GET of an address below /view/."""
    path, _, query = url.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": f"/view/{path}",
        "raw_path": f"/view/{path}".encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [],
        "server": ("127.0.0.1", 0),
        "client": ("127.0.0.1", 0),
    }
    status, parts = 0, []
    given = False

    async def receive() -> dict[str, Any]:
        nonlocal given
        if given:
            await asyncio.Event().wait()  # the client stays
        given = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            parts.append(message.get("body", b""))

    await app(scope, receive, send)
    return status, b"".join(parts)
