"""A cut for softmax routers that do not renormalise: weights that deletion inflates are scaled back on average."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.special import softmax

from moeworks.edit.layer import LayerWeights
from moeworks.edit.plan import LayerCut
from moeworks.edit.statistics import LayerStatistics
from moeworks.edit.transforms import TRANSFORMS, cut, needs_statistics
from moeworks.errors import BadData

__all__ = ["cut_rescaled", "kept_probability"]


@TRANSFORMS.register("cut_rescaled")
@needs_statistics
def cut_rescaled(weights: LayerWeights, plan: LayerCut, statistics: LayerStatistics | None = None) -> LayerWeights:
    """Cut, and multiply the down projections that stay by the mean probability of the kept experts.

    OLMoE, Qwen2-MoE, DeepSeek-V2 and FlexOlmo weight experts by a softmax over all of them, without dividing by the sum
    over those chosen. Once experts are gone the softmax runs over the rest, so that every weight grows by 1 / (sum of
    p over kept experts), token by token. The mean of that sum over the rows of text that the statistics kept is
    multiplied in (edit.md, sections 1 and 9; our derivation, exact on average and not for each token).

    Only for routers with score softmax before the top-k and without renormalisation; on others it would shrink.

    Raises:
        BadData: the statistics kept no rows of text.
    """
    if statistics is None:
        raise BadData(f"layer {plan.layer}: the transform 'cut_rescaled' needs statistics that kept rows of text.")
    new = cut(weights, plan)
    factor = kept_probability(statistics.rows().logits, plan.keep)
    bias = None if new.down_bias is None else new.down_bias * factor
    return replace(new, down=new.down * factor, down_bias=bias)


def kept_probability(logits: np.ndarray, keep: tuple[int, ...]) -> float:
    """Return the mean over tokens of the summed softmax probability of the kept experts; logits are (n, E)."""
    return float(softmax(logits.astype(np.float64), axis=1)[:, list(keep)].sum(1).mean())
