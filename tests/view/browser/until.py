"""Waiting for something on a page whose policy forbids eval, which playwright's own waiting for a function needs."""

from __future__ import annotations

import time

__all__ = ["until"]


def until(page, expression: str, *, seconds: float = 20) -> None:
    """Wait until a JavaScript expression is true."""
    end = time.monotonic() + seconds
    while not page.evaluate(f"Boolean({expression})"):
        assert time.monotonic() < end, f"not true in {seconds} s: {expression}\n{page.inner_text('main')[:1500]}"
        page.wait_for_timeout(50)
