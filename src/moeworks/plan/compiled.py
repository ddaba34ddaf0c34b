"""A plan as engines want it: one set of dense vectors for each clause and layer, so that a layer costs a few steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeworks.artefact import LayerShape, ModelIdentity
from moeworks.errors import BadPlan
from moeworks.plan.clauses import narrowed, token_part, touches
from moeworks.plan.neurons import NeuronStep
from moeworks.plan.schema import Add, Demote, Mask, Neurons, Operation, Plan, Promote, Replay, Scale, TopK
from moeworks.where import Where

__all__ = ["CompiledEdit", "LayerEdit", "WeightStep", "compile_layer", "compile_plan", "widened"]

Array = NDArray[Any]


class WeightStep(NamedTuple):
    """A multiplication of combine weights after the choice."""

    factor: Array  # (E,) float64; 0 for `mask` without refill, 1 where nothing changes
    renormalise: bool  # whether the token's total weight is kept


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerEdit:
    """All operations of one clause on one layer; what each does is said in `moeworks.plan.operations`."""

    add_logit: Array  # (E,) float64; 0 where nothing is added
    add_std: Array  # (E,) float64, in the token's standard deviations
    add_spread: Array  # (E,) float64, in the token's maximum - minimum
    promote: Array  # (E,) bool
    promote_margin: Array  # (E,) float64; 0 where not promoted
    demote: Array  # (E,) bool
    demote_margin: Array  # (E,) float64; 0 where not demoted
    masked: Array  # (E,) bool: mask with refill
    weight_steps: tuple[WeightStep, ...]  # in this order: masks without refill, then scales
    top_k: int | None  # experts that run instead of the model's k
    replay: Replay | None
    neurons: tuple[NeuronStep, ...] = ()  # what changes inside experts; no part of the decision

    @property
    def adds(self) -> bool:
        """Whether anything is added to the logits."""
        return bool(self.add_logit.any() or self.add_std.any() or self.add_spread.any())

    @property
    def edits_choice(self) -> bool:
        """Whether it can change which experts are chosen, or how many."""
        pinned = self.promote.any() or self.demote.any() or self.masked.any()
        return bool(self.adds or pinned or self.top_k is not None)

    @property
    def edits_decision(self) -> bool:
        """Whether it can change anything that a router decides; else it only reaches inside experts."""
        return bool(self.edits_choice or self.weight_steps or self.replay is not None)


@dataclass(frozen=True, eq=False)
class CompiledEdit:
    """What happens to the tokens of one clause."""

    where: Where  # tokens only; layers are spelled out
    layers: dict[int, LayerEdit]  # global layer number → edit, touched layers only


def compile_layer(operations: Sequence[Operation], layer: int, experts: int) -> LayerEdit | None:
    """Merge operations that hold for the same tokens into one edit of a layer with E `experts`.

    Returns None where no operation touches the layer. Clauses are only asked about layers.

    Raises:
        BadPlan: an expert does not exist, two `top_k` differ, or there are two replays.
    """
    vectors: dict[str, Any] = {
        **{f"add_{unit}": np.zeros(experts) for unit in ("logit", "std", "spread")},
        **{f"{op}_margin": np.zeros(experts) for op in ("promote", "demote")},
        **{name: np.zeros(experts, bool) for name in ("promote", "demote", "masked")},
    }
    masks: list[WeightStep] = []
    scales: list[WeightStep] = []
    inside: list[NeuronStep] = []
    top_k: int | None = None
    replay: Replay | None = None
    touching = [operation for operation in operations if touches(operation, layer)]
    for operation in touching:
        if isinstance(operation, TopK):
            if top_k not in (None, operation.k):
                raise BadPlan(f"layer {layer}: top_k {top_k} and {operation.k} hold for the same tokens; keep one.")
            top_k = operation.k
            continue
        if isinstance(operation, Replay):
            if replay not in (None, operation):
                raise BadPlan(f"layer {layer}: two traces are replayed on the same tokens; keep one.")
            replay = operation
            continue
        listed = [address.expert for address in operation.experts if address.layer == layer]
        if max(listed) >= experts:
            raise BadPlan(f"layer {layer} has experts 0 to {experts - 1}; expert {max(listed)} does not exist.")
        match operation:
            case Add():
                vectors[f"add_{operation.unit}"][listed] += operation.strength
            case Promote() | Demote():
                vectors[operation.op][listed] = True
                vectors[f"{operation.op}_margin"][listed] = operation.margin
            case Mask(refill=True):
                vectors["masked"][listed] = True
            case Mask():
                _multiply(masks, listed, 0.0, experts, operation.renormalise)
            case Scale():
                _multiply(scales, listed, operation.factor, experts, operation.renormalise)
            case Neurons():
                inside += _steps(operation, layer)
    if not touching:
        return None
    return LayerEdit(**vectors, weight_steps=(*masks, *scales), top_k=top_k, replay=replay, neurons=tuple(inside))


def _steps(operation: Neurons, layer: int) -> list[NeuronStep]:
    """Return the operation's steps in one layer, one for each expert."""
    numbers = {name: np.asarray(values, np.float64) for name, values in operation.numbers().items()}  # (s,) each
    places: dict[int, list[int]] = {}
    for place, neuron in enumerate(operation.neurons):
        if neuron.layer == layer:
            places.setdefault(neuron.expert, []).append(place)
    return [
        NeuronStep(
            expert=expert,
            site=operation.site,
            action=operation.action,
            neurons=np.array([operation.neurons[place].neuron for place in here], np.int64),
            numbers={name: values[here] for name, values in numbers.items()},
        )
        for expert, here in places.items()
    ]


def _multiply(steps: list[WeightStep], listed: list[int], factor: float, experts: int, renormalise: bool) -> None:
    """Enter a factor: into the last step if that treats the total the same way, else as a new step."""
    if not steps or steps[-1].renormalise != renormalise:
        steps.append(WeightStep(np.ones(experts), renormalise))
    steps[-1].factor[listed] *= factor


def compile_plan(plan: Plan, identity: ModelIdentity) -> list[CompiledEdit]:
    """Merge a checked plan's operations by the tokens they hold for.

    A token that several clauses take gets all their edits as if from one list; `moeworks.plan.operations` says in which
    order.
    """
    by_clause: dict[str, tuple[Where, list[Operation]]] = {}
    for operation in narrowed(plan):
        tokens = token_part(operation.where)
        by_clause.setdefault(tokens.model_dump_json(), (tokens, []))[1].append(operation)
    compiled: list[CompiledEdit] = []
    for where, operations in by_clause.values():
        edits = {shape.layer: compile_layer(operations, shape.layer, shape.experts) for shape in identity.layers}
        compiled.append(CompiledEdit(where, {layer: edit for layer, edit in edits.items() if edit is not None}))
    return compiled


def widened(identity: ModelIdentity, edits: Sequence[CompiledEdit]) -> ModelIdentity:
    """Return the identity with as many slots a token as the edits let experts run."""

    def widen(shape: LayerShape) -> LayerShape:
        wanted = [edit.layers[shape.layer].top_k or 0 for edit in edits if shape.layer in edit.layers]
        return shape.model_copy(update={"top_k": max([shape.top_k, *wanted])})

    return identity.model_copy(update={"layers": tuple(map(widen, identity.layers))})
