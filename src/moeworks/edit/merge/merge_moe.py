"""MergeMoE: gate and up are averaged, and the down projection is solved so that the merged outputs come out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from moeworks.edit.algebra import Expert, activation_of, expert_of, keys, outputs, solve_down, weight_cosines
from moeworks.edit.merge.grouping import GROUPINGS, Grouping, around_centres, by_score, merged_by
from moeworks.edit.merge.m_smoe import usage
from moeworks.edit.merge.mean import Alignment, mean_of_group
from moeworks.edit.merge.merged import RouterRows, hidden_rows, merge_groups
from moeworks.edit.plan import LayerCut
from moeworks.edit.statistics import LayerStatistics
from moeworks.edit.transforms import TRANSFORMS, needs_statistics
from moeworks.errors import BadData, BadPlan

if TYPE_CHECKING:
    from moeworks.edit.layer import LayerWeights

__all__ = ["FEWEST_ROWS", "merge_moe", "merge_moe_merge"]

FEWEST_ROWS = 36  # the paper's samples: below 32 it collapses


@GROUPINGS.register("merge_moe")
@merged_by("merge_moe", collect=("cheap", "rows"), needs_weights=True)
def merge_moe(
    statistics: LayerStatistics, kept: int, *, weights: LayerWeights | None = None, seed: int = 0
) -> Grouping:
    """Group experts around the most used ones by the cosine of flattened [up; gate]; shares are those of usage.

    Args:
        statistics: of the layer: `count`.
        kept: number of groups.
        weights: of the layer.
        seed: not used.

    Source: MergeMoE (arXiv 2510.14436) [secondary].
    """
    if weights is None:
        raise BadData(f"'merge_moe' compares weights; give it those of layer {statistics.layer}.")
    share = usage(statistics)
    return around_centres(weight_cosines(weights, ("up", "gate")), by_score(share), kept, share)


@TRANSFORMS.register("merge_moe")
@needs_statistics
def merge_moe_merge(
    weights: LayerWeights,
    plan: LayerCut,
    statistics: LayerStatistics | None = None,
    *,
    tokens: Literal["all", "routed"] = "all",
    around: Literal["zero", "mean"] = "zero",
    align_to: Alignment = "none",
    router: RouterRows = "centre",
) -> LayerWeights:
    """Average gate and up by share, then solve D by least squares: D = P Q^+, the smallest where several are as good.

    P holds what the members give out on kept rows of text, averaged by share (the same as stacking them with these
    weights), Q the activations of the averaged gate and up. A bias of `down` is averaged and taken off first.

    Args:
        weights, plan, statistics: the layer (with its activation rule), its groups, its statistics with rows.
        tokens: `all` kept rows for every member, or each member on the rows `routed` to it, stacked.
        around: with fewer rows than neurons D is not determined; `zero` gives the smallest as the paper's formula does,
            `mean` the one nearest to the averaged D.
        align_to: `neurons` puts members in the centre's order before gate and up are averaged; the paper does not.
        router: as of `mean`.

    Source: MergeMoE (arXiv 2510.14436) [secondary]. The paper needs 36 samples; 36 rows are the least that is taken
    here, and as many rows as an expert has neurons are advisable. `routed` and `mean` are not in the paper.

    Raises:
        BadData: fewer than 36 rows to solve for.
        BadPlan: an unknown choice.
    """
    if tokens not in ("all", "routed") or around not in ("zero", "mean"):
        raise BadPlan("merge_moe takes tokens 'all' or 'routed', and solves around 'zero' or 'mean'.")
    rows, hidden = hidden_rows(statistics, "merge_moe", weights)
    ids = torch.as_tensor(rows.ids)  # (n, k)
    rule = activation_of(weights)

    def merge(centre: int, members: Sequence[int], shares: Sequence[float]) -> Expert:
        averaged = mean_of_group(weights, members, shares, centre=centre, align_to=align_to)
        own = [expert_of(weights, member)._replace(down_bias=None) for member in members]
        if tokens == "all":
            inputs = hidden
            wanted: Tensor = torch.zeros(len(hidden), weights.down.shape[1], device=hidden.device)  # (n, H)
            for expert, share in zip(own, shares, strict=True):
                wanted = wanted + outputs(expert, rule, hidden).to(wanted) * (share / sum(shares))
        else:
            taken = [(ids == member).any(1) for member in members]
            inputs = torch.cat([hidden[mask] for mask in taken])
            wanted = torch.cat([outputs(e, rule, hidden[mask]) for e, mask in zip(own, taken, strict=True)])
        if len(inputs) < FEWEST_ROWS:
            raise BadData(
                f"layer {plan.layer}: merge_moe has {len(inputs)} rows of text for the group of expert {centre} and "
                f"needs {FEWEST_ROWS} at least; collect more with --rows N."
            )
        known = averaged.down if around == "mean" else None
        solved = solve_down(wanted, keys(averaged, rule, inputs), around=known)
        return averaged._replace(down=solved.to(averaged.down))

    return merge_groups(weights, plan, statistics, merge, router=router)
