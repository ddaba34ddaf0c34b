"""HC-SMoE: experts that give out alike on the same tokens, by hierarchical clustering of their mean outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from moeworks.edit.algebra.clustering import Linkage, agglomerate
from moeworks.edit.merge.grouping import GROUPINGS, Grouping, centre_of, grouped, merged_by
from moeworks.edit.merge.m_smoe import usage
from moeworks.edit.statistics import LayerStatistics
from moeworks.errors import BadData

if TYPE_CHECKING:
    from moeworks.edit.layer import LayerWeights

__all__ = ["hc_smoe"]


@GROUPINGS.register("hc_smoe")
@merged_by("mean", collect=("cheap", "everywhere"))
def hc_smoe(
    statistics: LayerStatistics,
    kept: int,
    *,
    weights: LayerWeights | None = None,
    seed: int = 0,
    linkage: Linkage = "average",
    centre: Literal["frequent", "nearest"] = "frequent",
) -> Grouping:
    """Group experts by agglomerative clustering of mean outputs over all tokens, routed to them or not.

    Args:
        statistics: of the layer: `count`, `all_output_sum`.
        kept: number of groups.
        weights, seed: not used.
        linkage: `average`, `complete`, `single` or `ward`, Euclidean distance.
        centre: whose router row stays: the most `frequent` member's, or the one `nearest` to the group's mean output
            (the paper's dominant, into which members are merged by the transform `fix_dom`).

    Source: HC-SMoE (arXiv 2410.08589), released code: average linkage, merged by frequency; its count of usage
    has k = 2, here the router's own. It keeps all router rows, see `as_copies`.
    """
    if linkage not in ("average", "complete", "single", "ward"):
        raise BadData(f"linkage is 'average', 'complete', 'single' or 'ward', not '{linkage}'.")
    if centre not in ("frequent", "nearest"):
        raise BadData(f"the centre of a group is its most 'frequent' member or the 'nearest', not '{centre}'.")
    share = usage(statistics)
    vectors = statistics.get("all_output_sum").astype(np.float64) / max(int(statistics.tokens.sum()), 1)  # (E, H)
    labels = agglomerate(vectors, kept, method=linkage)
    members: dict[int, list[int]] = {}
    for label in range(kept):
        inside = np.flatnonzero(labels == label).tolist()
        distance = np.linalg.norm(vectors[inside] - vectors[inside].mean(0), axis=1)
        middle = inside[int(distance.argmin())] if centre == "nearest" else centre_of(inside, share)
        members[middle] = [middle, *(expert for expert in inside if expert != middle)]
    return grouped(members, share)
