"""How sure the routers of each layer are of their choice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks.errors import BadData
from moeworks.stats.counts import layers_of
from moeworks.stats.distributions import entropy, softmax, weight_shares
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.artefact import LayerShape
    from moeworks.trace import Part, Trace, TraceHeader

__all__ = ["confidence"]

Array = NDArray[Any]
_CHUNK = 1 << 14  # rows at a time, so that float64 copies stay small
_COLUMNS = ("top_weight", "weight_entropy", "top_probability", "entropy", "margin")


def confidence(trace: Trace, *, where: Where = Where()) -> pa.Table:
    """Return means over tokens, a row per layer.

    Columns: `layer`, `tokens`; from the combine weights, divided by their sum, `top_weight` (the largest) and
    `weight_entropy` (divided by ln k; NaN for k = 1); from the logits, NaN in a trace without, `top_probability` and
    `entropy` of their softmax (divided by ln E) and `margin`, by how much the last chosen expert beats the first that
    is not, in the contract's own selection scores. A layer without a proved contract has no margin, nor one whose
    selection bias the trace does not hold.

    Raises:
        BadData: no token is selected.
    """
    layers = layers_of(trace, where)
    sums = {layer: np.zeros(len(_COLUMNS)) for layer in layers}
    requests, tokens = trace.request_table(), 0
    for part in trace.parts:
        kept = np.flatnonzero(where.mask(part.rows(), requests))
        tokens += len(kept)
        for layer in layers:
            shape = trace.header.shape_of(layer)
            for start in range(0, len(kept), _CHUNK):
                sums[layer] += _sums(part, trace.header, shape, kept[start : start + _CHUNK])
    if not tokens:
        raise BadData(f"no token matches the clause '{where}'.")
    means = np.stack(list(sums.values())) / tokens  # (layers, columns)
    columns = {name: means[:, i] for i, name in enumerate(_COLUMNS)}
    return pa.table({"layer": np.array(list(layers), np.int32), "tokens": np.full(len(layers), tokens), **columns})


def _sums(part: Part, header: TraceHeader, shape: LayerShape, rows: Array) -> Array:
    """Return the sums over some rows, in the order of the columns."""
    share = weight_shares(part.weights(shape.layer)[rows])  # (n, k)
    spread = entropy(share).sum() / np.log(shape.top_k) if shape.top_k > 1 else np.nan
    if not header.logits:
        return np.array([share.max(-1).sum(), spread, np.nan, np.nan, np.nan])
    logits = part.logits(shape.layer)[rows]  # (n, E)
    p = softmax(logits)
    found = header.margins_of(shape.layer, logits)
    margin = np.nan if found is None else float(found.sum())
    log_experts = np.log(shape.experts) if shape.experts > 1 else np.nan
    return np.array([share.max(-1).sum(), spread, p.max(-1).sum(), entropy(p).sum() / log_experts, margin])
