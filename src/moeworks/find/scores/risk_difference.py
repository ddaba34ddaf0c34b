"""Risk difference: how much more often an expert runs on one side than on the other."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from moeworks.find.scores.base import SCORES, Side, reads

__all__ = ["risk_difference"]


@SCORES.register("risk_difference")
@reads("runs")
def risk_difference(contrast: Side, against: Side) -> NDArray[Any]:
    """Return the difference of the two rates, (b, experts), from -1 to 1.

    Source: with `micro` sums SteerMoE's risk difference (arXiv 2509.09660, section on detection); with `macro`
    sums the difference of mean within-sequence frequencies (arXiv 2510.04694, section on expert identification).
    """
    return contrast.rates - against.rates
