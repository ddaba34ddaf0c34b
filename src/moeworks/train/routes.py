"""Routes of recorded texts laid out for a trainer's batch, and everything that can be wrong with them, named.

Letters in shapes: B texts of a batch, W tokens each with padding, L routers, k slots. An id of -1 means that nothing
was recorded: padding, and the last token of a text, after which an engine computes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import BadData

if TYPE_CHECKING:
    from moeworks.artefact import ModelIdentity
    from moeworks.trace import Trace

__all__ = ["check_routes", "lay_out", "route_problems", "routes_of"]

Array = NDArray[Any]
MISSING = -1
ALIKE = 0.9  # layers that agree in so many rows are copies of one another


def routes_of(trace: Trace, request: int) -> Array:
    """Return the ids of one recorded text, (tokens, L, k), in the order of its positions."""
    rows = np.flatnonzero(trace.rows().request == request)
    if not len(rows):
        raise BadData(f"{trace.path} has no request {request}; they are 0 to {len(trace.requests) - 1}.")
    widths = {trace.header.shape_of(layer).top_k for layer in trace.layers}
    if len(widths) > 1:
        raise BadData(f"{trace.path} has layers with {sorted(widths)} slots, which do not fit into one array.")
    return np.stack([trace.take(layer, "ids", rows).astype(np.int64) for layer in trace.layers], 1)


def lay_out(routes: Sequence[Array], attention_mask: Array) -> Array:
    """Return the routes of a batch, (B, W, L, k), each text's on its own tokens whatever side the padding is on.

    Args:
        routes: of each text, (tokens, L, k); a text may have one token more than it has routes: its last.
        attention_mask: (B, W), 1 where a token is.

    Raises:
        BadData: another number of texts, or a text with fewer or more routes than tokens.
    """
    mask = np.asarray(attention_mask).astype(bool)
    if mask.ndim != 2 or len(mask) != len(routes):
        raise BadData(
            f"{len(routes)} texts have routes, the attention mask has shape {mask.shape}, not (texts, width)."
        )
    problems = [
        f"text {number} has {len(one)} routes for {tokens} tokens"
        for number, (one, tokens) in enumerate(zip(routes, mask.sum(-1).tolist(), strict=True))
        if len(one) not in (tokens, tokens - 1)
    ]
    if problems:
        raise BadData(f"routes were dropped or added on the way: {'; '.join(problems[:8])}.")
    batch = np.full((*mask.shape, *routes[0].shape[1:]), MISSING, np.int64)
    for number, one in enumerate(routes):
        batch[number, np.flatnonzero(mask[number])[: len(one)]] = one
    return batch


def check_routes(routes: Array, attention_mask: Array, model: ModelIdentity, *, own: Array | None = None) -> None:
    """Refuse routes that a model cannot have made; see `route_problems`.

    Raises:
        BadData: with all problems in one message.
    """
    found = route_problems(routes, attention_mask, model, own=own)
    if found:
        raise BadData(f"these are not routes of {model.name} for this batch: {'; '.join(found)}.")


def route_problems(
    routes: Array, attention_mask: Array, model: ModelIdentity, *, own: Array | None = None
) -> list[str]:
    """Return everything that speaks against routes of a batch; any trainer can call it, it needs no torch.

    Args:
        routes: (B, W, L, k) ids, -1 where nothing was recorded.
        attention_mask: (B, W).
        model: its routers, in layer order.
        own: (B, W, L, k) what the model itself decides for this batch, if that is at hand; then routes that are moved
            by layers, or are another model's, show too.
    """
    mask, ids = np.asarray(attention_mask).astype(bool), np.asarray(routes)
    shapes = model.layers
    if ids.ndim != 4 or ids.shape[:2] != mask.shape:
        return [f"the routes have shape {ids.shape}, the batch {mask.shape}: (texts, width, layers, slots) is due"]
    if ids.shape[2] != len(shapes):
        dense = f", the last in layer {shapes[-1].layer}" if shapes[-1].layer >= len(shapes) else ""
        return [
            f"the routes have {ids.shape[2]} layers, the model has {len(shapes)} routers{dense}: leave out dense "
            "layers and those for multi-token prediction"
        ]
    found = [*_problems_of_rows(ids, mask), *_problems_of_ids(ids, mask, model)]
    return found or list(_problems_of_layers(ids, mask, model, own))


def _problems_of_rows(ids: Array, mask: Array) -> Iterator[str]:
    given = (ids != MISSING).any((-1, -2))  # (B, W)
    padded = int((given & ~mask).sum())
    if padded:
        yield f"{padded} tokens of padding have routes: these belong to other tokens"
    last = np.zeros_like(mask)
    for number, row in enumerate(mask):
        last[number, np.flatnonzero(row)[-1:]] = True
    bare = int((mask & ~given & ~last).sum())
    if bare:
        yield f"{bare} tokens have no routes, beside the last of each text: they were dropped on the way"


def _problems_of_ids(ids: Array, mask: Array, model: ModelIdentity) -> Iterator[str]:
    for place, shape in enumerate(model.layers):
        layer = ids[:, :, place][mask]  # (n, k)
        layer = layer[(layer != MISSING).any(-1)]
        if not len(layer):
            continue
        if layer.shape[1] != shape.top_k:
            yield f"layer {shape.layer} has {layer.shape[1]} experts a token, the model takes {shape.top_k}"
        elif layer.min() < 0 or layer.max() >= shape.experts:
            wrong = int(layer.min()) if layer.min() < 0 else int(layer.max())
            yield f"layer {shape.layer} names expert {wrong}, they are 0 to {shape.experts - 1}"
        elif shape.top_k > 1 and (twice := (np.diff(np.sort(layer, -1)) == 0).any(-1)).any():
            zero = " (all zeros: nothing was captured)" if not layer[twice].any() else ""
            yield f"layer {shape.layer} has the same expert twice in {int(twice.sum())} rows{zero}"


def _problems_of_layers(ids: Array, mask: Array, model: ModelIdentity, own: Array | None) -> Iterator[str]:
    numbers = [shape.layer for shape in model.layers]
    sets = np.sort(ids, -1)[mask & (ids != MISSING).all((-1, -2))]  # (n, L, k)
    if len(sets) < 8:
        return
    for first in range(len(numbers)):
        for second in range(first + 1, len(numbers)):
            if (sets[:, first] == sets[:, second]).all(-1).mean() > ALIKE:
                yield f"layers {numbers[first]} and {numbers[second]} have the same routes: one is a copy of the other"
    if own is None:
        return
    theirs = np.sort(np.asarray(own), -1)[mask & (ids != MISSING).all((-1, -2))]

    def agreement(shift: int) -> float:
        pairs = [(n, n + shift) for n in range(len(numbers)) if 0 <= n + shift < len(numbers)]
        return float(np.mean([(sets[:, a] == theirs[:, b]).all(-1).mean() for a, b in pairs]))

    straight = agreement(0)
    if straight >= 0.5:
        return
    for shift in (1, -1, 2, -2, 3, -3):
        if abs(shift) < len(numbers) and agreement(shift) > max(0.5, 2 * straight):
            yield f"the routes are moved by {abs(shift)} layer(s): dense layers are counted on one side alone"
            return
    yield f"the model itself chooses these experts for {straight:.0%} of the tokens alone: other weights or other text"
