"""Texts by value of a label and random group of documents: counts of them, resampled or with values exchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import BadData, did_you_mean
from moeworks.stats.documents import Documents, blocks_of_documents, selected_documents
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["LabelBlocks", "label_blocks"]

Array = NDArray[Any]
_BLOCKS = 128


@dataclass(frozen=True)
class LabelBlocks:
    """Selected texts that have the label: v values × b blocks of documents.

    Attributes:
        values: names of the label's values.
        of_request: (m,) value × blocks + block of each request, -1 where it does not count.
        tokens: (v, b).
        documents: (v,) of each value.
        several: whether a document holds texts of several values, as translations do.
    """

    values: tuple[str, ...]
    of_request: Array
    tokens: Array
    documents: Array
    several: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Values and blocks."""
        return len(self.values), self.tokens.shape[1]

    def add(self, trace: Trace, where: Where, layers: Mapping[int, int], add: Callable[..., None]) -> dict[int, Array]:
        """Return what `add_runs` or `add_shares` gives, layer → (v, b, E)."""
        requests = trace.request_table()
        sums = {layer: np.zeros((self.tokens.size, experts)) for layer, experts in layers.items()}
        for part in trace.parts:
            rows = part.rows()
            entry = np.where(where.mask(rows, requests), self.of_request[rows.request], -1)
            for layer in layers:
                add(sums[layer], entry, part.ids(layer), part.weights(layer))
        return {layer: one.reshape(*self.shape, -1) for layer, one in sums.items()}

    def exchanged(self, sums: Array, count: int, *, seed: int) -> Iterator[Array]:
        """Yield sums by value, (v, …), of (v, b, …) ones whose blocks changed values at random, `count` times.

        Where documents hold several values, values change places within a block of documents; else between all.
        """
        v, b = self.shape
        rng = np.random.default_rng([seed, 31])
        flat, there = sums.reshape(v * b, -1), (self.tokens > 0).ravel()
        value, block = np.repeat(np.arange(v), b)[there], np.tile(np.arange(b), v)[there]
        among = block if self.several else np.zeros(len(block), np.int64)
        order = np.argsort(among, kind="stable")
        for _ in range(count):
            drawn = np.empty_like(value)
            drawn[order] = value[np.argsort(among + rng.random(len(among)), kind="stable")]
            yield ((drawn == np.arange(v)[:, None]).astype(float) @ flat[there]).reshape(v, *sums.shape[2:])


def label_blocks(trace: Trace, where: Where, label: str, *, sample: int, seed: int) -> LabelBlocks:
    """Return the selected texts by value of a label and block of documents.

    Raises:
        BadData: nothing is selected, the label is unknown, or has one value only.
    """
    requests = trace.request_table()
    documents: Documents = selected_documents(trace, where, sample=sample, seed=seed)
    if label not in requests.labels:
        raise BadData(f"no request has a label '{label}'; {did_you_mean(label, requests.labels)}")
    names = np.asarray(requests.labels[label])
    counted = np.flatnonzero((documents.of_text > 0) & (names != ""))
    values, value = np.unique(names[counted], return_inverse=True)
    if len(values) < 2:
        raise BadData(f"the selected tokens have {len(values)} value of '{label}'; at least two are told apart.")
    document = documents.of_request[counted]
    pairs = np.unique(value * len(documents) + document)  # (value, document)
    several = len(np.unique(pairs % len(documents))) < len(pairs)
    # Blocks are drawn for each value by itself, so that each has as many documents of it as another.
    block = np.empty(len(counted), np.int64)
    count = 1
    if several:
        of_document, count = blocks_of_documents(np.ones(len(documents), bool), seed=seed, most=_BLOCKS)
        block = of_document[document]
    else:
        for v in range(len(values)):
            mine = np.zeros(len(documents), bool)
            mine[document[value == v]] = True
            of_document, blocks = blocks_of_documents(mine, seed=seed, most=_BLOCKS)
            block[value == v] = of_document[document[value == v]]
            count = max(count, blocks)
    of_request = np.full(len(requests), -1)
    of_request[counted] = value * count + block
    tokens = np.bincount(of_request[counted], weights=documents.of_text[counted], minlength=len(values) * count)
    return LabelBlocks(
        values=tuple(map(str, values)),
        of_request=of_request,
        tokens=tokens.reshape(len(values), count),
        documents=np.bincount(pairs // len(documents), minlength=len(values)),
        several=several,
    )
