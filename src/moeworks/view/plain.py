"""Plain data as JSON knows it: numbers that are none, or infinite, become null."""

from __future__ import annotations

from typing import Any

__all__ = ["plain"]


def plain(value: Any) -> Any:
    """Return mappings, lists and numbers with None in place of what JSON has no number for."""
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and value - value != 0 else value
