"""Functional resonance map: how much more often an expert runs over the prompts of one class (MoTE's fTRI)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import BadData
from moeworks.find.scores.base import GROUP_SCORES, SCORES, Groups, Side, reads

__all__ = ["functional_map", "functional_map_of_classes"]

Array = NDArray[Any]


@SCORES.register("functional_map")
@reads("runs", aggregate="macro", phase=("prompt",), undivided="length_normalised")
def functional_map(contrast: Side, against: Side, *, length_normalised: bool = True) -> Array:
    """Return the mean map of one class's prompts minus that of all others, (b, experts).

    A prompt's map is the number of its tokens for which an expert ran, divided by its length unless
    `length_normalised` is False. Only prompt tokens count, unless a clause names a phase.

    Source: MoTE (arXiv 2502.11096) as told by two summaries [secondary]: counts or gate weights, and the length, are
    not stated there. The paper takes the top 10 of the score.
    """
    return np.asarray(contrast.rates - against.rates)


@GROUP_SCORES.register("functional_map")
@reads("runs", aggregate="macro", phase=("prompt",), undivided="length_normalised")
def functional_map_of_classes(groups: Groups, *, length_normalised: bool = True) -> Array:
    """Return the mean map of the target class minus the mean of all other classes' means, (b, experts).

    Each other class counts alike, however many prompts it has. See `functional_map`.

    Raises:
        BadData: no class is asked for.
    """
    if groups.target is None:
        raise BadData("functional_map scores one class against all others; say which (target).")
    others = [place for place in range(len(groups.names)) if place != groups.target]
    rates = groups.rates
    return np.asarray(rates[:, groups.target] - rates[:, others].mean(1))
