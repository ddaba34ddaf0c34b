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
    """Return a layer in which all members of a group have the merged weights and their own router rows, ascending.

    The router keeps the rows, biases and scales of all members, so this is the function that M-SMoE and HC-SMoE
    evaluate (many rows, one expert), which a checkpoint with one row an expert cannot express. It is not smaller. The
    router rows of `merged` are not used; experts that are in no group are gone.

    Args:
        original: the layer before.
        merged: what a transform made of it, one expert for each group.
        plan: of the layer.

    Raises:
        BadPlan: the plan does not fit the layers.
        BadData: a hash table names an expert that goes.
    """
    if (original.layer, original.experts) != (plan.layer, plan.experts) or merged.experts != len(plan.keep):
        raise BadPlan(
            f"layer {plan.layer}: the plan makes {len(plan.keep)} experts of {plan.experts}, the layers given have "
            f"{original.experts} and {merged.experts}."
        )
    groups = plan.groups or tuple(((expert, 1.0),) for expert in plan.keep)
    place = {expert: number for number, group in enumerate(groups) for expert, _ in group}
    members = sorted(place)
    source = torch.tensor([place[expert] for expert in members])  # (members,) place among the merged
    changed: dict[str, Any] = {}
    for name in Expert._fields:
        tensor: Tensor | None = getattr(merged, name)
        if tensor is not None:
            changed[name] = tensor[source.to(tensor.device)]
    return replace(original.select(members), **changed)
