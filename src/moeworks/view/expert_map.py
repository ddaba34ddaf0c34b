"""The map of a trace, layers × experts: load, weight, specialisation or scores, each beside its chance level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks.address import Address
from moeworks.errors import BadData, did_you_mean
from moeworks.plan.protected import known_super_experts
from moeworks.stats.counts import add_runs, add_shares, layers_of
from moeworks.stats.documents import blocks_of_documents, ratio_intervals, selected_documents
from moeworks.stats.specialisation import specialisation
from moeworks.view.kept import KEPT, trace_hash
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.find import Scores
    from moeworks.trace import Trace

__all__ = ["MAP_COLUMNS", "MapBy", "expert_map", "map_in_words", "protected_experts"]

Array = NDArray[Any]
MapBy = Literal["load", "weight", "specialisation", "score"]
MAP_COLUMNS = pa.schema(
    [
        ("layer", pa.int32()),
        ("expert", pa.int32()),
        ("value", pa.float64()),
        ("chance", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("passes", pa.bool_()),
        ("protected", pa.bool_()),
    ]
)
_PLACE = ("layer", "expert")
_ALPHA = 0.05


def expert_map(
    trace: Trace,
    *,
    by: MapBy = "load",
    label: str = "",
    value: str = "",
    scores: Scores | None = None,
    where: Where = Where(),
    seed: int = 0,
) -> pa.Table:
    """Return one number for every expert of a trace, rows by layer and expert; columns of `MAP_COLUMNS`.

    `value` is, by what is asked for:

    - load: the share of tokens for which the expert ran; `chance` k / E, even use.
    - weight: the mean share of a token's combine weight that it got; `chance` 1 / E.
    - specialisation: ln f(e | value) / f(e) of the label's value, see `moeworks.stats.specialisation`; `chance` is the
      mean of the layer's largest with the documents' values exchanged, and an expert `passes` where at most one in
      twenty of these is as large. Experts that ran fewer than 100 times, or never for the value, are null.
    - score: the scores' own; `chance` 0 where their test is of absolute scores, else null; `passes` as the scores say,
      null where they have no test.

    `low` and `high` end the 95 % interval from resampled documents (null with fewer than five of them); `passes` is
    null where there is no test; `protected`: the expert is known to be a super expert of the model.

    Args:
        trace: the trace.
        by: see above.
        label, value: only texts whose label has this value; of a specialisation, the value that is told from others.
        scores: the scores, for `score`.
        where: tokens and layers that count.
        seed: of everything drawn.

    Raises:
        BadData: a label, a value or the scores are missing, unknown, or of another model.
    """
    if by not in get_args(MapBy):
        raise BadData(f"there is no map by '{by}'; {did_you_mean(by, get_args(MapBy))}")
    table = _unmarked(trace, by, label, value, scores, where, seed)
    protected = protected_experts(trace)
    marks = [Address(*at) in protected for at in zip(*(table[n].to_pylist() for n in _PLACE), strict=True)]
    return table.append_column(MAP_COLUMNS.field("protected"), pa.array(marks, pa.bool_()))


def _unmarked(
    trace: Trace, by: MapBy, label: str, value: str, scores: Scores | None, where: Where, seed: int
) -> pa.Table:
    """Return the map without the last column, which another command may change at any time."""
    if by == "score":
        return _by_score(trace, scores, where)
    if bool(label) != bool(value):
        raise BadData("a map of one value needs both: the label and the value, as in lang and ru.")
    if label:
        _check_value(trace, label, value)
    if by == "specialisation":
        return _by_specialisation(trace, label, value, where, seed)
    if label:
        where = where.model_copy(update={"labels": {**where.labels, label: (value,)}})
    key = (trace_hash(trace), "map", by, str(where), seed)
    return KEPT.get(key, lambda: _by_use(trace, by, where, seed))


def protected_experts(trace: Trace) -> frozenset[Address]:
    """Return the super experts that are known of the trace's model; none where it was not measured."""
    model = trace.header.model
    record = known_super_experts(model.weight_hash) if model is not None else None
    return frozenset(record.addresses) if record is not None else frozenset()


def map_in_words(by: MapBy) -> str:
    """Return a sentence that says how to read a map."""
    return {
        "load": "share of the tokens for which an expert ran; chance: even use, k / E",
        "weight": "mean share of a token's combine weight that an expert got; chance: even use, 1 / E",
        "specialisation": "log ratio of an expert's share of this value's runs to its share of all runs, 0 is general "
        "use; chance: the largest of the layer with the documents' values exchanged; -: ran fewer than 100 times, or "
        "never for it",
        "score": "the scores' own number; chance: what no difference gives; passes: their false discovery rate",
    }[by]


def _check_value(trace: Trace, label: str, value: str) -> None:
    labels = trace.request_table().labels
    if label not in labels:
        raise BadData(f"no request has a label '{label}'; {did_you_mean(label, set(labels) - {'document'})}")
    known = set(labels[label].tolist()) - {""}
    if value not in known:
        raise BadData(f"no request has {label}={value}; {did_you_mean(value, known)}")


def _by_use(trace: Trace, by: str, where: Where, seed: int) -> pa.Table:
    layers, documents, requests = layers_of(trace, where), selected_documents(trace, where), trace.request_table()
    if by == "weight" and trace.header.lacks:
        raise BadData("the trace's source told no weights; look at the map by load.")
    block_of, blocks = blocks_of_documents(np.ones(len(documents), bool), seed=seed)
    tokens = np.bincount(block_of, weights=documents.tokens, minlength=blocks)
    sums = {layer: np.zeros((blocks, experts)) for layer, experts in layers.items()}
    add = add_runs if by == "load" else add_shares
    for part in trace.parts:
        rows = part.rows()
        entry = np.where(where.mask(rows, requests), block_of[documents.of_request[rows.request]], -1)
        for layer, counts in sums.items():
            add(counts, entry, part.ids(layer), part.weights(layer))
    grids = []
    for layer, experts in layers.items():
        chance = trace.header.shape_of(layer).top_k / experts if by == "load" else 1 / experts
        low, high = ratio_intervals(sums[layer], tokens, samples=200, seed=seed)
        found = sums[layer].sum(0) / tokens.sum()
        grids.append(_grid(layer, found, np.full(experts, chance), low, high))
    return pa.concat_tables(grids)


def _by_specialisation(trace: Trace, label: str, value: str, where: Where, seed: int) -> pa.Table:
    if not label:
        known = ", ".join(sorted(set(trace.request_table().labels) - {"document"})) or "none"
        raise BadData(f"specialisation is of one value of a label: name both, as in lang and ru; labels here: {known}.")
    layers = layers_of(trace, where)
    every = KEPT.get(
        (trace_hash(trace), "specialisation", label, str(where), seed),
        lambda: specialisation(trace, label=label, where=where, top=max(layers.values()), seed=seed),
    )
    rows: dict[int, list[dict[str, Any]]] = {layer: [] for layer in layers}
    for row in every.to_pylist():
        if row["value"] == value:
            rows[row["layer"]].append(row)
    grids = []
    for layer, experts in layers.items():
        columns = {name: np.full(experts, np.nan) for name in ("log_ratio", "chance", "low", "high", "p")}
        for row in rows[layer]:
            for name, column in columns.items():
                column[row["expert"]] = row[name]
        passes = [None if p != p else bool(p <= _ALPHA) for p in columns["p"].tolist()]
        found, chance, low, high = (columns[name] for name in ("log_ratio", "chance", "low", "high"))
        grids.append(_grid(layer, found, chance, low, high, passes))
    return pa.concat_tables(grids)


def _by_score(trace: Trace, scores: Scores | None, where: Where) -> pa.Table:
    if scores is None:
        raise BadData("a map by score needs scores; make them with: moeworks find TRACE -o SCORES.")
    if scores.unit == "neuron":
        raise BadData("these scores are of neurons, and the map shows experts; read them with: moeworks find --show.")
    model = trace.header.model
    theirs = scores.header.model
    if theirs is not None and model is not None and theirs.shape != model.shape:
        raise BadData(f"the scores are of {theirs.name}, whose experts are not those of {model.name}, this trace's.")
    header = scores.header
    tested = header.null != "none"
    place = {
        (row, e): i for i, (row, e) in enumerate(zip(scores.column("layer"), scores.column("expert"), strict=True))
    }
    grids = []
    for layer, experts in layers_of(trace, where).items():
        at = np.array([place.get((layer, expert), -1) for expert in range(experts)])
        found, low, high = (np.where(at >= 0, scores.column(name)[at], np.nan) for name in ("score", "low", "high"))
        chance = np.where((at >= 0) & (tested and header.tail == "both"), 0.0, np.nan)
        flags = scores.column("passes")[at].tolist()
        passes = [bool(flag) if tested and row >= 0 else None for flag, row in zip(flags, at.tolist(), strict=True)]
        grids.append(_grid(layer, found, chance, low, high, passes))
    return pa.concat_tables(grids)


def _grid(
    layer: int,
    value: Array,
    chance: Array,
    low: Array,
    high: Array,
    passes: Sequence[bool | None] = (),
) -> pa.Table:
    """Return the rows of one layer from (E,) arrays; numbers that are not known become null."""
    experts = len(value)
    numbers = [pa.array(column, pa.float64(), from_pandas=True) for column in (value, chance, low, high)]
    return pa.Table.from_arrays(
        [
            pa.array(np.full(experts, layer), pa.int32()),
            pa.array(np.arange(experts), pa.int32()),
            *numbers,
            pa.array(passes or [None] * experts, pa.bool_()),
        ],
        schema=MAP_COLUMNS.remove(len(MAP_COLUMNS) - 1),
    )
