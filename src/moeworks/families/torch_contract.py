"""The contract on torch tensors: the twin of `moeworks.contract`, bit for bit what the router itself computes.

A contract says what is computed, a `TorchDetail` in which dtype and slot order. Letters in shapes: n tokens,
E experts, k experts chosen for a token, G groups. Runs in every decode step: no loop over tokens or experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from moeworks.contract import Contract
from moeworks.errors import BadData

__all__ = ["TorchDetail", "combine_weights", "decide", "keep_best_groups", "score_logits", "select", "selection_scores"]


@dataclass(frozen=True)
class TorchDetail:
    """What a router's result depends on to the last bit and the contract leaves open.

    Attributes:
        score_dtype: the dtype in which logits are scored; None for the dtype that the logits come in.
        choice_dtype: the dtype to which scores are cast before the bias is added; None for no cast.
        sorted: the flag that the router passes to `torch.topk`; False leaves the order of the slots to the kernel.
        weight_dtype: the dtype of the weights that the experts get; None for the one they were computed in.
    """

    score_dtype: torch.dtype | None = None
    choice_dtype: torch.dtype | None = None
    sorted: bool = True
    weight_dtype: torch.dtype | None = None


def score_logits(logits: Tensor, contract: Contract, detail: TorchDetail) -> Tensor:
    """Return the scores of all experts, (n, E), or of those gathered before, (n, k)."""
    if contract.score in ("softmax", "sparsemixer"):
        return functional.softmax(logits, dim=-1, dtype=detail.score_dtype)
    if detail.score_dtype is not None:
        logits = logits.to(detail.score_dtype)
    match contract.score:
        case "sigmoid":
            return logits.sigmoid()
        case "sqrt_softplus":
            return functional.softplus(logits).sqrt()
    return logits


def selection_scores(logits: Tensor, contract: Contract, detail: TorchDetail, bias: Tensor | None = None) -> Tensor:
    """Return what the top-k looks at, (n, E): scores or logits by the contract's order, plus the bias."""
    if contract.bias != (bias is not None):
        raise BadData("the contract and the call disagree on whether this router has a selection bias.")
    choice = logits if contract.order == "top_k_first" else score_logits(logits, contract, detail)
    if detail.choice_dtype is not None:
        choice = choice.to(detail.choice_dtype)
    return choice if bias is None else choice + bias


def select(choice: Tensor, contract: Contract, detail: TorchDetail) -> Tensor:
    """Return the ids of the k experts with the largest selection scores, (n, k), in the router's slot order."""
    if contract.groups > 1:
        choice = keep_best_groups(choice, contract)
    if contract.score == "sparsemixer":
        return _one_by_one(choice, contract.top_k)
    return torch.topk(choice, contract.top_k, dim=-1, sorted=detail.sorted).indices


def combine_weights(
    logits: Tensor, ids: Tensor, contract: Contract, detail: TorchDetail, expert_scale: Tensor | None = None
) -> Tensor:
    """Return the weights of the chosen experts, (n, k), in the order of `ids`."""
    if contract.expert_scale != (expert_scale is not None):
        raise BadData("the contract and the call disagree on whether each expert has a factor of its own.")
    if contract.score == "sparsemixer":
        weights = _sparsemixer_weights(logits, ids, contract.jitter, detail)
    elif contract.order == "top_k_first":
        weights = score_logits(logits.gather(-1, ids), contract, detail)
    else:
        weights = score_logits(logits, contract, detail).gather(-1, ids)
    if contract.renormalise:
        norm = _norm(weights, contract)  # (n, 1)
        if contract.epsilon:
            norm = norm + contract.epsilon
        if contract.floor:
            norm = norm.clamp(min=contract.floor)
        weights = weights / norm
    if expert_scale is not None:
        weights = weights * expert_scale[ids]
    if contract.scale != 1.0:
        weights = weights * contract.scale
    return weights if detail.weight_dtype is None else weights.to(detail.weight_dtype)


def decide(
    logits: Tensor,
    contract: Contract,
    detail: TorchDetail,
    *,
    bias: Tensor | None = None,
    expert_scale: Tensor | None = None,
    ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return (ids, weights), each (n, k), for logits (n, E); given `ids` are weighed and not chosen."""
    if ids is None:
        if contract.hashed:
            raise BadData("a hash-routed layer takes its ids from the token ids; pass them as ids.")
        ids = select(selection_scores(logits, contract, detail, bias), contract, detail)
    return ids, combine_weights(logits, ids, contract, detail, expert_scale)


def _norm(weights: Tensor, contract: Contract) -> Tensor:
    if contract.norm_order != 1.0:
        norm: Tensor = torch.linalg.vector_norm(weights, ord=contract.norm_order, dim=-1, keepdim=True)
        return norm
    return (weights.abs() if contract.score == "identity" else weights).sum(-1, keepdim=True)


def keep_best_groups(choice: Tensor, contract: Contract) -> Tensor:
    """Return the selection scores, (n, E), with the fill in place of experts outside the best groups."""
    grouped = choice.reshape(*choice.shape[:-1], contract.groups, -1)  # (n, G, E / G)
    best = 1 if contract.group_score == "max" else min(2, grouped.shape[-1])
    group_scores = grouped.topk(best, dim=-1).values.sum(-1)  # (n, G)
    kept = group_scores.topk(contract.groups_kept, dim=-1, sorted=False).indices
    closed = torch.ones_like(group_scores, dtype=torch.bool).scatter_(-1, kept, False)
    fill = float("-inf") if contract.group_fill == "minus_infinity" else 0.0
    return grouped.masked_fill(closed.unsqueeze(-1), fill).flatten(-2)


def _one_by_one(choice: Tensor, top_k: int) -> Tensor:
    """Top-k as repeated argmax, which sends equal scores to the smaller id as sparsemixer does."""
    slots = []
    for _ in range(top_k):
        slots.append(choice.argmax(dim=-1, keepdim=True))  # (n, 1)
        choice = choice.scatter(-1, slots[-1], float("-inf"))
    return torch.cat(slots, dim=-1)


def _sparsemixer_weights(logits: Tensor, ids: Tensor, jitter: float, detail: TorchDetail) -> Tensor:
    """Weight of slot j: softmax at its expert over those within `2 * jitter` of the best still unchosen."""
    remaining, size, slots = logits, logits.abs(), []
    for slot in torch.split(ids, 1, dim=-1):  # (n, 1)
        best = remaining.amax(dim=-1, keepdim=True)
        far = (best - logits) / size.clamp(min=best) > 2 * jitter
        gates = functional.softmax(remaining.masked_fill(far, float("-inf")), dim=-1, dtype=detail.score_dtype)
        slots.append(gates.gather(-1, slot))
        remaining = remaining.scatter(-1, slot, float("-inf"))
    return torch.cat(slots, dim=-1)
