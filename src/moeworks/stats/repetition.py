"""How often neighbouring tokens of a text choose the same experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks.errors import BadData
from moeworks.stats.counts import add_runs, layers_of
from moeworks.stats.documents import SAMPLE, add_sums, ratio_intervals, selected_documents
from moeworks.stats.sets import chance_any, check_ids, chosen, overlap
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["repetition"]

Array = NDArray[Any]
_CHUNK = 1 << 14  # rows at a time: they stay in the processor's cache


def repetition(
    trace: Trace, *, where: Where = Where(), sample: int = SAMPLE, bootstrap: int = 200, seed: int = 0
) -> pa.Table:
    """Return how often a token repeats experts of the token before it, a row per layer.

    Columns: `layer`; `first_choice`, how often the expert of largest weight is the same; `share_any`, how often any
    expert is shared; `overlap`, shared experts / k; each with its 95 % interval `…_low`, `…_high` from resampled
    documents and its `…_chance` for sets drawn at random: 1 / E, 1 - C(E - k, k) / C(E, k), k / E;
    `first_choice_load_chance`, the sum of squared shares of first choices: what uneven use alone gives; `pairs`,
    neighbouring selected tokens of one text; `documents`.

    Source: expert assignment repetitions of Mixtral (arXiv 2401.04088, routing analysis) [recalled]; baselines as in
    combinatorics.

    Args:
        trace: the trace.
        where: which tokens and layers count; both tokens of a pair have to.
        sample: tokens of whole documents drawn at random that are looked at; 0 takes all.
        bootstrap: resamplings of documents.
        seed: of the resamplings.

    Raises:
        BadData: no two neighbouring tokens are selected.
    """
    layers, documents = layers_of(trace, where), selected_documents(trace, where, sample=sample, seed=seed)
    requests = trace.request_table()
    sums = np.zeros((len(layers), 3, len(documents)))  # first choice, any, overlap
    pairs = np.zeros(len(documents))
    firsts = {layer: np.zeros((1, experts), np.int64) for layer, experts in layers.items()}
    for part in trace.parts:
        rows = part.rows()
        at = np.flatnonzero(where.mask(rows, requests) & (documents.of_request[rows.request] >= 0))
        if not len(at):
            continue
        request, position = rows.request[at], rows.position[at]
        follows = (np.diff(request) == 0) & (np.diff(position.astype(np.int64)) == 1)
        entry = np.where(follows, documents.of_request[request[1:]], -1)  # (n - 1,): of each second token
        add_sums(pairs, entry, np.ones(len(entry)))
        for i, (layer, experts) in enumerate(layers.items()):
            ids, weights = part.ids(layer), part.weights(layer)
            if len(at) < len(ids):
                ids, weights = ids[at], weights[at]
            check_ids(ids, experts)
            first, most = _first_choice(ids, weights)
            add_runs(firsts[layer], np.zeros(len(at), np.int64), first[:, None], most[:, None])
            add_sums(sums[i, 0], entry, first[1:] == first[:-1])
            for start in range(0, len(entry), _CHUNK):
                here = entry[start : start + _CHUNK]
                now, before = slice(start + 1, start + 1 + len(here)), slice(start, start + len(here))
                shared = overlap(chosen(ids[now], weights[now]), chosen(ids[before], weights[before], empty=-2))
                add_sums(sums[i, 1], here, shared > 0)
                add_sums(sums[i, 2], here, shared)
    if not pairs.any():
        raise BadData(f"no two neighbouring tokens match the clause '{where}'; nothing can be repeated.")
    top_k = np.array([trace.header.shape_of(layer).top_k for layer in layers])
    sums[:, 2] /= top_k[:, None]
    low, high = (
        ends.reshape(len(layers), 3)
        for ends in ratio_intervals(sums.reshape(-1, len(documents)).T, pairs, samples=bootstrap, seed=seed)
    )
    found = sums.sum(-1) / pairs.sum()  # (layers, 3)
    lines: list[dict[str, Any]] = []
    for i, (layer, experts) in enumerate(layers.items()):
        share = firsts[layer][0] / max(firsts[layer].sum(), 1)
        chances = (1 / experts, chance_any(experts, int(top_k[i])), top_k[i] / experts)
        line: dict[str, Any] = {"layer": layer}
        for j, (name, chance) in enumerate(zip(("first_choice", "share_any", "overlap"), chances, strict=True)):
            line[name] = float(found[i, j])
            line[f"{name}_low"], line[f"{name}_high"] = float(low[i, j]), float(high[i, j])
            line[f"{name}_chance"] = float(chance)
        line["first_choice_load_chance"] = float((share**2).sum())
        lines.append({**line, "pairs": int(pairs.sum()), "documents": len(documents)})
    return pa.Table.from_pylist(lines)


def _first_choice(ids: Array, weights: Array) -> tuple[Array, Array]:
    """Return the expert of largest weight and that weight, (n,) each; of equal ones that of the earlier slot."""
    first, most = ids[:, 0].copy(), weights[:, 0].copy()
    for slot in range(1, ids.shape[1]):
        better = weights[:, slot] > most
        first = np.where(better, ids[:, slot], first)
        np.maximum(most, weights[:, slot], out=most)
    return first, most
