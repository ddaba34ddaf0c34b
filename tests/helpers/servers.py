"""Servers for tests: an app in a thread with a real uvicorn, and plans whose routes cannot be mistaken."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from moeworks.address import Address
from moeworks.artefact import ModelIdentity
from moeworks.plan import Plan, Promote, empty_plan
from moeworks.serve.run import server_of

__all__ = ["Served", "in_thread", "signature"]


@dataclass(frozen=True)
class Served:
    """A running server, as the client suite sees it."""

    url: str
    identity: ModelIdentity
    context: int
    plans: Mapping[str, Plan] = field(default_factory=dict)
    key: str = "none"
    base: str = "base"
    extra: Callable[..., dict[str, Any]] = lambda **moeworks: {"moeworks": moeworks}  # how the field travels


def signature(identity: ModelIdentity, expert: int) -> Plan:
    """Return a plan under which this expert runs for every token in every layer."""
    experts = tuple(Address(shape.layer, expert) for shape in identity.layers)
    return empty_plan(identity, description=f"expert {expert} for every token").model_copy(
        update={"operations": (Promote(experts=experts),)}
    )


@contextmanager
def in_thread(app: Any, **options: Any) -> Iterator[str]:
    """Serve an app on a free port of this process; yield its address."""
    server = server_of(app, port=0, log_level="critical", **options)
    app.state.server = server
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(15)
        assert not thread.is_alive()
