"""The other way to write a merged layer: every member keeps its router row and gets the merged weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from moeworks.edit.algebra.neurons import Expert
from moeworks.edit.layer import LayerWeights
from moeworks.edit.plan import LayerCut
from moeworks.errors import BadPlan

__all__ = ["as_copies"]


def as_copies(original: LayerWeights, merged: LayerWeights, plan: LayerCut) -> LayerWeights:
    """Return a layer of as many experts as before, in which all members of a group have the merged weights.

    The router is the original's with all its rows, biases, scales and hash table, so this is the function that M-SMoE
    and HC-SMoE evaluate (many rows, one expert), which a checkpoint with one row an expert cannot express. It is not
    smaller. The router rows of `merged` are not used.

    Args:
        original: the layer before.
        merged: what a transform made of it, one expert for each group.
        plan: of the layer.

    Raises:
        BadPlan: the plan does not fit the layers, or an expert is in no group, so that it has no weights to get.
    """
    problems = []
    if (original.layer, original.experts) != (plan.layer, plan.experts) or merged.experts != len(plan.keep):
        problems.append(
            f"layer {plan.layer}: the plan makes {len(plan.keep)} experts of {plan.experts}, the layers given have "
            f"{original.experts} and {merged.experts}"
        )
    if plan.dropped:
        problems.append(
            f"layer {plan.layer}: experts {', '.join(map(str, plan.dropped))} are in no group and would have no "
            "weights; layout 'copies' is for methods that merge all experts, take 'rows'"
        )
    if problems:
        raise BadPlan("; ".join(problems) + ".")
    groups = plan.groups or tuple(((expert, 1.0),) for expert in plan.keep)
    source = torch.zeros(original.experts, dtype=torch.long)  # (E,) place among the merged
    for place, group in enumerate(groups):
        source[[expert for expert, _ in group]] = place
    changed: dict[str, Any] = {}
    for name in Expert._fields:
        tensor: Tensor | None = getattr(merged, name)
        if tensor is not None:
            changed[name] = tensor[source.to(tensor.device)]
    return replace(original, **changed)
