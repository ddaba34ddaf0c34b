"""The tokens of a stretch of a trace's rows as an Arrow table: text, route, weights, entropy, margin, divergence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moeworks.errors import BadData
from moeworks.stats.counts import add_shares
from moeworks.stats.distributions import entropy, weight_shares
from moeworks.stats.router_probabilities import router_probabilities
from moeworks.trace.requests import LABEL
from moeworks.view.decoding import Decoder, decoder_for
from moeworks.view.kept import KEPT, trace_hash
from moeworks.view.pieces import text_pieces
from moeworks.view.refusals import NotThere, TooMuch
from moeworks.where import PHASES

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["MOST_ROWS", "mean_distribution", "request_table", "rows_of_request", "texts_of", "token_table"]

Array = NDArray[Any]
MOST_ROWS = 20_000
PREVIEW = 80  # characters
_CHUNK = 1 << 10  # rows at a time, so that float64 copies stay in the processor's cache


def token_table(
    trace: Trace,
    *,
    start: int = 0,
    stop: int | None = None,
    layers: Sequence[int] | None = None,
    decoder: Decoder | None = None,
) -> pa.Table:
    """Return the tokens of rows `start` to `stop` (not included), a row each.

    Columns: `row`, `request`, `position`, `token` (its id); `text`, the piece as it stands in the text, and `part`,
    true where a token has no text because its bytes belong to a character that ends in a later token; `phase`; and for
    each layer `L{n}.ids` and `L{n}.weights` (lists of k, in the router's slot order; a weight of 0 did not run),
    `L{n}.entropy` in nats of the router's probabilities or, without logits, of the k weights divided by their sum
    (the schema's metadata `entropy` says `router` or `weights`), `L{n}.margin`, by how much the last chosen expert
    beats the first that is not, in the contract's selection scores (only with logits and a proved contract), and
    `L{n}.divergence`, the Kullback-Leibler divergence in nats of that distribution from the trace's mean in the layer.
    A trace whose source lacks weights has neither entropy nor divergence (metadata `entropy`: `none`). Texts are those
    of the whole request, so that a stretch may begin and end anywhere; without a tokenizer `text` is empty and the
    metadata `no_text` says why.

    Args:
        trace: the trace.
        start, stop: rows, at most 20,000; without `stop` so many, or to the end.
        layers: which layers have columns; None for all.
        decoder: of the tokenizer; by default the trace's own is looked for.

    Raises:
        TooMuch: more rows than are handed out at once.
        BadData: the rows or a layer are not there.
    """
    stop = min(len(trace), start + MOST_ROWS) if stop is None else min(stop, len(trace))
    if start < 0 or stop < start or (start >= len(trace) and len(trace)):
        raise BadData(f"the trace has no rows {start} to {stop}: it has {len(trace)} rows, counted from 0.")
    if stop - start > MOST_ROWS:
        raise TooMuch(f"{stop - start} rows were asked for; at most {MOST_ROWS} are handed out at once.")
    wanted = trace.layers if layers is None else list(dict.fromkeys(layers))
    for layer in wanted:
        trace.header.shape_of(layer)  # raises for one that is not there
    rows = trace.rows()
    here = slice(start, stop)
    decoder = decoder or decoder_for(trace.header.model)
    text, part = texts_of(trace, start, stop, decoder)
    columns: dict[str, Any] = {
        "row": np.arange(start, stop, dtype=np.int32),
        "request": np.asarray(rows.request[here], np.int32),
        "position": np.asarray(rows.position[here], np.int32),
        "token": np.asarray(rows.token[here], np.int32),
        "text": text,
        "part": part,
        "phase": pa.DictionaryArray.from_arrays(pa.array(rows.phase[here].astype(np.int8)), list(PHASES)),
    }
    for layer in wanted:
        columns |= _of_layer(trace, layer, np.arange(start, stop))
    kind = "router" if trace.header.logits else "none" if trace.header.lacks else "weights"
    metadata = {"entropy": kind, "rows": str(len(trace)), "layers": json.dumps(wanted), "hash": trace_hash(trace)}
    if decoder.reason:
        metadata["no_text"] = decoder.reason
    return pa.table(columns).replace_schema_metadata(metadata)


def texts_of(trace: Trace, start: int, stop: int, decoder: Decoder) -> tuple[Any, Array]:
    """Return the text of rows `start` to `stop` as Arrow strings, and which are parts of a later one's character."""
    count = stop - start
    if decoder.reason or not count:
        return pa.array([""] * count, pa.string()), np.zeros(count, bool)
    rows = trace.rows()
    first, last = _first_row(rows.request, start), _first_row(rows.request, stop - 1, end=True)
    request = rows.request[first:last]
    starts = np.append(0, np.flatnonzero(np.diff(request)) + 1)
    pieces = KEPT.get(
        (trace_hash(trace), "pieces", first, last, decoder),
        lambda: text_pieces(decoder, rows.token[first:last], starts),
    )
    return pieces.text.slice(start - first, count), pieces.part[start - first : stop - first]


def rows_of_request(trace: Trace, request: int) -> tuple[int, int]:
    """Return the first row of a request and the row after its last one.

    Raises:
        NotThere: the trace has no row of it.
    """
    rows = np.flatnonzero(trace.rows().request == request)
    if not len(rows):
        raise NotThere(f"the trace has no rows of request {request}: it has requests 0 to {len(trace.requests) - 1}.")
    return int(rows[0]), int(rows[-1]) + 1


def _first_row(request: Array, row: int, *, end: bool = False) -> int:
    """Return the first row of the request that a row is of, or the row after its last one."""
    width = 256
    while True:  # requests are short beside a trace: look near the row, then farther away
        begin, stop = max(0, row - width), min(len(request), row + width)
        other = np.flatnonzero(request[row:stop] != request[row]) if end else np.flatnonzero(
            request[begin : row + 1] != request[row]
        )  # fmt: skip
        if len(other):
            return int(row + other[0] if end else begin + other[-1] + 1)
        if (end and stop == len(request)) or (not end and begin == 0):
            return len(request) if end else 0
        width *= 8


def request_table(trace: Trace, *, decoder: Decoder | None = None) -> pa.Table:
    """Return the requests of a trace in the order in which their rows stand.

    Columns: `request` (its number), `first_row`, `rows`, `prompt_rows`, `generated_rows` (those of phase forced
    included), `preview` (the first 80 characters; empty without a tokenizer), `document`, and every label by its name
    (null where the request does not have it). Without a tokenizer the metadata `no_text` says why.
    """
    decoder = decoder or decoder_for(trace.header.model)
    return KEPT.get((trace_hash(trace), "requests", decoder), lambda: _requests(trace, decoder))


def _requests(trace: Trace, decoder: Decoder) -> pa.Table:
    rows, table = trace.rows(), trace.requests
    starts = np.append(0, np.flatnonzero(np.diff(rows.request)) + 1) if len(trace) else np.zeros(0, np.int64)
    stops = np.append(starts[1:], len(trace)) if len(trace) else starts
    number = rows.request[starts]  # (r,)
    prompt = np.append(0, np.cumsum(rows.phase == PHASES.index("prompt")))
    prompt_rows = prompt[stops] - prompt[starts]
    order = pa.array(number.astype(np.int64))
    columns: dict[str, Any] = {
        "request": number.astype(np.int32),
        "first_row": starts.astype(np.int32),
        "rows": (stops - starts).astype(np.int32),
        "prompt_rows": prompt_rows.astype(np.int32),
        "generated_rows": (stops - starts - prompt_rows).astype(np.int32),
        "preview": _previews(rows.token, starts, stops, decoder),
        "document": table["document"].take(order),
    }
    for name in table.column_names:
        if name.startswith(LABEL):
            label = name.removeprefix(LABEL)
            columns[label if label not in columns else name] = table[name].take(order)
    return pa.table(columns).replace_schema_metadata({"no_text": decoder.reason} if decoder.reason else None)


def _previews(token: Array, starts: Array, stops: Array, decoder: Decoder) -> Any:
    if decoder.reason or not len(starts):
        return pa.array([""] * len(starts), pa.string())
    taken = np.minimum(stops - starts, 4 * PREVIEW)  # a character is at most four tokens, each a byte of it
    first = np.cumsum(taken) - taken
    rows = np.repeat(starts - first, taken) + np.arange(taken.sum())
    text = text_pieces(decoder, token[rows], first).text
    joined = pc.binary_join(pa.ListArray.from_arrays(np.append(first, len(rows)).astype(np.int32), text), "")
    return pc.utf8_slice_codeunits(joined, 0, PREVIEW)


def mean_distribution(trace: Trace, layer: int) -> Array:
    """Return the mean over all rows of a layer's routing distribution, (E,) float64, computed once for each trace.

    Of the router's probabilities where the trace has logits, else of the combine weights divided by their sum.
    """
    return KEPT.get((trace_hash(trace), "mean", layer), lambda: _mean(trace, layer))


def _mean(trace: Trace, layer: int) -> Array:
    shape = trace.header.shape_of(layer)
    sums = np.zeros((1, shape.experts))
    for part in trace.parts:
        if trace.header.logits:
            logits = part.logits(layer)
            for begin in range(0, len(part), _CHUNK):
                sums[0] += router_probabilities(logits[begin : begin + _CHUNK], shape.contract).sum(0)
        else:
            add_shares(sums, np.zeros(len(part), np.int64), part.ids(layer), part.weights(layer))
    total = sums.sum()
    return np.asarray(sums[0] / total if total > 0 else sums[0])


def _of_layer(trace: Trace, layer: int, rows: Array) -> dict[str, Any]:
    """Return the columns of one layer for some rows, (n,)."""
    ids, weights = trace.take(layer, "ids", rows), trace.take(layer, "weights", rows)
    columns: dict[str, Any] = {
        f"L{layer}.ids": _lists(ids),
        f"L{layer}.weights": _lists(weights.astype(np.float32)),
    }
    if trace.header.logits:
        logits = trace.take(layer, "logits", rows)
        contract, mean = trace.header.shape_of(layer).contract, mean_distribution(trace, layer)
        spread, apart, margin = (np.zeros(len(rows), np.float32) for _ in range(3))
        log_mean, told = np.log(np.where(mean > 0, mean, 1.0)), True
        for begin in range(0, len(rows), _CHUNK):
            chunk = slice(begin, begin + _CHUNK)
            p = router_probabilities(logits[chunk], contract)  # (n, E)
            own = entropy(p)
            spread[chunk], apart[chunk] = own, np.maximum(-own - p @ log_mean, 0.0)
            found = trace.header.margins_of(layer, logits[chunk])
            told = told and found is not None
            if found is not None:
                margin[chunk] = found
        columns[f"L{layer}.entropy"] = spread
        if told:
            columns[f"L{layer}.margin"] = margin
        columns[f"L{layer}.divergence"] = apart
    elif not trace.header.lacks:
        share, mean = weight_shares(weights), mean_distribution(trace, layer)  # (n, k), (E,)
        log_mean = np.log(np.where(mean > 0, mean, 1.0))
        spread = entropy(share)
        columns[f"L{layer}.entropy"] = spread.astype(np.float32)
        apart = np.maximum(-spread - (share * log_mean[ids]).sum(-1), 0.0)
        columns[f"L{layer}.divergence"] = apart.astype(np.float32)
    return columns


def _lists(values: Array) -> Any:
    """Return an (n, k) array as Arrow lists of k."""
    flat = np.ascontiguousarray(values).reshape(-1)
    item = pa.field("item", pa.from_numpy_dtype(flat.dtype), nullable=False)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), type=pa.list_(item, values.shape[1]))
