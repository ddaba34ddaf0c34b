"""Which runs would be dropped if every expert took a limited number of tokens a batch: a simulation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks.errors import BadData, did_you_mean
from moeworks.stats.counts import layer_batches, layers_of
from moeworks.stats.documents import SAMPLE, draw_documents, percentiles, selected_documents
from moeworks.stats.sets import check_ids
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Part, Trace

__all__ = ["capacity", "capacity_drops", "chance_of_drops"]

Array = NDArray[Any]
DECILES = 10
_CHUNK = 1 << 16  # rows at a time
_KEYS = 1 << 16  # (batch, expert) pairs at a time: 16-bit keys are sorted by radix, several times as fast


def capacity_drops(
    trace: Trace,
    *,
    where: Where = Where(),
    factors: Sequence[float] = (1.0, 1.25, 2.0),
    texts_per_batch: int = 1,
    label: str | None = None,
    sample: int = SAMPLE,
    bootstrap: int = 200,
    seed: int = 0,
    budget_bytes: int = 256 << 20,
) -> pa.Table:
    """Return the *simulated* share of runs that a capacity limit would drop, by place in the batch and by label.

    Nothing was dropped when the trace was recorded. Each expert takes C = ceil(factor × k × T / E) tokens of a batch of
    T tokens, in the order of the sequence; what comes later is dropped. A batch is `texts_per_batch` neighbouring
    texts of the trace, one after the other as they stand. It doubles as an estimate of the overload of experts that
    lie on different devices.

    Drops grow towards the end under any routing, since places are taken in order. Read rate and slope beside those
    of chance: the same batches with every token choosing k experts evenly at random.

    Columns: `layer`, `factor`, `value` of the label ("" for all); `simulated_drop_rate`, dropped runs / runs, its 95 %
    interval `low`, `high` and `chance`; `by_decile`, the rate in ten equal stretches of the batch, `chance_by_decile`;
    `slope`, its rise over the whole batch (least squares), `slope_low`, `slope_high`, `slope_chance`; `batches`,
    `tokens`, and `units`: what is resampled for the intervals, documents where a batch is one text, batches otherwise.

    Source: drops towards the end of OpenMoE (arXiv 2402.01739, section 4) [known from summaries]. Its model takes two
    experts at capacity factors of about 1.25 (training) and 2.0 (evaluation) [recalled].

    Args:
        trace: the trace.
        where: which tokens and layers count; tokens left out take no place.
        factors: capacity factors.
        texts_per_batch: how many texts share the places.
        label: a label whose values are told apart; they still share the places.
        sample: tokens of whole documents drawn at random that are looked at; 0 takes all.
        bootstrap: resamplings.
        seed: of the resamplings.
        budget_bytes: memory for sums; layers that do not fit take further passes.

    Raises:
        BadData: nothing is selected, the trace is a sample of tokens, or the label is unknown.
    """
    if not factors or min(factors) <= 0 or texts_per_batch < 1:
        raise BadData("capacity factors are above 0, at least one of them, and a batch has at least one text.")
    if trace.header.sample is not None:
        raise BadData("the trace holds a sample of its tokens; places cannot be filled in order: record every token.")
    layers, plan = layers_of(trace, where), _plan(trace, where, texts_per_batch, label, sample, seed)
    cells = len(plan.unit) * DECILES * (1 + len(factors))
    lines: list[dict[str, Any]] = []
    for batch in layer_batches(dict.fromkeys(layers, 1), cells, budget_bytes=budget_bytes):
        chosen = {layer: layers[layer] for layer in batch}
        sums = _sums(trace, where, plan, chosen, factors)
        lines += _lines(trace, sums, chosen, plan, factors, bootstrap, seed)
    return pa.Table.from_pylist(lines)


def capacity(tokens: Array, experts: int, top_k: int, factor: float) -> Array:
    """Return how many tokens of a batch an expert takes: ceil(factor × k × T / E), (batches,)."""
    exact = factor * top_k * tokens / experts
    return np.ceil(exact - 1e-9).astype(np.int64)  # 1.25 × 8 is 10 also where it comes out a hair above


def chance_of_drops(sizes: Array, experts: int, top_k: int, factors: Sequence[float], *, points: int = 5) -> Array:
    """Return the drop rate by decile if every token chooses k experts evenly at random, (factors, sizes, 10).

    A run of token t is dropped if C of the t - 1 tokens before chose its expert: P(Binomial(t - 1, k / E) ≥ C).

    Args:
        sizes: (sizes,) tokens of a batch.
        experts: E.
        top_k: k.
        factors: capacity factors.
        points: places in a decile at which it is taken.
    """
    from scipy.special import bdtrc

    places = (np.arange(DECILES * points) + 0.5) / (DECILES * points)
    before = np.floor(places * sizes[:, None])  # (sizes, points): tokens before the one at this place
    found = np.empty((len(factors), len(sizes), DECILES))
    for i, factor in enumerate(factors):
        most = capacity(sizes, experts, top_k, factor)[:, None]
        reached = np.where(
            before >= most, bdtrc(most - 1, np.maximum(before, most).astype(np.int64), top_k / experts), 0.0
        )
        found[i] = reached.reshape(len(sizes), DECILES, points).mean(-1)
    return found


@dataclass(frozen=True)
class _Plan:
    """Batches, and the entries that drops are summed over: g pairs of (unit, value of the label)."""

    of_request: Array  # (m,) batch of each request, -1 where nothing is selected
    before: Array  # (m,) selected tokens of the batch before each request
    entry: Array  # (m,) entry of each request, -1
    tokens: Array  # (batches,)
    unit: Array  # (g,) what is resampled: document or batch
    value: Array  # (g,) index into values
    values: list[str]
    sizes: Array  # (sizes,) different numbers of tokens that batches have
    value_tokens: Array  # (values, sizes) tokens of each value in batches of each size


def _plan(trace: Trace, where: Where, texts: int, label: str | None, sample: int, seed: int) -> _Plan:
    documents, requests = selected_documents(trace, where, sample=sample, seed=seed), trace.request_table()
    if label is not None and label not in requests.labels:
        raise BadData(f"no request has a label '{label}'; {did_you_mean(label, requests.labels)}")
    order = _request_order(trace, documents.of_text)  # selected requests as they stand
    of_request, before = np.full(len(requests), -1), np.zeros(len(requests), np.int64)
    of_request[order] = np.arange(len(order)) // texts
    size = documents.of_text[order]
    ahead = np.cumsum(size) - size
    before[order] = ahead - ahead[np.arange(len(order)) // texts * texts]
    names = requests.labels[label] if label is not None else np.full(len(requests), "")
    values, value = np.unique(names, return_inverse=True)
    unit = documents.of_request if texts == 1 else of_request
    found, place = np.unique(unit[order] * len(values) + value[order], return_inverse=True)
    entry = np.full(len(requests), -1)
    entry[order] = place
    tokens = np.bincount(of_request[order], weights=size).astype(np.int64)  # (batches,)
    sizes, size_of = np.unique(tokens, return_inverse=True)
    value_tokens = np.zeros((len(values), len(sizes)))
    np.add.at(value_tokens, (value[order], size_of[of_request[order]]), size)
    return _Plan(
        of_request=of_request,
        before=before,
        entry=entry,
        tokens=tokens,
        unit=found // len(values),
        value=found % len(values),
        values=[str(name) for name in values],
        sizes=sizes,
        value_tokens=value_tokens,
    )


def _request_order(trace: Trace, tokens: Array) -> Array:
    """Return the requests with selected tokens in the order in which their rows stand."""
    columns = [part.rows().request for part in trace.parts]
    order = np.concatenate([request[np.flatnonzero(np.diff(request, prepend=-1))] for request in columns])
    return np.asarray(order[tokens[order] > 0])


def _sums(
    trace: Trace, where: Where, plan: _Plan, layers: Mapping[int, int], factors: Sequence[float]
) -> dict[int, Array]:
    """Return runs and, for each factor, dropped runs, layer → (1 + factors, entries, 10)."""
    cells = len(plan.unit) * DECILES
    sums = {layer: np.zeros((1 + len(factors), cells), np.int64) for layer in layers}
    taken = {layer: np.zeros(experts, np.int64) for layer, experts in layers.items()}  # of the batch not yet whole
    most = {
        layer: np.stack([capacity(plan.tokens, n, trace.header.shape_of(layer).top_k, f) for f in factors])
        for layer, n in layers.items()
    }  # (factors, batches)
    last = -1  # the batch that the rows before ended in
    for rows in _rows(trace, where, plan):
        for layer, experts in layers.items():
            ids, weights = rows.part.ids(layer), rows.part.weights(layer)
            check_ids(ids, experts)
            before = last
            for some in rows.pieces(_KEYS // experts):
                if some.batch[0] != before:
                    taken[layer][:] = 0
                before = int(some.batch[-1])
                _fill(sums[layer], taken[layer], some, ids[some.at], weights[some.at], most[layer])
        last = int(rows.batch[-1])
    return {layer: found.reshape(1 + len(factors), -1, DECILES) for layer, found in sums.items()}


class _Rows(NamedTuple):
    """Some selected rows of one part, n of them, in order."""

    part: Part
    at: Array | slice  # which rows of the part
    batch: Array  # (n,) ascending
    cell: Array  # (n,) entry × 10 + decile

    def pieces(self, batches: int) -> Iterator[_Rows]:
        """Yield neighbouring rows, of so many batches at most."""
        start, at = 0, self.at
        assert not isinstance(at, slice)
        while start < len(at):
            stop = min(int(np.searchsorted(self.batch, self.batch[start] + batches)), start + _CHUNK)
            some = at[start:stop]
            whole = some[-1] - some[0] + 1 == len(some)  # a view instead of a copy
            where = slice(int(some[0]), int(some[-1]) + 1) if whole else some
            yield _Rows(self.part, where, self.batch[start:stop], self.cell[start:stop])
            start = stop


def _rows(trace: Trace, where: Where, plan: _Plan) -> Iterator[_Rows]:
    """Yield the selected rows of each part; a part holds whole requests."""
    requests = trace.request_table()
    for part in trace.parts:
        rows = part.rows()
        kept = np.flatnonzero(where.mask(rows, requests) & (plan.of_request[rows.request] >= 0))
        if not len(kept):
            continue
        request = rows.request[kept]
        starts = np.concatenate([[0], np.flatnonzero(np.diff(request)) + 1])
        first = np.repeat(starts, np.diff([*starts, len(kept)]))
        index = np.arange(len(kept)) - first  # of the selected rows of its request
        batch = plan.of_request[request]
        decile = (plan.before[request] + index) * DECILES // plan.tokens[batch]
        yield _Rows(part, kept, batch, plan.entry[request] * DECILES + decile)


def _fill(sums: Array, taken: Array, rows: _Rows, ids: Array, weights: Array, most: Array) -> None:
    """Give the experts of some rows their tokens in order; add runs and dropped runs to `sums`.

    Args:
        sums: (1 + factors, cells).
        taken: (E,) tokens that each expert of the first batch has been offered so far; then of the last batch.
        rows: which rows.
        ids: (n, k).
        weights: (n, k); a slot of weight exactly 0 did not run.
        most: (factors, batches) places of an expert.
    """
    experts, top_k = len(taken), ids.shape[1]
    local = rows.batch - rows.batch[0]  # (n,)
    keys = (local[:, None] * experts + ids).astype(np.uint16).ravel()  # (n × k,) token by token
    ran = None if np.count_nonzero(weights) == weights.size else np.flatnonzero(weights.ravel())
    if ran is not None:
        keys = keys[ran]
    order = np.argsort(keys, kind="stable")  # by batch and expert, in each by token
    pairs = int(local[-1] + 1) * experts
    count = np.bincount(keys, minlength=pairs)
    offered = np.zeros(pairs, np.int64)
    offered[:experts] = taken
    starts = np.cumsum(count) - count
    batch_of = np.repeat(np.arange(rows.batch[0], rows.batch[-1] + 1), experts)  # (pairs,)
    taken[:] = count[-experts:] + offered[-experts:]
    cells = sums.shape[1]
    sums[0] += _by_cell(rows.cell, top_k, ran, None, cells)
    for i, places in enumerate(most):
        # Sorted, the runs of a pair are dropped from the first one without a place on.
        free = np.clip(places[batch_of] - offered, 0, count)
        lost = np.flatnonzero(count > free)
        if not len(lost):
            continue
        number = count[lost] - free[lost]
        ends = np.cumsum(number)
        dropped = np.arange(ends[-1]) + np.repeat(starts[lost] + free[lost] - (ends - number), number)
        sums[1 + i] += _by_cell(rows.cell, top_k, ran, order[dropped], cells)


def _by_cell(cell: Array, top_k: int, ran: Array | None, which: Array | None, cells: int) -> Array:
    """Return how many runs lie in each cell, (cells,): of all, or of those numbered `which`."""
    if which is None and ran is None:
        return np.asarray(np.bincount(cell, minlength=cells) * top_k)
    run = ran if which is None else which if ran is None else ran[which]
    assert run is not None
    return np.bincount(cell[run // top_k], minlength=cells)


def _lines(
    trace: Trace,
    sums: Mapping[int, Array],
    layers: Mapping[int, int],
    plan: _Plan,
    factors: Sequence[float],
    bootstrap: int,
    seed: int,
) -> list[dict[str, Any]]:
    shapes = {layer: (experts, trace.header.shape_of(layer).top_k) for layer, experts in layers.items()}
    chances = {shape: chance_of_drops(plan.sizes, *shape, factors) for shape in set(shapes.values())}
    every = np.stack(list(sums.values()))  # (layers, 1 + factors, entries, 10)
    starts = np.flatnonzero(np.diff(plan.unit, prepend=-1))  # entries of one unit stand together
    groups = [("", np.add.reduceat(every, starts, axis=2), plan.value_tokens.sum(0))]
    if len(plan.values) > 1 or plan.values[0]:
        groups += [
            (name, every[:, :, plan.value == i], plan.value_tokens[i]) for i, name in enumerate(plan.values) if name
        ]
    lines = []
    for name, units, tokens in groups:
        flat = units.transpose(2, 0, 1, 3).reshape(units.shape[2], -1).astype(np.float64)
        drawn = np.concatenate([w @ flat for w in draw_documents(len(flat), samples=bootstrap, seed=seed)])
        samples = drawn.reshape(bootstrap, *units.shape[:2], DECILES)
        for i, (layer, shape) in enumerate(shapes.items()):
            chance = (tokens @ chances[shape]) / tokens.sum()  # (factors, 10)
            for j, factor in enumerate(factors):
                facts = _facts(units[i].sum(1)[None], samples[:, i], 1 + j, chance[j], len(flat))
                lines.append(
                    {
                        "layer": layer,
                        "factor": float(factor),
                        "value": name,
                        **facts,
                        "batches": len(plan.tokens),
                        "tokens": int(tokens.sum()),
                        "units": len(flat),
                    }
                )
    return sorted(lines, key=lambda line: (line["layer"], line["factor"]))


def _facts(sums: Array, samples: Array, which: int, chance: Array, units: int) -> dict[str, Any]:
    """Return rate and slope of sums, (1, 1 + factors, 10), their intervals and chances."""
    rate, deciles, slope = _rates(sums, which)
    rates, _, slopes = _rates(samples, which)
    (low, high), (slope_low, slope_high) = percentiles(rates, units), percentiles(slopes, units)
    runs = sums[0, 0]
    return {
        "simulated_drop_rate": float(rate[0]),
        "low": float(low),
        "high": float(high),
        "chance": float(chance @ runs / runs.sum()),
        "by_decile": deciles[0].tolist(),
        "chance_by_decile": chance.tolist(),
        "slope": float(slope[0]),
        "slope_low": float(slope_low),
        "slope_high": float(slope_high),
        "slope_chance": float(_slope(np.where(runs > 0, chance, np.nan)[None])[0]),
    }


def _rates(sums: Array, which: int) -> tuple[Array, Array, Array]:
    """Return drop rate, (b,), rate by decile, (b, 10), and slope, (b,), of sums (b, 1 + factors, 10)."""
    runs, dropped = sums[:, 0], sums[:, which]
    with np.errstate(divide="ignore", invalid="ignore"):
        deciles = dropped / runs
        return dropped.sum(-1) / runs.sum(-1), deciles, _slope(deciles)


def _slope(deciles: Array) -> Array:
    """Return the least-squares slope over the deciles that have runs (all, unless texts are very short), (b,)."""
    there = np.isfinite(deciles)
    place, rate = np.where(there, (np.arange(DECILES) + 0.5) / DECILES, 0.0), np.where(there, deciles, 0.0)
    place = np.where(there, place - place.sum(-1, keepdims=True) / there.sum(-1, keepdims=True), 0.0)
    return np.asarray((place * rate).sum(-1) / (place**2).sum(-1))
