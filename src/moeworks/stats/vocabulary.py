"""How far single token ids belong to single experts, against token ids shuffled within each text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks.errors import BadData
from moeworks.stats.counts import layer_batches, layers_of
from moeworks.stats.documents import (
    SAMPLE,
    Documents,
    add_sums,
    draw_documents,
    percentiles,
    selected_documents,
)
from moeworks.stats.token_counts import Vocabulary, count_by_token, token_rows, vocabulary
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["vocabulary_specialisation"]

Array = NDArray[Any]


def vocabulary_specialisation(
    trace: Trace,
    *,
    where: Where = Where(),
    fewest: int = 10,
    top: int = 5,
    shuffles: int = 2,
    sample: int = SAMPLE // 4,
    bootstrap: int = 200,
    seed: int = 0,
    budget_bytes: int = 256 << 20,
) -> pa.Table:
    """Return how large a share of a token id's occurrences its most frequent expert runs for, a row per layer.

    N(x, e) / N(x) for each token id x, its largest over experts e, mean over token ids that occur at least `fewest`
    times: a token id seen once is always 100 % one expert's. The largest of E shares is above k / E by noise alone:
    chance has the token ids shuffled within each text.

    Columns: `layer`; `specialisation`, its 95 % interval `low`, `high` from resampled documents (linearised: the share
    of each token's expert as found) and `chance`; `weighted`, the mean over tokens, not token ids, and
    `weighted_chance`; `uniform`, k / E; `own`, the share of token ids whose share is above the largest that any of
    their frequency is expected to have: above the 99 % quantile of shuffled ones, `own_chance` 0.01; `top`, the token
    ids of largest share among the most frequent hundred, as `id>expert share`; `token_ids` that count, `coverage`, the
    share of tokens that they are; `tokens`, `documents`.

    Source: vocabulary specialisation of OLMoE (arXiv 2409.02060, section 5), by input token id; the published summary
    averages over ids that occur once as well.

    Args:
        trace: the trace.
        where: which tokens and layers count.
        fewest: see above.
        top: token ids that are named.
        shuffles: how often token ids are shuffled; chance is their mean.
        sample: tokens of whole documents drawn at random that are looked at; 0 takes all.
        bootstrap: resamplings of documents.
        seed: of all of it.
        budget_bytes: memory for counts; layers that do not fit take further passes.

    Raises:
        BadData: all is of one document, or no token id is frequent enough.
    """
    if fewest < 1 or shuffles < 1:
        raise BadData(f"fewest={fewest} and shuffles={shuffles}; both have to be at least 1.")
    layers, documents = layers_of(trace, where), selected_documents(trace, where, sample=sample, seed=seed)
    words = vocabulary(trace, where, documents, seed=seed)
    count = words.tokens.sum(0)  # (v,)
    kept = np.flatnonzero(count >= fewest)
    if not len(kept):
        raise BadData(f"no token id occurs {fewest} times in the selected text; record more, or lower `fewest`.")
    lines: list[dict[str, Any]] = []
    for batch in layer_batches(layers, 2 * len(words), budget_bytes=budget_bytes):
        found = count_by_token(token_rows(trace, where, documents, words, shuffle=None), batch, words)
        shares = {layer: _largest(one, count, kept) for layer, one in found.items()}
        nulls: dict[int, list[Array]] = {layer: [] for layer in batch}
        for draw in range(shuffles):
            shuffled = count_by_token(
                token_rows(trace, where, documents, words, shuffle=seed * 1000 + draw), batch, words
            )
            for layer, one in shuffled.items():
                nulls[layer].append(_largest(one, count, kept)[1])
        noise = _influence(trace, where, documents, words, shares, count, kept)
        for layer, experts in batch.items():
            expert, share = shares[layer]
            null = np.stack(nulls[layer])  # (shuffles, ids)
            drawn = np.concatenate(
                [w @ noise[layer] for w in draw_documents(len(documents), samples=bootstrap, seed=seed)]
            )
            low, high = percentiles(drawn + share.mean(), len(documents))
            often = np.argsort(-count[kept], kind="stable")[:100]
            best = often[np.argsort(-share[often], kind="stable")[:top]]
            ids = np.flatnonzero(words.index >= 0)[kept]
            lines.append(
                {
                    "layer": layer,
                    "specialisation": float(share.mean()),
                    "low": float(low),
                    "high": float(high),
                    "chance": float(null.mean()),
                    "weighted": float((share * count[kept]).sum() / count[kept].sum()),
                    "weighted_chance": float((null * count[kept]).sum() / count[kept].sum() / shuffles),
                    "uniform": trace.header.shape_of(layer).top_k / experts,
                    "own": _above(share, null, count[kept]),
                    "own_chance": 0.01,
                    "top": [f"{ids[i]}>{expert[i]} {share[i]:.2f}" for i in best],
                    "token_ids": len(kept),
                    "coverage": float(count[kept].sum() / count.sum()),
                    "tokens": int(count.sum()),
                    "documents": len(documents),
                }
            )
    return pa.Table.from_pylist(lines)


def _largest(counts: Array, tokens: Array, kept: Array) -> tuple[Array, Array]:
    """Return the most frequent expert of each token id and its share, (ids,) each, from counts (2, v, E)."""
    both = counts[:, kept].sum(0)
    expert = both.argmax(1)
    return expert, np.take_along_axis(both, expert[:, None], 1)[:, 0] / tokens[kept]


def _above(share: Array, null: Array, count: Array) -> float:
    """Return the share of token ids above the 99 % quantile of shuffled ones that occur about as often."""
    order = np.argsort(count, kind="stable")
    above = 0
    for some in np.array_split(order, max(1, len(order) // 200)):
        above += int((share[some] > np.quantile(null[:, some], 0.99)).sum())
    return above / len(share)


def _influence(
    trace: Trace,
    where: Where,
    documents: Documents,
    words: Vocabulary,
    shares: dict[int, tuple[Array, Array]],
    count: Array,
    kept: Array,
) -> dict[int, Array]:
    """Return what each document moves the mean share by, layer → (d,): Σ of (ran - share) / N(x) / ids."""
    sums = {layer: np.zeros(len(documents)) for layer in shares}
    table = {layer: (np.full(len(words) + 1, -1), np.zeros(len(words) + 1)) for layer in shares}
    for layer, (expert, share) in shares.items():
        table[layer][0][kept], table[layer][1][kept] = expert, share
    weight = np.zeros(len(words) + 1)
    weight[kept] = 1 / count[kept] / len(kept)
    for some in token_rows(trace, where, documents, words, shuffle=None):
        word, document = some.word, some.document
        for layer, (expert, share) in table.items():
            mine = expert[word]
            ran = np.zeros(len(word), bool)
            weights = some.weights(layer)
            for slot, ids in enumerate(some.ids(layer).T):
                ran |= (ids == mine) & (weights[:, slot] != 0)
            add_sums(sums[layer], document, (ran - share[word]) * weight[word])
    return sums
