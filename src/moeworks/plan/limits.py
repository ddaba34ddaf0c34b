"""How many experts of a layer may be moved at once, so that a promoted one always runs and a demoted one never does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from moeworks.artefact import LayerShape
from moeworks.contract import Contract
from moeworks.plan.clauses import listed, token_part
from moeworks.plan.schema import Demote, Mask, Neurons, Operation, Promote, Replay, Scale, TopK

__all__ = ["selection_problems"]


def selection_problems(operations: Sequence[Operation], shape: LayerShape) -> Iterator[str]:
    """Yield what is wrong when all of these operations hold for one token in this layer."""
    numbers = {operation.k for operation in operations if isinstance(operation, TopK)}
    fewest, most = min({shape.top_k, *numbers}), max({shape.top_k, *numbers})
    up = _listed([o for o in operations if isinstance(o, Promote)], shape)
    out = _listed([o for o in operations if isinstance(o, Demote) or (isinstance(o, Mask) and o.refill)], shape)
    off = _listed([o for o in operations if isinstance(o, (Demote, Mask))], shape)
    if len(numbers) > 1:
        yield f"top_k {' and '.join(map(str, sorted(numbers)))} may hold for the same token; keep one."
    if most > shape.experts:
        yield f"top_k {most} of {shape.experts} experts is not possible."
    if up & off:
        yield f"experts {_names(up & off)} are promoted and turned down for the same token."
    if len(up) > fewest:
        yield f"{len(up)} experts are promoted ({_names(up)}), {fewest} can run for a token."
    if out and shape.experts - len(out) < most:
        yield f"{len(out)} of {shape.experts} experts are demoted or masked, at most {shape.experts - most} may be."
    if shape.contract is not None and shape.contract.groups > 1:
        yield from _group_problems(up, out, most, shape.contract)
    yield from _replay_problems(operations)
    yield from _neuron_problems(operations, shape)
    reweighing = [o for o in operations if isinstance(o, Scale) or (isinstance(o, Mask) and not o.refill)]
    if len({o.renormalise for o in reweighing}) > 1 and len({str(token_part(o.where)) for o in reweighing}) > 1:
        yield "operations of clauses that may hold for the same token disagree on renormalise; make them agree."


def _group_problems(up: set[int], out: set[int], most: int, contract: Contract) -> Iterator[str]:
    """Groups are chosen first: a promoted expert must bring its own along, and kept ones must have enough left."""
    size = contract.experts // contract.groups
    kept = contract.groups_kept
    promoted = {expert // size for expert in up}
    if len(promoted) > kept:
        yield f"the promoted experts lie in {len(promoted)} groups ({_names(promoted)}), a token keeps {kept}."
    healthy = [len(set(range(group * size, (group + 1) * size)) - out) for group in range(contract.groups)]
    if (out or most > contract.top_k) and sum(sorted(healthy)[:kept]) < most:
        yield (
            f"a token that keeps the {kept} groups with the fewest experts left finds {sum(sorted(healthy)[:kept])} "
            f"experts for {most} slots; demote or mask fewer of one group."
        )
    if contract.group_score == "top_2_sum" and size > 1:
        alone = {g for g in promoted if len({e for e in up if e // size == g}) == 1 and healthy[g] == 1}
        if alone:
            yield (
                f"groups {_names(alone)} are judged by their two best, but all beside the promoted expert are turned "
                "down, so that the group may not be kept; leave one as it is."
            )
    signed = contract.bias or contract.order == "top_k_first" or contract.score == "identity"
    if contract.group_fill == "zero" and signed and (up or out):
        yield (
            "experts outside of the kept groups count as 0 beside selection scores that may be negative, so that what "
            "promote, demote and mask with refill promise cannot be kept; use add, scale, or mask without refill."
        )


def _replay_problems(operations: Sequence[Operation]) -> Iterator[str]:
    replays = [operation for operation in operations if isinstance(operation, Replay)]
    if len({(replay.trace, replay.weights) for replay in replays}) > 1:
        yield "two replays may hold for the same token; keep one."
    others = [
        o.op
        for o in operations
        if not isinstance(o, (Replay, Scale, Neurons)) and not (isinstance(o, Mask) and not o.refill)
    ]
    if replays and others:
        yield f"replay comes instead of every other selection; it cannot hold beside {', '.join(sorted(set(others)))}."


def _neuron_problems(operations: Sequence[Operation], shape: LayerShape) -> Iterator[str]:
    counts = Counter(
        (neuron, o.site)
        for o in operations
        if isinstance(o, Neurons)
        for neuron in set(o.neurons)
        if neuron.layer == shape.layer
    )
    twice = sorted(f"{neuron} ({site})" for (neuron, site), count in counts.items() if count > 1)
    if twice:
        yield f"{', '.join(twice)} is changed by two operations that may hold for the same token; keep one."


def _listed(operations: Sequence[Operation], shape: LayerShape) -> set[int]:
    """Return the experts of this layer that exist; those that do not are reported elsewhere."""
    return {
        address.expert
        for operation in operations
        for address in listed(operation)
        if address.layer == shape.layer and address.expert < shape.experts
    }


def _names(numbers: set[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))
