"""The weights of one mixture-of-experts layer in one shape, whatever family, file layout or module they came from.

Letters in shapes: E experts, I neurons of each, H wide outside, V token ids, k experts a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from moeworks.errors import BadData

__all__ = ["Activation", "LayerWeights"]

Activation = Callable[[Tensor | None, Tensor], Tensor]  # gate (n, I) or None, up (n, I) → what down reads, (n, I)

_NEURON_DIMENSION = {"gate": 1, "up": 1, "down": 2, "gate_bias": 1, "up_bias": 1}


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerWeights:
    """The routed experts and the router of one layer; the shared experts are no part of it.

    An expert computes `down @ (act(gate @ x) * (up @ x))`, without a gate `down @ act(up @ x)`, biases aside. Neuron j
    of expert e is the triple `(gate[e, j], up[e, j], down[e, :, j])`; the order of the neurons of an expert is free.
    Every tensor but the table has the experts as its first dimension.

    Attributes:
        layer: global layer number.
        up, down: projections.
        gate: gate projection, or None where experts have none.
        gate_bias, up_bias, down_bias: biases of the projections, or None.
        router: the router's rows.
        router_bias: bias of the logits (gpt-oss), or None.
        selection_bias: what is added to the scores before the top-k and never enters a weight, or None.
        expert_scale: factor of each expert's weight (Gemma 4), or None.
        table: experts of each token id where a hash routes (DeepSeek-V4), or None.
        activation: from the pre-activations (gate or None, up) to what the down projection reads, by the family's own
            rule; None where it is not known, and then nothing that needs activations can be computed.
    """

    layer: int
    up: Tensor  # (E, I, H)
    down: Tensor  # (E, H, I)
    router: Tensor  # (E, H of the router)
    gate: Tensor | None = None  # (E, I, H)
    gate_bias: Tensor | None = None  # (E, I)
    up_bias: Tensor | None = None  # (E, I)
    down_bias: Tensor | None = None  # (E, H)
    router_bias: Tensor | None = None  # (E,)
    selection_bias: Tensor | None = None  # (E,)
    expert_scale: Tensor | None = None  # (E,)
    table: Tensor | None = None  # (V, k)
    activation: Activation | None = None

    @property
    def experts(self) -> int:
        """Number of routed experts, E."""
        return len(self.down)

    @property
    def neurons(self) -> int:
        """Neurons of each expert, I."""
        return self.up.shape[1]

    def per_expert(self) -> dict[str, Tensor]:
        """Return every tensor whose first dimension is the experts, by field name."""
        other = ("layer", "table", "activation")
        named = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in other}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def select(self, experts: Sequence[int]) -> LayerWeights:
        """Return the layer with these experts alone, in this order: the i-th becomes expert i.

        Raises:
            BadData: an expert does not exist or is listed twice, none is listed, or a hash table names one that goes.
        """
        chosen = list(experts)
        if not chosen or len(set(chosen)) < len(chosen) or not all(0 <= e < self.experts for e in chosen):
            raise BadData(f"layer {self.layer} has experts 0 to {self.experts - 1}; keep some of them, each once.")
        cut: dict[str, Any] = {name: tensor[chosen] for name, tensor in self.per_expert().items()}
        return replace(self, **cut, table=self._renumbered(chosen))

    def select_neurons(self, neurons: Sequence[Sequence[int]]) -> LayerWeights:
        """Return the layer with these neurons of each expert alone, in this order; all lists are of one length.

        Raises:
            BadData: another number of lists than experts, lists of unequal length, or a neuron that does not exist.
        """
        if len(neurons) != self.experts or len({len(chosen) for chosen in neurons}) != 1 or not len(neurons[0]):
            raise BadData(
                f"layer {self.layer}: give one list of neurons for each of {self.experts} experts, all equally long; "
                "stock checkpoints have one width for all experts."
            )
        index = torch.tensor([list(chosen) for chosen in neurons], device=self.up.device)  # (E, J)
        if int(index.min()) < 0 or int(index.max()) >= self.neurons:
            raise BadData(f"layer {self.layer} has neurons 0 to {self.neurons - 1} in each expert.")
        cut: dict[str, Any] = {}
        for name, dimension in _NEURON_DIMENSION.items():
            tensor: Tensor | None = getattr(self, name)
            if tensor is None:
                continue
            if tensor.ndim == 2:
                cut[name] = tensor.gather(1, index)
            elif dimension == 1:
                cut[name] = tensor.gather(1, index[:, :, None].expand(-1, -1, tensor.shape[2]))
            else:
                cut[name] = tensor.gather(2, index[:, None, :].expand(-1, tensor.shape[1], -1))
        return replace(self, **cut)

    def _renumbered(self, chosen: list[int]) -> Tensor | None:
        if self.table is None:
            return None
        place = torch.full((self.experts,), -1, dtype=self.table.dtype, device=self.table.device)
        place[chosen] = torch.arange(len(chosen), dtype=self.table.dtype, device=self.table.device)
        table = place[self.table.long()]
        if bool((table < 0).any()):
            raise BadData(
                f"layer {self.layer} takes its experts from a table of token ids, and the table names experts that go; "
                "leave this layer whole, or remap the table first."
            )
        return table
