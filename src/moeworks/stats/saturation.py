"""How far the routing of earlier checkpoints of a model already is that of the final one, on the same text."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks.errors import BadData
from moeworks.stats.counts import add_runs, layers_of
from moeworks.stats.documents import SAMPLE, add_sums, ratio_intervals, selected_documents
from moeworks.stats.sets import check_ids, chosen, overlap
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Part, Trace

__all__ = ["aligned", "check_same_shape", "saturation"]

Array = NDArray[Any]
_CHUNK = 1 << 14  # rows at a time: they stay in the processor's cache


def saturation(
    checkpoints: Sequence[Trace],
    final: Trace,
    *,
    steps: Sequence[int] | None = None,
    where: Where = Where(),
    sample: int = SAMPLE,
    bootstrap: int = 200,
    seed: int = 0,
) -> pa.Table:
    """Return how much of each token's choice is that of the final model: a row per checkpoint and layer.

    overlap = mean over tokens of |S_checkpoint ∩ S_final| / k;  saturation = overlap - k / E

    Columns: `step`, `layer`; `overlap`, 1 where the choice is the same; `chance`, k / E, what two sets drawn at random
    share; `load_chance`, what two routers with these loads share if they choose independently of each other (above
    `chance` where both prefer the same few experts); `saturation` with its 95 % interval `low`, `high` from resampled
    documents; `tokens`, `documents`. The same number says how far a fine-tuned model has drifted from its base.

    Source: router saturation of OLMoE (arXiv 2409.02060, analysis section) [known from summaries], which prints the
    overlap; taking chance off is our addition.

    Args:
        checkpoints: traces of earlier checkpoints.
        final: the trace that they are compared with.
        steps: training step of each checkpoint; without, their order from 0.
        where: which tokens and layers count; read on the final trace.
        sample: tokens of whole documents drawn at random that are looked at; 0 takes all.
        bootstrap: resamplings of documents.
        seed: of the resamplings.

    Raises:
        BadData: a trace is of other texts, tokens or positions, or of a model of another shape.
    """
    numbers = list(range(len(checkpoints))) if steps is None else [int(step) for step in steps]
    if not checkpoints or len(numbers) != len(checkpoints):
        raise BadData(f"{len(numbers)} steps for {len(checkpoints)} checkpoints; each checkpoint needs one.")
    layers = layers_of(final, where)
    for trace in checkpoints:
        check_same_shape(trace, final, layers)
    lines: list[dict[str, Any]] = []
    for step, trace in zip(numbers, checkpoints, strict=True):
        lines += [{"step": step, **line} for line in _compare(trace, final, layers, where, sample, bootstrap, seed)]
    return pa.Table.from_pylist(lines)


def check_same_shape(trace: Trace, final: Trace, layers: dict[int, int]) -> None:
    """Raise BadData where two traces are of other texts, or of models of other shapes."""
    if not trace.header.text_hash or trace.header.text_hash != final.header.text_hash:
        raise BadData(
            f"{trace.path} was recorded from other texts than {final.path} (their text hashes differ); saturation "
            "compares the same tokens: record the same data with both checkpoints."
        )
    for layer in layers:
        ours = trace.header.shape_of(layer) if layer in trace.layers else None
        theirs = final.header.shape_of(layer)
        if ours is None or (ours.experts, ours.top_k) != (theirs.experts, theirs.top_k):
            seen = "is missing" if ours is None else f"takes {ours.top_k} of {ours.experts} experts"
            raise BadData(
                f"layer {layer} {seen} in {trace.path}, but takes {theirs.top_k} of {theirs.experts} in {final.path}; "
                "the two are not checkpoints of one model."
            )
    if len(trace) != len(final):
        raise BadData(f"{trace.path} has {len(trace)} rows and {final.path} {len(final)}; both must hold the same.")


def _compare(
    trace: Trace, final: Trace, layers: dict[int, int], where: Where, sample: int, bootstrap: int, seed: int
) -> list[dict[str, Any]]:
    documents, requests = selected_documents(final, where, sample=sample, seed=seed), final.request_table()
    shared = np.zeros((len(layers), len(documents)))
    loads = {layer: np.zeros((2, 1, experts), np.int64) for layer, experts in layers.items()}
    for ours, theirs, mine, other in aligned(trace, final):
        rows = theirs.rows()
        entry = np.where(where.mask(rows, requests), documents.of_request[rows.request], -1)[other]
        kept = np.flatnonzero(entry >= 0)
        if not len(kept):
            continue
        entry = entry[kept]
        places = ((ours, mine.start + kept), (theirs, other.start + kept))
        for i, (layer, experts) in enumerate(layers.items()):
            pair = [(part.ids(layer)[at], part.weights(layer)[at]) for part, at in places]
            for which, (ids, weights) in enumerate(pair):
                check_ids(ids, experts)
                add_runs(loads[layer][which], np.zeros(len(entry), np.int64), ids, weights)
            for start in range(0, len(entry), _CHUNK):
                chunk = slice(start, start + _CHUNK)
                first, second = (chosen(ids[chunk], w[chunk], empty=-1 - n) for n, (ids, w) in enumerate(pair))
                add_sums(shared[i], entry[chunk], overlap(first, second))
    top_k = np.array([final.header.shape_of(layer).top_k for layer in layers])
    total = documents.tokens.sum()
    low, high = ratio_intervals((shared / top_k[:, None]).T, documents.tokens, samples=bootstrap, seed=seed)
    lines = []
    for i, (layer, experts) in enumerate(layers.items()):
        chance, rates = top_k[i] / experts, loads[layer][:, 0] / total  # (2, E)
        found = shared[i].sum() / total / top_k[i]
        lines.append(
            {
                "layer": layer,
                "overlap": float(found),
                "chance": float(chance),
                "load_chance": float(rates.prod(0).sum() / top_k[i]),
                "saturation": float(found - chance),
                "low": float(low[i] - chance),
                "high": float(high[i] - chance),
                "tokens": int(total),
                "documents": len(documents),
            }
        )
    return lines


def aligned(trace: Trace, final: Trace) -> Iterator[tuple[Part, Part, slice, slice]]:
    """Yield parts of two traces with the rows of each that stand at the same place of both; parts may be cut apart.

    Raises:
        BadData: a row of one is not the same token of the same text as that of the other.
    """
    edges = [np.cumsum([0, *map(len, one.parts)]) for one in (trace, final)]
    cuts = np.unique(np.concatenate(edges))
    for start, stop in itertools.pairwise(cuts):
        parts, places = [], []
        for one, edge in zip((trace, final), edges, strict=True):
            number = int(np.searchsorted(edge, start, side="right")) - 1
            parts.append(one.parts[number])
            places.append(slice(int(start - edge[number]), int(stop - edge[number])))
        ours, theirs = (part.rows() for part in parts)
        for name in ("request", "position", "token"):
            differs = np.flatnonzero(getattr(ours, name)[places[0]] != getattr(theirs, name)[places[1]])
            if len(differs):
                raise BadData(
                    f"row {int(start + differs[0])} is another {name} in {trace.path} than in {final.path}; saturation "
                    "compares the same tokens in the same order: record both with the same tokenizer and options."
                )
        yield parts[0], parts[1], places[0], places[1]
