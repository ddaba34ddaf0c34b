"""From scores of neurons to a plan that changes the strongest of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moeworks.address import Address, NeuronAddress
from moeworks.errors import BadData, BadPlan
from moeworks.plan.files import plan_header
from moeworks.plan.guards import check
from moeworks.plan.neurons import Action, Site
from moeworks.plan.protected import Protect, protection
from moeworks.plan.schema import Neurons, Plan, Provenance
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.find import Scores

__all__ = ["steer_neurons"]


def steer_neurons(
    scores: Scores,
    neurons: int,
    *,
    action: Action = "zero",
    site: Site | None = None,
    only_passing: bool = True,
    where: Where | str = Where(),
    protect: Protect = "super",
    weakens_safety: bool = False,
    command: str = "",
    **numbers: Any,
) -> Plan:
    """Return a plan that changes the neurons with the largest scores, in rank order.

    Args:
        scores: of neurons, from `find_in_model`.
        neurons: how many.
        action: `zero` (GateBreaker's removal, CULNIG's suppression), `scale` with `factor` (CULNIG's enhancement is 2),
            `reflect` with `mean`, or `clamp` with `value`. For `adjust` see `moeworks.find.inside.adjust_plan`.
        site: gate, up or key; by default the one that the scores are of.
        only_passing: only neurons that pass the method's test. Methods without one need False.
        where: tokens that the plan applies to.
        protect: experts whose neurons are left alone: the model's known super experts, none, or these.
        weakens_safety: says that the plan is meant to weaken a safety behaviour.
        command: how this was asked for, for the header.
        **numbers: of the action, such as `factor=2.0`.

    Raises:
        BadData: the scores are of experts, or of no known model.
        BadPlan: fewer neurons are eligible than asked for, or the plan does not fit the model.
    """
    model = scores.header.model
    if scores.unit != "neuron" or model is None:
        raise BadData("neurons are changed by scores of neurons of a known model; for experts take `steer`.")
    if neurons < 1:
        raise BadData(f"say how many neurons to change, at least 1, not {neurons}.")
    spared, how = protection(model, protect)
    rows = scores.top(scores.table.num_rows, passing=only_passing).to_pylist()
    kept = [row for row in rows if Address(row["layer"], row["expert"]) not in set(spared)][:neurons]
    if len(kept) < neurons:
        hint = (
            f"{scores.header.method} makes no test, so that none passes; only_passing=False takes them by rank"
            if only_passing and scores.header.null == "none"
            else "ask for fewer, or for those that do not pass (only_passing=False)"
            if only_passing
            else "ask for fewer"
        )
        raise BadPlan(f"{neurons} neurons were asked for, {len(kept)} are eligible; {hint}.")
    place: Any = site or scores.header.options.get("site", "key")
    try:
        operation = Neurons(
            neurons=tuple(NeuronAddress(row["layer"], row["expert"], row["neuron"]) for row in kept),
            action=action,
            site=place,
            **numbers,
        )
    except ValueError as error:
        raise BadPlan(f"this change of neurons is not possible: {error}") from None
    plan = Plan(
        header=plan_header(model, command=command, text_hash=scores.header.text_hash),
        description=(
            f"Change the {neurons} neurons that set '{scores.header.contrast}' apart from '{scores.header.against}' "
            f"most ({action} on the {place})."
        ),
        operations=(operation,),
        where=Where.parse(where) if isinstance(where, str) else where,
        protected=tuple(sorted(spared)),
        weakens_safety=weakens_safety,
        provenance=Provenance(
            method=scores.header.method,
            options={"neurons": neurons, "action": action, "site": place, "only_passing": only_passing, "protect": how},
            contrast=scores.header.contrast,
            against=scores.header.against,
            scores_hash=scores.header.hash,
            text_hash=scores.header.text_hash,
        ),
    )
    check(plan, model)
    return plan
