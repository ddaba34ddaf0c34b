"""Experts that carry most of the routing mass whatever the label: a standing committee."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks.errors import BadData, did_you_mean
from moeworks.stats.counts import add_shares, layer_batches, layers_of
from moeworks.stats.documents import SAMPLE, draw_documents, percentiles, selected_documents
from moeworks.stats.sets import chance_jaccard
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["gini", "standing_committee", "top_experts"]

Array = NDArray[Any]


def standing_committee(
    trace: Trace,
    *,
    label: str,
    where: Where = Where(),
    size: int = 5,
    presence: float = 1.0,
    permutations: int = 100,
    sample: int = SAMPLE,
    bootstrap: int = 200,
    seed: int = 0,
    budget_bytes: int = 256 << 20,
) -> pa.Table:
    """Return how much of the routing mass the same few experts carry for every value of a label, a row per layer.

    Mass of an expert is its combine weight, each token's weights divided by their sum. The top of a value are the
    `size` experts of largest mass in its tokens. Rule of membership: an expert is in the committee if it is among the
    top of at least the share `presence` of the values. A value counts alike whatever its number of tokens.

    Columns: `layer`; `top_share`, mass of a value's top, mean over values, its 95 % interval `low`, `high` with the
    tops as found, and `chance`, size / E, what even use gives; `jaccard`, overlap of two values' tops, mean over pairs,
    `jaccard_low`, `jaccard_high`, beside `jaccard_chance` (two random sets) and `jaccard_permuted` (mean with the
    documents' labels permuted: as alike as the tops are if the label is of no matter; below it, the label moves the
    top); `gini` of the mean mass (0 even, 1 - 1 / E all on one), `gini_low`, `gini_high`, `gini_chance` 0; `members`,
    expert numbers by falling mass, and `member_share`, their mass; `values`, `documents`, `tokens`.

    Source: standing committee (arXiv 2601.03425, abstract: few experts hold most of the mass across domains, Jaccard
    about .87, Gini above .9). The paper's own rule of membership is not in the abstract; this one is ours.

    Args:
        trace: the trace.
        label: the label whose values are compared; texts without it are left out.
        where: which tokens and layers count.
        size: how many experts make a top.
        presence: see above; 1 asks for every value.
        permutations: of the documents' labels.
        sample: tokens of whole documents drawn at random that are looked at; 0 takes all.
        bootstrap: resamplings of documents within their values.
        seed: of both.
        budget_bytes: memory for sums, documents × experts × 8 bytes; layers that do not fit take further passes.

    Raises:
        BadData: the label is unknown or has one value only, or `size` does not fit a layer.
    """
    layers = layers_of(trace, where)
    small = min(layers.values())
    if not 1 <= size < small or not 0 < presence <= 1:
        raise BadData(f"size={size}, presence={presence}; a top has 1 to {small - 1} experts, presence is 0 to 1.")
    groups = _groups(trace, where, label, sample, seed)
    lines: list[dict[str, Any]] = []
    for batch in layer_batches(layers, len(groups.value), budget_bytes=budget_bytes):
        for layer, mass in _mass(trace, where, groups, batch).items():
            lines.append(
                {"layer": layer, **_describe(mass, groups, size, presence, permutations, bootstrap, seed)}
            )  # fmt: skip
    return pa.Table.from_pylist(lines)


def gini(mass: Array) -> Array:
    """Return the Gini coefficient over the last axis: 0 where all are equal, 1 - 1 / E where one has all."""
    ordered, count = np.sort(mass, -1), mass.shape[-1]
    rank = 2 * np.arange(1, count + 1) - count - 1  # (E,)
    return np.asarray((ordered * rank).sum(-1) / (count * ordered.sum(-1)))


def top_experts(mass: Array, size: int) -> Array:
    """Return which experts have the largest mass, (…, E) booleans; of equal ones those with lower numbers."""
    order = np.argsort(-mass, axis=-1, kind="stable")[..., :size]
    found = np.zeros(mass.shape, bool)
    np.put_along_axis(found, order, True, axis=-1)
    return found


class _Groups(NamedTuple):
    """Texts by value of the label and document: g groups."""

    values: list[str]
    value: Array  # (g,) index into values
    document: Array  # (g,)
    of_request: Array  # (m,) group of each request, or -1
    tokens: int


def _groups(trace: Trace, where: Where, label: str, sample: int, seed: int) -> _Groups:
    requests, documents = trace.request_table(), selected_documents(trace, where, sample=sample, seed=seed)
    if label not in requests.labels:
        raise BadData(f"no request has a label '{label}'; {did_you_mean(label, requests.labels)}")
    counted = np.flatnonzero((documents.of_text > 0) & (requests.labels[label] != ""))
    values, value = np.unique(requests.labels[label][counted], return_inverse=True)
    if len(values) < 2:
        raise BadData(f"all selected tokens have the same value of '{label}'; tops of several values are compared.")
    found, group = np.unique(value * len(documents) + documents.of_request[counted], return_inverse=True)
    of_request = np.full(len(requests), -1)
    of_request[counted] = group
    return _Groups(
        [str(name) for name in values],
        found // len(documents),
        found % len(documents),
        of_request,
        int(documents.of_text[counted].sum()),
    )


def _mass(trace: Trace, where: Where, groups: _Groups, layers: Mapping[int, int]) -> dict[int, Array]:
    """Return the mass of each expert in each group, layer → (g, E)."""
    requests = trace.request_table()
    sums = {layer: np.zeros((len(groups.value), experts)) for layer, experts in layers.items()}
    for part in trace.parts:
        rows = part.rows()
        entry = np.where(where.mask(rows, requests), groups.of_request[rows.request], -1)
        for layer in layers:
            add_shares(sums[layer], entry, part.ids(layer), part.weights(layer))
    return sums


def _describe(
    mass: Array, groups: _Groups, size: int, presence: float, permutations: int, bootstrap: int, seed: int
) -> dict[str, Any]:
    count, experts = len(groups.values), mass.shape[1]
    members = [np.flatnonzero(groups.value == v) for v in range(count)]
    share = _shares(np.stack([mass[rows].sum(0) for rows in members]))  # (v, E)
    top = top_experts(share, size)
    mean = share.mean(0)  # (E,)
    committee = np.flatnonzero(top.mean(0) >= presence - 1e-9)
    committee = committee[np.argsort(-mean[committee], kind="stable")]

    drawn = np.stack(
        [
            np.concatenate([w @ mass[rows] for w in draw_documents(len(rows), samples=bootstrap, seed=seed * 1000 + v)])
            for v, rows in enumerate(members)
        ],
        axis=1,
    )  # (samples, v, E)
    drawn = _shares(drawn)
    fewest = min(map(len, members))
    low, high = percentiles((drawn * top).sum(-1).mean(-1), fewest)
    jaccard_low, jaccard_high = percentiles(_jaccard(top_experts(drawn, size)), fewest)
    gini_low, gini_high = percentiles(gini(drawn.mean(1)), fewest)

    permuted = np.stack(
        [
            (value == np.arange(count)[:, None]).astype(np.float64) @ mass
            for value in _permutations(groups, permutations, seed)
        ]
    )  # (permutations, v, E)
    return {
        "top_share": float((share * top).sum(-1).mean()),
        "low": float(low),
        "high": float(high),
        "chance": size / experts,
        "jaccard": float(_jaccard(top[None])[0]),
        "jaccard_low": float(jaccard_low),
        "jaccard_high": float(jaccard_high),
        "jaccard_chance": chance_jaccard(experts, size),
        "jaccard_permuted": float(_jaccard(top_experts(_shares(permuted), size)).mean()),
        "gini": float(gini(mean)),
        "gini_low": float(gini_low),
        "gini_high": float(gini_high),
        "gini_chance": 0.0,
        "members": committee.tolist(),
        "member_share": float(mean[committee].sum()),
        "values": count,
        "documents": len(np.unique(groups.document)),
        "tokens": groups.tokens,
    }


def _permutations(groups: _Groups, count: int, seed: int) -> Iterator[Array]:
    """Yield the groups' values, (g,), changed about: within documents that have several, else between documents."""
    rng = np.random.default_rng([seed, 14])
    _, where, times = np.unique(groups.document, return_inverse=True, return_counts=True)
    among = np.where(times[where] > 1, 1 + groups.document, 0)
    order = np.argsort(among, kind="stable")
    for _ in range(count):
        value = np.empty_like(groups.value)
        value[order] = groups.value[np.argsort(among + rng.random(len(among)))]
        yield value


def _shares(mass: Array) -> Array:
    total = mass.sum(-1, keepdims=True)
    return np.asarray(mass / np.where(total > 0, total, 1.0))


def _jaccard(tops: Array) -> Array:
    """Return the mean Jaccard index over all pairs of values, (b,), of tops (b, v, E)."""
    pairs = np.array(list(combinations(range(tops.shape[1]), 2)))  # (pairs, 2)
    first, second = tops[:, pairs[:, 0]], tops[:, pairs[:, 1]]  # (b, pairs, E)
    return np.asarray(((first & second).sum(-1) / (first | second).sum(-1)).mean(-1))
