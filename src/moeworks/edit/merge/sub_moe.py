"""Sub-MoE: experts of like outputs, merged in one basis that all their matrices share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moeworks.edit.algebra import Expert, activation_of, expert_of, joint_svd, keys, mean
from moeworks.edit.algebra.clustering import cosine_kmeans
from moeworks.edit.merge.grouping import GROUPINGS, Grouping, centre_of, grouped, merged_by
from moeworks.edit.merge.m_smoe import usage
from moeworks.edit.merge.merged import RouterRows, hidden_rows, merge_groups
from moeworks.edit.plan import LayerCut
from moeworks.edit.statistics import LayerStatistics
from moeworks.edit.transforms import TRANSFORMS
from moeworks.errors import BadPlan

if TYPE_CHECKING:
    from moeworks.edit.layer import LayerWeights

__all__ = ["sub_moe", "sub_moe_merge"]


@GROUPINGS.register("sub_moe")
@merged_by("sub_moe", collect=("cheap", "everywhere"))
def sub_moe(statistics: LayerStatistics, kept: int, *, weights: LayerWeights | None = None, seed: int = 0) -> Grouping:
    """Group experts by k-means++ on the cosine of their mean outputs over all tokens; the most used is the centre.

    Args:
        statistics: of the layer: `count`, `all_output_sum`.
        kept: number of groups.
        weights: not used.
        seed: of the first centres.

    Source: Sub-MoE (arXiv 2506.23266) [secondary]. The paper shares an adaptive number of clusters between adjacent
    layers; how is not in what was read, so the number is the plan's.
    """
    share = usage(statistics)
    labels = cosine_kmeans(statistics.get("all_output_sum"), kept, seed=seed)
    members: dict[int, list[int]] = {}
    for label in range(kept):
        inside = [expert for expert in range(statistics.experts) if labels[expert] == label]
        centre = centre_of(inside, share)
        members[centre] = [centre, *(expert for expert in inside if expert != centre)]
    return grouped(members, share)


@TRANSFORMS.register("sub_moe")
def sub_moe_merge(
    weights: LayerWeights,
    plan: LayerCut,
    statistics: LayerStatistics | None = None,
    *,
    rank: float | None = None,
    scaled: bool = False,
    router: RouterRows = "centre",
) -> LayerWeights:
    """Merge each matrix of a group in one basis: [W_1 … W_n] = U S V^T, V split by expert, W = U S (sum f_i V_i)^T.

    As long as the rank is whole, U S V_i^T is W_i itself and the result is the weighted mean [derived]; the basis tells
    only where `rank` cuts it.

    Args:
        weights, plan, statistics: the layer, its groups with shares, its statistics.
        rank: share of the singular values that stays, rounded up; None for all.
        scaled: cut after the columns were scaled by the root mean square of what they multiply on kept rows of text.
        router: as of `mean`.

    Source: Sub-MoE (arXiv 2506.23266) [secondary], the merge as in REAP's re-implementation; `scaled` is the paper's
    second variant, whose exact scale was not read.

    Raises:
        BadPlan: the rank is not possible, or `scaled` without a rank.
    """
    if rank is not None and not 0 < rank <= 1:
        raise BadPlan(f"a rank of {rank} is not possible; it is a share above 0 and at most 1.")
    if scaled and rank is None:
        raise BadPlan("'scaled' changes where the rank is cut; give a 'rank' with it.")
    hidden = hidden_rows(statistics, "sub_moe with scaled", weights)[1] if scaled else None

    def merge(centre: int, members: Sequence[int], shares: Sequence[float]) -> Expert:
        experts = [expert_of(weights, member) for member in members]
        plain, merged = mean(experts, shares), {}
        for name in ("gate", "up", "down"):
            if getattr(plain, name) is not None:
                matrices = [getattr(expert, name) for expert in experts]
                scales = [_scale(weights, expert, name, hidden) for expert in experts]
                merged[name] = _joint(matrices, shares, rank, scales)
        return plain._replace(**merged)

    return merge_groups(weights, plan, statistics, merge, router=router)


def _scale(weights: LayerWeights, expert: Expert, name: str, hidden: Tensor | None) -> Tensor | None:
    """Return the root mean square of what each column of a matrix multiplies, (columns,); 1 for those that are 0."""
    if hidden is None:
        return None
    read = keys(expert, activation_of(weights), hidden) if name == "down" else hidden.to(expert.up)
    size = read.square().mean(0).sqrt()
    return torch.where(size > 0, size, torch.ones_like(size))


def _joint(
    matrices: Sequence[Tensor], shares: Sequence[float], rank: float | None, scales: Sequence[Tensor | None]
) -> Tensor:
    scaled = [m if s is None else m * s for m, s in zip(matrices, scales, strict=True)]
    whole = min(len(scaled[0]), sum(matrix.shape[1] for matrix in scaled))
    basis = joint_svd(scaled, rank=None if rank is None else math.ceil(rank * whole))
    parts = [part if scale is None else part / scale for part, scale in zip(basis.parts, scales, strict=True)]
    average = torch.stack([part * (f / sum(shares)) for part, f in zip(parts, shares, strict=True)]).sum(0)
    return (basis.basis * basis.values) @ average
