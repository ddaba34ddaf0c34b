"""Work that the page asks of the model: on the server's one inference thread, and given up when nobody waits for it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from moeworks.errors import MoeworksError
from moeworks.serve.door import TICKET, Ticket
from moeworks.serve.errors import Refused, refusal

if TYPE_CHECKING:
    from moeworks.engines.transformers import TransformersEngine
    from moeworks.serve.base import Serving

__all__ = ["GivenUp", "Step", "run_work", "stream_work"]

logger = logging.getLogger(__name__)
Step = Callable[[dict[str, Any]], None]  # tells the page how far the work is


class GivenUp(Exception):
    """Nobody waits any more; the work is left where it stands."""


@contextmanager
def stoppable(engine: TransformersEngine, ticket: Ticket) -> Iterator[None]:
    """Leave the block with `GivenUp` before the next forward pass once the ticket was ended."""

    def look(*_: Any) -> None:
        if ticket.reason:
            raise GivenUp(ticket.reason)

    look()
    handle = engine.model.register_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()


async def run_work(serving: Serving, work: Callable[[], Any]) -> Any:
    """Run `work` on the engine after what waits already, and return what it gives.

    Raises:
        Refused: it failed, or was ended.
    """
    ticket = TICKET.get()
    status, value = await serving.worker.run(_guarded, serving, work, ticket)
    if status == "failed":
        raise value
    return value


async def stream_work(serving: Serving, work: Callable[[Step], dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    """Yield what `work` tells of itself and then what it gives; errors are the last event, as `error_body` has them."""
    import asyncio

    from moeworks.serve.errors import error_body

    ticket, loop = TICKET.get(), asyncio.get_running_loop()
    events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

    def tell(event: dict[str, Any]) -> None:
        loop.call_soon_threadsafe(events.put_nowait, event)

    yield {"done": 0, "total": 0, "what": "waiting for the model"}
    future = serving.worker.run(_guarded, serving, lambda: work(tell), ticket)
    future.add_done_callback(lambda _: events.put_nowait(None))
    while (event := await events.get()) is not None:
        yield event
    status, value = future.result()
    yield error_body(value.status, value.message) if status == "failed" else value


def _guarded(serving: Serving, work: Callable[[], Any], ticket: Ticket) -> tuple[str, Any]:
    """Run on the inference thread; what goes wrong is returned, so that nothing leaves the thread unseen."""
    try:
        with stoppable(serving.engine, ticket):
            return "done", work()
    except GivenUp:
        return "failed", Refused(ticket.status or 499, f"{ticket.reason}.")
    except Exception as error:
        if not isinstance(error, (MoeworksError, Refused)):
            logger.exception("work for the page failed")
        return "failed", refusal(error)
