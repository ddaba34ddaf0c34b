"""Which experts a domain (or any label) uses more than others do, and how far its use of experts is its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks.errors import BadData
from moeworks.stats.counts import add_runs, layer_batches, layers_of
from moeworks.stats.documents import SAMPLE, draw_documents, percentiles
from moeworks.stats.label_blocks import LabelBlocks, label_blocks
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["domain_rates", "log_ratios", "specialisation", "total_variation"]

Array = NDArray[Any]


def specialisation(
    trace: Trace,
    *,
    label: str = "domain",
    where: Where = Where(),
    top: int = 1,
    fewest: int = 100,
    permutations: int = 200,
    sample: int = SAMPLE,
    bootstrap: int = 200,
    seed: int = 0,
    budget_bytes: int = 256 << 20,
) -> pa.Table:
    """Return the experts that each value of a label uses most beyond their general use: a row per layer, value, rank.

    rate = N(e, D) / N(D), the share of the domain's tokens for which e runs; its level under even use is k / E.
    log_ratio = ln f(e | D) / f(e), f(e | D) the expert's share of the domain's runs, f(e) that of all runs: 0 where
    the domain uses it as everything does.

    Columns: `layer`, `value`, `rank`, `expert`; `rate` and `uniform`; `log_ratio`, its 95 % interval `low`, `high` from
    resampled documents, `chance`, the mean of the largest log ratio of a value with the documents' values exchanged,
    and `p`, how often that is as large: the largest of many is above 0 by noise, and by documents that are alike;
    `distance`, half the sum of |f(e | D) - f(e)|, the share of the domain's runs that go elsewhere than in general,
    `distance_low`, `distance_high` (moved so that their mean is the number itself), `distance_chance` and `distance_p`;
    `tokens` and `documents` of the value. Only experts with at least `fewest` runs can be named.

    Source: domain specialisation of OLMoE (arXiv 2409.02060, section 5): rate against k / E; the ratio against the
    expert's own share and its null are ours.

    Args:
        trace: the trace.
        label: the label; texts without it are left out.
        where: which tokens and layers count.
        top: experts of each value and layer.
        fewest: see above.
        permutations: of the documents' values.
        sample: tokens of whole documents drawn at random that are looked at; 0 takes all.
        bootstrap: resamplings of documents (of at most 128 random groups of a value's documents).
        seed: of all of it.
        budget_bytes: memory for counts; layers that do not fit take further passes.

    Raises:
        BadData: the label is unknown or has one value only.
    """
    if top < 1 or permutations < 1:
        raise BadData(f"top={top}, permutations={permutations}: both are at least 1.")
    layers, blocks = layers_of(trace, where), label_blocks(trace, where, label, sample=sample, seed=seed)
    lines: list[dict[str, Any]] = []
    for batch in layer_batches(layers, blocks.tokens.size, budget_bytes=budget_bytes):
        for layer, runs in blocks.add(trace, where, batch, add_runs).items():
            uniform = trace.header.shape_of(layer).top_k / layers[layer]
            found = _describe(runs, blocks, top, fewest, permutations, bootstrap, seed)
            lines += [{"layer": layer, "uniform": uniform, **line} for line in found]
    order = ("layer", "value", "rank", "expert", "rate", "uniform")
    return pa.Table.from_pylist([{**{name: line[name] for name in order}, **line} for line in lines])


def domain_rates(trace: Trace, layer: int, *, label: str = "domain", where: Where = Where()) -> tuple[list[str], Array]:
    """Return the label's values and N(e, D) / N(D) of all experts of a layer, (values, E)."""
    blocks = label_blocks(trace, where, label, sample=0, seed=0)
    layers = layers_of(trace, where.model_copy(update={"layer": (layer,)}))
    runs = blocks.add(trace, where, layers, add_runs)[layer].sum(1)
    return list(blocks.values), runs / blocks.tokens.sum(1)[:, None]


def log_ratios(runs: Array, *, fewest: int = 0) -> Array:
    """Return ln f(e | D) / f(e) of runs by value, (v, E); -inf where e does not run in D or seldom at all."""
    total = runs.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.log((runs / runs.sum(1, keepdims=True)) / (total / total.sum()))
    return np.asarray(np.where((runs > 0) & (total >= fewest), found, -np.inf))


def total_variation(runs: Array) -> Array:
    """Return half the sum of |f(e | D) - f(e)| of runs by value, (…, v, E) → (…, v)."""
    general = runs.sum(-2, keepdims=True)
    own = runs / np.maximum(runs.sum(-1, keepdims=True), 1)
    return np.asarray(np.abs(own - general / np.maximum(general.sum(-1, keepdims=True), 1)).sum(-1) / 2)


def _describe(
    runs: Array, blocks: LabelBlocks, top: int, fewest: int, permutations: int, bootstrap: int, seed: int
) -> list[dict[str, Any]]:
    """Return rows from runs by value and block, (v, b, E)."""
    by_value = runs.sum(1)  # (v, E)
    ratio, distance = log_ratios(by_value, fewest=fewest), total_variation(by_value)
    null = [
        (log_ratios(one, fewest=fewest).max(1), total_variation(one))
        for one in blocks.exchanged(runs, permutations, seed=seed)
    ]
    null_ratio, null_distance = (np.stack(column) for column in zip(*null, strict=True))  # (permutations, v) each
    drawn = np.concatenate(
        [
            np.einsum("sb,vbe->sve", weights, runs)
            for weights in draw_documents(runs.shape[1], samples=bootstrap, seed=seed)
        ]
    )  # (samples, v, E)
    share = drawn / np.maximum(drawn.sum(-1, keepdims=True), 1)
    general = drawn.sum(1, keepdims=True)
    general = general / general.sum(-1, keepdims=True)
    lines = []
    for v, value in enumerate(blocks.values):
        units = min(int(blocks.documents[v]), runs.shape[1])
        ends = percentiles(total_variation(drawn)[:, v], units, centre=float(distance[v]))
        order = [e for e in np.argsort(-ratio[v], kind="stable")[:top] if np.isfinite(ratio[v, e])]
        for rank, e in enumerate(order):
            with np.errstate(divide="ignore", invalid="ignore"):
                low, high = percentiles(np.log(share[:, v, e] / general[:, 0, e]), units)
            lines.append(
                {
                    "value": value,
                    "rank": rank + 1,
                    "expert": int(e),
                    "rate": float(by_value[v, e] / blocks.tokens[v].sum()),
                    "log_ratio": float(ratio[v, e]),
                    "low": float(low),
                    "high": float(high),
                    "chance": float(null_ratio[:, v].mean()),
                    "p": _p(null_ratio[:, v], ratio[v, e]),
                    "distance": float(distance[v]),
                    "distance_low": max(float(ends[0]), 0.0),
                    "distance_high": float(ends[1]),
                    "distance_chance": float(null_distance[:, v].mean()),
                    "distance_p": _p(null_distance[:, v], distance[v]),
                    "tokens": int(blocks.tokens[v].sum()),
                    "documents": int(blocks.documents[v]),
                }
            )
    return lines


def _p(null: Array, value: float) -> float:
    return float((1 + (null >= value - 1e-12).sum()) / (1 + len(null)))
