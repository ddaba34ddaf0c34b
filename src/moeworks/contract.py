"""How a router turns logits into a decision, in numpy: the reference that everything else is tested against.

A contract is data. `decide` runs it: score → (+ bias) → groups → top-k → combine weights. The four steps are
public on their own, because steering edits what goes into one of them and leaves the others alone.

Letters in shapes: n tokens, E experts, k experts chosen for a token, G groups. Arithmetic is float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import BadData

__all__ = [
    "Contract",
    "Decision",
    "combine_weights",
    "decide",
    "keep_best_groups",
    "margins",
    "score_logits",
    "select",
    "selection_scores",
]

Array = NDArray[Any]
Score = Literal["softmax", "sigmoid", "sqrt_softplus", "identity", "sparsemixer"]


@dataclass(frozen=True, kw_only=True)
class Contract:
    """The rule by which one router decides; the values that belong to a layer (bias, scales) stand beside it.

    Attributes:
        experts: number of routed experts, E.
        top_k: experts chosen for each token, k.
        score: the function from logits to scores. `sparsemixer` is Phi-3.5-MoE's sequential softmax
            (arXiv 2409.12136), which thresholds by a relative distance of `2 * jitter`.
        order: `score_first` picks the top k of the scores and gathers their weights from the scores;
            `top_k_first` picks the top k of the logits and scores only those.
        bias: whether a vector is added to what the top-k looks at. It never enters the weights.
        groups, groups_kept: with G > 1 groups, only experts in the best `groups_kept` groups may be chosen.
        group_score: a group is as good as its best expert (`max`) or its best two together (`top_2_sum`).
        group_fill: what stands for experts outside the kept groups, `minus_infinity` or `zero`.
        renormalise: whether the k weights are divided by their norm.
        norm_order: 1 divides by the sum; DBRX names another p.
        epsilon: added to that norm. `floor`: the norm is never taken smaller.
        scale: factor on all weights, after normalising.
        expert_scale: whether each expert has a factor of its own (Gemma 4).
        hashed: ids come from a table of token ids (DeepSeek-V4's first layers), weights from the scores.
        shared_experts: experts that run for every token beside the routed ones; not part of the decision.
        jitter: only for `sparsemixer`.
    """

    experts: int
    top_k: int
    score: Score = "softmax"
    order: Literal["score_first", "top_k_first"] = "score_first"
    bias: bool = False
    groups: int = 1
    groups_kept: int = 1
    group_score: Literal["max", "top_2_sum"] = "top_2_sum"
    group_fill: Literal["minus_infinity", "zero"] = "minus_infinity"
    renormalise: bool = False
    norm_order: float = 1.0
    epsilon: float = 0.0
    floor: float = 0.0
    scale: float = 1.0
    expert_scale: bool = False
    hashed: bool = False
    shared_experts: int = 0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= self.experts:
            raise BadData(f"a router cannot choose {self.top_k} of {self.experts} experts; k is from 1 to E.")
        if self.groups < 1 or self.experts % self.groups or not 1 <= self.groups_kept <= self.groups:
            raise BadData(
                f"{self.experts} experts do not form {self.groups} groups of which {self.groups_kept} are kept."
            )
        if self.score == "sparsemixer" and self.order != "top_k_first":
            raise BadData("sparsemixer looks at logits; its order is top_k_first.")


class Decision(NamedTuple):
    """What a router decided for n tokens, in the router's own slot order."""

    ids: Array  # (n, k) integers
    weights: Array  # (n, k)


def score_logits(logits: Array, contract: Contract) -> Array:
    """Return the scores of all experts, (n, E)."""
    z = np.asarray(logits, np.float64)  # (n, E)
    match contract.score:
        case "softmax" | "sparsemixer":
            return _softmax(z)
        case "sigmoid":
            with np.errstate(over="ignore"):  # exp(-z) may be infinite; the sigmoid is then 0, as it should be
                return np.asarray(1.0 / (1.0 + np.exp(-z)))
        case "sqrt_softplus":
            return np.asarray(np.sqrt(np.logaddexp(0.0, z)))
        case "identity":
            return z


def selection_scores(logits: Array, contract: Contract, *, bias: Array | None = None) -> Array:
    """Return what the top-k looks at, (n, E): scores or logits by the contract's order, plus the bias."""
    top_k_first = contract.order == "top_k_first"
    choice = np.asarray(logits, np.float64) if top_k_first else score_logits(logits, contract)
    if contract.bias != (bias is not None):
        raise BadData("the contract and the call disagree on whether this router has a selection bias.")
    return choice if bias is None else choice + np.asarray(bias, np.float64)


def select(choice: Array, contract: Contract) -> Array:
    """Return the ids of the k experts with the largest selection scores, (n, k), largest first.

    Equal scores go to the smaller id.
    """
    if contract.groups > 1:
        choice = keep_best_groups(choice, contract)
    return np.argsort(-choice, axis=-1, kind="stable")[:, : contract.top_k]


def combine_weights(logits: Array, ids: Array, contract: Contract, *, expert_scale: Array | None = None) -> Array:
    """Return the weights of the chosen experts, (n, k), in the order of `ids`."""
    if contract.score == "sparsemixer":
        weights = _sparsemixer_weights(np.asarray(logits, np.float64), ids, contract.jitter)
    elif contract.order == "top_k_first":
        weights = score_logits(np.take_along_axis(np.asarray(logits), ids, -1), contract)
    else:
        weights = np.take_along_axis(score_logits(logits, contract), ids, -1)
    if contract.renormalise:
        norm = (np.abs(weights) ** contract.norm_order).sum(-1, keepdims=True) ** (1 / contract.norm_order)
        weights = weights / np.maximum(norm + contract.epsilon, contract.floor)
    if contract.expert_scale != (expert_scale is not None):
        raise BadData("the contract and the call disagree on whether each expert has a factor of its own.")
    if expert_scale is not None:
        weights = weights * np.asarray(expert_scale, np.float64)[ids]
    return np.asarray(weights * contract.scale)


def decide(
    logits: Array,
    contract: Contract,
    *,
    bias: Array | None = None,
    expert_scale: Array | None = None,
    ids: Array | None = None,
) -> Decision:
    """Decide for n tokens from their logits, (n, E).

    Args:
        logits: raw router logits.
        contract: the rule.
        bias: (E,) selection bias, exactly when the contract has one.
        expert_scale: (E,) factors, exactly when the contract has them.
        ids: (n, k) ids that are given and not chosen: a hash table's or a recorded decision's.

    Raises:
        BadData: shapes or layer values do not fit the contract, or a logit is NaN.
    """
    if np.ndim(logits) != 2 or np.shape(logits)[1] != contract.experts:
        raise BadData(f"logits of shape {np.shape(logits)} are not (tokens, {contract.experts}).")
    if np.isnan(logits).any():
        raise BadData("router logits contain NaN; no decision can be made from them.")
    if ids is None:
        if contract.hashed:
            raise BadData("a hash-routed layer takes its ids from the token ids; pass them as ids.")
        ids = select(selection_scores(logits, contract, bias=bias), contract)
    return Decision(ids, combine_weights(logits, ids, contract, expert_scale=expert_scale))


def margins(choice: Array, contract: Contract) -> Array:
    """Return by how much the last chosen expert beats the first that is not, (n,); infinite where all are.

    A margin close to zero is a near-tie: another batch shape or engine may decide it otherwise.
    """
    if contract.groups > 1:
        choice = keep_best_groups(choice, contract)
    if contract.top_k == contract.experts:
        return np.full(len(choice), np.inf)
    ranked = -np.sort(-choice, axis=-1)  # (n, E); two to three times as fast as np.partition on short rows
    with np.errstate(invalid="ignore"):
        gap = ranked[:, contract.top_k - 1] - ranked[:, contract.top_k]
    return np.asarray(np.where(np.isnan(gap), 0.0, gap))


def _softmax(z: Array) -> Array:
    e = np.exp(z - z.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def keep_best_groups(choice: Array, contract: Contract) -> Array:
    """Return the selection scores, (n, E), with the fill in place of experts outside the best groups."""
    grouped = choice.reshape(len(choice), contract.groups, -1)  # (n, G, E / G)
    best = -np.sort(-grouped, axis=-1)[..., : 1 if contract.group_score == "max" else 2]
    group_scores = best.sum(-1)  # (n, G)
    kept = np.argsort(-group_scores, axis=-1, kind="stable")[:, : contract.groups_kept]
    open_groups = np.zeros(group_scores.shape, bool)
    np.put_along_axis(open_groups, kept, True, -1)
    fill = -np.inf if contract.group_fill == "minus_infinity" else 0.0
    return np.asarray(np.where(open_groups[..., None], grouped, fill).reshape(choice.shape))


def _sparsemixer_weights(z: Array, ids: Array, jitter: float) -> Array:
    """Weight of slot j: softmax at its expert over those within `2 * jitter` of the best still unchosen."""
    remaining, weights = z.copy(), np.empty(ids.shape)
    for slot in range(ids.shape[1]):
        best = remaining.max(-1, keepdims=True)
        with np.errstate(invalid="ignore"):  # a masked expert's inf / inf is no reason to be far, and -inf stays out
            far = (best - z) / np.maximum(np.abs(z), best) > 2 * jitter
        chosen = ids[:, slot, None]
        weights[:, slot] = np.take_along_axis(_softmax(np.where(far, -np.inf, remaining)), chosen, -1)[:, 0]
        np.put_along_axis(remaining, chosen, -np.inf, -1)
    return weights
