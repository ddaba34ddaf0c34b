"""Between stored tensors of a layer and `LayerWeights`: stacks, halves, orientation; both ways, exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from moeworks.edit.checkpoint.layout import LayerLayout
from moeworks.edit.checkpoint.names import EXPERT_PARTS, Role
from moeworks.edit.layer import LayerWeights
from moeworks.errors import Unsupported

__all__ = ["pack", "unpack"]

Get = Callable[[str], Tensor]
_VECTORS: dict[Role, str] = {
    "router": "router",
    "router_bias": "router_bias",
    "selection_bias": "selection_bias",
    "expert_scale": "expert_scale",
}


def unpack(layout: LayerLayout, get: Get, *, interleaved: bool) -> LayerWeights:
    """Return the weights of a layer.

    Args:
        layout: where they lie.
        get: reads a tensor by its name.
        interleaved: whether gate and up take turns in the fused projection, and do not lie one after the other.

    Raises:
        Unsupported: the experts are quantised, or the shapes of the projections do not fit one another.
    """
    stored = _stored(layout, get)
    fields: dict[str, Any] = {}
    if "flat_down" in stored:
        for role, name in (("flat_gate", "gate"), ("flat_up", "up"), ("flat_down", "down")):
            flat = stored[role]  # type: ignore[index]
            fields[name] = flat.view(layout.experts, -1, flat.shape[1])  # (E, I, H)
        fields["down"] = fields["down"].transpose(1, 2)
    else:
        down = stored["down"]
        if "fused" in stored:
            turned = _is_turned(layout, stored["fused"], down)
            fused = stored["fused"].transpose(1, 2) if turned else stored["fused"]  # (E, 2 I, H)
            down = down.transpose(1, 2) if turned else down  # (E, H, I)
            fields["gate"], fields["up"] = _halves(fused, interleaved)
        else:
            fields["gate"], fields["up"] = stored.get("gate"), stored["up"]
            if fields["up"].shape[1:] != down.shape[:0:-1]:
                raise Unsupported(f"layer {layout.layer}: the shapes of up and down projection do not fit.")
        fields["down"] = down
        if "fused_bias" in stored:
            fields["gate_bias"], fields["up_bias"] = _halves(stored["fused_bias"], interleaved)
        for name in ("gate_bias", "up_bias", "down_bias"):
            if name in stored:
                fields[name] = stored[name]
    for role, name in _VECTORS.items():
        if role in layout.stacked:
            vector = get(layout.stacked[role])
            fields[name] = (vector if role == "router" else vector.reshape(-1))[: layout.experts]
    return LayerWeights(layer=layout.layer, table=get(layout.table) if layout.table else None, **fields)


def pack(layout: LayerLayout, weights: LayerWeights, get: Get, *, interleaved: bool) -> dict[str, Tensor]:
    """Return the tensors that store these weights, in the layout's own form and dtypes: name → tensor.

    `get` reads the old tensors: their dtype and orientation are kept, and what the router has beyond its experts.
    """
    old = _stored(layout, get, first_only=True)
    roles: dict[Role, Tensor] = {}
    if "flat_down" in old:
        assert weights.gate is not None
        roles["flat_gate"] = weights.gate.flatten(0, 1)  # (E * I, H)
        roles["flat_up"] = weights.up.flatten(0, 1)
        roles["flat_down"] = weights.down.transpose(1, 2).flatten(0, 1)
    else:
        turned = "fused" in old and _is_turned(layout, old["fused"], old["down"])
        roles["down"] = weights.down.transpose(1, 2) if turned else weights.down
        if "fused" in old:
            assert weights.gate is not None
            fused = _joined(weights.gate, weights.up, interleaved)
            roles["fused"] = fused.transpose(1, 2) if turned else fused
        else:
            roles["up"] = weights.up
            if weights.gate is not None:
                roles["gate"] = weights.gate
        if "fused_bias" in old:
            assert weights.gate_bias is not None
            assert weights.up_bias is not None
            roles["fused_bias"] = _joined(weights.gate_bias, weights.up_bias, interleaved)
        for role in ("gate_bias", "up_bias", "down_bias"):
            if role in old:
                roles[role] = getattr(weights, role)
    packed: dict[str, Tensor] = {}
    for role, tensor in roles.items():
        packed |= _stored_as(layout, role, tensor, get)
    for role, field in _VECTORS.items():
        if role in layout.stacked:
            name = layout.stacked[role]
            before = get(name)
            flat = before if role == "router" else before.reshape(-1)
            whole = torch.cat([getattr(weights, field).to(before.dtype), flat[layout.experts :]])
            packed[name] = whole.view(1, -1) if role != "router" and before.ndim == 2 else whole
    if layout.table:
        assert weights.table is not None
        packed[layout.table] = weights.table.to(get(layout.table).dtype)
    return {name: tensor.contiguous() for name, tensor in packed.items()}


def _stored(layout: LayerLayout, get: Get, *, first_only: bool = False) -> dict[Role, Tensor]:
    """Return the projections by role, all experts in one tensor; with `first_only` of one expert, for its form."""
    if layout.side:
        raise Unsupported(_quantised(layout, layout.side[0]))
    stored: dict[Role, Tensor] = {}
    if not layout.numbered:
        for role, name in layout.stacked.items():
            if role not in _VECTORS:
                tensor = get(name)
                flat = role in ("flat_gate", "flat_up", "flat_down")
                stored[role] = tensor if flat else tensor[: layout.experts]
    for part in layout.numbered.get(0, ()):
        experts = range(1 if first_only else layout.experts)
        stored[_role(layout, part)] = torch.stack([get(layout.numbered[e][part]) for e in experts])
    for role, tensor in stored.items():
        if not tensor.is_floating_point() or tensor.itemsize < 2:
            raise Unsupported(_quantised(layout, role))
    return stored


def _role(layout: LayerLayout, part: str) -> Role:
    """Return the role of one expert's tensor, such as `gate_proj.weight`."""
    name, _, kind = part.partition(".")
    role = EXPERT_PARTS.get(name)
    if role is None or kind not in ("weight", "bias"):
        raise Unsupported(_quantised(layout, layout.numbered[0][part]))
    if kind == "weight":
        return role
    biases: Mapping[Role, Role] = {
        "gate": "gate_bias",
        "up": "up_bias",
        "down": "down_bias",
        "fused": "fused_bias",
    }
    return biases[role]


def _quantised(layout: LayerLayout, what: str) -> str:
    return (
        f"the experts of layer {layout.layer} are quantised ({what}), and only whole experts can be cut from them; "
        "take the checkpoint that they were made from, or a plan of the transform 'cut' without neurons."
    )


def _stored_as(layout: LayerLayout, role: Role, tensor: Tensor, get: Get) -> dict[str, Tensor]:
    if not layout.numbered:
        name = layout.stacked[role]
        before = get(name)
        flat = role in ("flat_gate", "flat_up", "flat_down")
        beyond = before[: 0 if flat else len(before)][layout.experts :]
        if len(beyond) and beyond.shape[1:] != tensor.shape[1:]:
            raise Unsupported(f"{name} has rows beyond its experts, which cannot change their width.")
        new = tensor.to(before.dtype)
        return {name: torch.cat([new, beyond]) if len(beyond) else new}
    part = next(part for part in layout.numbered[0] if _role(layout, part) == role)
    dtype = get(layout.numbered[0][part]).dtype
    named = {layout.numbered_name(e, part): one.to(dtype).contiguous() for e, one in enumerate(tensor)}
    for expert, parts in layout.numbered.items():
        if expert >= layout.experts and part in parts:
            kept = get(parts[part])
            if kept.shape != tensor.shape[1:]:
                raise Unsupported(f"{parts[part]} is no expert's and cannot change its width.")
            named[layout.numbered_name(len(tensor) + expert - layout.experts, part)] = kept
    return named


def _is_turned(layout: LayerLayout, fused: Tensor, down: Tensor) -> bool:
    """Whether projections are stored as (E, in, out): (E, H, 2 I) and (E, I, H)."""
    if fused.shape[1:] == (2 * down.shape[2], down.shape[1]):
        return False
    if fused.shape[1:] == (down.shape[2], 2 * down.shape[1]):
        return True
    raise Unsupported(
        f"layer {layout.layer}: the shapes of the fused projection {tuple(fused.shape)} and of the down projection "
        f"{tuple(down.shape)} do not fit one another."
    )


def _halves(fused: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    if interleaved:
        return fused[:, 0::2], fused[:, 1::2]
    half = fused.shape[1] // 2
    return fused[:, :half], fused[:, half:]


def _joined(gate: Tensor, up: Tensor, interleaved: bool) -> Tensor:
    return torch.stack([gate, up], dim=2).flatten(1, 2) if interleaved else torch.cat([gate, up], dim=1)
