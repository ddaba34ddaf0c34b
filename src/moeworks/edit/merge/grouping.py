"""Which experts of a layer become one: the registry of groupings, and what they share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeworks.edit.plan import LayerCut, Share
from moeworks.edit.statistics import LayerStatistics
from moeworks.errors import BadData, did_you_mean
from moeworks.registry import Registry

if TYPE_CHECKING:
    from moeworks.edit.layer import LayerWeights

__all__ = [
    "GROUPINGS",
    "Grouping",
    "GroupingFunction",
    "LayerCounts",
    "around_centres",
    "by_score",
    "centre_of",
    "group_layer",
    "grouped",
    "merged_by",
    "saliency",
    "shares_of",
]

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """What becomes of the experts of one layer.

    Attributes:
        keep: centre of each group, ascending.
        groups: for each centre, (expert, share) of all that it is made of, the centre first, shares adding up to 1;
            None where single experts are kept and what is left of the others is the transform's business (DERN).
        order: all experts, best first, where the method ranks them; else empty.
    """

    keep: tuple[int, ...]
    groups: tuple[tuple[Share, ...], ...] | None
    order: tuple[int, ...] = ()

    def cut(self, layer: int, experts: int) -> LayerCut:
        """Return the plan of one layer."""
        return LayerCut(layer=layer, experts=experts, keep=self.keep, order=self.order, groups=self.groups)


# (statistics, kept, *, weights, seed, **options) → groups; a pure function, deterministic.
GroupingFunction = Callable[..., Grouping]
# (statistics of all layers, total, *, at_least) → kept experts of each layer
LayerCounts = Callable[..., tuple[int, ...]]

GROUPINGS: Registry[GroupingFunction] = Registry("grouping", "moeworks.groupings")


def merged_by(
    transform: str, *, collect: Sequence[str], layer_counts: LayerCounts | None = None, needs_weights: bool = False
) -> Callable[[GroupingFunction], GroupingFunction]:
    """Say of a grouping which transform merges its groups, and what grouping and transform read.

    The function gets these attributes: `transform`, `collect` (groups of statistics, `rows` for kept rows of text),
    `layer_counts` (how it shares out experts over layers itself, or None) and `needs_weights`.
    """

    def mark(function: GroupingFunction) -> GroupingFunction:
        function.__dict__.update(
            transform=transform, collect=tuple(collect), layer_counts=layer_counts, needs_weights=needs_weights
        )
        return function

    return mark


def group_layer(
    method: str,
    statistics: LayerStatistics,
    kept: int,
    *,
    weights: LayerWeights | None = None,
    seed: int = 0,
    protected: Collection[int] = (),
    **options: Any,
) -> Grouping:
    """Return the groups of one layer by a registered method; protected experts stay by themselves.

    Args:
        method: name in `GROUPINGS`.
        statistics: of the layer.
        kept: how many experts the layer has afterwards, the protected among them.
        weights: of the layer, for methods that compare weights.
        seed: for methods that draw.
        protected: experts that are grouped with no other (super experts); the method sees the rest alone.
        options: of the method.

    Raises:
        BadData: the number is not possible, an option or statistic is missing or unknown; the message says what to do.
    """
    function = GROUPINGS.get(method)
    experts, alone = statistics.experts, sorted(set(protected))
    known = [name for name in GROUPINGS.options(method) if name not in ("weights", "seed")]
    problems = [f"'{method}' has no option '{name}'; {did_you_mean(name, known)}" for name in set(options) - set(known)]
    if not 1 <= kept <= experts:
        problems.append(f"layer {statistics.layer} has {experts} experts and cannot have {kept}.")
    elif alone and not (alone[0] >= 0 and alone[-1] < experts):
        problems.append(f"layer {statistics.layer} has no expert {alone[-1] if alone[0] >= 0 else alone[0]}.")
    elif len(alone) > kept or (len(alone) == kept < experts):
        problems.append(
            f"layer {statistics.layer} keeps {kept} experts, of which {len(alone)} are protected; keep more, so that "
            "the others have one to go to."
        )
    if weights is not None and weights.experts != experts:
        problems.append(f"layer {statistics.layer}: statistics of {experts} experts, weights of {weights.experts}.")
    if weights is None and function.__dict__.get("needs_weights"):
        problems.append(f"'{method}' compares weights; give it those of layer {statistics.layer}.")
    if problems:
        raise BadData(" ".join(sorted(problems)))
    if kept == experts:
        return Grouping(keep=tuple(range(experts)), groups=None)
    if not alone:
        return function(statistics, kept, weights=weights, seed=seed, **options)
    rest = [expert for expert in range(experts) if expert not in set(alone)]
    inner = function(
        _of_experts(statistics, rest),
        kept - len(alone),
        weights=None if weights is None else replace(weights, table=None).select(rest),
        seed=seed,
        **options,
    )
    return _with_single(inner, rest, alone)


def shares_of(values: Array, members: Sequence[int]) -> tuple[Share, ...]:
    """Return (member, its part of the members' sum); members alike where the sum is 0."""
    chosen = np.asarray(values, np.float64)[list(members)]
    total = chosen.sum()
    parts = chosen / total if total > 0 else np.full(len(chosen), 1 / len(chosen))
    return tuple((int(member), float(part)) for member, part in zip(members, parts, strict=True))


def saliency(statistics: LayerStatistics) -> Array:
    """Return REAP's score, (E,): the mean of weight times output norm over an expert's own tokens, 0 without any.

    Source: REAP (arXiv 2510.13999).
    """
    norm, count = statistics.get("gated_norm"), statistics.get("count")
    return np.divide(norm, count, out=np.zeros(len(count)), where=count > 0)


def by_score(scores: Array) -> list[int]:
    """Return experts from the highest score down, the lower number first among equal ones."""
    values = np.asarray(scores, np.float64)
    if not np.isfinite(values).all():
        raise BadData("scores of experts are not finite; collect the statistics again.")
    return [int(expert) for expert in np.argsort(-values, kind="stable")]


def centre_of(members: Sequence[int], scores: Array) -> int:
    """Return the member of the highest score, the lower number among equal ones."""
    return max(members, key=lambda member: (scores[member], -member))


def around_centres(similarity: Array, ranked: Sequence[int], kept: int, values: Array) -> Grouping:
    """Return groups of the first `kept` ranked experts, each other expert with the centre it is most like.

    Args:
        similarity: (E, E).
        ranked: all experts, best first; of centres an expert is equally like, the better ranked one.
        kept: number of groups.
        values: (E,) to share out the weights in a group by.
    """
    members: dict[int, list[int]] = {centre: [centre] for centre in ranked[:kept]}
    for expert in sorted(ranked[kept:]):
        members[max(ranked[:kept], key=lambda centre: similarity[expert, centre])].append(expert)
    return grouped(members, values, ranked)


def grouped(members: dict[int, list[int]], values: Array, order: Iterable[int] = ()) -> Grouping:
    """Return the grouping of centre → members, in the form that plans have."""
    keep = tuple(sorted(members))
    return Grouping(keep=keep, groups=tuple(shares_of(values, members[c]) for c in keep), order=tuple(order))


def _of_experts(statistics: LayerStatistics, experts: list[int]) -> LayerStatistics:
    """Return the statistics of some experts; rows of text belong to all of them and are left out."""
    arrays = {name: array[:, experts] for name, array in statistics.arrays.items()}
    for name in ("pairs", "logit_gram"):
        if name in arrays:
            arrays[name] = arrays[name][:, :, experts]
    return replace(statistics, arrays=arrays, sets=None, load_rows=None)


def _with_single(inner: Grouping, rest: list[int], alone: list[int]) -> Grouping:
    """Return a grouping of `rest` in the numbers of the whole layer, protected experts added, best of all."""
    keep = tuple(sorted([*(rest[expert] for expert in inner.keep), *alone]))
    groups = None
    if inner.groups is not None:
        of = {rest[c]: tuple((rest[e], w) for e, w in g) for c, g in zip(inner.keep, inner.groups, strict=True)}
        groups = tuple(of.get(expert, ((expert, 1.0),)) for expert in keep)
    order = (*alone, *(rest[expert] for expert in inner.order)) if inner.order else ()
    return Grouping(keep=keep, groups=groups, order=order)
