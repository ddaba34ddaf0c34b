"""M-SMoE: frequent experts are centres, the others join the centre that the router treats most alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from moeworks.edit.algebra.similarity import cosines, cosines_of_gram, weight_cosines
from moeworks.edit.merge.grouping import GROUPINGS, Grouping, around_centres, by_score, merged_by
from moeworks.edit.statistics import LayerStatistics
from moeworks.errors import BadData

if TYPE_CHECKING:
    from moeworks.edit.layer import LayerWeights

__all__ = ["Likeness", "adaptive_counts", "m_smoe", "usage"]

Likeness = Literal["logits", "rows", "weights", "outputs"]


def usage(statistics: LayerStatistics) -> NDArray[Any]:
    """Return how often each expert was chosen, as a share of all choices of the layer, (E,)."""
    count = statistics.get("count").astype(np.float64)
    return count / max(float(count.sum()), 1.0)


def adaptive_counts(statistics: Sequence[LayerStatistics], total: int, *, at_least: int = 1) -> tuple[int, ...]:
    """Return how many groups each layer gets if the most used experts of all layers are the centres, (L,).

    The usage of each layer adds up to 1; the `at_least` most used experts of each layer are centres in any case.

    Args:
        statistics: of all layers that take part.
        total: groups of all layers together.
        at_least: groups of every layer; a stock checkpoint needs as many as a token has experts.

    Source: M-SMoE (arXiv 2310.01334), released code: the largest usage of a layer is set to 1 (so `at_least` is 1),
    and the experts above the N-th largest usage are centres, which leaves one too few, and fewer where several are
    equal. Here exactly N are taken, of equal ones the earlier.

    Raises:
        BadData: so many groups are not possible.
    """
    sizes = [layer.experts for layer in statistics]
    least = sum(min(at_least, size) for size in sizes)
    if not least <= total <= sum(sizes):
        raise BadData(f"{total} groups over {len(sizes)} layers are not possible; it must be {least} to {sum(sizes)}.")
    lifted = []
    for layer in statistics:
        share = usage(layer)
        share[by_score(share)[:at_least]] = np.inf
        lifted.append(share)
    owner = np.repeat(np.arange(len(sizes)), sizes)  # (sum of E,)
    chosen = np.argsort(-np.concatenate(lifted), kind="stable")[:total]
    return tuple(int(count) for count in np.bincount(owner[chosen], minlength=len(sizes)))


@GROUPINGS.register("m_smoe")
@merged_by("aligned_mean", collect=("cheap", "router"), layer_counts=adaptive_counts)
def m_smoe(
    statistics: LayerStatistics,
    kept: int,
    *,
    weights: LayerWeights | None = None,
    seed: int = 0,
    similarity: Likeness = "logits",
) -> Grouping:
    """Group experts around the most used ones; shares in a group are those of usage.

    Args:
        statistics: of the layer: `count`, and `logit_gram` for `logits`, `all_output_sum` for `outputs`.
        kept: number of groups.
        weights: for `rows` and `weights`.
        seed: not used.
        similarity: cosine of `logits` over all tokens, of router `rows`, of flattened `weights`, or of mean `outputs`.

    Source: M-SMoE (arXiv 2310.01334), released code: (cos + 1) / 2 of router-logit columns, which ranks as cos does.
    """
    share = usage(statistics)
    return around_centres(alike(statistics, weights, similarity), by_score(share), kept, share)


def alike(statistics: LayerStatistics, weights: LayerWeights | None, similarity: Likeness) -> NDArray[Any]:
    """Return the chosen cosine of every two experts of a layer, (E, E)."""
    if similarity == "logits":
        return cosines_of_gram(statistics.get("logit_gram"))
    if similarity == "outputs":
        return cosines(statistics.get("all_output_sum"))
    if similarity not in ("rows", "weights"):
        raise BadData(f"experts are compared by 'logits', 'rows', 'weights' or 'outputs', not '{similarity}'.")
    if weights is None:
        raise BadData(f"similarity of '{similarity}' needs the weights of layer {statistics.layer}.")
    if similarity == "rows":
        return cosines(weights.router.detach().double().cpu().numpy())
    return weight_cosines(weights, ("up", "gate", "down"))
