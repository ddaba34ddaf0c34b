"""EPLB: which experts get copies and on which GPU they lie, so that GPUs carry equal loads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import BadData

__all__ = ["Placement", "gpu_loads", "imbalance", "plain_placement", "rebalance"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Placement:
    """Where copies of experts lie; l layers, R slots over all GPUs, slots of one GPU stand together.

    Attributes:
        physical_to_logical: (l, R) expert in each slot.
        logical_to_physical: (l, E, most copies) slots of each expert, padded with -1.
        copies: (l, E) how many copies each expert has.
        gpus: number of GPUs.
    """

    physical_to_logical: Array
    logical_to_physical: Array
    copies: Array
    gpus: int


def rebalance(loads: Array, *, replicas: int, gpus: int, groups: int = 1, nodes: int = 1) -> Placement:
    """Return the placement of EPLB for given loads.

    Hierarchical where groups divide by nodes: groups are packed to nodes, copies made inside a node, and its copies
    packed to its GPUs; else all of that once, over all GPUs.

    Args:
        loads: (l, E) load of each expert, such as its runs.
        replicas: R slots over all GPUs, at least E.
        gpus: number of GPUs; R divides by it.
        groups: groups of experts, for routers that choose among groups; E divides by it.
        nodes: number of machines; GPUs and R divide by it.

    Raises:
        BadData: something does not divide, or there are fewer slots than experts.

    Source: the published algorithm (github deepseek-ai/EPLB), restated: copies go one at a time to the largest load
    per copy; packing goes by falling load, each to the lightest pack that has room.
    """
    weight = np.asarray(loads, np.float64)
    if weight.ndim != 2:
        raise BadData(f"loads have the shape (layers, experts), not {weight.shape}.")
    experts = weight.shape[1]
    for what, whole, by in (
        ("experts", experts, groups), ("GPUs", gpus, nodes), ("slots", replicas, gpus), ("slots", replicas, nodes)
    ):  # fmt: skip
        if by < 1 or whole % by:
            raise BadData(f"{whole} {what} cannot be divided by {by}; choose numbers that divide.")
    if replicas < experts:
        raise BadData(f"{replicas} slots do not hold {experts} experts; give at least as many slots as experts.")
    if groups % nodes:
        groups = nodes = 1
    layers = [_place(row, replicas, groups, nodes, gpus) for row in weight]
    physical = np.stack([slots for slots, _ in layers])
    rank = np.stack([ranks for _, ranks in layers])
    copies = np.stack([np.bincount(row, minlength=experts) for row in physical])
    logical = np.full((*weight.shape, int(copies.max())), -1, np.int64)
    logical[np.arange(len(weight))[:, None], physical, rank] = np.arange(replicas)
    return Placement(physical, logical, copies, gpus)


def plain_placement(layers: int, experts: int, gpus: int) -> Placement:
    """Return the placement without copies: experts in their own order, E / GPUs on each."""
    if experts % gpus:
        raise BadData(f"{experts} experts cannot be divided by {gpus} GPUs; choose numbers that divide.")
    slots = np.tile(np.arange(experts), (layers, 1))
    return Placement(slots, slots[:, :, None], np.ones((layers, experts), np.int64), gpus)


def gpu_loads(loads: Array, placement: Placement) -> Array:
    """Return the load of each GPU, (…, l, GPUs), from loads of experts, (…, l, E); copies share a load evenly."""
    share = loads / placement.copies
    index = np.broadcast_to(placement.physical_to_logical, (*loads.shape[:-1], placement.physical_to_logical.shape[1]))
    slots = np.take_along_axis(share, index, axis=-1)
    return np.asarray(slots.reshape(*slots.shape[:-1], placement.gpus, -1).sum(-1))


def imbalance(loads: Array) -> Array:
    """Return the largest load / the mean load over the last axis; 1 is even, NaN where there is no load."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(loads.max(-1) / loads.mean(-1))


def _pack(weight: Array, packs: int) -> tuple[Array, Array]:
    """Return the pack of each item, (n,), and its place in it: by falling weight, each to the lightest with room."""
    room = len(weight) // packs
    if room == 1:
        return np.arange(len(weight)), np.zeros(len(weight), np.int64)
    pack, place = np.empty(len(weight), np.int64), np.empty(len(weight), np.int64)
    total, filled = np.zeros(packs), np.zeros(packs, np.int64)
    for item in np.argsort(-weight, kind="stable"):
        chosen = int(np.argmin(np.where(filled < room, total, np.inf)))
        pack[item], place[item] = chosen, filled[chosen]
        filled[chosen] += 1
        total[chosen] += weight[item]
    return pack, place


def _replicate(weight: Array, slots: int) -> tuple[Array, Array, Array]:
    """Return the expert and the copy number of each slot, (slots,), and the copies of each expert."""
    experts = len(weight)
    owner, rank = np.empty(slots, np.int64), np.zeros(slots, np.int64)
    owner[:experts] = np.arange(experts)
    copies = np.ones(experts, np.int64)
    for slot in range(experts, slots):
        chosen = int(np.argmax(weight / copies))
        owner[slot], rank[slot] = chosen, copies[chosen]
        copies[chosen] += 1
    return owner, rank, copies


def _place(weight: Array, replicas: int, groups: int, nodes: int, gpus: int) -> tuple[Array, Array]:
    """Return the expert and copy number in each slot, (R,), of one layer."""
    size = len(weight) // groups
    node, place = _pack(weight.reshape(groups, size).sum(1), nodes)
    slots, ranks = [], []
    for number in range(nodes):
        mine = np.flatnonzero(node == number)
        mine = mine[np.argsort(place[mine])]  # groups of this node in the order in which they were packed
        experts = (mine[:, None] * size + np.arange(size)).ravel()
        owner, rank, copies = _replicate(weight[experts], replicas // nodes)
        gpu, seat = _pack((weight[experts] / copies)[owner], gpus // nodes)
        order = np.lexsort((seat, gpu))
        slots.append(experts[owner[order]])
        ranks.append(rank[order])
    return np.concatenate(slots), np.concatenate(ranks)
