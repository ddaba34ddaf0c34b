"""The operations of a plan on torch tensors: the twin of `moeworks.plan.operations`, run inside the router's hook.

Edits are made in float32 whatever the model's dtype, in the selection space of the router's own contract. A row
on which nothing is active keeps the router's own decision, to the bit. Letters: n rows, E experts, k slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moeworks.families.torch_contract import combine_weights, keep_best_groups, select, selection_scores

if TYPE_CHECKING:
    from moeworks.families.router import Router
    from moeworks.plan.compiled import LayerEdit

__all__ = ["Active", "Replayed", "TorchEdit", "redecide", "to_torch"]

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class TorchEdit:
    """One layer's merged operations under one where clause, as dense vectors; None where an operation is absent."""

    add_logit: Tensor | None  # (E,)
    add_std: Tensor | None  # (E,)
    add_spread: Tensor | None  # (E,)
    promote: Tensor | None  # (E,) bool
    promote_margin: Tensor  # (E,)
    demote: Tensor | None  # (E,) bool
    demote_margin: Tensor  # (E,)
    masked: Tensor | None  # (E,) bool: refill
    weight_steps: tuple[tuple[Tensor, bool], ...]  # ((E,) factor, whether the token's total is kept), in order
    top_k: int | None
    edits_choice: bool


class Replayed(NamedTuple):
    """What a trace says about some rows of the pass."""

    place: Tensor  # (m,) flat rows
    ids: Tensor  # (m, k)
    weights: Tensor | None  # (m, k), or None: the router's own scores at these ids


@dataclass(frozen=True, eq=False)
class Active:
    """An edit and the rows it applies to: (n,) booleans, or None for all rows."""

    edit: TorchEdit
    rows: Tensor | None
    replayed: Replayed | None = None


def to_torch(edit: LayerEdit, device: torch.device) -> TorchEdit:
    """Return the edit's vectors on the router's device."""

    def cast(values: Array) -> Tensor:
        return torch.from_numpy(values if values.dtype == bool else values.astype(np.float32)).to(device)

    def unless_empty(values: Array) -> Tensor | None:
        return cast(values) if values.any() else None

    return TorchEdit(
        add_logit=unless_empty(edit.add_logit),
        add_std=unless_empty(edit.add_std),
        add_spread=unless_empty(edit.add_spread),
        promote=unless_empty(edit.promote),
        promote_margin=cast(edit.promote_margin),
        demote=unless_empty(edit.demote),
        demote_margin=cast(edit.demote_margin),
        masked=unless_empty(edit.masked),
        weight_steps=tuple((cast(step.factor), step.renormalise) for step in edit.weight_steps),
        top_k=edit.top_k,
        edits_choice=edit.edits_choice,
    )


def redecide(
    router: Router, logits: Tensor | None, weights: Tensor, ids: Tensor, active: Sequence[Active]
) -> tuple[Tensor, Tensor]:
    """Return the (ids, weights) that the router would have decided under the edits, (n, k) or wider.

    Args:
        router: whose contract decides.
        logits: (n, E) raw logits, unedited; None where they do not show, which only weight edits and replay allow.
        weights: (n, k) the router's own weights.
        ids: (n, k) the router's own ids.
        active: the edits, in the plan's order.
    """
    if any(a.edit.edits_choice for a in active):
        assert logits is not None  # the guard refuses such plans where there is no contract
        ids, weights = _choose(router, logits, weights, ids, active)
    for a in active:
        if a.replayed is not None:
            ids, weights = _replay(router, logits, weights, ids, a.replayed)
    for a in active:
        for factor, renormalise in a.edit.weight_steps:
            weights = _pick(a.rows, _times(weights, factor, ids, renormalise), weights)
    return ids, weights


def _choose(
    router: Router, logits: Tensor, weights: Tensor, ids: Tensor, active: Sequence[Active]
) -> tuple[Tensor, Tensor]:
    """Edit logits and selection scores, decide again, and keep the router's own decision on all other rows."""
    contract, detail, arrays = router.contract, router.detail, router.arrays
    assert contract is not None
    z = _add(logits.float(), active)
    compares = contract.bias and contract.score == "softmax" and contract.order == "score_first"
    choice = selection_scores(_masked(z, active) if compares else z, contract, detail, arrays.bias)
    z, choice = _pin(z, choice, active)
    if contract.groups > 1 and any(a.edit.masked is not None for a in active):
        # what stands for experts of closed groups, zero say, must not bring back one that is masked
        new_ids = select(
            _masked(keep_best_groups(choice, contract), active), replace(contract, groups=1, groups_kept=1), detail
        )
    else:
        new_ids = select(choice, contract, detail)
    new_weights = combine_weights(z, new_ids, contract, detail, arrays.expert_scale).to(weights.dtype)
    rows = _union([a.rows for a in active if a.edit.edits_choice], ids)
    ids, weights = _pick(rows, new_ids, ids), _pick(rows, new_weights, weights)
    for a in active:
        if a.edit.top_k is not None:
            ids, weights = _resize(router, z, choice, ids, weights, a)
    return ids, weights


def _replay(
    router: Router, logits: Tensor | None, weights: Tensor, ids: Tensor, replayed: Replayed
) -> tuple[Tensor, Tensor]:
    place, new_ids, new_weights = replayed
    if new_weights is None:
        assert router.contract is not None and logits is not None  # noqa: PT018 - the guard refuses it otherwise
        new_weights = combine_weights(
            logits[place], new_ids, router.contract, router.detail, router.arrays.expert_scale
        )
    ids, weights = ids.clone(), weights.clone()
    ids[place], weights[place] = new_ids.to(ids.dtype), new_weights.to(weights.dtype)
    return ids, weights


def _times(weights: Tensor, factor: Tensor, ids: Tensor, renormalise: bool) -> Tensor:
    scaled = weights * factor.to(weights.dtype)[ids]
    if not renormalise:
        return scaled
    total, left = weights.sum(-1, keepdim=True), scaled.sum(-1, keepdim=True)  # (n, 1)
    return torch.where(left == 0, scaled, scaled * (total / left))


def _add(z: Tensor, active: Sequence[Active]) -> Tensor:
    """All additions, in units of the token's unedited logits."""
    edited = z
    for a in active:
        step: Tensor | None = a.edit.add_logit
        if a.edit.add_std is not None:
            step = _plus(step, a.edit.add_std * z.std(-1, correction=0, keepdim=True))
        if a.edit.add_spread is not None:
            low, high = torch.aminmax(z, dim=-1, keepdim=True)
            step = _plus(step, a.edit.add_spread * (high - low))
        if step is not None:
            edited = edited + (step if a.rows is None else step * a.rows[:, None])
    return edited


def _plus(step: Tensor | None, more: Tensor) -> Tensor:
    return more if step is None else step + more


def _pin(z: Tensor, choice: Tensor, active: Sequence[Active]) -> tuple[Tensor, Tensor]:
    """Promote, demote and mask, against the token's extremes before any of them."""
    if any(a.edit.promote is not None or a.edit.demote is not None for a in active):
        z_low, z_high = torch.aminmax(z, dim=-1, keepdim=True)  # (n, 1)
        low, high = torch.aminmax(choice, dim=-1, keepdim=True)
    for a in active:
        if a.edit.promote is not None:
            where = _rows_and(a.rows, a.edit.promote)
            z = torch.where(where, z_high + a.edit.promote_margin, z)
            choice = torch.where(where, high + (high - low) + 1, choice)
    for a in active:
        if a.edit.demote is not None:
            where = _rows_and(a.rows, a.edit.demote)
            z = torch.where(where, z_low - a.edit.demote_margin, z)
            choice = torch.where(where, low - 1, choice)
    return _masked(z, active), _masked(choice, active)


def _masked(values: Tensor, active: Sequence[Active]) -> Tensor:
    """Return logits or selection scores, (n, E), with -inf for masked experts."""
    for a in active:
        if a.edit.masked is not None:
            values = values.masked_fill(_rows_and(a.rows, a.edit.masked), -torch.inf)
    return values


def _resize(
    router: Router, z: Tensor, choice: Tensor, ids: Tensor, weights: Tensor, a: Active
) -> tuple[Tensor, Tensor]:
    """Let k' experts run on the active rows; unused slots keep an id and get weight 0."""
    assert router.contract is not None
    assert a.edit.top_k is not None
    wide = max(a.edit.top_k, ids.shape[-1])
    detail = replace(router.detail, sorted=True)
    ranked = select(choice, replace(router.contract, top_k=wide), detail)  # (n, K) best first
    used = ranked[:, : a.edit.top_k]
    contract = replace(router.contract, top_k=a.edit.top_k)
    resized = torch.zeros(ranked.shape, dtype=weights.dtype, device=weights.device)
    resized[:, : a.edit.top_k] = combine_weights(z, used, contract, detail, router.arrays.expert_scale).to(
        weights.dtype
    )
    if wide > ids.shape[-1]:  # rows that are not active get slots that do nothing
        missing = wide - ids.shape[-1]
        ids = torch.cat([ids, ids[:, :1].expand(-1, missing)], -1)
        weights = torch.cat([weights, weights.new_zeros(len(weights), missing)], -1)
    return _pick(a.rows, ranked, ids), _pick(a.rows, resized, weights)


def _rows_and(rows: Tensor | None, experts: Tensor) -> Tensor:
    return experts if rows is None else rows[:, None] & experts


def _union(rows: Sequence[Tensor | None], like: Tensor) -> Tensor | None:
    union = torch.zeros(len(like), dtype=torch.bool, device=like.device)
    for one in rows:
        if one is None:
            return None
        union = union | one
    return union


def _pick(rows: Tensor | None, edited: Tensor, own: Tensor) -> Tensor:
    return edited if rows is None else torch.where(rows[:, None], edited, own)
