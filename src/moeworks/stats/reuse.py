"""How soon an expert is used again: tokens in between, and other experts in between."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks.errors import BadData
from moeworks.stats.compiled import compiled
from moeworks.stats.counts import layers_of
from moeworks.stats.documents import draw_documents, percentiles, ratio_intervals
from moeworks.stats.kernels import count_reuse
from moeworks.stats.stretches import stretches_of
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["reuse_distance"]

Array = NDArray[Any]
SAMPLE = 1 << 17  # tokens
QUANTILES = (0.1, 0.5, 0.9)


def reuse_distance(
    trace: Trace,
    *,
    where: Where = Where(),
    sample: int = SAMPLE,
    bootstrap: int = 200,
    seed: int = 0,
) -> pa.Table:
    """Return how far apart two uses of an expert in a text are, a row per layer.

    The gap of a use is how many tokens after the last one it comes, 1 for the next token. Its distance is the smallest
    memory of most recently used experts that still holds it: different experts that ran from its last use on to the
    token before this one, itself included. Small distances: a small cache serves the layer.

    Columns: `layer`; `gap`, its median with the 95 % interval `gap_low`, `gap_high` from resampled documents,
    `gap_chance`, the median with the tokens of all texts in random order, `gap_quantiles` (10, 50, 90 %) and
    `gap_quantiles_chance`; `distance`, the mean with `distance_low`, `distance_high`, `distance_chance`, and its
    quantiles alike; `first_uses`, the share of uses that are an expert's first in a text and have neither;
    `uses`, `tokens`, `documents`.

    Source: stack distance of Mattson et al. 1970, for experts as in caching; nulls are ours.

    Args:
        trace: the trace.
        where: which tokens and layers count.
        sample: tokens of whole documents drawn at random that are looked at; 0 takes all.
        bootstrap: resamplings of documents (of 64 random groups of documents where there are more).
        seed: of both.

    Raises:
        BadData: no expert is used twice in any text.
        MissingExtra: numba is not installed.
    """
    count, layers = compiled(count_reuse), layers_of(trace, where)
    texts = stretches_of(trace, where, sample=sample, seed=seed)
    longest = int((texts.stop - texts.start).max())
    order = np.random.default_rng([seed, 23]).permutation(texts.tokens)
    lines: list[dict[str, Any]] = []
    for layer, experts in layers.items():
        slots, both = texts.slots(layer), []
        for one in (slots, slots[order]):
            gaps = np.zeros((texts.blocks, longest + 1), np.int64)
            distances = np.zeros((texts.blocks, experts + 1), np.int64)
            count(one, texts.start, texts.stop, texts.block, gaps, distances)
            both.append((gaps, distances))
        (gaps, distances), (null_gaps, null_distances) = both
        again = distances[:, 1:].sum(1).astype(float)  # (blocks,)
        if not again.any():
            raise BadData(f"no expert of layer {layer} is used twice in a text; record longer texts.")
        drawn = [
            _quantile((weights @ gaps)[:, 1:], 0.5)
            for weights in draw_documents(texts.blocks, samples=bootstrap, seed=seed)
        ]
        gap_low, gap_high = percentiles(np.concatenate(drawn), texts.blocks)
        sums = (distances * np.arange(experts + 1)).sum(1).astype(float)
        low, high = ratio_intervals(sums[:, None], again, samples=bootstrap, seed=seed)
        uses = int(distances.sum())
        lines.append(
            {
                "layer": layer,
                "gap": float(_quantile(gaps.sum(0)[1:], 0.5)),
                "gap_low": float(gap_low),
                "gap_high": float(gap_high),
                "gap_chance": float(_quantile(null_gaps.sum(0)[1:], 0.5)),
                "gap_quantiles": [int(_quantile(gaps.sum(0)[1:], q)) for q in QUANTILES],
                "gap_quantiles_chance": [int(_quantile(null_gaps.sum(0)[1:], q)) for q in QUANTILES],
                "distance": float(sums.sum() / again.sum()),
                "distance_low": float(low[0]),
                "distance_high": float(high[0]),
                "distance_chance": _mean(null_distances.sum(0)),
                "distance_quantiles": [int(_quantile(distances.sum(0)[1:], q)) for q in QUANTILES],
                "distance_quantiles_chance": [int(_quantile(null_distances.sum(0)[1:], q)) for q in QUANTILES],
                "first_uses": 1 - float(again.sum() / uses),
                "uses": uses,
                "tokens": texts.tokens,
                "documents": texts.documents,
            }
        )
    return pa.Table.from_pylist(lines)


def _quantile(counts: Array, level: float) -> Array:
    """Return the smallest number, counted from 1, that at least the share `level` does not exceed, (…,)."""
    sums = np.cumsum(counts, -1)
    return np.asarray(1 + (sums < level * sums[..., -1:]).sum(-1))


def _mean(counts: Array) -> float:
    numbers = np.arange(len(counts))
    return float((counts[1:] * numbers[1:]).sum() / max(counts[1:].sum(), 1))
