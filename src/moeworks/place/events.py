"""From a trace to the events that a cache sees: which experts each step of each batch of texts needs in each layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import BadData
from moeworks.place.kernels import compiled, merge_events
from moeworks.place.rules import CacheRules
from moeworks.stats.counts import layers_of
from moeworks.stats.sets import check_ids
from moeworks.where import PHASES, Where

if TYPE_CHECKING:
    from moeworks.artefact import LayerShape
    from moeworks.trace import Trace

__all__ = ["Events", "Steps", "caches_of", "layer_events", "pooled_events", "steps_of"]

Array = NDArray[Any]
PROMPT = PHASES.index("prompt")


@dataclass(frozen=True)
class Steps:
    """Which step each row of a trace belongs to; the same for all layers.

    Attributes:
        layers: what is known of the layers looked at, in order.
        step: (n,) step of each row of the trace, numbered from 0 in the order in which they run; -1 for rows left out.
        unit: (steps,) what is resampled: the document of the step's text, or its batch where texts run together.
        fresh: (steps,) whether a new batch of texts begins.
        units: how many units there are.
        tokens: rows that count.
        phases: tokens of each phase that count, by name.
        texts: texts that count.
    """

    layers: tuple[LayerShape, ...]
    step: Array
    unit: Array
    fresh: Array
    units: int
    tokens: int
    phases: dict[str, int]
    texts: int

    def __len__(self) -> int:
        return len(self.unit)


@dataclass(frozen=True)
class Events:
    """The accesses of one cache, event by event; a accesses, e events, `total` experts numbered over its layers."""

    experts: Array  # (a,) int32, distinct in an event, in order of first appearance
    starts: Array  # (e + 1,) int64
    unit: Array  # (e,) int32
    layer: Array  # (e,) int32, index among this cache's layers
    fresh: Array  # (e,) booleans: a new batch of texts begins
    home: Array  # (total,) int32, layer index of each expert
    base: Array  # (layers,) int64, number of the first expert of each layer
    units: int
    per_step: int  # events of one step: the layers of the pool

    @property
    def total(self) -> int:
        """Experts that this cache may be asked for."""
        return len(self.home)


def steps_of(trace: Trace, rules: CacheRules, *, where: Where = Where(), documents: Array | None = None) -> Steps:
    """Return the steps in which the rows of a trace run under these rules.

    Texts run in the order of the trace, `rules.batch` at a time, step by step until the longest is done; texts that
    are done leave their place empty (no continuous batching).

    Args:
        trace: the trace.
        rules: batch, prefill and what follows from them.
        where: tokens and layers that count; others do not exist for the cache.
        documents: numbers of the documents that count; all, unless given.

    Raises:
        BadData: no token counts.
    """
    layers = tuple(trace.header.shape_of(layer) for layer in layers_of(trace, where))
    rows, requests, of_request = trace.rows(), trace.request_table(), trace.documents()
    kept = where.mask(rows, requests)  # (n,)
    if documents is not None:
        kept &= np.isin(of_request, documents)[rows.request]
    prompt = rows.phase == PROMPT
    if rules.prefill == "bypass":
        kept &= ~prompt
    if not kept.any():
        also = ", with prompts bypassing the cache" if rules.prefill == "bypass" else ""
        raise BadData(f"no token matches the clause '{where}'{also}; a trace of prompts alone has no decode steps.")
    taken = np.flatnonzero(kept)
    request = rows.request[taken]
    new_text = np.concatenate([[True], request[1:] != request[:-1]])
    text = np.cumsum(new_text) - 1  # (m,) texts in the order in which they stand
    batch = text // rules.batch
    first_row = np.flatnonzero(new_text)[text]
    if rules.prefill == "pass":  # a whole prompt is one step
        prompts = np.cumsum(prompt[taken])
        before = prompts[first_row] - prompt[taken][first_row]
        in_prompt = np.where(prompt[taken], 0, prompts - before)  # prompt rows of the text up to this row
        step = np.where(prompt[taken], 0, np.arange(len(taken)) - first_row - in_prompt + (in_prompt > 0))
    else:
        step = np.arange(len(taken)) - first_row
    keys = batch.astype(np.int64) << 32 | step
    distinct, number = (keys, np.arange(len(keys))) if _ascending(keys) else np.unique(keys, return_inverse=True)
    batch_of_step = distinct >> 32
    fresh = np.concatenate([[True], batch_of_step[1:] != batch_of_step[:-1]])
    if rules.batch == 1:
        names, unit = np.unique(of_request[request[new_text]], return_inverse=True)  # of each text
        unit = unit[batch_of_step]
        units = len(names)
    else:
        unit, units = batch_of_step, int(batch[-1]) + 1
    whole = np.full(len(rows), -1, np.int64)
    whole[taken] = number
    phases = np.bincount(rows.phase[taken], minlength=len(PHASES))
    return Steps(
        layers=layers,
        step=whole,
        unit=unit.astype(np.int32),
        fresh=fresh,
        units=units,
        tokens=len(taken),
        phases={name: int(count) for name, count in zip(PHASES, phases, strict=True) if count},
        texts=int(text[-1]) + 1,
    )


def layer_events(trace: Trace, steps: Steps, rules: CacheRules, shape: LayerShape) -> Events:
    """Return the events of one layer, as a cache of its own sees them.

    Raises:
        BadTrace: an id is not below E.
    """
    experts, starts = _accesses(trace, steps, shape)
    return Events(
        experts=experts,
        starts=starts,
        unit=steps.unit,
        layer=np.zeros(len(steps), np.int32),
        fresh=_fresh(steps, rules),
        home=np.zeros(shape.experts, np.int32),
        base=np.zeros(1, np.int64),
        units=steps.units,
        per_step=1,
    )


def pooled_events(trace: Trace, steps: Steps, rules: CacheRules) -> Events:
    """Return the events of all layers as one pool sees them: in each step the layers one after another."""
    count, layers = len(steps), len(steps.layers)
    columns = [_accesses(trace, steps, shape) for shape in steps.layers]
    sizes = np.stack([np.diff(starts) for _, starts in columns], axis=1)  # (steps, layers)
    starts = np.concatenate([[0], np.cumsum(sizes.ravel())])
    base = np.concatenate([[0], np.cumsum([shape.experts for shape in steps.layers])])
    experts = np.empty(int(starts[-1]), np.int32)
    for number, (own, own_starts) in enumerate(columns):
        moved = starts[:-1].reshape(count, layers)[:, number] - own_starts[:-1]  # (steps,)
        experts[np.arange(len(own)) + np.repeat(moved, sizes[:, number])] = own + np.int32(base[number])
    fresh = np.zeros((count, layers), bool)
    fresh[:, 0] = _fresh(steps, rules)
    return Events(
        experts=experts,
        starts=starts.astype(np.int64),
        unit=np.repeat(steps.unit, layers),
        layer=np.tile(np.arange(layers, dtype=np.int32), count),
        fresh=fresh.ravel(),
        home=np.repeat(np.arange(layers, dtype=np.int32), np.diff(base)),
        base=base[:-1].astype(np.int64),
        units=steps.units,
        per_step=layers,
    )


def caches_of(trace: Trace, steps: Steps, rules: CacheRules) -> Iterator[tuple[tuple[int, ...], Events]]:
    """Yield each cache's layers (their places in `steps.layers`) and events, one cache in memory at a time."""
    if rules.scope == "pooled":
        yield tuple(range(len(steps.layers))), pooled_events(trace, steps, rules)
        return
    for place, shape in enumerate(steps.layers):
        yield (place,), layer_events(trace, steps, rules, shape)


def _fresh(steps: Steps, rules: CacheRules) -> Array:
    """Return where the cache is emptied, (steps,): at each batch of texts, or at the first alone."""
    if rules.between == "empty":
        return steps.fresh
    first = np.zeros(len(steps), bool)
    first[:1] = True
    return first


def _accesses(trace: Trace, steps: Steps, shape: LayerShape) -> tuple[Array, Array]:
    """Return distinct experts, (a,) int32, and where each step's begin, (steps + 1,) int64."""
    ascending = _ascending(steps.step[steps.step >= 0], strict=False)
    order = None if ascending else np.argsort(np.where(steps.step < 0, len(steps), steps.step), kind="stable")
    out = np.empty(steps.tokens * shape.top_k, np.int32)
    sizes = np.zeros(len(steps), np.int64)
    seen = np.full(shape.experts, -1, np.int64)
    filled = 0
    pieces: Iterator[tuple[Array, Array, Array]]
    if order is None:
        pieces = _pieces(trace, steps, shape)
    else:
        rows = order[: steps.tokens]
        pieces = iter(
            [(trace.take(shape.layer, "ids", rows), trace.take(shape.layer, "weights", rows), steps.step[rows])]
        )
    for ids, weights, step in pieces:
        if not len(ids):
            continue
        check_ids(ids, shape.experts)
        # Weights that the source did not tell are NaN, which is not 0: all slots ran as far as anyone knows.
        filled += int(compiled(merge_events)(ids, weights != 0, step, seen, out[filled:], sizes))
    return out[:filled], np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _pieces(trace: Trace, steps: Steps, shape: LayerShape) -> Iterator[tuple[Array, Array, Array]]:
    """Yield ids, weights and steps of the rows that count, part by part."""
    begin = 0
    for part in trace.parts:
        rows = np.flatnonzero(steps.step[begin : begin + len(part)] >= 0)
        yield part.ids(shape.layer)[rows], part.weights(shape.layer)[rows], steps.step[begin + rows]
        begin += len(part)


def _ascending(keys: Array, *, strict: bool = True) -> bool:
    return bool(np.all(keys[1:] > keys[:-1]) if strict else np.all(keys[1:] >= keys[:-1]))
