"""Our part of one layer's router: right after its own top-k, rows under a plan get the decision of the plan.

vLLM's router decides first, so that rows without a plan keep its result to the bit. The work is one operator of
torch with changes in place, `moeworks::route`, which compiled graphs keep as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from moeworks.contract import Contract
from moeworks.engines.vllm.bank import Bank
from moeworks.engines.vllm.decide import EVERY, decide_rows
from moeworks.engines.vllm.recorder import LayerBuffer
from moeworks.engines.vllm.routers import Found
from moeworks.engines.vllm.step import Step
from moeworks.errors import RunFailed

__all__ = ["Layer", "hook_router"]

_LAYERS: WeakValueDictionary[int, Layer] = WeakValueDictionary()  # layer number → what the operator works on
_LIBRARY: list[torch.library.Library] = []


@dataclass(frozen=True, eq=False)
class Layer:
    """One hooked router."""

    number: int  # global layer number
    found: Found
    bank: Bank
    buffer: LayerBuffer
    step: Step

    @property
    def contract(self) -> Contract | None:
        """The rule as moeworks states it: with the factor that vLLM puts on the experts' output."""
        own = self.found.contract
        return None if own is None else replace(own, scale=own.scale * self.found.output_scale)

    def route(self, weights: Tensor, ids: Tensor, logits: Tensor) -> None:
        """Put the plans' decisions in place of the router's own on rows that are under one, and record.

        Args:
            weights, ids: (n, k) the router's own decision, changed in place.
            logits: (n, E) or more columns; those beyond E belong to shared experts.
        """
        step = self.step
        if step.host_knows and not step.busy:
            return
        logits = logits[:, : self.found.experts]
        if self.found.contract is not None and (step.steered or not step.host_knows):
            if step.host_knows:
                self._steer_some(weights, ids, logits)
            else:
                self._steer_all(weights, ids, logits)
        if step.recorded or not step.host_knows:
            self.buffer.put(weights, ids, logits)

    def _steer_some(self, weights: Tensor, ids: Tensor, logits: Tensor) -> None:
        """Decide for the steered rows alone; the host knows which they are."""
        rows = self.step.rows
        kinds = self.bank.active
        if rows is None or not kinds:
            return
        slots = self.step.slots[rows]
        touched = self.bank.touched[slots]
        rows, slots = rows[touched], slots[touched]
        if not len(rows):
            return
        new, new_ids = self._decide(logits[rows], slots, kinds)
        weights[rows] = new.to(weights.dtype)
        ids[rows] = new_ids.to(ids.dtype)

    def _steer_all(self, weights: Tensor, ids: Tensor, logits: Tensor) -> None:
        """Decide for every row and keep the router's own where nothing is active: the same steps in every batch."""
        slots = self.step.slots[: len(ids)]
        new, new_ids = self._decide(logits, slots, EVERY)
        touched = self.bank.touched[slots][:, None]
        weights.copy_(torch.where(touched, new.to(weights.dtype), weights))
        ids.copy_(torch.where(touched, new_ids.to(ids.dtype), ids))

    def _decide(self, logits: Tensor, slots: Tensor, kinds: frozenset[str]) -> tuple[Tensor, Tensor]:
        assert self.found.contract is not None
        return decide_rows(logits, slots, self.bank, self.found.contract, bias=self.found.bias, kinds=kinds)


def hook_router(router: Any, layer: Layer, *, compiled: bool) -> None:
    """Let a router of vLLM call us after its own decision, before logical ids become physical ones.

    Raises:
        RunFailed: another engine of this process has the same layer and graphs are compiled: a graph, which may come
            from a cache of an earlier process, knows its layer by number alone.
    """
    _define()
    place = layer.number
    if compiled and place in _LAYERS:
        raise RunFailed("one process can hold one compiled vLLM engine with moeworks; pass enforce_eager=True.")
    _LAYERS[place] = layer
    own = router._compute_routing

    def routed(hidden_states: Any, router_logits: Any, indices_type: Any, **more: Any) -> Any:
        weights, ids = own(hidden_states, router_logits, indices_type, **more)
        if torch.compiler.is_compiling():
            torch.ops.moeworks.route(weights, ids, router_logits, place)
        else:
            layer.route(weights, ids, router_logits)
        return weights, ids

    router._compute_routing = routed


def _route(weights: Tensor, ids: Tensor, logits: Tensor, place: int) -> None:
    _LAYERS[place].route(weights, ids, logits)


def _route_fake(weights: Tensor, ids: Tensor, logits: Tensor, place: int) -> None:
    return None


def _define() -> None:
    """Define the operator once a process."""
    if _LIBRARY:
        return
    library: Any = torch.library.Library("moeworks", "FRAGMENT")  # type: ignore[no-untyped-call]
    library.define("route(Tensor(a!) weights, Tensor(b!) ids, Tensor logits, int place) -> ()")
    library.impl("route", _route, "CompositeExplicitAutograd")
    library._register_fake("route", _route_fake)
    _LIBRARY.append(library)
