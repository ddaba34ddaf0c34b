"""Scores from routing alone: how often, with what weight, and how surely a router takes an expert."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moeworks.edit.scores.base import EDIT_SCORES, Array, divided, needs, stacked, tokens_of
from moeworks.edit.statistics import LayerStatistics

__all__ = ["frequency", "gate_mass", "nllb", "random", "routing_mass", "tcess"]


@EDIT_SCORES.register("frequency")
def frequency(statistics: Sequence[LayerStatistics], *, label: str | None = None) -> Array:
    """Number of tokens that are routed to the expert.

    The baseline that every paper beats: REAP's tests (arXiv 2510.13999) see generation collapse at half the experts.
    """
    return stacked(statistics, "count", label)


@EDIT_SCORES.register("gate_mass")
def gate_mass(statistics: Sequence[LayerStatistics], *, label: str | None = None) -> Array:
    """Sum of the expert's combine weights: SEER-MoE's soft count.

    Source: SEER-MoE, arXiv 2404.05089 [recalled]; its fine-tuning afterwards is no part of this.
    """
    return stacked(statistics, "gate", label)


@EDIT_SCORES.register("routing_mass")
def routing_mass(statistics: Sequence[LayerStatistics], *, label: str | None = None) -> Array:
    """Sum of combine weights by token, of all text or of one value of the label.

    Source: the translation specialist of arXiv 2605.28042 [secondary], over instruction, source and generated target;
    there it beats REAP for this one narrow behaviour. Its layer budget is `--budget divergence`.
    """
    return divided(stacked(statistics, "gate", label), tokens_of(statistics, label))


@EDIT_SCORES.register("nllb")
def nllb(statistics: Sequence[LayerStatistics], *, label: str | None = None) -> Array:
    """How often the expert comes first, times its mean weight when it does, for one language or for all.

    Source: arXiv 2212.09811 (ACL 2023) [secondary]: importance is top-1 frequency times confidence, by language. The
    paper's split between encoder and decoder has no counterpart here.
    """
    first, weight = stacked(statistics, "first", label), stacked(statistics, "first_gate", label)
    return divided(first, tokens_of(statistics, label)) * divided(weight, first)


@EDIT_SCORES.register("tcess")
def tcess(statistics: Sequence[LayerStatistics], *, label: str | None = None) -> Array:
    """Mean over tokens of the raw logit where it is the token's largest, else 0.

    Source: PreMoE, arXiv 2505.17639v1, as its released code has it: top-1 and no confidence filter. Logits may be
    negative in some families, and then an expert that never comes first (0) is above one that does; version 3 of the
    paper replaces the score.
    """
    return divided(stacked(statistics, "top_logit", label), tokens_of(statistics, label))


@EDIT_SCORES.register("random")
@needs("cheap")
def random(statistics: Sequence[LayerStatistics], *, label: str | None = None, seed: int = 0) -> Array:
    """A number drawn for each expert: the baseline that is always reported beside.

    The draw depends on the seed and the shape alone, not on the text; `label` is taken and not looked at.
    """
    shape = stacked(statistics, "count").shape
    return np.random.default_rng(seed).random(shape)
