"""Our part of one layer's router: right after its own top-k, rows under a plan get the decision of the plan.

vLLM's router decides first, so that rows without a plan keep its result to the bit. The work is one operator of
torch with changes in place, `moeworks::route`, which compiled graphs keep as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moeworks.contract import Contract
from moeworks.engines.vllm.bank import Bank, Tables
from moeworks.engines.vllm.decide import decide_rows, logits_decide
from moeworks.engines.vllm.fused import Fused, available
from moeworks.engines.vllm.recorder import StepBuffers
from moeworks.engines.vllm.routers import Found
from moeworks.engines.vllm.step import Step
from moeworks.errors import RunFailed

__all__ = ["Layer", "hook_router"]

_LAYERS: WeakValueDictionary[int, Layer] = WeakValueDictionary()  # layer number → what the operator works on
_LIBRARY: list[torch.library.Library] = []


@dataclass(frozen=True, eq=False)
class _Gathered:
    """What holds in the steps of one key (version of the step, version of the bank)."""

    key: tuple[int, int]
    rows: Tensor | None  # (m,) the steered rows; None: all
    tables: Tables | None  # what holds for them; None: nothing
    row_numbers: NDArray[np.int64]  # (m,)
    row_slots: NDArray[np.int64]  # (m,)


@dataclass(eq=False)
class Layer:
    """One hooked router.

    Attributes:
        number: global layer number.
        place: among this rank's layers.
        found: its rule.
        bank: its plans.
        buffers: where its decisions are recorded.
        step: what holds in the step that runs.
    """

    number: int
    place: int
    found: Found
    bank: Bank
    buffers: StepBuffers
    step: Step
    _gathered: _Gathered | None = None
    _fused: Fused | None = None

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
        if logits.shape[1] > self.found.experts:
            logits = logits[:, : self.found.experts]
        if self.found.contract is not None:
            if not step.host_knows:
                self._steer_all(weights, ids, logits)
            elif step.steered:
                self._steer_some(weights, ids, logits)
        if not step.host_knows:
            self.buffers.put(self.place, ids, weights, logits)
        elif step.recorded:
            self.buffers.put(self.place, ids, weights if step.weights else None, logits if step.logits else None)

    def _steer_some(self, weights: Tensor, ids: Tensor, logits: Tensor) -> None:
        """Decide for the steered rows alone; the host knows which they are."""
        found = self._tables()
        rows, tables = found.rows, found.tables
        if tables is None:
            return
        one_pass = self._fused if "tight" not in tables.kinds else None
        if one_pass is not None and one_pass.decide(logits, weights, ids, found.row_numbers, found.row_slots):
            return
        if rows is None:
            n = len(self.step.row_slots)
            if n < len(logits):  # rows beyond are padding
                weights, ids, logits = weights[:n], ids[:n], logits[:n]
            new, new_ids = self._decide(logits, tables)
            weights.copy_(new)
            ids.copy_(new_ids)
        else:
            new, new_ids = self._decide(logits.index_select(0, rows), tables)
            weights.index_copy_(0, rows, new.to(weights.dtype))
            ids.index_copy_(0, rows, new_ids.to(ids.dtype))

    def _tables(self) -> _Gathered:
        """Return which rows are steered in this layer and what holds for them; kept while it stays."""
        step, bank = self.step, self.bank
        key = (step.version, bank.version)
        if self._gathered is None or self._gathered.key != key:
            self._fuse()
            kinds = {slot: bank.kinds.get(slot, frozenset()) for slot in step.used}
            rows, slots = step.rows, step.row_slots
            if not all(kinds.values()):  # some plans leave this layer alone
                touched = bank.touched[slots]
                rows = torch.nonzero(touched)[:, 0] if rows is None else rows[touched]
                slots = slots[touched]
            every = frozenset().union(*kinds.values())
            tables = bank.gather(slots, every) if every else None
            numbers = torch.arange(len(slots)) if rows is None else rows
            self._gathered = _Gathered(key, rows, tables, numbers.cpu().numpy(), slots.cpu().numpy())
        return self._gathered

    def _fuse(self) -> None:
        """Prepare the way of one pass, where there is one: on a processor, for rules that it knows."""
        contract, here = self.found.contract, self.bank.masked.device.type == "cpu" and available()
        if here and self._fused is None and contract is not None and logits_decide(contract):
            self._fused = Fused(self.bank, contract)

    def _steer_all(self, weights: Tensor, ids: Tensor, logits: Tensor) -> None:
        """Decide for every row and keep the router's own where nothing is active: the same steps in every batch."""
        slots = self.step.slots[: len(ids)]
        new, new_ids = self._decide(logits, self.bank.gather(slots))
        touched = self.bank.touched[slots][:, None]
        weights.copy_(torch.where(touched, new.to(weights.dtype), weights))
        ids.copy_(torch.where(touched, new_ids.to(ids.dtype), ids))

    def _decide(self, logits: Tensor, tables: Tables) -> tuple[Tensor, Tensor]:
        assert self.found.contract is not None
        return decide_rows(logits, tables, self.found.contract, bias=self.found.bias)


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
