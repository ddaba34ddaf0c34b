"""Double dissociation: do the experts behind one kind of task leave the other kind alone, and the reverse?

Source: as in `moeworks.prove.patching` (arXiv 2510.03366: abstract read, procedure recalled). On half of each task's
documents experts are ranked by their joint patching effect; the first n of each ranking are ablated (their weight is 0
after the choice, nothing takes their place, the others' weights stay) on the other half of both tasks. A 2 × 2 table
of what that costs, with intervals over documents, and beside it what as many random experts of the same layers cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from moeworks.errors import BadData, BadPlan
from moeworks.plan import Mask, Plan, empty_plan, matched_random
from moeworks.plan.evidence import Interval
from moeworks.prove.pairs import Pair, prepare
from moeworks.prove.patching import SMALLEST, can_patch, expert_effects
from moeworks.prove.resample import Resamples, document_numbers

if TYPE_CHECKING:
    from moeworks.engines.base import Engine
    from moeworks.engines.transformers.engine import TransformersEngine

__all__ = ["Cell", "Dissociation", "double_dissociation", "judge_table"]

Array = NDArray[np.float64]
Finding = Literal["double", "single", "none"]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Cell(_Frozen):
    """What one ablation does to one task."""

    ablated: str = Field(description="task whose top experts are off, or random experts in their layers")
    measured: str = Field(description="task that is measured")
    accuracy: Interval = Field(description="change of the share of pairs with logit(correct) > logit(distractor)")
    margin: Interval = Field(description="change of logit(correct) - logit(distractor)")


class Dissociation(_Frozen):
    """Two tasks, their top experts, and what ablating either does to both."""

    tasks: tuple[str, str]
    experts: dict[str, tuple[str, ...]] = Field(description="task to its top experts, strongest first")
    pairs: dict[str, int] = Field(description="task to pairs measured")
    accuracy: dict[str, float] = Field(description="task to accuracy of the plain model on them")
    table: tuple[Cell, ...]
    finding: Finding = Field(description="double: each set costs its own task, and more than the other set does")

    def cell(self, ablated: str, measured: str) -> Cell:
        """Return one cell of the table."""
        return next(cell for cell in self.table if (cell.ablated, cell.measured) == (ablated, measured))


def double_dissociation(
    engine: Engine,
    pairs: Sequence[Pair],
    *,
    tasks: tuple[str, str] | None = None,
    top: int = 5,
    smallest: float = SMALLEST,
    bootstrap: int = 1000,
    batch_size: int = 16,
    seed: int = 0,
) -> Dissociation:
    """Rank experts for two tasks by patching, ablate the top of each, and measure both tasks on other documents.

    Args:
        engine: the model.
        pairs: of both tasks, told apart by `task`; only their clean prompts are measured in the table.
        tasks: the two names; by default those that the pairs have.
        top: experts of each task that are ablated; only those with a positive effect.
        smallest, bootstrap, batch_size: as in `patch`.
        seed: of the halves, of the random experts and of the bootstrap.

    Raises:
        BadData: there are not two tasks, a task has fewer than two documents, or none of its experts has an effect.
        Unsupported: the engine or the family cannot be patched.
    """
    running = can_patch(engine)
    names = tasks or _two_tasks(pairs)
    if top < 1:
        raise BadData(f"{top} experts cannot be ablated; top is 1 or more.")
    halves = {name: _halves([pair for pair in pairs if pair.task == name], name, seed) for name in names}
    chosen: dict[str, Plan] = {}
    for name in names:
        effects = expert_effects(running, halves[name][0], smallest=smallest, batch_size=batch_size)
        ranked = [a for a in sorted(effects, key=lambda a: (-effects[a], a)) if effects[a] > 0][:top]
        if not ranked:
            raise BadData(f"no expert has a positive effect on task '{name}'; there is nothing to ablate.")
        mask = Mask(experts=tuple(ranked), refill=False)
        chosen[name] = empty_plan(running.identity).model_copy(update={"operations": (mask,)})
    plans: dict[str, Plan] = dict(chosen)
    for name in names:
        try:
            plans[f"random, for {name}"] = matched_random(chosen[name], running.identity, seed=seed)
        except BadPlan:
            continue  # a layer has no other experts left: the table then has no such row
    before = {name: _margins(running, halves[name][1], None, batch_size) for name in names}
    table: list[Cell] = []
    for ablated, plan in plans.items():
        for name in names:
            after = _margins(running, halves[name][1], plan, batch_size)
            documents = document_numbers([pair.document for pair in halves[name][1]])
            resamples = Resamples(documents, samples=bootstrap, seed=seed)
            right = (after > 0).astype(np.float64) - (before[name] > 0)
            table.append(
                Cell(
                    ablated=ablated,
                    measured=name,
                    accuracy=resamples.interval(right),
                    margin=resamples.interval(after - before[name]),
                )
            )
    return Dissociation(
        tasks=names,
        experts={name: tuple(map(str, _experts(chosen[name]))) for name in names},
        pairs={name: len(halves[name][1]) for name in names},
        accuracy={name: float((before[name] > 0).mean()) for name in names},
        table=tuple(table),
        finding=judge_table(table, names),
    )


def judge_table(table: Sequence[Cell], tasks: tuple[str, str]) -> Finding:
    """Return `double` if each set of experts costs its own task accuracy, for certain more than the other task.

    That is: the own interval lies below 0 and below the interval of the other task. `single`: for one set only.
    """
    cells = {(cell.ablated, cell.measured): cell.accuracy for cell in table}
    told = 0
    for own, other in (tasks, tasks[::-1]):
        mine, theirs = cells[own, own], cells[own, other]
        told += mine.high < 0 and mine.high < theirs.low
    return ("none", "single", "double")[told]


def _two_tasks(pairs: Sequence[Pair]) -> tuple[str, str]:
    names = list(dict.fromkeys(pair.task for pair in pairs))
    if len(names) != 2:
        shown = ", ".join(f"'{name}'" for name in names)
        raise BadData(f"a double dissociation needs two tasks; the pairs have {len(names)}: {shown}.")
    return names[0], names[1]


def _halves(pairs: Sequence[Pair], name: str, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Return pairs for choosing and pairs for measuring, no document in both."""
    documents = document_numbers([pair.document for pair in pairs]) if pairs else np.zeros(0, np.int64)
    count = int(documents.max(initial=-1)) + 1
    if count < 2:
        raise BadData(f"task '{name}' has {count} documents; one half chooses experts and the other measures them.")
    first = np.random.default_rng([seed, 8]).permutation(count) < count // 2
    chosen = first[documents]
    return (
        [pair for pair, mine in zip(pairs, chosen, strict=True) if mine],
        [pair for pair, mine in zip(pairs, chosen, strict=True) if not mine],
    )


def _experts(plan: Plan) -> tuple[object, ...]:
    (mask,) = plan.operations
    assert isinstance(mask, Mask)
    return mask.experts


def _margins(engine: TransformersEngine, pairs: Sequence[Pair], plan: Plan | None, batch_size: int) -> Array:
    """Return logit(correct) - logit(distractor) after each clean prompt under a plan, (pairs,)."""
    from moeworks.engines.transformers.patch import last_logits

    ready = prepare(engine, pairs)
    order = sorted(range(len(ready)), key=lambda row: len(ready[row].clean.tokens))
    margins = np.empty(len(ready))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        logits = last_logits(engine, [ready[row].clean for row in rows], plan)  # (rows, vocabulary)
        for place, row in enumerate(rows):
            margins[row] = float(logits[place, ready[row].correct] - logits[place, ready[row].distractor])
    return margins
