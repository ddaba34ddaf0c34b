"""How much of a layer's routing follows from the token id alone, whatever the context."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks.errors import BadData
from moeworks.stats.counts import layer_batches, layers_of
from moeworks.stats.documents import SAMPLE, Documents, add_sums, ratio_intervals, selected_documents
from moeworks.stats.sets import check_ids
from moeworks.stats.token_counts import Vocabulary, count_by_token, token_rows, vocabulary
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["information", "modes", "token_dependence"]

Array = NDArray[Any]
_CHUNK = 1 << 15  # rows at a time


def token_dependence(
    trace: Trace,
    *,
    where: Where = Where(),
    fewest: int = 5,
    shuffles: int = 2,
    sample: int = SAMPLE // 4,
    bootstrap: int = 200,
    seed: int = 0,
    budget_bytes: int = 256 << 20,
) -> pa.Table:
    """Return how well the token id foretells the choice of experts, a row per layer.

        TID = sum over token ids v of p(v) × mean over held-out tokens of v of |S ∩ mode_k(v)| / k

    mode_k(v) are the k experts that run most often for v in one half of the documents; they are tried on the other
    half, on token ids that occur at least `fewest` times in the first. 1: the token decides all; k / E: nothing does.

    The null: token ids change places within each text, which keeps what texts, topics and languages do to routing
    and takes away only which token it was (in a text of n tokens one in n keeps its own by accident, so that the null
    is a little too high for short texts). Also the share of routing information that the token id holds, I(expert;
    token) / H(expert), over all selected tokens, with its bias taken off (see `information`).

    Columns: `layer`; `dependence` (TID), its 95 % interval `low`, `high`; `chance`, the same with shuffled token ids,
    and `excess` over it with `excess_low`, `excess_high`: routing depends on the token where this interval is above 0;
    `uniform_chance`, k / E; `information`, `information_low`, `information_high`, `information_chance` (shuffled);
    `coverage`, the share of held-out tokens that could be tried; `tokens` tried; `documents` held out; `token_ids`,
    different ones in all. Intervals are from resampled documents, with the modes as found; that of `information` is
    linearised (its influence function is resampled), since counts of every sample would not fit into memory.

    Source: context-independent specialisation of OpenMoE (arXiv 2402.01739, section 4) [known from summaries]; the
    measure and its null are ours.

    Args:
        trace: the trace.
        where: which tokens and layers count.
        fewest: token ids seen less often in the first half are not tried.
        shuffles: how often token ids are shuffled; chance is their mean.
        sample: tokens of whole documents drawn at random that are looked at; 0 takes all.
        bootstrap: resamplings of documents.
        seed: of the halves, shuffles and resamplings.
        budget_bytes: memory for counts, 16 × token ids × experts bytes a layer; layers that do not fit take further
            passes.

    Raises:
        BadData: nothing is selected, all of it is of one document, or no token id is frequent enough.
    """
    if fewest < 1 or shuffles < 1:
        raise BadData(f"fewest={fewest} and shuffles={shuffles}; both have to be at least 1.")
    layers, documents = layers_of(trace, where), selected_documents(trace, where, sample=sample, seed=seed)
    words = vocabulary(trace, where, documents, seed=seed)
    tried = words.tokens[0] >= fewest
    if not words.tokens[1][tried].any():
        raise BadData(
            f"no token id that occurs {fewest} times in one half of the documents occurs in the other; record more "
            "text, or lower `fewest`."
        )
    lines: list[dict[str, Any]] = []
    for batch in layer_batches(layers, 2 * len(words), budget_bytes=budget_bytes):
        found = _measure(trace, where, documents, words, batch, fewest, shuffle=None)
        nulls = [
            _measure(trace, where, documents, words, batch, fewest, shuffle=seed * 1000 + draw)
            for draw in range(shuffles)
        ]
        lines += _lines(trace, batch, words, found, nulls, bootstrap, seed)
    return pa.Table.from_pylist(lines)


def modes(counts: Array, top_k: int, *, fewest: int, tokens: Array) -> Array:
    """Return which experts are the `top_k` most frequent ones of each token id, (v, E) booleans.

    Of equally frequent experts the lower number is taken; an expert that never ran is none; a token id with fewer than
    `fewest` tokens has none.

    Args:
        counts: (v, E) how often each expert ran for each token id.
        top_k: how many experts.
        fewest: see above.
        tokens: (v,) tokens of each id.
    """
    experts = counts.shape[1]
    key = counts * experts + np.arange(experts)[::-1]  # distinct, so that the order is the same everywhere
    best = np.argpartition(key, experts - top_k, axis=1)[:, experts - top_k :]  # (v, k)
    found = np.zeros(counts.shape, bool)
    np.put_along_axis(found, best, True, axis=1)
    return np.asarray(found & (counts > 0) & (tokens >= fewest)[:, None])


def information(counts: Array, top_k: int) -> tuple[float, float]:
    """Return I(expert; token) / H(expert) of (v, E) counts: with bias taken off, and as it is (plug-in).

    An expert is drawn from those that ran for a token. Miller and Madow add (K - 1) / 2N to an entropy of N independent
    draws with K values seen. The k experts of one token are different ones, which makes their counts less noisy:
    (K - k) / 2N takes its place, the same for k = 1. H(expert | token) is the mean over token ids, each corrected.
    What many rare token ids leave of the bias shows in the shuffled null.

    Source: Miller 1955; Paninski 2003 (section 4) for the bias.
    """
    runs = counts.sum(1)  # (v,)
    present = runs > 0
    counts, runs = counts[present], runs[present]
    total = runs.sum()
    own = -_sum_log(counts.sum(0)) / total + np.log(total)  # H(expert)
    given = (-_sum_log(counts) + _sum_log(runs)) / total  # H(expert | token)
    bias_own = ((counts.sum(0) > 0).sum() - top_k) / (2 * total)
    bias_given = ((counts > 0).sum() - top_k * len(runs)) / (2 * total)
    if own <= 0:
        return float("nan"), float("nan")
    corrected = 1 - (given + bias_given) / (own + bias_own)
    return float(corrected), float(1 - given / own)


class _Measured(NamedTuple):
    """What one reading of the tokens gives for a batch of layers."""

    hits: Array  # (held-out documents, layers) experts that were the token's modes
    tokens: Array  # (held-out documents,) tokens tried
    information: Array  # (layers, 2) corrected and plug-in
    influence: Array  # (2, documents, layers) sums of log p(v, e) / p(v) p(e), and of -log p(e); empty if shuffled


def _measure(
    trace: Trace,
    where: Where,
    documents: Documents,
    words: Vocabulary,
    layers: Mapping[int, int],
    fewest: int,
    *,
    shuffle: int | None,
) -> _Measured:
    counts = count_by_token(token_rows(trace, where, documents, words, shuffle=shuffle), layers, words)
    shapes = {layer: trace.header.shape_of(layer).top_k for layer in layers}
    common = {layer: modes(counts[layer][0], k, fewest=fewest, tokens=words.tokens[0]) for layer, k in shapes.items()}
    numbers = np.array([information(counts[layer].sum(0), k) for layer, k in shapes.items()])
    logs = {} if shuffle is not None else {layer: _logs(counts[layer].sum(0)) for layer in layers}
    del counts
    hits, tokens = np.zeros((len(layers), len(documents))), np.zeros(len(documents))
    influence = np.zeros((2, len(layers), len(documents)))
    tried = words.tokens[0] >= fewest
    for some in token_rows(trace, where, documents, words, shuffle=shuffle):
        word, document = some.word, some.document
        entry = np.where(some.held_out & tried[word], document, -1)
        add_sums(tokens, entry, np.ones(len(entry)))
        for i, (layer, experts) in enumerate(layers.items()):
            ids, weights = some.ids(layer), some.weights(layer)
            check_ids(ids, experts)
            for start in range(0, len(word), _CHUNK):
                rows = slice(start, start + _CHUNK)
                ran = weights[rows] != 0
                ran = None if ran.all() else ran
                add_sums(hits[i], entry[rows], _gather(common[layer], word[rows], ids[rows], ran))
                if shuffle is None:
                    for sums, table in zip(influence[:, i], logs[layer], strict=True):
                        add_sums(sums, document[rows], _gather(table, word[rows], ids[rows], ran))
    held = words.held_out
    return _Measured(hits[:, held].T, tokens[held], numbers, influence.transpose(0, 2, 1))


def _gather(table: Array, word: Array, ids: Array, ran: Array | None) -> Array:
    """Return the sum over slots of table[word, id], (n,); rows with word -1 read some entry that is not used."""
    flat, base = table.reshape(-1), word * table.shape[1] if len(table) > 1 else np.zeros_like(word)
    total: Array = np.zeros(len(ids), np.float32)
    for slot in range(ids.shape[1]):  # a slot at a time is several times faster than all at once
        values = flat.take(base + ids[:, slot], mode="wrap")
        total += values if ran is None else np.where(ran[:, slot], values, 0)
    return total


def _logs(counts: Array) -> tuple[Array, Array]:
    """Return log p(v, e) / p(v) p(e), (v, E), and -log p(e), (1, E), float32; 0 where nothing ran."""
    total = counts.sum()
    expert = counts.sum(0, keepdims=True) / total  # (1, E)
    token = counts.sum(1, keepdims=True) / total
    with np.errstate(divide="ignore", invalid="ignore"):
        joint = np.where(counts > 0, np.log(counts / total / (token * expert)), 0.0)
        own = np.where(expert > 0, -np.log(expert), 0.0)
    return joint.astype(np.float32), own.astype(np.float32)


def _sum_log(counts: Array) -> float:
    return float((counts * np.log(np.where(counts > 0, counts, 1))).sum())


def _lines(
    trace: Trace,
    layers: Mapping[int, int],
    words: Vocabulary,
    found: _Measured,
    nulls: list[_Measured],
    bootstrap: int,
    seed: int,
) -> list[dict[str, Any]]:
    top_k = np.array([trace.header.shape_of(layer).top_k for layer in layers])
    hits = found.hits / top_k
    total = found.tokens.sum()  # the same for the shuffled ones, which keep the token ids of each text
    null_hits = np.mean([null.hits for null in nulls], 0) / top_k
    low, high = ratio_intervals(hits, found.tokens, samples=bootstrap, seed=seed)
    excess_low, excess_high = ratio_intervals(hits - null_hits, found.tokens, samples=bootstrap, seed=seed)
    informed_low, informed_high = ratio_intervals(*found.influence, samples=bootstrap, seed=seed)
    dependence, chance = hits.sum(0) / total, null_hits.sum(0) / total
    corrected, plain = found.information.T
    null_information = np.mean([null.information[:, 0] for null in nulls], 0)
    return [
        {
            "layer": layer,
            "dependence": float(dependence[i]),
            "low": float(low[i]),
            "high": float(high[i]),
            "chance": float(chance[i]),
            "excess": float(dependence[i] - chance[i]),
            "excess_low": float(excess_low[i]),
            "excess_high": float(excess_high[i]),
            "uniform_chance": float(top_k[i] / experts),
            "information": float(corrected[i]),
            "information_low": float(informed_low[i] + corrected[i] - plain[i]),
            "information_high": float(informed_high[i] + corrected[i] - plain[i]),
            "information_chance": float(null_information[i]),
            "coverage": float(total / words.tokens[1].sum()),
            "tokens": int(total),
            "documents": int(words.held_out.sum()),
            "token_ids": len(words),
        }
        for i, (layer, experts) in enumerate(layers.items())
    ]
