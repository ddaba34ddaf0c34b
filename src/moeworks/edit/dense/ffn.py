"""A dense feed-forward layer, and what becomes of it: pieces that are experts, and what all tokens share.

Letters in shapes: I neurons of the dense layer, E experts, J neurons of each, H wide outside, n rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from moeworks.errors import BadPlan

__all__ = ["Ffn", "Inputs", "Split", "from_neurons"]


@dataclass(frozen=True, eq=False)
class Ffn:
    """A gated feed-forward layer: `down @ (act(gate @ x) * (up @ x))`."""

    gate: Tensor  # (I, H)
    up: Tensor  # (I, H)
    down: Tensor  # (H, I)
    act: Callable[[Tensor], Tensor]

    @property
    def neurons(self) -> int:
        """Number of neurons, I."""
        return len(self.up)

    def keys(self, hidden: Tensor) -> Tensor:
        """Return what the down projection reads, (n, I), in float32."""
        hidden = hidden.float()
        return self.act(hidden @ self.gate.float().T) * (hidden @ self.up.float().T)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return the layer's output, (n, H), in float32."""
        return self.keys(hidden) @ self.down.float().T

    def part(self, neurons: Sequence[int]) -> Ffn:
        """Return the layer with these neurons alone."""
        chosen = list(neurons)
        return replace(self, gate=self.gate[chosen], up=self.up[chosen], down=self.down[:, chosen])


@dataclass(frozen=True, eq=False)
class Inputs:
    """Rows of text as they reach one feed-forward layer, after its norm: what a router there would see.

    Attributes:
        hidden: the rows.
        domain: number of the domain that each row's text is of; all 0 where texts have no label.
        domains: their names.
        last: whether a row is its text's last token.
    """

    hidden: Tensor  # (n, H) float32
    domain: Tensor  # (n,) int64
    domains: tuple[str, ...]
    last: Tensor  # (n,) bool


@dataclass(frozen=True, eq=False)
class Split:
    """One layer as experts.

    Attributes:
        gate, up, down: of the experts.
        shared: what runs for every token, or None.
        each: weight that a chosen expert needs: 1 for pieces of one layer, whose sum is the layer; None for whole
            copies, whose weighted mean is.
        router: rows that a method brings itself, (E, H), or None.
        neurons: dense neurons of each expert, where experts are pieces.
        shared_neurons: those of the shared part.
    """

    gate: Tensor  # (E, J, H)
    up: Tensor  # (E, J, H)
    down: Tensor  # (E, H, J)
    act: Callable[[Tensor], Tensor]
    shared: Ffn | None = None
    each: float | None = 1.0
    router: Tensor | None = None
    neurons: tuple[tuple[int, ...], ...] | None = None
    shared_neurons: tuple[int, ...] = ()

    @property
    def experts(self) -> int:
        """Number of routed experts, E."""
        return len(self.up)

    def expert(self, number: int) -> Ffn:
        """Return one expert."""
        return Ffn(self.gate[number], self.up[number], self.down[number], self.act)

    def output(self, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """Return shared part plus weighted experts, (n, H), for ids and weights (n, k)."""
        total = torch.zeros(hidden.shape, dtype=torch.float32) if self.shared is None else self.shared(hidden)
        for number in range(self.experts):
            rows, slots = (ids == number).nonzero(as_tuple=True)
            if len(rows):
                total.index_add_(0, rows, self.expert(number)(hidden[rows]) * weights[rows, slots, None].float())
        return total


def from_neurons(ffn: Ffn, experts: Sequence[Sequence[int]], shared: Sequence[int] = ()) -> Split:
    """Return experts made of lists of neurons; a neuron may be in several experts, not in one twice.

    Raises:
        BadPlan: lists of unequal length, an empty one, a neuron that does not exist, or one that would count twice.
    """
    lists = [list(neurons) for neurons in experts]
    problems = []
    if not lists or len({len(neurons) for neurons in lists}) != 1 or not lists[0]:
        problems.append("experts of a stock model have the same number of neurons, at least one")
    if any(len(set(neurons)) != len(neurons) for neurons in [*lists, list(shared)]):
        problems.append("a neuron is listed twice in one expert")
    both = {neuron for neurons in lists for neuron in neurons}
    if any(not 0 <= neuron < ffn.neurons for neuron in both.union(shared)):
        problems.append(f"neurons are numbered from 0 to {ffn.neurons - 1}")
    if both & set(shared):
        problems.append("a neuron is shared and an expert's, so that it would count twice")
    if problems:
        raise BadPlan(f"the layer cannot be split so: {'; '.join(problems)}.")
    parts = [ffn.part(neurons) for neurons in lists]
    return Split(
        gate=torch.stack([part.gate for part in parts]),
        up=torch.stack([part.up for part in parts]),
        down=torch.stack([part.down for part in parts]),
        act=ffn.act,
        shared=ffn.part(shared) if len(shared) else None,
        neurons=tuple(tuple(neurons) for neurons in lists),
        shared_neurons=tuple(shared),
    )
