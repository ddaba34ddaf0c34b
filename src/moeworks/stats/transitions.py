"""What a layer's experts say of the next layer's: mutual information, how well they are foretold, top transitions."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks.errors import BadData
from moeworks.stats.counts import layers_of
from moeworks.stats.documents import draw_documents, percentiles
from moeworks.stats.pairs import blocks_for, pairs_of_two
from moeworks.stats.stretches import stretches_of
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["mutual_information", "transitions"]

Array = NDArray[Any]
SAMPLE = 1 << 17  # tokens
_CHUNK = 1 << 15  # rows at a time


def mutual_information(counts: Array) -> Array:
    """Return I(row; column) in nats of tables of counts, (…, E, E'), as it is (plug-in): above 0 by noise alone."""
    total = counts.sum((-2, -1), keepdims=True)
    p = counts / np.where(total > 0, total, 1)
    expected = p.sum(-1, keepdims=True) * p.sum(-2, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = np.where(p > 0, p * np.log(p / expected), 0.0)
    return np.asarray(parts.sum((-2, -1)))


def transitions(
    trace: Trace,
    *,
    where: Where = Where(),
    top: int = 5,
    fewest: int = 20,
    sample: int = SAMPLE,
    bootstrap: int = 200,
    seed: int = 0,
) -> pa.Table:
    """Return what the experts of one layer say of those of the next recorded one, a row per pair of layers.

    N(e, e') counts the tokens for which e runs in the first and e' in the second layer, over all pairs. lift =
    N(e, e') T / (N(e) N(e')), 1 where the two have nothing to do with each other.

    Columns: `layer`, `next_layer`; `information`, I(e; e') / H(e') for an expert of each set drawn at random, with its
    95 % interval `low`, `high` from resampled documents (moved so that their mean is the number itself) and `chance`,
    the same with the second layer's choices exchanged between tokens: noise alone; `foretold`, the share of a
    token's experts in the next layer that are among the k' which run most often after its experts here, and
    `foretold_chance`, the same if always the k' busiest are said (both are read on the tokens that were counted);
    `top`, the transitions of largest lift among those expected at least `fewest` times, as `e>e' ×lift`, and
    `top_lift`, the largest, beside `top_lift_chance`, the largest with choices exchanged; `tokens`, `documents`.

    Source: P(e' | e) and lift as in routing analyses of OpenMoE's follow-ups [known from summaries]; nulls are ours.

    Args:
        trace: the trace.
        where: which tokens and layers count.
        top: how many transitions are named.
        fewest: see above.
        sample: tokens of whole documents drawn at random that are looked at; 0 takes all.
        bootstrap: resamplings of documents (of at most 64 random groups of documents where there are more).
        seed: of both.

    Raises:
        BadData: fewer than two layers are selected.
    """
    layers = layers_of(trace, where)
    if len(layers) < 2:
        raise BadData("transitions are between layers: select at least two of those recorded.")
    texts = stretches_of(trace, where, sample=sample, most_blocks=blocks_for(max(layers.values())), seed=seed)
    order = np.random.default_rng([seed, 24]).permutation(texts.tokens)
    lines: list[dict[str, Any]] = []
    before = texts.slots(next(iter(layers)))
    for (layer, experts), (following, others) in pairwise(layers.items()):
        after = texts.slots(following)
        counts = pairs_of_two(before, after, texts, experts, others)  # (blocks, E, E')
        null = pairs_of_two(before, after[order], texts, experts, others).sum(0)
        line = _line(counts, null, before, after, top, fewest, bootstrap, seed)
        lines.append({"layer": layer, "next_layer": following, **line, "tokens": texts.tokens,
                      "documents": texts.documents})  # fmt: skip
        before = after
    return pa.Table.from_pylist(lines)


def _line(
    counts: Array, null: Array, first: Array, second: Array, top: int, fewest: int, bootstrap: int, seed: int
) -> dict[str, Any]:
    total = counts.sum(0)  # (E, E')
    share = total.sum(0) / total.sum()
    spread = -float((share * np.log(np.where(share > 0, share, 1.0))).sum())  # H(e')
    drawn = np.concatenate(
        [
            mutual_information((weights @ counts.reshape(len(counts), -1)).reshape(-1, *total.shape))
            for weights in draw_documents(len(counts), samples=bootstrap, seed=seed)
        ]
    )
    unit = spread or np.nan
    information = float(mutual_information(total))
    low, high = percentiles(drawn / unit, len(counts), centre=information / unit)
    ones = [
        np.bincount(slots[slots >= 0], minlength=size) for slots, size in zip((first, second), total.shape, strict=True)
    ]
    lift, expected = _lift(total, *ones, tokens=len(first))
    null_lift, _ = _lift(null, *ones, tokens=len(first))
    often = (expected >= fewest) & (lift > 0)
    best = np.argsort(np.where(often, -lift, np.inf).ravel(), kind="stable")[: min(top, int(often.sum()))]
    named = [divmod(int(place), total.shape[1]) for place in best]
    return {
        "information": information / unit,
        "low": max(float(low), 0.0),
        "high": float(high),
        "chance": float(mutual_information(null)) / unit,
        "foretold": _foretold(total / np.maximum(ones[0], 1)[:, None], first, second),
        "foretold_chance": float(np.sort(ones[1])[-second.shape[1] :].sum() / max(ones[1].sum(), 1)),  # the busiest k'
        "top": [f"{e}>{other} ×{lift[e, other]:.1f}" for e, other in named],
        "top_lift": float(lift[named[0]]) if named else np.nan,
        "top_lift_chance": float(null_lift[often].max()) if often.any() else np.nan,
    }


def _lift(counts: Array, first: Array, second: Array, *, tokens: int) -> tuple[Array, Array]:
    """Return N(e, e') T / (N(e) N(e')) and N(e) N(e') / T, (E, E') each."""
    expected = first[:, None] * second[None, :] / tokens
    return np.where(expected > 0, counts / np.where(expected > 0, expected, 1), 0.0), expected


def _foretold(following: Array, first: Array, second: Array) -> float:
    """Return the share of each token's next experts that are among the k' of largest Σ over its experts of a table."""
    table = np.vstack([following, np.zeros(following.shape[1])]).astype(np.float32)  # the last row: nothing ran
    k, hits, uses = second.shape[1], 0, 0
    for start in range(0, len(first), _CHUNK):
        rows = slice(start, start + _CHUNK)
        scores = np.zeros((len(first[rows]), table.shape[1]), np.float32)
        for column in first[rows].T:
            scores += table[column]
        said = np.zeros(scores.shape, bool)
        best = np.argpartition(scores, -k, axis=1)[:, -k:] if k < scores.shape[1] else np.argsort(scores)
        np.put_along_axis(said, best, True, axis=1)
        ran = second[rows] >= 0
        hits += int((np.take_along_axis(said, np.where(ran, second[rows], 0).astype(np.int64), 1) & ran).sum())
        uses += int(ran.sum())
    return hits / max(uses, 1)
