"""Controls of a plan: the same operations on other experts, random ones or the bottom of the ranking."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from moeworks.address import Address, NeuronAddress
from moeworks.artefact import ModelIdentity
from moeworks.errors import BadPlan
from moeworks.plan.clauses import listed
from moeworks.plan.files import plan_hash
from moeworks.plan.guards import check, problems
from moeworks.plan.neurons import OWN
from moeworks.plan.schema import Neurons, Operation, Plan, Provenance, Replay, TopK

if TYPE_CHECKING:
    from moeworks.find import Scores

__all__ = ["bottom_of", "matched_random"]

DRAWS = 200  # before a plan counts as one that random experts cannot take; only groups can make a draw fail


def matched_random(plan: Plan, identity: ModelIdentity, *, seed: int) -> Plan:
    """Return the plan's operations on random others: as many other experts in the same layers, and for operations on
    neurons as many other neurons of the same experts.

    What the plan lists or protects is never drawn. An expert or neuron that several operations list stays one. Other
    neurons of the same experts run on the same tokens: what differs is the neurons alone.

    Raises:
        BadPlan: a layer has too few experts or an expert too few neurons left, the plan itself cannot run on the model,
            or its numbers belong to its own neurons (`reflect` with a mean for each).
    """
    check(plan, identity)
    generator = np.random.default_rng(seed)
    others, neurons = _others(plan, identity), _other_neurons(plan, identity)
    for _ in range(DRAWS):
        swap = {
            address: Address(layer, int(drawn))
            for layer, (here, free) in others.items()
            for address, drawn in zip(here, generator.choice(free, len(here), replace=False), strict=True)
        }
        moved = {
            own: NeuronAddress(*expert, int(drawn))
            for expert, (here, free) in neurons.items()
            for own, drawn in zip(here, generator.choice(free, len(here), replace=False), strict=True)
        }
        control = _on_others(plan, swap, moved, "random", seed=seed)
        if not problems(control, identity):
            return control
    raise BadPlan(f"{DRAWS} draws of random experts did not fit the model's groups; there is no such control.")


def bottom_of(scores: Scores, plan: Plan) -> Plan:
    """Return the plan's operations on the experts with the smallest absolute scores: as many, in the same layers; for
    operations on neurons on the neurons with the smallest scores of the same experts.

    What the plan lists or protects is left out.

    Raises:
        BadPlan: a layer has too few experts with a score left, or an expert too few neurons; its groups do not allow
            it; or the scores are of experts and the plan of neurons, or the reverse.
    """
    model = scores.header.model
    if model is None:
        raise BadPlan("the scores do not say which model they are of; make them again with: moeworks find.")
    check(plan, model)
    layer, expert, score = (np.asarray(scores.table[name].to_numpy()) for name in ("layer", "expert", "score"))
    neurons = _other_neurons(plan, model)
    if "neuron" in scores.table.column_names:
        neuron = np.asarray(scores.table["neuron"].to_numpy())
        rows = zip(layer, expert, neuron, score, strict=True)
        sizes = {NeuronAddress(int(a), int(b), int(c)): abs(float(s)) for a, b, c, s in rows if s == s}
        return _bottom_neurons(plan, model, neurons, sizes)
    if neurons:
        raise BadPlan("the plan lists neurons and the scores are of experts; there is no bottom of their ranking.")
    size = {Address(int(a), int(b)): abs(float(s)) for a, b, s in zip(layer, expert, score, strict=True) if s == s}
    swap: dict[Address, Address] = {}
    for number, (here, free) in _others(plan, model).items():
        ranked = sorted((size[a], a) for a in (Address(number, e) for e in free) if a in size)
        if len(ranked) < len(here):
            raise BadPlan(f"layer {number}: only {len(ranked)} other experts have a score, {len(here)} are needed.")
        swap |= dict(zip(here, (address for _, address in ranked), strict=False))
    control = _on_others(plan, swap, {}, "bottom")
    check(control, model)
    return control


def _bottom_neurons(
    plan: Plan,
    model: ModelIdentity,
    neurons: Mapping[Address, tuple[list[NeuronAddress], list[int]]],
    size: Mapping[NeuronAddress, float],
) -> Plan:
    if any(listed(operation) and not isinstance(operation, Neurons) for operation in plan.operations):
        raise BadPlan("the plan lists experts and the scores are of neurons; there is no bottom of their ranking.")
    moved: dict[NeuronAddress, NeuronAddress] = {}
    for expert, (here, free) in neurons.items():
        ranked = sorted((size[n], n) for n in (NeuronAddress(*expert, number) for number in free) if n in size)
        if len(ranked) < len(here):
            raise BadPlan(f"{expert}: only {len(ranked)} other neurons have a score, {len(here)} are needed.")
        moved |= dict(zip(here, (neuron for _, neuron in ranked), strict=False))
    control = _on_others(plan, {}, moved, "bottom")
    check(control, model)
    return control


def _others(plan: Plan, identity: ModelIdentity) -> dict[int, tuple[list[Address], list[int]]]:
    """Return for each layer the experts that are listed, in the plan's order, and those that may stand for them."""
    listing = [operation for operation in plan.operations if not isinstance(operation, Neurons)]
    experts = list(dict.fromkeys(address for operation in listing for address in listed(operation)))
    if not experts and len(listing) == len(plan.operations):
        raise BadPlan("the plan lists no experts, so that there are no others to compare them with.")
    found: dict[int, tuple[list[Address], list[int]]] = {}
    for layer in sorted({address.layer for address in experts}):
        here = [address for address in experts if address.layer == layer]
        taken = {address.expert for address in (*here, *plan.protected) if address.layer == layer}
        free = [expert for expert in range(identity.layer(layer).experts) if expert not in taken]
        if len(free) < len(here):
            raise BadPlan(f"layer {layer} has {len(free)} other experts left, {len(here)} are needed for a control.")
        found[layer] = here, free
    return found


def _other_neurons(plan: Plan, identity: ModelIdentity) -> dict[Address, tuple[list[NeuronAddress], list[int]]]:
    """Return for each expert its neurons that are listed, in the plan's order, and those that may stand for them."""
    changing = [operation for operation in plan.operations if isinstance(operation, Neurons)]
    for operation in changing:
        own = [name for name in operation.numbers() if name in OWN and isinstance(getattr(operation, name), tuple)]
        if own:
            raise BadPlan(
                f"'{operation.action}' has a {own[0]} for each of its neurons, which other neurons do not share, so "
                "that there is no control of it; with one number for all there is."
            )
    here: dict[Address, list[NeuronAddress]] = {}
    for neuron in dict.fromkeys(neuron for operation in changing for neuron in operation.neurons):
        here.setdefault(neuron.inside, []).append(neuron)
    found: dict[Address, tuple[list[NeuronAddress], list[int]]] = {}
    for expert, listed_here in here.items():
        taken = {neuron.neuron for neuron in listed_here}
        free = [number for number in range(identity.layer(expert.layer).neurons or 0) if number not in taken]
        if len(free) < len(listed_here):
            raise BadPlan(f"{expert} has {len(free)} other neurons left, {len(listed_here)} are needed for a control.")
        found[expert] = listed_here, free
    return found


def _on_others(
    plan: Plan,
    swap: Mapping[Address, Address],
    moved: Mapping[NeuronAddress, NeuronAddress],
    name: str,
    **options: Any,
) -> Plan:
    def swapped(operation: Operation) -> Operation:
        if isinstance(operation, (TopK, Replay)):
            return operation
        if isinstance(operation, Neurons):
            return operation.model_copy(update={"neurons": tuple(moved[neuron] for neuron in operation.neurons)})
        return operation.model_copy(update={"experts": tuple(swap[address] for address in operation.experts)})

    return plan.model_copy(
        update={
            "header": plan.header.model_copy(update={"seed": options.get("seed")}),
            "description": f"Control: {name} {_kinds(plan)} in place of those of plan {plan_hash(plan)}.",
            "operations": tuple(map(swapped, plan.operations)),
            "provenance": Provenance(method=f"control, {name}", options={**options, "of": plan_hash(plan)}),
            "evidence": None,
        }
    )


def _kinds(plan: Plan) -> str:
    listing = [operation for operation in plan.operations if listed(operation)]
    kinds = {"neurons" if isinstance(operation, Neurons) else "experts" for operation in listing}
    return " and ".join(sorted(kinds))
