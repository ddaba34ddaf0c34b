"""Whether a trace's numbers can be trusted: checks of each layer, before any statistic is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks.contract import combine_weights, select
from moeworks.errors import BadData
from moeworks.stats.counts import layers_of
from moeworks.stats.near_ties import near_tie_of, relative_margins
from moeworks.stats.router_probabilities import look_like_probabilities
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.artefact import LayerShape
    from moeworks.trace import Part, Trace

__all__ = ["refusal", "sanity", "sentence"]

Array = NDArray[Any]
Result = Literal["pass", "fail", "not told"]
_CHUNK = 1 << 15
_WEIGHTS_DIFFER = {"float64": 1e-4, "float32": 1e-3}  # relative; other types of number round to a few hundredths
_MOST_OF = 0.99  # of the rows look like probabilities

_MEANING = {
    "empty_rows": "tokens for which no expert ran: padding, or dropped tokens",
    "ids_below_E": "tokens that name an expert that there is not",
    "distinct_ids": "tokens that name an expert twice",
    "counts": "runs that the experts' counts lack, of tokens × k less the slots that did not run",
    "weights_finite": "tokens with a weight that is not a number, or infinite",
    "raw_logits": "sampled tokens whose logits are probabilities already",
    "weights_follow": "sampled tokens whose weights do not follow from their logits by the contract",
    "ids_follow": "sampled tokens whose experts are not the top of their selection scores, near-ties apart",
}


def sanity(trace: Trace, *, where: Where = Where(), sample: int = 20_000, seed: int = 0) -> pa.Table:
    """Return what each check of each layer says: a row per layer and check.

    Columns: `layer`, `check`, `result` (pass, fail, or "not told" where the trace lacks what the check reads),
    `checked`, how many tokens (or runs) were looked at, `failed`, how many of them fail, `share`, `invalidates`,
    whether failing makes numbers of this trace wrong, and `meaning`, what a failure is. All selected rows are read;
    what needs the logits is checked on a sample of them.

    Checks: no row in which no expert ran (a router that drops tokens, whose rule is not known, may have some); ids
    below E; distinct ids among the slots that ran (a hash table may name one twice); counts that add up to tokens × k
    less the slots that did not run; finite weights; logits that are raw (probabilities under that name must not be
    softmaxed again); weights and ids that follow from the logits by the layer's contract (they do not in a trace that
    was steered, whose numbers are right all the same).

    Args:
        trace: the trace.
        where: which tokens and layers count.
        sample: tokens whose logits are looked at.
        seed: of the sample.

    Raises:
        BadData: nothing is selected.
    """
    layers, requests = layers_of(trace, where), trace.request_table()
    counts = {layer: np.zeros(5, np.int64) for layer in layers}
    bins = {layer: np.zeros(experts, np.int64) for layer, experts in layers.items()}
    selected: list[Array] = []
    tokens, base = 0, 0
    for part in trace.parts:
        kept = where.mask(part.rows(), requests)
        tokens += int(kept.sum())
        selected.append(base + np.flatnonzero(kept))
        base += len(part)
        for layer, experts in layers.items():
            _check_part(part, layer, experts, kept, counts[layer], bins[layer])
    if not tokens:
        raise BadData(f"no token matches the clause '{where}'.")
    rows = np.concatenate(selected)
    if len(rows) > sample:
        rows = np.sort(np.random.default_rng([seed, 37]).choice(rows, sample, replace=False, shuffle=False))
    lines: list[dict[str, Any]] = []
    for layer in layers:
        shape = trace.header.shape_of(layer)
        found = _counted(trace, shape, tokens, counts[layer], bins[layer])
        found += _from_logits(trace, shape, rows)
        lines += [_line(layer, one) for one in found]
    return pa.Table.from_pylist(lines)


def refusal(table: pa.Table) -> str | None:
    """Return why numbers of this trace would be wrong, one sentence; None if they are not."""
    for row in table.to_pylist():
        if row["result"] == "fail" and row["invalidates"]:
            return (
                f"layer {row['layer']} fails the check {row['check']}: {row['failed']} of {row['checked']} "
                f"({row['meaning']}); numbers of this trace would be wrong: record it again, or leave them out with a "
                "where clause."
            )
    return None


def sentence(table: pa.Table) -> str:
    """Return one line that says what the checks found."""
    rows = table.to_pylist()
    failed = [row for row in rows if row["result"] == "fail"]
    told = sum(row["result"] != "not told" for row in rows)
    layers = len({row["layer"] for row in rows})
    if not failed:
        return f"sanity: {told} checks pass in {layers} layers; {len(rows) - told} not told by this trace"
    names = "; ".join(f"{row['check']} in layer {row['layer']} ({row['failed']} of {row['checked']})" for row in failed)
    return f"sanity: {told - len(failed)} of {told} checks pass in {layers} layers; not {names}"


class _Found(NamedTuple):
    check: str
    result: Result
    checked: int
    failed: int
    invalidates: bool


def _line(layer: int, found: _Found) -> dict[str, Any]:
    share = found.failed / found.checked if found.checked else float("nan")
    return {"layer": layer, **found._asdict(), "share": share, "meaning": _MEANING[found.check]}


def _check_part(part: Part, layer: int, experts: int, kept: Array, counts: Array, bins: Array) -> None:
    """Add rows without runs, with unknown ids, with repeated ids, with bad weights, and slots that did not run."""
    all_ids, all_weights, whole = part.ids(layer), part.weights(layer), bool(kept.all())
    for start in range(0, len(kept), _CHUNK):
        rows = slice(start, start + _CHUNK)
        ids, weights = all_ids[rows], all_weights[rows]
        if not whole:
            ids, weights = ids[kept[rows]], weights[kept[rows]]
        if not len(ids):
            continue
        if not np.isfinite(weights.sum(dtype=np.float64)):
            counts[3] += int((~np.isfinite(weights)).any(1).sum())
        ran = None if np.count_nonzero(weights) == weights.size else weights != 0
        if ran is not None:
            counts[0] += int((~ran.any(1)).sum())
            counts[4] += int((~ran).sum())
        if int(ids.max()) >= experts:
            counts[1] += int((ids >= experts).any(1).sum())
        counts[2] += int(_repeated(ids, ran).sum())
        columns = np.ascontiguousarray(ids.T)
        for slot, column in enumerate(columns):
            found = np.bincount(column if ran is None else column[ran[:, slot]], minlength=experts)
            bins += found[:experts]


def _repeated(ids: Array, ran: Array | None) -> Array:
    """Return which rows name an expert twice among the slots that ran, (n,)."""
    columns = np.ascontiguousarray(ids.T)  # (k, n): a slot at a time is fastest
    found = np.zeros(len(ids), bool)
    for i in range(len(columns)):
        for j in range(i):
            same = columns[i] == columns[j]
            found |= same if ran is None else same & ran[:, i] & ran[:, j]
    return found


def _counted(trace: Trace, shape: LayerShape, tokens: int, counts: Array, bins: Array) -> list[_Found]:
    empty, unknown, repeated, bad, idle = (int(number) for number in counts)
    due = tokens * shape.top_k - idle
    hashed = shape.contract is not None and shape.contract.hashed
    no_weights = "weights" in trace.header.lacks

    def check(name: str, failed: int, checked: int = tokens, *, invalidates: bool = True) -> _Found:
        return _Found(name, "fail" if failed else "pass", checked, failed, invalidates)

    return [
        _not_told("empty_rows") if no_weights else check("empty_rows", empty, invalidates=shape.contract is not None),
        check("ids_below_E", unknown),
        _not_told("distinct_ids") if hashed else check("distinct_ids", repeated),
        check("counts", abs(due - int(bins.sum())), due),
        _not_told("weights_finite") if no_weights else check("weights_finite", bad),
    ]


def _from_logits(trace: Trace, shape: LayerShape, rows: Array) -> list[_Found]:
    names = ("raw_logits", "weights_follow", "ids_follow")
    if not trace.header.logits:
        return [_not_told(name) for name in names]
    layer, contract = shape.layer, shape.contract
    logits = trace.take(layer, "logits", rows)
    already = int(look_like_probabilities(logits).sum())
    raw = _Found("raw_logits", "fail" if already > _MOST_OF * len(rows) else "pass", len(rows), already, True)
    if raw.result == "pass":
        raw = raw._replace(failed=0)
    ids, weights = trace.take(layer, "ids", rows).astype(np.int64), trace.take(layer, "weights", rows)
    _, scale = trace.header.values_of(layer)
    found = [raw]
    known = contract is not None and (ids < shape.experts).all()
    if contract is None or not known or contract.expert_scale != (scale is not None) or "weights" in trace.header.lacks:
        found.append(_not_told("weights_follow"))
    else:
        due = combine_weights(logits, ids, contract, expert_scale=scale)
        dtype = trace.header.engine.dtype if trace.header.engine else ""
        most = max(_WEIGHTS_DIFFER.get(dtype, 5e-2), 2e-3 if trace.header.weights == "float16" else 0.0)
        largest = np.abs(due).max(1, keepdims=True)
        wrong = ((np.abs(weights - due) > most * largest) & (weights != 0)).any(1)
        found.append(_Found("weights_follow", "fail" if wrong.any() else "pass", len(rows), int(wrong.sum()), False))
    scores = trace.header.selection_scores_of(layer, logits) if known else None
    margins = relative_margins(trace.header, layer, logits) if known else None
    if scores is None or margins is None or contract is None:
        found.append(_not_told("ids_follow"))
    else:
        best = np.sort(select(scores, contract), 1)
        near = margins[1] < near_tie_of(trace)
        wrong = (best != np.sort(ids, 1)).any(1) & ~near & (weights != 0).all(1)
        found.append(_Found("ids_follow", "fail" if wrong.any() else "pass", len(rows), int(wrong.sum()), False))
    return found


def _not_told(name: str) -> _Found:
    return _Found(name, "not told", 0, 0, False)
