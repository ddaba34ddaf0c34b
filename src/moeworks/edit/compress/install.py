"""Puts compressed experts into a loaded model, in place of its experts modules."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from moeworks.edit.compress.experts import CompressedExperts, module_of
from moeworks.edit.compress.factors import Factors
from moeworks.edit.layer import Activation
from moeworks.errors import BadData, Unsupported
from moeworks.families.declarations import declared_routers

__all__ = ["experts_place", "install", "install_all", "plain_rule"]


def install(model: nn.Module, layer: int, factors: Factors) -> CompressedExperts:
    """Replace the experts of one layer of a loaded model by compressed ones and return their module.

    The router stays; it calls the new module with its own ids and weights. The old weights are freed once nothing else
    holds them.

    Raises:
        BadData: there is no such layer, or the factors are of another shape.
        Unsupported: its experts cannot be replaced; the message says why.
    """
    return install_all(model, {layer: factors})[layer]


def install_all(model: nn.Module, factors: Mapping[int, Factors]) -> dict[int, CompressedExperts]:
    """Do what `install` does for several layers; nothing is replaced unless all can be."""
    places = {layer: experts_place(model, layer) for layer in factors}
    modules: dict[int, CompressedExperts] = {}
    for layer, found in factors.items():
        old = places[layer][1]
        _check_shape(old, found, layer)
        module = module_of(found, plain_rule(old, layer))
        parameter = next(old.parameters())
        modules[layer] = module if parameter.device.type == "meta" else module.to(parameter.device)
    for layer, module in modules.items():
        holder, old = places[layer]
        module.train(old.training)
        holder.experts = module
    return modules


def experts_place(model: nn.Module, layer: int) -> tuple[nn.Module, nn.Module]:
    """Return (holder, experts module) of a layer.

    Raises:
        BadData: the model has no router in this layer.
        Unsupported: its experts are no module of their own.
    """
    declared, _ = declared_routers(model)
    place = next((place for place in declared if place.layer == layer), None)
    if place is None:
        known = ", ".join(str(place.layer) for place in declared) or "none"
        raise BadData(f"layer {layer} of this model has no router; layers with routers: {known}.")
    experts = getattr(place.holder, "experts", None)
    if not isinstance(experts, nn.Module):
        raise Unsupported(f"the experts of layer {layer} are no module of their own, so that none can stand in for it.")
    return place.holder, experts


def plain_rule(experts: nn.Module, layer: int) -> Activation:
    """Return the activation rule of an experts module without holding on to the module.

    Raises:
        Unsupported: the module computes by a rule of its own (gpt-oss and a few others).
    """
    from transformers.integrations import moe

    own = getattr(type(experts), "_apply_gate", None)
    normed = getattr(experts, "has_post_expert_norm", False)
    activation = getattr(experts, "act_fn", None)
    if not callable(activation) or normed or own not in (None, getattr(moe, "_default_apply_gate", None)):
        raise Unsupported(
            f"the experts of layer {layer} ({type(experts).__name__}) compute by a rule of their own, which compressed "
            "experts do not know; write the factors multiplied out instead."
        )

    def rule(gate: Tensor | None, up: Tensor) -> Tensor:
        result = activation(up) if gate is None else activation(gate) * up
        assert isinstance(result, Tensor)
        return result

    return rule


def _check_shape(old: nn.Module, factors: Factors, layer: int) -> None:
    down = getattr(old, "down_proj", None)
    if not isinstance(down, Tensor) or down.ndim != 3:
        raise Unsupported(f"the experts of layer {layer} ({type(old).__name__}) hold no stacked down projection.")
    shape = (factors.experts, factors.hidden, factors.neurons)
    if factors.layer != layer or tuple(down.shape) not in (shape, (shape[0], shape[2], shape[1])):
        raise BadData(
            f"factors of layer {factors.layer} with (experts, hidden, neurons) {shape} do not fit layer {layer} "
            f"with {tuple(down.shape)}."
        )
