"""Experts that are never chosen: they fill a layer up to the number that the others have, exactly and for no gain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from moeworks.edit.layer import LayerWeights

__all__ = ["NEVER", "pad"]

NEVER = -1e4  # bias of an expert that is never chosen (edit.md, section 9.5)


def pad(weights: LayerWeights, experts: int, *, groups: Sequence[int] = ()) -> LayerWeights:
    """Return the layer with this many experts: zero weights, zero router rows, and -1e4 as their bias.

    The bias goes on what the router selects by: the selection bias, or the bias of the logits where there is no other.

    Args:
        weights: the layer.
        experts: how many there are to be.
        groups: for routers with groups, the group of each expert; as many are added to each. Without, all at the end.
    """
    missing = experts - weights.experts
    count = len(set(groups)) or 1
    members = list(groups) or [0] * weights.experts
    order: list[int] = []  # old experts, and E for an added one
    for group in sorted(set(members)):
        order += [e for e, own in enumerate(members) if own == group] + [weights.experts] * (missing // count)
    changed: dict[str, Any] = {}
    for name, tensor in weights.per_expert().items():
        fill = 0.0
        if name == "selection_bias" or (name == "router_bias" and weights.selection_bias is None):
            fill = NEVER
        longer = torch.cat([tensor, torch.full_like(tensor[:1], fill)])
        changed[name] = longer[order]
    return replace(weights, **changed, table=_moved(weights, order))


def _moved(weights: LayerWeights, order: Sequence[int]) -> Tensor | None:
    if weights.table is None:
        return None
    place = torch.tensor([order.index(e) for e in range(weights.experts)], dtype=weights.table.dtype)
    return place[weights.table.long()]
