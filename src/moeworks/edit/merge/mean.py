"""The weighted mean of the experts of a group, as they stand or with their neurons aligned to the centre's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from moeworks.edit.algebra import Expert, activation_of, align, balance, expert_of, mean
from moeworks.edit.layer import LayerWeights
from moeworks.edit.merge.merged import RouterRows, merge_groups
from moeworks.edit.plan import LayerCut
from moeworks.edit.statistics import LayerStatistics
from moeworks.edit.transforms import TRANSFORMS
from moeworks.errors import BadPlan

__all__ = ["Alignment", "aligned_mean", "mean_of_group", "plain_mean"]

Alignment = Literal["none", "neurons"]


@TRANSFORMS.register("mean")
def plain_mean(
    weights: LayerWeights,
    plan: LayerCut,
    statistics: LayerStatistics | None = None,
    *,
    router: RouterRows = "centre",
) -> LayerWeights:
    """Make each group its weighted mean, neuron by neuron as they stand: W = sum f_i W_i / sum f_i.

    Args:
        weights, plan, statistics: the layer, its groups with shares, its statistics.
        router: `centre` keeps the centre's row, `fitted` fits one to the group's softmax mass on kept rows.

    Source: M-SMoE (arXiv 2310.01334), HC-SMoE (arXiv 2410.08589), released code. Both keep all router rows and share
    storage; a stock checkpoint has one row an expert, and biases and scales here are the centre's. `as_copies` makes
    the papers' function.
    """
    return merge_groups(
        weights,
        plan,
        statistics,
        lambda centre, members, shares: mean_of_group(weights, members, shares),
        router=router,
    )


@TRANSFORMS.register("aligned_mean")
def aligned_mean(
    weights: LayerWeights,
    plan: LayerCut,
    statistics: LayerStatistics | None = None,
    *,
    balanced: bool = False,
    router: RouterRows = "centre",
) -> LayerWeights:
    """Make each group its weighted mean after the neurons of every member are put in the order of the centre's.

    Args:
        weights, plan, statistics: the layer, its groups with shares, its statistics.
        balanced: first give each neuron's up row and down column equal length, where the function allows it.
        router: as of `mean`.

    Source: M-SMoE (arXiv 2310.01334): permutation alignment, then the mean. The released code aligns to expert 0 by
    inner products; here, as REAP's re-implementation does, to the group's centre by |U-U'|^2 + |G-G'|^2 + |D-D'|^2.
    Balancing is not in the paper.
    """

    def merge(centre: int, members: Sequence[int], shares: Sequence[float]) -> Expert:
        return mean_of_group(weights, members, shares, centre=centre, align_to="neurons", balanced=balanced)

    return merge_groups(weights, plan, statistics, merge, router=router)


def mean_of_group(
    weights: LayerWeights,
    members: Sequence[int],
    shares: Sequence[float],
    *,
    centre: int | None = None,
    align_to: Alignment = "none",
    balanced: bool = False,
) -> Expert:
    """Return the weighted mean of some experts of a layer, aligned to the centre if asked for."""
    if align_to not in ("none", "neurons"):
        raise BadPlan(f"experts are aligned by 'neurons' or 'none', not '{align_to}'.")
    experts = {member: expert_of(weights, member) for member in members}
    if balanced:
        rule = activation_of(weights)
        experts = {member: balance(expert, rule) for member, expert in experts.items()}
    if align_to == "neurons":
        reference = experts[members[0] if centre is None else centre]
        experts = {m: e if e is reference else align(reference, e) for m, e in experts.items()}
    return mean(list(experts.values()), shares)
