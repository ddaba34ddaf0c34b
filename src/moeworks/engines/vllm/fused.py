"""The operations of a plan on rows of a mixed batch in one pass on the processor: `decide_rows`, compiled by numba.

For routers whose logits alone rank experts (a softmax without bias and groups). Decisions are written where the router
put its own, and the bank is read in place, so that nothing is gathered or copied between a dozen small operators.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moeworks.contract import Contract
from moeworks.engines.vllm.bank import Bank

__all__ = ["Fused", "available"]

Array = NDArray[Any]
PROMOTED, DEMOTED, MASKED = 1, 2, 3
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def available() -> bool:
    """Whether numba is installed, as it is beside vLLM for processors."""
    return importlib.util.find_spec("numba") is not None


class Fused:
    """One layer's plans.

    Args:
        bank: on the processor; what is written there later counts.
        contract: one of which `decide.logits_decide` is true.
    """

    def __init__(self, bank: Bank, contract: Contract) -> None:
        self._run = _compiled()
        self._bank, self._version = bank, -1
        self._tables: tuple[Array, ...] = ()
        self._among_chosen = contract.renormalise or contract.order == "top_k_first"
        self._scale = float(contract.scale)
        self._k = contract.top_k

    def decide(self, logits: Tensor, weights: Tensor, ids: Tensor, rows: Array, slots: Array) -> bool:
        """Write the decisions of some rows; return False, and do nothing, where tensors are of other kinds.

        Args:
            logits: (n, E) raw router logits.
            weights: (n, k) float32, changed in place.
            ids: (n, k) int32 or int64, changed in place.
            rows: (m,) which rows.
            slots: (m,) the slot of each.
        """
        if weights.dtype != torch.float32 or ids.dtype not in (torch.int32, torch.int64) or logits.dtype not in FLOATS:
            return False
        if self._version != self._bank.version:
            self._tables, self._version = _packed(self._bank), self._bank.version
        self._run(
            logits.float().contiguous().numpy(),
            weights.numpy(),
            ids.numpy(),
            rows,
            slots,
            self._k,
            self._among_chosen,
            self._scale,
            *self._tables,
        )
        return True


def _packed(bank: Bank) -> tuple[Array, ...]:
    """Return the bank's tables in few arrays, since each costs time at every call: what is added (S, 3, E), which pin
    holds (S, E), its distance (S, E), the width (S,), factors (S, W, E) and whether they keep the total (S, W)."""
    adds = torch.stack([bank.add_logit, bank.add_std, bank.add_spread], 1)
    pins = torch.where(bank.masked, MASKED, torch.where(bank.promote, PROMOTED, torch.where(bank.demote, DEMOTED, 0)))
    offset = bank.promote_margin - bank.demote_margin
    tables = (adds, pins.to(torch.uint8), offset, bank.top_k, bank.factor, bank.renormalise)
    return tuple(table.numpy() for table in tables)


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., None]:
    import numba

    made: Callable[..., None]
    try:
        made = numba.njit(nogil=True, cache=True, error_model="numpy")(_decide)
    except RuntimeError:  # no folder for what is compiled can be written
        made = numba.njit(nogil=True, error_model="numpy")(_decide)
    return made


def _decide(
    logits: Array,
    weights: Array,
    ids: Array,
    rows: Array,
    slots: Array,
    k: int,
    among_chosen: bool,
    scale: float,
    adds: Array,
    pins: Array,
    offset: Array,
    top_k: Array,
    factor: Array,
    renormalise: Array,
) -> None:
    """See `Fused.decide`; the steps and their order are those of `decide.decide_rows`."""
    experts = pins.shape[1]
    z = np.empty(experts, np.float32)
    best = np.empty(k, np.float32)
    for place in range(len(rows)):
        row, slot = rows[place], slots[place]
        low, high, mean = np.inf, -np.inf, 0.0
        for e in range(experts):
            value = logits[row, e]
            low, high = min(low, value), max(high, value)
            mean += value
        mean /= experts
        square = 0.0
        for e in range(experts):
            square += (logits[row, e] - mean) ** 2
        std, spread = np.float32(math.sqrt(square / experts)), np.float32(high - low)
        low, high = np.inf, -np.inf
        for e in range(experts):
            z[e] = logits[row, e] + adds[slot, 0, e] + adds[slot, 1, e] * std + adds[slot, 2, e] * spread
            low, high = min(low, z[e]), max(high, z[e])
        for e in range(experts):
            if pins[slot, e] == MASKED:
                z[e] = -np.inf
            elif pins[slot, e] == PROMOTED:
                z[e] = np.float32(high) + offset[slot, e]
            elif pins[slot, e] == DEMOTED:
                z[e] = np.float32(low) + offset[slot, e]
        total, top = 0.0, -np.inf
        if not among_chosen:
            for e in range(experts):
                top = max(top, z[e])
            for e in range(experts):
                total += math.exp(z[e] - top)
        width = k if top_k[slot] == 0 else top_k[slot]
        for j in range(k):
            chosen = -1
            for e in range(experts):
                if (chosen < 0 or z[e] > z[chosen]) and not np.isnan(z[e]):
                    chosen = e
            ids[row, j] = chosen
            best[j] = z[chosen]
            z[chosen] = np.nan  # taken
        if among_chosen:
            top, total = best[0], 0.0
            for j in range(width):
                total += math.exp(best[j] - top)
        for j in range(k):
            weights[row, j] = math.exp(best[j] - top) / total * scale if j < width else 0.0
        for step in range(factor.shape[1]):
            before, after = np.float32(0.0), np.float32(0.0)
            for j in range(k):
                before += weights[row, j]
                weights[row, j] *= factor[slot, step, ids[row, j]]
                after += weights[row, j]
            if renormalise[slot, step] and after != 0:
                for j in range(k):
                    weights[row, j] *= before / after
