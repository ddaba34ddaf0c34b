"""How much a plan makes the residual stream grow: what scaling weights up without renormalising can do to a model.

Why: RICE (arXiv 2505.14681) multiplies combine weights by factors up to 512, and whether it renormalises is not known;
without, the expert's write is multiplied as it is, and the norms after it show it. Mean over tokens of |h| after each
layer, under the plan over without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import BadData, Unsupported

if TYPE_CHECKING:
    from torch import Tensor

    from moeworks.engines.base import Engine
    from moeworks.examples import Example
    from moeworks.plan import Plan

__all__ = ["ResidualNorms", "residual_norms"]


class ResidualNorms(NamedTuple):
    """Mean norm of the residual stream after each layer with experts."""

    layers: tuple[int, ...]
    before: NDArray[np.float64]  # (layers,) without the plan
    after: NDArray[np.float64]  # (layers,) under the plan

    @property
    def growth(self) -> float:
        """The largest factor, over layers, by which the plan makes the mean norm grow."""
        return float((self.after / self.before).max())


def residual_norms(engine: Engine, plan: Plan, texts: Sequence[Example], *, batch_size: int = 8) -> ResidualNorms:
    """Measure the residual stream on some texts without and with a plan; a gate of it is left out.

    Raises:
        BadData: there is no text.
        Unsupported: the engine shows no residual stream.
    """
    from moeworks.engines.capabilities import abilities
    from moeworks.engines.gating import ungated

    reason = abilities(engine.engine.name)["gates on the residual"]
    if reason:
        raise Unsupported(f"engine {engine.engine.name} cannot measure the residual stream: {reason}.")
    if not texts:
        raise BadData("there is no text to measure the residual stream on.")
    from moeworks.engines.transformers.engine import TransformersEngine
    from moeworks.engines.transformers.residual import read_residual

    assert isinstance(engine, TransformersEngine)
    layers = [router.layer for router in engine.routers]
    prepared = sorted(engine.reader.read(iter(texts)), key=lambda request: len(request.tokens))
    tokens = sum(len(request.tokens) for request in prepared)
    means = []
    for made in (None, ungated(plan)):
        sums = dict.fromkeys(layers, 0.0)

        def add(layer: int, hidden: Tensor, sums: dict[int, float] = sums) -> None:
            sums[layer] += float(hidden.float().norm(dim=-1).double().sum())

        for start in range(0, len(prepared), batch_size):
            read_residual(engine, prepared[start : start + batch_size], layers, add, plan=made)
        means.append(np.array([sums[layer] / tokens for layer in layers]))
    return ResidualNorms(tuple(layers), *means)
