"""Modules that stand in for a model's experts module and compute with factors instead of weights.

Called as `(hidden, ids, weights)`, as the experts modules of transformers are. Letters in shapes: n rows, k slots, m
rows of one expert, E experts, I neurons of each, H wide outside.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from moeworks.edit.compress.factors import COMPRESSIONS, Factors
from moeworks.edit.layer import Activation, LayerWeights
from moeworks.engines.transformers.experts import slices
from moeworks.errors import Unsupported

__all__ = ["CompressedExperts", "WholeExperts", "module_of"]


class CompressedExperts(nn.Module):
    """Base of the stand-ins: the loop over experts; a method says how it projects.

    Floating-point factors are parameters, so that they can be trained; others are buffers.
    """

    def __init__(self, factors: Factors, activation: Activation | None) -> None:
        super().__init__()
        self.method, self.layer = factors.method, factors.layer
        self.experts, self.neurons, self.hidden = factors.experts, factors.neurons, factors.hidden
        self.settings = dict(factors.settings)
        self.rule = activation
        self._names = tuple(factors.tensors)
        for name, tensor in factors.tensors.items():
            if tensor.is_floating_point():
                self.register_parameter(name, nn.Parameter(tensor.detach(), requires_grad=False))
            else:
                self.register_buffer(name, tensor)

    def factors(self) -> Factors:
        """Return the factors, trained or not."""
        return Factors(
            method=self.method,
            layer=self.layer,
            experts=self.experts,
            neurons=self.neurons,
            hidden=self.hidden,
            settings=self.settings,
            tensors={name: getattr(self, name).detach() for name in self._names},
        )

    def forward(self, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted sum of the experts' outputs, (n, H), for hidden (n, H), ids and weights (n, k)."""
        prepared = self.prepare(hidden)
        total = self.begin(hidden)
        for part in slices(ids, weights, self.experts):
            key = self.key(part.expert, prepared, part.rows)
            self.add(total, part.expert, part.rows, key, weights[part.rows, part.slots, None])
        return self.finish(total).to(hidden.dtype)

    def key(self, expert: int, prepared: Any, rows: Tensor) -> Tensor:
        """Return what the down projection of an expert reads, (m, I)."""
        if self.rule is None:
            raise Unsupported("the activation rule of these experts is not known, so that they cannot be run.")
        gate, up = self.project(expert, prepared, rows)
        return self.rule(self._biased("gate", expert, gate), self._biased("up", expert, up))  # type: ignore[arg-type]

    def prepare(self, hidden: Tensor) -> Any:
        """Return what all experts share of the way in, computed once; the hidden states themselves unless told."""
        return hidden

    def project(self, expert: int, prepared: Any, rows: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return the pre-activations (gate, up) of an expert for some rows, (m, I) each, without biases."""
        raise NotImplementedError

    def begin(self, hidden: Tensor) -> Tensor:
        """Return where outputs are added up, zeros (n, H) unless told."""
        return hidden.new_zeros(len(hidden), self.hidden)

    def add(self, total: Tensor, expert: int, rows: Tensor, key: Tensor, gates: Tensor) -> None:
        """Add an expert's weighted output for some rows; key (m, I), gates (m, 1)."""
        out = self._biased("down", expert, self.output(expert, key))
        assert out is not None
        total.index_add_(0, rows, (out * gates).to(total.dtype))

    def output(self, expert: int, key: Tensor) -> Tensor:
        """Return an expert's output before its weight and bias, (m, H)."""
        raise NotImplementedError

    def finish(self, total: Tensor) -> Tensor:
        """Return the layer's output, (n, H)."""
        return total

    def dense(self) -> dict[str, Tensor]:
        """Return gate (if there is one), up and down, multiplied out, by field name of `LayerWeights`.

        Raises:
            Unsupported: the method has no such form.
        """
        raise Unsupported(f"'{self.method}' cannot be multiplied out into weights of experts.")

    def _biased(self, name: str, expert: int, values: Tensor | None) -> Tensor | None:
        bias: Tensor | None = getattr(self, f"{name}_bias", None)
        return values if bias is None or values is None else values + bias[expert]


class WholeExperts(CompressedExperts):
    """Experts as they are, not compressed: what the others are measured against."""

    up: Tensor  # (E, I, H)
    down: Tensor  # (E, H, I)

    def project(self, expert: int, prepared: Any, rows: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return the pre-activations of an expert."""
        inputs, gate = prepared[rows], getattr(self, "gate", None)
        return None if gate is None else inputs @ gate[expert].T, inputs @ self.up[expert].T

    def output(self, expert: int, key: Tensor) -> Tensor:
        """Return the down projection of an expert."""
        result: Tensor = key @ self.down[expert].T
        return result

    @classmethod
    def of(cls, weights: LayerWeights) -> WholeExperts:
        """Return the module of a layer; the weights are not copied."""
        tensors = {n: t for n, t in weights.per_expert().items() if n.split("_")[0] in ("gate", "up", "down")}
        shape = {"experts": weights.experts, "neurons": weights.neurons, "hidden": weights.up.shape[2]}
        factors = Factors(method="whole", layer=weights.layer, settings={}, tensors=tensors, **shape)
        return cls(factors, weights.activation)


def module_of(factors: Factors, activation: Activation | None) -> CompressedExperts:
    """Return the module that computes with these factors.

    Args:
        factors: of any registered operator.
        activation: the family's rule from pre-activations to what the down projection reads; without one the module
            multiplies out but does not run.
    """
    import moeworks.edit.compress  # noqa: F401  fills the registry

    module: type[CompressedExperts] = COMPRESSIONS.get(factors.method).__dict__["module"]
    return module(factors, activation)


def as_rows(values: Any, like: Tensor) -> Tensor:
    """Return a numpy array of kept rows as a tensor where the weights are."""
    return torch.as_tensor(values, device=like.device)
