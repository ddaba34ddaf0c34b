"""Reads a trace through memory maps: columns are numpy views onto the files."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import BadTrace
from moeworks.trace.files import map_table
from moeworks.trace.format import REQUESTS, ROW_COLUMNS, FileRecord, TraceHeader, part_schema, read_header
from moeworks.trace.requests import as_requests, document_numbers
from moeworks.where import Requests, Rows, Where

if TYPE_CHECKING:
    from moeworks.trace.verify import Verified

__all__ = ["Part", "Trace"]

Array = NDArray[Any]


class Part:
    """One file of rows; every array is a read-only view onto it."""

    def __init__(self, folder: Path, record: FileRecord, header: TraceHeader) -> None:
        self.record = record
        self._folder = folder
        self._header = header
        if not self.table.schema.equals(part_schema(header)):
            raise BadTrace(f"{folder / record.name} has other columns than the header says: altered.")

    def __len__(self) -> int:
        return self.record.rows

    @property
    def table(self) -> Any:
        """The part as an Arrow table; mapped anew at each call, so that open files stay few."""
        return map_table(self._folder, self.record)

    def rows(self) -> Rows:
        """Return what is known of each row."""
        table = self.table
        return Rows(*(_flat(table, name) for name in ROW_COLUMNS))

    def ids(self, layer: int) -> Array:
        """Return the chosen experts, (rows, k) uint8 or uint16, in the router's slot order."""
        return self.column(layer, "ids")

    def weights(self, layer: int) -> Array:
        """Return the combine weights, (rows, k), in the order of the ids."""
        return self.column(layer, "weights")

    def logits(self, layer: int) -> Array:
        """Return the raw router logits, (rows, E)."""
        return self.column(layer, "logits")

    def column(self, layer: int, kind: str) -> Array:
        """Return a list column: `kind` is ids, weights or logits."""
        shape = self._header.shape_of(layer)
        if kind == "logits" and not self._header.logits:
            raise BadTrace("the trace has no logits; record it with logits to look at them.")
        width = shape.experts if kind == "logits" else shape.top_k
        return _flat(self.table, f"L{layer}.{kind}").reshape(-1, width)


class Trace:
    """The decisions of a model over some texts, row by row; n rows, m requests.

    Rows of one request stand together with ascending positions; requests stand in the order they were finished.
    """

    def __init__(self, path: Path, header: TraceHeader) -> None:
        self.path = path
        self.header = header
        self.parts = [Part(path, record, header) for record in header.parts]
        assert header.requests is not None
        if header.requests.name != REQUESTS:
            raise BadTrace(f"{path} is altered: its requests are in {header.requests.name}.")
        self.requests = map_table(path, header.requests)  # m rows
        left_out = header.dropped.get("sampled", 0) + header.dropped.get("sliced", 0)
        if sum(map(len, self.parts)) != header.rows or header.rows + left_out != header.tokens:
            raise BadTrace(f"{path} is altered: its header's counts of rows, parts and tokens contradict each other.")

    @classmethod
    def open(cls, path: str | Path) -> Trace:
        """Open a whole trace; sizes and row counts are checked, hashes only by `verify`.

        Raises:
            BadTrace: not a trace, unfinished, of an unknown version, or a file is missing, cut short or altered.
        """
        folder = Path(path)
        return cls(folder, read_header(folder))

    def __len__(self) -> int:
        return self.header.rows

    @property
    def layers(self) -> list[int]:
        """Global numbers of the recorded layers."""
        return list(self.header.layers)

    def rows(self) -> Rows:
        """Return what is known of each row, (n,) arrays; 13 bytes a row are copied if there are several parts."""
        parts = [part.rows() for part in self.parts]
        return Rows(*(_join([getattr(rows, name) for rows in parts]) for name in ROW_COLUMNS))

    def ids(self, layer: int) -> Array:
        """Return the chosen experts, (n, k): a view of a single part, one copy of several."""
        return _join([part.ids(layer) for part in self.parts])

    def weights(self, layer: int) -> Array:
        """Return the combine weights, (n, k), in the order of the ids."""
        return _join([part.weights(layer) for part in self.parts])

    def logits(self, layer: int) -> Array:
        """Return the raw router logits, (n, E).

        Raises:
            BadTrace: the trace was recorded without them.
        """
        return _join([part.logits(layer) for part in self.parts])

    def take(self, layer: int, kind: Literal["ids", "weights", "logits"], rows: Array) -> Array:
        """Return a list column at some rows, (m,) in any order, copying no others: (m, k) or (m, E)."""
        edges = np.cumsum([0, *map(len, self.parts)])
        part = np.searchsorted(edges, rows, side="right") - 1  # (m,)
        pieces = [(np.flatnonzero(part == number), number) for number in np.unique(part)]
        if len(pieces) == 1:
            number = pieces[0][1]
            return np.asarray(self.parts[number].column(layer, kind)[rows - edges[number]])
        taken = [(at, self.parts[number].column(layer, kind)[rows[at] - edges[number]]) for at, number in pieces]
        width = self.header.shape_of(layer).experts if kind == "logits" else self.header.shape_of(layer).top_k
        result = np.empty((len(rows), width), taken[0][1].dtype if taken else np.float32)
        for at, values in taken:
            result[at] = values
        return result

    @cached_property
    def _request_table(self) -> Requests:
        return as_requests(self.requests)

    def request_table(self) -> Requests:
        """Return labels (the document is one) and spans of the m requests, as where clauses read them."""
        return self._request_table

    def documents(self) -> NDArray[np.int64]:
        """Return the document of each request, (m,), numbered from 0; a request without one is its own."""
        return document_numbers(self.requests)

    def select(self, where: Where) -> NDArray[np.bool_]:
        """Return which rows a clause takes, (n,) booleans; its layers are not looked at."""
        return where.mask(self.rows(), self.request_table())

    def slice(self, where: Where, path: str | Path) -> Trace:
        """Write the rows that a clause takes to a new trace; see `moeworks.trace.combine.slice_trace`."""
        from moeworks.trace.combine import slice_trace

        return slice_trace(self, where, path)

    def verify(self) -> Verified:
        """Read everything and check it; see `moeworks.trace.verify.verify_trace`."""
        from moeworks.trace.verify import verify_trace

        return verify_trace(self)

    def info(self) -> dict[str, Any]:
        """Return the facts that `inspect` prints."""
        header = self.header
        model, engine = header.model, header.engine
        return {
            "path": str(self.path),
            "model": model.name if model else "",
            "family": model.family if model else "",
            "engine": f"{engine.name} {engine.version}, {engine.dtype}, {engine.device}" if engine else "",
            "rows": header.rows,
            "tokens": header.tokens,
            "dropped": dict(header.dropped),
            "requests": len(self.requests),
            "documents": int(self.documents().max(initial=-1)) + 1,
            "labels": sorted(set(self.request_table().labels) - {"document"}),
            "spans": sorted(set(self.request_table().span_name.tolist())),
            "layers": {n: f"{header.shape_of(n).top_k} of {header.shape_of(n).experts}" for n in self.layers},
            "logits": header.logits,
            "weights": header.weights,
            "parts": len(self.parts),
            "bytes": sum(part.record.bytes for part in self.parts),
        }


def _flat(table: Any, name: str) -> Array:
    """Return a column of a one-batch table as a flat numpy view."""
    if table.num_rows == 0:
        kind = table.schema.field(name).type
        return np.zeros(0, getattr(kind, "value_type", kind).to_pandas_dtype())
    (chunk,) = table[name].chunks
    values = getattr(chunk, "values", chunk)
    return np.asarray(values.to_numpy(zero_copy_only=True))


def _join(arrays: list[Array]) -> Array:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
