"""AIMER: a score from the weights alone, for when there is no text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from moeworks.edit.scores.base import EDIT_SCORES, Array, needs
from moeworks.edit.statistics import LayerStatistics
from moeworks.errors import BadData

if TYPE_CHECKING:
    from moeworks.edit.layer import LayerWeights

__all__ = ["aimer"]


@EDIT_SCORES.register("aimer")
@needs("weights")
def aimer(statistics: Sequence[LayerStatistics] = (), *, layers: Iterable[LayerWeights]) -> Array:
    """Minus the ratio of mean absolute weight to root mean square of the expert's weights: flat weights go; no text.

    Source: AIMER, arXiv 2603.18492: |w|_1 / (sqrt(N) |w|_2) over gate, up and down projection together, and high ratios
    are pruned (README read; the formula is [secondary] and that of the method's name). The sign is turned, since here
    high is kept. Biases and the router are left out.

    Raises:
        BadData: an expert whose weights are all 0, or layers of unequal numbers of experts.
    """
    rows = []
    for layer in layers:
        matrices = [matrix.flatten(1) for matrix in (layer.gate, layer.up, layer.down) if matrix is not None]  # (E, N)
        absolute = sum(matrix.double().abs().sum(1) for matrix in matrices)
        square = sum(matrix.double().square().sum(1) for matrix in matrices)
        numbers = sum(matrix.shape[1] for matrix in matrices)
        ratio = np.asarray((absolute / (math.sqrt(numbers) * square.sqrt())).cpu().numpy())  # type: ignore[union-attr]
        if not np.isfinite(ratio).all():
            bad = ", ".join(map(str, np.flatnonzero(~np.isfinite(ratio))))
            raise BadData(f"layer {layer.layer}: the weights of expert {bad} are all 0 or not finite.")
        rows.append(-ratio)
    if not rows or len({len(row) for row in rows}) > 1:
        raise BadData("there is no layer to score, or layers differ in their number of experts.")
    return np.stack(rows)
