"""The two sides of a comparison: an engine as it is, or inside a block that changes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from moeworks.edit.plan import EditPlan
from moeworks.engines.transformers.engine import TransformersEngine
from moeworks.engines.transformers.text import check_options, run_generation
from moeworks.engines.transformers.tokens import Prepared
from moeworks.errors import BadData, Unsupported

if TYPE_CHECKING:
    from moeworks.edit.statistics_file import Statistics
    from moeworks.engines.base import Engine
    from moeworks.plan import Plan

__all__ = ["Side", "run_logits", "side_of", "under", "write_answers"]


@dataclass(frozen=True, eq=False)
class Side:
    """An engine and the block in which it is run.

    Attributes:
        engine: holds the model.
        name: for people.
        running: makes the block; inside it, the engine's model is the one that is meant.
    """

    engine: TransformersEngine
    name: str
    running: Callable[[], AbstractContextManager[object]] = field(default=nullcontext)


def side_of(engine: Engine | Side) -> Side:
    """Return an engine as it is.

    Raises:
        Unsupported: it holds no torch model, whose logits are compared.
        BadData: a plan is applied already.
    """
    if isinstance(engine, Side):
        return engine
    if not isinstance(engine, TransformersEngine):
        raise Unsupported(
            "models are compared by their logits, which only the transformers engine shows; load with it."
        )
    if engine.plan is not None:
        raise BadData("a plan is applied to this engine; leave its `with steered(…)` block first.")
    return Side(engine, engine.identity.name)


def under(engine: Engine, plan: Plan | EditPlan, statistics: Statistics | None = None, *, name: str = "") -> Side:
    """Return an engine under a plan; nothing is written, and the model is as it was outside of the block.

    A pure cut runs as a mask: logits of the dropped experts at minus infinity before the router's softmax or sigmoid,
    which is the same function as the smaller checkpoint. Anything else runs with its new weights in memory.

    Args:
        engine: holds the model.
        plan: a plan, or an edit plan.
        statistics: those that an edit plan was made from, if its transform needs them.
        name: of the side.
    """
    engine = side_of(engine).engine
    if not isinstance(plan, EditPlan):
        return Side(engine, name or "the plan", lambda: engine.steered(plan))
    if plan.pure_cut:
        from moeworks.edit.replan import as_mask

        mask = as_mask(plan)
        return Side(engine, name or plan.method, lambda: engine.steered(mask))
    from moeworks.edit.in_memory import edited

    return Side(engine, name or plan.method, lambda: edited(engine, plan, statistics))


def run_logits(side: Side, requests: Sequence[Prepared]) -> list[torch.Tensor]:
    """Return the logits of each request, (tokens, V) in the model's own dtype; the block must be open."""
    from moeworks.engines.transformers.layout import Batch

    engine = side.engine
    with torch.inference_mode():
        inputs = Batch(requests).tensors(engine.pad_token, engine.model.device)
        logits = engine.model(**inputs, use_cache=False).logits  # (b, w, V)
    return [logits[row, : len(request.tokens)] for row, request in enumerate(requests)]


def write_answers(
    side: Side, prompts: Sequence[Prepared], new_tokens: int, *, temperature: float, batch_size: int, seed: int
) -> list[Prepared]:
    """Return the prompts with what the side generates after them; of phase prompt stays what was given.

    Args:
        side: writes.
        prompts: requests that leave room for `new_tokens`.
        new_tokens: at most so many each.
        temperature: 0 is greedy.
        batch_size: prompts a batch.
        seed: of sampling.
    """
    options = {"do_sample": True, "temperature": temperature} if temperature > 0 else {}
    check_options(options)
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place].tokens))
    written: dict[int, Prepared] = {}
    with side.running(), side.engine.session(None, record=False) as tap:
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            batch = [prompts[place] for place in places]
            run = run_generation(side.engine, tap, batch, new_tokens, seed + start, options)
            for place, tokens in zip(places, run.generated, strict=True):
                given = prompts[place]
                written[place] = replace(given, tokens=(*given.tokens, *tokens), prompt_tokens=len(given.tokens))
    return [written[place] for place in range(len(prompts))]
