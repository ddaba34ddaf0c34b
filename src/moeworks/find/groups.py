"""Documents by the value of a label: entries for each (value, document), and the null in which values are permuted.

A document whose texts all have one value exchanges it with other such documents (of the same stratum, if asked); one
with texts of several values, translations of each other for instance, permutes them among its own entries.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import BadData, did_you_mean
from moeworks.find.sides import strata
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["GroupEntries", "GroupNull", "enter_groups"]

Array = NDArray[Any]


@dataclass(frozen=True)
class GroupEntries:
    """The (value, document) pairs that have tokens: n entries, values ascending, documents ascending within a value."""

    names: tuple[str, ...]  # (g,) values of the label
    value: Array  # (n,) index into names
    document: Array  # (n,) index of the document
    tokens: Array  # (n,) int64, selected tokens
    stratum: Array  # (n,) index of the group within which documents may be exchanged
    of_request: Array  # (m,) index of each request's entry, or -1

    def __len__(self) -> int:
        return len(self.value)

    @cached_property
    def documents(self) -> tuple[int, ...]:
        """Number of documents of each value, (g,)."""
        return tuple(np.bincount(self.value, minlength=len(self.names)).tolist())

    @cached_property
    def shared(self) -> tuple[Array, ...]:
        """Entries of documents with several values, as (documents, entries of each), one array for each number."""
        order = np.argsort(self.document, kind="stable")
        counts = np.bincount(self.document)[self.document[order]]  # entries of each entry's document
        return tuple(order[counts == c].reshape(-1, c) for c in np.unique(counts) if c > 1)

    @cached_property
    def single(self) -> tuple[Array, ...]:
        """Entries of documents with one value, an array for each stratum."""
        alone = np.flatnonzero(np.bincount(self.document)[self.document] == 1)
        order = alone[np.argsort(self.stratum[alone], kind="stable")]
        cuts = np.flatnonzero(np.diff(self.stratum[order])) + 1
        return tuple(group for group in np.split(order, cuts) if len(group))

    def factors(self, sizes: Array) -> Array:
        """Return by how much each entry counts in each group, (g, n), given the tokens of each (or ones), (n,).

        Within a document values swap their rates, and the numbers of tokens stay; see `moeworks.find.null`.
        """
        factors = np.ones((len(self.names), len(self)))
        for block in self.shared:
            for entries in block.T:  # (documents,) one entry of each
                factors[self.value[entries][:, None], block] = sizes[entries][:, None] / sizes[block]
        return factors

    @property
    def pairs(self) -> int:
        """Number of documents with several values."""
        return sum(len(block) for block in self.shared)

    def rows(self, trace: Trace, where: Where) -> Iterator[tuple[Any, Array, Array | None]]:
        """Yield each part with its rows' entries, (n,) or -1; see `sum_reads`."""
        requests = trace.request_table()
        for part in trace.parts:
            rows = part.rows()
            yield part, np.where(where.mask(rows, requests), self.of_request[rows.request], -1), None

    def resample(self, rng: np.random.Generator, count: int) -> Array:
        """Return how often each entry is drawn, (count, n): documents with replacement, as many of each kind.

        Kinds are documents with the same values; all entries of a document stay together.
        """
        drawn = np.zeros((count, len(self)))
        kinds: dict[tuple[int, ...], list[Array]] = {}
        for block in (*(group[:, None] for group in self.single), *self.shared):
            for entries in block:
                kinds.setdefault(tuple(self.value[entries].tolist()), []).append(entries)
        for kind in kinds.values():
            members = np.array(kind)  # (documents, entries of each)
            picks = rng.integers(0, len(members), (count, len(members))) + np.arange(count)[:, None] * len(members)
            times = np.bincount(picks.ravel(), minlength=count * len(members)).reshape(count, -1)
            for column in members.T:
                drawn[:, column] = times
        return drawn


def enter_groups(
    trace: Trace, *, label: str | None, where: Where, values: tuple[str, ...] | None = None, within: str | None = None
) -> GroupEntries:
    """Go through a trace's rows once and return which documents have tokens of which value.

    Args:
        trace: the trace.
        label: the label; texts without it are left out. None puts all documents into one group.
        where: which tokens count.
        values: the values that are compared; by default all that occur.
        within: a label; documents are exchangeable only with documents of the same value of it.

    Raises:
        BadData: no request has the label, a value does not occur, or nothing is selected.
    """
    requests = trace.request_table()
    if label is not None and label not in requests.labels:
        raise BadData(f"no request has a label '{label}'; {did_you_mean(label, requests.labels)}")
    tokens = np.zeros(len(requests), np.int64)
    for part in trace.parts:
        rows = part.rows()
        tokens += np.bincount(rows.request[where.mask(rows, requests)], minlength=len(requests))
    named = np.zeros(len(requests), "<U1") if label is None else requests.labels[label]  # (m,)
    counted = tokens > 0 if label is None else (tokens > 0) & (named != "")
    seen = sorted(set(map(str, named[counted])))
    for value in values or ():
        if value not in seen:
            raise BadData(f"no token with {label}={value} is selected; {did_you_mean(value, seen)}")
    if values is not None:
        counted &= np.isin(named, values)
        seen = sorted(set(values))
    if not counted.any():
        raise BadData(
            f"no token matches '{where}'" + ("" if label is None else f" in a text with a label '{label}'") + "."
        )
    _, document = np.unique(trace.documents(), return_inverse=True)  # (m,)
    count = int(document.max()) + 1
    place = np.flatnonzero(counted)
    keys, entry = np.unique(np.searchsorted(seen, named[place]) * count + document[place], return_inverse=True)
    of_request = np.full(len(requests), -1)
    of_request[place] = entry
    stratum = np.zeros(count, np.int64)
    if within is not None:
        stratum = strata(within, requests, document, counted, count)
    return GroupEntries(
        names=tuple(seen),
        value=keys // count,
        document=keys % count,
        tokens=np.bincount(entry, weights=tokens[place]).astype(np.int64),
        stratum=stratum[keys % count],
        of_request=of_request,
    )


@dataclass(frozen=True)
class GroupNull:
    """The arrangements of values on entries that are equally likely when no value differs from another."""

    entries: GroupEntries

    def __post_init__(self) -> None:
        if self.arrangements == 1:
            raise BadData(
                "no document can change its value: all that may be exchanged have the same; choose another label to "
                "permute within, or none."
            )

    @cached_property
    def arrangements(self) -> int:
        """Number of different arrangements, the observed one included."""
        ways: int = 1
        for group in self.entries.single:
            left = len(group)
            for size in Counter(self.entries.value[group].tolist()).values():
                ways *= math.comb(left, size)
                left -= size
        for block in self.entries.shared:
            ways *= math.factorial(block.shape[1]) ** len(block)
        return ways

    def smallest_p(self, most: int) -> float:
        """Return a bound below which no p can come out."""
        return max(float(Fraction(1, self.arrangements)), 1 / (most + 1))

    def draw(self, rng: np.random.Generator, count: int) -> Array:
        """Return random arrangements, (count, n): the value of each entry."""
        drawn = np.empty((count, len(self.entries)), np.int64)
        for group in self.entries.single:
            drawn[:, group] = rng.permuted(np.tile(self.entries.value[group], (count, 1)), axis=1)
        for block in self.entries.shared:
            values = np.broadcast_to(self.entries.value[block], (count, *block.shape))
            drawn[:, block] = rng.permuted(values, axis=2)
        return drawn
