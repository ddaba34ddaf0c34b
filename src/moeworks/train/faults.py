"""The known faults of router replay, each made on purpose, so that a trainer's own checks can be tried on them.

Every fault takes routes as a trainer gets them, (B, W, L, k) with -1 where nothing was recorded, and the attention
mask, (B, W), and returns routes as the faulty code would hand them on. `route_problems` names each of those that show
in the routes; that a replay is bound to modules which do not run, and that a forced expert has weight 0, shows in
`replay`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["FAULTS"]

Array = NDArray[Any]


def moved_by_dense_layers(routes: Array, mask: Array) -> Array:
    """Return routes whose layer axis counts one dense layer more than the model's routers do, the last cut off."""
    return np.roll(routes, 1, axis=2)


def all_hidden_layers(routes: Array, mask: Array) -> Array:
    """Return routes with a row of zeros for a dense layer before the routers, as engines hand them out."""
    return np.concatenate([np.zeros_like(routes[:, :, :1]), routes], 2)


def padding_filled(routes: Array, mask: Array) -> Array:
    """Return routes laid out from the other end of each row than the padding leaves free, the rest filled up."""
    moved = routes.copy()
    for number, row in enumerate(np.asarray(mask).astype(bool)):
        own = routes[number, row]
        moved[number] = own[0]
        moved[number, -len(own) :] = own
    return moved


def prediction_layers_take_the_first(routes: Array, mask: Array) -> Array:
    """Return routes whose last layer, meant for multi-token prediction, holds the first layer's."""
    copied = routes.copy()
    copied[:, :, -1] = routes[:, :, 0]
    return copied


def nothing_captured(routes: Array, mask: Array) -> Array:
    """Return routes that are all zeros, as kernels leave them that route inside."""
    return np.where(routes < 0, routes, 0)


def dropped_on_merge(routes: Array, mask: Array) -> Array:
    """Return routes without those of the tokens that were generated in a second turn: half of each text."""
    cut = routes.copy()
    for number, row in enumerate(np.asarray(mask).astype(bool)):
        places = np.flatnonzero(row)
        cut[number, places[len(places) // 2 :]] = -1
    return cut


def overflowed(routes: Array, mask: Array) -> Array:
    """Return routes that went through a type too small for their ids: the larger half of them turned negative."""
    top = int(routes.max()) + 1
    return np.where(routes >= top // 2, routes - top, routes)


FAULTS: Mapping[str, Callable[[Array, Array], Array]] = {
    fault.__name__: fault
    for fault in (
        moved_by_dense_layers,
        all_hidden_layers,
        padding_filled,
        prediction_layers_take_the_first,
        nothing_captured,
        dropped_on_merge,
        overflowed,
    )
}
