"""An expert as an unordered bag of neurons: take it out of a layer, reorder, rescale, average, run it, put it back.

Neuron j is the triple (gate[j], up[j], down[:, j]) with its biases. Letters in shapes: I neurons, H wide, n rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from moeworks.edit.layer import Activation, LayerWeights
from moeworks.errors import BadData, Unsupported

__all__ = [
    "Expert",
    "Part",
    "activation_of",
    "balance",
    "expert_of",
    "from_features",
    "is_linear_in_up",
    "join",
    "keys",
    "mean",
    "neuron_features",
    "outputs",
    "reorder",
    "rescale",
    "scale_features",
    "take_neurons",
    "unit_rows",
    "with_experts",
]

Part = Literal["gate", "up", "down"]
PARTS: tuple[Part, ...] = ("gate", "up", "down")


class Expert(NamedTuple):
    """One expert in float32, or float64 where the layer is."""

    up: Tensor  # (I, H)
    down: Tensor  # (H, I)
    gate: Tensor | None = None  # (I, H)
    gate_bias: Tensor | None = None  # (I,)
    up_bias: Tensor | None = None  # (I,)
    down_bias: Tensor | None = None  # (H,)

    @property
    def neurons(self) -> int:
        """Neurons of the expert, I."""
        return len(self.up)


def expert_of(weights: LayerWeights, expert: int) -> Expert:
    """Return one expert of a layer, a copy in float32 (float64 of float64)."""
    if not 0 <= expert < weights.experts:
        raise BadData(f"layer {weights.layer} has experts 0 to {weights.experts - 1}, no expert {expert}.")
    tensors: dict[str, Any] = {}
    for name in Expert._fields:
        tensor: Tensor | None = getattr(weights, name)
        if tensor is not None:
            wide = torch.promote_types(tensor.dtype, torch.float32)
            tensors[name] = tensor[expert].detach().to(wide, copy=True)
    return Expert(**tensors)


def with_experts(weights: LayerWeights, experts: Mapping[int, Expert]) -> LayerWeights:
    """Return the layer with some experts put in place of those that were there, in the layer's own dtypes.

    Experts that are not named stay as they are to the bit. The router is left alone.

    Raises:
        BadData: an expert does not exist or is of another shape.
    """
    changed: dict[str, Any] = {}
    for name in Expert._fields:
        tensor: Tensor | None = getattr(weights, name)
        given = {place: getattr(expert, name) for place, expert in experts.items()}
        fits = all(
            0 <= place < weights.experts
            and (part is None if tensor is None else part is not None and part.shape == tensor.shape[1:])
            for place, part in given.items()
        )
        if not fits:
            raise BadData(f"layer {weights.layer}: the '{name}' of the new experts does not fit the layer.")
        if tensor is not None:
            fresh = tensor.detach().clone()
            for place, part in given.items():
                fresh[place] = part.to(tensor.dtype)
            changed[name] = fresh
    return replace(weights, **changed)


def neuron_features(expert: Expert, parts: Sequence[Part] = PARTS) -> Tensor:
    """Return each neuron as one row, (I, F): the named parts one after the other, gate and up with their biases.

    Experts without a gate leave it out. The bias of the down projection belongs to no neuron.
    """
    columns: list[Tensor] = []
    for part in parts:
        if part == "down":
            columns.append(expert.down.T)
        else:
            tensor, bias = (expert.gate, expert.gate_bias) if part == "gate" else (expert.up, expert.up_bias)
            columns += [] if tensor is None else [tensor]
            columns += [] if bias is None else [bias[:, None]]
    if not columns:
        raise BadData(f"neurons have no {' or '.join(parts) or 'part'} to compare in experts without a gate.")
    return torch.cat(columns, 1)


def from_features(features: Tensor, like: Expert) -> Expert:
    """Return the expert whose `neuron_features` of all parts these are; the bias of `down` is that of `like`."""
    wide = like.up.shape[1]
    widths = [
        *([wide] if like.gate is not None else []),
        *([1] if like.gate_bias is not None else []),
        wide,
        *([1] if like.up_bias is not None else []),
        wide,
    ]
    columns = iter(torch.split(features, widths, 1))
    gate = next(columns) if like.gate is not None else None
    gate_bias = next(columns)[:, 0] if like.gate_bias is not None else None
    up = next(columns)
    up_bias = next(columns)[:, 0] if like.up_bias is not None else None
    return Expert(up, next(columns).T, gate, gate_bias, up_bias, like.down_bias)


def unit_rows(rows: Tensor) -> Tensor:
    """Return rows of length 1; rows of 0 stay 0."""
    length: Tensor = rows.norm(dim=1, keepdim=True)
    return rows / length.clamp(min=torch.finfo(rows.dtype).tiny)


def take_neurons(expert: Expert, neurons: Sequence[int] | Tensor) -> Expert:
    """Return the expert made of these neurons, in this order; the bias of `down` stays."""
    index = torch.as_tensor(neurons, dtype=torch.long, device=expert.up.device)
    return expert._replace(
        up=expert.up[index],
        down=expert.down[:, index],
        gate=None if expert.gate is None else expert.gate[index],
        gate_bias=None if expert.gate_bias is None else expert.gate_bias[index],
        up_bias=None if expert.up_bias is None else expert.up_bias[index],
    )


def reorder(expert: Expert, order: Sequence[int] | Tensor) -> Expert:
    """Return the same expert with its neurons in another order; the function is the same.

    Raises:
        BadData: `order` is no permutation of the neurons.
    """
    listed = torch.as_tensor(order).tolist()
    if sorted(listed) != list(range(expert.neurons)):
        raise BadData(f"an order of {expert.neurons} neurons lists each of them once.")
    return take_neurons(expert, listed)


def is_linear_in_up(activation: Activation, *, gated: bool) -> bool:
    """Return whether doubling `up` doubles what the down projection reads, tried on numbers from small to large.

    True of act(gate) * up. False without a gate, and where `up` is clamped or shifted (gpt-oss).
    """
    if not gated:
        return False
    gate, up = torch.meshgrid(torch.linspace(-30, 30, 41), torch.logspace(-3, 3, 25), indexing="ij")
    gate, up = gate.flatten()[None].double(), up.flatten()[None].double()  # (1, 1025)
    once, twice = activation(gate, up), activation(gate, 2 * up)
    return bool(torch.allclose(twice, 2 * once, rtol=1e-6, atol=1e-12))


def rescale(expert: Expert, factors: Tensor, activation: Activation) -> Expert:
    """Return the same function with (up_j, down_j) made (a_j up_j, down_j / a_j), a (I,) of any sign but 0.

    The gate's rows are not free, since the activation is not linear.

    Raises:
        Unsupported: the activation rule is not linear in `up`, so that the function would change.
        BadData: a factor is 0 or not finite.
    """
    if not is_linear_in_up(activation, gated=expert.gate is not None):
        raise Unsupported("these experts are not linear in their up projection; their neurons have no free scale.")
    if not bool((torch.isfinite(factors) & (factors != 0)).all()):
        raise BadData("factors of neurons are finite and not 0.")
    return scale_features(expert, factors)


def scale_features(expert: Expert, factors: Tensor) -> Expert:
    """Return the expert with up rows (and biases) times a_j and down columns divided by it, without asking whether."""
    return expert._replace(
        up=expert.up * factors[:, None],
        up_bias=None if expert.up_bias is None else expert.up_bias * factors,
        down=expert.down / factors,
    )


def balance(expert: Expert, activation: Activation) -> Expert:
    """Return the same function with each neuron's up row (bias included) and down column of equal length.

    Averages of neurons that are not balanced mix arbitrary scales. A neuron of which either is 0 is left alone.

    Raises:
        Unsupported: neurons of such experts have no free scale.
    """
    row = neuron_features(expert, ("up",)).norm(dim=1)  # (I,)
    column = expert.down.norm(dim=0)  # (I,)
    factors = torch.where((row > 0) & (column > 0), (column / row).sqrt(), torch.ones_like(row))
    factors = torch.where(torch.isfinite(factors) & (factors > 0), factors, torch.ones_like(row))
    return rescale(expert, factors, activation)


def mean(experts: Sequence[Expert], shares: Sequence[float]) -> Expert:
    """Return the weighted mean of experts, neuron by neuron as they stand; shares are divided by their sum.

    Raises:
        BadData: no expert, another number of shares, a negative share, or none above 0.
    """
    total = float(sum(shares))
    if not experts or len(shares) != len(experts) or min(shares) < 0 or not total > 0:
        raise BadData("a mean of experts needs one share for each, none negative and one above 0.")
    tensors: dict[str, Any] = {}
    for name in Expert._fields:
        parts = [getattr(expert, name) for expert in experts]
        if parts[0] is not None:
            tensors[name] = sum(part * (share / total) for part, share in zip(parts, shares, strict=True))
    return Expert(**tensors)


def join(experts: Sequence[Expert]) -> Expert:
    """Return all neurons of several experts as one bag; the bias of `down` is the first expert's."""
    first = experts[0]

    def together(pick: Callable[[Expert], Tensor | None], dimension: int) -> Any:
        parts = [part for part in map(pick, experts) if part is not None]
        return torch.cat(parts, dimension) if parts else None

    return first._replace(
        up=together(lambda e: e.up, 0),
        down=together(lambda e: e.down, 1),
        gate=together(lambda e: e.gate, 0),
        gate_bias=together(lambda e: e.gate_bias, 0),
        up_bias=together(lambda e: e.up_bias, 0),
    )


def activation_of(weights: LayerWeights) -> Activation:
    """Return the activation rule of a layer's experts.

    Raises:
        Unsupported: it is not known.
    """
    if weights.activation is None:
        raise Unsupported(
            f"the activation rule of the experts of layer {weights.layer} is not known, so that their neurons cannot "
            "be run; give LayerWeights its 'activation'."
        )
    return weights.activation


def keys(expert: Expert, activation: Activation, hidden: Tensor) -> Tensor:
    """Return what the down projection reads of every neuron on rows of hidden states, (n, I)."""
    hidden = hidden.to(expert.up)
    up = torch.nn.functional.linear(hidden, expert.up, expert.up_bias)
    gate = None if expert.gate is None else torch.nn.functional.linear(hidden, expert.gate, expert.gate_bias)
    return activation(gate, up)


def outputs(expert: Expert, activation: Activation, hidden: Tensor) -> Tensor:
    """Return what the expert gives out before it is weighted, (n, H); a norm after the experts is not part of it."""
    return torch.nn.functional.linear(keys(expert, activation, hidden), expert.down, expert.down_bias)
