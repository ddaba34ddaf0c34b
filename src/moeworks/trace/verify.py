"""Reads a whole trace and checks everything that can be checked: hashes, row counts, experts, numbers, order."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import BadTrace
from moeworks.trace.checks import blocks_of, check_values
from moeworks.trace.files import hash_file
from moeworks.trace.format import columns_of
from moeworks.trace.reader import Part, Trace
from moeworks.where import Rows

__all__ = ["Verified", "verify_trace"]

Array = NDArray[Any]


class Verified(NamedTuple):
    """What was read, all of it found right."""

    parts: int
    requests: int
    rows: int
    bytes: int


class _RequestTable(NamedTuple):
    tokens: Array  # (m,)
    rows: Array  # (m,)
    prompt_tokens: Array  # (m,)


def verify_trace(trace: Trace) -> Verified:
    """Check hashes of all files, then the values: one part in memory at a time.

    Raises:
        BadTrace: naming the file and what is wrong with it.
    """
    assert trace.header.requests is not None
    records = [*trace.header.parts, trace.header.requests]
    for record in records:
        if hash_file(trace.path / record.name) != record.hash:
            raise BadTrace(f"{trace.path / record.name} is altered: its hash is not the one in the header.")
    requests = _check_request_table(trace)
    seen = np.zeros(len(requests.tokens), np.int64)  # (m,) rows found
    for part in trace.parts:
        try:
            _check_rows(part.rows(), requests, seen)
            _check_decisions(part, trace)
        except BadTrace as error:
            raise BadTrace(f"{trace.path / part.record.name}: {error}") from None
    wrong = np.flatnonzero(seen != requests.rows)
    if len(wrong):
        raise BadTrace(
            f"request {wrong[0]} of {trace.path} has {seen[wrong[0]]} rows, its entry in requests.arrow says "
            f"{requests.rows[wrong[0]]}."
        )
    return Verified(len(trace.parts), len(seen), len(trace), sum(record.bytes for record in records))


def _check_request_table(trace: Trace) -> _RequestTable:
    table = trace.requests
    columns = _RequestTable(*(table[name].to_numpy() for name in _RequestTable._fields))
    spans, count = trace.request_table(), len(table)
    header = trace.header
    cut_off = int(table["truncated_tokens"].to_numpy().sum())
    claims = {
        "request numbers are not 0 to m - 1": not np.array_equal(table["request"].to_numpy(), np.arange(count)),
        "more rows or prompt tokens than tokens": bool(
            ((columns.rows > columns.tokens) | (columns.prompt_tokens > columns.tokens)).any()
        ),
        "a span outside of its request": bool((spans.span_stop > columns.tokens[spans.span_request]).any()),
        "tokens that do not add up to the header's": int(columns.tokens.sum()) != header.tokens,
        "rows that do not add up to the header's": int(columns.rows.sum()) != header.rows,
        "cut-off tokens that do not add up to the header's": cut_off != header.dropped.get("truncated_tokens", 0),
    }
    found = [claim for claim, wrong in claims.items() if wrong]
    if found:
        raise BadTrace(f"{trace.path / 'requests.arrow'} is wrong: {'; '.join(found)}.")
    return columns


def _check_rows(rows: Rows, requests: _RequestTable, seen: Array) -> None:
    """Check that each request's rows stand together, in order, and within its tokens; count them into `seen`."""
    blocks = blocks_of(rows.request)
    if len(blocks.number) and not 0 <= blocks.number.min() <= blocks.number.max() < len(seen):
        raise BadTrace("rows of a request that is not in requests.arrow.")
    if len(np.unique(blocks.number)) != len(blocks.number) or seen[blocks.number].any():
        raise BadTrace("the rows of a request are in more than one piece.")
    seen[blocks.number] = blocks.length
    first = np.zeros(len(rows), bool)
    first[blocks.start] = True
    forwards = np.r_[True, np.diff(rows.position) > 0] | first
    within = (rows.position >= 0) & (rows.position < requests.tokens[rows.request])
    prompt = rows.position < requests.prompt_tokens[rows.request]
    for right, what in (
        (forwards & within, "a position out of order or beyond the request's tokens"),
        ((rows.phase == 0) == prompt, "a phase that contradicts prompt_tokens"),
    ):
        if not right.all():
            place = int(np.argmin(right))
            raise BadTrace(f"request {rows.request[place]}, position {rows.position[place]}: {what}.")


def _check_decisions(part: Part, trace: Trace) -> None:
    rows = part.rows()
    for column in columns_of(trace.header):
        shape = trace.header.shape_of(column.layer)
        kind = column.name.rpartition(".")[2]
        values = part.column(column.layer, kind)
        if not (kind == "weights" and "weights" in trace.header.lacks):
            check_values(values, column, shape.experts, rows)
        # A hash table may name an expert twice; a top-k may not. Of an opaque router nothing is known.
        if kind == "ids" and shape.contract is not None and not shape.contract.hashed:
            twice = _repeated(values, part.weights(column.layer))
            if twice.any():
                place = int(np.argmax(twice))
                raise BadTrace(
                    f"request {rows.request[place]}, position {rows.position[place]}: the same expert twice in "
                    f"{column.name}."
                )


def _repeated(ids: Array, weights: Array) -> Array:
    """Return which rows name an expert twice among the slots that ran, (n,)."""
    ranked = np.sort(ids, axis=1)
    suspects = np.flatnonzero((ranked[:, 1:] == ranked[:, :-1]).any(axis=1))
    repeated = np.zeros(len(ids), bool)
    slots = -1 - np.arange(ids.shape[1])  # a slot that did not run counts as an expert of its own
    ran = np.sort(np.where(weights[suspects] != 0, ids[suspects].astype(np.int64), slots), axis=1)
    repeated[suspects] = (ran[:, 1:] == ran[:, :-1]).any(axis=1)
    return repeated
