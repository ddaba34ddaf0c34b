"""One layer made anew: the plan's transform, then merged experts copied to their members, then padding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from moeworks.edit.layer import LayerWeights
from moeworks.edit.merge.copies import as_copies
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
            new = as_copies(layer, new, rewrite.cut)
        new = replace(new, table=table)
    if rewrite.padding:
        size = rewrite.layout.experts // groups
        members = [expert // size for expert in rewrite.kept] if groups > 1 else []
        new = pad(new, rewrite.experts, groups=members)
    return new
