"""The re-trace: whether the experts that a plan lists are in, or out, on the tokens that it names."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import BadData, Unsupported
from moeworks.plan.clauses import narrowed
from moeworks.plan.evidence import Mechanism
from moeworks.plan.schema import Demote, Mask, Operation, Promote, Replay, Scale, TopK
from moeworks.prove.residual_norms import residual_norms

if TYPE_CHECKING:
    from moeworks.engines.base import Engine
    from moeworks.examples import Example
    from moeworks.plan import Plan
    from moeworks.trace import Trace

__all__ = ["check_mechanism"]

GENERATED_TOKENS = 8  # where a plan applies to generated tokens, so many are generated after each text


def check_mechanism(engine: Engine, plan: Plan, texts: Sequence[Example], *, batch_size: int = 8) -> Mechanism:
    """Record some texts without and with the plan and count on how many tokens each listed expert ran.

    Shares are of the tokens that the operation's where clause takes; an expert runs where it has a slot of a weight
    other than 0. Demoted and masked experts, and those scaled by 0, must not run at all; promoted ones on each token.
    Where the plan has a gate, only texts that it opens for are counted.

    Raises:
        BadData: there is no text, or an operation takes none of their tokens.
    """
    if not texts:
        raise BadData("there is no text to record again, so that the plan's mechanism cannot be checked.")
    operations = narrowed(plan)
    generate = GENERATED_TOKENS if any("generated" in (o.where.phase or ()) for o in operations) else 0
    with tempfile.TemporaryDirectory(prefix="moeworks-") as folder:
        plain, steered = (
            engine.record(texts, Path(folder) / name, plan=p, generate=generate, batch_size=batch_size)
            for name, p in (("plain", None), ("steered", plan))
        )
        taken = engine.applies(plan, texts)  # (texts,)
        before: dict[str, float] = {}
        after: dict[str, float] = {}
        as_planned = True
        for number, operation in enumerate(operations, 1):
            if isinstance(operation, (TopK, Replay)):
                continue
            first, second = _shares(plain, operation, taken), _shares(steered, operation, taken)
            for address in operation.experts:
                name = str(address) if str(address) not in before else f"{address} (operation {number})"
                before[name], after[name] = first[str(address)], second[str(address)]
                as_planned &= _as_planned(operation, after[name])
    return Mechanism(
        share_before=before,
        share_after=after,
        as_planned=as_planned,
        residual_growth=_growth(
            engine, plan, [text for text, mine in zip(texts, taken, strict=True) if mine], batch_size
        ),
    )


def _growth(engine: Engine, plan: Plan, texts: Sequence[Example], batch_size: int) -> float | None:
    """Return how much the residual stream grows where weights are scaled up; None where it cannot be measured."""
    if not any(isinstance(operation, Scale) and operation.factor > 1 for operation in plan.operations):
        return None
    try:
        return residual_norms(engine, plan, texts, batch_size=batch_size).growth
    except Unsupported:
        return None


def _shares(trace: Trace, operation: Operation, taken: NDArray[np.bool_]) -> dict[str, float]:
    """Return on what share of the operation's tokens, in the texts that are taken, each of its experts ran."""
    if isinstance(operation, (TopK, Replay)):
        return {}
    every = trace.rows()
    rows = operation.where.mask(every, trace.request_table()) & taken[every.request]
    if not rows.any():
        behind = "" if taken.all() else " behind the plan's gate"
        raise BadData(
            f"'{operation.where}'{behind} takes no token of the texts that were recorded again, so that what "
            f"{operation.op} does there cannot be checked; pass texts that have such tokens."
        )
    shares: dict[str, float] = {}
    for layer in sorted({address.layer for address in operation.experts}):
        ids, weights = trace.ids(layer)[rows], trace.weights(layer)[rows]  # (rows, k)
        ran = np.bincount(ids[weights != 0].astype(np.int64), minlength=trace.header.shape_of(layer).experts)
        shares |= {str(a): float(ran[a.expert] / rows.sum()) for a in operation.experts if a.layer == layer}
    return shares


def _as_planned(operation: Operation, share: float) -> bool:
    match operation:
        case Demote() | Mask() | Scale(factor=0.0):
            return share == 0
        case Promote():
            return share == 1
        case _:
            return True
