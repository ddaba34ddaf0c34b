"""Sums over the rows of a trace, grouped: how often experts ran, and mean routing distributions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import BadData
from moeworks.stats.compiled import compiled_if_there
from moeworks.stats.distributions import weight_shares
from moeworks.stats.kernels import count_runs, sum_shares
from moeworks.stats.sets import check_ids
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["add_distributions", "add_runs", "add_shares", "layer_batches", "layers_of"]

Array = NDArray[Any]
_CHUNK = 1 << 16  # rows at a time: keys stay in the processor's cache
_WORTH_COMPILING = 1 << 15  # rows; fewer are counted before machine code would be made


def add_runs(counts: Array, entry: Array, ids: Array, weights: Array) -> None:
    """Add to `counts`, (entries, E), how often each expert ran in the rows of each entry.

    Args:
        counts: float64 or integer array that is added to in place; float64 counts exactly up to 2 ** 53.
        entry: (n,) index of each row's entry; rows with -1 are left out.
        ids: (n, k) experts chosen.
        weights: (n, k) combine weights; a slot of weight exactly 0 did not run.

    Raises:
        BadTrace: an id is not below E.
    """
    entries, experts = counts.shape
    if len(entry) >= _WORTH_COMPILING and _add_compiled(counts, entry, ids, weights):
        return
    for start in range(0, len(entry), _CHUNK):
        rows = slice(start, start + _CHUNK)
        here, chosen, weight = entry[rows], ids[rows], weights[rows]
        kept = np.flatnonzero(here >= 0)
        if len(kept) < len(here):
            here, chosen, weight = here[kept], chosen[kept], weight[kept]
        if not len(here):
            continue
        check_ids(chosen, experts)
        present = np.flatnonzero(np.bincount(here, minlength=entries))  # entries of this chunk
        base = np.empty(entries, np.int64)
        base[present] = np.arange(len(present)) * experts
        base = base[here]  # (n,)
        all_ran = np.count_nonzero(weight) == weight.size
        found = np.zeros(len(present) * experts, np.int64)
        for slot in range(chosen.shape[1]):  # one slot at a time is half again as fast as all k together
            keys = base + chosen[:, slot]
            found += np.bincount(keys if all_ran else keys[weight[:, slot] != 0], minlength=len(found))
        counts[present] += found.reshape(len(present), experts)


def _add_compiled(counts: Array, entry: Array, ids: Array, weights: Array) -> bool:
    """Do the same as machine code if numba is there, and return whether it was done: about ten times as fast."""
    kernel = compiled_if_there(count_runs)
    unsigned: Any = {2: np.uint16, 4: np.uint32, 8: np.uint64}.get(weights.dtype.itemsize)
    if kernel is None or unsigned is None or weights.dtype.kind != "f" or not counts.flags.c_contiguous:
        return False
    mask = unsigned(np.iinfo(unsigned).max >> 1)
    ids, weights = np.ascontiguousarray(ids), np.ascontiguousarray(weights)
    if not kernel(counts, np.ascontiguousarray(entry, np.int64), ids, weights.view(unsigned), mask):
        check_ids(ids[np.asarray(entry) >= 0], counts.shape[1])
    return True


def add_shares(sums: Array, entry: Array, ids: Array, weights: Array) -> None:
    """Add each token's combine weights, divided by their sum, to its entry of `sums`, (entries, E) float64.

    Arguments as in `add_runs`; a token for which no expert ran adds nothing.

    Raises:
        BadTrace: an id is not below E, or a weight is negative.
    """
    entries, experts = sums.shape
    kernel = compiled_if_there(sum_shares) if len(entry) >= _WORTH_COMPILING else None
    if kernel is not None and sums.flags.c_contiguous:
        for start in range(0, len(entry), _CHUNK):
            rows = slice(start, start + _CHUNK)
            here = np.ascontiguousarray(entry[rows], np.int64)
            if kernel(sums, here, np.ascontiguousarray(ids[rows]), np.asarray(weights[rows], np.float32)):
                check_ids(ids[rows][here >= 0], experts)
                weight_shares(weights[rows][here >= 0])  # one of both raises
        return
    for start in range(0, len(entry), _CHUNK // 4):
        rows = slice(start, start + _CHUNK // 4)
        kept = start + np.flatnonzero(entry[rows] >= 0)
        if not len(kept):
            continue
        whole = len(kept) == len(entry[rows])
        here, chosen, weight = (array[rows] if whole else array[kept] for array in (entry, ids, weights))
        check_ids(chosen, experts)
        present = np.flatnonzero(np.bincount(here, minlength=entries))  # a chunk holds few of all entries
        base = np.empty(entries, np.int64)
        base[present] = np.arange(len(present)) * experts
        base = base[here]  # (n,)
        shares = weight_shares(weight)  # (n, k)
        found = np.zeros(len(present) * experts)
        for slot in range(chosen.shape[1]):  # a slot at a time is faster than all together
            found += np.bincount(base + chosen[:, slot], weights=shares[:, slot], minlength=len(found))
        sums[present] += found.reshape(len(present), experts)


def add_distributions(sums: Array, entry: Array, distributions: Array) -> None:
    """Add rows to `sums`, (entries, E) float64, by entry; fast where rows of one entry stand together.

    Args:
        sums: added to in place.
        entry: (n,) index of each row's entry; rows with -1 are left out.
        distributions: (n, E).
    """
    kept = np.flatnonzero(entry >= 0)
    if not len(kept):
        return
    here = entry[kept]
    starts = np.concatenate([[0], np.flatnonzero(np.diff(here)) + 1])  # where runs of one entry begin
    np.add.at(sums, here[starts], np.add.reduceat(distributions[kept], starts, axis=0))


def layers_of(trace: Trace, where: Where) -> dict[int, int]:
    """Return the number of experts of each recorded layer that a clause takes, in layer order.

    Raises:
        BadData: the clause names a layer that was not recorded, or takes none.
    """
    unknown = sorted(set(where.layer or ()) - set(trace.layers))
    known = ", ".join(map(str, trace.layers))
    if unknown:
        raise BadData(f"the trace has no layer {', '.join(map(str, unknown))}; layers recorded: {known}.")
    layers = {layer: trace.header.shape_of(layer).experts for layer in trace.layers if where.takes_layer(layer)}
    if not layers:
        raise BadData(f"the clause '{where}' takes none of the layers recorded: {known}.")
    return layers


def layer_batches(layers: Mapping[int, int], entries: int, *, budget_bytes: int) -> Iterator[dict[int, int]]:
    """Yield layers in groups whose counts fit the budget together; a layer too large for it comes alone."""
    batch: dict[int, int] = {}
    for layer, experts in layers.items():
        if batch and 8 * entries * (sum(batch.values()) + experts) > budget_bytes:
            yield batch
            batch = {}
        batch[layer] = experts
    yield batch
