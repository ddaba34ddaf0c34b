"""moeworks inside stock vLLM: a plug-in that steers and records each request, and an engine that runs vLLM offline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moeworks.engines.vllm.engine import VllmEngine

__all__ = ["VllmEngine"]


def __getattr__(name: str) -> Any:
    """Import the engine when it is asked for: the plug-in is loaded in processes that never need it."""
    if name == "VllmEngine":
        from moeworks.engines.vllm.engine import VllmEngine

        return VllmEngine
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
