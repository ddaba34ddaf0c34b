"""How sure the routers of each layer are of their choice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks.contract import margins
from moeworks.stats.counts import layers_of
from moeworks.stats.distributions import entropy, weight_shares
from moeworks.stats.documents import SAMPLE, blocks_of_documents, ratio_intervals, selected_documents
from moeworks.stats.near_ties import logit_margins, near_tie_of
from moeworks.stats.router_probabilities import router_probabilities
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.artefact import LayerShape
    from moeworks.trace import Part, Trace, TraceHeader

__all__ = ["confidence"]

Array = NDArray[Any]
_CHUNK = 1 << 14  # rows at a time, so that float64 copies stay small
_COLUMNS = (
    "top_weight", "weight_entropy", "top_probability", "entropy", "margin", "top_k_mass", "near_ties", "z_loss",
)  # fmt: skip


def confidence(
    trace: Trace,
    *,
    where: Where = Where(),
    near_tie: float = 0.0,
    sample: int = SAMPLE,
    bootstrap: int = 200,
    seed: int = 0,
) -> pa.Table:
    """Return means over tokens, a row per layer, with 95 % intervals `…_low`, `…_high` from resampled documents.

    Columns: `layer`, `tokens`; from the combine weights, divided by their sum, `top_weight` (the largest) and
    `weight_entropy` (divided by ln k; NaN for k = 1); from the logits, NaN in a trace without, `top_probability` and
    `entropy` of their softmax (divided by ln E), `top_k_mass`, the probability of the chosen experts together, and
    `z_loss`, the mean of (ln Σ exp z)², which says how large logits have grown; a router with sigmoid scores has these
    divided by their sum in place of a softmax. `margin`, by how much the last chosen expert beats the first that is
    not, in the contract's own selection scores, and `near_ties`, the share of tokens whose margin in logits is below
    `near_tie` times their largest logit: what another batch, engine or quantisation may decide otherwise. A layer
    without a proved contract has no margin, nor one whose selection bias the trace does not hold. `bias_spread`, the
    largest selection bias less the smallest; NaN for routers without. Levels of a router that knows nothing:
    `entropy` 1, `top_probability_chance` 1 / E, `top_k_mass_chance` k / E.

    Source: z-loss as in Megatron-core; the convention for sigmoid routers is ours.

    Args:
        trace: the trace.
        where: which tokens and layers count.
        near_tie: see above; 0 takes the level of the engine's dtype, see `NEAR_TIE`.
        sample: tokens of whole documents drawn at random that are looked at; 0 takes all.
        bootstrap: resamplings of documents (of at most 64 random groups of documents where there are more).
        seed: of the resamplings.

    Raises:
        BadData: no token is selected.
    """
    layers, documents = layers_of(trace, where), selected_documents(trace, where, sample=sample, seed=seed)
    block_of, blocks = blocks_of_documents(np.ones(len(documents), bool), seed=seed)
    sums = {layer: np.zeros((blocks, len(_COLUMNS))) for layer in layers}
    requests, tokens, tie = trace.request_table(), np.zeros(blocks), near_tie or near_tie_of(trace)
    for part in trace.parts:
        rows = part.rows()
        kept = np.flatnonzero(where.mask(rows, requests) & (documents.of_request[rows.request] >= 0))
        block = block_of[documents.of_request[rows.request[kept]]]
        tokens += np.bincount(block, minlength=blocks)
        for layer in layers:
            held = _Held(part, trace.header, layer)
            for start in range(0, len(kept), _CHUNK):
                chunk = slice(start, start + _CHUNK)
                values = _values(held, trace.header, kept[chunk], tie)  # (columns, n)
                for column, found in enumerate(values):
                    if found is None:
                        sums[layer][:, column] = np.nan
                    else:
                        sums[layer][:, column] += np.bincount(block[chunk], found, minlength=blocks)
    lines: list[dict[str, Any]] = []
    for layer, experts in layers.items():
        means = sums[layer].sum(0) / tokens.sum()
        low, high = ratio_intervals(sums[layer], tokens, samples=bootstrap, seed=seed)
        line: dict[str, Any] = {"layer": layer, "tokens": int(tokens.sum())}
        for i, name in enumerate(_COLUMNS):
            line |= {name: float(means[i]), f"{name}_low": float(low[i]), f"{name}_high": float(high[i])}
        bias, _ = trace.header.values_of(layer)
        line |= {
            "bias_spread": float(np.ptp(bias)) if bias is not None else np.nan,
            "top_probability_chance": 1 / experts,
            "top_k_mass_chance": trace.header.shape_of(layer).top_k / experts,
            "near_tie": tie,
        }
        lines.append(line)
    return pa.Table.from_pylist(lines)


class _Held:
    """The columns of one layer of a part, opened once."""

    def __init__(self, part: Part, header: TraceHeader, layer: int) -> None:
        self.shape: LayerShape = header.shape_of(layer)
        self.weights = part.weights(layer)
        self.ids = part.ids(layer) if header.logits else None
        self.logits = part.logits(layer) if header.logits else None


def _values(held: _Held, header: TraceHeader, rows: Array, tie: float) -> list[Array | None]:
    """Return the numbers of some rows, a column (n,) each; None where the trace does not tell."""
    found: list[Array | None] = [None] * len(_COLUMNS)
    shape = held.shape
    weights = held.weights[rows]
    share = weight_shares(weights)  # (n, k)
    found[0] = share.max(-1)
    if shape.top_k > 1:
        found[1] = entropy(share) / np.log(shape.top_k)
    if held.logits is None or held.ids is None:
        return found
    logits = held.logits[rows]  # (n, E)
    p = router_probabilities(logits, shape.contract)
    found[2] = p.max(-1)
    found[3] = entropy(p) / np.log(shape.experts) if shape.experts > 1 else None
    ran = weights != 0
    found[5] = np.where(ran, np.take_along_axis(p, held.ids[rows].astype(np.int64), 1), 0).sum(1)
    largest = logits.max(-1).astype(np.float64)
    found[7] = (largest + np.log(np.exp(logits - largest[:, None]).sum(-1))) ** 2
    scores, contract = header.selection_scores_of(shape.layer, logits), shape.contract
    if scores is not None and contract is not None:
        found[4] = margins(scores, contract)
        bias, _ = header.values_of(shape.layer)
        found[6] = logit_margins(logits, contract, bias, scores) < tie * np.abs(logits).max(-1)
    return found
