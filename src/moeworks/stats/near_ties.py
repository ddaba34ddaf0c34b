"""How close decisions are, in logits, and when one counts as a near-tie: what rounding may turn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeworks.contract import Contract, keep_best_groups

if TYPE_CHECKING:
    from moeworks.trace import Trace, TraceHeader

__all__ = ["NEAR_TIE", "logit_margins", "near_tie_of", "relative_margins"]

Array = NDArray[Any]
# A decision is a near-tie if its margin in logits is below this share of the largest logit. Two and a half units
# of the engine's dtype in bfloat16 and float16, where measured flips between float32 and bfloat16 of the shipped model
# lie below it (all of them in the first layers, 96 % in the last ones); sums in another order cost more units in the
# wider dtypes.
NEAR_TIE = {"float64": 1e-13, "float32": 1e-5, "float16": 1.25e-3, "bfloat16": 1e-2}


def near_tie_of(*traces: Trace) -> float:
    """Return the share for the coarsest of the traces' dtypes; where none is known, bfloat16's."""
    dtypes = [trace.header.engine.dtype for trace in traces if trace.header.engine is not None]
    return max((NEAR_TIE.get(dtype, NEAR_TIE["bfloat16"]) for dtype in dtypes), default=NEAR_TIE["bfloat16"])


def logit_margins(logits: Array, contract: Contract, bias: Array | None, scores: Array) -> Array:
    """Return by how much the last chosen expert's logit could fall before the next takes its place, (n,).

    To first order: the gap of the two selection scores divided by the slope of the score function at the last chosen
    expert, so that margins of routers with other score functions compare. Infinite where all experts are chosen.

    Args:
        logits: (n, E) raw.
        contract: the rule; not a hash table's.
        bias: (E,) selection bias, None where there is none.
        scores: (n, E) selection scores of these logits, bias included.
    """
    if contract.top_k == contract.experts:
        return np.full(len(logits), np.inf)
    choice = keep_best_groups(scores, contract) if contract.groups > 1 else scores
    k = contract.top_k
    order = np.argpartition(-choice, (k - 1, k), axis=-1)[:, k - 1 : k + 1]  # (n, 2) the last in, the first out
    best = np.take_along_axis(choice, order, -1)
    with np.errstate(invalid="ignore"):
        gap = best[:, 0] - best[:, 1]
    gap = np.where(np.isnan(gap), 0.0, gap)
    if contract.order == "top_k_first" or contract.score == "identity":
        return np.asarray(gap)
    last = order[:, 0]
    own, other = (best - (0 if bias is None else bias[order])).T  # scores without the bias
    if contract.score == "sqrt_softplus":  # d/dz sqrt(softplus z) = sigmoid z / (2 sqrt(softplus z))
        z = np.take_along_axis(logits, last[:, None], -1)[:, 0].astype(np.float64)
        slope = 1 / (1 + np.exp(-z)) / (2 * own)
    elif contract.score == "softmax":  # own p falls by p (1 - p), the other's rises by p q
        slope = own * (1 - own + other)
    else:  # sigmoid: s (1 - s)
        slope = own * (1 - own)
    return np.asarray(gap / np.maximum(slope, np.finfo(np.float64).tiny))


def relative_margins(header: TraceHeader, layer: int, logits: Array) -> tuple[Array, Array] | None:
    """Return margins in logits and as a share of each token's largest logit, (n,) each; None if they cannot be told."""
    scores, contract = header.selection_scores_of(layer, logits), header.shape_of(layer).contract
    if scores is None or contract is None:
        return None
    margin = logit_margins(logits, contract, header.values_of(layer)[0], scores)
    return margin, margin / np.maximum(np.abs(logits).max(-1), np.finfo(np.float64).tiny)
