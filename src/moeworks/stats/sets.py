"""Overlap of the sets of experts that tokens chose, and what it is when sets are drawn at random."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import BadTrace

__all__ = ["chance_any", "chance_jaccard", "check_ids", "chosen", "jaccard", "overlap"]

Array = NDArray[Any]


def check_ids(ids: Array, experts: int) -> None:
    """Raise BadTrace where an id is not below the number of experts."""
    largest = int(ids.max(initial=0))
    if largest >= experts:
        raise BadTrace(f"a row names expert {largest}, but experts are 0 to {experts - 1}; the trace is altered.")


def chosen(ids: Array, weights: Array, *, empty: int = -1) -> Array:
    """Return the experts that ran, (n, k): the ids themselves, or int32 with `empty` in slots of weight exactly 0."""
    if np.count_nonzero(weights) == weights.size:
        return ids
    return np.where(weights != 0, ids, np.int32(empty))


def overlap(first: Array, second: Array) -> Array:
    """Return how many experts two sets share, (n,) uint8, row by row.

    Args:
        first: (n, k) ids, distinct in a row.
        second: (n, j) ids; slots that did not run hold other negative numbers than those of `first`.
    """
    ours, theirs = (np.ascontiguousarray(ids.T) for ids in (first, second))  # (k, n): a slot at a time is fastest
    shared = np.zeros(len(first), np.uint8)
    for mine in ours:
        for other in theirs:
            shared += mine == other
    return shared


def jaccard(first: Array, second: Array) -> Array:
    """Return shared experts / experts of either, (n,), row by row; NaN where nothing ran in both. As in `overlap`."""
    shared = overlap(first, second).astype(np.float64)
    either = _size(first) + _size(second) - shared
    with np.errstate(invalid="ignore"):
        return np.asarray(shared / either)


def chance_jaccard(experts: int, first: int, second: int | None = None) -> float:
    """Return the mean Jaccard index of two sets of given sizes drawn at random (hypergeometric overlap)."""
    other = first if second is None else second
    total = math.comb(experts, other)
    return sum(
        math.comb(first, j) * math.comb(experts - first, other - j) / total * j / (first + other - j)
        for j in range(1, min(first, other) + 1)
    )


def chance_any(experts: int, top_k: int) -> float:
    """Return how likely two random sets of k experts share any: 1 - C(E - k, k) / C(E, k)."""
    return 1 - math.comb(experts - top_k, top_k) / math.comb(experts, top_k)


def _size(ids: Array) -> Array:
    return np.asarray((ids >= 0).sum(-1)) if ids.dtype.kind == "i" else np.full(len(ids), ids.shape[1])
