"""Groups points into exactly as many clusters as are asked for, the same ones every time.

Letters in shapes: N points, F features, K clusters.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.hierarchy import linkage
from torch import Tensor

from moeworks.edit.algebra.neurons import unit_rows
from moeworks.errors import BadData

__all__ = ["Linkage", "agglomerate", "cosine_kmeans", "nearest", "repeats_last", "spherical_kmeans"]

Array = NDArray[Any]
Linkage = Literal["average", "complete", "single", "ward"]

CHUNK = 1 << 24  # numbers of a similarity table held at once


def agglomerate(points: Array, clusters: int, *, method: Linkage = "average", distances: bool = False) -> Array:
    """Return the cluster of each point, (N,), numbered by first member, from agglomerative clustering.

    The dendrogram is scipy's; it is cut by its merges and not by a height, so that ties cannot give fewer clusters.

    Args:
        points: (N, F), Euclidean; with `distances` the condensed distances that scipy takes, (N (N - 1) / 2,).
        clusters: how many, from 1 to N.
        method: linkage.
        distances: whether `points` are distances.

    Raises:
        BadData: such a number of clusters is not possible, or a number is not finite.
    """
    points = np.asarray(points, np.float64)
    count = round((1 + np.sqrt(1 + 8 * len(points))) / 2) if distances else len(points)
    if not 1 <= clusters <= count:
        raise BadData(f"{count} points cannot be {clusters} clusters.")
    if not np.isfinite(points).all():
        raise BadData("points to cluster have numbers that are not finite.")
    parents = list(range(2 * count - 1))
    if clusters < count:
        merges = linkage(points, method)[: count - clusters, :2].astype(int)
        for step, (left, right) in enumerate(merges.tolist()):
            parents[left] = parents[right] = count + step
    roots = [_root(parents, point) for point in range(count)]
    names = {root: number for number, root in enumerate(dict.fromkeys(roots))}
    return np.array([names[root] for root in roots])


def _root(parents: list[int], node: int) -> int:
    while parents[node] != node:
        node = parents[node]
    return node


def nearest(points: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest cosine of each point to a centre and which it is, (N,) each; the first of equal ones.

    The table of similarities is made in parts of bounded size. Cosines with a point of 0 are 0.
    """
    unit, rows = unit_rows(centres), max(1, CHUNK // max(1, len(centres)))
    best, index = [], []
    for start in range(0, len(points), rows):
        similarity = unit_rows(points[start : start + rows]) @ unit.T  # (rows, K)
        value = similarity.amax(1)
        best.append(value)
        index.append((similarity == value[:, None]).to(torch.uint8).argmax(1))  # max() may return any of equal ones
    return torch.cat(best), torch.cat(index)


def repeats_last(points: Tensor, order: Tensor, *, tolerance: float = 1e-5) -> Tensor:
    """Return the order with points that point the same way as an earlier one moved to its end, (N,).

    Args:
        points: (N, F).
        order: (N,) numbers of the points, the first the most wanted.
        tolerance: one minus the cosine from which two are told apart.
    """
    unit, rows = unit_rows(points[order]), max(1, CHUNK // max(1, len(points)))
    repeated = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    for start in range(0, len(points), rows):
        stop = min(start + rows, len(points))
        earlier = (
            torch.arange(stop, device=points.device)[None] < torch.arange(start, stop, device=points.device)[:, None]
        )
        repeated[start:stop] = ((unit[start:stop] @ unit[:stop].T > 1 - tolerance) & earlier).any(1)
    return torch.cat([order[~repeated], order[repeated]])


def spherical_kmeans(
    points: Tensor, weights: Tensor, initial: Tensor, *, iterations: int = 30
) -> tuple[Tensor, Tensor]:
    """Return (cluster of each point (N,), centres (K, F)) by weighted k-means on directions.

    A point goes to the centre of the largest cosine. Inside a cluster members are rescaled to their mean length,
    averaged by weight, and the mean is given that length again. A cluster without members keeps its centre, so that a
    neuron that an equal one took the members of is not lost.

    Args:
        points: (N, F).
        weights: (N,), none negative; a cluster in which all are 0 counts members alike.
        initial: (K, F) first centres.
        iterations: at most so many; it stops where no point moves.

    Source: DERN (arXiv 2509.10377) [secondary]; whether the mean length is weighted is not in what was read, here not.
    """
    centres, labels = initial.clone(), torch.full((len(points),), -1, device=points.device)
    unit, length = unit_rows(points), points.norm(dim=1)
    for _ in range(iterations):
        moved = nearest(points, centres)[1]
        if bool((moved == labels).all()):
            break
        labels = moved
        mass = torch.zeros(len(centres), dtype=points.dtype, device=points.device).index_add_(
            0, labels, weights.to(points)
        )
        share = torch.where(mass[labels] > 0, weights.to(points), torch.ones_like(length))
        count = torch.bincount(labels, minlength=len(centres)).to(points)  # (K,)
        common = torch.zeros_like(mass).index_add_(0, labels, length) / count.clamp(min=1)
        direction = torch.zeros_like(centres).index_add_(0, labels, unit * share[:, None])
        # Of members that cancel out to 0 there is no direction; their first centre stays.
        usable = (count > 0) & (direction.norm(dim=1) > 0)
        centres = torch.where(usable[:, None], unit_rows(direction) * common[:, None], centres)
    return labels, centres


def cosine_kmeans(points: Array, clusters: int, *, seed: int = 0, iterations: int = 100) -> Array:
    """Return the cluster of each point, (N,), numbered by first member, from k-means++ on directions.

    First centres are drawn with probability in proportion to one minus the cosine to the nearest centre so far; a
    cluster that runs empty takes the point that is farthest from its own centre. Exactly `clusters` come out.

    Raises:
        BadData: such a number of clusters is not possible, or a number is not finite.
    """
    points = np.asarray(points, np.float64)
    if not 1 <= clusters <= len(points):
        raise BadData(f"{len(points)} points cannot be {clusters} clusters.")
    if not np.isfinite(points).all():
        raise BadData("points to cluster have numbers that are not finite.")
    length = np.linalg.norm(points, axis=1, keepdims=True)
    unit = np.divide(points, length, out=np.zeros_like(points), where=length > 0)
    centres = unit[_plus_plus(unit, clusters, np.random.default_rng(seed))]
    labels = np.full(len(points), -1)
    for _ in range(iterations):
        similarity = unit @ centres.T  # (N, K)
        moved = similarity.argmax(1)
        for cluster in range(clusters):
            if not (moved == cluster).any():
                shared = np.bincount(moved, minlength=clusters)[moved] > 1
                distance = np.where(shared, 1 - similarity[np.arange(len(points)), moved], -np.inf)
                moved[int(distance.argmax())] = cluster
        if (moved == labels).all():
            break
        labels = moved
        for cluster in range(clusters):
            direction = unit[labels == cluster].sum(0)
            norm = np.linalg.norm(direction)
            centres[cluster] = direction / norm if norm > 0 else unit[labels == cluster][0]
    names = {label: number for number, label in enumerate(dict.fromkeys(labels.tolist()))}
    return np.array([names[label] for label in labels.tolist()])


def _plus_plus(unit: Array, clusters: int, random: np.random.Generator) -> list[int]:
    chosen = [int(random.integers(len(unit)))]
    while len(chosen) < clusters:
        distance = np.clip(1 - (unit @ unit[chosen].T).max(1), 0, None)
        distance[chosen] = 0
        if distance.sum() > 0:
            chosen.append(int(random.choice(len(unit), p=distance / distance.sum())))
        else:  # all that are left equal a centre
            chosen.append(min(set(range(len(unit))) - set(chosen)))
    return chosen
