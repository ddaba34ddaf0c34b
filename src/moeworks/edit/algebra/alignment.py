"""Puts the neurons of one expert into the order of another's: the order of neurons is free, so means need one first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from moeworks.edit.algebra.neurons import PARTS, Expert, Part, neuron_features, reorder, unit_rows
from moeworks.errors import BadData

__all__ = ["Cost", "activation_cost", "align", "assign", "neuron_cost", "reduced_cost"]

Cost = Literal["squared", "cosine"]


def assign(cost: Tensor) -> Tensor:
    """Return for each row the column it is paired with, (I,), so that the sum of costs is least (Hungarian method).

    Args:
        cost: (I, I).

    Raises:
        BadData: the costs are not square or not finite.
    """
    if cost.ndim != 2 or cost.shape[0] != cost.shape[1] or not bool(torch.isfinite(cost).all()):
        raise BadData("an assignment needs a square table of finite costs.")
    _, columns = linear_sum_assignment(cost.detach().double().cpu().numpy())
    return torch.from_numpy(columns).to(cost.device)


def neuron_cost(reference: Expert, other: Expert, *, cost: Cost = "squared", parts: Sequence[Part] = PARTS) -> Tensor:
    """Return the cost of standing neuron k of `other` in the place of neuron j of `reference`, (I, I).

    `squared` is |up_j - up_k|^2 + |gate_j - gate_k|^2 + |down_j - down_k|^2 over the parts and their biases, `cosine`
    one minus the cosine of the concatenated parts (1 where either is 0).
    """
    a, b = neuron_features(reference, parts), neuron_features(other, parts)  # (I, F)
    if cost == "cosine":
        return 1 - unit_rows(a) @ unit_rows(b).T
    return ((a * a).sum(1)[:, None] + (b * b).sum(1)[None, :] - 2 * (a @ b.T)).clamp(min=0)


def activation_cost(reference: Tensor, other: Tensor) -> Tensor:
    """Return the Euclidean distance of neurons by their activations on the same rows, each of unit length, (I, I).

    Args:
        reference: (n, I) activations.
        other: (n, I).
    """
    cosine = unit_rows(reference.T.double()) @ unit_rows(other.T.double()).T  # (I, I)
    silent = (reference == 0).all(0)[:, None], (other == 0).all(0)[None, :]
    square = (~silent[0]).double() + (~silent[1]).double() - 2 * cosine  # |a|^2 + |b|^2 - 2ab, lengths 1 or 0
    return square.clamp(min=0).sqrt()


def reduced_cost(reference: Expert, other: Expert, *, dimensions: int = 64) -> Tensor:
    """Return the Euclidean distance of unit-length neuron triples after PCA of both experts' together, (I, I).

    Source: REAM (arXiv 2604.04356, released code: PCA-64 of normalised triples). What the PCA is fitted on is not in
    what was read; here on the neurons of the two experts.
    """
    stacked = torch.cat([unit_rows(neuron_features(e).double()) for e in (reference, other)])  # (2 I, F)
    centred = stacked - stacked.mean(0)
    rank = min(dimensions, *centred.shape)
    # Both Gram matrices have the leading directions of the data; the smaller one is taken.
    if centred.shape[0] <= centred.shape[1]:
        values, vectors = torch.linalg.eigh(centred @ centred.T)
        reduced = vectors[:, -rank:] * values[-rank:].clamp(min=0).sqrt()
    else:
        reduced = centred @ torch.linalg.eigh(centred.T @ centred)[1][:, -rank:]
    first, second = reduced[: reference.neurons], reduced[reference.neurons :]
    distance: Tensor = torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")
    return distance


def align(reference: Expert, other: Expert, cost: Tensor | None = None) -> Expert:
    """Return `other` with its neurons in the order that fits `reference` best; the function is the same.

    Args:
        reference: the expert that gives the order.
        other: the expert that is reordered.
        cost: (I, I) cost of neuron k of `other` in place j; without one, `neuron_cost`.
    """
    return reorder(other, assign(neuron_cost(reference, other) if cost is None else cost))
