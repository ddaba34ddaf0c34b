"""An edit plan as data: which experts of each layer stay, what becomes of the others, and for which model that is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from moeworks.address import Address
from moeworks.artefact import Header, ModelIdentity
from moeworks.plan.schema import ExpertAddress

__all__ = ["FORMAT", "VERSION", "EditPlan", "LayerCut", "Share"]

FORMAT = "moeworks.edit"
VERSION = 1

Share = tuple[int, float]  # (source expert, its weight in the merged one)


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LayerCut(_Frozen):
    """What becomes of one layer: the i-th kept expert becomes expert i of the new layer."""

    layer: int = Field(ge=0, description="global layer number")
    experts: int = Field(ge=1, le=65_536, description="experts that the layer has before")
    keep: tuple[int, ...] = Field(min_length=1, description="experts that stay, ascending; of a group, its centre")
    order: tuple[int, ...] = Field((), description="all experts, best first, so that another ratio can be cut")
    groups: tuple[tuple[Share, ...], ...] | None = Field(
        None, description="for each kept expert, (expert, weight) of all that it is made of; none: of itself alone"
    )
    neurons: tuple[tuple[int, ...], ...] | None = Field(
        None, description="for each kept expert, the neurons that stay, ascending; none: all"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if list(self.keep) != sorted(set(self.keep)) or self.keep[0] < 0 or self.keep[-1] >= self.experts:
            raise ValueError(f"keep lists experts from 0 to {self.experts - 1}, ascending, each once")
        if self.order and sorted(self.order) != list(range(self.experts)):
            raise ValueError(f"order lists each of the {self.experts} experts once")
        for name, lists in (("groups", self.groups), ("neurons", self.neurons)):
            if lists is not None and len(lists) != len(self.keep):
                raise ValueError(f"{name} has {len(lists)} entries for {len(self.keep)} kept experts")
        members = [expert for group in self.groups or () for expert, _ in group]
        if len(members) != len(set(members)) or any(not 0 <= expert < self.experts for expert in members):
            raise ValueError("groups name an expert twice, or one that does not exist")
        for centre, group in zip(self.keep, self.groups or (), strict=False):
            if centre not in [expert for expert, _ in group]:
                raise ValueError(f"the group of expert {centre} does not contain it")
        return self

    @property
    def dropped(self) -> tuple[int, ...]:
        """Experts of which nothing stays, ascending: neither kept nor a member of a group."""
        alive = {*self.keep, *(expert for group in self.groups or () for expert, _ in group)}
        return tuple(expert for expert in range(self.experts) if expert not in alive)


class EditPlan(_Frozen):
    """A reviewable decision about the experts of a model; `moeworks edit apply` carries it out.

    Layers that are not listed stay as they are.
    """

    method: str = Field(description="score or grouping that made it, by its registered name")
    options: dict[str, Any] = Field(default_factory=dict, description="of the method")
    budget: str = Field("uniform", description="how experts were shared out over layers, by its registered name")
    budget_options: dict[str, Any] = Field(default_factory=dict, description="of the budget, and rules asked for")
    keep: float = Field(gt=0, le=1, description="share of the experts, or of their neurons, that was to stay")
    transform: str = Field("cut", description="how the new layer is made, by its registered name")
    transform_options: dict[str, Any] = Field(default_factory=dict)
    extra_layers: Literal["same", "drop"] = Field(
        "same", description="layers for multi-token prediction: keep the last listed layer's experts, or leave them out"
    )
    protected: tuple[ExpertAddress, ...] = Field((), description="experts that had to stay")
    layers: tuple[LayerCut, ...] = Field(min_length=1)
    statistics: str = Field("", description="hash of the statistics it was made from")
    weakens_safety: bool = Field(False, description="the edit is meant to weaken a safety behaviour")
    description: str = ""
    evidence: dict[str, Any] | None = Field(None, description="what preview or verify measured")
    header: Header

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        numbers = [cut.layer for cut in self.layers]
        if numbers != sorted(set(numbers)):
            raise ValueError("layers are listed in ascending order, each once")
        kept = {Address(cut.layer, expert) for cut in self.layers for expert in cut.keep}
        lost = [str(a) for a in self.protected if a.layer in numbers and a not in kept]
        if lost:
            raise ValueError(f"protected experts are not kept: {', '.join(lost)}")
        return self

    @property
    def model(self) -> ModelIdentity | None:
        """The model it was made for."""
        return self.header.model

    @property
    def counts(self) -> tuple[int, ...]:
        """Experts that each listed layer has afterwards."""
        return tuple(len(cut.keep) for cut in self.layers)

    @property
    def pure_cut(self) -> bool:
        """Whether experts only go and nothing is recomputed, so that masking gives the same function."""
        return self.transform == "cut" and all(cut.groups is None and cut.neurons is None for cut in self.layers)

    def dropped(self) -> Iterator[Address]:
        """Yield the experts that are not kept, in order, members of groups among them."""
        for cut in self.layers:
            for expert in range(cut.experts):
                if expert not in cut.keep:
                    yield Address(cut.layer, expert)
