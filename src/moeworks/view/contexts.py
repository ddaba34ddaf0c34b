"""The tokens for which an expert got the largest share of the combine weight, each in its text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeworks.stats.distributions import weight_shares
from moeworks.view.decoding import Decoder
from moeworks.view.tokens import texts_of

if TYPE_CHECKING:
    from moeworks.address import Address
    from moeworks.trace import Trace

__all__ = ["expert_contexts"]

Array = NDArray[Any]
_AROUND = 24  # tokens shown on either side
_SAME = 2  # contexts of one token id, so that one frequent word does not fill the list


def expert_contexts(trace: Trace, address: Address, *, decoder: Decoder, most: int = 10) -> list[dict[str, Any]]:
    """Return the tokens that an expert got the largest share of the combine weight of, the largest first.

    One token of a request, and at most two of the same token id, are named before a second one of either is. Where
    shares are equal, as all are with one expert a token, it is the first rows that are shown.

    Args:
        trace: the trace.
        address: the expert.
        decoder: of the trace's tokens; without a tokenizer the texts are empty and `id` tells the token.
        most: how many.

    Returns:
        Mappings of row, request, id (of the token), before, token, after (text), and weight: the share, 0 to 1, or
        None in a trace without weights.
    """
    rows, share = _rows_of(trace, address)
    whole = trace.rows()
    order = np.lexsort((rows, -share))
    rows, share = rows[order], share[order]
    chosen = _apart(whole.request[rows], whole.token[rows], most)
    found = []
    for row, weight in zip(rows[chosen].tolist(), share[chosen].tolist(), strict=True):
        request = int(whole.request[row])
        begin, end = _ends(whole.request, row)
        first, last = max(begin, row - _AROUND), min(end, row + _AROUND + 1)
        text, part = texts_of(trace, first, last, decoder)
        pieces, stop = text.to_pylist(), row - first + 1
        while stop < len(pieces) and part[stop - 1]:  # its character ends in a later token
            stop += 1
        found.append(
            {
                "row": row,
                "request": request,
                "id": int(whole.token[row]),
                "before": "".join(pieces[: row - first]),
                "token": "".join(pieces[row - first : stop]),
                "after": "".join(pieces[stop:]),
                "weight": None if trace.header.lacks else weight,
            }
        )
    return found


def _rows_of(trace: Trace, address: Address) -> tuple[Array, Array]:
    """Return the rows for which an expert ran, (r,), and its share of their combine weight, (r,)."""
    rows, shares, before = [], [], 0
    for part in trace.parts:
        ids, weights = part.ids(address.layer), part.weights(address.layer)
        here = np.flatnonzero(((ids == address.expert) & (weights != 0)).any(-1))
        rows.append(here + before)
        if trace.header.lacks:
            shares.append(np.zeros(len(here)))
        else:
            shares.append(np.where(ids[here] == address.expert, weight_shares(weights[here]), 0).sum(-1))
        before += len(part)
    return np.concatenate(rows), np.concatenate(shares)


def _ends(request: Array, row: int) -> tuple[int, int]:
    """Return the first row near a row that is of its request, and the row after the last one near it."""
    low = max(0, row - _AROUND)
    near = request[low : row + _AROUND + 1] == request[row]
    inside = np.flatnonzero(near)
    return low + int(inside[0]), low + int(inside[-1]) + 1


def _apart(request: Array, token: Array, most: int) -> Array:
    """Return which of the ranked rows to show: first of each request and two of each token, then of the others."""
    _, first = np.unique(request, return_index=True)
    firsts = np.sort(first)
    kept: list[int] = []
    seen: dict[int, int] = {}
    for place in firsts.tolist():
        if len(kept) == most:
            break
        if seen.setdefault(int(token[place]), 0) < _SAME:
            seen[int(token[place])] += 1
            kept.append(place)
    if len(kept) < most:
        left = np.setdiff1d(np.arange(min(len(request), most * 4)), kept)[: most - len(kept)]
        kept += left.tolist()
    return np.array(sorted(kept), np.int64)
