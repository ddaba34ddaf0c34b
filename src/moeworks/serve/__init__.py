"""An OpenAI-compatible server in which every plan is a model name, on the transformers engine."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moeworks.serve.app import build_app
    from moeworks.serve.limits import Limits
    from moeworks.serve.routes import read_routes
    from moeworks.serve.run import open_model, serve

_HOMES = {"Limits": "limits", "build_app": "app", "open_model": "run", "read_routes": "routes", "serve": "run"}

__all__ = ["Limits", "build_app", "open_model", "read_routes", "serve"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'moeworks.serve' has no attribute '{name}'")
    return getattr(import_module(f"moeworks.serve.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
