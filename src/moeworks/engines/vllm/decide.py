"""The operations of a plan on rows that each have their own edits: the twin of `plan.operations` for mixed batches.

Edits are made in float32, in the selection space of the layer's contract, from the router's raw logits; weights are
combined again from the edited logits. Letters: n rows, E experts, k slots of a token, W steps of weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moeworks.contract import Contract
from moeworks.engines.vllm.bank import Tables
from moeworks.families.torch_contract import TorchDetail, keep_best_groups, score_logits, selection_scores

__all__ = ["DETAIL", "decide_rows", "logits_decide"]

DETAIL = TorchDetail(score_dtype=torch.float32)


def decide_rows(
    logits: Tensor, tables: Tables, contract: Contract, *, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return (weights, ids) of n rows, (n, k) each, best expert first; slots that do not run have weight 0.

    Args:
        logits: (n, E) raw router logits.
        tables: what holds for each row.
        contract: the layer's rule, without factors that vLLM applies to the experts' output.
        bias: (E,) selection bias, exactly when the contract has one.
    """
    z = _add(logits.float(), tables)
    if logits_decide(contract) and "tight" not in tables.kinds:
        z = _pin_logits(z, tables)
        values, ids = torch.topk(z, contract.top_k, dim=-1, sorted=True)  # (n, k)
        weights = _softmax_weights(z, values, contract, _runs(tables, contract))
    else:
        z, ids = _choose(z, tables, contract, bias)
        weights = _combine(z, ids, contract, _runs(tables, contract))
    if tables.factor is not None and tables.renormalise is not None:
        weights = _reweigh(weights, ids, tables.factor, tables.renormalise)
    return weights, ids


def logits_decide(contract: Contract) -> bool:
    """Whether logits alone rank experts, and weights are a softmax of those that were chosen or of all."""
    return (
        contract.score == "softmax"
        and not contract.bias
        and contract.groups == 1
        and not (contract.renormalise and (contract.epsilon or contract.floor))
    )


def _choose(z: Tensor, tables: Tables, contract: Contract, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the edited logits and the ids, by way of selection scores."""
    masked = tables.masked
    # a softmax weighs experts against each other, so that those masked must not count beside a bias
    compares = contract.bias and contract.score == "softmax" and contract.order == "score_first"
    choice = selection_scores(
        z.masked_fill(masked, -torch.inf) if compares and masked is not None else z, contract, DETAIL, bias
    )
    z, choice = _pin(z, choice, tables)
    if masked is not None:
        z, choice = z.masked_fill(masked, -torch.inf), choice.masked_fill(masked, -torch.inf)
    if contract.groups > 1:
        choice = keep_best_groups(choice, contract)
        if masked is not None:
            choice = choice.masked_fill(masked, -torch.inf)
    return z, torch.topk(choice, contract.top_k, dim=-1, sorted=True).indices


def _add(z: Tensor, tables: Tables) -> Tensor:
    """All additions, in units of the token's unedited logits."""
    edited = z
    if tables.add_logit is not None:
        edited = edited + tables.add_logit
    if tables.add_std is not None:
        edited = edited + tables.add_std * z.std(-1, correction=0, keepdim=True)
    if tables.add_spread is not None:
        low, high = torch.aminmax(z, dim=-1, keepdim=True)
        edited = edited + tables.add_spread * (high - low)
    return edited


def _pin_logits(z: Tensor, tables: Tables) -> Tensor:
    """Promote, demote and mask where logits alone rank experts, in as few steps as there are."""
    if tables.pinned is not None and tables.offset is not None:
        low, high = torch.aminmax(z, dim=-1, keepdim=True)  # (n, 1)
        base = low if tables.promote is None else torch.where(tables.promote, high, low)
        return torch.where(tables.pinned, base + tables.offset, z)
    return z if tables.masked is None else z.masked_fill(tables.masked, -torch.inf)


def _pin(z: Tensor, choice: Tensor, tables: Tables) -> tuple[Tensor, Tensor]:
    """Promote and demote in logits and in selection scores, against the token's extremes before either."""
    if tables.promote is None and tables.demote is None:
        return z, choice
    z_low, z_high = torch.aminmax(z, dim=-1, keepdim=True)  # (n, 1)
    low, high = torch.aminmax(choice, dim=-1, keepdim=True)
    if tables.promote is not None and tables.promote_margin is not None:
        z = torch.where(tables.promote, z_high + tables.promote_margin, z)
        choice = torch.where(tables.promote, high + (high - low) + 1, choice)
    if tables.demote is not None and tables.demote_margin is not None:
        z = torch.where(tables.demote, z_low - tables.demote_margin, z)
        choice = torch.where(tables.demote, low - 1, choice)
    return z, choice


def _runs(tables: Tables, contract: Contract) -> Tensor | None:
    """Return which slots run, (n, k); None: all."""
    if tables.top_k is None:
        return None
    width = torch.where(tables.top_k == 0, contract.top_k, tables.top_k)  # (n,)
    return torch.arange(contract.top_k, device=width.device) < width[:, None]


def _softmax_weights(z: Tensor, values: Tensor, contract: Contract, runs: Tensor | None) -> Tensor:
    """Return the weights of the largest logits, (n, k): among those that run, or among all experts."""
    if runs is not None:
        values = values.masked_fill(~runs, -torch.inf)
    if contract.renormalise or contract.order == "top_k_first":
        weights = torch.softmax(values, -1)
    else:
        weights = (values - torch.logsumexp(z, -1, keepdim=True)).exp()
    return weights * contract.scale if contract.scale != 1.0 else weights


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
