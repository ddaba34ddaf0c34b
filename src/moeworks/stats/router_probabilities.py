"""A router's logits as probabilities of experts: of its own score function where that is none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeworks.contract import score_logits
from moeworks.stats.distributions import softmax

if TYPE_CHECKING:
    from moeworks.contract import Contract

__all__ = ["look_like_probabilities", "router_probabilities"]

Array = NDArray[Any]


def router_probabilities(logits: Array, contract: Contract | None) -> Array:
    """Return probabilities of all experts, (n, E): softmax, or the scores of a sigmoid router divided by their sum.

    Sigmoid scores are no distribution over experts; that they are divided by their sum is a convention.
    """
    if contract is None or contract.score not in ("sigmoid", "sqrt_softplus"):
        return softmax(logits)
    scores = score_logits(logits, contract)
    total = scores.sum(-1, keepdims=True)
    return np.asarray(scores / np.where(total > 0, total, 1.0))


def look_like_probabilities(logits: Array) -> Array:
    """Return which rows of logits, (n, E), are probabilities already, (n,): none below 0, and they sum to 1.

    Raw logits do so by accident hardly ever; some versions of transformers return softmaxed ones under that name.
    """
    return np.asarray((logits >= 0).all(-1) & (np.abs(logits.sum(-1, dtype=np.float64) - 1) < 1e-3))
