"""Loops over tokens that numpy has no word for, made machine code by numba, if it is installed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

from moeworks.errors import need

__all__ = ["compiled", "compiled_if_there"]


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of numpy arrays as machine code, made at its first call and kept for the process.

    The function itself stays plain Python, slow but the same.

    Raises:
        MissingExtra: numba is not installed.
    """
    try:
        import numba
    except ImportError:
        raise need("numba", "fast", "a statistic of the order of tokens (caches, segments)") from None
    made: Callable[..., Any] = numba.njit(nogil=True, cache=False)(function)
    return made


@cache
def compiled_if_there(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """Return a function as machine code, or None without numba: for loops that numpy does too, only slower."""
    return compiled(function) if find_spec("numba") else None
