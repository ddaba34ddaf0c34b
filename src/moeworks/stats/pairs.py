"""How often two experts run for the same token, by block of documents."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeworks.stats.documents import BLOCKS
from moeworks.stats.stretches import Stretches

__all__ = ["blocks_for", "pairs_of_one", "pairs_of_two"]

Array = NDArray[Any]
_CHUNK = 1 << 15  # rows at a time
_BUDGET_BYTES = 128 << 20


def blocks_for(experts: int) -> int:
    """Return how many blocks of documents tables of (E, E) counts may have."""
    return min(BLOCKS, max(8, _BUDGET_BYTES // (16 * experts * experts)))


def pairs_of_one(slots: Array, texts: Stretches, experts: int) -> Array:
    """Return how often two experts of one layer run for the same token, (blocks, E, E); diagonal: how often each runs.

    All pairs of a token's k experts are counted, not only neighbours in rank.
    """
    counts = _count(slots, slots, texts, experts, experts, same=True)
    turned = counts.transpose(0, 2, 1).copy()
    diagonal = np.einsum("bii->bi", counts).copy()
    counts += turned
    np.einsum("bii->bi", counts)[:] = diagonal
    return counts


def pairs_of_two(first: Array, second: Array, texts: Stretches, experts: int, others: int) -> Array:
    """Return how often an expert of each of two layers run for the same token, (blocks, E, E')."""
    return _count(first, second, texts, experts, others, same=False)


def _count(first: Array, second: Array, texts: Stretches, experts: int, others: int, *, same: bool) -> Array:
    block = np.repeat(texts.block, texts.stop - texts.start)  # (n,)
    size = (experts + 1) * (others + 1)  # a slot that did not run, -1, counts in the last row and column
    counts = np.zeros((texts.blocks, size), np.int64)
    order = np.argsort(block, kind="stable")  # rows of one block together: then a chunk has few of them
    edges = np.searchsorted(block[order], np.arange(texts.blocks + 1))
    for number in range(texts.blocks):
        for start in range(edges[number], edges[number + 1], _CHUNK):
            rows = order[start : min(start + _CHUNK, edges[number + 1])]
            ours = (first[rows].T % (experts + 1)).astype(np.int64) * (others + 1)  # (k, n)
            theirs = (second[rows].T % (others + 1)).astype(np.int64)
            for i, one in enumerate(ours):
                for other in theirs[i:] if same else theirs:
                    counts[number] += np.bincount(one + other, minlength=size)
    return counts.reshape(-1, experts + 1, others + 1)[:, :experts, :others]
