"""Runs a server until it is stopped: one process, one port, and an orderly end."""

from __future__ import annotations

import math
import os
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from moeworks.errors import BadData, MoeworksError

if TYPE_CHECKING:
    import uvicorn

    from moeworks.engines.base import Engine
    from moeworks.plan import Plan
    from moeworks.serve.limits import Limits

__all__ = ["KEY_VARIABLE", "LOOPBACK", "bind", "open_model", "serve", "server_of"]

KEY_VARIABLE = "MOEWORKS_API_KEY"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def open_model(model: str, **options: Any) -> Engine:
    """Open what is to be served: `lab`, a folder, a Hub id, or `fake` or `fake:PLANT`, the planted torch model."""
    name, _, plant = model.partition(":")
    if name != "fake":
        from moeworks.engines import load

        return load(model, **options)
    from moeworks.engines.fake import planted_model
    from moeworks.engines.transformers import TransformersEngine

    found = planted_model(plant or "single")
    if not found.tokenizer.chat_template:
        found.tokenizer.chat_template = (
            "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
            "{% if add_generation_prompt %}assistant: {% endif %}"
        )
    return TransformersEngine(found.model, found.tokenizer, name=model)


def serve(
    engine: Engine,
    plans: Mapping[str, Plan] | None = None,
    *,
    name: str = "",
    host: str = "127.0.0.1",
    port: int = 8000,
    key: str | None = None,
    limits: Limits | None = None,
    keep_traces: int = 0,
) -> None:
    """Serve a model until Ctrl-C or SIGTERM; arguments are those of `build_app`.

    Args:
        engine, plans, name, limits, keep_traces: as in `build_app`.
        host: the address to listen on; another one than loopback needs a key.
        port: 0 takes a free one. The address is printed on standard error.
        key: None takes that of the environment variable MOEWORKS_API_KEY, if there is one.

    Raises:
        BadData: the address is open to others and there is no key.
        MoeworksError: the port cannot be had.
    """
    from moeworks.serve.app import build_app, need_packages

    need_packages()
    key = os.environ.get(KEY_VARIABLE, "") if key is None else key
    if host not in LOOPBACK and not key:
        raise BadData(
            f"{host} can be reached by others: give a key with --api-key or {KEY_VARIABLE}, or use 127.0.0.1."
        )
    listening = bind(host, port)
    with listening:
        app = build_app(engine, plans, name=name, key=key, limits=limits, keep_traces=keep_traces)
        _serve(app, listening, host)


def bind(host: str, port: int) -> socket.socket:
    """Return a socket on a port, 0 for a free one.

    Raises:
        MoeworksError: it cannot be had.
    """
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise MoeworksError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --port."
        ) from None
    return listening


def _serve(app: Any, listening: socket.socket, host: str) -> None:
    import transformers
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    transformers.logging.set_verbosity_error()
    if host in LOOPBACK:  # a page in a browser may reach loopback under a name of its own
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]", "::1"])
    serving = app.state.serving
    address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"

    def started() -> None:
        names = ", ".join(name for name, _, _ in serving.plans) or "none"
        print(f"serving {serving.engine.identity.name} at {address}/v1, plans: {names}; Ctrl-C stops", file=sys.stderr)

    with suppress(KeyboardInterrupt):
        server_of(app, started).run(sockets=[listening])
    print("stopped", file=sys.stderr)


def server_of(app: Any, started: Callable[[], None] = lambda: None, **options: Any) -> uvicorn.Server:
    """Return uvicorn's server for an app of `build_app`; stopped, it lets running requests finish for a while.

    Args:
        app: the app.
        started: called when it takes requests.
        **options: of uvicorn's config.
    """
    import uvicorn

    door, grace = app.state.door, app.state.door.limits.grace_seconds

    class Server(uvicorn.Server):
        """Says when it is there, and takes no more requests while it stops."""

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            started()

        async def shutdown(self, sockets: Any = None) -> None:
            door.drain()
            await super().shutdown(sockets)

    settings: dict[str, Any] = {
        "log_level": "error",
        "access_log": False,
        "lifespan": "on",
        "timeout_graceful_shutdown": math.ceil(grace) + 5,
        "server_header": False,
    }
    return Server(uvicorn.Config(app, **(settings | options)))
