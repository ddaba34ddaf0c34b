"""The page's endpoints: its files, what there is to see, and those that other files add."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response

from moeworks.serve.errors import Refused, error_response
from moeworks.view.answers import tagged
from moeworks.view.app import TYPES, static_files
from moeworks.view.refusals import NotThere, TooMuch
from moeworks.view.reports import add_reports, report_link
from moeworks.view.security import content_policy, script_hashes
from moeworks.view.steering import add_steering
from moeworks.view.tables import add_tables

if TYPE_CHECKING:
    from moeworks.view.sources import Sources

__all__ = ["add_page"]


def add_page(app: FastAPI, sources: Sources, *, key: str = "") -> None:
    """Add everything below `/view/` to an app that has a door."""
    _add_refusals(app)
    _add_files(app)
    _add_sources(app, sources, key)
    add_tables(app, sources)
    add_reports(app, sources, key=key)
    add_steering(app, sources)
    serving = app.state.serving
    if serving is None:
        _add_refused_work(app)
        return
    from moeworks.view.evidence import add_evidence
    from moeworks.view.recording import add_recording

    add_evidence(app, sources, serving)
    app.state.live = add_recording(app, sources, serving)


def _add_refusals(app: FastAPI) -> None:
    async def not_there(request: Request, error: Exception) -> JSONResponse:
        return error_response(404, str(error))

    async def too_much(request: Request, error: Exception) -> JSONResponse:
        return error_response(413, str(error))

    app.add_exception_handler(NotThere, not_there)
    app.add_exception_handler(TooMuch, too_much)


def _add_files(app: FastAPI) -> None:
    @app.get("/")
    @app.get("/view")
    def start() -> Response:
        """Lead to the page."""
        return RedirectResponse("/view/", status_code=307)

    @app.get("/view/")
    def page() -> Response:
        """Give the page; its policy names the inline import map by its hash."""
        found = static_files().get("index.html")
        if found is None:
            raise Refused(404, "the page's files are not installed; install moeworks again.")
        text = found.read_text(encoding="utf-8")
        headers = {"content-security-policy": content_policy(script_hashes(text)), "cache-control": "no-cache"}
        return Response(text, media_type="text/html", headers=headers)

    @app.get("/view/static/{path:path}")
    def static(path: str, request: Request) -> Response:
        """Give one of the page's files; only names that were listed, so that no path leads anywhere else."""
        found = static_files().get(path)
        if found is None:
            raise Refused(404, f"the page has no file '{path[:80]}'.")
        data = found.read_bytes()
        return _file(request, data, TYPES[PurePosixPath(path).suffix])


def _file(request: Request, data: bytes, kind: str) -> Response:
    import hashlib

    tag = f'"{hashlib.blake2b(data, digest_size=16).hexdigest()}"'
    headers = {"etag": tag, "cache-control": "no-cache"}  # asked for every time, sent when it changed
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=kind, headers=headers)


def _add_sources(app: FastAPI, sources: Sources, key: str) -> None:
    @app.get("/view/api/sources")
    def show_sources(request: Request) -> Response:
        """Say what there is to see; plans that were added to the server since are there too."""

        def make() -> dict[str, Any]:
            found = sources.as_json()
            known = {plan["id"] for plan in found["plans"]}
            served = [] if app.state.serving is None else list(app.state.serving.plans)
            added = [
                {"id": name, "name": name, "hash": digest, "verdict": plan.evidence.verdict if plan.evidence else None}
                for name, plan, digest in served
                if name not in known
            ]
            names = {name for name, _, _ in served}
            plans = [{**plan, "served": plan["id"] in names} for plan in [*found["plans"], *added]]
            studies = [{**study, "report": report_link(study["id"], key)} for study in found["studies"]]
            return {**found, "plans": plans, "studies": studies}

        return tagged(request, "", make)


def _add_refused_work(app: FastAPI) -> None:
    @app.post("/view/api/record")
    @app.post("/view/api/evidence")
    def refused() -> Response:
        """Say that there is no model."""
        raise Refused(400, "this page has no model, only what was recorded; start it with one: moeworks view lab.")
