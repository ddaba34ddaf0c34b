"""How fine the specialisation of experts is: their output tokens over clusters of the vocabulary, coarse to fine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks.errors import BadData
from moeworks.find.inside.observe import as_numpy, observe, reading
from moeworks.find.inside.texts import expert_columns
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.engines.base import Engine
    from moeworks.engines.transformers.inside import ExpertPass
    from moeworks.examples import Example
    from moeworks.where import Requests, Rows

__all__ = ["GRANULARITY", "divergence_from_layer", "granularity", "spherical_kmeans"]

Array = NDArray[Any]
GRANULARITY = pa.schema(
    [
        ("layer", pa.int32()),
        ("expert", pa.int32()),
        ("clusters", pa.int32()),
        ("divergence", pa.float64()),  # Jensen-Shannon, base 2: 0 to 1
        ("by_chance", pa.float64()),  # mean of as many tokens drawn from the layer's distribution
        ("deviation", pa.float64()),  # their standard deviation
        ("tokens", pa.int64()),  # top tokens counted
    ]
)
_BLOCK = 1 << 15


def spherical_kmeans(points: Array, clusters: int, *, seed: int = 0, rounds: int = 25) -> Array:
    """Return the cluster of each point, (n,): k-means on the unit sphere, by cosine.

    Args:
        points: (n, d); points of length 0 go to cluster 0.
        clusters: at most n. One that loses all its points takes the point that fits its own centre worst.
        seed: of the first centres, drawn as in k-means++ with 1 - cosine for the squared distance.
        rounds: at most so many; it stops where no point moves.
    """
    if not 1 <= clusters <= len(points):
        raise BadData(f"{clusters} clusters of {len(points)} tokens are not possible.")
    length = np.linalg.norm(points, axis=1, keepdims=True)
    unit: Array = (points / np.where(length > 0, length, 1)).astype(np.float32)
    rng = np.random.default_rng(seed)
    chosen = [int(rng.integers(len(unit)))]
    far: Array = np.clip(1 - unit @ unit[chosen[0]], 0, None).astype(np.float64)
    while len(chosen) < clusters:
        total = far.sum()
        free = np.setdiff1d(np.arange(len(unit)), chosen) if total <= 0 else None
        chosen.append(int(rng.choice(free) if free is not None else rng.choice(len(unit), p=far / total)))
        far = np.minimum(far, np.clip(1 - unit @ unit[chosen[-1]], 0, None))
        far[chosen] = 0
    centres: Array = unit[chosen]
    label = np.full(len(unit), -1)
    for _ in range(rounds):
        near, fit = _nearest(unit, centres)
        for empty in np.setdiff1d(np.arange(clusters), near):
            crowded = np.bincount(near, minlength=clusters)[near] > 1
            worst = int(np.argmin(np.where(crowded, fit, np.inf)))
            near[worst], fit[worst] = empty, np.inf
        if np.array_equal(near, label):
            break
        label = near
        order = np.argsort(label, kind="stable")
        starts = np.flatnonzero(np.diff(label[order], prepend=-1))
        sums = np.add.reduceat(unit[order], starts, axis=0)
        size = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = sums / np.where(size > 0, size, 1)
    return label


def divergence_from_layer(counts: Array, layer: Array | None = None) -> Array:
    """Return the Jensen-Shannon divergence, base 2, of some counts, (E, c), from a distribution, (E,).

    Args:
        counts: one row an expert; NaN comes out of a row without a count.
        layer: (c,) what they are compared with; by default that of all rows together.
    """
    layer = counts.sum(0) / max(counts.sum(), 1) if layer is None else layer
    with np.errstate(divide="ignore", invalid="ignore"):
        own = counts / counts.sum(1, keepdims=True)
        middle = (own + layer) / 2
        first = np.where(own > 0, own * np.log2(own / middle), 0).sum(1)
        second = np.where(layer > 0, layer * np.log2(layer / middle), 0).sum(1)
    return np.asarray(np.where(counts.sum(1) > 0, (first + second) / 2, np.nan))


def granularity(
    engine: Engine,
    examples: Sequence[Example],
    *,
    clusters: Sequence[int] = (10, 50, 100, 1000),
    top: int = 3,
    draws: int = 20,
    where: Where | str = Where(),
    seed: int = 0,
    batch_size: int = 8,
) -> pa.Table:
    """Return how far the tokens that each expert writes are from those of its layer, at several granularities.

    Source: "The Expert Strikes Back" (arXiv 2604.02178) and its code: spherical k-means of the centred rows of W_U
    (k = 10 to 5000); the top 3 tokens of each output vector of an expert, as a distribution over clusters, against that
    of the layer: Jensen-Shannon divergence, base 2, with a random baseline. Experts that specialise finely diverge more
    the more clusters there are, beyond chance.

    The baseline here: as many tokens as the expert has, drawn from the layer's own distribution, since few tokens
    over many clusters diverge by chance alone. Read `divergence` only above `by_chance`.

    Args:
        engine: the transformers engine.
        examples: the texts; each output costs a product with the whole vocabulary.
        clusters: granularities.
        top: tokens of each output.
        draws: of the baseline.
        where: tokens and layers that count.
        seed: of clusters and baseline.
        batch_size: texts a forward pass.

    Returns:
        A table with the columns of `GRANULARITY`, by layer, expert and clusters; experts that never ran have no row.
    """
    if top < 1 or draws < 1 or not clusters:
        raise BadData("granularity needs at least one number of clusters, one token an output, and one draw.")
    clause = Where.parse(where) if isinstance(where, str) else where
    columns = expert_columns(engine.identity, clause)
    read = reading(engine)
    rows_of = as_numpy(read.rows).astype(np.float32)
    rows_of -= rows_of.mean(0)
    label = {k: spherical_kmeans(rows_of, k, seed=seed) for k in clusters}
    counts = {k: {layer: np.zeros((e, k), np.int64) for layer, (_, e) in columns.items()} for k in clusters}

    def add(seen: ExpertPass, rows: Rows, requests: Requests) -> None:
        tokens = as_numpy(read.top_tokens(read.written(seen.outputs), top).tokens).reshape(-1)
        for k in clusters:
            counts[k][seen.layer][seen.expert] += np.bincount(label[k][tokens], minlength=k)

    observe(engine, examples, add, where=clause, batch_size=batch_size)
    rng = np.random.default_rng([seed, 4])
    found: list[dict[str, Any]] = []
    for k in clusters:
        for layer, table in counts[k].items():
            own, layer_share = divergence_from_layer(table), table.sum(0) / max(table.sum(), 1)
            for expert in np.flatnonzero(table.sum(1)):
                size = int(table[expert].sum())
                drawn = rng.multinomial(size, layer_share, size=draws)  # (draws, k)
                chance = divergence_from_layer(drawn, layer_share)  # (draws,)
                found.append(
                    {
                        "layer": layer,
                        "expert": int(expert),
                        "clusters": k,
                        "divergence": float(own[expert]),
                        "by_chance": float(np.mean(chance)),
                        "deviation": float(np.std(chance)),
                        "tokens": size,
                    }
                )
    table_of = pa.Table.from_pylist(found, schema=GRANULARITY)
    return table_of.sort_by([(name, "ascending") for name in ("layer", "expert", "clusters")])


def _nearest(unit: Array, centres: Array) -> tuple[Array, Array]:
    """Return the nearest centre of each point and its cosine, (n,) each, a block of points at a time."""
    near, fit = np.empty(len(unit), np.int64), np.empty(len(unit), np.float64)
    for start in range(0, len(unit), _BLOCK):
        cosine = unit[start : start + _BLOCK] @ centres.T
        near[start : start + _BLOCK] = cosine.argmax(1)
        fit[start : start + _BLOCK] = cosine.max(1)
    return near, fit
