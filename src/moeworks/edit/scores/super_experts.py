"""Super experts from statistics: the few whose largest output stands far above all others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moeworks.address import Address
from moeworks.edit.statistics import LayerStatistics
from moeworks.errors import BadData

__all__ = ["super_experts_of"]


def super_experts_of(
    statistics: Sequence[LayerStatistics], *, quantile: float = 99.5, times: float = 10.0, first_share: float = 0.75
) -> tuple[Address, ...]:
    """Return the experts whose largest output is above a percentile of all and above a share of the largest.

    Source: arXiv 2507.23279 and its code: peak > P99.5 and peak > max / 10, both over the first 75 % of layers. The
    model's layers are counted up to the last one with experts. In a model where nothing is massive the rule may still
    name an expert, which costs one place; `moeworks find --method super_experts`, which looks at the residual stream,
    is the better measurement, and where it was made it is used instead.

    Args:
        statistics: with `peak`.
        quantile: percentile over all experts that ran, by linear interpolation.
        times: the peak must be above the largest / `times`.
        first_share: layers below round(share × layers) are looked at.

    Returns:
        Addresses, the largest peak first.
    """
    if not 0 < quantile < 100 or times < 1 or not 0 < first_share <= 1:
        raise BadData("quantile is between 0 and 100, times at least 1, first_share above 0 and up to 1.")
    bound = round(first_share * (max(layer.layer for layer in statistics) + 1))
    found = [
        (float(size), Address(layer.layer, expert))
        for layer in statistics
        if layer.layer < bound
        for expert, (size, count) in enumerate(zip(layer.get("peak"), layer.get("count"), strict=True))
        if count > 0
    ]
    if not found:
        return ()
    sizes = np.array([size for size, _ in found])
    threshold = max(float(np.percentile(sizes, quantile)), float(sizes.max()) / times)
    return tuple(address for size, address in sorted(found, key=lambda pair: (-pair[0], pair[1])) if size > threshold)
