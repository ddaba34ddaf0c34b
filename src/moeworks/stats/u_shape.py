"""Whether languages (or any label) part at both ends of a model and meet in the middle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks.errors import BadData
from moeworks.stats.documents import percentiles
from moeworks.stats.layer_divergences import Measure, layer_divergences
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["u_shape"]

Array = NDArray[Any]


def u_shape(
    trace: Trace,
    *,
    label: str = "lang",
    base: str = "en",
    where: Where = Where(),
    measure: Measure = "normalised",
    edge: float = 0.25,
    permutations: int = 1000,
    bootstrap: int = 200,
    seed: int = 0,
) -> pa.Table:
    """Return by how much divergence from the base is larger in the outer layers than in the middle, a row per value.

    The first and the last `edge` of the layers (at least one each) are the ends, the rest the middle. Multilingual
    models are said to route languages apart at both ends and alike in the middle.

    Columns: `value` ("all": the mean over values); `first`, `middle`, `last`, mean divergences; `difference`, the mean
    of both ends less the middle, its 95 % interval `low`, `high` from resampled documents, the same ones in all layers;
    `chance`, 0, and `p`, how often layers in random order give as large a difference; `first_rise` and `last_rise`,
    each end less the middle, with intervals; `u_shape`, whether both of these intervals are above 0 (null: too few
    documents to tell); `documents`, the fewer of the two sides.

    Source: arXiv 2510.04694, whose finding is a U of the normalised divergence; test and interval are ours.

    Args:
        trace: the trace.
        label, base: as in `divergence`.
        where: which tokens and layers count.
        measure: normalised (D_HJS) or raw (Jensen–Shannon / ln 2).
        edge: share of the layers that is an end.
        permutations: of the layers' order.
        bootstrap: resamplings of documents.
        seed: of both.

    Raises:
        BadData: fewer than three layers, or as `divergence`.
    """
    if not 0 < edge < 0.5 or permutations < 1:
        raise BadData(
            f"edge={edge}, permutations={permutations}: an edge is above 0 and below 0.5, permutations at least 1."
        )
    found = layer_divergences(
        trace, label=label, base=base, where=where, measure=measure, bootstrap=bootstrap, seed=seed
    )  # fmt: skip
    count = len(found.layers)
    if count < 3:
        raise BadData(f"{count} layers are selected; a U has two ends and a middle: at least three.")
    values = [*found.values, *(["all"] if len(found.values) > 1 else [])]
    columns = np.concatenate([found.found, found.found.mean(1, keepdims=True)], 1)  # (L, v + 1)
    drawn = np.concatenate([found.drawn, found.drawn.mean(2, keepdims=True)], 2)  # (samples, L, v + 1)
    size = max(1, int(edge * count))
    ends = slice(0, size), slice(size, count - size), slice(count - size, count)
    rng = np.random.default_rng([seed, 34])
    orders = np.stack([rng.permutation(count) for _ in range(permutations)])  # (permutations, L)
    lines: list[dict[str, Any]] = []
    for i, value in enumerate(values):
        first, middle, last = (columns[one, i].mean() for one in ends)
        some, between, others = (drawn[:, one, i].mean(1) for one in ends)
        null = columns[:, i][orders]  # (permutations, L)
        by_chance = (null[:, ends[0]].mean(1) + null[:, ends[2]].mean(1)) / 2 - null[:, ends[1]].mean(1)
        difference = (first + last) / 2 - middle
        units = int(found.documents.min() if value == "all" else found.documents[i])
        line: dict[str, Any] = {"value": value, "first": float(first), "middle": float(middle), "last": float(last)}
        for name, number, samples in (
            ("", difference, (some + others) / 2 - between),
            ("first_rise", first - middle, some - between),
            ("last_rise", last - middle, others - between),
        ):
            low, high = percentiles(samples, units)
            line[name or "difference"] = float(number)
            line[f"{name}_low" if name else "low"] = float(low)
            line[f"{name}_high" if name else "high"] = float(high)
            if not name:
                line["chance"] = 0.0
                line["p"] = float((1 + (by_chance >= difference - 1e-12).sum()) / (1 + permutations))
        known = line["first_rise_low"] == line["first_rise_low"]
        line["u_shape"] = bool(line["first_rise_low"] > 0 and line["last_rise_low"] > 0) if known else None
        lines.append({**line, "documents": units})
    return pa.Table.from_pylist(lines)
