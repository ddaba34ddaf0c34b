"""MC: the merged expert as low rank plus a few rows, as an analysis and as weights multiplied out again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from moeworks.edit.algebra import Expert, expert_of, low_rank_and_sparse, rank_of_share, with_experts
from moeworks.edit.merge.grouping import GROUPINGS, Grouping, merged_by
from moeworks.edit.merge.m_smoe import Likeness, adaptive_counts, m_smoe
from moeworks.edit.merge.mean import aligned_mean
from moeworks.edit.merge.merged import RouterRows
from moeworks.edit.plan import LayerCut
from moeworks.edit.statistics import LayerStatistics
from moeworks.edit.transforms import TRANSFORMS

if TYPE_CHECKING:
    from moeworks.edit.layer import LayerWeights

__all__ = ["Factored", "mc", "mc_analysis", "mc_smoe"]


class Factored(NamedTuple):
    """How one matrix of one expert looks as low rank plus rows."""

    layer: int
    expert: int  # number in the layer that is analysed
    matrix: str  # gate, up or down
    rank: int
    rows: int  # rows of the residual that stay
    error: float  # relative, Frobenius
    numbers: int  # that have to be stored
    of: int  # numbers of the matrix


def mc_analysis(
    weights: LayerWeights, *, experts: Sequence[int] | None = None, rank: float = 0.5, rows: float = 0.1
) -> list[Factored]:
    """Return for each matrix of each expert how well low rank plus a few rows gives it back.

    Args:
        weights: a layer, merged or not.
        experts: which; None for all.
        rank: share of a matrix's numbers that the two factors hold.
        rows: share of the residual's rows that stays.

    Source: MC-SMoE (arXiv 2310.01334): rank ceil(share * HW / (H + W)). There rows go during 50 epochs of training by
    importance |w * gradient|, final share 0.10 (0.25 in the code); here without training, by magnitude.
    """
    table: list[Factored] = []
    for expert in range(weights.experts) if experts is None else experts:
        _, parts = _factored(weights, expert, rank, rows)
        table += parts
    return table


@TRANSFORMS.register("mc")
def mc(
    weights: LayerWeights,
    plan: LayerCut,
    statistics: LayerStatistics | None = None,
    *,
    rank: float = 0.5,
    rows: float = 0.1,
    singles: bool = False,
    balanced: bool = False,
    router: RouterRows = "centre",
) -> LayerWeights:
    """Merge as `aligned_mean`, then put low rank plus a few rows in place of each merged expert's matrices.

    The factors are multiplied out: the checkpoint stays stock and no smaller than that of `aligned_mean`; what it would
    be in factors is in `mc_analysis`.

    Args:
        weights, plan, statistics: the layer, its groups with shares, its statistics.
        rank, rows: as of `mc_analysis`.
        singles: also of experts that were merged with no other.
        balanced, router: as of `aligned_mean`.

    Source: MC-SMoE (arXiv 2310.01334), without the training that the paper does.
    """
    merged = aligned_mean(weights, plan, statistics, balanced=balanced, router=router)
    groups = plan.groups or tuple(((expert, 1.0),) for expert in plan.keep)
    chosen = [place for place, group in enumerate(groups) if singles or len(group) > 1]
    return with_experts(merged, {place: _factored(merged, place, rank, rows)[0] for place in chosen})


@GROUPINGS.register("mc_smoe")
@merged_by("mc", collect=("cheap", "router"), layer_counts=adaptive_counts)
def mc_smoe(
    statistics: LayerStatistics,
    kept: int,
    *,
    weights: LayerWeights | None = None,
    seed: int = 0,
    similarity: Likeness = "logits",
) -> Grouping:
    """Group as `m_smoe`; the transform then factors what was merged."""
    return m_smoe(statistics, kept, weights=weights, seed=seed, similarity=similarity)


def _factored(weights: LayerWeights, expert: int, share: float, rows: float) -> tuple[Expert, list[Factored]]:
    whole = expert_of(weights, expert)
    changed: dict[str, Any] = {}
    table: list[Factored] = []
    for name in ("gate", "up", "down"):
        matrix = getattr(whole, name)
        if matrix is None:
            continue
        rank = rank_of_share(matrix.shape[0], matrix.shape[1], share)
        parts = low_rank_and_sparse(matrix, rank=rank, rows=rows)
        changed[name] = parts.product
        table.append(
            Factored(
                weights.layer, expert, name, rank, len(parts.rows), parts.error, parts.numbers, int(matrix.numel())
            )
        )
    return whole._replace(**changed), table
