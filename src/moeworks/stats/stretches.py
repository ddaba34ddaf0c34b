"""Neighbouring tokens of a text, for statistics of their order: which rows, where stretches begin, whose they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import BadData, did_you_mean
from moeworks.stats.documents import (
    BLOCKS,
    SAMPLE,
    Documents,
    blocks_of_documents,
    sample_documents,
    selected_documents,
)
from moeworks.stats.sets import check_ids
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["Stretches", "stretches_of", "whole_lengths"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Stretches:
    """Selected tokens of whole documents: n tokens in s stretches of neighbouring positions of one text.

    Attributes:
        trace: where they are.
        rows: for each part the rows that count, in order.
        start, stop: (s,) first token of each stretch and one past the last, counted over the rows of all parts.
        block: (s,) group of documents that each belongs to, below `blocks`.
        value: (s,) index into `values`.
        values: values of the label that are told apart; one empty name without a label.
        blocks, documents: how many.
    """

    trace: Trace
    rows: tuple[Array, ...]
    start: Array
    stop: Array
    block: Array
    value: Array
    values: tuple[str, ...]
    blocks: int
    documents: int

    @property
    def tokens(self) -> int:
        """How many tokens there are."""
        return int(sum(map(len, self.rows)))

    @property
    def entry(self) -> Array:
        """Index of value and block together, (s,): value × blocks + block."""
        return np.asarray(self.value * self.blocks + self.block)

    @property
    def entry_of_token(self) -> Array:
        """Index of value and block of each token, (n,)."""
        return np.repeat(self.entry, self.stop - self.start)

    def slots(self, layer: int) -> Array:
        """Return the experts that ran, (n, k) int16; -1 in slots that did not run.

        Raises:
            BadTrace: an id is not below the number of experts.
        """
        shape = self.trace.header.shape_of(layer)
        found = np.empty((self.tokens, shape.top_k), np.int16)
        done = 0
        for part, rows in zip(self.trace.parts, self.rows, strict=True):
            if not len(rows):
                continue
            whole = len(rows) == len(part)
            ids, weights = part.ids(layer), part.weights(layer)
            ids, weights = (ids, weights) if whole else (ids[rows], weights[rows])
            check_ids(ids, shape.experts)
            here = found[done : done + len(rows)]
            here[:] = ids
            if np.count_nonzero(weights) < weights.size:
                here[weights == 0] = -1
            done += len(rows)
        return found


def whole_lengths(name: str, lengths: Sequence[int]) -> tuple[int, ...]:
    """Return lengths of segments or chunks as whole numbers.

    Raises:
        BadData: there is none, or one is no whole number above 0.
    """
    if not lengths or any(one < 1 or one != int(one) for one in lengths):
        raise BadData(f"{name}={list(lengths)}: lengths are whole numbers of tokens, 1 or more, at least one of them.")
    return tuple(int(one) for one in lengths)


def stretches_of(
    trace: Trace,
    where: Where,
    *,
    label: str | None = None,
    sample: int = SAMPLE,
    most_blocks: int = BLOCKS,
    seed: int = 0,
) -> Stretches:
    """Return the stretches of selected tokens; with a label, texts without it are left out.

    Raises:
        BadData: nothing is selected, or the label is unknown.
    """
    documents, requests = selected_documents(trace, where), trace.request_table()
    if label is not None and label not in requests.labels:
        raise BadData(f"no request has a label '{label}'; {did_you_mean(label, requests.labels)}")
    names = np.full(len(requests), "") if label is None else np.asarray(requests.labels[label])
    counted = (documents.of_text > 0) & ((names != "") | (label is None))
    if not counted.any():
        raise BadData(f"no selected token has a value of the label '{label}'.")
    labelled = np.zeros(len(documents), bool)
    labelled[documents.of_request[counted]] = True
    if not labelled.all():  # documents without the label are not drawn
        documents = Documents(documents.of_request, np.where(labelled, documents.tokens, 0), documents.of_text)
    taken = sample_documents(documents, sample, seed=seed) & labelled
    block_of, blocks = blocks_of_documents(taken, seed=seed, most=most_blocks)
    counted &= taken[documents.of_request]
    values, value_of = np.unique(names[counted], return_inverse=True)
    value = np.zeros(len(requests), np.int64)
    value[counted] = value_of
    rows_of, starts, stops, owners, done = [], [], [], [], 0
    for part in trace.parts:
        rows = part.rows()
        kept = np.flatnonzero(where.mask(rows, requests) & counted[rows.request])
        rows_of.append(kept)
        if not len(kept):
            continue
        request, position = rows.request[kept], rows.position[kept].astype(np.int64)
        new = np.concatenate([[True], (np.diff(request) != 0) | (np.diff(position) != 1)])
        first = np.flatnonzero(new)
        starts.append(done + first)
        stops.append(done + np.append(first[1:], len(kept)))
        owners.append(request[first])
        done += len(kept)
    request = np.concatenate(owners)
    return Stretches(
        trace=trace,
        rows=tuple(rows_of),
        start=np.concatenate(starts),
        stop=np.concatenate(stops),
        block=block_of[documents.of_request[request]],
        value=value[request],
        values=tuple(map(str, values)),
        blocks=blocks,
        documents=int(taken.sum()),
    )
