"""The few numbers that are trained, as float32 copies beside a frozen model: one expert's slice, a router, a low rank.

A stack of experts is one tensor, so its gradient is taken as a whole, the rows of one expert are kept, and only these
rows are written back: the other experts stay equal to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moeworks.errors import BadData, Unsupported
from moeworks.families import Router
from moeworks.families.expert_weights import expert_weights

__all__ = ["Part", "Trained", "expert_parts", "low_rank_parts", "router_parameters", "router_parts"]


@dataclass(frozen=True, eq=False)
class Part:
    """A stretch of rows of one parameter, and the leaves that its value is made of.

    Attributes:
        name: for people and for checkpoints.
        parameter: of the model.
        rows: the rows of its first axis that are trained; all of them for a router.
        original: their values before training, in the model's own dtype.
        leaves: float32 tensors that the optimiser moves.
        value: makes the rows' value of the leaves, with a graph.
    """

    name: str
    parameter: nn.Parameter
    rows: slice
    original: Tensor
    leaves: tuple[Tensor, ...]
    value: Callable[[], Tensor]


class Trained:
    """All parts that one training moves, in a model that is otherwise frozen."""

    def __init__(self, model: nn.Module, parts: Sequence[Part]) -> None:
        self.model = model
        self.parts = tuple(parts)
        self.leaves: list[Tensor] = [leaf for part in parts for leaf in part.leaves]
        self._parameters = [part.parameter for part in self.parts]

    @property
    def numbers(self) -> int:
        """How many numbers are trained."""
        return sum(leaf.numel() for leaf in self.leaves)

    @contextmanager
    def unfrozen(self) -> Iterator[None]:
        """Let gradients reach these parameters and no others; flags and gradients are then as they were."""
        flags = [(parameter, parameter.requires_grad) for parameter in self.model.parameters()]
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        for parameter in self._parameters:
            parameter.requires_grad_(True)
        try:
            yield
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)

    def accumulate(self, loss: Tensor) -> None:
        """Add the gradient of a loss to the leaves' gradients, and free its graph."""
        gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        for part, gradient in zip(self.parts, gradients, strict=True):
            if gradient is not None:
                value = part.value()
                torch.autograd.backward(value, gradient[part.rows].to(value.dtype))

    @torch.no_grad()
    def write(self) -> None:
        """Put the leaves' values into the model, rounded to its dtype."""
        for part in self.parts:
            part.parameter.data[part.rows] = part.value().to(part.parameter.dtype)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the original values back, to the bit; the leaves stay."""
        for part in self.parts:
            part.parameter.data[part.rows] = part.original

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Run the model before training inside the block."""
        self.restore()
        try:
            yield
        finally:
            self.write()


def _part(name: str, parameter: nn.Parameter, rows: slice) -> Part:
    original = parameter.detach()[rows].clone()
    leaf = original.to(torch.promote_types(original.dtype, torch.float32)).clone().requires_grad_(True)
    return Part(name, parameter, rows, original, (leaf,), lambda: leaf)


def expert_parts(router: Router, expert: int) -> list[Part]:
    """Return the weights (and biases) of one expert, wherever and however the family stores them.

    Raises:
        BadData: the layer has no such expert.
        Unsupported: its experts are no stacked tensors, or are quantised.
    """
    weights = expert_weights(router)
    if not 0 <= expert < weights.experts:
        raise BadData(f"layer {router.layer} has {weights.experts} experts with weights; there is no expert {expert}.")
    views = (weights.gate, weights.up, weights.down, weights.gate_bias, weights.up_bias, weights.down_bias)
    steps = {view.data_ptr(): view.stride(0) for view in views if view is not None}
    parts = []
    for name, parameter in router.holder.named_parameters():
        inside = range(parameter.data_ptr(), parameter.data_ptr() + parameter.nbytes)
        found = [place for place in steps if place in inside]
        if not found:
            continue
        step = {steps.pop(place) for place in found}.pop()
        if not parameter.is_contiguous() or step % parameter.stride(0):
            raise Unsupported(f"'{name}' of layer {router.layer} does not store its experts one after another.")
        rows = step // parameter.stride(0)  # 1, or I where all experts' rows form one matrix (DBRX)
        parts.append(_part(f"{router.layer}.{name}[{expert}]", parameter, slice(expert * rows, (expert + 1) * rows)))
    if steps:
        raise Unsupported(f"the experts of layer {router.layer} lie outside of the module that holds its router.")
    return parts


def router_parameters(router: Router) -> dict[str, nn.Parameter]:
    """Return what makes a router's logits: all it holds but selection biases and factors of finished weights.

    Neither of these moves the logits, and the choice itself has no gradient.
    """
    slots = (router.arrays.bias_slot, router.arrays.expert_scale_slot)
    apart = {id(getattr(slot.owner, slot.name)) for slot in slots if slot is not None}
    experts = router.experts_module
    apart |= set() if experts is None else {id(parameter) for parameter in experts.parameters()}
    named = {
        name: parameter
        for name, parameter in router.module.named_parameters()
        if id(parameter) not in apart and parameter.is_floating_point()
    }
    if not named:
        raise Unsupported(f"the router '{router.name}' has no parameter that could be trained.")
    return named


def router_parts(router: Router) -> list[Part]:
    """Return the whole router of a layer."""
    return [
        _part(f"{router.layer}.router.{name}", parameter, slice(None))
        for name, parameter in router_parameters(router).items()
    ]


def low_rank_parts(router: Router, *, rank: int, alpha: float, generator: torch.Generator) -> list[Part]:
    """Return W + (alpha / rank) B A for every matrix of a router, B at 0: LoRA (Hu et al. 2021, arXiv 2106.09685).

    A is drawn uniformly within sqrt(1 / inputs) as there [recalled]. The sum is rounded to the model's dtype before it
    is used; an adapter that runs beside W would round later.
    """
    return [
        _low_rank(f"{router.layer}.router.{name}", parameter, rank, alpha, generator)
        for name, parameter in router_parameters(router).items()
        if parameter.ndim == 2
    ]


def _low_rank(name: str, parameter: nn.Parameter, rank: int, alpha: float, generator: torch.Generator) -> Part:
    outputs, inputs = parameter.shape
    original = parameter.detach().clone()
    down = (torch.rand(rank, inputs, generator=generator) * 2 - 1) * inputs**-0.5  # A
    down = down.to(parameter.device).requires_grad_(True)
    up = torch.zeros(outputs, rank, device=parameter.device, requires_grad=True)  # B
    return Part(
        name, parameter, slice(None), original, (down, up), lambda: original.float() + (alpha / rank) * (up @ down)
    )
