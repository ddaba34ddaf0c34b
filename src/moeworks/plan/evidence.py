"""What is known of a plan's effect, stored in the plan: effect, controls, dose curve, damage, mechanism, verdict."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Control", "Damage", "Dose", "Evidence", "Interval", "Mechanism", "Verdict"]

Verdict = Literal["works", "does nothing", "breaks the model", "no better than random"]


class _Frozen(BaseModel):
    # An infinite perplexity is possible; as a string it survives JSON, which has no number for it.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Interval(_Frozen):
    """A number with its bootstrap interval over documents."""

    value: float
    low: float
    high: float
    level: float = 0.95


class Control(_Frozen):
    """The same operation on other experts: as many, in the same layers."""

    name: str = Field(description="random or bottom")
    seed: int | None = None
    effect: float
    experts: tuple[str, ...] = ()


class Dose(_Frozen):
    """One point of the dose curve."""

    amount: float = Field(description="number of experts, or strength")
    effect: Interval
    control: float | None = Field(None, description="mean effect of matched random experts at this amount")
    divergence: float = Field(description="mean KL to the unsteered model on neutral text, nats a token")


class Damage(_Frozen):
    """What else changed: divergence and perplexity on neutral text."""

    divergence: float = Field(description="mean KL from unsteered to steered, nats a token")
    perplexity_before: dict[str, float] = Field(description="by language and by domain")
    perplexity_after: dict[str, float]


class Mechanism(_Frozen):
    """The re-trace: how often the listed experts ran, before and under the plan."""

    share_before: dict[str, float] = Field(description="address to share of tokens")
    share_after: dict[str, float]
    as_planned: bool = Field(description="whether every listed expert is in, or out, as its operation says")
    residual_growth: float | None = Field(
        None, description="largest factor on a layer's mean residual norm, for plans that scale weights up"
    )


class Evidence(_Frozen):
    """What the plan does on held-out data, against controls."""

    probe: str
    metric: str
    split: str = "held_out"
    items: int
    documents: int
    before: float = Field(description="the metric without the plan")
    after: float = Field(description="the metric under the plan")
    expected: Literal["up", "down"]
    effect: Interval
    controls: tuple[Control, ...]
    excess: Interval = Field(description="effect minus the mean effect of the random controls")
    doses: tuple[Dose, ...] = ()
    damage: Damage | None = None
    mechanism: Mechanism | None = None
    verdict: Verdict
    reasons: tuple[str, ...] = Field((), description="the verdict in words")
