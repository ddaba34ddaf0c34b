"""SHAPE: an expert's share of the value of the sets it is chosen in, in the manner of Shapley."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moeworks.edit.scores.base import EDIT_SCORES, Array, needs
from moeworks.edit.statistics import LayerStatistics
from moeworks.errors import BadData

__all__ = ["shape"]


@EDIT_SCORES.register("shape")
@needs("cheap", "sets")
def shape(statistics: Sequence[LayerStatistics]) -> Array:
    """Mean share of an expert in how often its sets of chosen experts came, less what other sets could do without it.

    Source: SHAPE, arXiv 2606.09886 [secondary]. For the distinct sets A_j that hold expert i, with counts v(A_j), and
    N_ij other observed sets that contain A_j without i: a_i = min_j v(A_j) / N_ij over those with N_ij > 0, and the
    score is the mean over j of (v(A_j) - a_i N_ij) / |A_j|, which is never below 0. An expert that was never chosen
    scores 0. Sets have no label. The paper's layer budget is `--budget coverage`.

    Raises:
        BadData: the distinct sets were not collected, or not every token runs k experts.
    """
    rows = []
    for layer in statistics:
        if layer.sets is None:
            raise BadData("these statistics hold no sets of chosen experts; collect them with --collect sets.")
        sets, counts = layer.sets
        if len(sets) and not (sets.min() >= 0 and sets.max() < layer.experts):
            raise BadData(f"layer {layer.layer}: slots that run no expert make sets of unequal size; SHAPE has none.")
        rows.append(_layer(sets, counts, layer.experts))
    return np.stack(rows)


def _layer(sets: Array, counts: Array, experts: int) -> Array:
    m, k = sets.shape
    if k == 1:
        others = np.full((m, 1), m - 1.0)  # the empty set is in all others
    else:
        rests = np.stack([np.delete(sets, slot, axis=1) for slot in range(k)], axis=1)  # (m, k, k - 1)
        _, which, times = np.unique(rests.reshape(m * k, k - 1), axis=0, return_inverse=True, return_counts=True)
        others = (times[which.reshape(-1)] - 1.0).reshape(m, k)  # N_ij; all sets have k members, so each holds it once
    value = np.repeat(counts.astype(np.float64)[:, None], k, axis=1)  # (m, k)
    ratio = np.divide(value, others, out=np.full((m, k), np.inf), where=others > 0)
    least = np.full(experts, np.inf)
    np.minimum.at(least, sets, ratio)
    replaced = np.where(others > 0, np.where(np.isfinite(least), least, 0.0)[sets] * others, 0.0)
    total, number = np.zeros(experts), np.zeros(experts)
    np.add.at(total, sets, (value - replaced) / k)
    np.add.at(number, sets, 1.0)
    mean = np.divide(total, number, out=np.zeros(experts), where=number > 0)
    return np.maximum(mean, 0.0)  # rounding
