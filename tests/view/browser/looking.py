"""What the tests of several views share: axe, waiting, the present address."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from urllib.parse import parse_qsl

__all__ = ["axe_violations", "parameters", "until"]

VENDOR = Path(__file__).parent / "vendor"


@cache
def _axe() -> str:
    return (VENDOR / "axe.min.js").read_text(encoding="utf-8")


def axe_violations(page) -> list[str]:
    """Return what axe finds wrong with a page, a line each."""
    page.evaluate(_axe())
    found = page.evaluate("axe.run(document)")["violations"]
    return [f"{one['id']}: {one['help']}: {one['nodes'][0]['html'][:200]}" for one in found]


def until(page, expression: str, *, seconds: float = 15) -> None:
    """Wait until an expression is true; playwright's own way evaluates text in the page, which its policy forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        if time.monotonic() > end:
            raise AssertionError(f"never true: {expression}; the address is {page.url}")
        page.wait_for_timeout(30)


def parameters(page) -> dict[str, str]:
    """Return the parameters of the page's present address."""
    return dict(parse_qsl(page.evaluate("location.hash").partition("?")[2], keep_blank_values=True))
