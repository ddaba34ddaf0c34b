"""The operations of a plan on rows that each have their own slot: the twin of `plan.operations` for mixed batches.

Edits are made in float32, in the selection space of the layer's contract, from the router's raw logits; weights are
combined again from the edited logits. Letters: n rows, E experts, k slots of a token, W steps of weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moeworks.contract import Contract
from moeworks.engines.vllm.bank import KINDS, Bank
from moeworks.families.torch_contract import TorchDetail, keep_best_groups, score_logits, selection_scores

__all__ = ["DETAIL", "EVERY", "decide_rows"]

DETAIL = TorchDetail(score_dtype=torch.float32)
EVERY = frozenset(KINDS)


def decide_rows(
    logits: Tensor,
    slots: Tensor,
    bank: Bank,
    contract: Contract,
    *,
    bias: Tensor | None = None,
    kinds: frozenset[str] = EVERY,
) -> tuple[Tensor, Tensor]:
    """Return (weights, ids) of n rows, (n, k) each, best expert first; slots that do not run have weight 0.

    Args:
        logits: (n, E) raw router logits.
        slots: (n,) slot of each row.
        bank: the layer's plans.
        contract: the layer's rule, without factors that vLLM applies to the experts' output.
        bias: (E,) selection bias, exactly when the contract has one.
        kinds: kinds of edit that may be there; others are passed over. All of them where shapes may not depend on it.
    """
    z = _add(logits.float(), slots, bank, kinds)
    masked = bank.masked[slots] if "masked" in kinds else None  # (n, E)
    # a softmax weighs experts against each other, so that those masked must not count beside a bias
    compares = contract.bias and contract.score == "softmax" and contract.order == "score_first"
    choice = selection_scores(
        z.masked_fill(masked, -torch.inf) if compares and masked is not None else z, contract, DETAIL, bias
    )
    z, choice = _pin(z, choice, slots, bank, kinds)
    if masked is not None:
        z, choice = z.masked_fill(masked, -torch.inf), choice.masked_fill(masked, -torch.inf)
    if contract.groups > 1:
        choice = keep_best_groups(choice, contract)
        if masked is not None:
            choice = choice.masked_fill(masked, -torch.inf)
    ids = torch.topk(choice, contract.top_k, dim=-1, sorted=True).indices  # (n, k)
    runs = None
    if "top_k" in kinds:
        own = bank.top_k[slots]  # (n,)
        width = torch.where(own == 0, contract.top_k, own)
        runs = torch.arange(contract.top_k, device=ids.device) < width[:, None]  # (n, k)
    weights = _combine(z, ids, contract, runs)
    if "factor" in kinds:
        weights = _reweigh(weights, ids, bank.factor[slots], bank.renormalise[slots])
    return weights, ids


def _add(z: Tensor, slots: Tensor, bank: Bank, kinds: frozenset[str]) -> Tensor:
    """All additions, in units of the token's unedited logits."""
    edited = z
    if "add_logit" in kinds:
        edited = edited + bank.add_logit[slots]
    if "add_std" in kinds:
        edited = edited + bank.add_std[slots] * z.std(-1, correction=0, keepdim=True)
    if "add_spread" in kinds:
        low, high = torch.aminmax(z, dim=-1, keepdim=True)
        edited = edited + bank.add_spread[slots] * (high - low)
    return edited


def _pin(z: Tensor, choice: Tensor, slots: Tensor, bank: Bank, kinds: frozenset[str]) -> tuple[Tensor, Tensor]:
    """Promote and demote against the token's extremes before either."""
    if not kinds & {"promote", "demote"}:
        return z, choice
    z_low, z_high = torch.aminmax(z, dim=-1, keepdim=True)  # (n, 1)
    low, high = torch.aminmax(choice, dim=-1, keepdim=True)
    if "promote" in kinds:
        hit = bank.promote[slots]
        z = torch.where(hit, z_high + bank.promote_margin[slots], z)
        choice = torch.where(hit, high + (high - low) + 1, choice)
    if "demote" in kinds:
        hit = bank.demote[slots]
        z = torch.where(hit, z_low - bank.demote_margin[slots], z)
        choice = torch.where(hit, low - 1, choice)
    return z, choice


def _combine(z: Tensor, ids: Tensor, contract: Contract, runs: Tensor | None) -> Tensor:
    """Return the weights of the slots that run, (n, k), as `contract.combine_weights` would for so many."""
    if contract.order == "top_k_first":
        chosen = z.gather(-1, ids)
        if runs is not None:
            chosen = chosen.masked_fill(~runs, -torch.inf)
        weights = score_logits(chosen, contract, DETAIL)
    else:
        weights = score_logits(z, contract, DETAIL).gather(-1, ids)
    if runs is not None:
        weights = torch.where(runs, weights, 0.0)
    if contract.renormalise:
        norm = weights.sum(-1, keepdim=True) + contract.epsilon
        weights = weights / (norm.clamp(min=contract.floor) if contract.floor else norm)
    return weights * contract.scale if contract.scale != 1.0 else weights


def _reweigh(weights: Tensor, ids: Tensor, factor: Tensor, renormalise: Tensor) -> Tensor:
    """Multiply weights step by step; (n, W, E) factors, (n, W) whether the token's total is kept."""
    for step in range(factor.shape[1]):
        scaled = weights * factor[:, step].gather(-1, ids)
        total, left = weights.sum(-1, keepdim=True), scaled.sum(-1, keepdim=True)  # (n, 1)
        kept = torch.where(left == 0, scaled, scaled * (total / torch.where(left == 0, 1.0, left)))
        weights = torch.where(renormalise[:, step, None], kept, scaled)
    return weights
