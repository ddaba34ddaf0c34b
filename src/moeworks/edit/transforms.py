"""How a layer is made anew from its old weights and a plan's cut: the registry, and the plain cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moeworks.edit.layer import LayerWeights
from moeworks.edit.plan import LayerCut
from moeworks.edit.statistics import LayerStatistics
from moeworks.errors import BadPlan
from moeworks.registry import Registry

__all__ = ["TRANSFORMS", "Transform", "cut", "needs_statistics", "transforms_with_statistics"]

# (layer, its cut, its statistics or None, **options) → the new layer; a pure function, deterministic.
Transform = Callable[..., LayerWeights]
TRANSFORMS: Registry[Transform] = Registry("transform", "moeworks.transforms")


def needs_statistics(function: Transform) -> Transform:
    """Mark a transform that cannot work without the statistics it was planned from."""
    function.__dict__["needs_statistics"] = True
    return function


def transforms_with_statistics(name: str) -> bool:
    """Return whether the transform of this name needs statistics."""
    return bool(TRANSFORMS.get(name).__dict__.get("needs_statistics", False))


@TRANSFORMS.register("cut")
def cut(
    weights: LayerWeights, plan: LayerCut, statistics: LayerStatistics | None = None, **options: Any
) -> LayerWeights:
    """Drop the experts that are not kept, then the neurons that are not kept.

    Raises:
        BadPlan: the cut has groups; another transform makes one expert of several.
        BadData: the lists do not fit the layer.
    """
    if options:
        raise BadPlan(f"the transform 'cut' has no options, not '{next(iter(options))}'.")
    if plan.groups is not None and any(len(group) > 1 for group in plan.groups):
        raise BadPlan(f"layer {plan.layer} has groups; name the transform that merges them.")
    kept = weights.select(plan.keep)
    return kept if plan.neurons is None else kept.select_neurons(plan.neurons)
