"""Scores from what experts put out: lengths, weighted lengths, what they turn, and how much they vary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from moeworks.edit.scores.base import EDIT_SCORES, Array, divided, needs, stacked, tokens_of
from moeworks.edit.statistics import LayerStatistics
from moeworks.errors import BadData

__all__ = ["ean", "easy_ep", "max_activation", "mone", "reap", "tenp", "wean"]


@EDIT_SCORES.register("ean")
def ean(
    statistics: Sequence[LayerStatistics], *, label: str | None = None, aggregate: Literal["sum", "mean"] = "sum"
) -> Array:
    """Length of the expert's output, summed over its tokens, or their mean.

    Source: MC-Suite, arXiv 2504.05586; the formula as in REAP's code (`ean_sum`, `ean_mean`).
    """
    if aggregate not in ("sum", "mean"):
        raise BadData(f"aggregate is 'sum' or 'mean', not '{aggregate}'.")
    norm = stacked(statistics, "norm", label)
    return norm if aggregate == "sum" else divided(norm, stacked(statistics, "count", label))


@EDIT_SCORES.register("reap")
def reap(statistics: Sequence[LayerStatistics], *, label: str | None = None) -> Array:
    """Weight times length of the expert's output, mean over the tokens routed to it; the reference to beat.

    Source: REAP, arXiv 2510.13999 (ICLR 2026): sum of g |f(x)| over the tokens whose top-k holds the expert, divided by
    their number; weights as the model itself makes them (renormalised where it does so). An expert that never ran
    scores 0. Rare experts that matter on their tokens survive, which frequency loses.
    """
    return divided(stacked(statistics, "gated_norm", label), stacked(statistics, "count", label))


@EDIT_SCORES.register("wean")
def wean(statistics: Sequence[LayerStatistics], *, label: str | None = None) -> Array:
    """Weight times length of the expert's output, summed: REAP times frequency."""
    return stacked(statistics, "gated_norm", label)


@EDIT_SCORES.register("easy_ep")
def easy_ep(statistics: Sequence[LayerStatistics], *, label: str | None = None) -> Array:
    """Weight times length of the expert's output, each token counted by how far the routed output turns the residual.

    Source: EASY-EP, arXiv 2504.06792 (NeurIPS 2025): max(1 - cos(h, h + R), 0) g |f(x)|, summed; R without the shared
    expert. Its domain mix is `domains`: scores of each domain divided by their sum in the layer, then added. Made for
    some 25 long texts of the domain with the model's own answers in them.
    """
    return stacked(statistics, "turn", label)


@EDIT_SCORES.register("tenp")
def tenp(statistics: Sequence[LayerStatistics], *, label: str | None = None) -> Array:
    """Weight times length of the expert's output, each token counted by how far the output is turned from the input.

    Source: TENP, arXiv 2606.09885 [secondary]: g |f(x)| (1 - cos(x, f(x))). Domains are divided by their Euclidean
    length in the layer and added (`mix=l2`, the default for this score).
    """
    return stacked(statistics, "own_turn", label)


tenp.__dict__["mix"] = "l2"


@EDIT_SCORES.register("max_activation")
def max_activation(statistics: Sequence[LayerStatistics], *, label: str | None = None) -> Array:
    """Largest single number in any of the expert's outputs.

    Source: `max_activations` of REAP's code, with the absolute value that it leaves out; super experts stand out by it.
    """
    return stacked(statistics, "peak", label)


@EDIT_SCORES.register("mone")
@needs("cheap", "means")
def mone(statistics: Sequence[LayerStatistics], *, label: str | None = None) -> Array:
    """Access times variation: mean weight over all tokens, times the deviation of the output about its mean.

    Source: MoNE, arXiv 2507.00390. The paper's text was not read; this is the metric `fusion` of its released code,
    weight mass by token times sqrt(mean |f|^2 - |mean f|^2), constants left out. The code's running variance divides by
    slightly other numbers. An expert that always puts out the same scores 0 however often it runs, since MoNE puts a
    constant vector in its place; a cut does not, so beside a plain cut this score is no better founded than others.
    """
    count = stacked(statistics, "count", label)  # (L, E)
    mean = divided(stacked(statistics, "output_sum", label), count[..., None])  # (L, E, H)
    variance = divided(stacked(statistics, "norm_square", label), count) - (mean**2).sum(-1)
    mass = divided(stacked(statistics, "gate", label), tokens_of(statistics, label))
    return np.asarray(np.sqrt(np.maximum(variance, 0.0)) * mass)
