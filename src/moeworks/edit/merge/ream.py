"""REAM: the most salient experts take in the many weak ones that are like them, neurons aligned by what they do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from moeworks.edit.algebra import (
    Expert,
    activation_cost,
    activation_of,
    align,
    expert_of,
    keys,
    mean,
    reduced_cost,
)
from moeworks.edit.algebra.similarity import cosines, cosines_of_gram
from moeworks.edit.merge.grouping import GROUPINGS, Grouping, by_score, grouped, merged_by, saliency
from moeworks.edit.merge.merged import RouterRows, hidden_rows, merge_groups
from moeworks.edit.plan import LayerCut
from moeworks.edit.statistics import LayerStatistics
from moeworks.edit.transforms import TRANSFORMS, needs_statistics
from moeworks.errors import BadData

if TYPE_CHECKING:
    from moeworks.edit.layer import LayerWeights

__all__ = ["ream", "ream_merge"]


@GROUPINGS.register("ream")
@merged_by("ream", collect=("cheap", "router", "means", "rows"))
def ream(
    statistics: LayerStatistics,
    kept: int,
    *,
    weights: LayerWeights | None = None,
    seed: int = 0,
    group_size: int = 16,
    gated: bool = True,
) -> Grouping:
    """Let each of the most salient experts, best first, take in the unassigned ones most like it; shares by saliency.

    A group is full at `group_size` experts, its centre counted, so that a few groups hold the weak experts and most
    centres stay alone. Similarity is half the cosine of mean gated outputs, half that of router logits.

    Args:
        statistics: of the layer: `count`, `gated_norm`, `logit_gram`, `gated_output_sum` (or `output_sum`).
        kept: number of groups.
        weights, seed: not used.
        group_size: experts of one group, 16 in the paper.
        gated: outputs weighted by the router; without, the paper's ablation loses 11.5 points.

    Source: REAM (arXiv 2604.04356), released code, which uses softmax weights for every family; here the router's own.
    Saliency is REAP's. The paper treats layers in order with what went before merged: `sequential_change`.

    Raises:
        BadData: so many groups of that size do not hold all experts.
    """
    score = saliency(statistics)
    experts = len(score)
    if group_size < 1 or kept * group_size < experts:
        raise BadData(
            f"layer {statistics.layer}: {kept} groups of {group_size} experts do not hold {experts}; raise group_size."
        )
    outputs = statistics.get("gated_output_sum" if gated else "output_sum")
    similarity = (cosines(outputs) + cosines_of_gram(statistics.get("logit_gram"))) / 2
    ranked = by_score(score)
    members: dict[int, list[int]] = {}
    free = sorted(ranked[kept:])
    for centre in ranked[:kept]:
        order = np.argsort(-similarity[centre, np.array(free, int)], kind="stable")
        taken = [free[place] for place in order[: group_size - 1].tolist()]
        members[centre] = [centre, *taken]
        free = [expert for expert in free if expert not in set(taken)]
    return grouped(members, score, ranked)


@TRANSFORMS.register("ream")
@needs_statistics
def ream_merge(
    weights: LayerWeights,
    plan: LayerCut,
    statistics: LayerStatistics | None = None,
    *,
    dimensions: int = 64,
    router: RouterRows = "centre",
) -> LayerWeights:
    """Align members to the centre by activations and weights together, then average by share.

    The cost of a pair of neurons is the distance of their unit-length activations on kept rows plus that of their
    unit-length triples after PCA. Router row, bias and scale are the centre's.

    Args:
        weights, plan, statistics: the layer (with its activation rule), its groups, its statistics with rows (about
            32,000 in the paper).
        dimensions: of the PCA.
        router: as of `mean`.

    Source: REAM (arXiv 2604.04356), released code.
    """
    _, hidden = hidden_rows(statistics, "ream", weights)
    rule = activation_of(weights)

    def merge(centre: int, members: Sequence[int], shares: Sequence[float]) -> Expert:
        reference = expert_of(weights, centre)
        active = keys(reference, rule, hidden)  # (n, I)
        aligned = []
        for member in members:
            expert = reference if member == centre else expert_of(weights, member)
            if member != centre:
                cost = activation_cost(active, keys(expert, rule, hidden))
                expert = align(reference, expert, cost + reduced_cost(reference, expert, dimensions=dimensions))
            aligned.append(expert)
        return mean(aligned, shares)

    return merge_groups(weights, plan, statistics, merge, router=router)
