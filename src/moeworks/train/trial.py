"""One training of one expert and its router, with what it did to the texts: the target's, and that of the control."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from moeworks.address import Address
from moeworks.engines.transformers.tokens import Prepared
from moeworks.errors import BadData
from moeworks.families.expert_weights import expert_weights
from moeworks.train.affinity import overlap
from moeworks.train.batches import Texts
from moeworks.train.loop import Optimisation, fit
from moeworks.train.measure import Measured, anchorable, measure
from moeworks.train.objective import Objective, Weights
from moeworks.train.report import Figures, Outcome, TargetReport
from moeworks.train.slices import Trained, expert_parts, router_parts
from moeworks.train.state import State, save_state

if TYPE_CHECKING:
    from moeworks.engines.transformers.engine import TransformersEngine

__all__ = ["Run", "random_other", "train_expert", "trained_of"]

Stage = Literal["control", "target"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What both trainings, of the target and of the control, share."""

    engine: TransformersEngine
    forget: Texts
    retain: Texts
    measured: dict[str, list[Prepared]]  # the texts that are measured, by the report's names
    weights: Weights
    optimisation: Optimisation
    settings: str
    state: Path | None
    save_every: int
    progress: bool


def trained_of(engine: TransformersEngine, address: Address) -> Trained:
    """Return what is trained for one expert: its weights and the router of its layer.

    Raises:
        BadData: there is no such expert, or its router cannot be trained.
    """
    routers = anchorable(engine)
    if address.layer not in routers:
        known = ", ".join(map(str, routers))
        raise BadData(f"layer {address.layer} has no router that could be trained; layers that have: {known}.")
    router = routers[address.layer]
    return Trained(engine.model, [*expert_parts(router, address.expert), *router_parts(router)])


def random_other(engine: TransformersEngine, address: Address, seed: int) -> Address:
    """Return another expert of the same layer, drawn by the seed."""
    count = expert_weights(anchorable(engine)[address.layer]).experts
    if count < 2:
        raise BadData(
            f"layer {address.layer} has a single expert, so there is no other to compare with (--no-control)."
        )
    drawn = int(np.random.default_rng([seed, 4]).integers(count - 1))
    return Address(address.layer, drawn + (drawn >= address.expert))


def train_expert(
    run: Run,
    trained: Trained,
    address: Address,
    stage: Stage,
    before: dict[str, Measured],
    resumed: State | None,
    control: Outcome | None,
    *,
    keep: bool = False,
    target: TargetReport | None = None,
) -> Outcome:
    """Train one expert and measure; the model keeps the result only if it is to and nothing went wrong."""
    router = anchorable(run.engine)[address.layer]
    objective = Objective(
        run.engine, router, address.expert, trained, run.forget.training, run.retain.training, run.weights
    )
    carried = {} if control is None else {"control": control.model_dump_json()}

    def save(done: int, history: list[dict[str, float]], tensors: dict[str, Any]) -> None:
        if run.state is not None:
            save_state(run.state, State(run.settings, stage, done, history, carried, tensors))

    finished = False
    try:
        objective.prepare(run.optimisation.steps)
        with run.engine.session(None, record=False, plain=True):
            history = fit(
                trained,
                objective.step,
                run.optimisation,
                what=f"{address} ({stage})",
                resumed=resumed if resumed is not None and resumed.stage == stage else None,
                save=save,
                save_every=run.save_every,
                progress=run.progress,
            )
        after = {
            name: measure(run.engine, requests, batch_size=run.weights.batch_size)
            for name, requests in run.measured.items()
        }
        finished = True
    finally:
        if not (keep and finished):
            trained.restore()
    known = target or TargetReport(expert=str(address), chosen="random")
    places: dict[str, Any] = {}
    for when, state in (("before", before), ("after", after)):
        affinity = state["forget"].affinity
        places |= {f"rank_{when}": affinity.rank(address), f"affinity_{when}": affinity.of(address)}
    return Outcome(
        target=known.model_copy(update=places),
        overlap_forget=_overlaps(before["forget"], after["forget"]),
        overlap_retain=_overlaps(before["retain"], after["retain"]),
        history=history,
        **{name: (_figures(before[name]), _figures(after[name])) for name in before},
    )


def _overlaps(before: Measured, after: Measured) -> dict[int, float]:
    return {layer: float(overlap(ids, after.ids[layer]).mean()) for layer, ids in before.ids.items()}


def _figures(measured: Measured) -> Figures:
    return Figures(**measured.quality._asdict())
