"""Other cuts made of a plan: the same ranking at another ratio, and random experts in the same numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from moeworks.artefact import LayerShape
from moeworks.edit.plan import EditPlan, LayerCut
from moeworks.errors import BadPlan

__all__ = ["fewest", "kept_at", "random_cut", "recut"]


def kept_at(experts: int, keep: float, shape: LayerShape) -> int:
    """Return how many experts a share leaves: int(experts * (1 - keep)) go, but never more than the router can spare.

    Where a router chooses among groups, each keeps as many as the others.
    """
    groups = _groups(shape)
    drop = math.floor(round(experts * (1 - keep), 9))
    left = max(experts - drop, fewest(shape))
    return min(experts, math.ceil(left / groups) * groups)


def fewest(shape: LayerShape) -> int:
    """Return the fewest experts with which a router still finds all that it chooses."""
    groups = _groups(shape)
    if groups == 1 or shape.contract is None:
        return shape.top_k
    return groups * math.ceil(shape.top_k / shape.contract.groups_kept)


def recut(plan: EditPlan, keep: float) -> EditPlan:
    """Return the plan's ranking cut at another share, the same share in every layer; protected experts stay.

    Raises:
        BadPlan: the plan ranks no experts, or does more than to drop some.
    """
    if not plan.pure_cut:
        raise BadPlan(f"a plan that merges or thins experts ({plan.method}) cannot be cut at another ratio; plan anew.")
    unranked = [cut.layer for cut in plan.layers if not cut.order]
    if unranked:
        raise BadPlan(
            f"the plan ranks no experts in layers {', '.join(map(str, unranked))}, so only its own cut is known."
        )
    cuts = []
    for cut in plan.layers:
        shape = _shape(plan, cut.layer)
        count, groups = kept_at(cut.experts, keep, shape), _groups(shape)
        protected = {address.expert for address in plan.protected if address.layer == cut.layer}
        ranked = [*(e for e in cut.order if e in protected), *(e for e in cut.order if e not in protected)]
        kept = _first(ranked, count, groups, cut.experts)
        if lost := protected - set(kept):
            raise BadPlan(
                f"layer {cut.layer} would keep {count} experts, fewer than are protected there or in one of its groups "
                f"({', '.join(map(str, sorted(lost)))} would go); keep more."
            )
        cuts.append(cut.model_copy(update={"keep": tuple(sorted(kept))}))
    return _changed(plan, layers=tuple(cuts), keep=keep, budget="uniform")


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
    options = {"seed": seed, "like": plan.method}
    return _changed(plan, layers=tuple(cuts), method="random", options=options, transform="cut", transform_options={})


def _neurons(cut: LayerCut, shape: LayerShape, generator: np.random.Generator) -> tuple[tuple[int, ...], ...]:
    if shape.neurons is None:
        raise BadPlan(f"layer {cut.layer}: how many neurons its experts have is not known, so none can be drawn.")
    neurons, lists = shape.neurons, cut.neurons or ()
    return tuple(tuple(sorted(generator.permutation(neurons)[: len(own)].tolist())) for own in lists)


def _first(ranked: Sequence[int], count: int, groups: int, experts: int) -> list[int]:
    """Return the first `count` experts, the same number of each group of neighbours."""
    size = experts // groups
    return [e for g in range(groups) for e in [e for e in ranked if e // size == g][: count // groups]]


def _groups(shape: LayerShape) -> int:
    return 1 if shape.contract is None else shape.contract.groups


def _shape(plan: EditPlan, layer: int) -> LayerShape:
    if plan.model is None:
        raise BadPlan("the edit plan does not say which model it is for; make it with `moeworks edit plan`.")
    return plan.model.layer(layer)


def _changed(plan: EditPlan, **fields: Any) -> EditPlan:
    """Return a plan with other fields, checked anew; what was measured of the old one does not hold for it."""
    return EditPlan.model_validate({**dict(plan), "evidence": None, "description": "", **fields})
