"""How far routing of the same text has moved between two snapshots of a model: distributions and single choices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks.errors import BadData
from moeworks.stats.counts import add_runs, layers_of
from moeworks.stats.distributions import jensen_shannon
from moeworks.stats.documents import SAMPLE, blocks_of_documents, draw_documents, percentiles, selected_documents
from moeworks.stats.saturation import aligned, saturation
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["drift"]

Array = NDArray[Any]
_BLOCKS = 256


def drift(
    checkpoints: Sequence[Trace],
    final: Trace,
    *,
    steps: Sequence[int] | None = None,
    where: Where = Where(),
    permutations: int = 200,
    sample: int = SAMPLE,
    bootstrap: int = 200,
    seed: int = 0,
) -> pa.Table:
    """Return how far each checkpoint's routing is from the final one's on the same tokens: a row per checkpoint, layer.

    SAME's router drift has two halves: the divergence of the experts' distributions, and the overlap of single choices.
    A layer can keep its loads and still send every token elsewhere, or keep most choices and starve one expert.

    Columns: `step`, `layer`; `divergence`, Jensen–Shannon of the shares of runs, divided by ln 2, its 95 % interval
    `low`, `high` from resampled documents (moved so that their mean is the number itself), `chance`, its mean with the
    two traces exchanged at random for each document, and `p`; `overlap`, |S ∩ S'| / k, its interval `overlap_low`,
    `overlap_high`, `overlap_chance` (k / E) and `overlap_load_chance`: as in `saturation`; `tokens`, `documents`.
    For the drift of one task, select its texts with `where`. What cannot be undone by routing (SAME's expert drift)
    needs training, not a trace.

    Source: SAME (arXiv 2602.01990) [known from summaries].

    Args:
        checkpoints: traces of other snapshots: the model before a task, of a quantised copy, of a fine-tuned one.
        final: the trace that they are compared with.
        steps: a number for each; without, their order from 0.
        where: which tokens and layers count; read on the final trace.
        permutations: of the traces.
        sample: tokens of whole documents drawn at random that are looked at; 0 takes all.
        bootstrap: resamplings of documents (of at most 256 random groups of documents where there are more).
        seed: of both.

    Raises:
        BadData: as `saturation`.
    """
    if permutations < 1:
        raise BadData("permutations=0 gives no null; use at least 1.")
    choices = saturation(
        checkpoints, final, steps=steps, where=where, sample=sample, bootstrap=bootstrap, seed=seed
    ).to_pylist()
    layers = layers_of(final, where)
    lines: list[dict[str, Any]] = []
    for number, trace in enumerate(checkpoints):
        runs = _runs(trace, final, layers, where, sample, seed)
        for place, layer in enumerate(layers):
            same = choices[number * len(layers) + place]
            lines.append(
                {
                    "step": same["step"],
                    "layer": layer,
                    **_divergence(runs[layer], permutations, bootstrap, seed),
                    "overlap": same["overlap"],
                    "overlap_low": same["low"] + same["chance"],
                    "overlap_high": same["high"] + same["chance"],
                    "overlap_chance": same["chance"],
                    "overlap_load_chance": same["load_chance"],
                    "tokens": same["tokens"],
                    "documents": same["documents"],
                }
            )
    return pa.Table.from_pylist(lines)


def _runs(trace: Trace, final: Trace, layers: dict[int, int], where: Where, sample: int, seed: int) -> dict[int, Array]:
    """Return how often each expert ran in each trace and block of documents, layer → (2, blocks, E)."""
    documents, requests = selected_documents(final, where, sample=sample, seed=seed), final.request_table()
    block_of, blocks = blocks_of_documents(np.ones(len(documents), bool), seed=seed, most=_BLOCKS)
    runs = {layer: np.zeros((2, blocks, experts)) for layer, experts in layers.items()}
    for ours, theirs, mine, other in aligned(trace, final):
        rows = theirs.rows()
        document = np.where(where.mask(rows, requests), documents.of_request[rows.request], -1)
        entry = np.where(document >= 0, block_of[document], -1)[other]
        kept = np.flatnonzero(entry >= 0)
        if not len(kept):
            continue
        entry, starts = entry[kept], (mine.start, other.start)
        for layer in layers:
            for which, part in enumerate((ours, theirs)):
                at = starts[which] + kept
                add_runs(runs[layer][which], entry, part.ids(layer)[at], part.weights(layer)[at])
    return runs


def _divergence(runs: Array, permutations: int, bootstrap: int, seed: int) -> dict[str, float]:
    found = float(_between(runs.sum(1)))
    rng = np.random.default_rng([seed, 33])
    swapped = rng.integers(0, 2, (permutations, runs.shape[1])).astype(float)  # (permutations, blocks)
    pairs = np.stack([swapped @ runs[0] + (1 - swapped) @ runs[1], swapped @ runs[1] + (1 - swapped) @ runs[0]], 1)
    null = _between(pairs)
    drawn = np.concatenate(
        [
            _between(np.einsum("sb,wbe->swe", weights, runs))
            for weights in draw_documents(runs.shape[1], samples=bootstrap, seed=seed)
        ]
    )
    low, high = percentiles(drawn, runs.shape[1], centre=found)
    return {
        "divergence": found,
        "low": max(float(low), 0.0),
        "high": float(high),
        "chance": float(null.mean()),
        "p": float((1 + (null >= found - 1e-12).sum()) / (1 + permutations)),
    }


def _between(runs: Array) -> Array:
    """Return the divergence of two distributions of runs, (…, 2, E) → (…,)."""
    share = runs / np.maximum(runs.sum(-1, keepdims=True), 1)
    return np.asarray(jensen_shannon(share[..., 0, :], share[..., 1, :]) / np.log(2))
