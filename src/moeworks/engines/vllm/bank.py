"""The plan bank of one layer: tensors allocated once, one row for each set of edits that some token is under.

Letters in shapes: S slots, E experts, W steps of weights, n tokens. Slot 0 changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moeworks.engines.vllm.refusals import MAX_STEPS
from moeworks.plan.compiled import LayerEdit

__all__ = ["EVERY", "KINDS", "Bank", "Row", "Tables", "merge"]

Array = NDArray[Any]
KINDS = ("add_logit", "add_std", "add_spread", "promote", "demote", "masked", "top_k", "factor")
EVERY = frozenset({*KINDS, "tight"})
CLEAR = 1e-3  # margins from here on keep promoted and demoted logits apart from all others


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
        """Which kinds of edit there are, and `tight` where a margin is so small that logits alone may tie."""
        found = {name for name in KINDS if name != "factor" and np.any(getattr(self, name))}
        near = [(self.promote, self.promote_margin), (self.demote, self.demote_margin)]
        if any((margin[hit] < CLEAR).any() for hit, margin in near):
            found.add("tight")
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


class Tables(NamedTuple):
    """What holds for n rows, gathered from the bank; None for kinds of edit that none of them is under."""

    kinds: frozenset[str]
    add_logit: Tensor | None  # (n, E)
    add_std: Tensor | None  # (n, E)
    add_spread: Tensor | None  # (n, E)
    promote: Tensor | None  # (n, E) bool
    promote_margin: Tensor | None  # (n, E)
    demote: Tensor | None  # (n, E) bool
    demote_margin: Tensor | None  # (n, E)
    masked: Tensor | None  # (n, E) bool
    top_k: Tensor | None  # (n,) 0: the model's own
    factor: Tensor | None  # (n, W, E)
    renormalise: Tensor | None  # (n, W) bool
    pinned: Tensor | None  # (n, E) bool: promoted, demoted or masked
    offset: Tensor | None  # (n, E) from the token's top (promoted) or bottom; -inf where masked


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
        self.version = 0  # counts changes

    def write(self, slot: int, row: Row | None) -> None:
        """Fill a slot; None leaves this layer alone."""
        self.version += 1
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

    def gather(self, slots: Tensor, kinds: frozenset[str] = EVERY) -> Tables:
        """Return what holds for rows with these slots, (n,); kinds that are not named are passed over."""

        def of(table: Tensor, kind: str) -> Tensor | None:
            return table[slots] if kind in kinds else None

        masked, promote = of(self.masked, "masked"), of(self.promote, "promote")
        promote_margin, demote_margin = of(self.promote_margin, "promote"), of(self.demote_margin, "demote")
        pinned: Tensor | None = None
        offset: Tensor | None = None
        if kinds & {"promote", "demote"}:
            pinned = self.promote[slots] | self.demote[slots]
            offset = self.promote_margin[slots] - self.demote_margin[slots]
            if masked is not None:
                pinned, offset = pinned | masked, offset.masked_fill(masked, -torch.inf)
        return Tables(
            kinds=kinds,
            add_logit=of(self.add_logit, "add_logit"),
            add_std=of(self.add_std, "add_std"),
            add_spread=of(self.add_spread, "add_spread"),
            promote=promote,
            promote_margin=promote_margin,
            demote=of(self.demote, "demote"),
            demote_margin=demote_margin,
            masked=masked,
            pinned=pinned,
            offset=offset,
            top_k=of(self.top_k, "top_k"),
            factor=of(self.factor, "factor"),
            renormalise=of(self.renormalise, "factor"),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all tables."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, Tensor))
