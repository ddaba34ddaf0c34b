"""What must hold of rows before they enter a trace: whole requests, known experts, numbers that are numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import BadTrace
from moeworks.trace.format import Columns, RecordedRows, TraceHeader, columns_of
from moeworks.trace.requests import RequestInfo
from moeworks.where import PHASES, Rows

__all__ = ["Blocks", "blocks_of", "check_decisions", "check_requests"]

Array = NDArray[Any]


class Blocks(NamedTuple):
    """Runs of rows of the same request."""

    number: Array  # (b,) requests
    start: Array  # (b,) first row
    length: Array  # (b,) rows


def blocks_of(request: Array) -> Blocks:
    """Return the runs of equal request numbers in (n,) rows."""
    start = np.flatnonzero(np.r_[True, request[1:] != request[:-1]]) if len(request) else np.zeros(0, np.intp)
    return Blocks(request[start], start, np.diff(np.r_[start, len(request)]))


def check_requests(rows: Rows, due: Mapping[int, RequestInfo]) -> Blocks:
    """Return the rows' runs after checking that each is one whole announced request, in order and without gaps.

    Raises:
        BadTrace: naming the request and what is wrong with its rows.
    """
    count = len(rows)
    if any(np.shape(column) != (count,) for column in (rows.request, rows.position, rows.token, rows.phase)):
        raise BadTrace("request, position, token and phase of recorded rows differ in length.")
    blocks = blocks_of(np.asarray(rows.request))
    numbers = blocks.number.tolist()
    if len(set(numbers)) != len(numbers):
        twice = next(number for number in numbers if numbers.count(number) > 1)
        raise BadTrace(f"the rows of request {twice} are in more than one piece; hand over whole requests.")
    for number, rows_here in zip(numbers, blocks.length.tolist(), strict=True):
        info = due.get(number)
        if info is None:
            raise BadTrace(f"rows of request {number} were not expected: never announced, or written before.")
        if rows_here != info.tokens - info.first_position:
            raise BadTrace(
                f"request {number} has {rows_here} rows, but {info.tokens - info.first_position} of its tokens went "
                "through the model."
            )
    begin = np.array([due[number].first_position for number in numbers], np.int64)  # (b,)
    place = np.arange(count) - np.repeat(blocks.start - begin, blocks.length)  # (n,)
    prompt = np.repeat([due[number].prompt_tokens for number in numbers], blocks.length)  # (n,)
    _refuse(
        rows,
        np.asarray(rows.position) != place,
        "is out of order: positions count on from the request's first without gaps",
    )
    _refuse(rows, np.asarray(rows.token) < 0, "has a negative token id; padding must not be recorded")
    _refuse(rows, ~np.isin(rows.phase, range(len(PHASES))), "has an unknown phase")
    _refuse(rows, (np.asarray(rows.phase) == 0) != (place < prompt), "has a phase that contradicts prompt_tokens")
    return blocks


def check_decisions(recorded: RecordedRows, header: TraceHeader) -> None:
    """Check the shapes, types and values of the decisions.

    Raises:
        BadTrace: naming layer, request and position of the first that cannot be.
    """
    for name in ("ids", "weights", "logits"):
        arrays = getattr(recorded, name)
        expected = set(header.layers) if name != "logits" or header.logits else set()
        if set(arrays or ()) != expected:
            raise BadTrace(
                f"{name} came for layers {sorted(arrays or ())}, this trace has them for {sorted(expected)}."
            )
    for column in columns_of(header):
        kind = column.name.rpartition(".")[2]
        values = np.asarray(getattr(recorded, kind)[column.layer])
        if values.shape != (len(recorded.rows), column.width):
            raise BadTrace(f"{column.name} has shape {values.shape}, expected {(len(recorded.rows), column.width)}.")
        if kind == "weights" and "weights" in header.lacks:
            if not np.isnan(values).all():
                raise BadTrace(f"the header says that weights are lacking, but {column.name} holds some.")
            continue
        check_values(values, column, header.shape_of(column.layer).experts, recorded.rows)


def check_values(values: Array, column: Columns, experts: int, rows: Rows) -> None:
    """Check one list column: ids below the number of experts, finite weights, logits that are numbers."""
    kind = column.name.rpartition(".")[2]
    if kind == "ids":
        if values.dtype.kind not in "iu":
            raise BadTrace(f"{column.name} is {values.dtype}; expert ids are integers.")
        wrong: Array = (values < 0) | (values >= experts)
        what = f"names an expert in {column.name} that does not exist; experts are 0 to {experts - 1}"
    else:
        if not np.can_cast(values.dtype, column.dtype, "safe"):
            raise BadTrace(f"{column.name} is {values.dtype}, which {np.dtype(column.dtype)} cannot hold exactly.")
        wrong = ~np.isfinite(values) if kind == "weights" else np.isnan(values)
        what = f"has NaN or infinity in {column.name}; the model's numbers overflowed, load it in a wider dtype"
    if wrong.any():
        _refuse(rows, np.asarray(wrong.any(axis=1)), what)


def _refuse(rows: Rows, wrong: Array, what: str) -> None:
    if wrong.any():
        first = int(np.argmax(wrong))
        raise BadTrace(f"the row of request {rows.request[first]} at position {rows.position[first]} {what}.")
