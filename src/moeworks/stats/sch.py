"""Segment cache best hit rate: how often an expert would be in memory already, for every size of memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks.errors import BadData
from moeworks.stats.compiled import compiled
from moeworks.stats.counts import layers_of
from moeworks.stats.documents import ratio_intervals
from moeworks.stats.kernels import count_hits, count_ranks
from moeworks.stats.stretches import Stretches, stretches_of, whole_lengths
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["sch_rolling", "sch_static"]

Array = NDArray[Any]
SAMPLE = 1 << 16  # tokens; the published protocol takes every 16th text


def sch_rolling(
    trace: Trace,
    *,
    where: Where = Where(),
    segments: Sequence[int] = (4, 16, 64, 256),
    capacities: Sequence[float] = (1, 1.5, 2, 3),
    pooled: Sequence[float] = (),
    sample: int = SAMPLE,
    bootstrap: int = 200,
    seed: int = 0,
) -> pa.Table:
    """Return the hit rate of a cache of experts that looks m tokens ahead: a row per layer, m and capacity.

    The final version of SCH: at each token, hits are counted against what the cache held before it; then its experts
    come in one after the other, and where the cache is full, the expert leaves that the m tokens from this one on use
    least, of equal ones the one used longest ago. An expert's first use counts as a hit while fewer experts than the
    capacity have been seen (the published cold rule). Every text starts with an empty cache. The first version of
    the paper defines SCH otherwise: see `sch_static`.

    Columns: `layer` (null: one pool for the experts of all layers), `segment` m, `capacity` in experts, `relative`
    capacity / experts that run a token (rho); `hit_rate`, its 95 % interval `low`, `high` from resampled documents, and
    `chance`, the same with the tokens of all texts in random order; `uniform_chance`, capacity / E: a cache that knows
    nothing; `uses`, `tokens`, `documents`.

    Source: arXiv 2505.16056, SCH of the final version. [checked against the official implementation]

    Args:
        trace: the trace.
        where: which tokens and layers count.
        segments: how many tokens ahead the cache sees, this one included.
        capacities: multiples of k that are shown (rho).
        pooled: multiples of the experts that run in all layers together, for one pool of all layers; slow.
        sample: tokens of whole documents drawn at random that are looked at; 0 takes all.
        bootstrap: resamplings of documents (of 64 random groups of documents where there are more).
        seed: of both.

    Raises:
        BadData: a length is below 1 or a capacity not above 0.
        MissingExtra: numba is not installed.
    """
    segments = _checked(segments, (*capacities, *pooled))
    count, layers = compiled(count_hits), layers_of(trace, where)
    texts = stretches_of(trace, where, sample=sample, seed=seed)
    order = np.random.default_rng([seed, 23]).permutation(texts.tokens)
    lines: list[dict[str, Any]] = []

    def measure(layer: int | None, slots: Array, experts: int, wanted: Sequence[float]) -> None:
        sizes = _sizes(wanted, slots.shape[1], experts)
        for m in segments:
            hits = [_by_size(count, texts, one, m, experts)[:, sizes] for one in (slots, slots[order])]
            lines.extend(_lines(layer, slots, experts, m, sizes, hits[0], hits[1], texts, bootstrap, seed))

    for layer, experts in layers.items():
        measure(layer, texts.slots(layer), experts, capacities)
    if pooled:
        first = np.cumsum([0, *layers.values()])
        every = [texts.slots(layer) for layer in layers]
        joined = np.concatenate(
            [np.where(one >= 0, one + base, -1) for one, base in zip(every, first[:-1], strict=True)], 1
        ).astype(np.int16)
        measure(None, joined, int(first[-1]), pooled)
    return pa.Table.from_pylist(lines)


def sch_static(
    trace: Trace,
    *,
    where: Where = Where(),
    segments: Sequence[int] = (4, 16, 64, 256),
    capacities: Sequence[float] = (1, 1.5, 2, 3),
    sample: int = SAMPLE,
    bootstrap: int = 200,
    seed: int = 0,
) -> pa.Table:
    """Return the hit rate of the best fixed set of experts for each segment: a row per layer, m and capacity.

    The first version of SCH: Σ over segments of the runs of their c busiest experts / Σ of all their runs, over every
    segment of m neighbouring tokens of a text. No eviction, no cold start; above `sch_rolling` or below it.

    Columns, arguments and errors as `sch_rolling`, without a pool; only texts of at least m tokens count.

    Source: arXiv 2505.16056, version 1.
    """
    segments = _checked(segments, capacities)
    count, layers = compiled(count_ranks), layers_of(trace, where)
    texts = stretches_of(trace, where, sample=sample, seed=seed)
    if int((texts.stop - texts.start).max()) < min(segments):
        raise BadData(f"no text has {min(segments)} neighbouring tokens; name a shorter segment.")
    order = np.random.default_rng([seed, 23]).permutation(texts.tokens)
    lines: list[dict[str, Any]] = []
    for layer, experts in layers.items():
        slots = texts.slots(layer)
        sizes = _sizes(capacities, slots.shape[1], experts)
        for m in segments:
            hits = []
            for one in (slots, slots[order]):
                counts = np.zeros((texts.blocks, m + 1, experts + 1), np.int64)
                count(one, texts.start, texts.stop, texts.entry, m, counts)
                fits = np.minimum(np.arange(experts + 1), np.append(sizes, experts)[:, None])  # (sizes + 1, E + 1)
                hits.append(counts[:, 1:].sum(1) @ fits.T)  # (blocks, sizes + 1)
            if hits[0].any():
                lines += _lines(layer, slots, experts, m, sizes, hits[0][:, :-1], hits[1][:, :-1], texts, bootstrap,
                                seed, uses=hits[0][:, -1])  # fmt: skip
    return pa.Table.from_pylist(lines)


def _checked(segments: Sequence[int], capacities: Sequence[float]) -> tuple[int, ...]:
    if not capacities or min(capacities) <= 0:
        raise BadData(f"capacities={list(capacities)}: multiples of k are above 0, at least one of them.")
    return whole_lengths("segments", segments)


def _sizes(wanted: Sequence[float], k: int, experts: int) -> Array:
    """Return capacities in whole experts, from 1 to E, each once."""
    return np.unique(np.clip(np.round(np.asarray(wanted, float) * k).astype(int), 1, experts))


def _by_size(count: Callable[..., Any], texts: Stretches, slots: Array, length: int, experts: int) -> Array:
    """Return the hits of each block and capacity 0 to E, (blocks, E + 1)."""
    counts = np.zeros((texts.blocks, experts + 1), np.int64)
    count(slots, texts.start, texts.stop, texts.block, length, counts)
    return np.asarray(np.cumsum(counts, 1))


def _lines(
    layer: int | None,
    slots: Array,
    experts: int,
    length: int,
    sizes: Array,
    hits: Array,
    shuffled: Array,
    texts: Stretches,
    bootstrap: int,
    seed: int,
    *,
    uses: Array | None = None,
) -> list[dict[str, Any]]:
    """Return rows from hits by block and capacity, (blocks, sizes)."""
    if uses is None:
        ran = np.add.reduceat((slots >= 0).sum(1), texts.start)  # stretches follow each other without gaps
        uses = np.bincount(texts.block, weights=ran, minlength=texts.blocks)
    total = float(uses.sum())
    low, high = ratio_intervals(hits.astype(float), uses.astype(float), samples=bootstrap, seed=seed)
    return [
        {
            "layer": layer,
            "segment": length,
            "capacity": int(size),
            "relative": float(size / slots.shape[1]),
            "hit_rate": float(hits[:, i].sum() / total),
            "low": float(low[i]),
            "high": float(high[i]),
            "chance": float(shuffled[:, i].sum() / total),
            "uniform_chance": float(size / experts),
            "uses": int(total),
            "tokens": texts.tokens,
            "documents": texts.documents,
        }
        for i, size in enumerate(sizes)
    ]
