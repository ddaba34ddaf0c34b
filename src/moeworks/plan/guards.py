"""What a plan must fulfil before an engine runs it: all problems are found and named at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from moeworks.artefact import LayerShape, ModelIdentity
from moeworks.errors import BadPlan
from moeworks.plan.clauses import can_meet, listed, narrow, narrowed, token_part, touches, units
from moeworks.plan.gate import gate_problems
from moeworks.plan.limits import selection_problems
from moeworks.plan.schema import Add, Demote, Mask, Neurons, Operation, Plan, Promote, Replay, Scale, TopK

__all__ = ["check", "expected_touch", "problems"]


def check(plan: Plan, identity: ModelIdentity, *, hash_override: str | None = None) -> None:
    """Refuse a plan that contradicts itself or does not fit the model.

    Args:
        plan: what is to be run.
        identity: the model it is to be run on.
        hash_override: the weight hash that the plan names, to run it on other weights of the same shape all the same.

    Raises:
        BadPlan: with every problem in one message.
    """
    found = problems(plan, identity, hash_override=hash_override)
    if found:
        count = "one problem" if len(found) == 1 else f"{len(found)} problems"
        raise BadPlan(f"the plan cannot run on {identity.name}, {count}: {' '.join(found)}")


def problems(plan: Plan, identity: ModelIdentity, *, hash_override: str | None = None) -> list[str]:
    """Return all that speaks against running the plan on the model, one sentence each."""
    found = _model_problems(plan, identity, hash_override)
    shapes = {shape.layer: shape for shape in identity.layers}
    found += [f"The protected expert {a} does not exist." for a in plan.protected if not _exists(a, shapes)]
    found += [] if plan.gate is None else gate_problems(plan.gate, identity)
    operations: list[Operation] = []
    for number, operation in enumerate(plan.operations, 1):
        place = f"Operation {number} ({operation.op})"
        try:
            operation = narrow(operation, plan.where)
        except BadPlan as error:
            found.append(f"{place}: {error}")
        found += [f"{place}: {problem}" for problem in _operation_problems(operation, plan, shapes)]
        operations.append(operation)
    found += _layer_problems(operations, identity)
    return found


def expected_touch(plan: Plan, identity: ModelIdentity) -> dict[int, tuple[int, ...]]:
    """Return what an engine must touch: layer → listed experts in order, none for `top_k` and `replay` alone.

    An engine that reaches fewer layers or experts than these must raise.
    """
    touched: dict[int, set[int]] = {}
    for operation in narrowed(plan):
        for shape in identity.layers:
            if touches(operation, shape.layer):
                here = {address.expert for address in listed(operation) if address.layer == shape.layer}
                touched.setdefault(shape.layer, set()).update(here)
    return {layer: tuple(sorted(experts)) for layer, experts in sorted(touched.items())}


def _model_problems(plan: Plan, identity: ModelIdentity, hash_override: str | None) -> list[str]:
    model = plan.header.model
    if model is None:
        return ["It does not say which model it is for; start from an empty plan of this model."] * bool(
            plan.operations
        )
    if model.shape != identity.shape:
        return [f"It was made for {_shape(model)}; this is {_shape(identity)}."]
    if model.weight_hash not in (identity.weight_hash, hash_override):
        return [
            f"It was made for weights {model.weight_hash} of {model.name}, these are {identity.weight_hash}; "
            f"if that is meant, name the plan's hash as hash_override='{model.weight_hash}'."
        ]
    return []


def _shape(identity: ModelIdentity) -> str:
    sizes = sorted({(shape.experts, shape.top_k) for shape in identity.layers})
    layers = ", ".join(str(shape.layer) for shape in identity.layers)
    return f"{' and '.join(f'top {k} of {experts}' for experts, k in sizes)} experts in layers {layers}"


def _exists(address: tuple[int, int], shapes: dict[int, LayerShape]) -> bool:
    layer, expert = address
    return layer in shapes and expert < shapes[layer].experts


def _operation_problems(operation: Operation, plan: Plan, shapes: dict[int, LayerShape]) -> Iterator[str]:
    """What is wrong with one operation on its own."""
    known = f"routers are in layers {', '.join(map(str, shapes))}"
    unknown = [layer for layer in operation.where.layer or () if layer not in shapes]
    if unknown:
        yield f"its clause names layers without a router: {', '.join(map(str, unknown))}; {known}."
    if isinstance(operation, (TopK, Replay)):
        if not any(touches(operation, layer) for layer in shapes):
            yield "touches nothing: its clause leaves out every layer."
        return
    experts = operation.experts
    for address in experts:
        if address.layer not in shapes:
            yield f"{address} does not exist; {known}."
        elif not _exists(address, shapes):
            last = shapes[address.layer].experts - 1
            yield f"{address} does not exist; layer {address.layer} has experts 0 to {last}."
    twice = sorted(unit for unit, count in Counter(units(operation)).items() if count > 1)
    if twice:
        yield f"lists {', '.join(map(str, twice))} more than once."
    if isinstance(operation, Neurons):
        yield from _neuron_problems(operation, shapes)
    if not any(operation.where.takes_layer(address.layer) for address in experts):
        yield "touches nothing: its clause leaves out the layers of all its experts."
    if isinstance(operation, Scale) and operation.renormalise and operation.factor < 0:
        yield f"a factor of {operation.factor} cannot keep the token's total weight; leave out renormalise."
    turned_down = set(experts) & set(plan.protected) if _turns_down(operation) else set()
    if turned_down and not plan.allow_protected:
        names = ", ".join(map(str, sorted(turned_down)))
        what = "changes neurons of" if isinstance(operation, Neurons) else "turns down"
        yield f"{what} protected experts: {names}; leave them out, or set allow_protected."


def _neuron_problems(operation: Neurons, shapes: dict[int, LayerShape]) -> Iterator[str]:
    for layer in sorted({neuron.layer for neuron in operation.neurons} & shapes.keys()):
        known = shapes[layer].neurons
        if known is None:
            yield f"how many neurons the experts of layer {layer} have is not known, so that none can be named."
            continue
        beyond = [str(n) for n in operation.neurons if n.layer == layer and n.neuron >= known]
        if beyond:
            yield f"{', '.join(beyond)} does not exist; experts of layer {layer} have neurons 0 to {known - 1}."


def _turns_down(operation: Operation) -> bool:
    match operation:
        case Add():
            return operation.strength < 0
        case Scale():
            return operation.factor < 1
        case Neurons():
            return operation.action != "scale" or min(operation.numbers()["factor"]) < 1
        case _:
            return isinstance(operation, (Demote, Mask))


def _layer_problems(operations: Sequence[Operation], identity: ModelIdentity) -> list[str]:
    """What is wrong in each layer; the same sentence about several layers is said once."""
    layers_of: dict[str, list[int]] = {}
    meeting = _meeting(operations)
    for shape in identity.layers:
        found = list(_possible([operation for operation in operations if touches(operation, shape.layer)], shape))
        for group in meeting:
            found += selection_problems([operations[i] for i in group if touches(operations[i], shape.layer)], shape)
        for problem in dict.fromkeys(found):
            layers_of.setdefault(problem, []).append(shape.layer)
    return [
        f"Layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}: {problem}"
        for problem, layers in layers_of.items()
    ]


def _possible(operations: Sequence[Operation], shape: LayerShape) -> Iterator[str]:
    """What the router itself rules out."""
    if shape.contract is None and not all(isinstance(operation, Neurons) for operation in operations):
        yield f"nothing can be edited, the router has no proved contract ({shape.opaque or 'no reason is given'})."
    elif shape.contract is not None and shape.contract.hashed:
        moves = [
            o.op for o in operations if isinstance(o, (Promote, Demote, Add, TopK)) or (o.op == "mask" and o.refill)
        ]
        if moves:
            kinds = ", ".join(sorted(set(moves)))
            yield f"{kinds} cannot change ids that come from a table of token ids; use scale or mask without refill."
    wider = [o.k for o in operations if isinstance(o, TopK) and o.k > shape.top_k]
    if wider and any(isinstance(o, Replay) for o in operations):
        yield f"a trace with {shape.top_k} slots cannot be replayed beside top_k {max(wider)}."


def _meeting(operations: Sequence[Operation]) -> list[list[int]]:
    """Return the largest sets of operations that may hold for the same token, by their numbers.

    Two clauses meet unless a field keeps them apart; that is exact for pairs. Three that meet in pairs may still never
    meet all together, so that this can only refuse too much (Bron and Kerbosch 1973).
    """
    clauses = {token_part(operation.where).model_dump_json(): token_part(operation.where) for operation in operations}
    members = {
        key: [i for i, operation in enumerate(operations) if token_part(operation.where) == where]
        for key, where in clauses.items()
    }
    neighbours = {
        key: {other for other in clauses if other != key and can_meet(where, clauses[other])}
        for key, where in clauses.items()
    }
    found: list[list[int]] = []

    def grow(chosen: list[str], candidates: set[str], done: set[str]) -> None:
        if not candidates and not done:
            found.append(sorted(i for key in chosen for i in members[key]))
            return
        pivot = max(sorted(candidates | done), key=lambda key: len(neighbours[key] & candidates))
        for key in sorted(candidates - neighbours[pivot]):
            grow([*chosen, key], candidates & neighbours[key], done & neighbours[key])
            candidates, done = candidates - {key}, done | {key}

    if clauses:
        grow([], set(clauses), set())
    return found
