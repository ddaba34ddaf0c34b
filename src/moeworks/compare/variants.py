"""Which small change of a router's rule turns one trace's decisions into the other's: the probable cause of flips."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeworks.contract import Contract, combine_weights, select, selection_scores
from moeworks.errors import BadData

__all__ = ["choice_variants", "same_sets", "weight_variants"]

Array = NDArray[Any]


def choice_variants(logits: Array, contract: Contract, bias: Array | None) -> Iterator[tuple[str, Array]]:
    """Yield (what differs, ids (n, k)) for rules that choose otherwise than the contract, from the same logits."""
    plain = replace(contract, groups=1, groups_kept=1)
    if contract.bias:
        yield "selection bias left out", select(selection_scores(logits, replace(contract, bias=False)), contract)
    if contract.bias and contract.groups > 1:
        yield "selection bias and groups left out", select(selection_scores(logits, replace(plain, bias=False)), plain)
    if contract.bias and bias is None:
        return  # the others need it
    if contract.groups > 1:
        yield "groups left out", select(selection_scores(logits, contract, bias=bias), plain)
    if contract.bias and contract.order == "score_first" and contract.score in ("softmax", "sigmoid"):
        other = replace(contract, score="softmax" if contract.score == "sigmoid" else "sigmoid")
        yield f"{other.score} in place of {contract.score}", select(selection_scores(logits, other, bias=bias), other)


def weight_variants(logits: Array, ids: Array, contract: Contract, expert_scale: Array | None) -> dict[str, Array]:
    """Return what differs → weights (n, k) of given ids, for rules that weigh otherwise than the contract."""
    rules: dict[str, Contract] = {}
    if contract.order == "score_first" and contract.score != "sparsemixer":
        turned = replace(contract, renormalise=not contract.renormalise)
        rules["weights not renormalised" if contract.renormalise else "weights renormalised"] = turned
        if contract.score in ("softmax", "sigmoid"):
            other = replace(contract, score="sigmoid" if contract.score == "softmax" else "softmax")
            rules[f"{other.score} in place of {contract.score}"] = other
    if contract.scale != 1:
        rules["routed scaling factor left out"] = replace(contract, scale=1.0)
    found: dict[str, Array] = {}
    for name, rule in rules.items():
        found[name] = combine_weights(logits, ids, rule, expert_scale=expert_scale)
    if contract.expert_scale:
        found["factors of experts left out"] = combine_weights(logits, ids, replace(contract, expert_scale=False))
    return found


def same_sets(first: Array, second: Array) -> Array:
    """Return in which rows two lists of ids, (n, k) each, hold the same experts, (n,)."""
    if first.shape != second.shape:
        raise BadData(f"ids of shapes {first.shape} and {second.shape} cannot be the same sets.")
    return np.asarray((np.sort(first, axis=-1) == np.sort(second, axis=-1)).all(-1))
