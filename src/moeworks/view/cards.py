"""An expert's card: what it fires on, for which labels, with whom, what it points to, and what scores say of it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks.address import Address, parse_address
from moeworks.errors import BadData, MoeworksError
from moeworks.stats.coactivation import coactivation
from moeworks.stats.counts import add_runs
from moeworks.stats.documents import ratio_intervals
from moeworks.stats.label_blocks import LabelBlocks, label_blocks
from moeworks.view.contexts import expert_contexts
from moeworks.view.decoding import Decoder, decoder_for
from moeworks.view.expert_map import expert_map, protected_experts
from moeworks.view.kept import KEPT, trace_hash
from moeworks.view.plain import plain
from moeworks.view.refusals import NotThere
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.engines.base import Engine
    from moeworks.engines.transformers.unembedding import Unembedding
    from moeworks.find import Scores
    from moeworks.trace import Trace

__all__ = ["check_expert", "expert_card"]

Array = NDArray[Any]
_VALUES = 60  # a label with more values tells texts apart, and is no property that experts have rates for
_PARTNERS = 8
_NEURONS = 2048  # neurons of an expert above which only the router's row is decoded
_TOKENS = 8
_STABLE = 0.9  # share of resamplings in which a label that replicates is among the top


def expert_card(
    trace: Trace,
    address: Address | str,
    *,
    decoder: Decoder | None = None,
    engine: Engine | None = None,
    unembedding: Unembedding | MoeworksError | None = None,
    scores: Mapping[str, Scores] | None = None,
    contexts: int = 10,
    seed: int = 0,
) -> dict[str, Any]:
    """Return what a trace, scores and a model tell of one expert, as plain data.

    Keys: `address`, `layer`, `expert`; `load`, the share of tokens for which it ran, with `low`, `high` and `chance`,
    k / E; `contexts`, see `expert_contexts`, and `no_text`, why they have no text (else empty); `labels`, name → values
    with `rate` (the share of the value's tokens for which it ran), its interval and `chance`, its rate on all texts
    that have the label: what the rate would be if the label did not matter; `labels_left_out`, those of one value or of
    so many that they tell texts apart (more than 60, or than half the texts); `partners`, the experts of the layer that
    run beside it most for their loads, with `lift`, its interval and `chance`, see `coactivation`; `decoded`, the
    tokens that its router row and its most telling neurons point to (None without the model, and `decoded_reason` says
    why); `scores`, name → its row; `replicated`, None where no scores claim anything, else the most stable claim: what
    was contrasted, `passing` of `of` score files of that contrast, the smallest `stability`, and `survives`, true if it
    passes in all of them and is among the top in nine of ten resamplings; `protected`; `command`. All intervals are of
    95 % from resampled documents, None with fewer than five.

    Args:
        trace: the trace.
        address: the expert, as in L3.E5.
        decoder: of the trace's tokens; by default it is looked for.
        engine: of the very model, to decode what it points to.
        unembedding: of that engine, as `moeworks.find.inside.observe.reading` gives it, or why it cannot;
            then the model is not run, and cards can be made side by side.
        scores: name → scores of this model.
        contexts: how many.
        seed: of everything drawn.

    Raises:
        NotThere: the trace has no such expert.
    """
    at = check_expert(trace, address)
    shape = trace.header.shape_of(at.layer)
    load = expert_map(trace, where=Where(layer=(at.layer,)), seed=seed).slice(at.expert, 1).to_pylist()[0]
    decoder = decoder or decoder_for(trace.header.model)
    decoded, reason = _decoded(engine, at, unembedding)
    labels, left_out = _labels(trace, at, seed)
    rows = {name: row for name, one in (scores or {}).items() if (row := _score(one, at)) is not None}
    return {
        "address": str(at),
        "layer": at.layer,
        "expert": at.expert,
        "load": load["value"],
        "low": load["low"],
        "high": load["high"],
        "chance": shape.top_k / shape.experts,
        "contexts": expert_contexts(trace, at, decoder=decoder, most=contexts),
        "no_text": decoder.reason,
        "labels": labels,
        "labels_left_out": left_out,
        "partners": _partners(trace, at, seed),
        "decoded": decoded,
        "decoded_reason": reason,
        "replicated": _replicated(rows),
        "protected": at in protected_experts(trace),
        "scores": rows,
        "command": shlex.join(["moeworks", "inspect", str(trace.path), "--expert", str(at)]),
    }


def check_expert(trace: Trace, address: Address | str) -> Address:
    """Return the address of an expert that the trace has.

    Raises:
        NotThere: it has none of that address.
    """
    at = parse_address(address) if isinstance(address, str) else address
    if at.layer not in trace.layers:
        raise NotThere(f"the trace has no layer {at.layer}; layers recorded: {', '.join(map(str, trace.layers))}.")
    experts = trace.header.shape_of(at.layer).experts
    if at.expert >= experts:
        raise NotThere(f"{at} is not there: layer {at.layer} has experts 0 to {experts - 1}.")
    return at


def _labels(trace: Trace, at: Address, seed: int) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    labels: dict[str, list[dict[str, Any]]] = {}
    left_out: list[str] = []
    columns = trace.request_table().labels
    for name in sorted(set(columns) - {"document"}):
        values = columns[name].tolist()
        if not 2 <= len(set(values) - {""}) <= min(_VALUES, len(values) / 2):
            left_out.append(name)
            continue
        try:
            blocks, runs = _counts(trace, at.layer, name, seed)
        except BadData:  # one value has no rows
            left_out.append(name)
            continue
        labels[name] = _rates(blocks, runs[..., at.expert], seed)
    return labels, left_out


def _counts(trace: Trace, layer: int, label: str, seed: int) -> tuple[LabelBlocks, Array]:
    """Return the texts by value, and how often each expert of a layer ran in them, (v, b, E)."""
    key = (trace_hash(trace), "label blocks", label, seed)
    blocks = KEPT.get(key, lambda: label_blocks(trace, Where(), label, sample=0, seed=seed))
    experts = trace.header.shape_of(layer).experts
    runs = KEPT.get((*key, layer), lambda: blocks.add(trace, Where(), {layer: experts}, add_runs)[layer])
    return blocks, runs


def _rates(blocks: LabelBlocks, runs: Array, seed: int) -> list[dict[str, Any]]:
    """Return a value's rates from the runs of one expert by value and block, (v, b)."""
    chance = float(runs.sum() / blocks.tokens.sum())
    found = []
    for place, value in enumerate(blocks.values):
        there = blocks.tokens[place] > 0
        over, under = runs[place][there], blocks.tokens[place][there]
        low, high = ratio_intervals(over[:, None], under, samples=200, seed=seed)
        found.append(
            {
                "value": value,
                "rate": float(over.sum() / under.sum()),
                "chance": chance,
                "low": plain(float(low[0])),
                "high": plain(float(high[0])),
                "tokens": int(under.sum()),
                "documents": int(blocks.documents[place]),
            }
        )
    return sorted(found, key=lambda row: (-row["rate"], row["value"]))


def _partners(trace: Trace, at: Address, seed: int) -> list[dict[str, Any]]:
    if trace.header.shape_of(at.layer).top_k == 1:
        return []

    def pairs() -> pa.Table:
        return coactivation(trace, where=Where(layer=(at.layer,)), top=0, seed=seed)

    table = KEPT.get((trace_hash(trace), "pairs", at.layer, seed), pairs)
    if not table.num_rows:  # no pair is expected often enough
        return []
    first, second = (table[name].to_numpy() for name in ("first", "second"))
    mine = np.flatnonzero((first == at.expert) | (second == at.expert))[:_PARTNERS]  # the table is ranked
    return [
        {
            "address": str(Address(at.layer, row["second"] if row["first"] == at.expert else row["first"])),
            "lift": row["lift"],
            "chance": row["chance"],
            "low": plain(row["low"]),
            "high": plain(row["high"]),
            "together": row["together"],
        }
        for row in table.take(mine).to_pylist()
    ]


def _decoded(
    engine: Engine | None, at: Address, unembedding: Unembedding | MoeworksError | None = None
) -> tuple[list[dict[str, Any]] | None, str]:
    """Return the tokens that the router's row and the neurons that point most clearly at tokens stand for."""
    if engine is None:
        return None, "the model is not loaded"
    if isinstance(unembedding, MoeworksError):
        return None, str(unembedding)
    from moeworks.find.inside.decode import Vector, decode

    small = (engine.identity.layer(at.layer).neurons or _NEURONS + 1) <= _NEURONS
    found: list[dict[str, Any]] = []
    reason = "" if small else f"experts have more than {_NEURONS} neurons; decode them with: moeworks decode"
    vectors: tuple[Vector, ...] = ("router", "down") if small else ("router",)
    for vector in vectors:
        try:
            table = decode(engine, [at], vectors=[vector], top=_TOKENS, unembedding=unembedding)
        except (MoeworksError, AttributeError) as error:  # AttributeError: an engine that has no weights to read
            reason = str(error) if isinstance(error, MoeworksError) else "this engine shows no weights"
            continue
        found += _vectors(table.to_pylist(), vector)
    return found or None, reason


def _vectors(rows: list[dict[str, Any]], vector: str) -> list[dict[str, Any]]:
    by_neuron: dict[int | None, list[dict[str, Any]]] = {}
    for row in rows:
        by_neuron.setdefault(row["neuron"], []).append(row)
    ranked = sorted(by_neuron.items(), key=lambda item: -item[1][0]["score"])[:_TOKENS]
    return [
        {
            "vector": vector if neuron is None else f"N{neuron} {vector}",
            "tokens": [row["text"] for row in tokens],
            "scores": [row["score"] for row in tokens],
        }
        for neuron, tokens in ranked
    ]


def _score(scores: Scores, at: Address) -> dict[str, Any] | None:
    """Return an expert's row of scores in plain data; None where they are of neurons or do not hold it."""
    if scores.unit == "neuron":
        return None
    mine = np.flatnonzero((scores.column("layer") == at.layer) & (scores.column("expert") == at.expert))
    if not len(mine):
        return None
    (row,) = scores.table.take(mine[:1]).to_pylist()
    header = scores.header
    contrast = header.contrast or (f"{header.label}={header.target}" if header.target else header.label or "")
    numbers = {name: plain(row[name]) for name in ("score", "low", "high", "p", "q", "stability")}
    passes = bool(row["passes"]) if header.null != "none" else None
    return {"method": header.method, "contrast": contrast, "against": header.against, **numbers, "passes": passes}


def _replicated(rows: Mapping[str, dict[str, Any]]) -> dict[str, Any] | None:
    """Return what tested scores claim of an expert most strongly, and whether the claim holds in all of them."""
    tested = {name: row for name, row in rows.items() if row["passes"] is not None}
    claims = [row for row in tested.values() if row["passes"]]
    if not claims:
        return None
    # Stability first: with few permutations many claims share the smallest q, and a rare label scores high by chance.
    best = max(
        claims, key=lambda row: (row["stability"] or 0, -(1.0 if row["q"] is None else row["q"]), abs(row["score"]))
    )
    same = {
        name: row
        for name, row in tested.items()
        if (row["contrast"], row["against"]) == (best["contrast"], best["against"])
    }
    agree = [name for name, row in same.items() if row["passes"] and (row["score"] or 0) * (best["score"] or 0) > 0]
    known = [row["stability"] for row in same.values() if row["stability"] is not None]
    stability = min(known, default=None)
    return {
        "contrast": best["contrast"],
        "against": best["against"],
        "direction": "more" if (best["score"] or 0) > 0 else "less",
        "passing": agree,
        "of": len(same),
        "stability": stability,
        "survives": len(agree) == len(same) and stability is not None and stability >= _STABLE,
    }
