"""One layer made anew: the plan's transform, then merged experts copied to their members, then padding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from moeworks.edit.layer import LayerWeights
from moeworks.edit.padding import pad
from moeworks.edit.plan import EditPlan
from moeworks.edit.rewrite import Options, Rewrite, merges
from moeworks.edit.tables import replace_in_table
from moeworks.edit.transforms import TRANSFORMS

__all__ = ["new_layer"]


def new_layer(
    layer: LayerWeights, rewrite: Rewrite, plan: EditPlan, options: Options, statistics: Any, *, groups: int = 1
) -> LayerWeights:
    """Return what a plan makes of a layer.

    Args:
        layer: its weights.
        rewrite: what becomes of it.
        plan: names the transform and its options.
        options: how merged experts are written down.
        statistics: with `.layer(number)`, for transforms that need them; else None.
        groups: groups of the router.
    """
    new = layer
    if rewrite.cut is not None:
        if layer.table is not None:
            table = replace_in_table(
                layer.table, layer.router, rewrite.kept, replace=options.tables == "replace", layer=layer.layer
            )
            layer = replace(layer, table=None)
        else:
            table = None
        seen = None if statistics is None else statistics.layer(layer.layer)
        function = TRANSFORMS.get(plan.transform)
        new = function(layer, rewrite.cut, seen, **plan.transform_options)
        if options.layout == "copies" and merges(rewrite.cut):
            new = _copied(layer, new, rewrite)
        new = replace(new, table=table)
    if rewrite.padding:
        size = rewrite.layout.experts // groups
        members = [expert // size for expert in rewrite.kept] if groups > 1 else []
        new = pad(new, rewrite.experts, groups=members)
    return new


def _copied(old: LayerWeights, merged: LayerWeights, rewrite: Rewrite) -> LayerWeights:
    """Return all members of the groups with their own router rows and the weights of their group's merged expert."""
    assert rewrite.cut is not None
    assert rewrite.cut.groups is not None
    group_of = {expert: i for i, group in enumerate(rewrite.cut.groups) for expert, _ in group}
    index = torch.tensor([group_of[expert] for expert in rewrite.kept])
    changed: dict[str, Any] = {}
    for name, tensor in old.per_expert().items():
        router = name in ("router", "router_bias", "selection_bias", "expert_scale")
        changed[name] = tensor[list(rewrite.kept)] if router else getattr(merged, name)[index]
    return replace(old, **changed)
