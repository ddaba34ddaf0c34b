"""Distinct sets of chosen experts with how often each came, joined without keeping every row."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["distinct_sets", "joined_sets"]

Array = NDArray[Any]


def distinct_sets(sets: Array, counts: Array) -> tuple[Array, Array]:
    """Return the distinct rows of `sets`, (m, k) in lexical order, and their summed counts, (m,)."""
    if not len(sets):
        return sets, counts
    distinct, place = np.unique(sets, axis=0, return_inverse=True)
    added = np.zeros(len(distinct), np.int64)
    np.add.at(added, place.reshape(-1), counts)
    return distinct, added


def joined_sets(parts: Collection[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Return the distinct sets of several collections and their counts."""
    sets, counts = zip(*parts, strict=True)
    return distinct_sets(np.concatenate(sets), np.concatenate(counts))
