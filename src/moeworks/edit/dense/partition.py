"""Cuts the neurons of a dense layer into equal pieces, so that all pieces together are the layer.

Sources: the identity is algebra; clusters of rows of the gate projection as in MoEfication, balanced by an assignment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moeworks.edit.dense.ffn import Ffn, Inputs, Split, from_neurons
from moeworks.edit.dense.registry import UPCYCLINGS, piece_width
from moeworks.errors import BadPlan

__all__ = ["balanced_assignment", "balanced_kmeans", "contiguous", "partition"]

How = Literal["contiguous", "random", "kmeans"]


@UPCYCLINGS.register("partition")
def partition(
    ffn: Ffn,
    inputs: Inputs | None = None,
    *,
    experts: int,
    top_k: int = 2,
    shared: int = 0,
    seed: int = 0,
    others: Sequence[Ffn] = (),
    by: How = "contiguous",
    iterations: int = 3,
) -> Split:
    """Cut the layer into E + shared pieces of one width; each neuron is in exactly one.

    Args:
        ffn: the dense layer.
        inputs: not used.
        experts, shared: numbers of routed and shared pieces.
        top_k: not used.
        seed: of what is drawn.
        others: not used.
        by: neighbouring neurons; neurons drawn at random; or balanced k-means of the normalised rows of the gate
            projection. Shared are the first ones (of those drawn, the first drawn): nothing here knows better.
        iterations: of k-means.

    Raises:
        BadPlan: the pieces cannot be equal.
    """
    width = piece_width(ffn.neurons, experts, shared)
    if by == "contiguous":
        order = list(range(ffn.neurons))
    elif by == "random":
        order = torch.randperm(ffn.neurons, generator=torch.Generator().manual_seed(seed)).tolist()
    elif by == "kmeans":
        rows = torch.nn.functional.normalize(ffn.gate.float(), dim=1).numpy()
        common = list(range(width * shared))
        rest = [neuron for neuron in range(ffn.neurons) if neuron >= len(common)]
        groups = balanced_kmeans(rows[rest], experts, seed=seed, iterations=iterations)
        return from_neurons(ffn, [[rest[i] for i in group] for group in groups], common)
    else:
        raise BadPlan(f"a partition is by contiguous, random or kmeans, not '{by}'.")
    return from_neurons(ffn, contiguous(order[shared * width :], width), sorted(order[: shared * width]))


def contiguous(neurons: Sequence[int], width: int) -> list[list[int]]:
    """Return neighbouring pieces of one width."""
    return [sorted(neurons[start : start + width]) for start in range(0, len(neurons), width)]


def balanced_assignment(distances: NDArray[np.floating]) -> list[list[int]]:
    """Return for each of E centres the rows given to it, equally many to each, so that the sum of distances is least.

    The linear assignment problem with each centre standing m / E times (scipy's Jonker–Volgenant): m squared numbers,
    8 bytes each, and time that can grow with m cubed; 10,000 neurons take about a gigabyte.

    Args:
        distances: (m, E) of rows to centres; E divides m.
    """
    from scipy.optimize import linear_sum_assignment

    rows, centres = distances.shape
    size = rows // centres
    _, columns = linear_sum_assignment(np.repeat(distances, size, axis=1))
    owner = columns // size
    return [np.flatnonzero(owner == centre).tolist() for centre in range(centres)]


def balanced_kmeans(
    rows: NDArray[np.floating], clusters: int, *, seed: int = 0, iterations: int = 3
) -> list[list[int]]:
    """Return equally large clusters of rows, by k-means whose assignment is balanced; the first centres are drawn."""
    draw = np.random.default_rng(seed)
    centres = rows[draw.choice(len(rows), clusters, replace=False)]
    groups: list[list[int]] = []
    for _ in range(max(iterations, 1)):
        squares = (rows**2).sum(1)[:, None] - 2 * rows @ centres.T + (centres**2).sum(1)  # (m, E)
        found = balanced_assignment(squares)
        if found == groups:
            break
        groups = found
        centres = np.stack([rows[group].mean(0) for group in groups])
    return groups


def as_array(values: Tensor) -> NDArray[np.float64]:
    """Return a tensor as float64 numpy."""
    return values.detach().double().numpy()
