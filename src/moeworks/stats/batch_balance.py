"""Balance of single batches of tokens, and what even routing gives by noise alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeworks.stats.counts import add_runs
from moeworks.stats.documents import draw_documents, percentiles
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["batch_violation", "even_loads"]

Array = NDArray[Any]
_DRAWS = 100


def even_loads(tokens: int, top_k: int, experts: int, *, seed: int) -> Array:
    """Return how often experts run if `tokens` tokens choose evenly and independently, (draws, E)."""
    drawn = np.random.default_rng([seed, 36]).binomial(tokens, top_k / experts, (_DRAWS, experts))
    drawn[drawn.sum(1) == 0, 0] = 1  # a layer in which nothing ran has no balance
    return np.asarray(drawn)


def batch_violation(
    trace: Trace, where: Where, layers: Sequence[int], batch_tokens: int, *, bootstrap: int, seed: int
) -> dict[int, dict[str, Any]]:
    """Return the mean MaxVio of batches of neighbouring selected tokens by layer, its interval and chance.

    Source: MaxVio batch (arXiv 2408.15664).
    """
    requests, done = trace.request_table(), 0
    counts: dict[int, list[Array]] = {layer: [] for layer in layers}
    open_batch = {layer: np.zeros(trace.header.shape_of(layer).experts, np.int64) for layer in layers}
    for part in trace.parts:
        kept = where.mask(part.rows(), requests)
        number = done + np.cumsum(kept) - 1  # (n,) of each selected token
        first, last = done // batch_tokens, (done + int(kept.sum())) // batch_tokens
        entry = np.where(kept, number // batch_tokens - first, -1)
        done += int(kept.sum())
        for layer in layers:
            runs = np.zeros((last - first + 1, len(open_batch[layer])), np.int64)
            add_runs(runs, entry, part.ids(layer), part.weights(layer))
            runs[0] += open_batch[layer]
            counts[layer].append(runs[:-1])
            open_batch[layer] = runs[-1]
    return {layer: _describe(trace, layer, np.concatenate(counts[layer]), batch_tokens, bootstrap, seed)
            for layer in layers}  # fmt: skip


def _describe(trace: Trace, layer: int, runs: Array, batch_tokens: int, bootstrap: int, seed: int) -> dict[str, Any]:
    shape = trace.header.shape_of(layer)
    runs = runs[runs.any(1)]
    names = ("batch_max_violation", "batch_low", "batch_high", "batch_chance")
    line: dict[str, Any] = {**dict.fromkeys(names, float("nan")), "batches": len(runs)}
    if not len(runs):
        return line
    found = _violation(runs)  # (batches,)
    drawn = [weights @ found / weights.sum(1) for weights in draw_documents(len(runs), samples=bootstrap, seed=seed)]
    low, high = percentiles(np.concatenate(drawn), len(runs))
    null = _violation(even_loads(batch_tokens, shape.top_k, shape.experts, seed=seed)).mean()
    values = (found.mean(), low, high, null)
    return line | {name: float(value) for name, value in zip(names, values, strict=True)}


def _violation(runs: Array) -> Array:
    return np.asarray(runs.max(1) / runs.mean(1) - 1)
