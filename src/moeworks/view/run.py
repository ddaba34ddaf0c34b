"""Runs the page until it is stopped: one process, one port, a browser opened at the right address."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from moeworks.errors import BadData
from moeworks.serve.run import KEY_VARIABLE, LOOPBACK, bind, server_of
from moeworks.view.app import build_page, need_packages

if TYPE_CHECKING:
    from moeworks.plan import Plan
    from moeworks.serve.limits import Limits
    from moeworks.view.sources import Sources

__all__ = ["PORT", "check_host", "page_address", "view"]

PORT = 8642


def view(
    sources: Sources,
    *,
    plans: Mapping[str, Plan] | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    key: str | None = None,
    limits: Limits | None = None,
    open_browser: bool = True,
    started: Callable[[str], None] = lambda address: None,
) -> None:
    """Show the page until Ctrl-C or SIGTERM.

    Args:
        sources: what the page shows.
        plans: name → plan that the page knows from the start.
        host: the address to listen on; another one than loopback needs a key.
        port: 0 takes a free one; None takes 8642, or a free one where that is taken.
        key: None takes that of the environment variable MOEWORKS_API_KEY, if there is one.
        limits: bounds of the server.
        open_browser: open the page in a browser of this machine.
        started: called with the page's address when it can be opened.

    Raises:
        BadData: the address is open to others and there is no key.
        MoeworksError: the port cannot be had.
    """
    need_packages(model=sources.engine is not None)
    key = os.environ.get(KEY_VARIABLE, "") if key is None else key
    check_host(host, key)
    listening = _bound(host, port)
    with listening:
        app = build_page(sources, plans=plans, key=key, limits=limits)
        address = page_address(host, listening.getsockname()[1], key)

        def ready() -> None:
            print(f"the page is at {address}  (Ctrl-C stops)", file=sys.stderr)
            started(address)
            if open_browser:
                webbrowser.open(address)

        _run(app, ready, listening)
    print("stopped", file=sys.stderr)


def check_host(host: str, key: str) -> None:
    """Refuse an address that others can reach without a key.

    Raises:
        BadData: so it is.
    """
    if host not in LOOPBACK and not key:
        raise BadData(
            f"{host} can be reached by others: give a key with --api-key or {KEY_VARIABLE}, or use 127.0.0.1."
        )


def page_address(host: str, port: int, key: str) -> str:
    """Return where to open the page; the key stands behind #, so that it is sent to no server and logged by none."""
    name = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(host, host)
    name = f"[{name}]" if ":" in name else name
    return f"http://{name}:{port}/view/" + (f"#key={quote(key, safe='')}" if key else "")


def _bound(host: str, port: int | None) -> socket.socket:
    from moeworks.errors import MoeworksError

    if port is not None:
        return bind(host, port)
    try:
        return bind(host, PORT)
    except MoeworksError:
        return bind(host, 0)


def _run(app: Any, ready: Callable[[], None], listening: socket.socket) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    # uvicorn stops in good order and then sends itself the same signal again: it must not end us before we tidied.
    main = threading.current_thread() is threading.main_thread()
    former = signal.signal(signal.SIGTERM, stop) if main else None
    try:
        with suppress(KeyboardInterrupt):
            server_of(app, ready).run(sockets=[listening])
    finally:
        if main:
            signal.signal(signal.SIGTERM, former)
        live = getattr(app.state, "live", None)
        if live is not None:
            live.close()
