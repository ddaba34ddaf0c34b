"""The plan bank of one layer: tensors allocated once, one row for each set of edits that some token is under.

Letters in shapes: S slots, E experts, W steps of weights, n tokens. Slot 0 changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moeworks.engines.vllm.refusals import MAX_STEPS
from moeworks.plan.compiled import LayerEdit

__all__ = ["KINDS", "Bank", "Row", "merge"]

Array = NDArray[Any]
KINDS = ("add_logit", "add_std", "add_spread", "promote", "demote", "masked", "top_k", "factor")


@dataclass(frozen=True, eq=False)
class Row:
    """What one set of clauses does in one layer, merged; the contents of a slot."""

    add_logit: Array  # (E,) float32
    add_std: Array  # (E,) float32
    add_spread: Array  # (E,) float32
    promote: Array  # (E,) bool
    promote_margin: Array  # (E,) float32
    demote: Array  # (E,) bool
    demote_margin: Array  # (E,) float32
    masked: Array  # (E,) bool
    top_k: int  # 0: the model's own
    factor: Array  # (W, E) float32
    renormalise: Array  # (W,) bool

    @property
    def kinds(self) -> frozenset[str]:
        """Which kinds of edit there are."""
        found = {name for name in KINDS if name != "factor" and np.any(getattr(self, name))}
        return frozenset(found | ({"factor"} if (self.factor != 1).any() else set()))


def merge(edits: Sequence[LayerEdit], experts: int) -> Row:
    """Merge the edits of clauses that hold for the same token, in the plan's order.

    Adds sum up; of two margins on one expert the later counts; adjacent multiplications that treat the token's total
    alike become one.
    """
    zeros = np.zeros(experts)
    vectors: dict[str, Array] = {}
    for name in ("add_logit", "add_std", "add_spread"):
        vectors[name] = sum((getattr(edit, name) for edit in edits), zeros).astype(np.float32)
    for name in ("promote", "demote"):
        hit, margin = zeros.astype(bool), zeros.copy()
        for edit in edits:
            own: Array = getattr(edit, name)
            margin = np.where(own, getattr(edit, f"{name}_margin"), margin)
            hit = hit | own
        vectors[name], vectors[f"{name}_margin"] = hit, margin.astype(np.float32)
    masked = zeros.astype(bool)
    for edit in edits:
        masked = masked | edit.masked
    steps: list[tuple[Array, bool]] = []
    for edit in edits:
        for factor, renormalise in edit.weight_steps:
            if steps and steps[-1][1] == renormalise:
                steps[-1] = (steps[-1][0] * factor, renormalise)
            else:
                steps.append((factor, renormalise))
    assert len(steps) <= MAX_STEPS  # refused at the door
    factors, flags = np.ones((MAX_STEPS, experts), np.float32), np.zeros(MAX_STEPS, bool)
    for number, (factor, renormalise) in enumerate(steps):
        factors[number], flags[number] = factor, renormalise
    top_k = next((edit.top_k for edit in reversed(edits) if edit.top_k is not None), 0)
    return Row(**vectors, masked=masked, top_k=top_k, factor=factors, renormalise=flags)


class Bank:
    """The rows of one layer, at fixed addresses on its device."""

    def __init__(self, slots: int, experts: int, device: torch.device) -> None:
        def table(dtype: torch.dtype, *shape: int, fill: float = 0.0) -> Tensor:
            return torch.full((slots, *shape), fill, dtype=dtype, device=device)

        self.experts = experts
        self.add_logit = table(torch.float32, experts)
        self.add_std = table(torch.float32, experts)
        self.add_spread = table(torch.float32, experts)
        self.promote = table(torch.bool, experts)
        self.promote_margin = table(torch.float32, experts)
        self.demote = table(torch.bool, experts)
        self.demote_margin = table(torch.float32, experts)
        self.masked = table(torch.bool, experts)
        self.top_k = table(torch.int64)
        self.factor = table(torch.float32, MAX_STEPS, experts, fill=1.0)
        self.renormalise = table(torch.bool, MAX_STEPS)
        self.touched = table(torch.bool)  # whether the slot changes anything here
        self.kinds: dict[int, frozenset[str]] = {}  # slot → kinds of edit, of slots in use

    def write(self, slot: int, row: Row | None) -> None:
        """Fill a slot; None leaves this layer alone."""
        row = row or merge((), self.experts)
        for name in Row.__dataclass_fields__:
            value: Any = getattr(row, name)
            if isinstance(value, np.ndarray):
                getattr(self, name)[slot].copy_(torch.from_numpy(value), non_blocking=True)
            else:
                self.top_k[slot] = value
        self.kinds[slot] = row.kinds
        self.touched[slot] = bool(row.kinds)

    def clear(self, slot: int) -> None:
        """Make a slot neutral again."""
        self.write(slot, None)
        self.kinds.pop(slot, None)

    @property
    def active(self) -> frozenset[str]:
        """Kinds of edit that some slot in use makes."""
        return frozenset().union(*self.kinds.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all tables."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, Tensor))
