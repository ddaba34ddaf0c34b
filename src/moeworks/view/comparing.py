"""Two traces token by token: which tokens differ, in which layers their experts do, and how many both chose."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks.compare import compare
from moeworks.errors import BadData
from moeworks.stats.sets import check_ids, chosen, overlap
from moeworks.view.decoding import Decoder, decoder_for
from moeworks.view.kept import KEPT, trace_hash
from moeworks.view.plain import plain
from moeworks.view.refusals import TooMuch
from moeworks.view.tokens import MOST_ROWS, texts_of

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["compared_tokens", "comparison_json"]

Array = NDArray[Any]


def comparison_json(first: Trace, second: Trace, *, label: str | None = None, seed: int = 0) -> dict[str, Any]:
    """Return the summary of `moeworks compare A B --json` as plain data, with its `command`; see `compare`.

    Raises:
        BadData: the two do not hold the same texts, or have other layers or experts.
    """
    key = ("compare", trace_hash(first), trace_hash(second), label, seed)
    found = KEPT.get(key, lambda: plain(compare(first, second, label=label, seed=seed).as_json()))
    words = ["moeworks", "compare", str(first.path), str(second.path)]
    words += ["--label", label] if label else []
    words += ["--seed", str(seed)] if seed else []
    return {**found, "command": shlex.join([*words, "--json"])}


def compared_tokens(
    first: Trace,
    second: Trace,
    *,
    start: int = 0,
    stop: int | None = None,
    decoders: tuple[Decoder | None, Decoder | None] = (None, None),
) -> pa.Table:
    """Return the tokens of two traces side by side, matched by request and position, ordered by both.

    Columns: `row`, the place in the list of all positions that either trace holds; `request`, `position`; `row_a`,
    `token_a`, `text_a` and the same of b, null where that trace has no such position; `same`, whether both have the
    same token there; `same_context`, whether they had so far too, from the first position of the request that is
    listed on: else the routes are of other texts and the next columns are null; `flips`, in how many layers the sets
    of experts differ; `first_layer`, the first of them, null where none does; and `L{n}.overlap`, how many experts
    both ran in a layer. Layers are those that both traces have with as many experts. The schema's metadata has `rows`,
    the number of all, and `layers`.

    Args:
        first, second: a and b.
        start, stop: places in the list, at most 20,000; without `stop` so many, or to the end.
        decoders: of the traces' tokens; by default they are looked for.

    Raises:
        TooMuch: more rows than are handed out at once.
        BadData: no such rows, or no layer is in both.
    """
    layers = _layers(first, second)
    pairs = _pairs(first, second)
    stop = min(len(pairs), start + MOST_ROWS) if stop is None else min(stop, len(pairs))
    if start < 0 or stop < start or start >= len(pairs):
        raise BadData(f"the comparison has no rows {start} to {stop}: it has {len(pairs)} rows, counted from 0.")
    if stop - start > MOST_ROWS:
        raise TooMuch(f"{stop - start} rows were asked for; at most {MOST_ROWS} are handed out at once.")
    here = slice(start, stop)
    columns: dict[str, Any] = {
        "row": np.arange(start, stop, dtype=np.int32),
        "request": (pairs.keys[here] >> 32).astype(np.int32),
        "position": (pairs.keys[here] & 0xFFFFFFFF).astype(np.int32),
    }
    for name, trace, rows, decoder in zip(
        "ab", (first, second), (pairs.first[here], pairs.second[here]), decoders, strict=True
    ):
        columns |= _side(name, trace, rows, decoder or decoder_for(trace.header.model))
    columns["same"] = pairs.same[here]
    columns["same_context"] = pairs.same_context[here]
    columns |= _routes(first, second, layers, pairs.first[here], pairs.second[here], pairs.same_context[here])
    return pa.table(columns).replace_schema_metadata({"rows": str(len(pairs)), "layers": json.dumps(layers)})


@dataclass(frozen=True)
class _Pairs:
    """All n positions that either trace holds, by request and position."""

    keys: Array  # (n,) request << 32 | position
    first: Array  # (n,) row of each in the first trace, -1 where it has none
    second: Array
    same: Array  # (n,) whether both have the same token
    same_context: Array  # (n,) whether they had so at every listed position of the request up to here

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def nbytes(self) -> int:
        return int(sum(one.nbytes for one in vars(self).values()))


def _pairs(first: Trace, second: Trace) -> _Pairs:
    return KEPT.get(("pairs", trace_hash(first), trace_hash(second)), lambda: _match(first, second))


def _match(first: Trace, second: Trace) -> _Pairs:
    ours, theirs = first.rows(), second.rows()
    keys = [rows.request.astype(np.int64) << 32 | rows.position.astype(np.int64) for rows in (ours, theirs)]
    every = np.union1d(*keys)
    place = [np.full(len(every), -1, np.int64) for _ in keys]
    for rows, one in zip(place, keys, strict=True):
        rows[np.searchsorted(every, one)] = np.arange(len(one))
    both = (place[0] >= 0) & (place[1] >= 0)
    same = np.zeros(len(every), bool)
    same[both] = ours.token[place[0][both]] == theirs.token[place[1][both]]
    request = every >> 32
    starts = np.append(0, np.flatnonzero(np.diff(request)) + 1) if len(every) else np.zeros(0, np.int64)
    differs = np.append(0, np.cumsum(~same))
    lengths = np.diff(np.append(starts, len(every)))
    before = np.repeat(differs[starts], lengths)  # differences before each row's request
    return _Pairs(every, place[0], place[1], same, differs[1:] == before)


def _layers(first: Trace, second: Trace) -> list[int]:
    experts = [{layer: trace.header.shape_of(layer).experts for layer in trace.layers} for trace in (first, second)]
    layers = [layer for layer, count in experts[0].items() if experts[1].get(layer) == count]
    if not layers:
        raise BadData(f"{first.path} and {second.path} have no layer in common with as many experts.")
    return layers


def _side(name: str, trace: Trace, rows: Array, decoder: Decoder) -> dict[str, Any]:
    """Return row, token and text of one trace's rows, (m,) with -1 where it has none; its rows may be far apart."""
    missing = rows < 0
    there = rows[~missing]
    token = np.zeros(len(rows), np.int32)
    token[~missing] = trace.rows().token[there]
    text = np.full(len(rows), None, object)
    text[~missing] = _texts(trace, there, decoder)
    return {
        f"row_{name}": pa.array(rows.astype(np.int32), mask=missing),
        f"token_{name}": pa.array(token, mask=missing),
        f"text_{name}": pa.array(text, pa.string()),
    }


def _texts(trace: Trace, rows: Array, decoder: Decoder) -> Array:
    """Return the texts of rows, (m,), which stand in stretches: requests are kept together, but may be in any order."""
    texts = np.full(len(rows), "", object)
    cuts = np.flatnonzero(np.diff(rows) != 1) + 1
    for start, stop in zip([0, *cuts.tolist()], [*cuts.tolist(), len(rows)], strict=True):
        if stop > start:
            texts[start:stop] = texts_of(trace, int(rows[start]), int(rows[stop - 1]) + 1, decoder)[0].to_pylist()
    return texts


def _routes(
    first: Trace, second: Trace, layers: list[int], ours: Array, theirs: Array, comparable: Array
) -> dict[str, Any]:
    """Return flips, the first layer and the overlaps of m rows; null where `comparable`, (m,), is false."""
    count = len(ours)
    at = np.flatnonzero(comparable)
    flips, first_layer = np.zeros(count, np.int32), np.full(count, -1, np.int32)
    columns: dict[str, Any] = {}
    for layer in layers:
        ran, sizes = [], []
        for number, (trace, rows) in enumerate(((first, ours[at]), (second, theirs[at]))):
            ids, weights = trace.take(layer, "ids", rows), trace.take(layer, "weights", rows)
            check_ids(ids, trace.header.shape_of(layer).experts)
            ran.append(chosen(ids, weights, empty=-1 - number))
            sizes.append((weights != 0).sum(-1))
        shared = overlap(*ran)
        flipped = at[(shared != sizes[0]) | (shared != sizes[1])]
        flips[flipped] += 1
        first_layer[flipped[first_layer[flipped] < 0]] = layer
        column = np.zeros(count, np.uint8)
        column[at] = shared
        columns[f"L{layer}.overlap"] = pa.array(column, mask=~comparable)
    return {
        "flips": pa.array(flips, mask=~comparable),
        "first_layer": pa.array(first_layer, mask=first_layer < 0),
        **columns,
    }
