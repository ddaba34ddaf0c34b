"""What the operation `neurons` does to the values of neurons inside an expert, in numpy: the reference.

Letters: m tokens that an expert runs for, I neurons, s of them listed. Per neuron, the expert computes a pre-activation
of the gate and of the up projection, and from both the key, which its down projection reads:
key = act(gate) * up, or the family's own rule; without a gate key = act(up).

A site says which of the three a step changes. Changes of `gate` and `up` come first and enter the key; changes of `key`
come after it. Only listed neurons and rows that the clause takes change, v being the value there:

- `zero`:    v <- 0. On the gate with a SiLU this closes the neuron, on the key always (GateBreaker, arXiv 2512.21008,
  and CULNIG's suppression, arXiv 2510.08284, set projection outputs to 0).
- `scale`:   v <- factor * v (CULNIG's enhancement is factor 2).
- `reflect`: v <- 2 * mean - v, mirrored about the neuron's mean: the mirror step of Neuron Adjust (arXiv 2503.21730).
- `clamp`:   v <- value, a constant (the validation of arXiv 2501.02688).
- `adjust`:  the whole of Neuron Adjust, by chance: with d_F the density of N(mean, std) at v (how the neuron is on the
  skill) and d_R that of N(other_mean, other_std) (how it is elsewhere), where d_R <= d_F and u >= d_R / (d_R + d_F):
  v <- other_mean - other_std * (v - mean) / std. The paper draws u uniformly; here it is a hash of the neuron's number
  and of (v - mean) / std in steps of 1/256, so that a text gives the same whatever else is in its batch.

Routing is not touched in the same layer; later layers see another residual. Arithmetic is float64 here; engines change
values in float32 or wider and hand them on in the model's dtype.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import BadData

__all__ = ["NUMBERS", "OWN", "SITES", "Action", "NeuronStep", "Site", "apply_step", "apply_steps"]

Array = NDArray[Any]
Action = Literal["zero", "scale", "reflect", "clamp", "adjust"]
Site = Literal["gate", "up", "key"]
SITES: tuple[Site, ...] = ("gate", "up", "key")
# Action → the numbers that it needs. A new action has a line here, a formula in `apply_step` and one in the torch twin.
NUMBERS: dict[Action, tuple[str, ...]] = {
    "zero": (),
    "scale": ("factor",),
    "reflect": ("mean",),
    "clamp": ("value",),
    "adjust": ("mean", "std", "other_mean", "other_std"),
}
OWN = (
    "mean",
    "std",
    "other_mean",
    "other_std",
)  # numbers that are statistics of a neuron, so that another one cannot take them over


@dataclass(frozen=True, kw_only=True, eq=False)
class NeuronStep:
    """One operation on the listed neurons of one expert."""

    expert: int
    site: Site
    action: Action
    neurons: Array  # (s,) int64, without repetition
    numbers: Mapping[str, Array]  # the action's numbers by name, (s,) float64 each: one for each neuron


def apply_step(step: NeuronStep, values: Array, rows: Array | None = None) -> Array:
    """Return the values, (m, I) float64, with the step's neurons changed.

    Args:
        step: what is done.
        values: (m, I) at the step's site.
        rows: (m,) booleans, which tokens the clause takes; None for all.

    Raises:
        BadData: the values are not finite or have too few neurons.
    """
    values = np.array(values, np.float64)
    if values.ndim != 2 or values.shape[1] <= step.neurons.max(initial=-1):
        raise BadData(f"values of shape {values.shape} have no neuron {step.neurons.max(initial=-1)}.")
    if not np.isfinite(values).all():
        raise BadData("values inside an expert are NaN or infinite; nothing can be computed from them.")
    taken = np.flatnonzero(np.ones(len(values), bool) if rows is None else rows)
    place = np.ix_(taken, step.neurons)
    v, numbers = values[place], step.numbers  # (taken, s)
    match step.action:
        case "zero":
            new = np.zeros_like(v)
        case "scale":
            new = numbers["factor"] * v
        case "reflect":
            new = 2 * numbers["mean"] - v
        case "clamp":
            new = np.broadcast_to(numbers["value"], v.shape)
        case "adjust":
            new = _adjusted(v, numbers, step.neurons)
    values[place] = new
    return values


def _adjusted(v: Array, numbers: Mapping[str, Array], neurons: Array) -> Array:
    """Return values, (taken, s), mirrored into how each neuron is elsewhere, where chance says so."""
    z = (v - numbers["mean"]) / numbers["std"]
    other = (v - numbers["other_mean"]) / numbers["other_std"]
    # log(d_R / d_F); densities themselves would underflow
    ratio = (z**2 - other**2) / 2 + np.log(numbers["std"] / numbers["other_std"])
    stay = np.exp(np.minimum(ratio, 0)) / (1 + np.exp(np.minimum(ratio, 0)))
    changed = (ratio <= 0) & (_chance(v, numbers, neurons) >= stay)
    return np.where(changed, numbers["other_mean"] - z * numbers["other_std"], v)


def _chance(v: Array, numbers: Mapping[str, Array], neurons: Array) -> Array:
    """Return a number from 0 to below 1 for each value: the same wherever the same value stands."""
    single = np.float32
    z = (v.astype(single) - numbers["mean"].astype(single)) / numbers["std"].astype(single)  # as engines compute it
    x = np.floor(np.clip(z, -1e4, 1e4) * single(256)).astype(np.int64) * 1_000_003 + (neurons + 1) * 7_919_113
    x %= 2**31
    for shift, factor in ((15, 739_982_445), (12, 695_872_825)):
        x = (x ^ (x >> shift)) * factor % 2**31
    return np.asarray((x ^ (x >> 15)) / 2**31)


def apply_steps(steps: Sequence[tuple[NeuronStep, Array | None]], expert: int, site: Site, values: Array) -> Array:
    """Return the values at one site of one expert, (m, I), after all steps there, with their rows as in `apply_step`.

    Steps of other experts and sites do nothing.
    """
    for step, rows in steps:
        if (step.expert, step.site) == (expert, site):
            values = apply_step(step, values, rows)
    return values
