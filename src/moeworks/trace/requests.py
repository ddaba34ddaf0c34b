"""What a trace keeps of each text: its labels, document, spans and counts, as a table with one row a request."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moeworks.errors import BadTrace
from moeworks.where import Requests

__all__ = [
    "CHUNK_SCHEMA",
    "LABEL",
    "RequestInfo",
    "TokenSpan",
    "as_requests",
    "chunk_batch",
    "document_numbers",
    "requests_schema",
    "sorted_batches",
    "texts_hash",
]

LABEL = "label."
BATCH = 65_536  # requests handled at a time, so that memory stays bounded
Array = NDArray[Any]


class TokenSpan(NamedTuple):
    """A named, half-open range of a request's tokens."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestInfo:
    """One text as it was run; counts are in tokens."""

    request: int  # its number, from 0 in the order of the data
    tokens: int  # tokens that went through the model: as many rows are due
    prompt_tokens: int  # of these, tokens before the first generated or forced one
    document: str = ""  # what belongs together; "" is a document of its own
    labels: Mapping[str, str] = field(default_factory=dict)
    spans: Sequence[TokenSpan] = ()
    text_hash: str = ""
    truncated_tokens: int = 0  # tokens of the text that the context had no room for
    first_position: int = 0  # tokens at its start of which the source has no rows
    text: str | None = None  # only where the user asked to keep texts

    def __post_init__(self) -> None:
        if not 0 <= self.prompt_tokens <= self.tokens or self.tokens == 0 or self.truncated_tokens < 0:
            raise BadTrace(
                f"request {self.request} has {self.tokens} tokens, {self.prompt_tokens} of them prompt and "
                f"{self.truncated_tokens} cut off; that cannot be."
            )
        if not 0 <= self.first_position < self.tokens:
            raise BadTrace(f"request {self.request} has no row: its first is {self.first_position} of {self.tokens}.")
        for name, start, stop in self.spans:
            if not 0 <= start < stop <= self.tokens:
                raise BadTrace(
                    f"span '{name}' of request {self.request} covers tokens {start} to {stop} of {self.tokens}."
                )

    @property
    def size(self) -> int:
        """About how many bytes it takes in memory."""
        texts = (self.document, self.text or "", *self.labels, *self.labels.values(), *(s[0] for s in self.spans))
        return 600 + 100 * len(self.spans) + sum(map(len, texts))


_SPAN = pa.struct(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("start", pa.int32(), nullable=False),
        pa.field("stop", pa.int32(), nullable=False),
    ]
)
_FIELDS = [
    pa.field("request", pa.int32(), nullable=False),
    pa.field("document", pa.string(), nullable=False),
    pa.field("prompt_tokens", pa.int32(), nullable=False),
    pa.field("tokens", pa.int32(), nullable=False),
    pa.field("rows", pa.int32(), nullable=False),
    pa.field("truncated_tokens", pa.int32(), nullable=False),
    pa.field("text_hash", pa.string(), nullable=False),
    pa.field("spans", pa.list_(pa.field("item", _SPAN, nullable=False)), nullable=False),
    pa.field("text", pa.string()),
]
CHUNK_SCHEMA = pa.schema([*_FIELDS, pa.field("labels", pa.map_(pa.string(), pa.string()), nullable=False)])


def requests_schema(labels: Sequence[str]) -> Any:
    """Return the Arrow schema of `requests.arrow`; a label is null where a request does not have it."""
    return pa.schema([*_FIELDS, *(pa.field(LABEL + name, pa.string()) for name in labels)])


def chunk_batch(infos: Sequence[RequestInfo], rows: Sequence[int]) -> Any:
    """Return what an unfinished trace keeps of the requests of one part; labels are still a map."""
    columns = {name: [getattr(info, name) for info in infos] for name in RequestInfo.__dataclass_fields__}
    columns["rows"] = list(rows)
    columns["spans"] = [[TokenSpan(*span)._asdict() for span in spans] for spans in columns["spans"]]
    columns["labels"] = [list(labels.items()) for labels in columns["labels"]]
    arrays = [pa.array(columns[column.name], column.type) for column in CHUNK_SCHEMA]
    return pa.record_batch(arrays, schema=CHUNK_SCHEMA)


def sorted_batches(chunks: Any) -> tuple[Any, Iterator[Any]]:
    """Return the schema of `requests.arrow` and its batches, in request order, from the parts' chunks.

    Raises:
        BadTrace: a request number between 0 and the largest is missing.
    """
    numbers = chunks["request"].to_numpy()  # (m,)
    order = np.argsort(numbers, kind="stable")
    wrong = np.flatnonzero(numbers[order] != np.arange(len(order)))
    if len(wrong):
        raise BadTrace(f"request {wrong[0]} was never recorded, or twice; the trace is not whole.")
    names: set[str] = set()
    for chunk in chunks["labels"].chunks:
        names.update(pc.unique(chunk.keys).to_pylist())
    labels = sorted(names)
    schema = requests_schema(labels)

    def batches() -> Iterator[Any]:
        for start in range(0, len(order), BATCH):
            table = chunks.take(order[start : start + BATCH])
            columns = [table[column.name] for column in _FIELDS]
            columns += [pc.map_lookup(table["labels"], name, "first") for name in labels]
            yield from pa.table(columns, schema=schema).combine_chunks().to_batches()

    return schema, batches()


def texts_hash(table: Any) -> str:
    """Return the hash of all texts in request order, from their own hashes."""
    digest = hashlib.blake2b(digest_size=16)
    for batch in table.select(["text_hash"]).to_batches(max_chunksize=BATCH):
        digest.update("\n".join([*batch["text_hash"].to_pylist(), ""]).encode())
    return digest.hexdigest()


class _Labels(Mapping[str, Array]):
    """Label columns that become numpy arrays when they are asked for; `document` is one of them."""

    def __init__(self, table: Any) -> None:
        self._table = table
        self._columns = {"document": "document"} | {
            name.removeprefix(LABEL): name for name in table.column_names if name.startswith(LABEL)
        }

    def __getitem__(self, name: str) -> Array:
        column = self._table[self._columns[name]]
        return np.asarray(pc.fill_null(column, "").to_numpy()).astype(str)  # (m,)

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


def as_requests(table: Any) -> Requests:
    """Return the requests of a trace in the form that where clauses look at."""
    lengths = pc.list_value_length(table["spans"]).to_numpy()  # (m,)
    flat = pc.list_flatten(table["spans"])  # (s,) structs
    name, start, stop = (pc.struct_field(flat, field) for field in TokenSpan._fields)
    return Requests(
        prompt_tokens=table["prompt_tokens"].to_numpy(),
        labels=_Labels(table),
        span_request=np.repeat(np.arange(len(table)), lengths),
        span_name=np.asarray(name.to_numpy()).astype(str),
        span_start=start.to_numpy().astype(np.int64),
        span_stop=stop.to_numpy().astype(np.int64),
    )


def document_numbers(table: Any) -> NDArray[np.int64]:
    """Return the document of each request, (m,), numbered from 0 by first appearance; "" is one of its own."""
    own = pc.equal(table["document"], "").to_numpy()
    codes = pc.dictionary_encode(table["document"]).combine_chunks().indices.to_numpy().astype(np.int64)
    codes[own] = len(table) + np.arange(len(table))[own]
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return np.asarray(rank[inverse])
