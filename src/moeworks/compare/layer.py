"""One layer of two traces on the rows they share: overlap, flips, margins, weight errors and their probable cause."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from moeworks.compare.causes import Cause, cause_of_flips, cause_of_weights
from moeworks.stats.near_ties import relative_margins
from moeworks.stats.sets import check_ids, chosen, overlap

if TYPE_CHECKING:
    from moeworks.compare.rows import Matched
    from moeworks.trace import Trace

__all__ = ["EXAMINED", "LayerPair"]

Array = NDArray[Any]
EXAMINED = 20_000  # rows a layer that margins and causes are sought on
WEIGHTS_DIFFER = 1e-2  # of a token's total: above what rounding does
_CHUNK = 1 << 16


class LayerPair:
    """One layer of both traces on the n matched rows; k slots in each, E experts."""

    def __init__(
        self, first: Trace, second: Trace, matched: Matched, *, layer: int, experts: int, with_weights: bool
    ) -> None:
        self.first, self.second, self.matched, self.layer, self.experts = first, second, matched, layer, experts
        self.shape = first.header.shape_of(layer)
        self.top_k = self.shape.top_k
        self.with_weights = with_weights
        count = len(matched)
        self.shared = np.zeros(count, np.uint8)  # (n,) experts that both ran
        self.flipped = np.zeros(count, bool)
        self.reordered = np.zeros(count, bool)
        self.error = np.full(count, np.nan)  # (n,) largest weight error, relative to the token's total
        for start in range(0, count, _CHUNK):
            self._fill(slice(start, start + _CHUNK))

    def _fill(self, part: slice) -> None:
        ids = self._both("ids", part)  # (m, k) each
        weights = [array.astype(np.float64) for array in self._both("weights", part)]
        for one in ids:
            check_ids(one, self.experts)
        ran = [chosen(i, w, empty=-1 - n) for n, (i, w) in enumerate(zip(ids, weights, strict=True))]
        shared = overlap(*ran)
        self.shared[part] = shared
        sizes = [(w != 0).sum(-1) for w in weights]
        flipped = (shared != sizes[0]) | (shared != sizes[1])
        self.flipped[part] = flipped
        if ids[0].shape == ids[1].shape:
            self.reordered[part] = ~flipped & (ids[0] != ids[1]).any(-1)
        if self.with_weights:
            same = ran[0][:, :, None] == ran[1][:, None, :]  # (m, k, k)
            other = (same * weights[1][:, None, :]).sum(-1)  # (m, k) the second's weight of the first's expert
            apart = np.where(same.any(-1), np.abs(weights[0] - other), 0).max(-1)
            total = np.abs(weights[0]).sum(-1)
            self.error[part] = np.divide(apart, total, out=np.zeros_like(apart), where=total > 0)

    def line(self, undiverged: Array, sample: Array, tie: float) -> dict[str, Any]:
        """Return this layer's row of the table.

        Args:
            undiverged: (n,) rows that had the same experts in every layer before.
            sample: rows that margins and weights are looked at on.
            tie: relative margins below this are near-ties.
        """
        first_flips = undiverged & self.flipped
        margin = self._margins(sample)
        flips = np.flatnonzero(first_flips)[:EXAMINED]
        at_flips = self._margins(flips)
        near = float((at_flips[1] < tie).mean()) if at_flips is not None and len(flips) else float("nan")
        cause = self._cause(undiverged, near) if len(flips) else None
        weights = self._weight_cause(sample) if self.with_weights else None
        return {
            "rows": len(self.shared),
            "overlap": float(self.shared.mean() / self.top_k),
            "chance": self.top_k / self.experts,
            "flips": float(self.flipped.mean()),
            "first_flips": float(first_flips.mean()),
            "near_ties": near,
            "near_ties_of_all": float((margin[1] < tie).mean()) if margin is not None else float("nan"),
            "flip_margin": float(np.median(at_flips[0])) if at_flips is not None and len(flips) else float("nan"),
            "margin": float(np.median(margin[0])) if margin is not None else float("nan"),
            "reordered": float(self.reordered.mean()),
            "weight_error": float(self.error.mean()),
            "largest_weight_error": float(self.error.max()),
            "cause": "" if cause is None else cause.what,
            "cause_share": float("nan") if cause is None else cause.share,
            "weight_cause": "" if weights is None else weights.what,
        }

    def by_value(self, values: dict[str, Array]) -> list[dict[str, Any]]:
        """Return tokens, overlap and flips of each value, value → (n,) rows."""
        return [
            {
                "value": value,
                "rows": int(rows.sum()),
                "overlap": float(self.shared[rows].mean() / self.top_k),
                "flips": float(self.flipped[rows].mean()),
            }
            for value, rows in values.items()
        ]

    def _logits(self, rows: Array) -> Array | None:
        """Return the first trace's logits, (m, E), if it has any."""
        return self.first.take(self.layer, "logits", self.matched.first[rows]) if self.first.header.logits else None

    def _margins(self, rows: Array) -> tuple[Array, Array] | None:
        """Return margins in logits and as a share of the token's largest one, (m,) each."""
        logits = self._logits(rows)
        if logits is None or not len(rows):
            return None
        return relative_margins(self.first.header, self.layer, logits)

    def _cause(self, undiverged: Array, near: float) -> Cause:
        rows = np.flatnonzero(undiverged)[:EXAMINED]
        logits, contract = self._logits(rows), self.shape.contract
        if logits is None:
            return Cause("unknown: the first trace has no logits", float("nan"))
        if contract is None or contract.hashed:
            return Cause("unknown: the layer has no proved rule over logits", float("nan"))
        own, seen = self._both("ids", rows)
        bias, _ = self.first.header.values_of(self.layer)
        if own.shape != seen.shape:
            return Cause("another number of experts a token", 1.0)
        return cause_of_flips(logits.astype(np.float64), contract, bias, own, seen, near)

    def _weight_cause(self, sample: Array) -> Cause | None:
        """Return why the weights differ on rows whose sets agree; None where they do not differ, or nobody knows."""
        rows = sample[~self.flipped[sample]]
        rows = rows[self.error[rows] > WEIGHTS_DIFFER]
        logits, contract = self._logits(rows), self.shape.contract
        if not len(rows) or logits is None or contract is None:
            return None
        _, scale = self.first.header.values_of(self.layer)
        ids, weights = self._both("ids", rows)[1], self._both("weights", rows)[1].astype(np.float64)
        return cause_of_weights(logits.astype(np.float64), contract, scale, ids, weights)

    def _both(self, kind: Literal["ids", "weights"], rows: Array | slice) -> tuple[Array, Array]:
        """Return a column of both traces at some of the matched rows."""
        first = self.first.take(self.layer, kind, self.matched.first[rows])
        return first, self.second.take(self.layer, kind, self.matched.second[rows])
