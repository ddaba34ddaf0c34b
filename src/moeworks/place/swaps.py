"""Cache-conditional routing, dry: how often it would swap an expert for one that is there, from recorded logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks.errors import BadData, BadTrace, Unsupported
from moeworks.place.kernels import compiled
from moeworks.place.rules import Capacity
from moeworks.stats.counts import layers_of
from moeworks.stats.documents import ratio_intervals, selected_documents
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.artefact import LayerShape
    from moeworks.trace import Trace

__all__ = ["Admission", "conditional_swaps"]

Array = NDArray[Any]
Admission = Literal["recorded", "chosen", "background"]
_AGREE = 0.999  # share of rows whose recorded experts must be the largest logits
_ROUNDING = 2e-2  # of the largest logit: engines choose in a coarser dtype than logits are recorded in


@dataclass
class _State:
    """One layer's cache and running spread, kept from part to part."""

    slots: Array
    slot_of: Array
    last: Array
    numbers: Array  # clock, filled places, tokens, sum of spreads


def conditional_swaps(
    trace: Trace,
    *,
    strength: float = 0.1,
    kept: int = 1,
    capacity: str = "2k",
    admission: Admission = "background",
    where: Where = Where(),
    expert_bytes: float | None = None,
    bootstrap: int = 200,
    seed: int = 0,
) -> pa.Table:
    """Count the swaps and misses that a bonus for resident experts would give, without applying it.

    The selection score of expert e is z(e) + strength × D × [e is resident], with D the running mean over tokens of
    max z - min z; the `kept` largest by z alone are always chosen. Later layers and tokens would see other inputs if
    swaps were applied: that is not in the numbers.

    Args:
        trace: recorded with logits; routers that take the largest logits (no selection bias, no groups).
        strength: lambda, 0 to 1; 0 swaps nothing.
        kept: J, 1 for few large experts, 2 for many small ones.
        capacity: as `Capacity.parse` reads it; the cache is LRU, one a layer, and empty at first.
        admission: what the cache sees: the `recorded` experts (routing stays as it is, swaps are only counted), the
            `chosen` ones (an expert that was swapped away is never loaded, and is swapped away for ever), or the chosen
            ones with those swapped away loaded in the `background`.
        where: tokens and layers that count.
        expert_bytes: bytes of an expert, for capacities in bytes.
        bootstrap, seed: of resampled documents.

    Returns:
        A row per layer: swaps (share of slots) with interval low, high; miss_rate with them applied and plain_miss_rate
        of the same cache without, each a share of slots; gap, the mean logit given up by a swap; mean_spread, D.

    Raises:
        BadTrace: no logits. Unsupported: a router whose choice is not the largest logits. BadData: a bad option.

    Source: arXiv 2412.00099; its formula from a third-party implementation that names the paper [secondary].
    """
    if strength < 0 or kept < 0:
        raise BadData("strength and kept are not negative.")
    if admission not in get_args(Admission):
        raise BadData(f"admission cannot be '{admission}'; write one of {', '.join(get_args(Admission))}.")
    if not trace.header.logits:
        raise BadTrace("swaps are counted from logits, which the trace lacks; record it with logits.")
    layers = layers_of(trace, where)
    shapes = [trace.header.shape_of(layer) for layer in layers]
    documents = selected_documents(trace, where)
    requests = trace.request_table()
    held = Capacity.parse(capacity).of(shapes, expert_bytes=expert_bytes)
    lines = []
    for shape, size in zip(shapes, held, strict=True):
        _check(shape, kept, size)
        sums = np.zeros((len(documents), 4))  # swaps, misses, plain misses, logits given up
        states = [_empty(shape.experts, size) for _ in range(2)]
        agree = rows_seen = 0
        for part in trace.parts:
            rows = part.rows()
            taken = np.flatnonzero(where.mask(rows, requests))
            if not len(taken):
                continue
            logits = np.ascontiguousarray(part.logits(shape.layer)[taken], np.float64)
            ids = part.ids(shape.layer)[taken].astype(np.int64)
            agree += _agreeing(logits, ids)
            rows_seen += len(taken)
            unit = documents.of_request[rows.request[taken]]
            compiled(_run)(
                logits, ids, unit, strength, kept, get_args(Admission).index(admission),
                states[0].slots, states[0].slot_of, states[0].last, states[0].numbers,
                states[1].slots, states[1].slot_of, states[1].last, states[1].numbers, sums,
            )  # fmt: skip
        if agree < _AGREE * rows_seen:
            raise Unsupported(
                f"layer {shape.layer} chose the experts of its largest logits in {agree / rows_seen:.1%} of the tokens "
                "only; a bonus on logits is not what its rule selects by."
            )
        slots = documents.tokens * shape.top_k
        lows, highs = ratio_intervals(sums, slots, samples=bootstrap, seed=seed)
        total = sums.sum(0)
        lines.append(
            {
                "layer": shape.layer,
                "held": size,
                "swaps": total[0] / slots.sum(),
                "low": lows[0],
                "high": highs[0],
                "miss_rate": total[1] / slots.sum(),
                "miss_low": lows[1],
                "miss_high": highs[1],
                "plain_miss_rate": total[2] / slots.sum(),
                "plain_low": lows[2],
                "plain_high": highs[2],
                "gap": total[3] / total[0] if total[0] else 0.0,
                "mean_spread": states[0].numbers[3] / states[0].numbers[2],
            }
        )
    return pa.Table.from_pylist(
        [{k: v if k in ("layer", "held") else float(v) for k, v in line.items()} for line in lines]
    )


def _check(shape: LayerShape, kept: int, size: int) -> None:
    contract = shape.contract
    if contract is not None and (contract.bias or contract.groups > 1 or contract.hashed):
        raise Unsupported(
            f"the router of layer {shape.layer} does not choose by its logits alone (selection bias, groups or a "
            "hash); a bonus on logits is not defined for it."
        )
    if kept > shape.top_k:
        raise BadData(f"{kept} experts cannot always be kept where {shape.top_k} are chosen.")
    if size < shape.top_k:
        raise BadData(f"a cache of {size} experts does not hold the {shape.top_k} of one token; give at least 1k.")


def _agreeing(logits: Array, ids: Array) -> int:
    """Return in how many rows the recorded experts are those of the largest logits, up to rounding."""
    others = logits.copy()
    np.put_along_axis(others, ids, -np.inf, axis=1)
    short = others.max(1) - np.take_along_axis(logits, ids, 1).min(1)
    return int((short <= _ROUNDING * np.abs(logits).max(1)).sum())


def _empty(experts: int, size: int) -> _State:
    return _State(np.full(size, -1, np.int64), np.full(experts, -1, np.int64), np.zeros(experts), np.zeros(4))


def _run(
    logits: Array, ids: Array, unit: Array, strength: float, kept: int, admission: int,
    slots: Array, slot_of: Array, last: Array, numbers: Array,
    plain_slots: Array, plain_slot_of: Array, plain_last: Array, plain_numbers: Array, sums: Array,
) -> None:  # fmt: skip
    """Go through the rows of one part; the first cache is that of conditional routing, the second plain LRU.

    A recorded expert counts as at least as good as any that was not chosen: rounding made no swap.
    """
    count, experts = logits.shape
    top_k = ids.shape[1]
    chosen = np.empty(top_k, np.int64)
    wanted = np.empty(3 * top_k, np.int64)
    picked = np.zeros(experts, np.bool_)
    known = np.zeros(experts, np.bool_)
    for row in range(count):
        z = logits[row]
        largest, smallest = z[0], z[0]
        for e in range(experts):
            largest = max(largest, z[e])
            smallest = min(smallest, z[e])
            picked[e] = False
            known[e] = False
        for slot in range(top_k):
            known[ids[row, slot]] = True
        bar = smallest
        for e in range(experts):
            if not known[e]:
                bar = max(bar, z[e])
        for slot in range(top_k):
            z[ids[row, slot]] = max(z[ids[row, slot]], bar)
        numbers[2] += 1
        numbers[3] += largest - smallest
        bonus = strength * numbers[3] / numbers[2]
        for slot in range(top_k):
            best, highest = -1, 0.0
            for e in range(experts):
                score = z[e] + (bonus if slot >= kept and slot_of[e] >= 0 else 0.0)
                better = best < 0 or score > highest or (score == highest and known[e] and not known[best])
                if better and not picked[e]:
                    best, highest = e, score
            picked[best] = True
            chosen[slot] = best
        u = unit[row]
        for slot in range(top_k):
            recorded = ids[row, slot]
            if not picked[recorded]:
                sums[u, 0] += 1
                sums[u, 3] += z[recorded]
            if plain_slot_of[recorded] < 0:
                sums[u, 2] += 1
            if slot_of[chosen[slot]] < 0:
                sums[u, 1] += 1
            if not known[chosen[slot]]:
                sums[u, 3] -= z[chosen[slot]]
        for which in range(2):
            places, place_of, stamp, state = slots, slot_of, last, numbers
            if which == 1:
                places, place_of, stamp, state = plain_slots, plain_slot_of, plain_last, plain_numbers
            asked = 0
            if which == 0 and admission == 2:  # what was swapped away comes first, so that the chosen are newer
                for slot in range(top_k):
                    if not picked[ids[row, slot]]:
                        wanted[asked] = ids[row, slot]
                        asked += 1
            for slot in range(top_k):
                wanted[asked] = chosen[slot] if which == 0 and admission > 0 else ids[row, slot]
                asked += 1
            for n in range(asked):
                state[0] += 1
                x = wanted[n]
                stamp[x] = state[0]
                if place_of[x] >= 0:
                    continue
                place = -1
                if state[1] < len(places):
                    place = int(state[1])
                    state[1] += 1
                else:
                    for s in range(len(places)):
                        if place < 0 or stamp[places[s]] < stamp[places[place]]:
                            place = s
                    place_of[places[place]] = -1
                places[place] = x
                place_of[x] = place
