"""Our part of vLLM's HTTP server: the door, plans as models, and the endpoints below `/moeworks`."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from moeworks.engines.vllm.books import LIMITS, LOCAL, TRACES, book_of, problems_of_plan
from moeworks.engines.vllm.front import Front
from moeworks.engines.vllm.identity import running_engine
from moeworks.engines.vllm.meter import FetchedMeter
from moeworks.errors import MoeworksError
from moeworks.plan.files import plan_hash
from moeworks.serve.door import Door
from moeworks.serve.errors import Refused, error_response, refusal
from moeworks.serve.kept import KeptTraces
from moeworks.serve.limits import Limits
from moeworks.serve.manage import PlanOrName, add_management, add_models
from moeworks.serve.meter import RequestCounts
from moeworks.serve.plans import plan_of

__all__ = ["MoeworksEndpoint"]

SETTINGS = "moeworks.json"
METER_SECONDS = 30.0  # that workers may take to say their sums
OURS = ("/v1/models", "/v1/models/{model}")


class MoeworksEndpoint:
    """vLLM's endpoint plug-in; loaded where `VLLM_PLUGINS` names moeworks."""

    name = "moeworks"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        limits = Limits(**json.loads(os.environ.get(LIMITS, "{}")))
        key = os.environ.get("MOEWORKS_API_KEY") or os.environ.get("VLLM_API_KEY") or ""
        self._door = Door(None, limits=limits, key=key)
        self._front = Front(None)
        self._app: Any = None

    def attach_router(self, app: Any) -> None:
        """Put the door before the app; routes come when the engine is there."""
        self._app = app
        front, door = self._front, self._door

        def behind(inner: Any) -> Any:
            front.app, door.app = inner, front
            return door

        app.add_middleware(behind)
        if os.environ.get(LOCAL):  # a page in a browser may reach loopback under a name of its own
            from starlette.middleware.trustedhost import TrustedHostMiddleware

            app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]", "::1"])

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Read the plans, and add what is served beside vLLM's own routes."""
        if engine_client is None:
            self._front.why_not = "this server has no engine."
            return
        if not self._door.key and getattr(args, "api_key", None):
            self._door.key = args.api_key[0].encode()
        config = engine_client.vllm_config
        try:
            book = await asyncio.to_thread(book_of, config)
        except MoeworksError as error:
            raise SystemExit(f"the server does not start: {error}") from None
        self._front.book, self._front.client = book, engine_client
        self._front.served = book.base_names[-1]
        self._front.prefix = _prefix(str(config.model_config.model))
        meter = RequestCounts(FetchedMeter(_fetching(engine_client)))
        meter.watch_sizes(lambda: len(self._door.tickets), lambda: len(book))
        self._door.counts = meter.answered
        self._front.ran = meter.ran
        engine = SimpleNamespace(
            identity=book.identity, engine=running_engine(config), context=int(config.model_config.max_model_len)
        )
        count = int(os.environ.get(TRACES, "0"))
        kept = self._front.traces = KeptTraces(engine, count, book.limits.trace_bytes) if count else None
        serving = SimpleNamespace(
            engine=engine,
            plans=book,
            limits=book.limits,
            started=int(time.time()),
            worker=SimpleNamespace(meter=meter, kept=kept),
        )
        self._add_routes(serving)

    def _add_routes(self, serving: Any) -> None:
        app, book = self._app, serving.plans

        async def refused(request: Any, error: Exception) -> Any:
            found = refusal(error)
            return error_response(found.status, found.message)

        app.add_exception_handler(MoeworksError, refused)
        app.add_exception_handler(Refused, refused)
        app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", "") not in OURS]
        add_models(app, serving, self._door, book.base_names[-1])

        @app.post("/moeworks/plans/validate")  # type: ignore[untyped-decorator]
        async def validate_plan(body: PlanOrName) -> dict[str, Any]:
            """Say all that speaks against running a plan on vLLM."""
            try:
                plan = book.get(body.plan) if isinstance(body.plan, str) else plan_of(body.plan, book.limits)
            except MoeworksError as error:
                return {"valid": False, "problems": [str(error)], "hash": None}
            found = await asyncio.to_thread(problems_of_plan, plan, book.identity)
            return {"valid": not found, "problems": found, "hash": plan_hash(plan)}

        add_management(app, serving)


def _fetching(client: Any) -> Callable[[], Any]:
    """Return what asks all workers for their sums, from a thread, while the server's own loop runs."""
    loop = asyncio.get_running_loop()

    def fetch() -> Any:
        asked = asyncio.run_coroutine_threadsafe(client.collective_rpc("moeworks_meter"), loop)
        return asked.result(timeout=METER_SECONDS)

    return fetch


def _prefix(model: str) -> str:
    """Return the text that every prompt of this model starts with, if `moeworks.json` beside its weights says so."""
    file = Path(model) / SETTINGS
    if not file.is_file() or not json.loads(file.read_text()).get("add_bos"):
        return ""
    from transformers import AutoTokenizer

    return str(AutoTokenizer.from_pretrained(model).bos_token or "")
