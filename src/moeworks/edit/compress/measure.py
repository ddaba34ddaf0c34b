"""What a compression costs before anybody writes it: errors of weights and of outputs, and bytes.

Letters in shapes: n rows, H wide outside.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moeworks.edit.compress.experts import WholeExperts, as_rows, module_of
from moeworks.edit.compress.factors import PROJECTIONS, Factors
from moeworks.edit.layer import LayerWeights
from moeworks.edit.statistics import LayerStatistics
from moeworks.errors import Unsupported

__all__ = ["Measured", "measure", "output_error"]


@dataclass(frozen=True)
class Measured:
    """The cost of one layer's factors; every error is relative, 0 is exact and 1 as bad as zeros.

    Attributes:
        layer: global layer number.
        weight_error: of each projection over all experts, |W − W'| / |W| in the Frobenius norm; empty where the method
            has no weights to compare.
        error: the same over all projections together, or None.
        output_error: of the routed output on kept rows, |R − R'| / |R|; None without rows or without a known rule.
        rows: how many rows that was measured on.
        bytes_before, bytes_after: of the experts' projections and biases, without the router.
    """

    layer: int
    weight_error: dict[str, float]
    error: float | None
    output_error: float | None
    rows: int
    bytes_before: int
    bytes_after: int


def measure(weights: LayerWeights, factors: Factors, statistics: LayerStatistics | None = None) -> Measured:
    """Compare a layer's factors, as stored, with the layer.

    Args:
        weights: the layer they were made from.
        factors: of any operator.
        statistics: of the same layer; with kept rows the outputs are compared on them as well. Rows that the factors
            were fitted on flatter them.
    """
    errors: dict[str, float] = {}
    apart = whole = 0.0
    try:
        rebuilt = module_of(factors, weights.activation).dense()
    except Unsupported:
        rebuilt = {}
    for name in PROJECTIONS:
        original: Tensor | None = getattr(weights, name)
        if original is None or name not in rebuilt:
            continue
        difference = float((original.float() - rebuilt[name].float()).square().sum())
        size = float(original.float().square().sum())
        errors[name] = _ratio(difference, size)
        apart, whole = apart + difference, whole + size
    rows = statistics is not None and statistics.load_rows is not None and weights.activation is not None
    before = WholeExperts.of(weights).factors().bytes
    return Measured(
        layer=weights.layer,
        weight_error=errors,
        error=_ratio(apart, whole) if errors else None,
        output_error=output_error(weights, factors, statistics) if rows and statistics is not None else None,
        rows=len(statistics.rows().hidden) if rows and statistics is not None else 0,
        bytes_before=before,
        bytes_after=factors.bytes,
    )


@torch.no_grad()
def output_error(weights: LayerWeights, factors: Factors, statistics: LayerStatistics) -> float:
    """Return |R − R'| / |R| over kept rows, R the weighted sum of the experts' outputs with the router's own choice.

    Raises:
        BadData: no rows were kept.
        Unsupported: the rule of the experts is not known.
    """
    rows, like = statistics.rows(), weights.up
    hidden = as_rows(rows.hidden, like).to(like.dtype)
    ids, gates = as_rows(rows.ids, like).long(), as_rows(rows.weights, like).to(like.dtype)
    own = WholeExperts.of(weights)(hidden, ids, gates).float()
    found = module_of(factors, weights.activation)(hidden, ids, gates).float()
    return _ratio(float((own - found).square().sum()), float(own.square().sum()))


def _ratio(difference: float, size: float) -> float:
    """Return the square root of a quotient of squares; of nothing, 0 if nothing differs."""
    if size == 0:
        return 0.0 if difference == 0 else float("inf")
    return float((difference / size) ** 0.5)
