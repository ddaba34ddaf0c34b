"""Whether experts follow the place in the text: use of experts by position, against positions shuffled in each text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks.errors import BadData
from moeworks.stats.counts import add_runs, layers_of
from moeworks.stats.documents import (
    SAMPLE,
    blocks_of_documents,
    draw_documents,
    percentiles,
    sample_documents,
    selected_documents,
)
from moeworks.stats.specialisation import log_ratios, total_variation
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["position_specialisation"]

Array = NDArray[Any]


def position_specialisation(
    trace: Trace,
    *,
    where: Where = Where(),
    shuffles: int = 2,
    fewest: int = 100,
    sample: int = SAMPLE,
    bootstrap: int = 200,
    seed: int = 0,
) -> pa.Table:
    """Return how the use of experts depends on the position in the text, a row per layer and range of positions.

    Ranges double: 0, 1, 2–3, 4–7, and so on. The null shuffles positions within each text, which keeps what texts do to
    routing.

    Columns: `layer`, `positions`; `distance`, half the sum of |f(e | range) - f(e)|, its 95 % interval `low`, `high`
    from resampled documents (moved so that their mean is the number itself) and `chance`; `expert` of largest log
    ratio, ln f(e | range) / f(e), `rate`, the share of the range's tokens for which it runs, `uniform` k / E,
    `log_ratio`, `log_ratio_low`, `log_ratio_high`, and `log_ratio_chance`, the largest with positions shuffled;
    `tokens`, `documents`.

    Source: near-uniform use over position ids in OpenMoE (arXiv 2402.01739) [known from summaries]; the measure is
    ours.

    Args:
        trace: the trace.
        where: which tokens and layers count.
        shuffles: how often positions are shuffled; chance is their mean.
        fewest: an expert with fewer runs is not named.
        sample: tokens of whole documents drawn at random that are looked at; 0 takes all.
        bootstrap: resamplings of documents (of at most 64 random groups of documents where there are more).
        seed: of all of it.

    Raises:
        BadData: nothing is selected.
    """
    if shuffles < 1:
        raise BadData("shuffles=0 gives no chance level; use at least 1.")
    layers, documents = layers_of(trace, where), selected_documents(trace, where)
    block_of, blocks = blocks_of_documents(sample_documents(documents, sample, seed=seed), seed=seed)
    requests, ranges = trace.request_table(), 33
    counts = {layer: np.zeros((1 + shuffles, ranges * blocks, experts)) for layer, experts in layers.items()}
    tokens, taken = np.zeros(ranges, np.int64), 0
    for number, part in enumerate(trace.parts):
        rows = part.rows()
        document = np.where(where.mask(rows, requests), documents.of_request[rows.request], -1)
        block = np.where(document >= 0, block_of[document], -1)
        kept = np.flatnonzero(block >= 0)
        if not len(kept):
            continue
        place = np.frexp(rows.position[kept].astype(float))[1]  # 0; 1; 2 for 2–3; 3 for 4–7
        tokens += np.bincount(place, minlength=ranges)
        entries = [place]
        text = np.concatenate([[0], np.cumsum(np.diff(rows.request[kept]) != 0)])  # rows of one text stand together
        for shuffle in range(shuffles):
            drawn = np.random.default_rng([seed, 32, number, shuffle]).random(len(kept))
            entries.append(place[np.argsort(text + drawn)])
        for which, one in enumerate(entries):
            entry = np.full(len(rows), -1)
            entry[kept] = one * blocks + block[kept]
            for layer in layers:
                add_runs(counts[layer][which], entry, part.ids(layer), part.weights(layer))
        taken += len(kept)
    found = np.flatnonzero(tokens)
    lines: list[dict[str, Any]] = []
    for layer, experts in layers.items():
        runs = counts[layer].reshape(1 + shuffles, ranges, blocks, experts)[:, found]
        drawn = np.concatenate(
            [np.einsum("sb,rbe->sre", w, runs[0]) for w in draw_documents(blocks, samples=bootstrap, seed=seed)]
        )
        uniform = trace.header.shape_of(layer).top_k / experts
        for line in _lines(runs.sum(2), drawn, found, tokens, fewest, blocks):
            lines.append({"layer": layer, **line, "uniform": uniform, "documents": int((block_of >= 0).sum())})
    return pa.Table.from_pylist(lines)


def _lines(runs: Array, drawn: Array, found: Array, tokens: Array, fewest: int, blocks: int) -> list[dict[str, Any]]:
    """Return rows from runs, (1 + shuffles, ranges, E), and resampled ones, (samples, ranges, E)."""
    distance, ratio = total_variation(runs), np.stack([log_ratios(one, fewest=fewest) for one in runs])
    low, high = percentiles(total_variation(drawn), blocks, centre=distance[0])
    general = drawn.sum(1) / np.maximum(drawn.sum((1, 2)), 1)[:, None]
    lines = []
    for r, number in enumerate(found):
        e = int(np.argmax(ratio[0, r]))
        with np.errstate(divide="ignore", invalid="ignore"):
            resampled = np.log(drawn[:, r, e] / np.maximum(drawn[:, r].sum(1), 1) / general[:, e])
        ratio_low, ratio_high = percentiles(resampled, blocks)
        first, last = (0, 0) if number == 0 else (1 << (number - 1), (1 << number) - 1)
        lines.append(
            {
                "positions": f"{first}" if first == last else f"{first}-{last}",
                "distance": float(distance[0, r]),
                "low": max(float(low[r]), 0.0),
                "high": float(high[r]),
                "chance": float(distance[1:, r].mean()),
                "expert": e,
                "rate": float(runs[0, r, e] / tokens[number]),
                "log_ratio": float(ratio[0, r, e]),
                "log_ratio_low": float(ratio_low),
                "log_ratio_high": float(ratio_high),
                "log_ratio_chance": float(ratio[1:, r].max(1).mean()),
                "tokens": int(tokens[number]),
            }
        )
    return lines
