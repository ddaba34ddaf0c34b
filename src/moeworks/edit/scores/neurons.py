"""Scores of neurons inside experts: a number for each neuron, the higher the more it is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from moeworks.edit.scores.base import Array, divided, needs
from moeworks.edit.statistics import LayerStatistics
from moeworks.errors import BadData
from moeworks.registry import Registry

if TYPE_CHECKING:
    from moeworks.edit.layer import LayerWeights

__all__ = ["NEURON_SCORES", "NeuronScore", "camera", "enp", "heapr", "random_neurons"]

# (statistics, *, …options) → for each layer (E, I) float64
NeuronScore = Callable[..., list[Array]]
NEURON_SCORES: Registry[NeuronScore] = Registry("neuron score", "moeworks.neuron_scores")


@NEURON_SCORES.register("camera")
@needs("neurons", "weights")
def camera(
    statistics: Sequence[LayerStatistics],
    *,
    layers: Iterable[LayerWeights],
    label: str | None = None,
    rho: float = 0.9,
) -> list[Array]:
    """What a neuron sends out: squared length of its down column times mixed sum and maximum of its squared activation.

    Source: CAMERA-P, arXiv 2508.02322 (AAAI 2026): |D_j|^2 ((1 - rho) sum (g a_j)^2 + rho max (g a_j)^2), with the
    router's weight g. rho is 0.9 as in the paper's run script; the default of its command line is 1. The paper prunes
    layer by layer, later layers on the pruned output of earlier ones; here all layers are scored on the whole model.
    """
    if not 0 <= rho <= 1:
        raise BadData("rho is from 0 (sum) to 1 (maximum).")
    found = []
    for statistic, layer in zip(statistics, layers, strict=True):
        column = layer.down.double().square().sum(1).cpu().numpy()  # (E, I)
        total, peak = statistic.get("neuron_square", label), statistic.get("neuron_peak", label)
        if total.shape != column.shape:
            raise BadData(
                f"layer {statistic.layer}: statistics of {total.shape} and weights of {column.shape} experts and "
                "neurons are not of one model."
            )
        found.append(np.asarray(column * ((1 - rho) * total + rho * peak.astype(np.float64) ** 2)))
    return found


@NEURON_SCORES.register("heapr")
@needs("gradients")
def heapr(statistics: Sequence[LayerStatistics], *, label: str | None = None) -> list[Array]:
    """Second-order estimate of what the loss gains or loses without the neuron; compared over all layers.

    Source: HEAPr, arXiv 2509.22299 (ICLR 2026) [secondary], whose score is E[o_j' G_e o_j] with G_e the mean outer
    product of loss gradients at the expert's output. Here the gradient of the same token is used, sum of (o_j .
    dL/dy)^2, which needs no matrix of d × d; summed over tokens and not divided by the expert's own, so that neurons
    that hardly ever run cost little.
    """
    return [layer.get("neuron_loss", label).astype(np.float64) for layer in statistics]


@NEURON_SCORES.register("enp")
@needs("neurons")
def enp(statistics: Sequence[LayerStatistics], *, label: str | None = None) -> list[Array]:
    """Mean projection of what the neuron adds onto the direction of the expert's output.

    Source: TENP, arXiv 2606.09885 [secondary]: mean over the expert's tokens of <D_j a_j, f(x)> / |f(x)|. Equal widths
    give its ENP; important experts whole and the others cut, its TENP (`widths=important`).
    """
    return [
        divided(layer.get("neuron_projection", label).astype(np.float64), layer.get("count", label)[:, None])
        for layer in statistics
    ]


@NEURON_SCORES.register("random_neurons")
@needs("weights")
def random_neurons(
    statistics: Sequence[LayerStatistics], *, layers: Iterable[LayerWeights], seed: int = 0
) -> list[Array]:
    """A number drawn for each neuron: the baseline beside neuron scores."""
    generator = np.random.default_rng(seed)
    return [generator.random((layer.experts, layer.neurons)) for layer in layers]
