"""Other plans made of a plan: another share, another checkpoint, as a mask on a running model, and random controls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moeworks.artefact import ModelIdentity
from moeworks.edit.budgets import BUDGETS, Constraints, proportional, target
from moeworks.edit.plan import EditPlan
from moeworks.edit.random_cuts import random_cut
from moeworks.edit.ranking import first_of
from moeworks.errors import BadPlan
from moeworks.plan.files import plan_header
from moeworks.plan.protected import known_super_experts
from moeworks.plan.schema import Mask, Plan, Provenance

__all__ = ["as_mask", "constraints_of", "random_plans", "reapply", "recut"]

_RULES = ("multiple_of", "expert_parallel", "equal_groups", "uneven")


def constraints_of(plan: EditPlan) -> Constraints:
    """Return the rules that a plan was made under.

    Raises:
        BadPlan: it does not say which model it is for.
    """
    model = _model(plan)
    listed = {cut.layer for cut in plan.layers}
    return Constraints(
        shapes=tuple(shape for shape in model.layers if shape.layer in listed),
        protected=plan.protected,
        whole=tuple(shape for shape in model.layers if shape.layer not in listed),
        **{name: plan.budget_options[name] for name in _RULES if name in plan.budget_options},
    )


def recut(plan: EditPlan, *, keep: float) -> EditPlan:
    """Return the same ranking cut at another share: of two shares the smaller plan is part of the larger one.

    Even budgets are counted anew. Of others the scores are not in the plan, so that counts are shared out in proportion
    to those that it has; the budget at the other share might say something else.

    Raises:
        BadPlan: the plan does more than drop experts, a layer has no order, or a rule is broken at this share.
    """
    if not plan.pure_cut:
        raise BadPlan(
            f"this plan ({plan.method}) merges experts or drops neurons, which another share would do otherwise; make "
            "it again with `moeworks edit plan`."
        )
    unordered = [str(cut.layer) for cut in plan.layers if not cut.order]
    if unordered:
        raise BadPlan(f"the plan ranks no experts in layers {', '.join(unordered)}; make it again with that share.")
    rules = constraints_of(plan)
    if plan.budget in ("uniform", "group_equal"):
        counts = BUDGETS.get(plan.budget)(None, keep, rules)
    else:
        counts = proportional(plan.counts, target(rules, keep), rules)
    rules.check(counts.tolist())
    cuts = []
    for cut, count in zip(plan.layers, counts.tolist(), strict=True):
        kept = first_of(cut.order, count)
        lost = sorted(rules.protected_in(cut.layer) - set(kept))
        if lost:  # an order that was written by hand
            raise BadPlan(
                f"layer {cut.layer}: {', '.join(map(str, lost))} is protected and not among the first {count} of the "
                "order; put protected experts first."
            )
        cuts.append(cut.model_copy(update={"keep": kept}))
    return _changed(plan, layers=tuple(cuts), keep=keep)


def reapply(plan: EditPlan, identity: ModelIdentity) -> EditPlan:
    """Return the plan for another checkpoint of the same shape, such as a fine-tuned one; it names the same experts.

    Whether the experts mean the same there is for `preview` to say; evidence is left behind.

    Raises:
        BadPlan: the other model has another shape, or its known super experts would go.
    """
    model = _model(plan)
    problems = []
    if model.shape != identity.shape:
        problems.append(f"{identity.name} has other layers, experts or experts a token than {model.name}.")
    differ = [
        str(shape.layer)
        for shape, other in zip(model.layers, identity.layers, strict=False)
        if shape.contract is not None and other.contract is not None and shape.contract != other.contract
    ]
    if differ and not problems:
        problems.append(f"Routers of layers {', '.join(differ)} decide by another rule than those of {model.name}.")
    record = known_super_experts(identity.weight_hash)
    gone = set(plan.dropped())
    lost = [str(address) for address in (record.addresses if record else ()) if address in gone]
    if lost:
        problems.append(f"Super experts of {identity.name} would go: {', '.join(lost)}.")
    if problems:
        raise BadPlan(f"this plan cannot be used for {identity.name}: {' '.join(problems)}")
    note = f"Made for {model.name} ({model.weight_hash}), used for {identity.name}. {plan.description}".strip()
    return _changed(plan, header=plan.header.model_copy(update={"model": identity}), description=note)


def as_mask(plan: EditPlan) -> Plan:
    """Return the plan as a mask on the running model: dropped experts' logits are -inf, which equals deleting them.

    Equal to deletion for every rule that a contract describes, softmax without renormalising and selection biases
    included, as long as groups keep equally many.

    Raises:
        BadPlan: the plan merges experts or drops neurons, or its groups are uneven, so that no mask is the same.
    """
    if not plan.pure_cut:
        what = "drops neurons" if any(cut.neurons is not None for cut in plan.layers) else "makes experts of others"
        raise BadPlan(
            f"this plan {what} (method '{plan.method}', transform '{plan.transform}'), and no mask does the same; "
            "preview applies it to the loaded model instead."
        )
    model = _model(plan)
    uneven = []
    for cut in plan.layers:
        shape = model.layer(cut.layer)
        groups = 1 if shape.contract is None else shape.contract.groups
        held = np.bincount(np.array(cut.keep) // (cut.experts // groups), minlength=groups)
        if len(set(held.tolist())) > 1:
            uneven.append(f"Layer {cut.layer} keeps {', '.join(map(str, held))} of its groups.")
    if uneven:
        raise BadPlan(f"groups have to keep equally many, or deleting is no masking: {' '.join(uneven)}")
    gone = tuple(plan.dropped())
    return Plan(
        header=plan_header(model, command=plan.header.command, seed=plan.header.seed, text_hash=plan.header.text_hash),
        description=f"The edit plan as a mask: {len(gone)} experts of {len(plan.layers)} layers are off.",
        operations=(Mask(experts=gone, refill=True),) if gone else (),
        protected=plan.protected,
        provenance=Provenance(method=f"edit, {plan.method}", options=dict(plan.options)),
    )


def random_plans(plan: EditPlan, *, seeds: Sequence[int] = (0, 1, 2)) -> list[EditPlan]:
    """Return controls: as many random experts (or neurons of each expert) in each layer, the same ones protected.

    The control of a merge drops experts at random to the same counts. To be reported beside every plan.

    Raises:
        BadPlan: the plan does not say which model it is for.
    """
    _model(plan)
    return [random_cut(plan, seed=seed) for seed in seeds]


def _model(plan: EditPlan) -> ModelIdentity:
    if plan.model is None:
        raise BadPlan("the edit plan does not say which model it is for; make it with `moeworks edit plan`.")
    return plan.model


def _changed(plan: EditPlan, **fields: Any) -> EditPlan:
    """Return the plan with other fields, validated; evidence of the old one does not hold for it."""
    return EditPlan.model_validate({**dict(plan), "evidence": None, **fields})
