"""The page's endpoints that only read: its files, what there is to see, and the tables of a trace."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, cast, get_args

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response

from moeworks.errors import BadData, did_you_mean
from moeworks.serve.errors import Refused, error_response
from moeworks.view.answers import tagged
from moeworks.view.app import TYPES, static_files
from moeworks.view.expert_map import MapBy, expert_map
from moeworks.view.kept import trace_hash
from moeworks.view.refusals import NotThere, TooMuch
from moeworks.view.security import content_policy, script_hashes
from moeworks.view.tokens import request_table, token_table

if TYPE_CHECKING:
    from moeworks.trace import Trace
    from moeworks.view.sources import Sources

__all__ = ["add_page"]


def add_page(app: FastAPI, sources: Sources, *, key: str = "") -> None:
    """Add everything below `/view/` to an app that has a door."""
    _add_refusals(app)
    _add_files(app)
    _add_sources(app, sources)
    _add_tables(app, sources)


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


def _add_sources(app: FastAPI, sources: Sources) -> None:
    @app.get("/view/api/sources")
    def show_sources(request: Request) -> Any:
        """Say what there is to see."""
        return tagged(request, "", sources.as_json)


def _add_tables(app: FastAPI, sources: Sources) -> None:
    @app.get("/view/api/traces/{id}/requests")
    def requests(id: str, request: Request) -> Response:
        """Give the requests of a trace."""
        return _of_trace(request, sources, id, lambda trace: request_table(trace, decoder=sources.decoder(id)))

    @app.get("/view/api/traces/{id}/tokens")
    def tokens(id: str, request: Request, start: int = 0, stop: int | None = None, layers: str = "") -> Response:
        """Give the tokens of some rows."""
        wanted = _numbers(layers, "layers")
        return _of_trace(
            request,
            sources,
            id,
            lambda trace: token_table(trace, start=start, stop=stop, layers=wanted, decoder=sources.decoder(id)),
        )

    @app.get("/view/api/traces/{id}/map")
    def map_of_experts(
        id: str, request: Request, by: str = "load", label: str = "", value: str = "", scores: str = ""
    ) -> Response:
        """Give one number for every expert."""
        if by not in get_args(MapBy):
            raise BadData(f"by does not take '{by[:80]}'; {did_you_mean(by[:80], get_args(MapBy))}")
        found = sources.scores(scores) if scores else None
        more = "" if found is None else found.header.hash
        return _of_trace(
            request,
            sources,
            id,
            lambda trace: expert_map(trace, by=cast(MapBy, by), label=label, value=value, scores=found),
            more=more,
        )


def _of_trace(
    request: Request, sources: Sources, id: str, make: Callable[[Trace], Any], *, more: str = ""
) -> Response:
    trace = sources.trace(id)
    return tagged(request, f"{trace_hash(trace)} {sources.decoder(id).reason} {more}", lambda: make(trace))


def _numbers(words: str, name: str) -> list[int] | None:
    """Read numbers separated by commas; None where nothing is said."""
    if not words:
        return None
    if not re.fullmatch(r"\d{1,6}(,\d{1,6}){0,4095}", words):
        raise BadData(f"{name} takes numbers separated by commas, as in 0,3, not '{words[:80]}'.")
    return [int(word) for word in words.split(",")]
