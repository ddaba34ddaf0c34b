"""What the vLLM engine cannot do exactly, said before anything runs: one sentence for each part of a plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from moeworks.artefact import ModelIdentity
from moeworks.engines.vllm.spec import MAX_VARIANTS, clauses_of, variants
from moeworks.errors import BadPlan, Unsupported
from moeworks.plan.clauses import narrowed
from moeworks.plan.guards import check
from moeworks.plan.schema import Mask, Neurons, Operation, Plan, Replay, Scale, TopK
from moeworks.where import Where

__all__ = ["MAX_STEPS", "check_plan", "check_request", "refusals"]

MAX_STEPS = 4  # multiplications of weights, one after another, that a token can get


def check_plan(plan: Plan, identity: ModelIdentity) -> None:
    """Refuse a plan that does not fit the model, or that vLLM cannot do exactly.

    Args:
        plan: what is asked for.
        identity: the model as vLLM runs it.

    Raises:
        BadPlan: the plan contradicts itself or the model.
        Unsupported: the vLLM engine cannot do it, with every reason.
    """
    check(plan, identity)
    _refuse(list(dict.fromkeys(refusals(plan, identity))))


def check_request(operations: Sequence[Operation], *, prompt: int, given: int, length: int) -> None:
    """Refuse a checked plan for a request whose tokens it parts into more kinds than the bank has places for.

    Args:
        operations: of a plan that `check_plan` passed, with their whole clauses.
        prompt, given, length: as in `spec.variants`.

    Raises:
        Unsupported: with every reason.
    """
    clauses = clauses_of(operations)
    sets, _ = variants([where for where, _ in clauses], prompt=prompt, given=given, length=length)
    reasons = []
    if len(sets) - 1 > MAX_VARIANTS:
        reasons.append(
            f"its clauses part this request's tokens into {len(sets) - 1} kinds, {MAX_VARIANTS} are possible"
        )
    if any(_steps([clauses[i][1] for i in chosen]) > MAX_STEPS for chosen in sets):
        reasons.append(f"more than {MAX_STEPS} changes of weights, one after another, hold for a token")
    _refuse(reasons)


def _refuse(reasons: Sequence[str]) -> None:
    if reasons:
        raise Unsupported(f"vLLM cannot run this plan: {'; '.join(reasons)}.")


def refusals(plan: Plan, identity: ModelIdentity) -> Iterator[str]:
    """Yield why vLLM cannot do parts of a plan that fits the model."""
    if plan.gate is not None:
        yield "its gate decides on a plain pass over the prompt, which vLLM does not make; leave the gate out"
    try:
        operations = narrowed(plan)
    except BadPlan as error:
        yield str(error)
        return
    for operation in operations:
        if isinstance(operation, Replay):
            yield "replay needs the decisions of a trace at every token; use the transformers engine"
        elif isinstance(operation, Neurons):
            yield "neurons change what is inside experts, which vLLM's kernels do not show; use the transformers engine"
        elif isinstance(operation, TopK):
            yield from _raised(operation, identity)
        for where in (operation.where, operation.where.exclude):
            if where is not None:
                yield from _clause(where)


def _raised(operation: TopK, identity: ModelIdentity) -> Iterator[str]:
    smallest = min(shape.top_k for shape in identity.layers if operation.where.takes_layer(shape.layer))
    if operation.k > smallest:
        yield f"top_k {operation.k} is more than the {smallest} slots that vLLM's kernels have for a token"


def _clause(where: Where) -> Iterator[str]:
    names = [name for name in ("role", "span", "token") if getattr(where, name) is not None]
    names += [f"label {name}" for name in where.labels]
    if names:
        yield f"clauses may name phases and positions, not {', '.join(names)}: a request brings no more than its tokens"


def _steps(groups: Sequence[Sequence[Operation]]) -> int:
    """Return how many multiplications follow one another when these clauses hold at once; like ones are merged."""
    kinds = [
        operation.renormalise
        for group in groups
        for operation in sorted(group, key=lambda o: isinstance(o, Scale))
        if isinstance(operation, Scale) or (isinstance(operation, Mask) and not operation.refill)
    ]
    return sum(1 for _ in groupby(kinds))
