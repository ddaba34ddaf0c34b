"""Errors of the page that are answered apart from others: what is not there, and what is too much at once."""

from __future__ import annotations

from moeworks.errors import BadData

__all__ = ["NotThere", "TooMuch"]


class NotThere(BadData):
    """A trace, request, expert or file that was asked for is not there; over HTTP this is status 404."""


class TooMuch(BadData):
    """More was asked for than is handed out at once; over HTTP this is status 413."""
