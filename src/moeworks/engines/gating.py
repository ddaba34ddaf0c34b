"""What all engines share about gates: the prompt of a request, its routing frequencies, a plan without its gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import BadData
from moeworks.stats.counts import add_runs

if TYPE_CHECKING:
    from moeworks.engines.transformers.tokens import Prepared
    from moeworks.plan import Plan

__all__ = ["prompts_of", "routing_rates", "ungated", "widen"]

Array = NDArray[Any]


def ungated(plan: Plan) -> Plan:
    """Return the plan for requests that its gate opens for."""
    return plan.model_copy(update={"gate": None})


def prompts_of(prepared: Sequence[Prepared]) -> list[Prepared]:
    """Return the prompts alone: what a gate decides on.

    Raises:
        BadData: a request has no prompt.
    """
    bare = next((request for request in prepared if request.prompt_tokens == 0), None)
    if bare is not None:
        raise BadData(f"request {bare.number} has no prompt, which the plan's gate decides on; give it one.")
    return [replace(request, tokens=request.tokens[: request.prompt_tokens], spans=()) for request in prepared]


def routing_rates(
    entry: Array, ids: Mapping[int, Array], weights: Mapping[int, Array], experts: Mapping[int, int], requests: int
) -> dict[int, Array]:
    """Return the share of each request's rows for which each expert ran: layer → (requests, E).

    Args:
        entry: (n,) request of each row, from 0.
        ids, weights: layer → (n, k).
        experts: layer → E.
        requests: number of requests, each with a row.
    """
    tokens = np.bincount(entry, minlength=requests)[:, None]  # (requests, 1)
    rates: dict[int, Array] = {}
    for layer, chosen in ids.items():
        counts = np.zeros((requests, experts[layer]))
        add_runs(counts, entry, chosen.astype(np.int64), weights[layer])
        rates[layer] = counts / tokens
    return rates


def widen(values: Array, slots: int, *, fill: Array | None = None) -> Array:
    """Return (n, slots) of (n, k) values: further slots repeat the first column of `fill`, or hold 0."""
    missing = slots - values.shape[1]
    if missing <= 0:
        return values
    more = np.zeros((len(values), missing), values.dtype) if fill is None else np.repeat(fill[:, :1], missing, axis=1)
    return np.concatenate([values, more.astype(values.dtype)], axis=1)
