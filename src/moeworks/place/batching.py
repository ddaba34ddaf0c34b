"""How many experts a batch of tokens needs, and how many fewer if the batch is chosen by their experts (Read-ME)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks.errors import BadData
from moeworks.place.events import layer_events, steps_of
from moeworks.place.rules import CacheRules
from moeworks.stats.documents import ratio_intervals
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["expert_aware_batches", "experts_per_batch"]

Array = NDArray[Any]


def experts_per_batch(
    trace: Trace,
    *,
    batches: Sequence[int] = (1, 2, 4, 8, 16),
    waiting: int = 4,
    where: Where = Where(),
    most_steps: int = 200,
    bootstrap: int = 200,
    seed: int = 0,
) -> pa.Table:
    """Return the distinct experts that one step of a batch of texts uses in each layer.

    Texts run step by step together, in the order of the trace; only steps in which all places of a batch are taken
    count.

    Args:
        trace: the trace.
        batches: texts that run together.
        waiting: tokens that expert-aware batching chooses from, in batches: as many texts times this wait together.
        where: tokens and layers that count.
        most_steps: steps that expert-aware batching is run for, spread evenly; the other columns use all.
        bootstrap, seed: of resampled documents (of groups of texts, where texts run together).

    Returns:
        Columns layer, batch, steps, distinct with its interval low, high, chance (as many independent tokens, experts
        drawn evenly), load_chance (drawn by their load), aware_steps, arrival and aware (distinct experts of a batch
        taken from the waiting tokens in their order, and by expert; null where nothing waits or too few texts do).

    Raises:
        BadData: no batch of any size asked for is ever full.

    Source: Read-ME (arXiv 2410.19123), expert-aware batching: the pseudocode there has an index slip, the text is
    followed. It needs routes that are known before the step, as a pre-gated router gives; for other routers the
    column `aware` is what could be reached at best by one layer's knowledge.
    """
    if min(batches, default=0) < 1 or waiting < 1:
        raise BadData("batches and waiting are at least 1.")
    lines: list[dict[str, Any]] = []
    single = steps_of(trace, CacheRules(), where=where)
    for size in batches:
        rules = CacheRules(batch=size)
        steps = steps_of(trace, rules, where=where)
        full = np.bincount(steps.step[steps.step >= 0], minlength=len(steps)) == size  # (steps,)
        if not full.any():
            continue
        unit = steps.unit[full]
        for shape in steps.layers:
            events = layer_events(trace, steps, rules, shape)
            distinct = np.diff(events.starts)[full]
            sums = np.bincount(unit, weights=distinct, minlength=steps.units)[:, None]
            of_unit = np.bincount(unit, minlength=steps.units)
            seen = of_unit > 0
            low, high = ratio_intervals(sums[seen], of_unit[seen], samples=bootstrap, seed=seed)
            alone = layer_events(trace, single, CacheRules(), shape)
            load = np.bincount(alone.experts, minlength=shape.experts) / single.tokens
            arrival, aware, count = _waiting(trace, shape.layer, size, waiting, where, most_steps)
            lines.append(
                {
                    "layer": shape.layer,
                    "batch": size,
                    "steps": int(full.sum()),
                    "distinct": float(distinct.mean()),
                    "low": float(low[0]),
                    "high": float(high[0]),
                    "chance": float(shape.experts * (1 - (1 - shape.top_k / shape.experts) ** size)),
                    "load_chance": float((1 - (1 - load) ** size).sum()),
                    "aware_steps": count,
                    "arrival": arrival,
                    "aware": aware,
                }
            )
    if not lines:
        raise BadData(f"no batch of {', '.join(map(str, batches))} texts is ever full; record more texts.")
    schema = [("layer", pa.int64()), ("batch", pa.int64()), ("steps", pa.int64())]
    numbers = ("distinct", "low", "high", "chance", "load_chance")
    return pa.Table.from_pylist(
        sorted(lines, key=lambda line: (line["layer"], line["batch"])),
        schema=pa.schema(
            [
                *schema,
                *((name, pa.float64()) for name in numbers),
                ("aware_steps", pa.int64()),
                ("arrival", pa.float64()),
                ("aware", pa.float64()),
            ]
        ),
    )


def expert_aware_batches(chosen: Array, size: int) -> list[Array]:
    """Return batches of at most `size` of n waiting tokens, as arrays of their numbers.

    A batch is filled by taking, again and again, the expert that most of the tokens left wait for, and its tokens in
    the order in which they wait, until it is full.

    Args:
        chosen: (n, k) experts of each waiting token.
        size: tokens that fit into a batch.
    """
    left = np.ones(len(chosen), bool)
    batches: list[Array] = []
    while left.any():
        taken: list[int] = []
        while len(taken) < size and left.any():
            longest = int(np.bincount(chosen[left].ravel()).argmax())
            queue = np.flatnonzero(left & (chosen == longest).any(1))[: size - len(taken)]
            taken += queue.tolist()
            left[queue] = False
        batches.append(np.array(taken))
    return batches


def _waiting(
    trace: Trace, layer: int, size: int, waiting: int, where: Where, most: int
) -> tuple[float | None, float | None, int]:
    """Return the mean distinct experts of batches in order of arrival and chosen by expert, and steps looked at."""
    if size == 1 or waiting == 1:
        return None, None, 0
    together = size * waiting
    steps = steps_of(trace, CacheRules(batch=together), where=where)
    rows = np.flatnonzero(steps.step >= 0)
    rows = rows[np.argsort(steps.step[rows], kind="stable")]
    sizes = np.bincount(steps.step[rows], minlength=len(steps))
    full = np.flatnonzero(sizes == together)
    if not len(full):
        return None, None, 0
    full = full[np.unique(np.linspace(0, len(full) - 1, min(most, len(full))).round().astype(np.int64))]
    begins = (np.cumsum(sizes) - sizes)[full]
    arrival, aware = [], []
    for begin in begins:
        chosen = trace.take(layer, "ids", rows[begin : begin + together]).astype(np.int64)  # (together, k)
        arrival += [len(np.unique(one)) for one in chosen.reshape(waiting, -1)]
        aware += [len(np.unique(chosen[batch])) for batch in expert_aware_batches(chosen, size)]
    return float(np.mean(arrival)), float(np.mean(aware)), len(full)
