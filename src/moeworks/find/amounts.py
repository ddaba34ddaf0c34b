"""What a score reads, summed per document in one pass: choices, combine weights or router probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeworks.contract import Contract, score_logits
from moeworks.errors import BadTrace, Unsupported
from moeworks.find.scores.base import Reads
from moeworks.stats.counts import add_distributions, add_runs

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["add_amounts", "probabilities", "sum_reads"]

Array = NDArray[Any]
_CHUNK = 1 << 15  # rows at a time: keys stay in the processor's cache
_ROUNDING = 1e-6


def sum_reads(
    trace: Trace, rows: Iterable[tuple[Any, Array, Array | None]], tokens: Array, layers: Mapping[int, int], what: Reads
) -> Array:
    """Return sums of what a score reads, (entries, sum of E), layers side by side in the order given.

    Args:
        trace: the trace.
        rows: for each part, the part, the index of each row's entry (-1: left out) and each row's factor, (n,), or
            None for ones.
        tokens: (entries,) tokens of each entry, or sums of their factors.
        layers: number of experts of each layer.
        what: choices, combine weights, or probabilities of all experts.

    Raises:
        BadTrace: an expert ran more often than there are tokens, or probabilities are asked of a trace without logits.
        Unsupported: a router has no probabilities, or no proved contract to take them by.
    """
    contracts = {layer: _contract(trace, layer) for layer in layers} if what == "probabilities" else {}
    sums = np.zeros((len(tokens), sum(layers.values())))  # float64: sums of it are matrix products
    ends = np.cumsum([0, *layers.values()])
    for part, entry, factor in rows:
        for layer, start, stop in zip(layers, ends[:-1], ends[1:], strict=True):
            own = sums[:, start:stop]
            if what == "probabilities":
                _add_probabilities(own, entry, factor, part.logits(layer), contracts[layer])
            elif what == "runs" and factor is None:
                add_runs(own, entry, part.ids(layer), part.weights(layer))
            else:
                add_amounts(own, entry, part.ids(layer), part.weights(layer), factor=factor, runs=what == "runs")
    if what == "runs" and (sums > tokens[:, None] * (1 + _ROUNDING)).any():
        raise BadTrace("an expert ran more often than there are tokens: a row names the same expert twice.")
    return sums


def add_amounts(
    sums: Array, entry: Array, ids: Array, weights: Array, *, factor: Array | None = None, runs: bool = False
) -> None:
    """Add to `sums`, (entries, E) float64, the combine weights of each expert in the rows of each entry.

    Args:
        sums: added to in place.
        entry: (n,) index of each row's entry; rows with -1 are left out.
        ids: (n, k) experts chosen.
        weights: (n, k) combine weights.
        factor: (n,) by which a row counts; None for 1.
        runs: add 1 (times the factor) for each slot that ran, in place of its weight.

    Raises:
        BadTrace: an id is not below E.
    """
    entries, experts = sums.shape
    for start in range(0, len(entry), _CHUNK):
        rows = slice(start, start + _CHUNK)
        here, chosen, weight = entry[rows], ids[rows], weights[rows]
        scale = None if factor is None else factor[rows]
        kept = np.flatnonzero(here >= 0)
        if not len(kept):
            continue
        if len(kept) < len(here):
            here, chosen, weight = here[kept], chosen[kept], weight[kept]
            scale = None if scale is None else scale[kept]
        if int(chosen.max()) >= experts:
            raise BadTrace(
                f"a row names expert {chosen.max()}, but experts are 0 to {experts - 1}; the trace is altered."
            )
        present = np.flatnonzero(np.bincount(here, minlength=entries))  # entries of this chunk
        base = np.empty(entries, np.int64)
        base[present] = np.arange(len(present)) * experts
        base = base[here]  # (n,)
        found = np.zeros(len(present) * experts)
        for slot in range(chosen.shape[1]):  # one slot at a time: its numbers stay in the processor's cache
            amount = (weight[:, slot] != 0) if runs else weight[:, slot]
            counted = amount if scale is None else amount * scale  # bincount takes float64
            found += np.bincount(base + chosen[:, slot], weights=counted, minlength=len(found))
        sums[present] += found.reshape(len(present), experts)


def probabilities(logits: Array, contract: Contract) -> Array:
    """Return each token's probability of every expert, (n, E): the router's scores of all experts, summing to 1.

    For a softmax router these are its own; sigmoid and softplus scores are divided by their sum. A selection bias and
    groups never enter.
    """
    scores = score_logits(logits, contract)
    return scores if contract.score in ("softmax", "sparsemixer") else scores / scores.sum(-1, keepdims=True)


def _add_probabilities(sums: Array, entry: Array, factor: Array | None, logits: Array, contract: Contract) -> None:
    step = max(1, _CHUNK // 4)  # so that float64 copies of (rows, E) stay small
    for start in range(0, len(entry), step):
        rows = slice(start, start + step)
        kept = np.flatnonzero(entry[rows] >= 0)
        if len(kept):
            read = probabilities(logits[rows][kept], contract)  # (n, E)
            add_distributions(sums, entry[rows][kept], read if factor is None else read * factor[rows][kept][:, None])


def _contract(trace: Trace, layer: int) -> Contract:
    """Return the contract whose score function gives a layer's probabilities."""
    if not trace.header.logits:
        raise BadTrace(
            "the trace has no logits, and this score reads the probabilities of all experts; record it again with "
            "logits (moeworks record … --logits)."
        )
    shape = trace.header.shape_of(layer)
    if shape.contract is None:
        raise Unsupported(
            f"layer {layer} has no proved contract ({shape.opaque or 'none was recorded'}), so that its logits cannot "
            "be turned into probabilities; use a score that reads choices or weights."
        )
    if shape.contract.score == "identity":
        raise Unsupported(
            f"the router of layer {layer} weights experts by its logits themselves, which are no probabilities; use a "
            "score that reads choices or weights."
        )
    return shape.contract
