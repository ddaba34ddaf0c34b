"""Puts a server together: transformers' app and handlers, the door before them, our endpoints beside them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from moeworks.errors import MoeworksError, Unsupported, need

if TYPE_CHECKING:
    from fastapi import FastAPI

    from moeworks.engines.base import Engine
    from moeworks.plan import Plan
    from moeworks.serve.limits import Limits

__all__ = ["build_app", "need_packages"]

KEPT = ("/v1/chat/completions", "/v1/completions", "/openapi.json")


def need_packages() -> None:
    """Refuse to go on without the packages that serving needs.

    Raises:
        MissingExtra: naming the first one that is not installed.
    """
    for package in ("fastapi", "uvicorn", "openai", "prometheus_client"):
        if find_spec(package) is None:
            raise need(package, "serve", "a server")


def build_app(
    engine: Engine,
    plans: Mapping[str, Plan] | None = None,
    *,
    name: str = "",
    key: str = "",
    limits: Limits | None = None,
    keep_traces: int = 0,
) -> FastAPI:
    """Return the OpenAI-compatible app of a loaded model; run it with any ASGI server, in one process.

    Args:
        engine: a transformers engine. It belongs to the app from now on: nothing else may run on it.
        plans: name → plan; each name is a model of the API beside `base`.
        name: what the model is called; the name that it was loaded by without.
        key: what clients must send as `Authorization: Bearer KEY`; empty: nothing.
        limits: bounds of bodies, lengths, plans and times.
        keep_traces: choices whose routes are kept for `/moeworks/trace`; 0 keeps none.

    Raises:
        MissingExtra: fastapi, uvicorn, openai or prometheus_client is not installed.
        Unsupported: the engine holds no transformers model.
        BadPlan, BadData: a plan cannot be served, or its name cannot be one.
    """
    need_packages()
    from moeworks.engines.transformers import TransformersEngine
    from moeworks.serve.base import EngineModels, Serving
    from moeworks.serve.chat import ChatHandler
    from moeworks.serve.completion import TextHandler
    from moeworks.serve.door import Door
    from moeworks.serve.kept import KeptTraces
    from moeworks.serve.limits import Limits
    from moeworks.serve.manage import add_management, add_models
    from moeworks.serve.meter import ServerMeter
    from moeworks.serve.plans import PlanBook
    from moeworks.serve.worker import Worker

    if not isinstance(engine, TransformersEngine):
        raise Unsupported(
            f"the {engine.engine.name} engine cannot be served from here: the handlers run a transformers model. "
            "Its torch twin is served as MODEL `fake`."
        )
    limits = limits or Limits()
    name = name or engine.identity.name
    book = PlanBook(engine.identity, limits=limits, model_name=name)
    for plan_name, plan in (plans or {}).items():
        try:
            book.add(plan_name, plan)
        except MoeworksError as error:
            raise type(error)(f"plan '{plan_name}': {error}") from None
    meter = ServerMeter(engine.routers)
    kept = KeptTraces(engine, keep_traces, limits.trace_bytes) if keep_traces else None
    serving = Serving(Worker(engine, meter, kept), book, limits)
    models = EngineModels(engine, name)
    app = _stripped(models, ChatHandler(serving, models), TextHandler(serving, models))
    door = Door(None, limits=limits, key=key)
    meter.watch_sizes(lambda: len(door.tickets), lambda: len(book))
    door.counts = meter.answered
    add_models(app, serving, door, name)
    add_management(app, serving)
    app.add_middleware(_behind, door=door)
    app.state.door, app.state.serving = door, serving
    return app


def _behind(app: Any, *, door: Any) -> Any:
    door.app = app
    return door


def _stripped(models: Any, chat: Any, text: Any) -> FastAPI:
    """Return transformers' app without what loads other models, and with errors in OpenAI's form."""
    from transformers.cli.serving.server import build_server
    from transformers.cli.serving.utils import GenerationState

    from moeworks.serve.errors import add_handlers
    from moeworks.serve.fields import ChatFields, CompletionFields

    app: FastAPI = build_server(models, chat, text, None, None, None, GenerationState())
    app.title = "moeworks"
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", "") in KEPT]
    for route, fields in (("/v1/chat/completions", ChatFields), ("/v1/completions", CompletionFields)):
        found: Any = next(r for r in app.router.routes if getattr(r, "path", "") == route)
        schema = fields.model_json_schema(ref_template="#/components/schemas/{model}")
        found.openapi_extra = {"requestBody": {"content": {"application/json": {"schema": _inlined(schema)}}}}

    add_handlers(app)
    return app


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON schema with its definitions in place of references to them."""
    definitions = schema.pop("$defs", {})

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                return walk(definitions[value["$ref"].rsplit("/", 1)[1]])
            return {name: walk(inner) for name, inner in value.items()}
        return [walk(inner) for inner in value] if isinstance(value, list) else value

    inlined: dict[str, Any] = walk(schema)
    return inlined
