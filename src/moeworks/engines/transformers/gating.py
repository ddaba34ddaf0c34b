"""Gates in the transformers engine: one plain pass over each prompt decides, then each batch runs as it must.

A batch in which all requests are on one side of the gate runs once. A mixed batch runs twice, whole, with and without
the plan, and each request takes its own side's result: what the gate leaves alone is then what the plain model gives
for this very batch, to the bit, and what it lets through is what the plan without a gate gives. (Running the sides in
batches of their own would be cheaper, and would change last bits: sums depend on the shape of the batch.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moeworks.engines.gating import prompts_of, routing_rates, ungated
from moeworks.engines.transformers.assemble import rows_of_text
from moeworks.engines.transformers.layout import Batch
from moeworks.engines.transformers.lean import lean
from moeworks.engines.transformers.residual import read_residual
from moeworks.errors import BadPlan, Unsupported
from moeworks.plan.gate import Gate, ResidualGate, opens, projected_opens, reduce_prompt
from moeworks.plan.guards import check

if TYPE_CHECKING:
    from moeworks.engines.transformers.engine import TransformersEngine
    from moeworks.engines.transformers.tap import Tap
    from moeworks.engines.transformers.tokens import Prepared
    from moeworks.plan import Plan

__all__ = ["Passes", "Refusal", "closed", "opened", "sessions"]

Array = NDArray[Any]
Passes = Callable[[Sequence[int]], Iterator[tuple["Tap", list[int]]]]
BATCH = 8  # prompts a pass of the gate


@contextmanager
def sessions(
    engine: TransformersEngine, plan: Plan | None, requests: Sequence[Prepared], **session: Any
) -> Iterator[Passes]:
    """Yield a function from the places of a batch to its runs: a tap, and the rows whose results are of that run.

    Without a gate there is one session for all batches and one run a batch. The function must be used to its end.

    Args:
        engine: the engine.
        plan: with or without a gate; None for that of the block around.
        requests: all requests that will run, in the order that places count in.
        session: further arguments of `TransformersEngine.session`.
    """
    plan = plan or engine.plan
    if plan is None or plan.gate is None:
        with engine.session(plan, **session) as tap:
            yield lambda places: iter([(tap, list(range(len(places))))])
        return
    check(plan, engine.identity)
    inner = engine.without_gate(plan)
    open_for = opened(engine, plan.gate, requests)

    def passes(places: Sequence[int]) -> Iterator[tuple[Tap, list[int]]]:
        taken = [row for row, place in enumerate(places) if open_for[place]]
        left = [row for row, place in enumerate(places) if not open_for[place]]
        for part, rows in ((None, left), (inner, taken)):
            if rows:
                with engine.session(part, plain=part is None, **session) as tap:
                    yield tap, rows

    yield passes


def opened(engine: TransformersEngine, gate: Gate, requests: Sequence[Prepared]) -> NDArray[np.bool_]:
    """Return for which requests a gate opens, (requests,), by one plain pass over their prompts.

    Inside `engine.remembering()` a prompt that was decided on before is not run again.

    Raises:
        BadData: a request has no prompt.
        Unsupported: the layer that a residual gate reads cannot be found.
    """
    prompts = prompts_of(requests)
    known: dict[Any, bool] = {} if engine.plain is None else engine.plain.opened
    name = gate.model_dump_json(exclude={"provenance"})
    new = {prompt.tokens: prompt for prompt in prompts if (name, prompt.tokens) not in known}
    ordered = sorted(new.values(), key=lambda prompt: len(prompt.tokens))
    for start in range(0, len(ordered), BATCH):
        batch = ordered[start : start + BATCH]
        for prompt, is_open in zip(batch, _decide(engine, gate, batch), strict=True):
            known[name, prompt.tokens] = bool(is_open)
    return np.array([known[name, prompt.tokens] for prompt in prompts], bool)


def _decide(engine: TransformersEngine, gate: Gate, prompts: Sequence[Prepared]) -> NDArray[np.bool_]:
    if isinstance(gate, ResidualGate):
        return _decide_on_residual(engine, gate, prompts)
    with engine.session(None, record=True, plain=True) as tap:
        _run(engine, tap, prompts)
        (step,) = tap.steps
        recorded = rows_of_text(step)
    experts = {router.layer: router.experts for router in engine.routers}
    return opens(
        gate,
        routing_rates(step.forward.rows.request, recorded.ids, recorded.weights, experts, len(prompts)),
    )


def _decide_on_residual(
    engine: TransformersEngine, gate: ResidualGate, prompts: Sequence[Prepared]
) -> NDArray[np.bool_]:
    lengths = [len(prompt.tokens) for prompt in prompts]
    values: list[float] = []

    def project(layer: int, hidden: Tensor) -> None:
        if hidden.shape[-1] != len(gate.direction):
            raise Unsupported(
                f"the gate's direction has {len(gate.direction)} dimensions, the residual stream {hidden.shape[-1]}."
            )
        projected = hidden.float().cpu().numpy().astype(np.float64) @ np.asarray(gate.direction)  # (n,)
        values.extend(reduce_prompt(gate, part) for part in np.split(projected, np.cumsum(lengths)[:-1]))

    read_residual(engine, prompts, [gate.layer], project)
    return projected_opens(gate, np.array(values))


def _run(engine: TransformersEngine, tap: Tap, prompts: Sequence[Prepared]) -> Batch:
    batch = Batch(prompts)
    tap.start(batch)
    with torch.inference_mode():
        engine.model(**batch.tensors(engine.pad_token, engine.model.device), **lean(engine.model))
    return batch


class Refusal:
    """Refuses plain calls of the model while a plan with a gate holds: nothing decides for them."""

    paused = False

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        """Raise unless one of the engine's own calls is running."""
        if not self.paused:
            raise Unsupported(
                "the plan that is applied has a gate, which decides request by request; call the engine's generate, "
                "answers, token_scores or record, not the model itself."
            )


@contextmanager
def closed(engine: TransformersEngine, plan: Plan) -> Iterator[None]:
    """Let a plan with a gate hold for the engine's calls inside the block."""
    check(plan, engine.identity)
    if engine.plan is not None:
        raise BadPlan("a plan is applied already; leave its `with` block first, or compose the two plans.")
    refusal = Refusal()
    handle = engine.model.register_forward_pre_hook(refusal)
    engine.enter_gated(plan, ungated(plan), refusal)
    try:
        yield
    finally:
        engine.leave_gated()
        handle.remove()
