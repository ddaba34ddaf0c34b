"""Errors as OpenAI clients read them: one JSON object with a sentence, a type and a code."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteError

from moeworks.errors import MoeworksError
from moeworks.serve.plans import UnknownName

__all__ = ["Refused", "add_handlers", "error_body", "error_response", "refusal"]

CODES = {
    400: "bad_request",
    401: "invalid_api_key",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    409: "conflict",
    413: "too_large",
    422: "unknown_field",
    499: "client_closed_request",
    500: "internal_error",
    503: "unavailable",
    504: "timeout",
}


class Refused(Exception):
    """A request that is not served, with the status and the sentence of the answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


def refusal(error: Exception) -> Refused:
    """Return what an error becomes in HTTP; the user's mistakes keep their sentence, ours tell nothing more."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, UnknownName):
        return Refused(404, str(error))
    if isinstance(error, MoeworksError):
        return Refused(400 if error.exit_code == 2 else 500, str(error))
    return Refused(500, f"unexpected {type(error).__name__} in the server; its log has more.")


def error_body(status: int, message: str, **more: Any) -> dict[str, Any]:
    """Return the JSON object of an error."""
    kind = "invalid_request_error" if 400 <= status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": CODES.get(status, str(status)), **more}}


def error_response(status: int, message: str, *, headers: dict[str, str] | None = None, **more: Any) -> JSONResponse:
    """Return an error as an answer; 503 says when to ask again."""
    headers = {**(headers or {}), **({"retry-after": "1"} if status == 503 else {})}
    return JSONResponse(error_body(status, message, **more), status_code=status, headers=headers)


def add_handlers(app: FastAPI) -> None:
    """Give every error of an app this form, those of the framework too."""

    async def refused(request: Request, error: Exception) -> JSONResponse:
        found = refusal(error)
        return error_response(found.status, found.message)

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, StarletteError)
        return error_response(error.status_code, f"{str(error.detail).rstrip('.')}.")

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        problems = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:20]]
        return error_response(400, f"{'; '.join(problems)[:2000]}.")

    app.add_exception_handler(Exception, refused)
    app.add_exception_handler(MoeworksError, refused)
    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(StarletteError, http)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
