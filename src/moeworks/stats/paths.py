"""Paths of first choices through all layers: how few of them carry how many tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks.errors import BadData
from moeworks.stats.counts import layers_of
from moeworks.stats.documents import SAMPLE, ratio_intervals
from moeworks.stats.sets import check_ids
from moeworks.stats.stretches import Stretches, stretches_of
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["paths"]

Array = NDArray[Any]


def paths(
    trace: Trace,
    *,
    where: Where = Where(),
    top: int = 10,
    sample: int = SAMPLE // 2,
    bootstrap: int = 200,
    seed: int = 0,
) -> pa.Table:
    """Return how tokens spread over paths, a row for the first two layers, the first three, up to all of them.

    A path is the expert of largest weight in each layer.

    Columns: `layers`, how many, and `last_layer`; `top_share`, the share of tokens on the `top` most frequent paths,
    with its 95 % interval `low`, `high` from resampled documents (the paths as found) and `chance`, the same with each
    layer's choices exchanged between tokens: layers that know nothing of each other, at the same loads; `entropy` of
    the paths in nats and `entropy_chance` (both fall short of the truth where paths are more than tokens, and do so
    alike); `distinct` paths and `distinct_chance`; `commonest`, the most frequent path; `tokens`, `documents`.

    Source: paths of top-1 experts as in routing analyses [recalled]; the null is ours.

    Args:
        trace: the trace.
        where: which tokens and layers count.
        top: see above.
        sample: tokens of whole documents drawn at random that are looked at; 0 takes all.
        bootstrap: resamplings of documents (of at most 64 random groups of documents where there are more).
        seed: of both.

    Raises:
        BadData: fewer than two layers are selected.
    """
    layers = layers_of(trace, where)
    if len(layers) < 2 or top < 1:
        raise BadData(f"paths lead through layers: select at least two; top={top} is at least 1.")
    texts = stretches_of(trace, where, sample=sample, seed=seed)
    block = np.repeat(texts.block, texts.stop - texts.start)  # (n,)
    of_block = np.bincount(block, minlength=texts.blocks)
    rng = np.random.default_rng([seed, 25])
    names = rng.integers(0, 1 << 63, (2, len(layers), max(layers.values()) + 1), dtype=np.uint64)
    lines: list[dict[str, Any]] = []
    firsts: list[Array] = []
    keys = np.zeros((2, len(block)), np.uint64)  # a random number for each path, and for paths by chance
    for i, (layer, experts) in enumerate(layers.items()):
        first = _first_choices(texts, layer, experts)  # (n,)
        firsts.append(first)
        keys[0] ^= names[0, i][first]  # two paths share a number once in 2 ** 63 pairs
        keys[1] ^= names[1, i][first[rng.permutation(len(first))]]
        if not i:
            continue
        (place, index, inverse, count), (_, _, _, null) = (
            np.unique(key, return_index=True, return_inverse=True, return_counts=True) for key in keys
        )
        best = np.argsort(-count, kind="stable")[:top]
        on_top = np.zeros(len(place), bool)
        on_top[best] = True
        hits = np.bincount(block[on_top[inverse]], minlength=texts.blocks).astype(float)
        low, high = ratio_intervals(hits[:, None], of_block, samples=bootstrap, seed=seed)
        lines.append(
            {
                "layers": i + 1,
                "last_layer": layer,
                "top_share": float(hits.sum() / len(block)),
                "low": float(low[0]),
                "high": float(high[0]),
                "chance": float(np.sort(null)[::-1][:top].sum() / len(block)),
                "entropy": _entropy(count),
                "entropy_chance": _entropy(null),
                "distinct": len(count),
                "distinct_chance": len(null),
                "commonest": [int(one[index[best[0]]]) for one in firsts],
                "tokens": texts.tokens,
                "documents": texts.documents,
            }
        )
    return pa.Table.from_pylist(lines)


def _first_choices(texts: Stretches, layer: int, experts: int) -> Array:
    """Return each token's expert of largest weight, (n,); E where none ran."""
    found = []
    for part, rows in zip(texts.trace.parts, texts.rows, strict=True):
        ids, weights = part.ids(layer)[rows], part.weights(layer)[rows]
        check_ids(ids, experts)
        slot = np.argmax(weights, axis=1) if len(rows) else np.zeros(0, np.int64)
        first = np.take_along_axis(ids, slot[:, None], 1)[:, 0].astype(np.int64)
        found.append(np.where(weights.any(1), first, experts))
    return np.concatenate(found)


def _entropy(counts: Array) -> float:
    share = counts / counts.sum()
    return float(-(share * np.log(share)).sum())
