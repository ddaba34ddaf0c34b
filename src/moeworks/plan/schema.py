"""A plan as data: operations on experts, where they apply, which model they are for, and what is known of them.

This one source validates plans, generates their JSON schema and fills the docs page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

from moeworks.address import Address, NeuronAddress, parse_address, parse_neuron
from moeworks.artefact import Header
from moeworks.errors import BadData
from moeworks.plan.evidence import Evidence
from moeworks.plan.gate import Gate
from moeworks.plan.neurons import NUMBERS, Action, Site
from moeworks.where import Where

__all__ = [
    "Add",
    "Demote",
    "ExpertAddress",
    "Mask",
    "NeuronId",
    "Neurons",
    "Operation",
    "Plan",
    "Promote",
    "Provenance",
    "Replay",
    "Scale",
    "TopK",
]


def _address(value: Any) -> Any:
    try:
        return parse_address(value) if isinstance(value, str) else value
    except BadData as error:
        raise ValueError(str(error)) from None  # so that it is named together with the document's other problems


ExpertAddress = Annotated[
    Address,
    BeforeValidator(_address, json_schema_input_type=str),
    PlainSerializer(str, return_type=str),
]


def _neuron(value: Any) -> Any:
    try:
        return parse_neuron(value) if isinstance(value, str) else value
    except BadData as error:
        raise ValueError(str(error)) from None


NeuronId = Annotated[
    NeuronAddress,
    BeforeValidator(_neuron, json_schema_input_type=str),
    PlainSerializer(str, return_type=str),
]
Numbers = float | tuple[float, ...]
Experts = Annotated[tuple[ExpertAddress, ...], Field(min_length=1, description="such as L12.E37")]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Operation(_Frozen):
    model_config = ConfigDict(allow_inf_nan=False)

    where: Where = Field(Where(), description="tokens it applies to, within those of the plan")


class Promote(_Operation):
    """Put the experts at the top: selection scores above the maximum, logits at the maximum + margin."""

    op: Literal["promote"] = "promote"
    experts: Experts
    margin: float = Field(0.01, ge=0, description="logits above the token's largest")


class Demote(_Operation):
    """Put the experts at the bottom: selection scores below the minimum, logits at the minimum - margin."""

    op: Literal["demote"] = "demote"
    experts: Experts
    margin: float = Field(0.01, ge=0, description="logits below the token's smallest")


class Add(_Operation):
    """Add strength × unit to the logits; selection scores and weights follow by the contract."""

    op: Literal["add"] = "add"
    experts: Experts
    strength: float
    unit: Literal["logit", "std", "spread"] = Field(
        "std", description="1, the token's standard deviation over experts, or its maximum - minimum"
    )


class Mask(_Operation):
    """Switch the experts off: before the top-k, so that others take their place, or after it, leaving a gap."""

    op: Literal["mask"] = "mask"
    experts: Experts
    refill: bool = Field(True, description="whether the router picks replacements (logits -inf before top-k)")
    renormalise: bool = Field(
        False, description="without refill: whether the remaining weights grow to the token's former total"
    )


class Scale(_Operation):
    """Multiply the experts' combine weights wherever they are chosen; the choice stays."""

    op: Literal["scale"] = "scale"
    experts: Experts
    factor: float
    renormalise: bool = Field(False, description="whether the token's total weight is kept")


class TopK(_Operation):
    """Let k experts run instead of the model's own number; layers by `where.layer`."""

    op: Literal["top_k"] = "top_k"
    k: int = Field(ge=1)


class Replay(_Operation):
    """Use the decisions of a trace, matched by request and position, in place of the router's own."""

    op: Literal["replay"] = "replay"
    trace: str = Field(description="the trace's folder")
    weights: bool = Field(True, description="replay the weights too, or take them from the router's scores")


class Neurons(_Operation):
    """Change values of neurons inside experts wherever these run; which experts run in the layer stays."""

    op: Literal["neurons"] = "neurons"
    neurons: tuple[NeuronId, ...] = Field(min_length=1, description="such as L3.E5.N17")
    action: Action = Field(
        description="v becomes 0, factor * v, 2 * mean - v, or value; adjust: where v looks like a draw from "
        "(mean, std) rather than from (other_mean, other_std), it is mirrored into the latter"
    )
    site: Site = Field(
        "key", description="pre-activation of the gate or of the up projection, or what the down projection reads"
    )
    factor: Numbers | None = Field(None, description="of `scale`: one number, or one for each neuron")
    value: Numbers | None = Field(None, description="of `clamp`: one number, or one for each neuron")
    mean: Numbers | None = Field(None, description="of `reflect` and `adjust`: one number, or one for each neuron")
    std: Numbers | None = Field(None, description="of `adjust`: deviation about `mean`")
    other_mean: Numbers | None = Field(None, description="of `adjust`: the neuron's mean elsewhere")
    other_std: Numbers | None = Field(None, description="of `adjust`: deviation about `other_mean`")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        needed = NUMBERS[self.action]
        for name in sorted({name for names in NUMBERS.values() for name in names}):
            given = getattr(self, name)
            if (given is None) == (name in needed):
                raise ValueError(f"action '{self.action}' {'needs' if given is None else 'has no'} {name}")
            if isinstance(given, tuple) and len(given) != len(self.neurons):
                raise ValueError(f"{name} has {len(given)} numbers for {len(self.neurons)} neurons")
            if given is not None and name.endswith("std") and min(given if isinstance(given, tuple) else (given,)) <= 0:
                raise ValueError(f"{name} holds a deviation that is not above 0")
        return self

    @property
    def experts(self) -> tuple[Address, ...]:
        """The experts that the neurons belong to, in the order in which they are first named."""
        return tuple(dict.fromkeys(neuron.inside for neuron in self.neurons))

    def numbers(self) -> dict[str, tuple[float, ...]]:
        """Return the action's numbers by name, one for each neuron."""
        given = {name: getattr(self, name) for name in NUMBERS[self.action]}
        return {name: n if isinstance(n, tuple) else (n,) * len(self.neurons) for name, n in given.items()}

    def keep(self, places: Sequence[int]) -> Neurons:
        """Return the operation on the neurons at these places of its list, with their numbers."""
        numbers = {name: getattr(self, name) for name in NUMBERS[self.action]}
        cut = {name: tuple(n[i] for i in places) for name, n in numbers.items() if isinstance(n, tuple)}
        return self.model_copy(update={"neurons": tuple(self.neurons[i] for i in places), **cut})


Operation = Annotated[
    Promote | Demote | Add | Mask | Scale | TopK | Replay | Neurons,
    Field(discriminator="op"),
]


class Provenance(_Frozen):
    """Where a plan's experts come from."""

    method: str = Field("", description="score and policy, by their registered names")
    options: dict[str, Any] = Field(default_factory=dict)
    contrast: str = ""
    against: str = ""
    scores_hash: str = ""
    text_hash: str = ""


class Plan(_Frozen):
    """Operations on experts as a small reviewable document; the empty plan is the identity."""

    header: Header
    description: str = ""
    operations: tuple[Operation, ...] = ()
    where: Where = Field(Where(), description="tokens the whole plan applies to")
    gate: Gate | None = Field(None, description="requests it applies to, decided on their prompts; none: all requests")
    protected: tuple[ExpertAddress, ...] = Field((), description="experts that no operation may turn down")
    allow_protected: bool = Field(False, description="turn protected experts down all the same")
    weakens_safety: bool = Field(False, description="the plan is meant to weaken a safety behaviour")
    provenance: Provenance = Provenance()
    evidence: Evidence | None = None
