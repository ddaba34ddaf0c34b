"""How a layer is made anew from its old weights and a plan's cut: the registry, and the plain cut."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib import import_module
from typing import Any

import torch

from moeworks.edit.layer import LayerWeights
from moeworks.edit.plan import LayerCut
from moeworks.edit.statistics import LayerStatistics
from moeworks.errors import BadData, BadPlan, did_you_mean
from moeworks.registry import Registry

__all__ = [
    "TRANSFORMS",
    "Transform",
    "cut",
    "keeps_width",
    "needs_statistics",
    "strange_options",
    "transform_keeps_width",
    "transforms_with_statistics",
    "zero_neurons",
]

# (layer, its cut, its statistics or None, **options) → the new layer; a pure function, deterministic.
Transform = Callable[..., LayerWeights]


class _Transforms(Registry[Transform]):
    """The registry, which looks into the rooms whose transforms are their own when it is first asked."""

    def names(self) -> list[str]:
        """Return all known names."""
        _fill()
        return super().names()

    def get(self, name: str) -> Transform:
        """Return the transform called `name`."""
        _fill()
        return super().get(name)


def _fill() -> None:
    for room in ("rescale", "merge", "compress"):
        import_module(f"moeworks.edit.{room}")


TRANSFORMS: Registry[Transform] = _Transforms("transform", "moeworks.transforms")


def needs_statistics(function: Transform) -> Transform:
    """Mark a transform that cannot work without the statistics it was planned from."""
    function.__dict__["needs_statistics"] = True
    return function


def keeps_width(function: Transform) -> Transform:
    """Mark a transform that leaves the width of experts as it is, whatever neurons a plan keeps."""
    function.__dict__["keeps_width"] = True
    return function


def transform_keeps_width(name: str) -> bool:
    """Return whether the transform of this name leaves the width of experts as it is."""
    return bool(TRANSFORMS.get(name).__dict__.get("keeps_width", False))


def strange_options(name: str, options: Iterable[str]) -> str:
    """Return a sentence about options that the transform of this name does not have; empty if there are none.

    Raises:
        MoeworksError: there is no such transform; the nearest name is told.
    """
    known = TRANSFORMS.options(name)
    strange = sorted(set(options) - set(known))
    return f"the transform '{name}' has no option '{strange[0]}'; {did_you_mean(strange[0], known)}" if strange else ""


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


@TRANSFORMS.register("zero_neurons")
@keeps_width
def zero_neurons(
    weights: LayerWeights, plan: LayerCut, statistics: LayerStatistics | None = None, **options: Any
) -> LayerWeights:
    """Drop the experts that are not kept, and set the neurons that are not kept to 0; the width stays.

    For unequal widths, which stock checkpoints cannot express: the function is that of the narrower experts, and
    nothing gets smaller (as in the released script of CAMERA-P, arXiv 2508.02322).

    Raises:
        BadPlan: the cut has groups.
        BadData: the lists do not fit the layer.
    """
    if options:
        raise BadPlan(f"the transform 'zero_neurons' has no options, not '{next(iter(options))}'.")
    if plan.groups is not None and any(len(group) > 1 for group in plan.groups):
        raise BadPlan(f"layer {plan.layer} has groups; name the transform that merges them.")
    kept = weights.select(plan.keep)
    if plan.neurons is None:
        return kept
    if any(neuron < 0 or neuron >= kept.neurons for chosen in plan.neurons for neuron in chosen):
        raise BadData(f"layer {plan.layer} has neurons 0 to {kept.neurons - 1} in each expert.")
    alive = torch.zeros(kept.experts, kept.neurons, dtype=torch.bool, device=kept.up.device)  # (E, I)
    for expert, chosen in enumerate(plan.neurons):
        alive[expert, list(chosen)] = True
    cut: dict[str, Any] = {}
    for name in ("gate", "up", "gate_bias", "up_bias"):
        tensor = getattr(kept, name)
        if tensor is not None:
            cut[name] = torch.where(alive[..., None] if tensor.ndim == 3 else alive, tensor, 0)
    return replace(kept, **cut, down=torch.where(alive[:, None], kept.down, 0))
