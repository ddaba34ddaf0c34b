"""A plan's gate: whether the plan applies to a request, decided once from what its prompt does in the plain model.

Why: a plan that holds for every request also turns harmless ones (over-refusal); gated on a projection of the prompt it
left them as they were in one small study (a note on SteerMoE, second-hand, tiny n). Three kinds:

- `routing`: the shares of the prompt's tokens for which each expert ran, through a linear probe. Any engine.
- `residual`: the residual stream after a layer, projected on a direction, over the prompt's tokens.
- `key_space`: the same shares as `routing`, inside a box (Key Space Detection, arXiv 2503.21730).

The prompt is the request's tokens of phase prompt; the model runs it once, without any plan. The decision holds for the
whole request: prompt, answer and all that is generated. The other requests get what the plain model gives, to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from moeworks.artefact import ModelIdentity
from moeworks.errors import BadData, Unsupported

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = [
    "Gate",
    "KeySpaceGate",
    "ResidualGate",
    "RoutingGate",
    "gate_in_words",
    "gate_problems",
    "opened_requests",
    "opens",
    "projected_opens",
    "reduce_prompt",
]

Array = NDArray[Any]


class _Gate(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    provenance: dict[str, Any] = Field(default_factory=dict, description="how it was fitted, and how well it tells")


class RoutingGate(_Gate):
    """Open where Σ weight × share of the prompt's tokens for which the expert ran is above the threshold."""

    kind: Literal["routing"] = "routing"
    weights: dict[int, tuple[float, ...]] = Field(
        min_length=1, description="by layer: one weight an expert, of its share of the prompt's tokens (0 to 1)"
    )
    threshold: float = Field(0.0, description="what the weighted sum must exceed")


class ResidualGate(_Gate):
    """Open where the residual stream after a layer, projected on a direction, is above the threshold."""

    kind: Literal["residual"] = "residual"
    layer: int = Field(ge=0, description="global layer number; the residual stream is read after it")
    direction: tuple[float, ...] = Field(min_length=1, description="one number a dimension of the residual stream")
    over: Literal["mean", "max", "last"] = Field("mean", description="how the prompt's tokens become one number")
    threshold: float = Field(0.0, description="what the projection must exceed")


class KeySpaceGate(_Gate):
    """Open where the prompt's routing frequencies lie inside mean ± alpha·k·std in every dimension, or outside."""

    kind: Literal["key_space"] = "key_space"
    layers: dict[int, int] = Field(min_length=1, description="layer to number of experts, in the order of the columns")
    mean: tuple[float, ...]
    std: tuple[float, ...]
    k: float = Field(ge=0)
    alpha: float = Field(1.0, ge=0)
    inside: bool = Field(True, description="apply the plan to what lies inside, or to what does not")

    @model_validator(mode="after")
    def _fits(self) -> KeySpaceGate:
        if not len(self.mean) == len(self.std) == sum(self.layers.values()):
            raise ValueError(
                f"{len(self.mean)} means and {len(self.std)} deviations are not one an expert of "
                f"{sum(self.layers.values())}"
            )
        if min(self.std) < 0:
            raise ValueError("a deviation is below 0")
        return self


Gate = Annotated[RoutingGate | ResidualGate | KeySpaceGate, Field(discriminator="kind")]


def opens(gate: RoutingGate | KeySpaceGate, rates: Mapping[int, Array]) -> NDArray[np.bool_]:
    """Return for which requests a gate on routing is open, (m,).

    Args:
        gate: of kind routing or key_space.
        rates: layer → (m, E) share of each prompt's tokens for which each expert ran; a slot of weight 0 did not run.
    """
    if isinstance(gate, RoutingGate):
        total = sum(rates[layer] @ np.asarray(weights) for layer, weights in gate.weights.items())
        return np.asarray(total > gate.threshold)
    from moeworks.find.key_space import Box  # find stands above plan; its box is plain numpy

    box = Box(mean=gate.mean, std=gate.std, k=gate.k, alpha=gate.alpha)
    inside = box.contains(np.concatenate([rates[layer] for layer in gate.layers], axis=1))
    return inside if gate.inside else ~inside


def opened_requests(gate: Gate, trace: Trace) -> NDArray[np.bool_]:
    """Return for which requests of a plain model's trace a gate is open, (requests,).

    Raises:
        BadData: a request has no row of its prompt.
        Unsupported: the gate looks at the residual stream, which no trace holds.
    """
    from moeworks.find.key_space import routing_frequencies

    if isinstance(gate, ResidualGate):
        raise Unsupported("the plan's gate looks at the residual stream, which a trace does not hold; run the model.")
    found = routing_frequencies(trace)
    count = len(trace.request_table())
    if len(found.requests) < count:
        bare = sorted(set(range(count)) - set(found.requests.tolist()))[0]
        raise BadData(f"request {bare} of the trace has no token of phase prompt, which the gate decides on.")
    ends = np.cumsum([0, *found.layers.values()])
    columns = zip(found.layers, ends[:-1], ends[1:], strict=True)
    return opens(gate, {layer: found.rates[:, start:stop] for layer, start, stop in columns})


def reduce_prompt(gate: ResidualGate, projections: Array) -> float:
    """Return the one number of a prompt from its tokens' projections, (tokens,)."""
    match gate.over:
        case "mean":
            return float(projections.mean())
        case "max":
            return float(projections.max())
        case "last":
            return float(projections[-1])


def projected_opens(gate: ResidualGate, values: Array) -> NDArray[np.bool_]:
    """Return for which requests a gate on the residual stream is open, (m,), from one number a prompt."""
    return np.asarray(np.asarray(values) > gate.threshold)


def gate_problems(gate: Gate, identity: ModelIdentity) -> Iterator[str]:
    """Yield what speaks against deciding with the gate on a model."""
    experts = {shape.layer: shape.experts for shape in identity.layers}
    known = f"routers are in layers {', '.join(map(str, experts))}"
    if isinstance(gate, ResidualGate):
        if not any(gate.direction) or not math.isfinite(sum(gate.direction)):
            yield "The gate's direction is 0 everywhere, so that it tells nothing."
        return
    sizes = gate.layers if isinstance(gate, KeySpaceGate) else {n: len(w) for n, w in gate.weights.items()}
    for layer, size in sizes.items():
        if layer not in experts:
            yield f"The gate reads layer {layer}; {known}."
        elif size != experts[layer]:
            yield f"The gate has {size} numbers for layer {layer}, which has {experts[layer]} experts."


def gate_in_words(gate: Gate) -> str:
    """Return the gate as one sentence."""
    match gate:
        case RoutingGate():
            what = f"a probe on the prompt's routing in {_layers(gate.weights)} says more than {gate.threshold:.4g}"
        case ResidualGate():
            what = (
                f"the prompt's residual stream after layer {gate.layer}, projected on a direction ({gate.over} over "
                f"tokens), is above {gate.threshold:.4g}"
            )
        case KeySpaceGate():
            side = "inside" if gate.inside else "outside"
            what = f"the prompt's routing in {_layers(gate.layers)} lies {side} a box (alpha {gate.alpha:.4g})"
    told, shares = gate.provenance.get("auroc_held_out"), gate.provenance.get("opened_held_out")
    facts = [f"AUROC {told:.3f}"] if isinstance(told, float) else []
    if isinstance(shares, dict):
        facts.append(f"opens for {shares['contrast']:.0%} of the one side and {shares['against']:.0%} of the other")
    proof = f" (on held-out documents: {', '.join(facts)})" if facts else ""
    return f"It applies only to requests for which {what}{proof}; the others run as in the plain model, to the bit."


def _layers(layers: Mapping[int, Any]) -> str:
    return f"{len(layers)} layer{'s' * (len(layers) > 1)}"
