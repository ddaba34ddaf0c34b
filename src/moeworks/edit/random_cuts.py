"""The control of every plan: random experts in the same numbers, in the same layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from moeworks.artefact import LayerShape
from moeworks.edit.plan import EditPlan, LayerCut
from moeworks.errors import BadPlan

__all__ = ["random_cut", "random_cuts"]

TRIES = 20  # draws for each random plan that is to differ from the others


def random_cuts(plan: EditPlan, count: int) -> list[EditPlan]:
    """Return random plans that differ from the plan and from each other; fewer where there are no more."""
    drawn: dict[tuple[LayerCut, ...], EditPlan] = {}
    itself = tuple(LayerCut(layer=c.layer, experts=c.experts, keep=c.keep, neurons=c.neurons) for c in plan.layers)
    for seed in range(count * TRIES):
        if len(drawn) == count:
            break
        control = random_cut(plan, seed=seed)
        if plan.transform != "cut" or control.layers != itself:
            drawn.setdefault(control.layers, control)
    return list(drawn.values())


def random_cut(plan: EditPlan, *, seed: int) -> EditPlan:
    """Return a plan that drops as many random experts in the same layers, or as many random neurons of each expert.

    The control of a merge is a random cut to the same number of experts. Protected experts stay in both, so that the
    control differs in nothing but the choice; where a router chooses among groups, each keeps as many as under the
    plan.
    """
    generator = np.random.default_rng([seed, 6])
    cuts = []
    for cut in plan.layers:
        shape = _shape(plan, cut.layer)
        protected = {address.expert for address in plan.protected if address.layer == cut.layer}
        size = cut.experts // _groups(shape)
        kept: list[int] = []
        for start in range(0, cut.experts, size):
            group = range(start, start + size)
            stay = [expert for expert in group if expert in protected]
            free = [expert for expert in group if expert not in protected]
            count = sum(expert in group for expert in cut.keep)
            kept += [*stay, *generator.permutation(free)[: count - len(stay)].tolist()]
        cuts.append(
            LayerCut(
                layer=cut.layer,
                experts=cut.experts,
                keep=tuple(sorted(kept)),
                neurons=None if cut.neurons is None else _neurons(cut, shape, generator),
            )
        )
    told = {"method": "random", "options": {"seed": seed, "like": plan.method}, "transform": "cut"}
    fresh: dict[str, Any] = {"transform_options": {}, "evidence": None, "description": "", "weakens_safety": False}
    return EditPlan.model_validate({**dict(plan), "layers": tuple(cuts), **told, **fresh})


def _neurons(cut: LayerCut, shape: LayerShape, generator: np.random.Generator) -> tuple[tuple[int, ...], ...]:
    if shape.neurons is None:
        raise BadPlan(f"layer {cut.layer}: how many neurons its experts have is not known, so none can be drawn.")
    neurons, lists = shape.neurons, cut.neurons or ()
    return tuple(tuple(sorted(generator.permutation(neurons)[: len(own)].tolist())) for own in lists)


def _groups(shape: LayerShape) -> int:
    return 1 if shape.contract is None else shape.contract.groups


def _shape(plan: EditPlan, layer: int) -> LayerShape:
    if plan.model is None:
        raise BadPlan("the edit plan does not say which model it is for; make it with `moeworks edit plan`.")
    return plan.model.layer(layer)
