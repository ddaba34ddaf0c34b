"""Which experts of a layer run together for the same token, more often than sets of k distinct experts have to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks.errors import BadData
from moeworks.stats.counts import layers_of
from moeworks.stats.documents import SAMPLE, draw_documents, percentiles
from moeworks.stats.fixed_size_sets import pairs_by_chance
from moeworks.stats.pairs import blocks_for, pairs_of_one
from moeworks.stats.stretches import stretches_of
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["coactivation", "coactivation_lift"]

Array = NDArray[Any]


def coactivation(
    trace: Trace,
    *,
    where: Where = Where(),
    top: int = 5,
    fewest: int = 20,
    sample: int = SAMPLE // 4,
    bootstrap: int = 200,
    seed: int = 0,
) -> pa.Table:
    """Return the pairs of experts that run together most for their loads, a row per layer and pair.

    lift(i, j) = N_ij T / (N_i N_j), N_ij the tokens for which both run, over all pairs of a token's experts. N_ij / N_i
    alone reflects how busy j is. The experts of a token are different ones, so that pairs run together less often
    than lift 1: chance is the lift of random sets of as many distinct experts with exactly these loads (those of
    largest entropy, see `pairs_by_chance`), from the loads of all selected tokens.

    Columns: `layer`, `rank`, `first`, `second`; `lift`, its 95 % interval `low`, `high` from resampled documents and
    `chance`; `given_first`, N_ij / N_i, and `given_second`, N_ij / N_j; `together`, N_ij, and `together_chance`;
    `moved`, the share of all pairs that would have to be others for the layer to be as chance has it, the same in every
    row of a layer, and `moved_chance`, that of as many tokens drawn by chance (approximately, from the noise of
    independent counts); `tokens`, `documents`. Pairs are ranked by lift / chance among those that chance expects at
    least `fewest` times; the first of many pairs is a largest one, partly by luck: read its interval.

    Source: co-activation of OLMoE (arXiv 2409.02060, section 5), whose script counts only pairs that are neighbours in
    rank; lift and its chance are ours.

    Args:
        trace: the trace.
        where: which tokens and layers count.
        top: pairs of each layer; 0 gives all.
        fewest: see above.
        sample: tokens of whole documents drawn at random that are looked at; 0 takes all.
        bootstrap: resamplings of documents (of at most 64 random groups of documents where there are more).
        seed: of both.

    Raises:
        BadData: every selected layer runs one expert a token.
    """
    layers = {
        layer: experts
        for layer, experts in layers_of(trace, where).items()
        if trace.header.shape_of(layer).top_k > 1
    }  # fmt: skip
    if not layers:
        raise BadData("every selected layer runs one expert a token; no two run together.")
    texts = stretches_of(trace, where, sample=sample, most_blocks=blocks_for(max(layers.values())), seed=seed)
    tokens = np.bincount(texts.block, weights=texts.stop - texts.start, minlength=texts.blocks)
    lines: list[dict[str, Any]] = []
    for layer, experts in layers.items():
        slots = texts.slots(layer)
        counts = pairs_of_one(slots, texts, experts)  # (blocks, E, E)
        chance = _expected(slots, experts)  # (E, E)
        lines += _lines(layer, counts, tokens, chance, top, fewest, bootstrap, seed, texts.documents)
    return pa.Table.from_pylist(lines)


def coactivation_lift(
    trace: Trace, layer: int, *, where: Where = Where(), sample: int = SAMPLE, seed: int = 0
) -> Array:
    """Return lift / chance of all pairs of a layer's experts, (E, E); NaN on the diagonal and where none is expected.

    Above 1: the two run together more often than their loads make random sets do.
    """
    narrowed = where.model_copy(update={"layer": (layer,)})
    experts = layers_of(trace, narrowed)[layer]
    texts = stretches_of(trace, where, sample=sample, most_blocks=1, seed=seed)
    slots = texts.slots(layer)
    expected = _expected(slots, experts)
    np.fill_diagonal(expected, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(expected > 0, pairs_of_one(slots, texts, experts)[0] / expected, np.nan))


def _expected(slots: Array, experts: int) -> Array:
    """Return how often two experts run together by chance, (E, E): by how many experts ran, each at its loads."""
    size = (slots >= 0).sum(1)
    expected = np.zeros((experts, experts))
    for count in np.unique(size[size > 0]):
        rows = slots[size == count]
        rates = np.bincount(rows[rows >= 0], minlength=experts) / len(rows)
        expected += len(rows) * pairs_by_chance(rates, int(count))
    return expected


def _lines(
    layer: int,
    counts: Array,
    tokens: Array,
    expected: Array,
    top: int,
    fewest: int,
    bootstrap: int,
    seed: int,
    documents: int,
) -> list[dict[str, Any]]:
    together, total = counts.sum(0), tokens.sum()
    runs = np.diagonal(together)
    rows, columns = np.triu_indices(len(runs), 1)
    found, chance = together[rows, columns], expected[rows, columns]  # (pairs,)
    often = np.flatnonzero((chance >= fewest) & (chance > 0))
    order = often[np.argsort(-found[often] / chance[often], kind="stable")]
    order = order[:top] if top else order
    i, j = rows[order], columns[order]
    per_block = [counts[:, i, j], counts[:, i, i], counts[:, j, j]]  # (blocks, rows) each
    drawn = []
    for weights in draw_documents(len(counts), samples=bootstrap, seed=seed):
        both, first, second = (weights @ one for one in per_block)
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn.append(both * (weights @ tokens)[:, None] / (first * second))
    low, high = percentiles(np.concatenate(drawn), len(counts))
    with np.errstate(divide="ignore", invalid="ignore"):
        lift, by_chance = (one[i, j] * total / (runs[i] * runs[j]) for one in (together, expected))
        noise = np.sqrt(2 / np.pi * np.maximum(chance * (1 - chance / total), 0)).sum()
        moved, moved_chance = np.abs(found - chance).sum() / 2 / found.sum(), noise / 2 / found.sum()
    return [
        {
            "layer": layer,
            "rank": rank + 1,
            "first": int(i[rank]),
            "second": int(j[rank]),
            "lift": float(lift[rank]),
            "low": float(low[rank]),
            "high": float(high[rank]),
            "chance": float(by_chance[rank]),
            "given_first": float(together[i[rank], j[rank]] / runs[i[rank]]),
            "given_second": float(together[i[rank], j[rank]] / runs[j[rank]]),
            "together": int(together[i[rank], j[rank]]),
            "together_chance": float(expected[i[rank], j[rank]]),
            "moved": float(moved),
            "moved_chance": float(moved_chance),
            "tokens": int(total),
            "documents": documents,
        }
        for rank in range(len(order))
    ]
