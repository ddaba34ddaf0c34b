"""An OpenAI-compatible server in which every plan is a model name, on the transformers engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moeworks.lazy import lazily

if TYPE_CHECKING:
    from moeworks.serve.app import build_app
    from moeworks.serve.limits import Limits
    from moeworks.serve.routes import read_routes
    from moeworks.serve.run import open_model, serve

_HOMES = {"Limits": "limits", "build_app": "app", "open_model": "run", "read_routes": "routes", "serve": "run"}

__all__ = ["Limits", "build_app", "open_model", "read_routes", "serve"]

__getattr__, __dir__ = lazily(__name__, _HOMES)
