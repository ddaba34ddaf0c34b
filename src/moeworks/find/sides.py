"""The two sides of a contrast: which rows of a trace belong to which, and how many tokens each document gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import BadData
from moeworks.where import Requests, Rows, Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["AGAINST", "CONTRAST", "Entries", "Sides", "enter", "strata"]

Array = NDArray[Any]
CONTRAST, AGAINST = 0, 1
_FLAGS = {CONTRAST: "contrast", AGAINST: "against"}


@dataclass(frozen=True)
class Sides:
    """Two clauses that are compared, within a third that holds for both."""

    contrast: Where
    against: Where | None  # None: only one side is scored, and there is nothing to compare it with
    where: Where

    def __post_init__(self) -> None:
        for flag, clause in (("contrast", self.contrast), ("against", self.against)):
            if clause is None:
                continue
            if clause.layer is not None or (clause.exclude is not None and clause.exclude.layer is not None):
                raise BadData(f"the clause {flag} names layers; layers are chosen for both sides: put them into where.")

    def of(self, rows: Rows, requests: Requests) -> Array:
        """Return each row's side, (n,) int8: CONTRAST, AGAINST or -1 for neither.

        Raises:
            BadData: a token is on both sides.
        """
        common = self.where.mask(rows, requests)
        contrast = self.contrast.mask(rows, requests) & common
        if self.against is None:
            return np.where(contrast, np.int8(CONTRAST), np.int8(-1))
        against = self.against.mask(rows, requests) & common
        if (contrast & against).any():
            raise BadData(
                f"{int((contrast & against).sum())} tokens are on both sides, contrast '{self.contrast}' and against "
                f"'{self.against}'; a token can be on one only: narrow a clause, with !name=value for instance."
            )
        return np.where(contrast, np.int8(CONTRAST), np.where(against, np.int8(AGAINST), np.int8(-1)))

    def rows(
        self, trace: Trace, entries: Entries, factors: Array | None = None
    ) -> Iterator[tuple[Any, Array, Array | None]]:
        """Yield each part with its rows' entries, (n,) or -1, and factors, (n,) or None; see `sum_reads`."""
        for part, request, side in self.parts(trace):
            entry = np.where(side >= 0, entries.of_request[side, request], -1)  # side -1 reads a row that is not used
            yield part, entry, None if factors is None else _factor(factors, part.rows().token, side)

    def parts(self, trace: Trace) -> Iterator[tuple[Any, Array, Array]]:
        """Yield each part of a trace with its rows' requests, (n,), and sides, (n,)."""
        requests = trace.request_table()
        for part in trace.parts:
            rows = part.rows()
            yield part, rows.request, self.of(rows, requests)


@dataclass(frozen=True)
class Entries:
    """The (side, document) pairs that have tokens: n entries, contrast first, documents ascending within a side."""

    side: Array  # (n,) CONTRAST or AGAINST
    document: Array  # (n,) index of the document
    tokens: Array  # (n,) selected tokens: int64, or float64 sums of their factors
    partner: Array  # (n,) index of the entry of the same document on the other side, or -1
    stratum: Array  # (n,) index of the group within which documents may be exchanged
    of_request: Array  # (2, m) index of the entry of each request's document on each side, or -1

    def __len__(self) -> int:
        return len(self.side)

    @property
    def documents(self) -> tuple[int, int]:
        """Number of documents on the contrast side and on the other."""
        contrast = int((self.side == CONTRAST).sum())
        return contrast, len(self) - contrast

    @property
    def pairs(self) -> int:
        """Number of documents with tokens on both sides."""
        return int((self.partner >= 0).sum()) // 2


def enter(trace: Trace, sides: Sides, *, within: str | None = None, factors: Array | None = None) -> Entries:
    """Go through a trace's rows once and return which documents have tokens on which side.

    Args:
        trace: the trace.
        sides: the two clauses.
        within: a label; documents are exchangeable only with documents of the same value.
        factors: (2, tokens of the vocabulary) by which a token counts on each side; None for 1.

    Raises:
        BadData: a side has no token, or a document has several values of `within`.
    """
    requests = trace.request_table()
    per_request = np.zeros((2, len(requests)), np.int64 if factors is None else np.float64)
    for part, request, side in sides.parts(trace):
        factor = None if factors is None else _factor(factors, part.rows().token, side)
        for which in (CONTRAST, AGAINST):
            mine = side == which
            weights = None if factor is None else factor[mine]
            per_request[which] += np.bincount(request[mine], weights=weights, minlength=len(requests))
    for which, clause in ((CONTRAST, sides.contrast), (AGAINST, sides.against)):
        if clause is not None and not per_request[which].any():
            raise BadData(_empty(_FLAGS[which], clause, sides.where, requests))
    _, document = np.unique(np.asarray(trace.documents()), return_inverse=True)  # (m,)
    count = int(document.max()) + 1
    tokens = np.stack([np.bincount(document, weights=per_request[which], minlength=count) for which in (0, 1)])
    side, present = np.nonzero(tokens)  # (n,), (n,)
    index = np.full((2, count), -1)
    index[side, present] = np.arange(len(side))
    stratum = np.zeros(count, np.int64)
    if within is not None:
        stratum = strata(within, requests, document, per_request.sum(0) > 0, count)
    return Entries(
        side=side,
        document=present,
        tokens=tokens[side, present].astype(per_request.dtype),
        partner=index[1 - side, present],
        stratum=stratum[present],
        of_request=index[:, document],
    )


def _factor(factors: Array, token: Array, side: Array) -> Array:
    """Return by how much each row counts, (n,); rows on neither side count 0."""
    return np.asarray(np.where(side >= 0, factors[side, token], 0.0))


def strata(label: str, requests: Requests, document: Array, selected: Array, count: int) -> Array:
    """Return each document's value of a label, (documents,) as an index; -1 where nothing of it is selected."""
    if label not in requests.labels:
        known = ", ".join(sorted(requests.labels)) or "none"
        raise BadData(f"no request has a label '{label}' to permute within; labels here: {known}.")
    values, value = np.unique(requests.labels[label], return_inverse=True)  # (v,), (m,)
    stratum = np.full(count, -1)
    stratum[document[selected]] = value[selected]
    differs = selected & (stratum[document] != value)
    if differs.any():
        first = int(np.flatnonzero(differs)[0])
        seen = f"'{values[stratum[document[first]]]}' and '{values[value[first]]}'"
        raise BadData(
            f"request {first} belongs to a document with several values of '{label}', {seen}; documents are permuted "
            "whole, so that each needs one value: choose another label or split the documents."
        )
    return stratum


def _empty(flag: str, clause: Where, where: Where, requests: Requests) -> str:
    within = "" if where.every_token else f" within '{where}'"
    parts = [f"{name} ({_shortened(values)})" for name, values in requests.labels.items() if name != "document"]
    spans = ", ".join(sorted(set(map(str, requests.span_name)))) or "none"
    return (
        f"no token matches the clause {flag} '{clause}'{within}; "
        f"labels here: {'; '.join(parts) or 'none'}; spans here: {spans}."
    )


def _shortened(values: Array, most: int = 12) -> str:
    names = [str(value) or "''" for value in np.unique(values)]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
