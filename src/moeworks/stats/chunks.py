"""Token-level and chunk-level sparsity: the share of the experts that one token, or several together, leave alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks.errors import BadData
from moeworks.stats.counts import layers_of
from moeworks.stats.documents import ratio_intervals
from moeworks.stats.stretches import Stretches, stretches_of, whole_lengths
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["chunk_sparsity"]

Array = NDArray[Any]
SAMPLE = 1 << 18  # tokens
_CELLS = 1 << 20  # chunk × expert at a time


def chunk_sparsity(
    trace: Trace,
    *,
    where: Where = Where(),
    chunks: Sequence[int] = (1, 2, 4, 8, 16, 32, 64),
    cut: Literal["joined", "texts"] = "joined",
    sample: int = SAMPLE,
    bootstrap: int = 200,
    seed: int = 0,
) -> pa.Table:
    """Return which share of the experts a token (TLS) and m neighbouring tokens together (CLS) leave alone.

        TLS   = mean over tokens of 1 - |S| / E
        CLS_m = mean over chunks of m tokens of 1 - |union of their S| / E;  CLS_1 = TLS

    A row per layer and m. For top-k routing TLS is 1 - k / E; CLS tells how many experts a speculative or batched step
    has to load. Columns: `layer`, `chunk` m; `sparsity`, its 95 % interval `low`, `high` from resampled documents, and
    `chance`, (1 - k / E) to the power m, what independent even choices give; `load_chance`, what independent choices
    at each expert's own load give; `experts_loaded`, the mean size of the union; `chunks`, `tokens`, `documents`.

    Source: arXiv 2507.08771 and its code (chunks do not overlap, the remainder is dropped); chance is ours.

    Args:
        trace: the trace.
        where: which tokens and layers count.
        chunks: numbers of tokens m.
        cut: joined cuts the tokens of all texts, one after the other, as published, so that a chunk may hold the end of
            one text and the start of another; texts cuts each text for itself.
        sample: tokens of whole documents drawn at random that are looked at; 0 takes all.
        bootstrap: resamplings of documents (of 64 random groups of documents where there are more).
        seed: of both.

    Raises:
        BadData: a chunk is longer than the text there is.
    """
    chunks = whole_lengths("chunks", chunks)
    if cut not in ("joined", "texts"):
        raise BadData(f"cut={cut}: chunks are cut from the texts joined, or from texts each for itself.")
    layers = layers_of(trace, where)
    texts = stretches_of(trace, where, sample=sample, seed=seed)
    places = {m: _chunks(texts, m, cut) for m in chunks}
    for m, (first, _) in places.items():
        if not len(first):
            raise BadData(f"no chunk of {m} tokens fits into the selected text; name shorter ones.")
    lines: list[dict[str, Any]] = []
    for layer, experts in layers.items():
        slots = texts.slots(layer)
        rate = np.bincount(slots[slots >= 0], minlength=experts) / len(slots)  # (E,)
        for m, (first, block) in places.items():
            union = _unions(slots, first, m, experts)  # (chunks,)
            sums = np.bincount(block, weights=1 - union / experts, minlength=texts.blocks)
            count = np.bincount(block, minlength=texts.blocks)
            low, high = ratio_intervals(sums[:, None], count, samples=bootstrap, seed=seed)
            lines.append(
                {
                    "layer": layer,
                    "chunk": int(m),
                    "sparsity": float(sums.sum() / len(first)),
                    "low": float(low[0]),
                    "high": float(high[0]),
                    "chance": float((1 - slots.shape[1] / experts) ** m),
                    "load_chance": float(((1 - rate) ** m).mean()),
                    "experts_loaded": float(union.mean()),
                    "chunks": len(first),
                    "tokens": texts.tokens,
                    "documents": texts.documents,
                }
            )
    return pa.Table.from_pylist(lines)


def _chunks(texts: Stretches, length: int, cut: str) -> tuple[Array, Array]:
    """Return the first token of each chunk and the block of that token, (chunks,) each."""
    if cut == "joined":
        first = np.arange(texts.tokens // length) * length
    else:
        pieces = (texts.stop - texts.start) // length  # (s,)
        place = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        first = np.repeat(texts.start, pieces) + place * length
    return first, texts.block[np.searchsorted(texts.start, first, side="right") - 1]


def _unions(slots: Array, first: Array, length: int, experts: int) -> Array:
    """Return how many different experts run in each chunk, (chunks,)."""
    found = np.empty(len(first), np.int64)
    size = max(1, _CELLS // (experts + 1))
    for start in range(0, len(first), size):
        here = first[start : start + size]
        ran = np.zeros(len(here) * (experts + 1), bool)
        base = np.arange(len(here)) * (experts + 1)
        for i in range(length):
            for column in slots[here + i].T:  # a slot that did not run, -1, marks the extra place at the end
                ran[base + np.where(column >= 0, column, experts)] = True
        found[start : start + len(here)] = ran.reshape(len(here), -1)[:, :experts].sum(1)
    return found
