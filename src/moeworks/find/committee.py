"""Down-weighting of the standing committee: experts that run everywhere say little about any one behaviour.

A few experts take most of the routing whatever the text (the standing committee, arXiv 2601.03425). As in the inverse
document frequency of text retrieval, a score is multiplied by

    weight = min(1, log(rate) / log(fair)),

where rate is the share of tokens of both sides together for which the expert ran and fair = k / E is what it would be
if all ran alike (taken as the mean rate of the layer). An expert at or below its fair share keeps its score; one that
runs twice as often as fair in a layer of fair = 1/4 keeps half of it; one that always runs keeps nothing. The form is
ours: the paper names the fact and no formula. Rates are of both sides together, so that permuting documents does not
change them: p and q stay exactly the same, while the ranking, the intervals and the stability change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["committee_weights"]

Array = NDArray[Any]


def committee_weights(rates: Array, layers: Mapping[int, int]) -> Array:
    """Return the weight of each expert's score, (sum of E), 0 to 1.

    Args:
        rates: (sum of E) share of all tokens for which each expert ran, layers side by side.
        layers: number of experts of each layer.
    """
    weights = np.ones(len(rates))
    start = 0
    for experts in layers.values():
        own = np.clip(rates[start : start + experts], 1e-300, 1.0)  # (E,)
        fair = float(rates[start : start + experts].mean())
        if 0 < fair < 1:  # in a layer where all experts always run none says more than another
            weights[start : start + experts] = np.minimum(1.0, np.log(own) / np.log(fair))
        start += experts
    return weights
