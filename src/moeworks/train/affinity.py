"""Which expert the routers turn to on some texts: mean probability of every expert, the top one, how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeworks.address import Address
from moeworks.contract import Contract
from moeworks.errors import BadData, Unsupported
from moeworks.find.amounts import probabilities
from moeworks.trace import Trace
from moeworks.where import Where

__all__ = ["Affinity", "Target", "add_by_document", "affinity_of_trace", "left_out", "overlap", "with_weights"]

Array = NDArray[Any]
ROWS = 65_536  # rows scored at once


class Target(NamedTuple):
    """The expert that unlearning trains, and how clearly it is the top one."""

    address: Address
    affinity: float
    runner_up: Address
    runner_up_affinity: float
    stability: float  # share of bootstrap samples of documents in which it stays the top one
    near_tie: bool  # stability below 0.95, or no more than one document to judge it by

    @property
    def gap(self) -> float:
        """How much more affinity it has than the runner-up."""
        return self.affinity - self.runner_up_affinity


@dataclass(frozen=True)
class Affinity:
    """Mean router probability of every expert, by document: s[l, e] = mean_j mean_t g[l, e, t].

    Source: SEUF, arXiv 2411.18797 (the paper's Z texts of L_j tokens each are our documents; it takes at least 100,000
    forget tokens). g is the paper's softmax over all experts; other routers' scores are divided by their sum, as in the
    score `affinity` of `moeworks.find`.

    Attributes:
        layers: global layer numbers.
        documents: (documents, layers, E) mean over each document's tokens; NaN where a layer has fewer experts, or
            where an expert has no weights to train.
        tokens: how many tokens these are.
    """

    layers: tuple[int, ...]
    documents: Array
    tokens: int

    @property
    def mean(self) -> Array:
        """Affinity, (layers, E)."""
        mean: Array = self.documents.mean(0)
        return mean

    def of(self, address: Address) -> float:
        """Return the affinity of one expert."""
        return float(self.mean[self.layers.index(address.layer), address.expert])

    def rank(self, address: Address) -> int:
        """Return the place of an expert among all, 1 for the top one."""
        return int(np.sum(self.mean > self.of(address))) + 1

    def target(self, *, samples: int = 1000, seed: int = 0) -> Target:
        """Return the expert with the largest affinity over all layers; equal ones go to the first.

        Near-ties are told by resampling documents: the top one of the sample means is compared with the top one.
        """
        flat = np.nan_to_num(self.mean, nan=-np.inf).ravel()
        order = np.argsort(-flat, kind="stable")
        if len(order) < 2 or not np.isfinite(flat[order[1]]):
            raise BadData("a top expert needs at least two experts to choose from.")
        first, second = order[:2]
        stability, count = 1.0, len(self.documents)
        if count > 1:
            counts = np.random.default_rng([seed, count]).multinomial(count, np.full(count, 1 / count), size=samples)
            values = np.nan_to_num(self.documents, nan=-1e30).reshape(count, -1)
            tops = [(part @ values).argmax(-1) for part in np.array_split(counts / count, 20)]  # bounded memory
            hits = int(np.sum(np.concatenate(tops) == first))
            stability = hits / samples
        return Target(
            address=self._address(first),
            affinity=float(flat[first]),
            runner_up=self._address(second),
            runner_up_affinity=float(flat[second]),
            stability=stability,
            near_tie=stability < 0.95 or count < 2,
        )

    def _address(self, place: int) -> Address:
        layer, expert = divmod(int(place), self.documents.shape[2])
        return Address(self.layers[layer], expert)


def left_out(contract: Contract | None, opaque: str) -> str:
    """Return why a layer's router cannot be anchored to one expert; empty where it can."""
    if contract is None:
        return f"its router has no proved contract ({opaque})"
    if contract.score == "identity":
        return "its router weights experts by the logits themselves, which are no probabilities"
    return "its experts are chosen by token id" if contract.hashed else ""


def affinity_of_trace(trace: Trace, *, where: Where = Where(), experts: Mapping[int, int] | None = None) -> Affinity:
    """Return the affinity of all experts on a trace with logits; memory is documents × layers × E.

    Args:
        trace: recorded with logits.
        where: the rows that count.
        experts: by layer, how many experts have weights, if fewer than the router knows.

    Raises:
        BadData: the trace has no logits, or no row is left.
        Unsupported: no layer's router chooses by logits under a proved contract.
    """
    assert trace.header.model is not None
    shapes = [shape for shape in trace.header.model.layers if shape.layer in trace.layers]
    reasons = {shape.layer: left_out(shape.contract, shape.opaque) for shape in shapes}
    taken = [shape for shape in shapes if not reasons[shape.layer]]
    if not taken:
        raise Unsupported(f"no layer can be anchored: layer {shapes[0].layer}, since {reasons[shapes[0].layer]}.")
    rows = np.flatnonzero(trace.select(where))
    if not len(rows):
        raise BadData("no row of the trace is selected, so there is no affinity to measure.")
    of_request = np.asarray(trace.documents())
    document = of_request[np.asarray(trace.rows().request)[rows]]  # (n,)
    known, document = np.unique(document, return_inverse=True)
    sums = np.full((len(known), len(taken), max(shape.experts for shape in taken)), np.nan)
    for number, shape in enumerate(taken):
        assert shape.contract is not None
        logits = trace.logits(shape.layer)
        total = np.zeros((len(known), shape.experts))
        for start in range(0, len(rows), ROWS):
            part = slice(start, start + ROWS)
            add_by_document(total, document[part], probabilities(logits[rows[part]], shape.contract))
        sums[:, number, : shape.experts] = total
    counts = np.bincount(document, minlength=len(known))
    return with_weights(Affinity(tuple(s.layer for s in taken), sums / counts[:, None, None], len(rows)), experts or {})


def add_by_document(total: Array, document: Array, values: Array) -> None:
    """Add rows (n, E) to the row of their document in (documents, E); rows of a document stand together."""
    if not len(document):
        return
    starts = np.flatnonzero(np.r_[True, document[1:] != document[:-1]])
    np.add.at(total, document[starts], np.add.reduceat(values, starts, axis=0))


def with_weights(affinity: Affinity, experts: Mapping[int, int]) -> Affinity:
    """Return the affinity with NaN for experts beyond those that have weights (identity experts, skipped tokens)."""
    documents = affinity.documents
    for number, layer in enumerate(affinity.layers):
        documents[:, number, experts.get(layer, documents.shape[2]) :] = np.nan
    return affinity


def overlap(before: Sequence[Array] | Array, after: Sequence[Array] | Array) -> Array:
    """Return per token which share of the selection (n, k) before is still selected after, (n,)."""
    one, other = np.asarray(before), np.asarray(after)
    return np.asarray((one[:, :, None] == other[:, None, :]).any(-1).mean(-1))
