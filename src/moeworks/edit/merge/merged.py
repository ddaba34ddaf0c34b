"""What all merging transforms share: one new expert for each group, the router's rows, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from moeworks.edit.algebra import Expert, fitted_rows, with_experts
from moeworks.edit.layer import LayerWeights
from moeworks.edit.plan import LayerCut
from moeworks.edit.statistics import LayerRows, LayerStatistics
from moeworks.errors import BadData, BadPlan

__all__ = ["RouterRows", "check_plan", "hidden_rows", "merge_groups", "need_statistics"]

RouterRows = Literal["centre", "fitted"]
Merge = Callable[[int, Sequence[int], Sequence[float]], Expert]  # (centre, members, shares) → the merged expert


def need_statistics(statistics: LayerStatistics | None, transform: str) -> LayerStatistics:
    """Return the statistics, or say that the transform cannot do without."""
    if statistics is None:
        raise BadData(f"the transform '{transform}' reads statistics; give the ones that the plan was made from.")
    return statistics


def hidden_rows(statistics: LayerStatistics | None, transform: str, weights: LayerWeights) -> tuple[LayerRows, Tensor]:
    """Return the kept rows of text and their hidden states, (n, H) float32, on the device of the weights.

    Raises:
        BadData: there are none; the message says what to collect.
    """
    rows = need_statistics(statistics, transform).rows()
    if not len(rows.hidden):
        raise BadData(f"the transform '{transform}' needs rows of text; collect them with --rows N and score again.")
    return rows, torch.as_tensor(rows.hidden, dtype=torch.float32).to(weights.up.device)


def merge_groups(
    weights: LayerWeights,
    plan: LayerCut,
    statistics: LayerStatistics | None,
    merge: Merge,
    *,
    router: RouterRows = "centre",
) -> LayerWeights:
    """Return the layer with one expert for each group: `merge` of the members, or a lone expert as it is to the bit.

    Router biases, selection biases and scales are those of the centre. With `router="fitted"` the row of a group is
    fitted to its softmax mass on kept rows of text. Experts that are in no group go.

    Raises:
        BadPlan: the plan is for another layer or shape, cuts neurons too, or names an unknown choice.
        BadData: an expert that came out is not finite; statistics are missing.
    """
    check_plan(weights, plan)
    if router not in ("centre", "fitted"):
        raise BadPlan(f"the router's rows are those of the 'centre' or 'fitted', not '{router}'.")
    groups = plan.groups or tuple(((expert, 1.0),) for expert in plan.keep)
    fresh: dict[int, Expert] = {}
    for place, (centre, group) in enumerate(zip(plan.keep, groups, strict=True)):
        if len(group) > 1:
            expert = merge(centre, [e for e, _ in group], [share for _, share in group])
            if not all(bool(torch.isfinite(part).all()) for part in expert if part is not None):
                raise BadData(f"layer {plan.layer}: what experts {[e for e, _ in group]} merge to is not finite.")
            fresh[place] = expert
    merged = with_experts(weights.select(plan.keep), fresh)
    if router == "fitted":
        rows, hidden = hidden_rows(statistics, "router='fitted'", weights)
        members = [[expert for expert, _ in group] for group in groups]
        fitted = fitted_rows(weights, plan.keep, members, hidden, torch.as_tensor(rows.logits))
        merged = replace(merged, router=fitted)
    return merged


def check_plan(weights: LayerWeights, plan: LayerCut) -> None:
    """Raise where a plan of merging does not fit the layer.

    Raises:
        BadPlan: another layer, another number of experts, or neurons that are cut as well.
    """
    if (plan.layer, plan.experts) != (weights.layer, weights.experts):
        raise BadPlan(
            f"the plan is for layer {plan.layer} with {plan.experts} experts, the weights are of layer {weights.layer} "
            f"with {weights.experts}."
        )
    if plan.neurons is not None:
        raise BadPlan(
            f"layer {plan.layer}: experts are merged or neurons are cut, not both in one plan; cut in a second."
        )
