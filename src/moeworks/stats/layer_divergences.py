"""Divergences by layer and value of a label, resampled together: for what compares layers with each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import BadData
from moeworks.stats.counts import layer_batches, layers_of
from moeworks.stats.distributions import jensen_shannon, normalised_divergence
from moeworks.stats.divergence import group_sums, label_groups, resampled_means, sides_of
from moeworks.stats.documents import draw_documents
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["LayerDivergences", "Measure", "layer_divergences"]

Array = NDArray[Any]
Measure = Literal["normalised", "raw"]


@dataclass(frozen=True)
class LayerDivergences:
    """Divergence of v values from the base in L layers, and the same of resampled documents."""

    layers: tuple[int, ...]
    values: tuple[str, ...]
    found: Array  # (L, v)
    drawn: Array  # (samples, L, v)
    documents: Array  # (v,) the fewer of the two sides


def layer_divergences(
    trace: Trace,
    *,
    label: str,
    base: str,
    where: Where,
    measure: Measure,
    bootstrap: int,
    seed: int,
    budget_bytes: int = 256 << 20,
) -> LayerDivergences:
    """Return the numbers of `divergence` with resampled ones; a sample draws the same documents in all layers.

    Where documents are pooled, each sample is moved by their mean's distance from the number itself, as in
    `divergence`.

    Raises:
        BadData: as `divergence`.
    """
    if measure not in ("normalised", "raw"):
        raise BadData(f"measure={measure}: divergences are normalised or raw.")
    read: Literal["logits", "weights"] = "logits" if trace.header.logits else "weights"
    layers, groups = layers_of(trace, where), label_groups(trace, label, base, where, seed=seed)
    values = [v for v in range(len(groups.values)) if v != groups.base and (groups.value == v).any()]
    between = jensen_shannon if measure == "raw" else normalised_divergence
    unit = np.log(2) if measure == "raw" else 1.0
    found = np.full((len(layers), len(values)), np.nan)
    drawn = np.full((bootstrap, len(layers), len(values)), np.nan)
    documents = np.zeros(len(values), np.int64)
    place = 0
    for batch in layer_batches(layers, len(groups.value), budget_bytes=budget_bytes):
        for sums in group_sums(trace, where, groups, batch, read).values():
            for i, value in enumerate(values):
                sides = sides_of(sums, groups, value)
                documents[i] = min(len(sides.ours), len(sides.theirs))
                each = between(*sides.means()) / unit  # (documents,), one where pooled
                each = each[np.isfinite(each)]
                if not len(each):
                    continue
                found[place, i] = each.mean()
                if sides.paired:
                    weights = np.concatenate(list(draw_documents(len(each), samples=bootstrap, seed=seed)))
                    drawn[:, place, i] = weights @ each / weights.sum(1)
                else:
                    sampled = [resampled_means(side, bootstrap, seed + n) for n, side in enumerate(sides[:2])]
                    resampled = between(*sampled) / unit
                    drawn[:, place, i] = resampled - np.nanmean(resampled) + found[place, i]
            place += 1
    return LayerDivergences(tuple(layers), tuple(str(groups.values[v]) for v in values), found, drawn, documents)
