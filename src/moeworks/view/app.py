"""The page as an app: its files, its data, and, where there is a model, the server that answers its questions.

Traces alone need no torch: then the app is the door of `moeworks serve` with the page's own endpoints behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.resources import files
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from moeworks.errors import need

if TYPE_CHECKING:
    from fastapi import FastAPI

    from moeworks.engines.base import Engine
    from moeworks.plan import Plan
    from moeworks.serve.limits import Limits
    from moeworks.view.sources import Sources

__all__ = ["build_page", "lone_app", "need_packages", "static_files"]

TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".json": "application/json",
    ".md": "text/plain",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
    ".woff2": "font/woff2",
}


def need_packages(*, model: bool) -> None:
    """Refuse to go on without the packages that the page needs.

    Raises:
        MissingExtra: naming the first one that is not installed.
    """
    for package in ("fastapi", "uvicorn", *(("openai", "prometheus_client") if model else ())):
        if find_spec(package) is None:
            raise need(package, "view", "the page")


def build_page(
    sources: Sources,
    *,
    plans: Mapping[str, Plan] | None = None,
    key: str = "",
    limits: Limits | None = None,
    hosts: Iterable[str] | None = None,
) -> FastAPI:
    """Return the app of the page: `/view/`, and the server of `moeworks serve` beside it where there is a model.

    Args:
        sources: what the page shows. Its engine belongs to the app from now on: nothing else may run on it.
        plans: name → plan that requests may name; each is a model of the API too.
        key: what the page must be opened with; empty: nothing.
        limits: bounds of bodies, lengths, plans and times.
        hosts: names that the server may be called by; without, those of loopback, or any where there is a key.

    Raises:
        MissingExtra: a package is not installed.
        Unsupported: the engine holds no transformers model.
        BadPlan, BadData: a plan cannot be served, or its name cannot be one.
    """
    engine = sources.engine
    need_packages(model=engine is not None)
    from moeworks.serve.limits import Limits
    from moeworks.view.routes import add_page
    from moeworks.view.security import LOOPBACK_NAMES, Guard

    limits = limits or Limits()
    if engine is not None:
        from moeworks.serve.app import build_app

        app = build_app(engine, {**_that_fit(sources, engine), **(plans or {})}, key=key, limits=limits)
    else:
        app = lone_app(limits, key=key)
    door = app.state.door
    door.public = _needs_no_key
    door.works = (*door.works, "/view/api/")
    add_page(app, sources, key=key)
    if hosts is None and not key:
        hosts = LOOPBACK_NAMES
    app.add_middleware(Guard, hosts=hosts)
    return app


def _that_fit(sources: Sources, engine: Engine) -> dict[str, Plan]:
    """Return the sources' plans that this model can run; the others are shown, and refused if they are asked for."""
    from moeworks.serve.plans import served_problems

    found = {id: sources.plan(id) for id in sources.ids("plan")}
    return {id: plan for id, plan in found.items() if not served_problems(plan, engine.identity)}


def lone_app(limits: Limits, *, key: str) -> FastAPI:
    """Return an app with the server's door and nothing behind it."""
    from fastapi import FastAPI

    from moeworks.serve.door import Door
    from moeworks.serve.errors import add_handlers

    app = FastAPI(title="moeworks", docs_url=None, redoc_url=None, openapi_url=None)
    add_handlers(app)
    app.state.door, app.state.serving = Door(None, limits=limits, key=key), None

    @app.get("/health")
    def health() -> dict[str, str]:
        """Say that requests are taken."""
        return {"status": "stopping" if app.state.door.stopping else "ok"}

    app.add_middleware(_behind, door=app.state.door)
    return app


def _behind(app: Any, *, door: Any) -> Any:
    door.app = app
    return door


def _needs_no_key(path: str) -> bool:
    """Whether a path is the page itself, which holds nothing of anybody's; reports bring a word of their own."""
    return path in ("/", "/view", "/view/") or path.startswith(("/view/static/", "/view/report/"))


def static_files() -> dict[str, Any]:
    """Return the page's files: path below `static/` → what can be read; `index.html` is one of them."""
    found: dict[str, Any] = {}

    def walk(folder: Any, prefix: str) -> None:
        for child in folder.iterdir():
            if child.is_dir():
                walk(child, f"{prefix}{child.name}/")
            elif any(child.name.endswith(ending) for ending in TYPES):
                found[f"{prefix}{child.name}"] = child

    root = files("moeworks.view") / "static"
    if root.is_dir():
        walk(root, "")
    return found
