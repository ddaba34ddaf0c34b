"""DERN: weak experts are dropped, their neurons go to the experts that have one like them and are clustered there."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from moeworks.edit.algebra import (
    Expert,
    add_fractions,
    expert_of,
    from_features,
    join,
    nearest,
    neuron_features,
    repeats_last,
    spherical_kmeans,
    take_neurons,
    with_experts,
)
from moeworks.edit.algebra.neurons import PARTS, Part
from moeworks.edit.merge.grouping import GROUPINGS, Grouping, by_score, merged_by
from moeworks.edit.merge.merged import check_plan, need_statistics
from moeworks.edit.plan import LayerCut
from moeworks.edit.statistics import LayerStatistics
from moeworks.edit.transforms import TRANSFORMS, needs_statistics
from moeworks.errors import BadPlan

if TYPE_CHECKING:
    from moeworks.edit.layer import LayerWeights

__all__ = ["dern", "dern_recombine"]

_COMPARED: dict[str, tuple[Part, ...]] = {"up_down": ("up", "down"), "all": PARTS}


@GROUPINGS.register("dern")
@merged_by("dern", collect=("cheap", "neurons"))
def dern(statistics: LayerStatistics, kept: int, *, weights: LayerWeights | None = None, seed: int = 0) -> Grouping:
    """Keep the experts of the largest gate mass; where the others' neurons go, the transform finds out.

    Args:
        statistics: of the layer: `gate`.
        kept: number of experts that stay.
        weights, seed: not used.

    Source: DERN (arXiv 2509.10377) [secondary]: mean over tokens of the normalised weight. The router's own weights are
    summed here, which where it does not normalise gives tokens with little mass less say.
    """
    ranked = by_score(statistics.get("gate"))
    return Grouping(keep=tuple(sorted(ranked[:kept])), groups=None, order=tuple(ranked))


@TRANSFORMS.register("dern")
@needs_statistics
def dern_recombine(
    weights: LayerWeights,
    plan: LayerCut,
    statistics: LayerStatistics | None = None,
    *,
    alpha: float = 0.5,
    similarity: Literal["up_down", "all"] = "up_down",
    iterations: int = 30,
) -> LayerWeights:
    """Move neurons of dropped experts to kept ones that have a like neuron, and cluster each back to its width.

    A neuron goes to the owner of the most similar neuron of all kept experts if the cosine is at least `alpha`, else it
    is lost. The kept expert's router row gets that fraction of the dropped expert's row added; its router bias,
    selection bias, scale and bias of `down` stay its own. Then spherical k-means over own and received neurons,
    weighted by the gate mass of the experts they come from, from the neurons with the largest gate response (of those
    that point the same way, the first; the source does not say). An expert that receives nothing stays to the bit, so
    `alpha` above 1 is a plain cut.

    Args:
        weights, plan, statistics: the layer, what it keeps, its statistics: `gate`, `neuron_gate_peak`.
        alpha: least cosine, best from 0.4 to 0.6 in the paper.
        similarity: compare up rows and down columns, which the paper found slightly better, or `all` three.
        iterations: of k-means at most.

    Source: DERN (arXiv 2509.10377): abstract read, the rest [secondary]; no released code was found.

    Raises:
        BadPlan: the plan has groups of several, or an unknown choice.
        BadData: a statistic is missing.
    """
    check_plan(weights, plan)
    if plan.groups is not None and any(len(group) > 1 for group in plan.groups):
        raise BadPlan(f"layer {plan.layer} has groups; dern itself finds where neurons of dropped experts go.")
    if similarity not in _COMPARED or iterations < 1:
        raise BadPlan("dern compares 'up_down' or 'all', and takes 1 iteration or more.")
    known = need_statistics(statistics, "dern")
    mass, peak = torch.as_tensor(known.get("gate")).float(), torch.as_tensor(known.get("neuron_gate_peak")).float()
    parts, keep = _COMPARED[similarity], list(plan.keep)
    bags = [expert_of(weights, expert) for expert in keep]
    dropped = [expert for expert in range(weights.experts) if expert not in set(keep)]
    owned = torch.cat([neuron_features(bag, parts) for bag in bags])  # (K * I, F)
    fractions = torch.zeros(weights.experts, len(keep), device=owned.device)
    received: list[list[tuple[int, Expert, Tensor]]] = [[] for _ in keep]
    for source in dropped:
        bag = expert_of(weights, source)
        cosine, place = nearest(neuron_features(bag, parts), owned)  # (I,) each
        owner = torch.where(cosine >= alpha, place // weights.neurons, -1)
        for number in sorted(set(owner[owner >= 0].tolist())):
            moved = (owner == number).nonzero()[:, 0]
            fractions[source, number] = len(moved) / weights.neurons
            received[number].append((source, take_neurons(bag, moved), moved))
    del owned
    fresh: dict[int, Expert] = {}
    for number, (expert, bag) in enumerate(zip(keep, bags, strict=True)):
        if received[number]:
            sources = [(expert, bag, torch.arange(weights.neurons)), *received[number]]
            fresh[number] = _recombine(sources, mass, peak, iterations)
    router = add_fractions(weights.router, keep, fractions) if fresh else weights.router[keep]
    return replace(with_experts(weights.select(keep), fresh), router=router)


def _recombine(sources: list[tuple[int, Expert, Tensor]], mass: Tensor, peak: Tensor, iterations: int) -> Expert:
    """Return the neurons of several experts clustered to as many as the first has.

    Args:
        sources: (expert, its neurons that take part, their numbers in it); the first keeps its bias of `down`.
        mass: (E,) weight of each expert.
        peak: (E, I) largest gate response of each neuron.
        iterations: at most.
    """
    first = sources[0][1]
    points = neuron_features(join([bag for _, bag, _ in sources]))  # (N, F)
    weight = torch.cat([mass[expert].repeat(bag.neurons) for expert, bag, _ in sources])
    response = torch.cat([peak[expert][numbers.cpu()] for expert, _, numbers in sources])
    ranked = repeats_last(points, response.argsort(descending=True, stable=True).to(points.device))
    start = points[ranked[: first.neurons].sort().values]
    _, centres = spherical_kmeans(points, weight.to(points), start, iterations=iterations)
    return from_features(centres, first)
